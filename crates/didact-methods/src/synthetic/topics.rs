//! Documents of very different lengths in which what was said before helps, and what another document said does not.
//!
//! Each document has a topic (a distribution over words of its own, mixed with one table of word pairs that all share) and
//! six names, random pairs of words, that come back again and again anywhere later in it. Lengths are log-normal.

use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use rand::{Rng, RngExt};
use rand_distr::weighted::WeightedAliasIndex;
use rand_distr::{Distribution, Gamma, LogNormal};

/// Words.
const WORDS: usize = 256;
/// The token that ends a document.
pub const END: u32 = WORDS as u32;
/// Tokens of the vocabulary.
pub const VOCABULARY: usize = 260;
const TOPICS: usize = 32;
const NAMES: usize = 6;
/// Probability that the next words are one of the document's names.
const NAME_SHARE: f64 = 0.1;
/// Concentration of the distributions over words: a few words of each are common.
const CONCENTRATION: f64 = 0.05;
/// Median and spread of the documents' lengths in tokens, and their limits.
const MEDIAN: f64 = 180.0;
const SIGMA: f64 = 1.0;
const LIMITS: (f64, f64) = (20.0, 6000.0);

/// How long documents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// Log-normal: median 180, sigma 1, from 20 to 6000 tokens.
    Natural,
    /// All of so many tokens.
    Equal(usize),
}

/// A language of topics.
#[derive(Debug)]
pub struct Topics {
    topics: Vec<WeightedAliasIndex<f64>>,
    pairs: Vec<WeightedAliasIndex<f64>>,
}

fn words(rng: &mut impl Rng) -> WeightedAliasIndex<f64> {
    let gamma = Gamma::new(CONCENTRATION, 1.0).expect("both are above 0");
    // A draw may be too small for a number; one of 256 practically never all of them, and the floor keeps even that right.
    let weights = (0..WORDS).map(|_| gamma.sample(rng) + f64::MIN_POSITIVE).collect();
    WeightedAliasIndex::new(weights).expect("all weights are above 0")
}

impl Topics {
    /// Draws one.
    pub fn new(streams: &Streams) -> Self {
        let mut rng = streams.rng("topics", &[]);
        Self {
            topics: (0..TOPICS).map(|_| words(&mut rng)).collect(),
            pairs: (0..WORDS).map(|_| words(&mut rng)).collect(),
        }
    }

    /// Documents, all of whose tokens are learned but the first.
    pub fn documents(&self, lengths: Lengths, streams: &Streams) -> impl Iterator<Item = Sequence> + '_ {
        let streams = *streams;
        (0..).map(move |number| self.document(lengths, &mut streams.rng("document", &[number])))
    }

    fn document(&self, lengths: Lengths, rng: &mut impl Rng) -> Sequence {
        let length = match lengths {
            Lengths::Equal(length) => length,
            Lengths::Natural => {
                let lengths = LogNormal::new(MEDIAN.ln(), SIGMA).expect("the spread is finite");
                lengths.sample(rng).clamp(LIMITS.0, LIMITS.1) as usize
            }
        };
        let topic = &self.topics[rng.random_range(0..TOPICS)];
        let names: Vec<[u32; 2]> = (0..NAMES).map(|_| [rng.random_range(0..END), rng.random_range(0..END)]).collect();
        let mut ids: Vec<u32> = Vec::with_capacity(length + 1);
        while ids.len() + 1 < length {
            if rng.random_bool(NAME_SHARE) {
                ids.extend(names[rng.random_range(0..NAMES)]);
                continue;
            }
            let next = match ids.last() {
                Some(&last) if rng.random_bool(0.5) => self.pairs[last as usize].sample(rng),
                _ => topic.sample(rng),
            };
            ids.push(next as u32);
        }
        ids.truncate(length - 1);
        ids.push(END);
        let weight = vec![1.0; ids.len()];
        Sequence::single(ids, weight)
    }
}

/// Documents until their tokens are as many as these or more.
pub fn up_to(tokens: usize, documents: impl Iterator<Item = Sequence>) -> impl Iterator<Item = Sequence> {
    documents.scan(0, move |read, document| {
        let is_enough = *read >= tokens;
        *read += document.len();
        (!is_enough).then_some(document)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_log_normal_or_all_alike() {
        let language = Topics::new(&Streams::new(1));
        let mut lengths: Vec<usize> =
            language.documents(Lengths::Natural, &Streams::new(2)).take(2000).map(|d| d.len()).collect();
        lengths.sort_unstable();
        // The median of 2000 draws has a standard error of about 2.8 %; the seed is fixed.
        assert!((165..=195).contains(&lengths[1000]), "median {}", lengths[1000]);
        assert!(lengths[0] >= 20 && lengths[1999] <= 6000);
        let alike = language.documents(Lengths::Equal(512), &Streams::new(2)).take(5).map(|d| d.len());
        assert!(alike.eq([512; 5]));
    }

    #[test]
    fn names_come_back_and_nothing_else_pairs_up_like_them() {
        let language = Topics::new(&Streams::new(1));
        let document = language.documents(Lengths::Equal(4000), &Streams::new(5)).next().expect("is as made");
        let mut counts = std::collections::BTreeMap::new();
        for pair in document.ids.windows(2) {
            *counts.entry([pair[0], pair[1]]).or_insert(0) += 1;
        }
        // 0.1 · 4000 / 1.1 names in all, a sixth of them each: about 60.
        let often = counts.values().filter(|&&n| n >= 35).count();
        assert!(often >= NAMES, "{often} pairs come often");
        assert_eq!(document.ids.last(), Some(&END));
    }

    #[test]
    fn as_many_documents_are_taken_as_the_tokens_ask_for() {
        let language = Topics::new(&Streams::new(1));
        let documents = language.documents(Lengths::Equal(100), &Streams::new(2));
        assert_eq!(up_to(950, documents).count(), 10);
    }
}
