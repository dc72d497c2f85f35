//! Reading the documents of a task's splits.

use super::{Document, Task, TaskFile};
use crate::error::EvalError;
use didact_data::reader::{self, SourceConfig};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// The folder of data that ready tasks read.
pub(crate) const DATA: &str = "DIDACT_DATA";
/// Most bytes of a file within an archive.
const MAX_MEMBER: u64 = 1 << 30;

impl Task {
    /// Reads a task file and its data.
    ///
    /// # Errors
    /// When either cannot be read or understood.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        Self::load(TaskFile::read(path)?, path.parent().unwrap_or(Path::new(".")))
    }

    /// Reads a task's data; relative paths begin at `base`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn load(file: TaskFile, base: &Path) -> Result<Self, EvalError> {
        let wrong = |message: String| EvalError::Task { task: file.task.clone(), message };
        let split =
            file.asked_split().ok_or_else(|| wrong("neither `test_split` nor `validation_split` is named".into()))?;
        let documents = read(&file, split, base)?;
        let examples = match file.example_split() {
            Some(own) if own == split => documents.clone(),
            Some(other) => read(&file, other, base)?,
            None => Vec::new(),
        };
        let examples = match &file.fewshot_config.fewshot_indices {
            None => examples,
            Some(indices) => {
                let at = |&i: &usize| {
                    let missing = || wrong(format!("`fewshot_indices`: {i} of {} documents", examples.len()));
                    examples.get(i).cloned().ok_or_else(missing)
                };
                indices.iter().map(at).collect::<Result<_, _>>()?
            }
        };
        Self::new(file, documents, examples)
    }
}

fn read(file: &TaskFile, split: &str, base: &Path) -> Result<Vec<Document>, EvalError> {
    let wrong = |message: String| EvalError::Task { task: file.task.clone(), message };
    let files = file.files();
    let paths = files.get(split).ok_or_else(|| match (&file.dataset_path, files.is_empty()) {
        (Some(name), true) if name != "json" && name != "parquet" => wrong(format!(
            "`dataset_path` is `{name}` of the Hugging Face Hub: save its rows and name them in `data_files`"
        )),
        _ => wrong(format!("`data_files` has no split `{split}`")),
    })?;
    let mut documents = Vec::new();
    for path in paths.clone().into_vec() {
        let path = expanded(&path, file)?;
        if let Some((member, archive)) = path.strip_prefix("zip://").and_then(|rest| rest.split_once("::")) {
            documents.extend(member_rows(file, &base.join(archive), member)?);
            continue;
        }
        let path = base.join(&path);
        let is_ready_data = std::env::var_os(DATA).is_some_and(|data| !data.is_empty() && path.starts_with(data));
        if is_ready_data && !path.exists() {
            let reason = "where it is not".to_owned();
            return Err(EvalError::NoData { task: file.task.clone(), file: path.display().to_string(), reason });
        }
        let source = SourceConfig::new(path.to_string_lossy());
        let rows = reader::raw_rows(&source)
            .map_err(|source| EvalError::Data { task: file.task.clone(), source: Box::new(source) })?;
        for row in rows {
            documents.push(
                row.map_err(|source| EvalError::Row { task: file.task.clone(), source: Box::new(source) })?.object,
            );
        }
    }
    Ok(documents)
}

/// A path with the environment's variables filled in.
fn expanded(path: &str, file: &TaskFile) -> Result<String, EvalError> {
    let mut out = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else { break };
        out.push_str(before);
        match std::env::var(name) {
            Ok(value) => out.push_str(&value),
            Err(_) if name == DATA => {
                let reason = "which is not set".to_owned();
                let rest = after.trim_start_matches('/').to_owned();
                return Err(EvalError::NoData { task: file.task.clone(), file: rest, reason });
            }
            Err(_) => {
                let message = format!("`{path}`: the environment has no `{name}`");
                return Err(EvalError::Task { task: file.task.clone(), message });
            }
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// The JSON lines of a file within an archive.
fn member_rows(file: &TaskFile, archive: &Path, member: &str) -> Result<Vec<Document>, EvalError> {
    let place = format!("`{member}` in `{}`", archive.display());
    let wrong = |message: String| EvalError::Task { task: file.task.clone(), message };
    let opened = std::fs::File::open(archive).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            let reason = "where it is not".to_owned();
            EvalError::NoData { task: file.task.clone(), file: archive.display().to_string(), reason }
        } else {
            wrong(format!("{place}: {error}"))
        }
    })?;
    let mut archive = zip::ZipArchive::new(opened).map_err(|error| wrong(format!("{place}: {error}")))?;
    let member = archive.by_name(member).map_err(|error| wrong(format!("{place}: {error}")))?;
    let mut text = String::new();
    let read = member.take(MAX_MEMBER).read_to_string(&mut text).map_err(|error| wrong(format!("{place}: {error}")))?;
    if read as u64 == MAX_MEMBER {
        return Err(wrong(format!("{place}: more than {MAX_MEMBER} bytes; unpack it")));
    }
    let row = |(number, line): (usize, &str)| match serde_json::from_str(line) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong(format!("{place}, line {}: not an object", number + 1))),
        Err(error) => Err(wrong(format!("{place}, line {}: {error}", number + 1))),
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use didact_core::files;
    use std::io::Write;

    fn task(data: &str) -> TaskFile {
        let toml = format!(
            "task = \"t\"\ntest_split = \"test\"\ndoc_to_text = \"q\"\ndoc_to_target = \"a\"\ndata_files = {{ test = '{data}' }}"
        );
        TaskFile::from_toml(&toml).expect("a task")
    }

    #[test]
    fn rows_come_from_files_and_from_archives() {
        let directory = tempfile::tempdir().expect("a directory");
        let rows = "{\"q\": \"1+1\", \"a\": 2}\n\n{\"q\": \"2+2\", \"a\": 4}\n";
        files::write_atomic(directory.path().join("sums.jsonl"), rows.as_bytes()).expect("it is written");
        let mut archive = Vec::new();
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(&mut archive));
        writer.start_file("data/sums.jsonl", zip::write::SimpleFileOptions::default()).expect("it starts");
        writer.write_all(rows.as_bytes()).expect("it is written");
        writer.finish().expect("it closes");
        files::write_atomic(directory.path().join("sums.zip"), &archive).expect("it is written");
        let plain = Task::load(task("sums.jsonl"), directory.path()).expect("it loads");
        let packed = Task::load(task("zip://data/sums.jsonl::sums.zip"), directory.path()).expect("it loads");
        assert_eq!(plain.documents.len(), 2);
        assert_eq!(plain.documents, packed.documents);
        assert_eq!(plain.examples, plain.documents, "examples come from the only split there is");
    }

    #[test]
    fn a_bad_row_and_a_missing_file_are_named() {
        let directory = tempfile::tempdir().expect("a directory");
        files::write_atomic(directory.path().join("bad.jsonl"), b"{\"q\": \"x\", \"a\": 1}\n{\"q\": ")
            .expect("it is written");
        let message = |data: &str| Task::load(task(data), directory.path()).expect_err("it fails").to_string();
        assert!(message("bad.jsonl").contains("row 2"), "{}", message("bad.jsonl"));
        assert!(message("none.jsonl").contains("none.jsonl"), "{}", message("none.jsonl"));
        assert!(message("zip://x::none.zip").contains("none.zip"));
        let unset = message("${DIDACT_NO_SUCH_VARIABLE}/x");
        assert!(unset.contains("DIDACT_NO_SUCH_VARIABLE"), "{unset}");
    }
}
