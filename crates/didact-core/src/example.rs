//! Typed training records, before tokenisation.

use crate::message::{Message, Tool};
use serde::{Deserialize, Serialize};

/// One record of a data set, after its schema was recognised and its spelling normalised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "schema", rename_all = "snake_case")]
pub enum Example {
    /// Running text: every token but the first is a target.
    Text {
        /// The document.
        text: String,
    },
    /// A prompt (context) and what should follow it (target), as plain strings.
    Completion {
        /// Context; carries no loss.
        prompt: String,
        /// What is learned.
        completion: String,
    },
    /// A conversation, rendered by the model's chat template.
    Chat {
        /// The turns, oldest first.
        messages: Vec<Message>,
        /// Tools described to the model.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tools: Vec<Tool>,
    },
    /// Two answers to one prompt, the first of which is better. Each is a completion or a conversation with the prompt
    /// in it.
    Preference {
        /// The better one.
        chosen: Box<Example>,
        /// The worse one.
        rejected: Box<Example>,
    },
}

/// An [`Example`] and where it came from, so that every later message can name file and row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourcedExample {
    /// The record.
    pub example: Example,
    /// Which of the recipe's sources it belongs to (a file name unless the recipe says otherwise).
    pub source: String,
    /// Path of the file.
    pub path: String,
    /// Row within the file, from 1.
    pub row: u64,
}
