//! Judging an answer.

use crate::cancel::Cancel;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What an answer is judged against: the request, and whatever the verifier needs to know of the right answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Identifies the item within its set.
    pub id: String,
    /// What the model was shown, for verifiers that read it.
    pub prompt: String,
    /// The reference; its shape is the verifier's business.
    pub reference: Value,
}

/// The judgement of one answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// From 0 (wrong) to 1 (right). `None` when the answer could not be judged; that is counted, never folded into
    /// *wrong*.
    pub score: Option<f64>,
    /// A short machine-readable class such as `exact`, `wrong_tool`, `timeout`.
    pub category: String,
    /// One sentence for a person.
    pub reason: String,
}

impl Verdict {
    /// Whether the answer was judged fully right.
    pub fn is_right(&self) -> bool {
        self.score.is_some_and(|s| s >= 1.0)
    }
}

/// The verifier itself is broken (no simulator installed, say).
#[derive(Debug, thiserror::Error)]
#[error("verification failed: {message}")]
pub struct VerifyError {
    /// What happened.
    pub message: String,
    /// What caused it.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Something that judges answers.
pub trait Verifier {
    /// Judges each answer, in any order.
    ///
    /// # Errors
    /// When the verifier itself is broken.
    fn verify(
        &self,
        items: &[(&Item, &str)],
        sink: &mut dyn FnMut(usize, Verdict),
        cancel: &Cancel,
    ) -> Result<(), VerifyError>;
}
