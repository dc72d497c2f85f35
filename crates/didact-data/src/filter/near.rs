//! Near repetitions: MinHash signatures in locality-sensitive hash tables.
//!
//! A text is the set of its runs of `words` words. Of each of `bands × rows` random orders of all runs its signature holds
//! the first one that the text has; two texts agree in a place with the probability of their Jaccard similarity `s` (runs
//! shared by runs in either). Texts that agree in all rows of some band are compared: they are found with probability
//! `1 - (1 - s^rows)^bands`, with the default 14 bands of 8 rows 0.56 at 0.7, 0.92 at 0.8 and 0.9997 at 0.9. What was found
//! is a repetition when the share of equal places, which estimates `s` with a deviation of `√(s (1 - s) / 112)` (0.04 at
//! 0.8), reaches the threshold.
//!
//! A text is compared with those that were kept before it; of texts that agree in a band the first is remembered. Memory:
//! about 400 bytes per text kept.
//!
//! # Reference
//! Broder, "On the resemblance and containment of documents", SEQUENCES 1997; the defaults are those of the `FineWeb` data
//! set (Penedo et al., 2024).

use didact_core::seed::Streams;
use rand::Rng;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::words::{mix, normalised, runs};
use crate::error::DataError;

/// How near repetitions are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NearSettings {
    /// Least similarity of a repetition.
    pub threshold: f64,
    /// Words of a run.
    pub words: usize,
    /// Bands of the signature.
    pub bands: usize,
    /// Places of a band.
    pub rows: usize,
    /// Seed of the random orders.
    pub seed: u64,
}

impl Default for NearSettings {
    fn default() -> Self {
        Self { threshold: 0.8, words: 5, bands: 14, rows: 8, seed: 1 }
    }
}

/// A text's signature: the low byte of each place, and a key for each band.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    places: Box<[u8]>,
    bands: Box<[u64]>,
}

/// Texts seen so far.
#[derive(Debug)]
pub struct NearIndex {
    settings: NearSettings,
    /// Multiplier (odd) and summand of each random order.
    orders: Vec<(u64, u64)>,
    /// For each band, the first text with a key. Only looked up, never walked.
    tables: Vec<FxHashMap<u64, u32>>,
    /// Signatures of the texts, by their numbers here, and the numbers they were given.
    places: Vec<u8>,
    numbers: Vec<u32>,
}

impl NearIndex {
    /// An index of no texts.
    ///
    /// # Errors
    /// When the settings make no sense.
    pub fn new(settings: NearSettings) -> Result<Self, DataError> {
        let NearSettings { threshold, words, bands, rows, seed } = settings;
        if !(threshold > 0.0 && threshold <= 1.0) {
            let (found, expected) = (threshold.to_string(), "above 0, at most 1");
            return Err(DataError::Setting { key: "near.threshold", found, expected });
        }
        if words == 0 || bands == 0 || rows == 0 {
            let (found, expected) = (format!("{words}, {bands} and {rows}"), "at least 1 each");
            return Err(DataError::Setting { key: "near.words, near.bands and near.rows", found, expected });
        }
        let mut rng = Streams::new(seed).rng("minhash", &[]);
        let orders = (0..bands * rows).map(|_| (rng.next_u64() | 1, rng.next_u64())).collect();
        let tables = vec![FxHashMap::default(); bands];
        Ok(Self { settings, orders, tables, places: Vec::new(), numbers: Vec::new() })
    }

    /// The signature of a text.
    pub fn signature(&self, text: &str) -> Signature {
        let words = normalised(text);
        // A text shorter than a run is one run.
        let n = self.settings.words.min(words.len()).max(1);
        let mut least = vec![u32::MAX; self.orders.len()];
        for run in runs(&words, n) {
            for (least, (a, b)) in least.iter_mut().zip(&self.orders) {
                *least = (*least).min((run.wrapping_mul(*a).wrapping_add(*b) >> 32) as u32);
            }
        }
        let key = |(band, places): (usize, &[u32])| {
            places.iter().fold(mix(band as u64), |key, &place| mix(key ^ u64::from(place)))
        };
        Signature {
            places: least.iter().map(|&place| place as u8).collect(),
            bands: least.chunks(self.settings.rows).enumerate().map(key).collect(),
        }
    }

    /// The share of runs two texts have in common, as far as their signatures tell.
    pub fn similarity(&self, a: &Signature, b: &Signature) -> f64 {
        similarity(&a.places, &b.places)
    }

    /// An earlier text that this one nearly repeats, and how similar they are.
    pub fn find(&self, signature: &Signature) -> Option<(u32, f64)> {
        let k = self.orders.len();
        let mut candidates: Vec<u32> =
            self.tables.iter().zip(&signature.bands).filter_map(|(table, key)| table.get(key).copied()).collect();
        candidates.sort_unstable();
        candidates.dedup();
        candidates.into_iter().find_map(|text| {
            let at = text as usize * k;
            let found = similarity(&self.places[at..at + k], &signature.places);
            (found >= self.settings.threshold).then(|| (self.numbers[text as usize], found))
        })
    }

    /// Remembers a text under a number of the caller's.
    pub fn insert(&mut self, number: u32, signature: Signature) {
        let text = self.numbers.len() as u32;
        self.numbers.push(number);
        self.places.extend_from_slice(&signature.places);
        for (table, key) in self.tables.iter_mut().zip(&signature.bands) {
            table.entry(*key).or_insert(text);
        }
    }
}

/// The share of equal places, less those that agree by chance in the byte that is kept of them.
fn similarity(a: &[u8], b: &[u8]) -> f64 {
    const CHANCE: f64 = 1.0 / 256.0;
    let equal = a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64;
    ((equal - CHANCE) / (1.0 - CHANCE)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Two texts of `n` runs (of one word, for a similarity that can be set) with `shared` in common.
    fn texts(n: usize, shared: usize, salt: usize) -> (String, String) {
        let words = |from: usize, count: usize| {
            (from..from + count).map(|i| format!("w{salt}x{i} ")).collect::<Vec<_>>().concat()
        };
        (words(0, n), words(n - shared, n))
    }

    fn exact(a: &str, b: &str, n: usize) -> f64 {
        let set = |text: &str| runs(&normalised(text), n).collect::<BTreeSet<u64>>();
        let (a, b) = (set(a), set(b));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    #[test]
    fn signatures_estimate_the_exact_similarity_and_bands_find_pairs_as_often_as_they_should() {
        let settings = NearSettings { words: 1, threshold: 1e-6, ..NearSettings::default() };
        let k = (settings.bands * settings.rows) as f64;
        for shared in [100, 140, 160, 180, 190] {
            let (mut sum, mut squares, mut found) = (0.0, 0.0, 0);
            let trials = 150;
            let mut similarity = 0.0;
            for trial in 0..trials {
                let mut index = NearIndex::new(settings).expect("sound");
                let (a, b) = texts(200, shared, trial);
                similarity = exact(&a, &b, 1);
                let (first, second) = (index.signature(&a), index.signature(&b));
                let estimate = index.similarity(&first, &second);
                sum += estimate;
                squares += (estimate - similarity).powi(2);
                index.insert(7, first);
                found += u32::from(index.find(&second).is_some_and(|(number, _)| number == 7));
            }
            let n = f64::from(trials as u32);
            let deviation = (similarity * (1.0 - similarity) / k).sqrt();
            // Four deviations of a mean of `trials`; twice the deviation for a single one, which is generous for a mean
            // of squares. One set of orders serves all trials, and adds a deviation of its own: hence the factor 2.
            assert!((sum / n - similarity).abs() < 8.0 * deviation / n.sqrt(), "{} against {similarity}", sum / n);
            assert!((squares / n).sqrt() < 2.0 * deviation, "{} against {deviation}", (squares / n).sqrt());
            let expected = 1.0 - (1.0 - similarity.powi(8)).powi(14);
            let tolerance = 8.0 * (expected * (1.0 - expected) / n).sqrt() + 0.02;
            let share = f64::from(found) / n;
            assert!((share - expected).abs() < tolerance, "{share} are found at {similarity}, {expected} should be");
        }
    }

    #[test]
    fn an_edited_text_is_found_and_another_one_is_not() {
        let mut index = NearIndex::new(NearSettings::default()).expect("sound");
        let text = (0..300).map(|i| format!("word{} ", i * i % 977)).collect::<Vec<_>>().concat();
        let signature = index.signature(&text);
        index.insert(0, signature);
        let mut edited: Vec<&str> = text.split(' ').collect();
        edited[150] = "changed";
        let edited = edited.join("  ").to_uppercase() + "!";
        assert!(exact(&text, &edited, 5) > 0.9);
        let (number, similarity) = index.find(&index.signature(&edited)).expect("found");
        assert!(number == 0 && similarity > 0.85, "{similarity}");
        let other = (0..300).map(|i| format!("word{} ", (i * i + 31 * i) % 977)).collect::<Vec<_>>().concat();
        assert_eq!(index.find(&index.signature(&other)), None);
        for short in ["", "one", "one two"] {
            let signature = index.signature(short);
            assert_eq!(index.find(&signature), None, "{short:?}");
            index.insert(1, signature.clone());
            assert_eq!(index.find(&signature).map(|(_, s)| s), Some(1.0), "{short:?}");
        }
    }
}
