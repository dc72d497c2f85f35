//! Sums of two numbers of a few digits, asked for one digit of the result, counted from the ones.
//!
//! # Reference
//! In the wording of Chen et al., "Skill-it!", NeurIPS 2023: `Input: A = 1 2 3 + 4 5 6 , A 0 = ? Output: 9`.

use didact_core::seed::Streams;
use rand::RngExt;

use super::Vocabulary;

/// The words of the texts.
pub const WORDS: Vocabulary =
    Vocabulary::new(&["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "A", "=", "+", ",", "?", "Input:", "Output:"]);
/// Where the answer stands, counted from the last token: at the end.
pub const ANSWER_FROM_END: usize = 0;

/// Texts that ask for the digit of 10^`digit` of the sum of two numbers of `digits` digits.
///
/// # Panics
/// If `digits` is not from 1 to 9, or `digit` not below it.
pub fn texts(digits: usize, digit: usize, n: usize, streams: &Streams) -> Vec<String> {
    assert!((1..=9).contains(&digits) && digit < digits, "addition: digit {digit} of {digits}");
    let mut rng = streams.rng("addition", &[digits as u64, digit as u64]);
    let spaced = |number: u64| {
        let text = format!("{number:0digits$}");
        text.chars().map(String::from).collect::<Vec<_>>().join(" ")
    };
    let most = 10_u64.pow(digits as u32) - 2;
    (0..n)
        .map(|_| {
            let (a, b) = (rng.random_range(0..=most), rng.random_range(0..=most));
            let answer = (a + b) / 10_u64.pow(digit as u32) % 10;
            format!("Input: A = {} + {} , A {digit} = ? Output: {answer}", spaced(a), spaced(b))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_the_digit_of_the_sum_with_carries() {
        let number = |text: &str| text.replace(' ', "").parse::<u64>().expect("is as made");
        for digit in 0..3 {
            for text in texts(3, digit, 50, &Streams::new(1)) {
                let body = text.strip_prefix("Input: A = ").expect("is as made");
                let (sum, question) = body.split_once(" , A ").expect("is as made");
                let (a, b) = sum.split_once(" + ").expect("is as made");
                let (asked, answer) = question.split_once(" = ? Output: ").expect("is as made");
                let expected = (number(a) + number(b)) / 10_u64.pow(asked.parse().expect("is as made")) % 10;
                assert_eq!(answer.parse::<u64>().expect("is as made"), expected, "{text}");
                let sequence = WORDS.question(&text, ANSWER_FROM_END);
                assert_eq!(sequence.weight.last(), Some(&1.0));
                assert_eq!(sequence.ids.last(), Some(&(expected as u32)));
            }
        }
    }
}
