//! Where sequences come from: a store that a stage wrote, or a corpus made beforehand.

use std::ops::Range;
use std::path::Path;

use didact_core::hash::Digest;
use didact_core::sequence::Sequence;

use crate::corpus::Corpus;
use crate::store::{Origin, SequenceStore, StoreError};

/// Sequences on disk. Clones share the memory maps.
#[derive(Debug, Clone)]
pub enum Sequences {
    /// Written by a stage.
    Store(SequenceStore),
    /// Made by `didact data tokenize`.
    Corpus(Corpus),
}

impl From<SequenceStore> for Sequences {
    fn from(store: SequenceStore) -> Self {
        Self::Store(store)
    }
}

impl From<Corpus> for Sequences {
    fn from(corpus: Corpus) -> Self {
        Self::Corpus(corpus)
    }
}

impl Sequences {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Store(store) => store.len(),
            Self::Corpus(corpus) => corpus.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens in all.
    pub fn tokens(&self) -> u64 {
        match self {
            Self::Store(store) => store.summary().tokens,
            Self::Corpus(corpus) => corpus.summary().tokens,
        }
    }

    /// Sum of all weights.
    pub fn weight(&self) -> f64 {
        match self {
            Self::Store(store) => store.summary().weight,
            Self::Corpus(corpus) => corpus.summary().weight,
        }
    }

    /// Length in tokens and total weight of each.
    ///
    /// # Errors
    /// When a record of a corpus is damaged.
    pub fn extents(&self) -> Result<Vec<(u32, f64)>, StoreError> {
        match self {
            Self::Store(store) => Ok((0..store.len()).map(|i| (store.length(i), store.weight(i))).collect()),
            Self::Corpus(corpus) => (0..corpus.len()).map(|i| corpus.extent(i)).collect(),
        }
    }

    /// Reads one and checks it.
    ///
    /// # Errors
    /// When there is no such sequence, or it is damaged.
    pub fn sequence(&self, index: usize) -> Result<Sequence, StoreError> {
        match self {
            Self::Store(store) => store.sequence(index),
            Self::Corpus(corpus) => corpus.sequence(index),
        }
    }

    /// Reads the tokens `part` of one, as far as there are so many, after a check of all of it (of a long one: once).
    ///
    /// # Errors
    /// As [`Sequences::sequence`].
    pub fn part(&self, index: usize, part: Range<usize>) -> Result<Sequence, StoreError> {
        match self {
            Self::Store(store) => store.part(index, part),
            Self::Corpus(corpus) => corpus.part(index, part),
        }
    }

    /// Where one came from; question marks when a corpus cannot say so any more.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn origin(&self, index: usize) -> Origin<'_> {
        assert!(index < self.len(), "there are {} sequences, not {index}", self.len());
        match self {
            Self::Store(store) => store.origin(index),
            Self::Corpus(corpus) => corpus.origin(index).unwrap_or(Origin { source: "?", path: "?", row: 0 }),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        match self {
            Self::Store(store) => store.path(),
            Self::Corpus(corpus) => corpus.path(),
        }
    }

    /// A digest of everything in it.
    pub fn digest(&self) -> Digest {
        match self {
            Self::Store(store) => store.digest(),
            Self::Corpus(corpus) => corpus.digest(),
        }
    }
}
