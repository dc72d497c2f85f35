//! Tasks of `didact eval`, asked within a recipe.

use super::evaluate::Metrics;
use super::write_jsonl;
use crate::error::MethodError;
use crate::recipe::EvalSettings;
use crate::tasks::select;
use didact_core::hash::{Digest, Hasher, hash_json};
use didact_core::stage::StageContext;
use didact_eval::task::Task;
use didact_eval::task::prompt::Draw;
use didact_eval::{EvalError, EvalOptions, Model, Windows, evaluate, results};
use didact_infer::LocalGenerator;
use serde_json::json;

/// The tasks that a recipe names, read once.
#[derive(Debug, Default)]
pub struct AskedTasks {
    tasks: Vec<Task>,
    digest: Option<Digest>,
}

impl AskedTasks {
    /// Reads the tasks of a recipe.
    ///
    /// # Errors
    /// For a name that means nothing, and for data that cannot be read.
    pub fn new(settings: &EvalSettings) -> Result<Self, MethodError> {
        let tasks = select(&settings.tasks)?.tasks;
        let mut hasher = Hasher::new();
        for task in &tasks {
            let content = json!({ "file": task.file, "documents": task.documents, "examples": task.examples });
            hasher.field(task.name(), hash_json(&content).to_string().as_bytes());
        }
        let digest = (!tasks.is_empty()).then(|| hasher.finish());
        Ok(Self { tasks, digest })
    }

    /// The tasks' content; `None` if there are none.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Asks all of them, with each number of examples. Metrics are called `<task>/<metric>, <K> shots`; the questions'
    /// logs go beside them.
    pub(super) fn ask(
        &self,
        generator: &LocalGenerator,
        settings: &EvalSettings,
        context: &StageContext<'_>,
        metrics: &mut Metrics,
    ) -> Result<(), MethodError> {
        if self.tasks.is_empty() {
            return Ok(());
        }
        let model = generator.model();
        let tokenizer = model.tokenizer();
        let prefix = tokenizer.bos().or_else(|| model.eos().first().copied());
        let windows = prefix.map(|prefix| Windows { tokenizer, context: model.context(), prefix });
        let numbers: Vec<Option<usize>> =
            if settings.shots.is_empty() { vec![None] } else { settings.shots.iter().copied().map(Some).collect() };
        for shots in numbers {
            let options = EvalOptions {
                shots,
                draw: Draw::Harness,
                limit: settings.limit,
                is_chat: settings.chat,
                ..EvalOptions::default()
            };
            let model = Model { generator, windows };
            let found = evaluate(&self.tasks, model, &options, context.reporter, &context.cancel);
            let found = found.map_err(|error| match error {
                EvalError::Stopped => MethodError::Stopped { run_dir: context.run.root().to_owned() },
                other => other.into(),
            })?;
            for result in &found {
                for score in &result.scores {
                    let filter = if score.filter == didact_eval::filter::NONE {
                        String::new()
                    } else {
                        format!(" ({})", score.filter)
                    };
                    let name = format!("{}/{}{filter}, {} shots", result.task, score.name, result.shots);
                    metrics.insert(name, score.value);
                }
                let name = format!("samples_{}_{}shot.jsonl", results::sanitised(&result.task), result.shots);
                write_jsonl(&context.work_dir.join(name), results::samples(result))?;
            }
            for remark in results::remarks(&found) {
                context.reporter.message(didact_core::progress::Level::Warning, &remark);
            }
        }
        Ok(())
    }
}
