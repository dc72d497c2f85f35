//! Answers that are compared with a reference: as text, as a number, by an expression, as a set.
//!
//! Each verifier first takes the [`Part`] of the answer that counts. A reference that the verifier cannot read gives a
//! verdict without a score, category `bad_reference`.

use crate::{bad_reference, each, verdict};
use didact_core::cancel::Cancel;
use didact_core::verdict::{Item, Verdict, Verifier, VerifyError};
use regex::{Regex, RegexBuilder};
use serde_json::Value;
use std::collections::BTreeSet;

/// Which part of an answer counts.
#[derive(Debug, Clone, Default)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// What follows the last of these marks (`####` in GSM8K), up to the end of its line; without a mark there is none.
    After(String),
    /// The last line that is not empty.
    LastLine,
    /// What the first group of the last match holds (the whole match if there is no group).
    Pattern(Regex),
}

impl Part {
    /// The part, without the spaces around it; `None` when the answer has none.
    pub fn of<'a>(&self, answer: &'a str) -> Option<&'a str> {
        let part = match self {
            Self::Whole => answer,
            Self::After(mark) => answer.rsplit_once(mark.as_str())?.1.trim_start().lines().next()?,
            Self::LastLine => answer.lines().rev().find(|line| !line.trim().is_empty())?,
            Self::Pattern(pattern) => {
                let captures = pattern.captures_iter(answer).last()?;
                captures.get(1).or_else(|| captures.get(0))?.as_str()
            }
        };
        Some(part.trim())
    }
}

/// The reference as a list of texts: a string or number, or a list of them.
fn texts(reference: &Value) -> Option<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match reference {
        Value::Array(items) if !items.is_empty() => items.iter().map(one).collect(),
        other => one(other).map(|text| vec![text]),
    }
}

fn no_answer() -> Verdict {
    verdict(0.0, "format", "the answer has no such part")
}

/// Right when the answer is the reference, or one of several: category `exact` or `different`.
#[derive(Debug, Clone, Default)]
pub struct ExactMatch {
    /// What counts.
    pub part: Part,
    /// Whether upper and lower case are the same.
    pub ignore_case: bool,
    /// Whether any space is as good as another, and punctuation at the end does not count.
    pub loose: bool,
}

impl ExactMatch {
    fn form(&self, text: &str) -> String {
        let mut text = text.trim().to_owned();
        if self.loose {
            text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            text.truncate(text.trim_end_matches(['.', ',', ';', ':', '!', '?', ' ']).len());
        }
        if self.ignore_case { text.to_lowercase() } else { text }
    }

    /// Judges one answer; the reference is a text or a list of texts.
    pub fn judge(&self, reference: &Value, answer: &str) -> Verdict {
        let Some(right) = texts(reference) else {
            return bad_reference("a text or a list of texts", reference);
        };
        let Some(part) = self.part.of(answer) else { return no_answer() };
        let found = self.form(part);
        if right.iter().any(|text| self.form(text) == found) {
            verdict(1.0, "exact", "the answer is the reference")
        } else {
            verdict(0.0, "different", &format!("found {}, expected {}", shown(part), shown(&right.join("` or `"))))
        }
    }
}

/// A text for a reason: not all of it when it is long.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    if short.len() < text.len() { format!("`{short}…`") } else { format!("`{short}`") }
}

/// Right when the last number of the answer is the reference: category `exact`, `value`, or `format` without a number.
#[derive(Debug, Clone)]
pub struct NumericMatch {
    /// What counts.
    pub part: Part,
    /// Largest difference, as such.
    pub absolute: f64,
    /// Largest difference, as a share of the reference.
    pub relative: f64,
}

impl Default for NumericMatch {
    fn default() -> Self {
        Self { part: Part::Whole, absolute: 0.0, relative: 1e-9 }
    }
}

impl NumericMatch {
    /// Judges one answer; the reference is a number or a text that holds one.
    pub fn judge(&self, reference: &Value, answer: &str) -> Verdict {
        let right = match reference {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => last_number(text),
            _ => None,
        };
        let Some(right) = right else { return bad_reference("a number", reference) };
        let Some(found) = self.part.of(answer).and_then(last_number) else {
            return verdict(0.0, "format", "the answer has no number");
        };
        if (found - right).abs() <= self.absolute.max(self.relative * right.abs()) {
            verdict(1.0, "exact", "the number is right")
        } else {
            verdict(0.0, "value", &format!("found {found}, expected {right}"))
        }
    }
}

/// The last number of a text: digits with a sign, thousands separated by commas, a decimal point, an exponent, or a
/// fraction `a/b`; a percent sign or a currency beside it is not part of it. `None` when there is none.
pub fn last_number(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let is_digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let digits_end = |from: usize| (from..bytes.len()).find(|i| !is_digit(*i)).unwrap_or(bytes.len());
    let (mut found, mut at) = (None, 0);
    while at < bytes.len() {
        if !is_digit(at) {
            at += 1;
            continue;
        }
        // `.5` has no digit before its point; a sign belongs to the number unless it stands between two things (`3-4`).
        let mut start = at;
        if start > 0 && bytes[start - 1] == b'.' && (start < 2 || !bytes[start - 2].is_ascii_alphanumeric()) {
            start -= 1;
        }
        let before = start.checked_sub(2).map(|i| bytes[i]);
        let is_signed = start > 0 && matches!(bytes[start - 1], b'-' | b'+');
        if is_signed && before.is_none_or(|b| !b.is_ascii_alphanumeric() && !matches!(b, b')' | b']')) {
            start -= 1;
        }
        let mut digits = text[start..at].to_owned();
        let mut has_point = digits.ends_with('.');
        while at < bytes.len() {
            match bytes[at] {
                b'0'..=b'9' => digits.push(char::from(bytes[at])),
                b'.' if !has_point && is_digit(at + 1) => {
                    has_point = true;
                    digits.push('.');
                }
                b',' if !has_point && (1..4).all(|k| is_digit(at + k)) && !is_digit(at + 4) => {}
                _ => break,
            }
            at += 1;
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(at + 1), Some(b'-' | b'+')));
            if is_digit(at + 1 + sign) {
                let end = digits_end(at + 1 + sign);
                digits.push_str(&text[at..end]);
                at = end;
            }
        }
        let Ok(mut value) = digits.parse::<f64>() else { continue };
        if bytes.get(at) == Some(&b'/') && is_digit(at + 1) {
            let end = digits_end(at + 1);
            if let Ok(divisor) = text[at + 1..end].parse::<f64>()
                && divisor != 0.0
            {
                value /= divisor;
                at = end;
            }
        }
        found = Some(value).filter(|v| v.is_finite());
    }
    found
}

/// Right when the reference, an expression, matches the answer as a whole: category `match` or `no_match`.
#[derive(Debug, Clone, Default)]
pub struct RegexMatch {
    /// What counts.
    pub part: Part,
    /// Whether a match anywhere in the answer will do.
    pub anywhere: bool,
}

impl RegexMatch {
    /// Judges one answer; the reference is an expression in the syntax of the crate `regex`, which takes time linear in
    /// the answer whatever the expression.
    pub fn judge(&self, reference: &Value, answer: &str) -> Verdict {
        let Some(pattern) = reference.as_str() else { return bad_reference("a regular expression", reference) };
        let whole = if self.anywhere { pattern.to_owned() } else { format!("^(?:{pattern})$") };
        let pattern = match RegexBuilder::new(&whole).size_limit(1 << 20).build() {
            Ok(pattern) => pattern,
            Err(error) => return bad_reference(&format!("a regular expression ({error})"), reference),
        };
        let Some(part) = self.part.of(answer) else { return no_answer() };
        if pattern.is_match(part) {
            verdict(1.0, "match", "the expression matches")
        } else {
            verdict(0.0, "no_match", &format!("{} does not match", shown(part)))
        }
    }
}

/// How much of the reference, a set, the answer has: the F1 of its members, 1 when they are the same. Category `exact`,
/// `missing`, `extra`, or `different` for both.
#[derive(Debug, Clone, Default)]
pub struct SetMatch {
    /// What counts.
    pub part: Part,
    /// Whether upper and lower case are the same.
    pub ignore_case: bool,
}

impl SetMatch {
    fn members(&self, texts: impl Iterator<Item = String>) -> BTreeSet<String> {
        let form = |text: String| {
            let text = text.trim().trim_matches(['"', '\'', '[', ']', '{', '}']).trim().to_owned();
            if self.ignore_case { text.to_lowercase() } else { text }
        };
        texts.map(form).filter(|text| !text.is_empty()).collect()
    }

    /// Judges one answer, members between commas, semicolons or ends of lines; the reference is a list of texts.
    pub fn judge(&self, reference: &Value, answer: &str) -> Verdict {
        let Some(right) = texts(reference) else { return bad_reference("a list of texts", reference) };
        let right = self.members(right.into_iter());
        let Some(part) = self.part.of(answer) else { return no_answer() };
        let found = self.members(part.split([',', ';', '\n']).map(str::to_owned));
        let common = right.intersection(&found).count();
        if common == right.len() && common == found.len() {
            return verdict(1.0, "exact", "the sets are the same");
        }
        let list = |from: &BTreeSet<String>, without: &BTreeSet<String>| {
            from.difference(without).map(|text| shown(text)).collect::<Vec<_>>().join(", ")
        };
        let (missing, extra) = (list(&right, &found), list(&found, &right));
        let (category, reason) = match (missing.is_empty(), extra.is_empty()) {
            (false, true) => ("missing", format!("{missing} missing")),
            (true, false) => ("extra", format!("{extra} not asked for")),
            _ => ("different", format!("{missing} missing, {extra} not asked for")),
        };
        verdict(2.0 * common as f64 / (right.len() + found.len()) as f64, category, &reason)
    }
}

macro_rules! verifier {
    ($($kind:ty),*) => {$(
        impl Verifier for $kind {
            fn verify(
                &self,
                items: &[(&Item, &str)],
                sink: &mut dyn FnMut(usize, Verdict),
                cancel: &Cancel,
            ) -> Result<(), VerifyError> {
                each(items, sink, cancel, |item, answer| self.judge(&item.reference, answer));
                Ok(())
            }
        }
    )*};
}
verifier!(ExactMatch, NumericMatch, RegexMatch, SetMatch);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_are_found_or_not() {
        assert_eq!(Part::Whole.of(" a b "), Some("a b"));
        assert_eq!(Part::After("####".into()).of("1 #### 2\n#### 3 \nend"), Some("3"));
        assert_eq!(Part::After("####".into()).of("3"), None);
        assert_eq!(Part::LastLine.of("a\nb \n\n"), Some("b"));
        let boxed = Part::Pattern(Regex::new(r"\\boxed\{([^}]*)\}").expect("valid"));
        assert_eq!(boxed.of(r"\boxed{1} then \boxed{ 2 }"), Some("2"));
        assert_eq!(boxed.of("2"), None);
    }

    #[test]
    fn exact_is_exact_unless_told_otherwise() {
        let strict = ExactMatch::default();
        let loose = ExactMatch { ignore_case: true, loose: true, part: Part::Whole };
        let right = json!(["New York", "NYC"]);
        for (answer, is_strict, is_loose) in
            [("New York", 1.0, 1.0), (" NYC\n", 1.0, 1.0), ("new  york.", 0.0, 1.0), ("York", 0.0, 0.0), ("", 0.0, 0.0)]
        {
            assert_eq!(strict.judge(&right, answer).score, Some(is_strict), "{answer}");
            assert_eq!(loose.judge(&right, answer).score, Some(is_loose), "{answer}");
        }
        assert_eq!(strict.judge(&json!({"a": 1}), "x").score, None);
        assert_eq!(strict.judge(&json!([]), "x").category, "bad_reference");
    }

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, number) in [
            ("42", 42.0),
            ("it is 1,234.50 dollars", 1234.5),
            ("$-3", -3.0),
            ("3-4", 4.0),
            ("x = -4.", -4.0),
            ("about .5", 0.5),
            ("1e-3", 1e-3),
            ("3/4", 0.75),
            ("50%", 50.0),
            ("a list: 1,2,3", 3.0),
            ("10,000,000", 1e7),
            ("10 apples é 7é", 7.0),
        ] {
            assert_eq!(last_number(text), Some(number), "{text}");
        }
        for text in ["", "none", "-", ".", "٣"] {
            assert_eq!(last_number(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_compare_within_tolerance() {
        let judge = |verifier: &NumericMatch, answer| verifier.judge(&json!("#### 1,000"), answer).category;
        let verifier = NumericMatch::default();
        assert_eq!(judge(&verifier, "so 1000.0"), "exact");
        assert_eq!(judge(&verifier, "so 1001"), "value");
        assert_eq!(judge(&verifier, "so many"), "format");
        assert_eq!(judge(&NumericMatch { absolute: 1.0, ..verifier.clone() }, "1001"), "exact");
        assert_eq!(verifier.judge(&json!(null), "1").score, None);
        let tail = NumericMatch { part: Part::After("####".into()), ..verifier };
        assert_eq!(judge(&tail, "1000 is not it"), "format");
    }

    #[test]
    fn expressions_match_as_a_whole() {
        let whole = RegexMatch::default();
        assert_eq!(whole.judge(&json!("a|ab"), "ab").category, "match");
        assert_eq!(whole.judge(&json!("a"), "ab").category, "no_match");
        assert_eq!(RegexMatch { anywhere: true, ..whole.clone() }.judge(&json!("a"), "ba").category, "match");
        assert_eq!(whole.judge(&json!("("), "(").score, None);
        assert_eq!(whole.judge(&json!("(a{1000}){1000}"), "a").category, "bad_reference");
    }

    #[test]
    fn sets_score_by_their_members() {
        let verifier = SetMatch { ignore_case: true, ..SetMatch::default() };
        let judge = |answer: &str| {
            let v = verifier.judge(&json!(["a", "B"]), answer);
            (v.score.expect("judged"), v.category)
        };
        assert_eq!(judge("b, A"), (1.0, "exact".into()));
        assert_eq!(judge("[\"b\"; 'a'; a]"), (1.0, "exact".into()));
        assert_eq!(judge("a"), (2.0 / 3.0, "missing".into()));
        assert_eq!(judge("a\nb\nc"), (0.8, "extra".into()));
        assert_eq!(judge("c"), (0.0, "different".into()));
        assert_eq!(judge(""), (0.0, "missing".into()));
    }
}
