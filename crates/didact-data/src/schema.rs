//! What a row of a data file means: its schema, recognised from its keys or named in the recipe, and its conversion into
//! the one typed form ([`Example`]) that the rest of Didact reads.
//!
//! | schema | keys |
//! |---|---|
//! | `text` | `text` |
//! | `prompt_completion` | `prompt`, `completion` (strings, or lists of messages) |
//! | `messages` | `messages` (or `conversations` with `role`/`content`), optional `tools` |
//! | `alpaca` | `instruction`, `output`, optional `input`, `system`, `history` |
//! | `preference` | `chosen`, `rejected` (strings after `prompt`, or lists of messages), optional `prompt`, `tools` |
//! | `sharegpt` | `conversations` with `from`/`value`, optional `system`, `tools` |

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::reader::RowCause;
use didact_core::example::Example;

mod convert;

pub(crate) use convert::type_name;

/// How the rows of a file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schema {
    /// `text`: running text.
    Text,
    /// `prompt` and `completion`, as strings or as lists of messages.
    PromptCompletion,
    /// `messages` with `role` and `content`, optional `tools`.
    Messages,
    /// `instruction`, `input`, `output`, `system`, `history`.
    Alpaca,
    /// `conversations` with `from` and `value`, optional `system`, `tools`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// `chosen` and `rejected`, with or after `prompt`.
    Preference,
}

impl Schema {
    /// Every schema, in the order in which detection prefers them.
    pub const ALL: [Self; 6] =
        [Self::Messages, Self::ShareGpt, Self::Preference, Self::PromptCompletion, Self::Alpaca, Self::Text];

    /// The name used in recipes and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::PromptCompletion => "prompt_completion",
            Self::Messages => "messages",
            Self::Alpaca => "alpaca",
            Self::ShareGpt => "sharegpt",
            Self::Preference => "preference",
        }
    }

    /// The keys that a row must have, under the names that `names` gives them.
    pub fn required(self, names: &FieldNames) -> Vec<&str> {
        match self {
            Self::Text => vec![names.text()],
            Self::PromptCompletion => vec![names.prompt(), names.completion()],
            Self::Messages => vec![names.messages()],
            Self::Alpaca => vec!["instruction", "output"],
            Self::ShareGpt => vec!["conversations"],
            Self::Preference => vec!["chosen", "rejected"],
        }
    }

    /// The keys that are read when a row has them.
    fn optional(self, names: &FieldNames) -> Vec<&str> {
        match self {
            Self::Text => Vec::new(),
            Self::PromptCompletion | Self::Messages => vec![names.tools()],
            Self::Alpaca => vec!["input", "system", "history"],
            Self::ShareGpt => vec!["system", names.tools()],
            Self::Preference => vec![names.prompt(), names.tools()],
        }
    }
}

impl std::fmt::Display for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The names of a data set's keys where they differ from the usual ones.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FieldNames {
    /// Instead of `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Instead of `prompt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Instead of `completion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    /// Instead of `messages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// Instead of `tools`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<String>,
}

impl FieldNames {
    fn text(&self) -> &str {
        self.text.as_deref().unwrap_or("text")
    }

    fn prompt(&self) -> &str {
        self.prompt.as_deref().unwrap_or("prompt")
    }

    fn completion(&self) -> &str {
        self.completion.as_deref().unwrap_or("completion")
    }

    fn messages(&self) -> &str {
        self.messages.as_deref().unwrap_or("messages")
    }

    fn tools(&self) -> &str {
        self.tools.as_deref().unwrap_or("tools")
    }
}

/// What a schema was recognised from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Detection {
    /// The schema.
    pub schema: Schema,
    /// Whether the recipe named it.
    pub is_named: bool,
    /// The keys it was recognised from.
    pub keys: Vec<String>,
    /// Keys of the row that nothing reads; those inside messages are written `messages[].key`.
    pub ignored: Vec<String>,
    /// The first file whose rows look like this.
    pub path: String,
    /// How many files look like this.
    pub files: u64,
}

impl std::fmt::Display for Detection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if self.is_named { "named" } else { "recognised" };
        write!(f, "schema `{}`, {how}, from {} of `{}`", self.schema, quoted(&self.keys), self.path)?;
        if self.files > 1 {
            write!(f, " and {} more like it", self.files - 1)?;
        }
        if !self.ignored.is_empty() {
            write!(f, "; not read: {}", quoted(&self.ignored))?;
        }
        Ok(())
    }
}

/// Recognises the schema of a row from its keys.
///
/// # Errors
/// [`RowCause::NoSchema`], which names the nearest schema and what it lacks.
pub fn detect(row: &Map<String, Value>, names: &FieldNames) -> Result<Schema, RowCause> {
    let has = |key: &str| row.get(key).is_some_and(|value| !value.is_null());
    let fits = |schema: Schema| schema.required(names).into_iter().all(has);
    if fits(Schema::Messages) {
        return Ok(Schema::Messages);
    }
    if let Some(Value::Array(turns)) = row.get("conversations") {
        let is_role_content = turns.iter().any(|turn| turn.get("role").is_some() && turn.get("from").is_none());
        return Ok(if is_role_content { Schema::Messages } else { Schema::ShareGpt });
    }
    for schema in [Schema::Preference, Schema::PromptCompletion, Schema::Alpaca, Schema::Text] {
        if fits(schema) {
            return Ok(schema);
        }
    }
    let (nearest, missing) = nearest(row, names);
    Err(RowCause::NoSchema { keys: row.keys().cloned().collect(), nearest, missing })
}

/// The schema that lacks least, and the keys it lacks.
fn nearest(row: &Map<String, Value>, names: &FieldNames) -> (Schema, Vec<String>) {
    // An exact key counts for more than one that is merely spelt alike.
    let affinity = |key: &str| {
        if row.contains_key(key) {
            1.0
        } else {
            0.9 * row.keys().map(|found| strsim::jaro_winkler(found, key)).fold(0.0, f64::max)
        }
    };
    let mut best = (f64::MIN, Schema::Text);
    for schema in Schema::ALL {
        let required = schema.required(names);
        let score = required.iter().map(|key| affinity(key)).sum::<f64>() / required.len() as f64;
        if score > best.0 {
            best = (score, schema);
        }
    }
    let missing = best.1.required(names).into_iter().filter(|key| row.get(*key).is_none_or(Value::is_null));
    (best.1, missing.map(str::to_owned).collect())
}

/// What `schema` reads from a row and what it leaves.
pub(crate) fn describe(schema: Schema, row: &Map<String, Value>, names: &FieldNames) -> (Vec<String>, Vec<String>) {
    let mut read = schema.required(names);
    read.extend(schema.optional(names));
    if schema == Schema::Messages && !row.contains_key(names.messages()) {
        read.push("conversations");
    }
    let (keys, mut ignored): (Vec<_>, Vec<_>) = row.keys().cloned().partition(|key| read.contains(&key.as_str()));
    for (key, known) in [
        (names.messages(), convert::MESSAGE_KEYS),
        ("conversations", if schema == Schema::Messages { convert::MESSAGE_KEYS } else { convert::SHAREGPT_KEYS }),
    ] {
        if !keys.iter().any(|found| found == key) {
            continue;
        }
        for turn in row.get(key).and_then(Value::as_array).into_iter().flatten() {
            for inner in turn.as_object().into_iter().flat_map(Map::keys) {
                let name = format!("{key}[].{inner}");
                if !known.contains(&inner.as_str()) && !ignored.contains(&name) {
                    ignored.push(name);
                }
            }
        }
    }
    (keys, ignored)
}

/// Reads a row of a known schema.
///
/// # Errors
/// The key at fault (a path such as `messages[2].role`) and the cause.
pub fn convert(schema: Schema, row: &Map<String, Value>, names: &FieldNames) -> Result<Example, Misfit> {
    convert::convert(schema, row, names).map_err(|mut misfit| {
        // A row of another schema in the middle of a file is better named as such.
        if let RowCause::Missing { like, .. } = &mut misfit.cause {
            *like = detect(row, names).ok().filter(|other| *other != schema);
        }
        misfit
    })
}

/// A value that does not fit: where in the row, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Misfit {
    /// Path of the key within the row; `None` when the row as a whole is at fault.
    pub key: Option<String>,
    /// Why.
    pub cause: RowCause,
}

/// `a`, `b` and `c`, in backticks.
pub(crate) fn quoted<S: AsRef<str>>(names: &[S]) -> String {
    /// More names than this say nothing more to a reader.
    const SHOWN: usize = 12;
    let mut shown: Vec<_> =
        names.iter().take(SHOWN).map(|name| format!("`{}`", shortened(name.as_ref(), 40))).collect();
    if names.len() > SHOWN {
        shown.push(format!("{} more", names.len() - SHOWN));
    }
    match shown.pop() {
        None => "no keys".to_owned(),
        Some(last) if shown.is_empty() => last,
        Some(last) => format!("{} and {last}", shown.join(", ")),
    }
}

/// The first `limit` characters, so that a hostile row cannot flood a message.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
