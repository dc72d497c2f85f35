//! Where sequences come from: a store that a stage wrote, or a corpus made beforehand.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use didact_core::hash::{Digest, Hasher};
use didact_core::sequence::Sequence;

use serde_json::Value;

use crate::corpus::Corpus;
use crate::store::{Origin, SequenceStore, StoreError};

/// Sequences on disk. Clones share the memory maps.
#[derive(Debug, Clone)]
pub enum Sequences {
    /// Written by a stage.
    Store(SequenceStore),
    /// Made by `didact data tokenize`.
    Corpus(Corpus),
    /// Some of another's.
    Part(Part),
}

/// Some sequences of a store or corpus, in their order there; nothing is copied.
#[derive(Debug, Clone)]
pub struct Part {
    whole: Box<Sequences>,
    kept: Arc<[u32]>,
    tokens: u64,
    weight: f64,
    digest: Digest,
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
    /// Those of them with these numbers.
    ///
    /// # Errors
    /// When there is no such sequence, or a record of a corpus is damaged.
    pub fn some(&self, kept: impl Into<Arc<[u32]>>) -> Result<Self, StoreError> {
        let kept = kept.into();
        let (mut tokens, mut weight) = (0, 0.0);
        for &index in kept.iter() {
            let extent = self.extent(index as usize)?;
            tokens += u64::from(extent.0);
            weight += extent.1;
        }
        let mut hasher = Hasher::new();
        hasher.field("whole", self.digest().to_string().as_bytes());
        let bytes: Vec<u8> = kept.iter().flat_map(|index| index.to_le_bytes()).collect();
        hasher.field("kept", &bytes);
        Ok(Self::Part(Part { whole: Box::new(self.clone()), kept, tokens, weight, digest: hasher.finish() }))
    }

    /// Length in tokens and total weight of one.
    ///
    /// # Errors
    /// When there is no such sequence, or a record of a corpus is damaged.
    pub fn extent(&self, index: usize) -> Result<(u32, f64), StoreError> {
        if index >= self.len() {
            let (path, sequences) = (self.path().to_owned(), self.len());
            return Err(StoreError::NoSuchSequence { path, index, sequences });
        }
        match self {
            Self::Store(store) => Ok((store.length(index), store.weight(index))),
            Self::Corpus(corpus) => corpus.extent(index),
            Self::Part(part) => part.whole.extent(part.kept[index] as usize),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Store(store) => store.len(),
            Self::Corpus(corpus) => corpus.len(),
            Self::Part(part) => part.kept.len(),
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
            Self::Part(part) => part.tokens,
        }
    }

    /// Sum of all weights.
    pub fn weight(&self) -> f64 {
        match self {
            Self::Store(store) => store.summary().weight,
            Self::Corpus(corpus) => corpus.summary().weight,
            Self::Part(part) => part.weight,
        }
    }

    /// Length in tokens and total weight of each.
    ///
    /// # Errors
    /// When a record of a corpus is damaged.
    pub fn extents(&self) -> Result<Vec<(u32, f64)>, StoreError> {
        (0..self.len()).map(|index| self.extent(index)).collect()
    }

    /// Reads one and checks it.
    ///
    /// # Errors
    /// When there is no such sequence, or it is damaged.
    pub fn sequence(&self, index: usize) -> Result<Sequence, StoreError> {
        match self {
            Self::Store(store) => store.sequence(index),
            Self::Corpus(corpus) => corpus.sequence(index),
            Self::Part(part) => part.whole.sequence(part.number(index)?),
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
            Self::Part(of) => of.whole.part(of.number(index)?, part),
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
            Self::Part(part) => part.whole.origin(part.kept[index] as usize),
        }
    }

    /// A field of the row that one was made from, where a corpus kept it; null where the row had none.
    ///
    /// # Errors
    /// When no such field was kept, or as [`Sequences::sequence`].
    pub fn field(&self, index: usize, name: &str) -> Result<Value, StoreError> {
        match self {
            Self::Store(_) => Ok(Value::Null),
            Self::Corpus(corpus) => corpus.field(index, name),
            Self::Part(part) => part.whole.field(part.number(index)?, name),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        match self {
            Self::Store(store) => store.path(),
            Self::Corpus(corpus) => corpus.path(),
            Self::Part(part) => part.whole.path(),
        }
    }

    /// A digest of everything in it.
    pub fn digest(&self) -> Digest {
        match self {
            Self::Store(store) => store.digest(),
            Self::Corpus(corpus) => corpus.digest(),
            Self::Part(part) => part.digest,
        }
    }
}

impl Part {
    /// The number in the whole.
    fn number(&self, index: usize) -> Result<usize, StoreError> {
        let none =
            || StoreError::NoSuchSequence { path: self.whole.path().to_owned(), index, sequences: self.kept.len() };
        self.kept.get(index).map(|&number| number as usize).ok_or_else(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::TrainingSet;
    use crate::packing::Packing;
    use crate::store::tests::stored;

    #[test]
    fn a_part_is_its_sequences_and_nothing_else() {
        let all: Vec<Sequence> =
            (2..12u32).map(|n| Sequence::single((0..n).collect(), vec![0.5; n as usize])).collect();
        let (_dir, store) = stored(&all);
        let whole = Sequences::from(store);
        let part = whole.some([1, 4, 7]).expect("there are ten");
        assert_eq!((part.len(), part.tokens(), part.weight()), (3, 3 + 6 + 9, 7.5));
        assert_eq!(part.sequence(1).expect("intact").ids, all[4].ids);
        assert_eq!(part.part(2, 3..5).expect("intact").ids, [3, 4]);
        assert_eq!(part.origin(2), whole.origin(7));
        assert_eq!(part.extents().expect("intact"), [(3, 1.0), (6, 2.5), (9, 4.0)]);
        assert!(part.sequence(3).is_err() && part.extent(3).is_err() && whole.some([10]).is_err());
        assert_ne!(part.digest(), whole.digest());
        assert_ne!(part.digest(), whole.some([1, 4, 8]).expect("there").digest());
        let set = TrainingSet::of(part, 16, Packing::BestFit, 2, None).expect("intact");
        let account = set.weight_account();
        assert_eq!((account.built, account.delivered, account.dropped), (7.5, 7.5, 0.0));
    }
}
