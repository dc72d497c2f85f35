//! Stage `toolworld`: requests and right calls, as rows in the `messages` schema.

use super::write_jsonl;
use crate::error::MethodError;
use crate::recipe::ToolworldSettings;
use crate::toolworld::{Pool, Sample, Style, World};
use didact_core::message::Message;
use didact_core::seed::Streams;
use didact_core::stage::{Stage, StageContext, StageError, StageInput};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Name and kind of the stage.
pub const NAME: &str = "toolworld";
/// Rows to train on.
pub const TRAIN: &str = "train.jsonl";
/// Requests for held-out tools.
pub const HELD_OUT: &str = "test_heldout.jsonl";
/// Requests for trained tools.
pub const TRAINED: &str = "test_trained.jsonl";

/// A row: a conversation that ends in the right answer, and what it is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Listed tools, request, right answer.
    pub messages: Vec<Message>,
    /// How hard the request is.
    pub level: String,
    /// The tool the request is about, listed or not.
    pub tool: String,
}

impl Row {
    fn new(sample: &Sample) -> Self {
        Self {
            messages: sample.messages(Style::Text),
            level: sample.level.as_str().to_owned(),
            tool: sample.about.clone(),
        }
    }
}

/// Makes requests and right calls from the seed.
#[derive(Debug, Clone)]
pub struct ToolworldStage {
    /// How many, and of what world.
    pub settings: ToolworldSettings,
}

/// Writes the three files into `dir`.
pub(crate) fn write(dir: &Path, settings: &ToolworldSettings, streams: Streams) -> Result<(), MethodError> {
    let world = World::new(&settings.world(), &streams)?;
    let mut seen = BTreeSet::new();
    for (file, set, pool, count) in [
        (TRAIN, "train", Pool::Trained, settings.train_examples),
        (HELD_OUT, "test_heldout", Pool::HeldOut, settings.test_examples),
        (TRAINED, "test_trained", Pool::Trained, settings.test_examples),
    ] {
        let samples = world.draw(&streams, set, pool, count, &mut seen)?;
        write_jsonl(&dir.join(file), samples.iter().map(Row::new))?;
    }
    Ok(())
}

impl Stage for ToolworldStage {
    fn name(&self) -> &str {
        NAME
    }

    fn kind(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("settings are plain data")
    }

    fn inputs(&self) -> Vec<StageInput> {
        Vec::new()
    }

    fn depends_on_arithmetic(&self) -> bool {
        false
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        write(&context.work_dir, &self.settings, context.streams).map_err(MethodError::into_stage_error)
    }
}
