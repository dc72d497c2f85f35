//! Words to be translated, a dictionary cut into overlapping skills.
//!
//! Every skill owns some of the source words; the last one, the target, owns half of skill 3's and half of skill 6's words
//! (counted from 1), which are therefore what it can be learned from. An example is `tag source target end`, and only the
//! target word is learned.

use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use rand::RngExt;
use rand::seq::SliceRandom;

/// Source words, and as many target words.
const WORDS: usize = 256;
/// Words of a skill.
pub const OWN: usize = 48;
/// Skills.
pub const SKILLS: usize = 8;
/// The skill that is made of others' words.
pub const TARGET: usize = SKILLS - 1;
/// The skills it is made of.
pub const PREREQUISITES: [usize; 2] = [2, 5];
/// Tokens of the vocabulary: a tag per skill, an end, and both languages' words.
pub const VOCABULARY: usize = SKILLS + 1 + 2 * WORDS;
/// Tokens of an example.
pub const LENGTH: usize = 4;

/// A dictionary and its skills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dictionary {
    /// Target word of each source word.
    translation: Vec<u32>,
    /// Source words of each skill.
    own: Vec<Vec<u32>>,
}

impl Dictionary {
    /// Draws one.
    pub fn new(streams: &Streams) -> Self {
        let mut rng = streams.rng("dictionary", &[]);
        let mut translation: Vec<u32> = (0..WORDS as u32).collect();
        translation.shuffle(&mut rng);
        let mut words: Vec<u32> = (0..WORDS as u32).collect();
        let mut own: Vec<Vec<u32>> = (0..TARGET)
            .map(|_| {
                words.shuffle(&mut rng);
                words[..OWN].to_vec()
            })
            .collect();
        // Skills may overlap: words of the second prerequisite that the first has too are not taken twice.
        let mut target: Vec<u32> = own[PREREQUISITES[0]][..OWN / 2].to_vec();
        let rest = own[PREREQUISITES[1]].iter().filter(|word| !target.contains(word)).take(OWN / 2).copied();
        let rest: Vec<u32> = rest.collect();
        target.extend(rest);
        own.push(target);
        Self { translation, own }
    }

    /// Names of the skills.
    pub fn names() -> Vec<String> {
        (1..SKILLS).map(|i| format!("skill-{i}")).chain(["target".to_owned()]).collect()
    }

    fn example(&self, skill: usize, word: u32) -> Sequence {
        let words = (SKILLS + 1) as u32;
        let translated = words + WORDS as u32 + self.translation[word as usize];
        Sequence::single(vec![skill as u32, words + word, translated, SKILLS as u32], vec![0.0, 0.0, 1.0, 0.0])
    }

    /// Every word of a skill once.
    pub fn all(&self, skill: usize) -> Vec<Sequence> {
        self.own[skill].iter().map(|&word| self.example(skill, word)).collect()
    }

    /// Draws of a skill's words, repetitions included.
    pub fn draws(&self, skill: usize, n: usize, streams: &Streams) -> Vec<Sequence> {
        let mut rng = streams.rng("draws", &[skill as u64]);
        (0..n).map(|_| self.example(skill, self.own[skill][rng.random_range(0..OWN)])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_skill_is_made_of_its_prerequisites_words_in_equal_parts() {
        for seed in 0..20 {
            let dictionary = Dictionary::new(&Streams::new(seed));
            let from =
                |skill: usize| dictionary.own[TARGET].iter().filter(|w| dictionary.own[skill].contains(w)).count();
            assert_eq!(dictionary.own[TARGET].len(), OWN);
            assert!(PREREQUISITES.iter().all(|&skill| from(skill) >= OWN / 2));
            assert!((0..TARGET).filter(|skill| !PREREQUISITES.contains(skill)).all(|skill| from(skill) < OWN / 2));
        }
    }

    #[test]
    fn a_word_has_one_translation_whatever_the_skill_and_only_that_is_learned() {
        let dictionary = Dictionary::new(&Streams::new(3));
        let mut translations = std::collections::BTreeMap::new();
        for sequence in (0..SKILLS).flat_map(|skill| dictionary.all(skill)) {
            assert_eq!(sequence.weight, [0.0, 0.0, 1.0, 0.0]);
            assert!(sequence.ids.iter().all(|&id| (id as usize) < VOCABULARY));
            let translated = *translations.entry(sequence.ids[1]).or_insert(sequence.ids[2]);
            assert_eq!(translated, sequence.ids[2]);
        }
    }
}
