//! Arithmetic in words: sums, differences and products of two numbers, and two operations on three digits.
//!
//! # Reference
//! Brown et al., "Language Models are Few-Shot Learners", 2020, section 3.9.1, in the wording in which the
//! lm-evaluation-harness asks it; an answer is right if greedy decoding writes it.

use crate::task::Document;
use didact_core::seed::Streams;
use rand::RngExt;
use serde_json::json;
use std::collections::BTreeSet;

pub(super) const TASK: &str = include_str!("../../tasks/arithmetic.toml");

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `a plus b`, of numbers below 10 to this power.
    Sum(u32),
    /// `a minus b`.
    Difference(u32),
    /// `a times b`.
    Product(u32),
    /// `(a + b) * c` of digits from 1 to 9.
    Composite,
}

/// `count` different questions.
pub(super) fn documents(kind: Kind, count: usize, streams: Streams) -> Vec<Document> {
    let mut rng = streams.rng("arithmetic", &[]);
    let mut seen = BTreeSet::new();
    let mut documents = Vec::with_capacity(count);
    while documents.len() < count {
        let mut operand = |digits: u32| rng.random_range(0..10_i64.pow(digits));
        let (question, answer) = match kind {
            Kind::Sum(digits) => {
                let (a, b) = (operand(digits), operand(digits));
                (format!("{a} plus {b}"), a + b)
            }
            Kind::Difference(digits) => {
                let (a, b) = (operand(digits), operand(digits));
                (format!("{a} minus {b}"), a - b)
            }
            Kind::Product(digits) => {
                let (a, b) = (operand(digits), operand(digits));
                (format!("{a} times {b}"), a * b)
            }
            Kind::Composite => {
                let mut digit = || rng.random_range(1..10_i64);
                let (a, b, c) = (digit(), digit(), digit());
                let mut operator = || ['+', '-', '*'][rng.random_range(0..3)];
                let (first, second) = (operator(), operator());
                (format!("({a} {first} {b}) {second} {c}"), apply(second, apply(first, a, b), c))
            }
        };
        if seen.insert(question.clone()) {
            let row = json!({
                "context": format!("Question: What is {question}?\nAnswer:"), "completion": format!(" {answer}"),
            });
            documents.extend(row.as_object().cloned());
        }
    }
    documents
}

fn apply(operator: char, a: i64, b: i64) -> i64 {
    match operator {
        '+' => a + b,
        '-' => a - b,
        _ => a * b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of what a question asks, worked out from its words.
    fn solved(question: &str) -> i64 {
        let text = question.replace("plus", "+").replace("minus", "-").replace("times", "*");
        let (head, second) = match text.strip_prefix('(').and_then(|rest| rest.split_once(") ")) {
            Some((inner, rest)) => (inner.to_owned(), rest.split_once(' ')),
            None => (text.clone(), None),
        };
        let of = |text: &str| {
            let parts: Vec<&str> = text.split_whitespace().collect();
            let number = |part: &str| part.parse::<i64>().expect("a number");
            apply(parts[1].chars().next().expect("an operator"), number(parts[0]), number(parts[2]))
        };
        let first = of(&head);
        second.map_or(first, |(operator, b)| of(&format!("{first} {operator} {b}")))
    }

    #[test]
    fn answers_are_right_and_questions_differ() {
        for kind in [Kind::Sum(2), Kind::Difference(5), Kind::Product(2), Kind::Composite] {
            let documents = documents(kind, 2000, Streams::new(1));
            let mut seen = BTreeSet::new();
            for document in &documents {
                let context = document["context"].as_str().expect("text");
                let question =
                    context.strip_prefix("Question: What is ").and_then(|rest| rest.strip_suffix("?\nAnswer:"));
                let question = question.expect("is as made");
                assert_eq!(document["completion"], format!(" {}", solved(question)), "{question}");
                assert!(seen.insert(question.to_owned()), "{question} comes twice");
            }
        }
    }
}
