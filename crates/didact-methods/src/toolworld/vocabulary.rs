//! The words of the world. Everything is lower case and a single word wherever a word-level tokenizer will see it.

use serde::{Deserialize, Serialize};

/// What kind of value a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One of twenty cities.
    City,
    /// A day of the week; may be derived from today.
    Day,
    /// A whole number from 1 to 20; may be derived from one or two others.
    Number,
    /// `low`, `mid` or `high`; may be derived from a synonym.
    Level,
    /// One of twenty first names.
    Name,
    /// One of ten languages.
    Language,
    /// One of six units.
    Unit,
}

impl Kind {
    /// Whether a value can be given in other words than its own.
    pub fn is_derivable(self) -> bool {
        matches!(self, Self::Day | Self::Number | Self::Level)
    }

    /// The words that values are chosen from; empty for numbers.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::City => &CITIES,
            Self::Day => &DAYS,
            Self::Number => &[],
            Self::Level => &LEVELS,
            Self::Name => &NAMES,
            Self::Language => &LANGUAGES,
            Self::Unit => &UNITS,
        }
    }

    /// A sentence that names a value of this kind and asks for nothing.
    pub(super) fn distraction(self) -> &'static str {
        match self {
            Self::City => "my brother lives in {}",
            Self::Day => "my sister comes home on {}",
            Self::Number => "i own {} plants",
            Self::Level => "my mood is {}",
            Self::Name => "{} says hello",
            Self::Language => "my aunt speaks {}",
            Self::Unit => "my boss likes {}",
        }
    }
}

/// The days, in order.
pub const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// Largest number a parameter takes.
pub(super) const MAX_NUMBER: u32 = 20;
pub(super) const LEVELS: [&str; 3] = ["low", "mid", "high"];
/// Synonyms of the levels, in their order.
pub(super) const LEVEL_SYNONYMS: [[&str; 2]; 3] = [["cheap", "modest"], ["average", "medium"], ["top", "premium"]];
const CITIES: [&str; 20] = [
    "oslo", "paris", "rome", "berlin", "madrid", "vienna", "dublin", "lisbon", "athens", "prague", "london", "cairo",
    "tokyo", "delhi", "lima", "boston", "denver", "sydney", "nairobi", "geneva",
];
const NAMES: [&str; 20] = [
    "anna", "ben", "clara", "david", "emma", "frank", "grace", "henry", "iris", "jack", "kate", "leo", "maria", "noah",
    "olga", "paul", "rosa", "simon", "tina", "victor",
];
const LANGUAGES: [&str; 10] =
    ["english", "french", "german", "spanish", "italian", "dutch", "polish", "greek", "turkish", "swedish"];
const UNITS: [&str; 6] = ["miles", "meters", "kilos", "pounds", "dollars", "euros"];

/// A verb and the phrases that ask for it.
pub(super) const VERBS: [(&str, [&str; 3]); 8] = [
    ("get", ["get", "fetch", "show me"]),
    ("find", ["find", "look for", "search for"]),
    ("list", ["list", "enumerate", "give me all about"]),
    ("book", ["book", "reserve", "make a reservation for"]),
    ("cancel", ["cancel", "call off", "drop"]),
    ("send", ["send", "deliver", "forward"]),
    ("set", ["set", "set up", "put in place"]),
    ("convert", ["convert", "change", "transform"]),
];

/// A noun and the phrases that ask for it.
pub(super) const NOUNS: [(&str, [&str; 2]); 12] = [
    ("weather", ["the weather", "the forecast"]),
    ("flight", ["the flight", "the plane trip"]),
    ("hotel", ["the hotel", "the room"]),
    ("train", ["the train", "the rail trip"]),
    ("taxi", ["the taxi", "the cab"]),
    ("news", ["the news", "the headlines"]),
    ("stock", ["the stock", "the shares"]),
    ("alarm", ["the alarm", "the wake-up call"]),
    ("event", ["the event", "the gathering"]),
    ("recipe", ["the recipe", "the dish"]),
    ("message", ["the message", "the note"]),
    ("currency", ["the currency", "the money"]),
];

/// A parameter, the kind of its values, and the clauses that supply it.
pub(super) const PARAMETERS: [(&str, Kind, [&str; 3]); 16] = [
    ("city", Kind::City, ["in {}", "around {}", "near {}"]),
    ("origin", Kind::City, ["from {}", "leaving {}", "with origin {}"]),
    ("destination", Kind::City, ["to {}", "going to {}", "with destination {}"]),
    ("day", Kind::Day, ["for {}", "on day {}", "the day being {}"]),
    ("start", Kind::Day, ["starting {}", "beginning {}", "as of {}"]),
    ("end", Kind::Day, ["ending {}", "until {}", "up to {}"]),
    ("count", Kind::Number, ["with a count of {}", "a total of {}", "the count being {}"]),
    ("people", Kind::Number, ["for {} people", "with {} people", "a party of {} people"]),
    ("hour", Kind::Number, ["at {} o'clock", "at hour {}", "the hour being {}"]),
    ("amount", Kind::Number, ["with amount {}", "an amount of {}", "the amount being {}"]),
    ("price", Kind::Level, ["at a {} price", "with {} price", "the price being {}"]),
    ("quality", Kind::Level, ["of {} quality", "with {} quality", "the quality being {}"]),
    ("person", Kind::Name, ["for {}", "in the name of {}", "the person being {}"]),
    ("contact", Kind::Name, ["with {}", "with contact {}", "the contact being {}"]),
    ("language", Kind::Language, ["in {}", "written in {}", "with language {}"]),
    ("unit", Kind::Unit, ["in {}", "measured in {}", "with unit {}"]),
];

pub(super) const OPENINGS: [&str; 6] =
    ["please", "i want to", "can you", "could you please", "i need you to", "help me"];
