//! What the model is asked: tasks, read once, each a single time, split into those to learn from and those to measure on.

use std::collections::BTreeSet;
use std::path::Path;

use didact_core::files;
use didact_core::generate::Prompt;
use didact_core::message::{Message, Role, Tool};
use didact_core::seed::Streams;
use didact_core::verdict::Item;
use didact_verify::verilog::{VerilogTask, verilog_eval};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::MethodError;
use crate::recipe::{PROMPT, TaskFormat, TasksTable};

/// One thing that is asked, again and again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its name, unique among the tasks.
    pub id: String,
    /// What the model is shown.
    pub prompt: Prompt,
    /// What the checker compares with.
    pub reference: Value,
    /// A right answer, where the data has one; it may be wrong in parts, as data is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

impl Task {
    /// As verifiers want it.
    pub fn item(&self) -> Item {
        Item { id: self.id.clone(), prompt: words(&self.prompt), reference: self.reference.clone() }
    }
}

/// The words of a prompt, for people and for telling prompts apart.
pub fn words(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Ids(ids) => ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
        Prompt::Messages { messages, .. } => {
            messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n")
        }
    }
}

/// All tasks of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskSet {
    /// To learn from.
    pub train: Vec<Task>,
    /// To measure on.
    pub held_out: Vec<Task>,
    /// What was found while reading.
    pub notes: TaskNotes,
}

/// What was found while reading tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskNotes {
    /// Rows read.
    pub rows: usize,
    /// Rows whose prompt was there before, but for white space: left out.
    pub duplicates: usize,
    /// Tasks to learn from.
    pub train: usize,
    /// Tasks to measure on.
    pub held_out: usize,
    /// Tasks to learn from with an answer of their own.
    pub with_answer: usize,
}

/// Fewest tasks to learn from, and to measure on.
const FEWEST: usize = 2;

/// Reads the tasks. `has_template`: whether the model knows how conversations are written.
///
/// # Errors
/// When a file or row cannot be used, a name is there twice, or tasks are too few to split.
pub fn read(table: &TasksTable, has_template: bool, streams: &Streams) -> Result<TaskSet, MethodError> {
    let path = table.path.as_deref().unwrap_or_default();
    let chat = table.chat.unwrap_or(has_template);
    let mut seen = Seen::default();
    // What is held out is read first: a prompt that stands on both sides is measured, and not learned.
    let mut held_out = match &table.held_out_path {
        Some(path) => seen.fresh(read_file(Path::new(path), table, chat)?)?,
        None => Vec::new(),
    };
    let mut train = seen.fresh(read_file(Path::new(path), table, chat)?)?;
    if table.held_out_path.is_none() {
        let mut order: Vec<usize> = (0..train.len()).collect();
        order.shuffle(&mut streams.rng("held-out tasks", &[]));
        let count = (train.len() as f64 * table.held_out).round().max(FEWEST as f64) as usize;
        let chosen: BTreeSet<usize> = order.into_iter().take(count.min(table.held_out_tasks)).collect();
        let mut index = 0;
        let (kept, out) = train.into_iter().partition(|_| {
            index += 1;
            !chosen.contains(&(index - 1))
        });
        (train, held_out) = (kept, out);
    } else {
        held_out.truncate(table.held_out_tasks);
    }
    if train.len() < FEWEST || held_out.len() < FEWEST {
        return Err(MethodError::TooFewTasks { path: path.to_owned(), train: train.len(), held_out: held_out.len() });
    }
    let notes = TaskNotes {
        rows: seen.rows,
        duplicates: seen.duplicates,
        train: train.len(),
        held_out: held_out.len(),
        with_answer: train.iter().filter(|task| task.answer.is_some()).count(),
    };
    Ok(TaskSet { train, held_out, notes })
}

/// Prompts and names that were there before.
#[derive(Default)]
struct Seen {
    prompts: BTreeSet<String>,
    names: BTreeSet<String>,
    rows: usize,
    duplicates: usize,
}

impl Seen {
    fn fresh(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<Task>, MethodError> {
        let mut fresh = Vec::new();
        for (place, task) in tasks {
            self.rows += 1;
            let squeezed = words(&task.prompt).split_whitespace().collect::<Vec<_>>().join(" ");
            if !self.prompts.insert(squeezed) {
                self.duplicates += 1;
                continue;
            }
            if !self.names.insert(task.id.clone()) {
                let message = format!("the name `{}` is another task's already", task.id);
                return Err(MethodError::Task { place, message });
            }
            fresh.push(task);
        }
        Ok(fresh)
    }
}

/// Tasks with the place of each, for messages.
fn read_file(path: &Path, table: &TasksTable, chat: bool) -> Result<Vec<(String, Task)>, MethodError> {
    let place = |row: usize| format!("`{}`, row {row}", path.display());
    let asked = |words: &str| {
        let text = table.instruction.replace(PROMPT, words);
        if chat {
            Prompt::Messages { messages: vec![Message::new(Role::User, text)], tools: Vec::new() }
        } else {
            Prompt::Text(text)
        }
    };
    if table.format == TaskFormat::VerilogEval {
        let items = verilog_eval(path)?;
        return Ok((1..)
            .zip(items)
            .map(|(row, item)| {
                let task = VerilogTask::from_reference(&item.reference);
                let answer = task.ok().and_then(|task| task.solution().ok());
                let Item { id, prompt, reference } = item;
                (place(row), Task { id, prompt: asked(&prompt), reference, answer })
            })
            .collect());
    }
    let text = files::read_to_string(path)?;
    let mut tasks = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row = index + 1;
        let task = parse(line, row, &asked).map_err(|message| MethodError::Task { place: place(row), message })?;
        tasks.push((place(row), task));
    }
    Ok(tasks)
}

/// A row; its message says what is wrong with it.
fn parse(line: &str, row: usize, asked: &dyn Fn(&str) -> Prompt) -> Result<Task, String> {
    let mut fields: Map<String, Value> = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let mut text = |names: [&str; 2]| -> Result<Option<String>, String> {
        for name in names {
            match fields.remove(name) {
                None | Some(Value::Null) => {}
                Some(Value::String(text)) => return Ok(Some(text)),
                Some(Value::Number(number)) => return Ok(Some(number.to_string())),
                Some(other) => return Err(format!("`{name}` should be a text; it is {other}")),
            }
        }
        Ok(None)
    };
    let id = text(["id", "task_id"])?.unwrap_or_else(|| format!("row-{row}"));
    let mut answer = text(["answer", "completion"])?;
    let messages = match fields.remove("messages") {
        None => match fields.remove("prompt") {
            Some(Value::String(words)) => Err(words),
            Some(list @ Value::Array(_)) => Ok(list),
            _ => return Err("there is neither a `prompt` nor `messages`".to_owned()),
        },
        Some(list) => Ok(list),
    };
    let prompt = match messages {
        Err(words) if words.trim().is_empty() => return Err("`prompt` is empty".to_owned()),
        Err(words) => asked(&words),
        Ok(list) => {
            let mut messages: Vec<Message> =
                serde_json::from_value(list).map_err(|error| format!("`messages`: {error}"))?;
            if messages.last().is_some_and(|last| last.role == Role::Assistant)
                && let Some(last) = messages.pop()
            {
                answer.get_or_insert(last.content);
            }
            if messages.is_empty() {
                return Err("`messages` has no turn before the answer".to_owned());
            }
            let tools: Vec<Tool> = match fields.remove("tools") {
                None | Some(Value::Null) => Vec::new(),
                Some(tools) => serde_json::from_value(tools).map_err(|error| format!("`tools`: {error}"))?,
            };
            Prompt::Messages { messages, tools }
        }
    };
    let reference = match (fields.remove("reference"), &answer) {
        (Some(reference), _) => reference,
        (None, Some(answer)) => Value::String(answer.clone()),
        (None, None) => return Err("there is neither a `reference` nor an `answer` to judge by".to_owned()),
    };
    Ok(Task { id, prompt, reference, answer })
}

/// The numbers of the tasks that round `round` (from 1) asks: `count` of `all`, dealt so that every task is asked once
/// before any is asked again; all of them if `count` is 0.
pub fn dealt(all: usize, count: usize, round: u64, streams: &Streams) -> Vec<usize> {
    let count = if count == 0 { all } else { count.min(all) };
    let first = (round.saturating_sub(1)) as usize * count;
    let mut tasks = BTreeSet::new();
    let mut at = first;
    let mut deck = (usize::MAX, Vec::new());
    // A deck's end and the next one's beginning may hold the same task: it is passed over.
    while tasks.len() < count && all > 0 {
        if deck.0 != at / all {
            let mut cards: Vec<usize> = (0..all).collect();
            cards.shuffle(&mut streams.rng("deck", &[(at / all) as u64]));
            deck = (at / all, cards);
        }
        tasks.insert(deck.1[at % all]);
        at += 1;
    }
    tasks.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use didact_core::seed::Streams;

    fn table(dir: &tempfile::TempDir, rows: &[&str]) -> TasksTable {
        let path = dir.path().join("tasks.jsonl");
        files::write_atomic(&path, rows.join("\n").as_bytes()).expect("a fixture");
        TasksTable { path: Some(path.display().to_string()), ..TasksTable::default() }
    }

    #[test]
    fn rows_become_tasks_and_repeated_prompts_are_left_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let rows = [
            r#"{"id": "a", "prompt": "1 + 1", "reference": 2}"#,
            r#"{"prompt": "1  +  1", "reference": 2}"#,
            r#"{"task_id": "b", "prompt": "2 + 2", "answer": "4"}"#,
            r#"{"messages": [{"role": "user", "content": "3 + 3"}, {"role": "assistant", "content": "6"}]}"#,
            r#"{"prompt": "4 + 4", "answer": "8"}"#,
        ];
        let found = read(&table(&dir, &rows), true, &Streams::new(1)).expect("tasks");
        assert_eq!(
            found.notes,
            TaskNotes { rows: 5, duplicates: 1, train: 2, held_out: 2, with_answer: found.notes.with_answer }
        );
        let all: Vec<&Task> = found.train.iter().chain(&found.held_out).collect();
        let of = |id: &str| all.iter().find(|task| task.id == id).expect("is there");
        assert_eq!((of("b").reference.clone(), of("b").answer.as_deref()), (Value::from("4"), Some("4")));
        assert_eq!(of("row-4").answer.as_deref(), Some("6"));
        assert!(matches!(&of("a").prompt, Prompt::Messages { messages, .. } if messages[0].content == "1 + 1"));
        let plain = read(&table(&dir, &rows), false, &Streams::new(1)).expect("tasks");
        assert!(plain.train.iter().any(|task| matches!(&task.prompt, Prompt::Text(_))));
    }

    #[test]
    fn what_cannot_be_used_is_named_by_its_row() {
        let dir = tempfile::tempdir().expect("a folder");
        let refused = |rows: &[&str]| read(&table(&dir, rows), false, &Streams::new(1)).expect_err("wrong").to_string();
        let good = r#"{"id": "x", "prompt": "1", "reference": 2}"#;
        assert!(refused(&[good, "{"]).contains("tasks.jsonl`, row 2"));
        assert!(refused(&[r#"{"prompt": "1"}"#]).contains("neither a `reference` nor an `answer`"));
        assert!(refused(&[r#"{"answer": "1"}"#]).contains("neither a `prompt` nor `messages`"));
        assert!(refused(&[good, r#"{"id": "x", "prompt": "2", "reference": 2}"#]).contains("another task's"));
        assert!(refused(&[good]).contains("too few"));
    }

    #[test]
    fn every_task_is_asked_once_before_any_comes_again() {
        let streams = Streams::new(3);
        let rounds: Vec<Vec<usize>> = (1..=5).map(|round| dealt(10, 4, round, &streams)).collect();
        let first: BTreeSet<usize> = rounds[..2].iter().flatten().copied().collect();
        assert_eq!(first.len(), 8);
        assert!(rounds.iter().all(|tasks| tasks.len() == 4));
        assert_eq!(dealt(10, 0, 2, &streams), (0..10).collect::<Vec<_>>());
        assert_eq!(dealt(3, 9, 1, &streams), [0, 1, 2]);
    }
}
