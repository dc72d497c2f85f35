//! `agree-lang`: made-up languages in which words agree, so that there is something to learn and to forget, and whose every
//! sentence has a known probability.
//!
//! A language has 201 words of its own: nouns in classes, verbs that prefer a class of subjects and one of objects and belong
//! to topics, adjectives that go with a class, adverbs, one determiner per class, and the full stop. A document has a topic
//! and twelve sentences; what agrees with what, and how often it does not, is in the constants below.

use didact_core::seed::Streams;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt as _};

/// Words of a language.
pub(super) const WORDS: u32 = 201;
const CLASSES: usize = 8;
const NOUNS_PER_CLASS: usize = 12;
const VERBS: usize = 48;
const VERBS_PER_TOPIC: usize = 4;
const TOPICS: usize = VERBS / VERBS_PER_TOPIC;
const ADJECTIVES: usize = 32;
const ADVERBS: usize = 16;
/// Exponent of the frequencies of nouns within their class, and of verbs.
const ZIPF: f64 = 1.1;
const SENTENCES: usize = 12;
/// A verb of the document's topic; else any.
const ON_TOPIC: f64 = 0.7;
/// A subject or object of the class that the verb prefers; else of any.
const PREFERRED: f64 = 0.85;
/// A noun has an adjective.
const HAS_ADJECTIVE: f64 = 0.5;
/// An adjective that goes with the noun's class; else any.
const AGREES: f64 = 0.9;
/// A verb is followed by an adverb.
const HAS_ADVERB: f64 = 0.3;
/// Share of the words whose preferences change in a weak shift.
const REDRAWN: f64 = 0.25;

// Where each kind of word begins among the words of a language.
const VERB: u32 = (CLASSES * NOUNS_PER_CLASS) as u32;
const ADJECTIVE: u32 = VERB + VERBS as u32;
const ADVERB: u32 = ADJECTIVE + ADJECTIVES as u32;
const DETERMINER: u32 = ADVERB + ADVERBS as u32;
const STOP: u32 = DETERMINER + CLASSES as u32;

/// Order of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WordOrder {
    /// Subject, verb, object.
    Svo,
    /// Object, subject, verb.
    Osv,
}

/// A language.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Language {
    /// The id of its first word.
    first: u32,
    order: WordOrder,
    /// Nouns of each class, the most frequent first.
    nouns: Vec<Vec<u32>>,
    /// Verbs, the most frequent first.
    verbs: Vec<u32>,
    /// The class that each verb prefers as subject.
    subject: Vec<usize>,
    /// As object.
    object: Vec<usize>,
    /// The class that each adjective goes with.
    adjective: Vec<usize>,
    /// Frequencies of the ranks of a class's nouns, and of the ranks of verbs.
    noun_p: Vec<f64>,
    verb_p: Vec<f64>,
}

/// A document with the probability of its words.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Document {
    /// The words, without anything before or after them.
    pub(super) ids: Vec<u32>,
    /// ln p of all of them, given the topic.
    pub(super) log_p: f64,
    /// What it is about, which a reader has to guess.
    topic: usize,
}

impl Language {
    /// A language of the ids from `first` on, its preferences drawn from a stream.
    pub(super) fn drawn(first: u32, order: WordOrder, streams: Streams) -> Self {
        let mut rng = streams.rng("language", &[]);
        let mut class_of = |n: usize| (0..n).map(|_| rng.random_range(0..CLASSES)).collect::<Vec<_>>();
        let (subject, object, adjective) = (class_of(VERBS), class_of(VERBS), class_of(ADJECTIVES));
        let verbs = (0..VERBS as u32).collect();
        let (noun_p, verb_p) = (zipf(NOUNS_PER_CLASS), zipf(VERBS));
        let mut language = Self { first, order, nouns: Vec::new(), verbs, subject, object, adjective, noun_p, verb_p };
        language.rank(&mut rng);
        language
    }

    /// The same words in other frequencies, a quarter of the verbs and adjectives with other preferences.
    pub(super) fn shifted(&self, streams: Streams) -> Self {
        let mut rng = streams.rng("shift", &[]);
        let mut other = self.clone();
        let mut redraw = |of: &mut Vec<usize>| {
            let mut words: Vec<usize> = (0..of.len()).collect();
            words.shuffle(&mut rng);
            for &word in &words[..(of.len() as f64 * REDRAWN) as usize] {
                of[word] = rng.random_range(0..CLASSES);
            }
        };
        redraw(&mut other.subject);
        redraw(&mut other.object);
        redraw(&mut other.adjective);
        other.rank(&mut rng);
        other
    }

    /// Draws which words are frequent.
    fn rank(&mut self, rng: &mut impl Rng) {
        self.verbs.shuffle(rng);
        self.nouns = (0..CLASSES)
            .map(|class| {
                let mut nouns: Vec<u32> = (0..NOUNS_PER_CLASS).map(|i| (class * NOUNS_PER_CLASS + i) as u32).collect();
                nouns.shuffle(rng);
                nouns
            })
            .collect();
    }

    /// Draws a document.
    pub(super) fn document(&self, rng: &mut impl Rng) -> Document {
        let topic = rng.random_range(0..TOPICS);
        let mut ids = Vec::with_capacity(100);
        let mut log_p = 0.0;
        for _ in 0..SENTENCES {
            log_p += self.sentence(topic, rng, &mut ids);
        }
        Document { ids, log_p, topic }
    }

    /// Writes a sentence and gives ln p of its words.
    fn sentence(&self, topic: usize, rng: &mut impl Rng, ids: &mut Vec<u32>) -> f64 {
        let verb = if rng.random_bool(ON_TOPIC) {
            topic * VERBS_PER_TOPIC + rng.random_range(0..VERBS_PER_TOPIC)
        } else {
            self.verbs[rank(&self.verb_p, rng)] as usize
        };
        let subject = class(self.subject[verb], rng);
        let object = class(self.object[verb], rng);
        let mut log_p = self.p_verb(verb, topic).ln();
        log_p += p_class(subject, self.subject[verb]).ln() + p_class(object, self.object[verb]).ln();
        if self.order == WordOrder::Osv {
            log_p += self.noun_phrase(object, rng, ids);
        }
        log_p += self.noun_phrase(subject, rng, ids);
        ids.push(self.first + VERB + verb as u32);
        if rng.random_bool(HAS_ADVERB) {
            ids.push(self.first + ADVERB + rng.random_range(0..ADVERBS as u32));
            log_p += (HAS_ADVERB / ADVERBS as f64).ln();
        } else {
            log_p += (1.0 - HAS_ADVERB).ln();
        }
        if self.order == WordOrder::Svo {
            log_p += self.noun_phrase(object, rng, ids);
        }
        ids.push(self.first + STOP);
        log_p
    }

    fn noun_phrase(&self, class: usize, rng: &mut impl Rng, ids: &mut Vec<u32>) -> f64 {
        ids.push(self.first + DETERMINER + class as u32);
        let mut log_p = 0.0;
        if rng.random_bool(HAS_ADJECTIVE) {
            let agreeing: Vec<usize> = (0..ADJECTIVES).filter(|&a| self.adjective[a] == class).collect();
            let adjective = if !agreeing.is_empty() && rng.random_bool(AGREES) {
                agreeing[rng.random_range(0..agreeing.len())]
            } else {
                rng.random_range(0..ADJECTIVES)
            };
            ids.push(self.first + ADJECTIVE + adjective as u32);
            log_p += (HAS_ADJECTIVE * self.p_adjective(adjective, class)).ln();
        } else {
            log_p += (1.0 - HAS_ADJECTIVE).ln();
        }
        let rank = rank(&self.noun_p, rng);
        ids.push(self.first + self.nouns[class][rank]);
        log_p + self.noun_p[rank].ln()
    }

    fn p_verb(&self, verb: usize, topic: usize) -> f64 {
        let rank = self.verbs.iter().position(|&v| v as usize == verb).expect("every verb has a rank");
        let on_topic = if verb / VERBS_PER_TOPIC == topic { ON_TOPIC / VERBS_PER_TOPIC as f64 } else { 0.0 };
        on_topic + (1.0 - ON_TOPIC) * self.verb_p[rank]
    }

    fn p_adjective(&self, adjective: usize, class: usize) -> f64 {
        let any = 1.0 / ADJECTIVES as f64;
        let agreeing = self.adjective.iter().filter(|&&c| c == class).count();
        if agreeing == 0 {
            return any;
        }
        let own = if self.adjective[adjective] == class { AGREES / agreeing as f64 } else { 0.0 };
        own + (1.0 - AGREES) * any
    }
}

fn p_class(class: usize, preferred: usize) -> f64 {
    (1.0 - PREFERRED) / CLASSES as f64 + if class == preferred { PREFERRED } else { 0.0 }
}

/// A class: most often the preferred one.
fn class(preferred: usize, rng: &mut impl Rng) -> usize {
    if rng.random_bool(PREFERRED) { preferred } else { rng.random_range(0..CLASSES) }
}

/// The probabilities of the ranks of `n` words, the most frequent first.
fn zipf(n: usize) -> Vec<f64> {
    let weights: Vec<f64> = (1..=n).map(|rank| (rank as f64).powf(-ZIPF)).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Draws a rank.
fn rank(probabilities: &[f64], rng: &mut impl Rng) -> usize {
    let mut left = rng.random_range(0.0..1.0);
    let found = probabilities.iter().position(|p| {
        left -= p;
        left < 0.0
    });
    found.unwrap_or(probabilities.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u32 = 1;

    fn language(order: WordOrder) -> Language {
        Language::drawn(FIRST, order, Streams::new(3))
    }

    fn documents(language: &Language, n: u64) -> Vec<Document> {
        (0..n).map(|i| language.document(&mut Streams::new(5).rng("documents", &[i]))).collect()
    }

    /// What kind of word, and which of its kind.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Word {
        Noun(usize, usize),
        Verb(usize),
        Adjective(usize),
        Adverb,
        Determiner(usize),
        Stop,
    }

    fn word(language: &Language, id: u32) -> Word {
        let id = id - language.first;
        match id {
            id if id < VERB => {
                let class = id as usize / NOUNS_PER_CLASS;
                Word::Noun(class, language.nouns[class].iter().position(|&n| n == id).expect("has a rank"))
            }
            id if id < ADJECTIVE => Word::Verb((id - VERB) as usize),
            id if id < ADVERB => Word::Adjective((id - ADJECTIVE) as usize),
            id if id < DETERMINER => Word::Adverb,
            id if id < STOP => Word::Determiner((id - DETERMINER) as usize),
            _ => Word::Stop,
        }
    }

    /// ln p of a document given a topic, by reading it: written without a look at how documents are made.
    fn read(language: &Language, ids: &[u32], topic: usize) -> f64 {
        let mut log_p = 0.0;
        let words: Vec<Word> = ids.iter().map(|&id| word(language, id)).collect();
        for sentence in words.split(|w| *w == Word::Stop).filter(|s| !s.is_empty()) {
            let classes: Vec<usize> =
                sentence.iter().filter_map(|w| if let Word::Determiner(c) = w { Some(*c) } else { None }).collect();
            let verb = sentence.iter().find_map(|w| if let Word::Verb(v) = w { Some(*v) } else { None });
            let verb = verb.expect("a sentence has a verb");
            let [first, second] = classes[..] else { panic!("a sentence has two nouns: {sentence:?}") };
            let (subject, object) = if language.order == WordOrder::Svo { (first, second) } else { (second, first) };
            let rank = language.verbs.iter().position(|&v| v as usize == verb).expect("has a rank");
            let mut p = 0.3 * zipf(48)[rank] + if verb / 4 == topic { 0.7 / 4.0 } else { 0.0 };
            for (class, preferred) in [(subject, language.subject[verb]), (object, language.object[verb])] {
                p *= 0.15 / 8.0 + if class == preferred { 0.85 } else { 0.0 };
            }
            p *= if sentence.contains(&Word::Adverb) { 0.3 / 16.0 } else { 0.7 };
            let mut class = 0;
            for pair in sentence.windows(2) {
                if let [Word::Determiner(c), next] = pair {
                    class = *c;
                    p *= 0.5;
                    if let Word::Adjective(a) = next {
                        let of_class = language.adjective.iter().filter(|&&k| k == class).count();
                        let own = if language.adjective[*a] == class { 0.9 / of_class as f64 } else { 0.0 };
                        p *= if of_class == 0 { 1.0 / 32.0 } else { own + 0.1 / 32.0 };
                    }
                }
                if let Word::Noun(c, rank) = pair[1] {
                    assert_eq!(c, class, "nouns are of the class of their determiner");
                    p *= zipf(12)[rank];
                }
            }
            log_p += p.ln();
        }
        log_p
    }

    #[test]
    fn the_probability_of_a_document_is_the_one_found_by_reading_it() {
        for order in [WordOrder::Svo, WordOrder::Osv] {
            let language = language(order);
            for document in documents(&language, 50) {
                let found = read(&language, &document.ids, document.topic);
                assert!((found - document.log_p).abs() < 1e-9, "{found} {}", document.log_p);
            }
        }
    }

    #[test]
    fn the_mean_probability_given_the_topic_is_a_floor_that_the_best_predictor_comes_close_to() {
        let language = language(WordOrder::Svo);
        let (mut best, mut floor, mut words) = (0.0, 0.0, 0.0);
        for document in documents(&language, 300) {
            // The best predictor knows the language but not the topic: it weighs all topics.
            let of: Vec<f64> = (0..TOPICS).map(|topic| read(&language, &document.ids, topic)).collect();
            let most = of.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = of.iter().map(|log_p| (log_p - most).exp()).sum();
            best -= most + (sum / TOPICS as f64).ln();
            floor -= document.log_p;
            words += document.ids.len() as f64;
        }
        let (best, floor) = (best / words, floor / words);
        let most = floor + (TOPICS as f64).ln() * 300.0 / words;
        assert!(floor < best && best <= most, "floor {floor}, best predictor {best}, at most {most}");
        // Entropies of the choices, added up by hand, are about 12.5 nats in a sentence of 7.3 words.
        assert!((1.4..2.0).contains(&floor), "{floor}");
    }

    #[test]
    fn probabilities_of_choices_add_up_to_one() {
        let language = language(WordOrder::Svo);
        let sums = [
            (0..VERBS).map(|v| language.p_verb(v, 3)).sum::<f64>(),
            (0..ADJECTIVES).map(|a| language.p_adjective(a, 2)).sum(),
            (0..CLASSES).map(|c| p_class(c, 5)).sum(),
            zipf(NOUNS_PER_CLASS).iter().sum(),
        ];
        for sum in sums {
            assert!((sum - 1.0).abs() < 1e-12, "{sums:?}");
        }
    }

    #[test]
    fn a_shift_changes_some_preferences_and_a_new_language_all_words() {
        let old = language(WordOrder::Svo);
        let new = old.shifted(Streams::new(9));
        let differ = |a: &[usize], b: &[usize]| a.iter().zip(b).filter(|(a, b)| a != b).count();
        // Of 12 verbs and 8 adjectives that are drawn anew, one in eight draws what it had.
        assert!((7..=12).contains(&differ(&old.subject, &new.subject)));
        assert!((4..=8).contains(&differ(&old.adjective, &new.adjective)));
        assert_ne!(old.verbs, new.verbs);
        let other = Language::drawn(FIRST + WORDS, WordOrder::Osv, Streams::new(9));
        let range = |language: &Language| {
            let ids: Vec<u32> = documents(language, 100).into_iter().flat_map(|d| d.ids).collect();
            (*ids.iter().min().expect("words"), *ids.iter().max().expect("words"))
        };
        assert_eq!(range(&old), (FIRST, FIRST + WORDS - 1));
        assert_eq!(range(&new), range(&old));
        assert_eq!(range(&other), (FIRST + WORDS, FIRST + 2 * WORDS - 1));
    }
}
