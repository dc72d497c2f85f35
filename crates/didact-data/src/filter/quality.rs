//! Heuristics of quality, by the names and limits of the papers they come from.
//!
//! Words are what stands between white space. `gopher` and `repetition` are the rules of Rae et al., "Scaling Language
//! Models: Methods, Analysis & Insights from Training Gopher" (2021), appendix A.1.1; `c4` are those of Raffel et al.,
//! "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (JMLR 2020), section 2.2. The stop
//! words and end marks are those of English.

use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use super::words::{number, runs};

/// A set of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QualitySet {
    /// Numbers, lengths and kinds of words and lines.
    Gopher,
    /// Lines, paragraphs and runs of words that repeat within the document.
    Repetition,
    /// Lines that are no sentences are taken out of running text; what is left must be three sentences without code or
    /// placeholder text.
    C4,
}

const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];

/// Rules with a limit on a share of characters in repeated runs of words: the number of words, and the limit.
const REPEATED_RUNS: [(usize, &str, f64); 6] = [
    (5, "repetition_5_words", 0.15),
    (6, "repetition_6_words", 0.14),
    (7, "repetition_7_words", 0.13),
    (8, "repetition_8_words", 0.12),
    (9, "repetition_9_words", 0.11),
    (10, "repetition_10_words", 0.10),
];
/// The same for the most frequent run.
const TOP_RUNS: [(usize, &str, f64); 3] =
    [(2, "repetition_top_2_words", 0.20), (3, "repetition_top_3_words", 0.18), (4, "repetition_top_4_words", 0.16)];

/// The first rule of a set that a text breaks, and what was found.
pub fn check(set: QualitySet, text: &str) -> Option<(&'static str, String)> {
    match set {
        QualitySet::Gopher => gopher(text),
        QualitySet::Repetition => repetition(text),
        QualitySet::C4 => c4(text),
    }
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn gopher(text: &str) -> Option<(&'static str, String)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let n = words.len();
    if !(50..=100_000).contains(&n) {
        return Some(("gopher_word_count", format!("{n} words")));
    }
    let mean = share(words.iter().map(|word| word.chars().count()).sum(), n);
    if !(3.0..=10.0).contains(&mean) {
        return Some(("gopher_word_length", format!("{mean:.2} characters in the mean")));
    }
    let symbols = text.matches('#').count().max(text.matches("...").count() + text.matches('…').count());
    if share(symbols, n) > 0.1 {
        return Some(("gopher_symbols", format!("{symbols} of # or … for {n} words")));
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let bullets =
        share(lines.iter().filter(|line| line.starts_with(['•', '-', '*', '‣', '◦', '·'])).count(), lines.len());
    if bullets > 0.9 {
        return Some(("gopher_bullets", percent(bullets)));
    }
    let ellipses = share(lines.iter().filter(|line| line.ends_with("...") || line.ends_with('…')).count(), lines.len());
    if ellipses > 0.3 {
        return Some(("gopher_ellipses", percent(ellipses)));
    }
    let alphabetic = share(words.iter().filter(|word| word.chars().any(char::is_alphabetic)).count(), n);
    if alphabetic < 0.8 {
        return Some(("gopher_alphabetic", percent(alphabetic)));
    }
    let bare = |word: &&str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let found = STOP_WORDS.iter().filter(|stop| words.iter().any(|word| bare(word) == **stop)).count();
    (found < 2).then(|| ("gopher_stop_words", format!("{found} of {}", STOP_WORDS.len())))
}

fn repetition(text: &str) -> Option<(&'static str, String)> {
    let trimmed = |parts: Vec<&'_ str>| -> Vec<String> {
        parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
    };
    let paragraphs = trimmed(text.split("\n\n").collect());
    let lines = trimmed(text.lines().collect());
    let rules = [
        ("repetition_lines", "repetition_line_characters", lines),
        ("repetition_paragraphs", "repetition_paragraph_characters", paragraphs),
    ];
    for (by_count, by_chars, parts) in rules {
        let mut seen = FxHashSet::default();
        let repeated: Vec<&String> = parts.iter().filter(|part| !seen.insert(part.as_str())).collect();
        let count = share(repeated.len(), parts.len());
        if count > 0.30 {
            return Some((by_count, percent(count)));
        }
        let chars = |parts: &mut dyn Iterator<Item = &String>| parts.map(|part| part.chars().count()).sum::<usize>();
        let chars = share(chars(&mut repeated.iter().copied()), chars(&mut parts.iter()));
        if chars > 0.20 {
            return Some((by_chars, percent(chars)));
        }
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let lengths: Vec<usize> = words.iter().map(|word| word.chars().count()).collect();
    let numbers: Vec<u64> = words.iter().map(|word| number(word)).collect();
    let all: usize = lengths.iter().sum();
    for (n, rule, limit) in TOP_RUNS {
        let share = share(top_run(&numbers, &lengths, n), all);
        if share > limit {
            return Some((rule, percent(share)));
        }
    }
    for (n, rule, limit) in REPEATED_RUNS {
        let share = share(repeated_runs(&numbers, &lengths, n), all);
        if share > limit {
            return Some((rule, percent(share)));
        }
    }
    None
}

/// Characters that the most frequent run of `n` words covers, of equally frequent ones the longest; 0 when none repeats.
fn top_run(numbers: &[u64], lengths: &[usize], n: usize) -> usize {
    let mut counts: FxHashMap<u64, (usize, usize)> = FxHashMap::default();
    let mut best = (0, 0);
    for (at, run) in runs(numbers, n).enumerate() {
        let entry = counts.entry(run).or_insert_with(|| (0, lengths[at..at + n].iter().sum()));
        entry.0 += 1;
        best = best.max(*entry);
    }
    if best.0 < 2 { 0 } else { best.0 * best.1 }
}

/// Characters in runs of `n` words that stood in the text before, none counted twice.
fn repeated_runs(numbers: &[u64], lengths: &[usize], n: usize) -> usize {
    let mut seen = FxHashSet::default();
    let (mut chars, mut next) = (0, 0);
    for (at, run) in runs(numbers, n).enumerate() {
        if at < next {
            continue;
        }
        if !seen.insert(run) {
            chars += lengths[at..at + n].iter().sum::<usize>();
            next = at + n;
        }
    }
    chars
}

/// A line that ends as a sentence does.
fn is_ended(line: &str) -> bool {
    let line = line.trim_end();
    line.ends_with(['.', '!', '?', '"', '”']) && !line.ends_with("...")
}

/// A text without the lines that do not end as a sentence does, have fewer than five words, or speak of JavaScript; and
/// the characters taken out. Blank lines stay.
pub(super) fn without_poor_lines(text: &str) -> (String, u64) {
    let is_good = |line: &str| {
        line.trim().is_empty()
            || is_ended(line) && line.split_whitespace().count() >= 5 && !line.to_lowercase().contains("javascript")
    };
    let (mut kept, mut removed) = (String::with_capacity(text.len()), 0);
    for line in text.split_inclusive('\n') {
        if is_good(line) {
            kept.push_str(line);
        } else {
            removed += line.chars().count() as u64;
        }
    }
    (kept, removed)
}

fn c4(text: &str) -> Option<(&'static str, String)> {
    if text.contains('{') {
        return Some(("c4_curly_bracket", "a curly bracket".to_owned()));
    }
    if text.to_lowercase().contains("lorem ipsum") {
        return Some(("c4_lorem_ipsum", "placeholder text".to_owned()));
    }
    let sentences = text.split_whitespace().filter(|word| is_ended(word)).count();
    (sentences < 3).then(|| ("c4_sentences", format!("{sentences} sentences")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prose() -> String {
        let line =
            |i| format!("Sentence{i} number{i} tells{i} of town{i} and people{i} that have lived{i} there{i}.\n");
        (0..40).map(line).collect()
    }

    #[test]
    fn prose_passes_every_rule() {
        for set in [QualitySet::Gopher, QualitySet::Repetition, QualitySet::C4] {
            assert_eq!(check(set, &prose()), None, "{set:?}");
        }
        assert_eq!(without_poor_lines(&prose()), (prose(), 0));
    }

    #[test]
    fn each_rule_finds_what_it_is_for() {
        let numbered = |n: usize, text: &dyn Fn(usize) -> String| (0..n).map(text).collect::<String>();
        let cases: Vec<(QualitySet, String, &str)> = vec![
            (QualitySet::Gopher, "the end of that".into(), "gopher_word_count"),
            (QualitySet::Gopher, numbered(60, &|_| "ab ".into()), "gopher_word_length"),
            (QualitySet::Gopher, numbered(60, &|i| format!("#tag{i} of the ")), "gopher_symbols"),
            (QualitySet::Gopher, numbered(60, &|i| format!("- item{i} of the list\n")), "gopher_bullets"),
            (
                QualitySet::Gopher,
                numbered(60, &|i| format!("see more{i} of that and have with the best one here for you...\n")),
                "gopher_ellipses",
            ),
            (QualitySet::Gopher, numbered(60, &|i| format!("of the {} {} ", i + 1000, i + 5000)), "gopher_alphabetic"),
            (QualitySet::Gopher, numbered(60, &|i| format!("Wort{i} steht hier ")), "gopher_stop_words"),
            (QualitySet::Repetition, numbered(60, &|i| format!("line {}\n", i % 30)), "repetition_lines"),
            (
                QualitySet::Repetition,
                numbered(60, &|i| {
                    if i % 5 == 0 { format!("{}\n", "very long line ".repeat(9)) } else { format!("l{i}\n") }
                }),
                "repetition_line_characters",
            ),
            (
                QualitySet::Repetition,
                numbered(20, &|i| {
                    format!("a{i}\nb{i}\nc{i} d\n\n") + if i % 2 == 0 || i % 3 == 0 { "x\n\n" } else { "" }
                }),
                "repetition_paragraphs",
            ),
            (QualitySet::Repetition, numbered(60, &|i| format!("new york w{i} ")), "repetition_top_2_words"),
            (
                QualitySet::Repetition,
                numbered(12, &|i| {
                    format!("{} ", (0..8).map(|j| format!("w{} ", (i % 6) * 8 + j)).collect::<Vec<_>>().concat())
                }),
                "repetition_5_words",
            ),
            (QualitySet::C4, prose() + "fn main() {}", "c4_curly_bracket"),
            (QualitySet::C4, prose() + "Lorem Ipsum dolor.", "c4_lorem_ipsum"),
            (QualitySet::C4, "One sentence. Two sentences.".into(), "c4_sentences"),
        ];
        for (set, text, expected) in cases {
            let found = check(set, &text);
            assert_eq!(found.as_ref().map(|(rule, _)| *rule), Some(expected), "{found:?}: {text}");
        }
    }

    #[test]
    fn poor_lines_are_taken_out_and_counted() {
        let text = "Menu\n\nThis line is a whole sentence.\nPlease enable JavaScript in your browser.\nToo short.\nAnd this one has no end\n";
        let (kept, removed) = without_poor_lines(text);
        assert_eq!(kept, "\nThis line is a whole sentence.\n");
        assert_eq!(removed as usize, text.len() - kept.len());
    }

    #[test]
    fn repeated_runs_are_counted_once_however_they_overlap() {
        let words: Vec<u64> = "a b c d e a b c d e f".split(' ').map(number).collect();
        let lengths = vec![1; words.len()];
        assert_eq!(repeated_runs(&words, &lengths, 5), 5);
        assert_eq!(repeated_runs(&words, &lengths, 6), 0);
        assert_eq!(top_run(&words, &lengths, 2), 4);
    }
}
