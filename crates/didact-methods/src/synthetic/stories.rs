//! Stories by a grammar: sentences from templates of function words and words of six classes, about a topic and two
//! characters. Whether a sentence is one of the language can be told.

use didact_core::seed::Streams;
use rand::{Rng, RngExt};
use rand_distr::weighted::WeightedAliasIndex;
use rand_distr::{Distribution, Gamma, StandardNormal};

/// The token that begins a story.
pub const END: u32 = 0;
/// The token that ends a sentence.
pub const STOP: u32 = 1;
const FIRST_FUNCTION: u32 = 2;
const FUNCTIONS: u32 = 41;
/// Words of each class.
const CLASSES: [u32; 6] = [12, 60, 40, 30, 20, 20];
const NAME: usize = 0;
const NOUN: usize = 1;
const VERB: usize = 2;
const ADJECTIVE: usize = 3;
const PLACE: usize = 4;
const ADVERB: usize = 5;
/// Tokens of the vocabulary, some of them unused.
pub const VOCABULARY: usize = 228;
const PATTERNS: [&[usize]; 7] = [
    &[NAME, VERB, ADJECTIVE, NOUN, PLACE],
    &[ADVERB, NAME, VERB, NOUN],
    &[NOUN, ADJECTIVE, NAME, VERB, NAME],
    &[NAME, VERB, NAME, ADVERB],
    &[ADJECTIVE, NOUN, VERB, NAME],
    &[NAME, ADVERB, VERB, ADJECTIVE, NOUN],
    &[NAME, VERB, NOUN, NOUN, VERB, NAME],
];
const TEMPLATES: usize = 30;
const TOPICS: usize = 6;
/// Probability of a function word before a slot.
const FUNCTION_SHARE: f64 = 0.6;
/// Probability that a name is one of the story's two characters.
const CHARACTER_SHARE: f64 = 0.8;
/// Concentration of what follows a template.
const CONCENTRATION: f64 = 0.3;
/// Sentences of a story.
const SENTENCES: std::ops::RangeInclusive<usize> = 8..=15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Function(u32),
    Class(usize),
}

/// A language of stories.
#[derive(Debug)]
pub struct Stories {
    templates: Vec<Vec<Slot>>,
    /// What comes after each template.
    next: Vec<WeightedAliasIndex<f64>>,
    /// By topic and class, how common each word is.
    words: Vec<Vec<WeightedAliasIndex<f64>>>,
}

fn first(class: usize) -> u32 {
    FIRST_FUNCTION + FUNCTIONS + CLASSES[..class].iter().sum::<u32>()
}

fn is_of(class: usize, id: u32) -> bool {
    (first(class)..first(class) + CLASSES[class]).contains(&id)
}

fn index(weights: Vec<f64>) -> WeightedAliasIndex<f64> {
    WeightedAliasIndex::new(weights).expect("all weights are above 0")
}

impl Stories {
    /// Draws one.
    pub fn new(streams: &Streams) -> Self {
        let mut rng = streams.rng("grammar", &[]);
        let template = |number: usize, rng: &mut dyn Rng| -> Vec<Slot> {
            let mut slots = Vec::new();
            for &class in PATTERNS[number % PATTERNS.len()] {
                if rng.random_bool(FUNCTION_SHARE) {
                    slots.push(Slot::Function(FIRST_FUNCTION + rng.random_range(0..FUNCTIONS)));
                }
                slots.push(Slot::Class(class));
            }
            slots
        };
        let templates = (0..TEMPLATES).map(|number| template(number, &mut rng)).collect();
        let gamma = Gamma::new(CONCENTRATION, 1.0).expect("both are above 0");
        // A draw may be too small for a number; the floor keeps it right.
        let next = (0..TEMPLATES)
            .map(|_| index((0..TEMPLATES).map(|_| gamma.sample(&mut rng) + f64::MIN_POSITIVE).collect()))
            .collect();
        let common = |rng: &mut dyn Rng| {
            let z: f64 = StandardNormal.sample(rng);
            (2.0 * z).exp()
        };
        let topic = |rng: &mut dyn Rng| CLASSES.map(|words| index((0..words).map(|_| common(rng)).collect())).into();
        let words = (0..TOPICS).map(|_| topic(&mut rng)).collect();
        Self { templates, next, words }
    }

    /// Stories without end. Each begins with [`END`].
    pub fn documents(&self, streams: &Streams) -> impl Iterator<Item = Vec<u32>> + '_ {
        let streams = *streams;
        (0..).map(move |number| self.document(&mut streams.rng("story", &[number])))
    }

    fn document(&self, rng: &mut impl Rng) -> Vec<u32> {
        let words = &self.words[rng.random_range(0..TOPICS)];
        let word = |class: usize, rng: &mut dyn Rng| first(class) + words[class].sample(rng) as u32;
        let characters = [word(NAME, rng), word(NAME, rng)];
        let mut template = rng.random_range(0..TEMPLATES);
        let mut ids = vec![END];
        for _ in 0..rng.random_range(SENTENCES) {
            for &slot in &self.templates[template] {
                ids.push(match slot {
                    Slot::Function(id) => id,
                    Slot::Class(NAME) if rng.random_bool(CHARACTER_SHARE) => characters[rng.random_range(0..2)],
                    Slot::Class(class) => word(class, rng),
                });
            }
            ids.push(STOP);
            template = self.next[template].sample(rng);
        }
        ids
    }

    /// Whether the tokens before a [`STOP`] are a sentence of the language: one of its templates, with words of the right
    /// classes.
    pub fn is_sentence(&self, ids: &[u32]) -> bool {
        let fits = |(&slot, &id): (&Slot, &u32)| match slot {
            Slot::Function(word) => word == id,
            Slot::Class(class) => is_of(class, id),
        };
        self.templates.iter().any(|template| template.len() == ids.len() && template.iter().zip(ids).all(fits))
    }
}

/// The sentences of a text that end after its first `from` tokens, without their [`STOP`] and without what begins a story.
pub fn sentences(ids: &[u32], from: usize) -> Vec<&[u32]> {
    let mut found = Vec::new();
    let mut begin = 0;
    for (at, &id) in ids.iter().enumerate() {
        if id == STOP {
            if at >= from {
                let sentence = &ids[begin..at];
                found.push(sentence.strip_prefix(&[END]).unwrap_or(sentence));
            }
            begin = at + 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_of_a_story_is_one_of_the_language_and_shuffled_ones_are_not() {
        let streams = Streams::new(5);
        let stories = Stories::new(&streams);
        let (mut turned_round, mut all) = (0, 0);
        for ids in stories.documents(&streams).take(50) {
            assert_eq!(ids[0], END);
            assert!(ids.iter().all(|&id| (id as usize) < VOCABULARY));
            let found = sentences(&ids, 0);
            assert!(SENTENCES.contains(&found.len()));
            for sentence in found {
                assert!(stories.is_sentence(sentence), "{sentence:?}");
                let backwards: Vec<u32> = sentence.iter().rev().copied().collect();
                turned_round += usize::from(stories.is_sentence(&backwards));
                all += 1;
                let mut with_end = sentence.to_vec();
                with_end.insert(1, END);
                assert!(!stories.is_sentence(&with_end));
            }
        }
        assert!(turned_round * 20 < all, "{turned_round} of {all}");
    }

    #[test]
    fn sentences_count_where_they_end() {
        let ids = [END, 5, 6, STOP, 7, STOP, END, 8, STOP, 9];
        assert_eq!(sentences(&ids, 0), [&[5, 6][..], &[7], &[8]]);
        assert_eq!(sentences(&ids, 4), [&[7][..], &[8]]);
        assert_eq!(sentences(&ids, 9), Vec::<&[u32]>::new());
    }
}
