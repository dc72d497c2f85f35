//! Answers compared with references: exact match and the F1 of their words.

use std::collections::BTreeMap;

/// An answer as SQuAD compares it: lower case, without ASCII punctuation, without the words a, an and the, single spaces.
///
/// # Reference
/// The official evaluation script of Rajpurkar et al., "SQuAD", 2016.
pub fn normalised(text: &str) -> String {
    let bare: String = text.chars().flat_map(char::to_lowercase).filter(|c| !c.is_ascii_punctuation()).collect();
    let words = bare.split_whitespace().filter(|word| !matches!(*word, "a" | "an" | "the"));
    words.collect::<Vec<_>>().join(" ")
}

/// How [`exact_match`] compares, as the lm-evaluation-harness names it. All off: the strings themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leniency {
    /// Letters are compared in lower case.
    pub ignore_case: bool,
    /// ASCII punctuation does not count.
    pub ignore_punctuation: bool,
    /// ASCII digits do not count.
    pub ignore_numbers: bool,
}

impl Leniency {
    fn apply(self, text: &str) -> String {
        let kept = text
            .chars()
            .filter(|c| !(self.ignore_punctuation && c.is_ascii_punctuation()))
            .filter(|c| !(self.ignore_numbers && c.is_ascii_digit()));
        if self.ignore_case { kept.flat_map(char::to_lowercase).collect() } else { kept.collect() }
    }
}

/// Whether an answer is one of the references. White space counts: ` casino` is not `casino`.
pub fn exact_match<S: AsRef<str>>(answer: &str, references: &[S], leniency: Leniency) -> bool {
    let answer = leniency.apply(answer);
    references.iter().any(|reference| leniency.apply(reference.as_ref()) == answer)
}

/// The F1 of an answer's words against the best of the references, both [`normalised`]; words are counted as often as they
/// come. Two empty texts agree.
pub fn f1<S: AsRef<str>>(answer: &str, references: &[S]) -> f64 {
    let answer = normalised(answer);
    references.iter().map(|reference| pair_f1(&answer, &normalised(reference.as_ref()))).fold(0.0, f64::max)
}

fn pair_f1(answer: &str, reference: &str) -> f64 {
    let counts = |text: &str| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for word in text.split_whitespace() {
            *counts.entry(word.to_owned()).or_default() += 1;
        }
        counts
    };
    let (found, wanted) = (counts(answer), counts(reference));
    let (n, m) = (found.values().sum::<usize>(), wanted.values().sum::<usize>());
    if n == 0 || m == 0 {
        return f64::from(u8::from(n == m));
    }
    let common: usize = found.iter().map(|(word, count)| *count.min(wanted.get(word).unwrap_or(&0))).sum();
    2.0 * common as f64 / (n + m) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squad_normalisation_drops_case_punctuation_and_articles() {
        assert_eq!(normalised("  The  U.S. Army, an army!"), "us army army");
        assert_eq!(normalised("theatre"), "theatre");
    }

    #[test]
    fn exact_match_compares_the_strings_themselves_unless_told_otherwise() {
        let strict = Leniency::default();
        assert!(exact_match("casino", &["x", "casino"], strict));
        assert!(!exact_match("casino", &[" casino"], strict) && !exact_match("Casino", &["casino"], strict));
        let lenient = Leniency { ignore_case: true, ignore_punctuation: true, ignore_numbers: true };
        assert!(exact_match("Ca-sino 7!", &["casino "], lenient));
        assert!(!exact_match("x", &[] as &[&str], strict));
    }

    #[test]
    fn f1_counts_words_as_often_as_they_come() {
        // Common: one "red", one "fish"; 3 and 4 words.
        assert!((f1("red red fish", &["red fish blue fish"]) - 4.0 / 7.0).abs() < 1e-12);
        assert_eq!(f1("The answer", &["no", "an answer."]), 1.0);
        assert_eq!((f1("", &["the"]), f1("", &["x"]), f1("x", &["y"])), (1.0, 0.0, 0.0));
    }
}
