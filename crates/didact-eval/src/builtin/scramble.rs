//! Words whose letters were moved, turned around or taken apart.
//!
//! The words are those of the English list of BIP 39, 2048 common words of 3 to 8 letters.
//!
//! # Reference
//! Brown et al., "Language Models are Few-Shot Learners", 2020, section 3.9.2.

use crate::task::Document;
use didact_core::seed::Streams;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use serde_json::json;
use std::collections::BTreeMap;

pub(super) const TASK: &str = include_str!("../../tasks/unscramble.toml");
/// Least letters of a word.
const LETTERS: usize = 6;
/// Words that are kept for examples.
const EXAMPLES: usize = 200;
/// Attempts at moving something; the letters inside may be all the same.
const ATTEMPTS: usize = 16;

/// What was done to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rotated.
    Cycle,
    /// Shuffled but for so many letters at both ends.
    Anagram(usize),
    /// One of ` ./!` between any two letters.
    Insertion,
    /// Backwards.
    Reversed,
}

impl Kind {
    fn apply(self, word: &str, rng: &mut impl Rng) -> String {
        let mut letters: Vec<char> = word.chars().collect();
        match self {
            Self::Cycle => {
                let by = rng.random_range(1..letters.len());
                letters.rotate_left(by);
            }
            Self::Reversed => letters.reverse(),
            Self::Anagram(kept) => {
                let inside = kept..letters.len() - kept;
                for _ in 0..ATTEMPTS {
                    letters[inside.clone()].shuffle(rng);
                    if !letters.iter().copied().eq(word.chars()) {
                        break;
                    }
                }
            }
            Self::Insertion => {
                let mut out = Vec::with_capacity(2 * letters.len() - 1);
                for (i, letter) in letters.iter().enumerate() {
                    if i > 0 {
                        out.push([' ', '.', '/', '!'][rng.random_range(0..4)]);
                    }
                    out.push(*letter);
                }
                letters = out;
            }
        }
        letters.into_iter().collect()
    }
}

/// Questions, and solved ones for examples.
pub(super) fn documents(kind: Kind, streams: Streams) -> (Vec<Document>, Vec<Document>) {
    let mut rng = streams.rng("scramble", &[]);
    let mut words = words();
    words.shuffle(&mut rng);
    let mut document = |word: &&str| {
        let row = json!({ "scrambled": kind.apply(word, &mut rng), "word": word });
        row.as_object().cloned().unwrap_or_default()
    };
    let (examples, asked) = words.split_at(EXAMPLES);
    (asked.iter().map(&mut document).collect(), examples.iter().map(&mut document).collect())
}

/// Words without an anagram among them, so that there is one answer.
fn words() -> Vec<&'static str> {
    let mut by_letters: BTreeMap<Vec<u8>, Vec<&'static str>> = BTreeMap::new();
    for word in bip39::Language::English.word_list().iter().filter(|word| word.len() >= LETTERS) {
        let mut letters = word.as_bytes().to_vec();
        letters.sort_unstable();
        by_letters.entry(letters).or_default().push(word);
    }
    let mut words: Vec<&str> = by_letters.into_values().filter(|words| words.len() == 1).flatten().collect();
    words.sort_unstable();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(kind: Kind) -> Vec<(String, String)> {
        let (asked, _) = documents(kind, Streams::new(3));
        let text = |document: &Document, key: &str| document[key].as_str().expect("text").to_owned();
        asked.iter().map(|document| (text(document, "scrambled"), text(document, "word"))).collect()
    }

    #[test]
    fn each_way_keeps_what_it_should() {
        for (scrambled, word) in pairs(Kind::Cycle) {
            assert!(
                word.repeat(2).contains(&scrambled) && scrambled != word && scrambled.len() == word.len(),
                "{scrambled}"
            );
        }
        for (scrambled, word) in pairs(Kind::Reversed) {
            assert_eq!(scrambled.chars().rev().collect::<String>(), word);
        }
        for (scrambled, word) in pairs(Kind::Insertion) {
            assert_eq!(scrambled.len(), 2 * word.len() - 1);
            let (letters, between): (Vec<_>, Vec<_>) = scrambled.char_indices().partition(|(i, _)| i % 2 == 0);
            assert_eq!(letters.into_iter().map(|(_, c)| c).collect::<String>(), word);
            assert!(between.into_iter().all(|(_, c)| " ./!".contains(c)));
        }
        for kept in [1, 2] {
            let pairs = pairs(Kind::Anagram(kept));
            let sorted = |text: &str| {
                let mut letters: Vec<char> = text.chars().collect();
                letters.sort_unstable();
                letters
            };
            for (scrambled, word) in &pairs {
                assert_eq!(sorted(scrambled), sorted(word));
                assert!(
                    scrambled[..kept] == word[..kept] && scrambled[word.len() - kept..] == word[word.len() - kept..]
                );
            }
            for (scrambled, word) in &pairs {
                let inside = &word.as_bytes()[kept..word.len() - kept];
                assert!(scrambled != word || inside.iter().all(|letter| *letter == inside[0]), "{word} is unchanged");
            }
        }
    }

    #[test]
    fn examples_are_not_asked() {
        let (asked, examples) = documents(Kind::Cycle, Streams::new(3));
        assert_eq!(examples.len(), EXAMPLES);
        assert!(asked.len() > 500, "{}", asked.len());
        assert!(examples.iter().all(|example| asked.iter().all(|document| document["word"] != example["word"])));
    }
}
