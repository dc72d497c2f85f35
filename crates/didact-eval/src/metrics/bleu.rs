//! BLEU: how many runs of one to four tokens of a text are in its references.
//!
//! `BLEU = 100 · BP · exp(mean over n of ln p_n)`, where `p_n` is the share of the n-grams found in a reference, each at
//! most as often as in the one that has it most, and `BP = exp(1 − r/h)` if the hypotheses' length h is below r, the sum of
//! the lengths of the references that are closest to theirs.
//!
//! # Reference
//! Papineni et al., "BLEU", 2002. [`corpus`] over [`tokens_13a`] with [`Smoothing::Exponential`] is what sacreBLEU (Post,
//! 2018) computes by default.

use regex::Regex;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Longest n-gram.
const ORDER: usize = 4;

/// What stands in for an order of which no n-gram was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Smoothing {
    /// 1/2 of a match at the first such order, 1/4 at the second, and so on: sacreBLEU's default.
    Exponential,
    /// So many matches, NLTK's method 1 with 0.1.
    Floor(f64),
    /// Nothing: the result is 0.
    None,
}

/// What is counted in one hypothesis, and summed over a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    found: [usize; ORDER],
    total: [usize; ORDER],
    length: usize,
    reference_length: usize,
}

impl Counts {
    /// Counts one hypothesis against its references.
    pub fn new<T: Ord, H: AsRef<[T]>>(hypothesis: &[T], references: &[H]) -> Self {
        let mut counts = Self { length: hypothesis.len(), ..Self::default() };
        let lengths = references.iter().map(|reference| reference.as_ref().len());
        // The shorter one of two that are equally close.
        counts.reference_length =
            lengths.min_by_key(|&length| (length.abs_diff(hypothesis.len()), length)).unwrap_or_default();
        for n in 1..=ORDER {
            let mut most: BTreeMap<&[T], usize> = BTreeMap::new();
            for reference in references {
                for (run, count) in runs(reference.as_ref(), n) {
                    let known = most.entry(run).or_default();
                    *known = (*known).max(count);
                }
            }
            for (run, count) in runs(hypothesis, n) {
                counts.total[n - 1] += count;
                counts.found[n - 1] += count.min(most.get(run).copied().unwrap_or_default());
            }
        }
        counts
    }

    /// Adds those of another hypothesis.
    pub fn add(&mut self, other: &Self) {
        for n in 0..ORDER {
            self.found[n] += other.found[n];
            self.total[n] += other.total[n];
        }
        self.length += other.length;
        self.reference_length += other.reference_length;
    }

    /// The score, from 0 to 100. With `is_sentence`, orders that a short hypothesis cannot have are left out rather than
    /// being a 0.
    pub fn score(&self, smoothing: Smoothing, is_sentence: bool) -> f64 {
        if self.length == 0 || (self.found == [0; ORDER] && !matches!(smoothing, Smoothing::Floor(_))) {
            return 0.0;
        }
        let (mut sum, mut orders, mut halved) = (0.0, 0, 1.0);
        for (&found, &total) in self.found.iter().zip(&self.total) {
            if total == 0 {
                if is_sentence {
                    break;
                }
                return 0.0;
            }
            orders += 1;
            let matches = match (found, smoothing) {
                (0, Smoothing::None) => return 0.0,
                (0, Smoothing::Floor(floor)) => floor,
                (0, Smoothing::Exponential) => {
                    halved /= 2.0;
                    halved
                }
                (found, _) => found as f64,
            };
            sum += (matches / total as f64).ln();
        }
        let ratio = self.reference_length as f64 / self.length as f64;
        100.0 * (1.0 - ratio).min(0.0).exp() * (sum / f64::from(orders)).exp()
    }
}

/// Each run of `n` tokens and how often it comes.
fn runs<T: Ord>(tokens: &[T], n: usize) -> BTreeMap<&[T], usize> {
    let mut counts = BTreeMap::new();
    for run in tokens.windows(n) {
        *counts.entry(run).or_default() += 1;
    }
    counts
}

/// BLEU of hypotheses, each with its references, as one text.
pub fn corpus<T: Ord, H: AsRef<[T]>>(pairs: &[(H, Vec<H>)], smoothing: Smoothing) -> f64 {
    let mut counts = Counts::default();
    for (hypothesis, references) in pairs {
        counts.add(&Counts::new(hypothesis.as_ref(), references));
    }
    counts.score(smoothing, false)
}

/// BLEU of one hypothesis, over the orders that it is long enough for.
pub fn sentence<T: Ord, H: AsRef<[T]>>(hypothesis: &[T], references: &[H], smoothing: Smoothing) -> f64 {
    Counts::new(hypothesis, references).score(smoothing, true)
}

/// A text's tokens by the rules of mteval-v13a, sacreBLEU's default.
pub fn tokens_13a(text: &str) -> Vec<String> {
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        let rule = |pattern, with| (Regex::new(pattern).expect("the pattern is correct"), with);
        [
            rule(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", " $1 "),
            rule(r"([^0-9])([\.,])", "$1 $2 "),
            rule(r"([\.,])([^0-9])", " $1 $2"),
            rule(r"([0-9])(-)", "$1 $2 "),
        ]
    });
    let mut line = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        for (entity, sign) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            line = line.replace(entity, sign);
        }
    }
    line = format!(" {line} ");
    for (pattern, with) in RULES.iter() {
        line = pattern.replace_all(&line, *with).into_owned();
    }
    line.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        text.split(' ').collect()
    }

    #[test]
    fn a_score_is_the_product_that_the_paper_says() {
        // 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, none of 3 quadruples, which count as half a match; no penalty.
        let pairs = [(words("the cat sat on the mat"), vec![words("the cat is on the mat")])];
        let expected = 100.0 * (5.0 / 6.0 * 3.0 / 5.0 * 1.0 / 4.0 * 0.5 / 3.0_f64).powf(0.25);
        assert!((corpus(&pairs, Smoothing::Exponential) - expected).abs() < 1e-9);
        assert_eq!(corpus(&pairs, Smoothing::None), 0.0);
        let floor = 100.0 * (5.0 / 6.0 * 3.0 / 5.0 * 1.0 / 4.0 * 0.1 / 3.0_f64).powf(0.25);
        assert!((corpus(&pairs, Smoothing::Floor(0.1)) - floor).abs() < 1e-9);
    }

    #[test]
    fn short_texts_are_penalised_by_the_closest_reference() {
        let (hypothesis, references) = (words("a b c d"), [words("a b c d e"), words("a b c d e f g h")]);
        let score = sentence(&hypothesis, &references, Smoothing::None);
        assert!((score - 100.0 * (1.0 - 5.0 / 4.0_f64).exp()).abs() < 1e-9);
        // Two words have no triples; a word is counted as often as one reference has it.
        let score = sentence(&words("a a"), &[words("a b"), words("b a")], Smoothing::Floor(0.1));
        assert!((score - 100.0 * (1.0 / 2.0 * 0.1 / 1.0_f64).sqrt()).abs() < 1e-9);
        assert_eq!(sentence(&[] as &[&str], &[words("a")], Smoothing::Floor(0.1)), 0.0);
        assert_eq!(corpus(&[(words("a b"), vec![words("a b")])], Smoothing::Exponential), 0.0, "no quadruples at all");
    }

    #[test]
    fn tokens_are_split_as_mteval_does() {
        assert_eq!(tokens_13a("Hello, world! It's 3.5 (or 4-5)."), words("Hello , world ! It's 3.5 ( or 4 - 5 ) ."));
        assert_eq!(tokens_13a("a &amp; b&quot;"), words("a & b \""));
    }
}
