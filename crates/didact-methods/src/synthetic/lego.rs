//! LEGO: chains of variables, each the same as or the opposite of the one before, in shuffled order; asked for the value
//! of the variable at one depth of the chain.
//!
//! # Reference
//! Zhang et al., "Unveiling Transformers with LEGO: a synthetic reasoning task", 2022, in the wording of Chen et al.,
//! "Skill-it!", NeurIPS 2023: `Input:  c = not b ,  b = val a , a = val 1. Output: c = val 0, `.

use std::collections::BTreeSet;

use didact_core::seed::Streams;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::Vocabulary;

/// The words of the texts.
pub const WORDS: Vocabulary = Vocabulary::new(&[
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t", "u", "v", "w",
    "x", "y", "z", "=", "val", "not", ",", ".", "0", "1", "Input:", "Output:",
]);
/// Where the answer stands, counted from the last token: before a comma.
pub const ANSWER_FROM_END: usize = 1;

/// Different texts that ask for the variable at depth `skill` (from 0) of a chain of `variables`.
///
/// # Panics
/// If `variables` is not from 1 to 26, `skill` not below it, or there are not twice as many texts as are asked for.
pub fn texts(variables: usize, skill: usize, n: usize, streams: &Streams) -> Vec<String> {
    assert!((1..=26).contains(&variables) && skill < variables, "lego: skill {skill} of {variables} variables");
    // Names in order, a bit for each, and the orders of the clauses.
    let different: f64 = (1..=variables).map(|i| (27 - i) as f64 * 2.0 * i as f64).product();
    assert!(2.0 * n as f64 <= different, "lego: {n} texts of {different}");
    let mut rng = streams.rng("lego", &[variables as u64, skill as u64]);
    let mut seen = BTreeSet::new();
    let mut texts = Vec::with_capacity(n);
    let mut letters: Vec<char> = ('a'..='z').collect();
    while texts.len() < n {
        letters.shuffle(&mut rng);
        let bits: Vec<bool> = (0..variables).map(|_| rng.random_bool(0.5)).collect();
        let clause = |i: usize| match i.checked_sub(1) {
            None => format!("{} = val {} , ", letters[0], u8::from(bits[0])),
            Some(before) => {
                let link = if bits[i] == bits[before] { "val" } else { "not" };
                format!(" {} = {link} {} , ", letters[i], letters[before])
            }
        };
        let mut clauses: Vec<String> = (0..variables).map(clause).collect();
        clauses.shuffle(&mut rng);
        let body = clauses.concat();
        let body = body.strip_suffix(" , ").unwrap_or(&body);
        let text = format!("Input: {body}. Output: {} = val {}, ", letters[skill], u8::from(bits[skill]));
        if seen.insert(text.clone()) {
            texts.push(text);
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that a text's clauses give the variable it asks for.
    fn solved(text: &str) -> u8 {
        let (body, question) =
            text.strip_prefix("Input: ").expect("is as made").split_once(". Output: ").expect("is as made");
        let clauses: Vec<Vec<&str>> = body.split(',').map(|clause| clause.split_whitespace().collect()).collect();
        let value = |name: &str| -> u8 {
            let (mut name, mut is_turned) = (name, false);
            loop {
                let clause = clauses.iter().find(|clause| clause[0] == name).expect("is as made");
                if let Ok(bit) = clause[3].parse::<u8>() {
                    return bit ^ u8::from(is_turned);
                }
                is_turned ^= clause[2] == "not";
                name = clause[3];
            }
        };
        value(question.split_whitespace().next().expect("is as made"))
    }

    #[test]
    fn the_answer_follows_from_the_clauses_and_no_text_comes_twice() {
        for (variables, skill) in [(1, 0), (3, 2), (5, 0), (5, 4)] {
            let texts = texts(variables, skill, 26, &Streams::new(7));
            for text in &texts {
                let answer = text.strip_suffix(", ").expect("is as made").chars().last().expect("is as made");
                assert_eq!(answer.to_digit(10).expect("is as made"), u32::from(solved(text)), "{text}");
                let sequence = WORDS.question(text, ANSWER_FROM_END);
                let at = sequence.weight.iter().position(|&w| w == 1.0).expect("is as made");
                assert_eq!(sequence.ids[at], WORDS.ids(&answer.to_string())[0]);
            }
            assert_eq!(texts.iter().collect::<BTreeSet<_>>().len(), 26);
        }
    }
}
