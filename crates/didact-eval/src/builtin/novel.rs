//! Using a word that was just defined.
//!
//! Whether a sentence uses a word well is for people to say. What is checked is its form: that it is one sentence, that the
//! word is in it, and that it is not the sentence of an example with the word put in.
//!
//! # Reference
//! The idea: Brown et al., "Language Models are Few-Shot Learners", 2020, section 3.9.5, whose six cases were read by people.

use crate::task::Document;
use didact_core::cancel::Cancel;
use didact_core::seed::Streams;
use didact_core::verdict::{Item, Verdict, Verifier, VerifyError};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

pub(super) const TASK: &str = include_str!("../../tasks/novel_words.toml");
/// Questions, and solved ones for examples.
const ASKED: usize = 200;
const EXAMPLES: usize = 100;

/// A kind of word: definitions with `*` for the word and `%` for a detail, details, sentences.
struct Frames {
    definitions: &'static [&'static str],
    details: &'static [&'static str],
    sentences: &'static [&'static str],
}

const KINDS: [Frames; 3] = [
    Frames {
        definitions: &[
            "A \"*\" is a small animal that lives %.",
            "A \"*\" is a tool for working %.",
            "A \"*\" is a dish that people eat %.",
        ],
        details: &["in the mountains", "near the sea", "in cold countries", "on old farms", "under large trees"],
        sentences: &[
            "My grandmother showed us a * when we were children.",
            "There was a * on the table this morning.",
            "Nobody in our village had ever seen a * before.",
        ],
    },
    Frames {
        definitions: &[
            "To \"*\" means to run around %.",
            "To \"*\" means to speak %.",
            "To \"*\" means to wait for somebody %.",
        ],
        details: &[
            "very slowly",
            "without any reason",
            "in the middle of the night",
            "with both arms up",
            "for a whole day",
        ],
        sentences: &[
            "The children like to * after school.",
            "You should not * when your father is asleep.",
            "Every evening the old men come to the park to *.",
        ],
    },
    Frames {
        definitions: &[
            "Something that is \"*\" shines %.",
            "Something that is \"*\" smells %.",
            "A person who is \"*\" laughs %.",
        ],
        details: &[
            "like a new coin",
            "only in the rain",
            "all the time",
            "more than it should",
            "as nothing else does",
        ],
        sentences: &[
            "The shoes that he bought were so * that we all noticed.",
            "What a * day this has been!",
            "She was too * to be taken seriously.",
        ],
    },
];

/// A word of two or three syllables.
fn word(rng: &mut impl Rng) -> String {
    const ONSETS: [&str; 14] = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "t", "v", "z", "bl"];
    const VOWELS: [&str; 5] = ["a", "e", "i", "o", "u"];
    const CODAS: [&str; 6] = ["", "", "n", "l", "m", "p"];
    let syllables = rng.random_range(2..=3);
    let mut pick = |from: &[&'static str]| from.choose(rng).copied().unwrap_or_default();
    (0..syllables).map(|_| [pick(&ONSETS), pick(&VOWELS), pick(&CODAS)].concat()).collect()
}

/// Questions, and solved ones for examples.
pub(super) fn documents(streams: Streams) -> (Vec<Document>, Vec<Document>) {
    let mut rng = streams.rng("novel words", &[]);
    let known: BTreeSet<&str> = bip39::Language::English.word_list().iter().copied().collect();
    let mut seen = BTreeSet::new();
    let mut documents = Vec::new();
    while documents.len() < ASKED + EXAMPLES {
        let word = word(&mut rng);
        if known.contains(word.as_str()) || !seen.insert(word.clone()) {
            continue;
        }
        let kind = &KINDS[documents.len() % KINDS.len()];
        let mut pick = |from: &[&'static str]| from.choose(&mut rng).copied().unwrap_or_default();
        let definition = pick(kind.definitions).replace('%', pick(kind.details)).replace('*', &word);
        let sentence = pick(kind.sentences).replace('*', &word);
        documents.extend(json!({ "word": word, "definition": definition, "sentence": sentence }).as_object().cloned());
    }
    let examples = documents.split_off(ASKED);
    (documents, examples)
}

/// Judges a sentence by its form. The word is the one in double quotes in the prompt.
struct Form;

pub(super) fn verifier() -> Arc<dyn Verifier + Send + Sync> {
    Arc::new(Form)
}

impl Verifier for Form {
    fn verify(
        &self,
        items: &[(&Item, &str)],
        sink: &mut dyn FnMut(usize, Verdict),
        _: &Cancel,
    ) -> Result<(), VerifyError> {
        for (index, (item, answer)) in items.iter().enumerate() {
            let word = item.prompt.split('"').nth(1).unwrap_or_default();
            let (category, reason) = judge(word, answer.trim());
            let score = Some(f64::from(u8::from(category == "used")));
            sink(index, Verdict { score, category: category.into(), reason });
        }
        Ok(())
    }
}

/// Least words of a sentence that uses a word rather than naming it.
const LEAST_WORDS: usize = 4;

fn judge(word: &str, answer: &str) -> (&'static str, String) {
    let ends = answer.chars().filter(|c| matches!(c, '.' | '!' | '?')).count();
    if ends != 1 || !answer.ends_with(['.', '!', '?']) || answer.split_whitespace().count() < LEAST_WORDS {
        return ("not_one_sentence", format!("expected one sentence of at least {LEAST_WORDS} words"));
    }
    let lower = answer.to_lowercase();
    let stem = word.strip_suffix('e').unwrap_or(word);
    let forms = [
        word.to_owned(),
        format!("{word}s"),
        format!("{word}es"),
        format!("{word}'s"),
        format!("{word}er"),
        format!("{word}est"),
        format!("{word}ly"),
        format!("{stem}ed"),
        format!("{stem}ing"),
        format!("{word}{}ed", &word[word.len() - 1..]),
        format!("{word}{}ing", &word[word.len() - 1..]),
    ];
    let is_form = |found: &str| forms.iter().any(|form| form == found);
    if word.is_empty() || !lower.split(|c: char| !c.is_alphanumeric() && c != '\'').any(is_form) {
        return ("missing_word", format!("`{word}` is not in it"));
    }
    let sentences = KINDS.iter().flat_map(|kind| kind.sentences).map(|sentence| sentence.replace('*', word));
    if sentences.into_iter().any(|sentence| sentence == answer) {
        return ("copied", "the sentence of an example with the word put in".to_owned());
    }
    ("used", format!("one sentence with `{word}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_judged_by_its_form() {
        let category = |answer: &str| judge("flimot", answer).0;
        assert_eq!(category("We fed the flimot some apples."), "used");
        assert_eq!(category("The flimots' nests were full of eggs!"), "missing_word", "an apostrophe behind the s");
        assert_eq!(category("All the flimots were asleep!"), "used");
        assert_eq!(category("We flimotted home in the dark."), "used");
        assert_eq!(category("A flimot."), "not_one_sentence");
        assert_eq!(category("We saw a flimot. It ran."), "not_one_sentence");
        assert_eq!(category("We fed the flimotic some apples."), "missing_word");
        assert_eq!(category("There was a flimot on the table this morning."), "copied");
    }

    #[test]
    fn the_examples_define_their_words_and_use_them() {
        let (asked, examples) = documents(Streams::new(1));
        assert_eq!((asked.len(), examples.len()), (ASKED, EXAMPLES));
        for document in asked.iter().chain(&examples) {
            let text = |key: &str| document[key].as_str().expect("text");
            assert!(text("definition").contains(&format!("\"{}\"", text("word"))));
            assert_eq!(judge(text("word"), text("sentence")).0, "copied", "{}", text("sentence"));
        }
    }
}
