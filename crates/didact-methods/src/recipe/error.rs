//! What can be wrong with a recipe.

use didact_core::fault::{Classify, Fault};
use std::fmt;
use std::path::PathBuf;

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a recipe file; line and column from 1.
    File {
        /// The file, or the recipe's name when it ships with the program.
        origin: String,
        /// Line.
        line: usize,
        /// Column, in characters.
        column: usize,
    },
    /// On the command line.
    Override(String),
    /// Nowhere: the setting is absent and the message is about that.
    Absent {
        /// The file, or the recipe's name when it ships with the program.
        origin: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { origin, line, column } => write!(f, "{origin}:{line}:{column}"),
            Self::Override(text) => write!(f, "--set {text}"),
            Self::Absent { origin } => f.write_str(origin),
        }
    }
}

/// A recipe that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The name belongs to no recipe.
    #[error("there is no recipe `{name}`{}", did_you_mean(nearest.as_ref()))]
    UnknownRecipe {
        /// What was asked for.
        name: String,
        /// The most similar name, if any is similar.
        nearest: Option<String>,
        /// All names.
        known: Vec<String>,
    },
    /// The file names no recipe to apply.
    #[error("{place}: the key `recipe` is missing; it names the method to apply")]
    NoRecipe {
        /// The file.
        place: Place,
        /// All names.
        known: Vec<String>,
    },
    /// The file is not TOML.
    #[error("{place}: not valid TOML: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        message: String,
    },
    /// A key that means nothing here.
    #[error("{place}: unknown key `{key}`{}", did_you_mean(nearest.as_ref()))]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key path.
        key: String,
        /// The most similar key path, if any is similar.
        nearest: Option<String>,
        /// The keys of that table.
        known: Vec<String>,
    },
    /// Two spellings of one setting.
    #[error("{second_place}: `{second}` means the same as `{first}` ({first_place}); keep one of them")]
    Twice {
        /// The spelling that came first.
        first: String,
        /// Where.
        first_place: Box<Place>,
        /// The spelling that came second.
        second: String,
        /// Where.
        second_place: Box<Place>,
    },
    /// A key of another trainer that has no single counterpart here.
    #[error("{place}: `{key}` is not a key of Didact: {advice}")]
    Foreign {
        /// Where.
        place: Place,
        /// The key path.
        key: String,
        /// What to write instead.
        advice: String,
    },
    /// A value of the wrong kind, a missing one, or one that is out of range.
    #[error("{place}: `{key}`: {message}")]
    Value {
        /// Where.
        place: Place,
        /// The key path.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A setting that its own part of the program refuses.
    #[error("{place}: {message}")]
    Setting {
        /// Where.
        place: Place,
        /// What is wrong, naming the key.
        message: String,
    },
    /// An override that is not `key.path=value`.
    #[error("--set {text}: {message}")]
    Override {
        /// What was given.
        text: String,
        /// What is wrong.
        message: String,
    },
}

fn did_you_mean(nearest: Option<&String>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

impl Classify for RecipeError {
    fn fault(&self) -> Fault {
        Fault::Input
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownRecipe { known, .. } => {
                Some(format!("recipes are {}; a file of your own ends in .toml", known.join(", ")))
            }
            Self::NoRecipe { known, .. } => Some(format!("write, for example, `recipe = \"{}\"`", known.first()?)),
            Self::UnknownKey { known, nearest: None, .. } => Some(format!("known here: {}", known.join(", "))),
            Self::Override { .. } => {
                Some("write --set key.path=value, for example --set train.learning_rate=3e-4".into())
            }
            _ => None,
        }
    }
}
