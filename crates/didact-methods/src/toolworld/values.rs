//! Values and the words that give them.

use super::vocabulary::{DAYS, Kind, LEVEL_SYNONYMS, LEVELS, MAX_NUMBER};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde_json::{Value, json};

/// How a request words a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Phrase {
    /// The words.
    pub text: String,
    /// What they mean.
    pub value: Value,
    /// Whether the value differs from the words.
    pub derived: bool,
}

/// Draws a value that is given in its own words.
pub(super) fn direct(kind: Kind, rng: &mut impl Rng) -> Phrase {
    let value = match kind {
        Kind::Number => json!(rng.random_range(1..=MAX_NUMBER)),
        kind => json!(kind.words().choose(rng).expect("every other kind has words")),
    };
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Phrase { text, value, derived: false }
}

/// Draws a value that has to be worked out from the words, and from `today` (an index into [`DAYS`]) for days.
///
/// # Panics
/// If the kind is not derivable.
pub(super) fn indirect(kind: Kind, today: usize, rng: &mut impl Rng) -> Phrase {
    let text = match kind {
        Kind::Day => match rng.random_range(0..4) {
            0 => "tomorrow".to_owned(),
            1 => format!("{} days from today", rng.random_range(2..=6)),
            2 => format!("the day before {}", DAYS.choose(rng).expect("seven days")),
            _ => format!("the day after {}", DAYS.choose(rng).expect("seven days")),
        },
        Kind::Number => match rng.random_range(0..7) {
            0..=2 => {
                let a = rng.random_range(1..MAX_NUMBER);
                format!("{a} plus {}", rng.random_range(1..=MAX_NUMBER - a))
            }
            3..=5 => format!("twice {}", rng.random_range(1..=MAX_NUMBER / 2)),
            _ => "a dozen".to_owned(),
        },
        Kind::Level => LEVEL_SYNONYMS.as_flattened().choose(rng).map(|&s| s.to_owned()).expect("six synonyms"),
        other => panic!("values of {other:?} are not derivable"),
    };
    let value = derive(&text, kind, today).expect("every wording drawn here can be read");
    Phrase { text, value, derived: true }
}

/// What a wording means: the rules of the world, as a reader of requests applies them.
///
/// `today` is an index into [`DAYS`]. `None` if the words give no value of that kind.
pub fn derive(text: &str, kind: Kind, today: usize) -> Option<Value> {
    let words: Vec<&str> = text.split(' ').collect();
    let day = |word: &str| DAYS.iter().position(|d| *d == word);
    let number = |word: &str| word.parse::<u32>().ok();
    match kind {
        Kind::Day => {
            let index = match words[..] {
                ["tomorrow"] => today + 1,
                [n, "days", "from", "today"] => today + number(n)? as usize,
                ["the", "day", "before", d] => day(d)? + DAYS.len() - 1,
                ["the", "day", "after", d] => day(d)? + 1,
                [d] => day(d)?,
                _ => return None,
            };
            Some(json!(DAYS[index % DAYS.len()]))
        }
        Kind::Number => {
            let n = match words[..] {
                [a, "plus", b] => number(a)? + number(b)?,
                ["twice", a] => 2 * number(a)?,
                ["a", "dozen"] => 12,
                [a] => number(a)?,
                _ => return None,
            };
            (1..=MAX_NUMBER).contains(&n).then(|| json!(n))
        }
        Kind::Level => {
            let named = LEVELS.iter().position(|l| *l == text);
            let index = named.or_else(|| LEVEL_SYNONYMS.iter().position(|s| s.contains(&text)))?;
            Some(json!(LEVELS[index]))
        }
        kind => kind.words().contains(&text).then(|| json!(text)),
    }
}
