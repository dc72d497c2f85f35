//! The verifier over parser and comparison.

use super::compare::{Category, Types, compare_types};
use super::parse::{ParseError, call_from_json, parse_calls};
use didact_core::cancel::Cancel;
use didact_core::message::ToolCall;
use didact_core::verdict::{Item, Verdict, Verifier, VerifyError};
use serde_json::Value;

/// Judges tool calls: score 1 when the calls are the right ones, 0 otherwise, with the [`Category`]'s name.
///
/// An item's reference is a call in JSON (`{"name", "arguments"}`), a list of them, or a string in any notation that
/// answers may use; `[]` and `"none"` mean that no tool should be called. An item whose reference cannot be read is
/// not judged: no score, category `bad_reference`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ToolCallVerifier;

/// [`ToolCallVerifier`] with [`Types::Loose`]: `"4"` is as good as `4`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LooseToolCallVerifier;

/// Why a reference is not a list of calls.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the reference is not a list of calls: {0}")]
pub struct ReferenceError(#[from] ParseError);

/// The calls of a reference.
///
/// # Errors
/// [`ReferenceError`] if it holds anything else.
pub fn reference_calls(reference: &Value) -> Result<Vec<ToolCall>, ReferenceError> {
    Ok(match reference {
        Value::String(text) => parse_calls(text)?,
        Value::Array(items) => items.iter().cloned().map(call_from_json).collect::<Result<_, _>>()?,
        other => vec![call_from_json(other.clone())?],
    })
}

fn judge(reference: &Value, answer: &str, types: Types) -> Verdict {
    let right = match reference_calls(reference) {
        Ok(calls) => calls,
        Err(error) => {
            return Verdict { score: None, category: "bad_reference".into(), reason: error.to_string() };
        }
    };
    let (category, reason) = match parse_calls(answer) {
        Ok(found) => {
            let comparison = compare_types(&right, &found, types);
            (comparison.category, comparison.reason)
        }
        Err(error) => (Category::Format, error.to_string()),
    };
    let score = if category == Category::Exact { 1.0 } else { 0.0 };
    Verdict { score: Some(score), category: category.as_str().into(), reason }
}

impl ToolCallVerifier {
    /// Judges one answer.
    pub fn judge(&self, reference: &Value, answer: &str) -> Verdict {
        judge(reference, answer, Types::Strict)
    }
}

impl LooseToolCallVerifier {
    /// Judges one answer.
    pub fn judge(&self, reference: &Value, answer: &str) -> Verdict {
        judge(reference, answer, Types::Loose)
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
                crate::each(items, sink, cancel, |item, answer| self.judge(&item.reference, answer));
                Ok(())
            }
        }
    )*};
}
verifier!(ToolCallVerifier, LooseToolCallVerifier);
