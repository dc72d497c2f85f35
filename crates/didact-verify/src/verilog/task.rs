//! Tasks: a test bench, a golden model, and what is asked for.

use super::lexer::{modules, replace_words};
use didact_core::fault::{Classify, Fault};
use didact_core::files::{self, FileError};
use didact_core::hash::{Digest, hash_json};
use didact_core::verdict::Item;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// One task, as it stands in an item's reference.
///
/// The bench counts samples and mismatches, and prints `Mismatches: E in N samples` at its end, as VerilogEval's do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerilogTask {
    /// The name of the module that is asked for.
    #[serde(default = "top_module")]
    pub module: String,
    /// The test bench.
    pub bench: String,
    /// The bench's top module.
    #[serde(default = "tb")]
    pub top: String,
    /// The golden model that the bench compares with, where the bench does not hold it itself.
    #[serde(default)]
    pub golden: String,
    /// A right answer, where it is not the golden model under another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solution: Option<String>,
    /// A header that answers may go on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

fn top_module() -> String {
    "TopModule".to_owned()
}

fn tb() -> String {
    "tb".to_owned()
}

/// What is wrong with a task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// A reference is no task.
    #[error("the reference is no Verilog task: {0}")]
    Reference(#[from] serde_json::Error),
    /// There is no way to know a right answer.
    #[error("the task has no `solution`, and its `golden` does not declare exactly one module")]
    NoSolution,
    /// The bench does not say its result.
    #[error("the bench prints no \"Mismatches: … in … samples\"")]
    NoResult,
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A folder holds no tasks.
    #[error(
        "`{0}` holds no VerilogEval tasks: no `*_prompt.txt` with `*_ref.sv` and `*_test.sv`, and no `.jsonl` of version 1"
    )]
    NoTasks(String),
    /// A line of a file of version 1 cannot be read.
    #[error("`{path}` line {line}: {message}")]
    Line {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
}

impl Classify for TaskError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(error) => error.fault(),
            _ => Fault::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            _ => Some("docs/verifiers.md says what a task is".to_owned()),
        }
    }
}

impl VerilogTask {
    /// Reads a reference.
    ///
    /// # Errors
    /// When it is no task.
    pub fn from_reference(reference: &Value) -> Result<Self, TaskError> {
        let task: Self = serde_json::from_value(reference.clone())?;
        if task.bench.contains("\"Mismatches: ") { Ok(task) } else { Err(TaskError::NoResult) }
    }

    /// A right answer.
    ///
    /// # Errors
    /// When the task has none.
    pub fn solution(&self) -> Result<String, TaskError> {
        if let Some(solution) = &self.solution {
            return Ok(solution.clone());
        }
        let [name] = &modules(&self.golden)[..] else { return Err(TaskError::NoSolution) };
        Ok(replace_words(&self.golden, |word| (word == name).then(|| self.module.clone())))
    }

    pub(super) fn digest(&self) -> Digest {
        hash_json(&json!(self))
    }
}

/// The tasks of VerilogEval: a folder of version 2 (`ProbNNN_name_prompt.txt`, `_ref.sv`, `_test.sv`, maybe `_ifc.txt`),
/// or a `.jsonl` file of version 1 (`task_id`, `prompt`, `canonical_solution`, `test`). Items are in the order of names;
/// their prompts are the descriptions as they stand there.
///
/// # Errors
/// When something cannot be read, or there are none.
pub fn verilog_eval(path: &Path) -> Result<Vec<Item>, TaskError> {
    let items = if path.is_dir() { version_2(path)? } else { version_1(path)? };
    if items.is_empty() { Err(TaskError::NoTasks(path.display().to_string())) } else { Ok(items) }
}

fn version_2(dir: &Path) -> Result<Vec<Item>, TaskError> {
    let mut items = Vec::new();
    let mut paths = files::list_dir(dir)?;
    paths.sort();
    for path in paths {
        let Some(id) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix("_prompt.txt")) else {
            continue;
        };
        let beside = |suffix: &str| dir.join(format!("{id}{suffix}"));
        let header = beside("_ifc.txt");
        let task = VerilogTask {
            module: top_module(),
            bench: files::read_to_string(beside("_test.sv"))?,
            top: tb(),
            golden: files::read_to_string(beside("_ref.sv"))?,
            solution: None,
            header: if header.exists() { Some(files::read_to_string(header)?) } else { None },
        };
        items.push(Item { id: id.to_owned(), prompt: files::read_to_string(&path)?, reference: json!(task) });
    }
    Ok(items)
}

#[derive(Deserialize)]
struct Version1 {
    task_id: String,
    prompt: String,
    canonical_solution: String,
    test: String,
}

fn version_1(path: &Path) -> Result<Vec<Item>, TaskError> {
    let text = files::read_to_string(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let row: Version1 = serde_json::from_str(line).map_err(|error| TaskError::Line {
                path: path.display().to_string(),
                line: index + 1,
                message: error.to_string(),
            })?;
            let task = VerilogTask {
                module: "top_module".to_owned(),
                bench: row.test,
                top: tb(),
                golden: String::new(),
                solution: Some(format!("{}\n{}", row.prompt, row.canonical_solution)),
                header: Some(row.prompt.clone()),
            };
            Ok(Item { id: row.task_id, prompt: row.prompt, reference: json!(task) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let write =
            |name: &str, text: &str| files::write_atomic(dir.path().join(name), text.as_bytes()).expect("written");
        assert!(matches!(verilog_eval(dir.path()), Err(TaskError::NoTasks(_))));
        write("Prob2_b_prompt.txt", "do b");
        write("Prob2_b_ref.sv", "module RefModule(input a); endmodule");
        write("Prob2_b_test.sv", "$display(\"Mismatches: %1d in %1d samples\", e, n);");
        write("problems.txt", "Prob2_b");
        let items = verilog_eval(dir.path()).expect("read");
        assert_eq!((items.len(), items[0].id.as_str(), items[0].prompt.as_str()), (1, "Prob2_b", "do b"));
        let task = VerilogTask::from_reference(&items[0].reference).expect("a task");
        assert_eq!(task.solution().expect("one"), "module TopModule(input a); endmodule");
        let row = json!({"task_id": "t", "prompt": "module top_module(a);", "canonical_solution": "endmodule",
            "test": "module tb; \"Mismatches: \""});
        write("v1.jsonl", &format!("{row}\n\n"));
        let items = verilog_eval(&dir.path().join("v1.jsonl")).expect("read");
        let task = VerilogTask::from_reference(&items[0].reference).expect("a task");
        assert_eq!(task.solution().expect("one"), "module top_module(a);\nendmodule");
        write("bad.jsonl", "{}\n");
        let error = verilog_eval(&dir.path().join("bad.jsonl")).expect_err("no task").to_string();
        assert!(error.contains("line 1") && error.contains("task_id"), "{error}");
    }

    #[test]
    fn a_task_must_be_usable() {
        let reference = |bench: &str, golden: &str| json!({"bench": bench, "golden": golden});
        assert!(matches!(VerilogTask::from_reference(&reference("", "")), Err(TaskError::NoResult)));
        assert!(matches!(VerilogTask::from_reference(&json!({"golden": ""})), Err(TaskError::Reference(_))));
        let task = VerilogTask::from_reference(&reference("\"Mismatches: ", "")).expect("a task");
        assert!(matches!(task.solution(), Err(TaskError::NoSolution)));
    }
}
