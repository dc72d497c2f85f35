//! How a list of calls differs from the right one.

use didact_core::message::ToolCall;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is wrong with an answer, the first that applies in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Nothing is wrong.
    Exact,
    /// The answer is not a list of calls.
    Format,
    /// A wrong tool, too many calls or too few, a call where there should be none or the reverse.
    Tool,
    /// An argument under another name: one is missing and one is too many.
    ArgumentName,
    /// An argument is missing.
    Missing,
    /// An argument is too many.
    Extra,
    /// An argument has the wrong value.
    Value,
}

impl Category {
    /// All categories, in the order of tables.
    pub const ALL: [Self; 7] =
        [Self::Exact, Self::Format, Self::Tool, Self::ArgumentName, Self::Missing, Self::Extra, Self::Value];

    /// The name used in verdicts and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Format => "format",
            Self::Tool => "tool",
            Self::ArgumentName => "argument_name",
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Value => "value",
        }
    }
}

/// The result of [`compare`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// What kind of difference there is.
    pub category: Category,
    /// The difference, for a person.
    pub reason: String,
}

/// Whether a value may be of another kind than the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Types {
    /// A number is not the string of its digits: what a schema asks for.
    #[default]
    Strict,
    /// `"4"` is `4`, `"true"` is `true`, `"null"` is null: for models that were not shown a schema.
    Loose,
}

/// Compares the calls an answer makes with the right ones.
///
/// The order of arguments never matters; the order of calls does not either. Numbers compare by value (`4` is `4.0`),
/// everything else exactly, and a number is not the string of its digits.
pub fn compare(right: &[ToolCall], found: &[ToolCall]) -> Comparison {
    compare_types(right, found, Types::Strict)
}

/// [`compare`], with values of other kinds allowed or not.
pub fn compare_types(right: &[ToolCall], found: &[ToolCall], types: Types) -> Comparison {
    let names = |calls: &[ToolCall]| {
        let mut names: Vec<String> = calls.iter().map(|c| c.name.clone()).collect();
        names.sort();
        names
    };
    if names(right) != names(found) {
        let spell = |calls: &[ToolCall]| match calls {
            [] => "no call".to_owned(),
            calls => calls.iter().map(|c| format!("`{}`", c.name)).collect::<Vec<_>>().join(", "),
        };
        return Comparison {
            category: Category::Tool,
            reason: format!("found {}, expected {}", spell(found), spell(right)),
        };
    }
    // Calls of one tool are paired so that what is equal stays together; the worst of the remaining pairs counts.
    let mut open: Vec<&ToolCall> = found.iter().collect();
    let mut unmatched = Vec::new();
    for call in right {
        match open.iter().position(|f| f.name == call.name && same_arguments(call, f, types)) {
            Some(index) => {
                open.remove(index);
            }
            None => unmatched.push(call),
        }
    }
    let mut worst = Comparison { category: Category::Exact, reason: "the call is right".into() };
    for call in unmatched {
        let index = open.iter().position(|f| f.name == call.name).expect("both lists hold the same names");
        let difference = arguments(call, open.remove(index), types);
        if worst.category == Category::Exact || difference.category < worst.category {
            worst = difference;
        }
    }
    worst
}

fn same_arguments(right: &ToolCall, found: &ToolCall, types: Types) -> bool {
    right.arguments.len() == found.arguments.len()
        && right.arguments.iter().all(|(name, value)| found.arguments.get(name).is_some_and(|f| same(value, f, types)))
}

/// The difference between the arguments of two calls that are not the same.
fn arguments(right: &ToolCall, found: &ToolCall, types: Types) -> Comparison {
    let absent = |from: &ToolCall, of: &ToolCall| {
        let names: Vec<String> =
            of.arguments.keys().filter(|n| !from.arguments.contains_key(*n)).map(|n| format!("`{n}`")).collect();
        names.join(", ")
    };
    let (missing, extra) = (absent(found, right), absent(right, found));
    let (category, reason) = match (missing.is_empty(), extra.is_empty()) {
        (false, false) => (Category::ArgumentName, format!("found {extra} instead of {missing}")),
        (false, true) => (Category::Missing, format!("{missing} missing")),
        (true, false) => (Category::Extra, format!("{extra} not asked for")),
        (true, true) => {
            let wrong = right.arguments.iter().find_map(|(name, value)| {
                let found = found.arguments.get(name)?;
                (!same(value, found, types)).then(|| format!("`{name}` is {found}, expected {value}"))
            });
            (Category::Value, wrong.unwrap_or_default())
        }
    };
    Comparison { category, reason }
}

fn same(a: &Value, b: &Value, types: Types) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || (x.as_f64().is_some() && x.as_f64() == y.as_f64()),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y, types)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(key, x)| y.get(key).is_some_and(|y| same(x, y, types)))
        }
        (Value::String(text), other) | (other, Value::String(text)) if types == Types::Loose && !other.is_string() => {
            // What the text would be without its quotes; never another text, so this ends here.
            let unquoted: Result<Value, _> = serde_json::from_str(&text.trim().to_lowercase());
            unquoted.is_ok_and(|value| !value.is_string() && same(&value, other, Types::Strict))
        }
        _ => a == b,
    }
}
