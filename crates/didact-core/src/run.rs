//! Run directories: what was asked, by which program, what came of it.
//!
//! ```text
//! runs/<name>/
//!   run.json          identity: recipe, settings, inputs, environment
//!   run.lock          held while a process works here
//!   stages/NN-name/   artifacts; stages/NN-name.work/ while a stage works
//!   metrics.jsonl timing.jsonl tensorboard/
//!   report.json       written last: its presence says that the run is finished
//! ```

use crate::fault::{Classify, Fault};
use crate::files::{self, FileError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// File of the run's identity.
pub const IDENTITY: &str = "run.json";
/// File of the run's result.
pub const REPORT: &str = "report.json";
const LOCK: &str = "run.lock";
const STAGES: &str = "stages";
/// Version of the layout of a run directory; raised when an older program could not read it.
pub const FORMAT: u32 = 1;

/// What makes a run this run and no other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// Version of the layout.
    pub format: u32,
    /// The recipe's name.
    pub recipe: String,
    /// Root seed.
    pub seed: u64,
    /// Every setting, defaults filled in.
    pub settings: Value,
    /// Label to content digest of everything from outside.
    pub inputs: BTreeMap<String, String>,
    /// By what, and on what.
    pub environment: Environment,
}

/// The program and machine of a run. Bits are promised only where `version`, `precision` and `cpu_level` are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Didact's version, with the commit where it is known.
    pub version: String,
    /// Precision of matrix products.
    pub precision: String,
    /// Kernel level.
    pub cpu_level: String,
    /// Threads; results do not depend on it.
    pub threads: usize,
    /// What training computes on.
    #[serde(default = "cpu")]
    pub device: String,
}

/// What runs were trained on before there was a choice.
fn cpu() -> String {
    "cpu".to_owned()
}

/// A run directory could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The directory holds a run of something else.
    #[error("`{}` holds another run; these differ: {}", path.display(), keys.join(", "))]
    Different {
        /// The directory.
        path: PathBuf,
        /// Key paths with both values.
        keys: Vec<String>,
    },
    /// Another process works there.
    #[error("`{}` is in use by process {pid}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds it, as far as is known.
        pid: String,
    },
    /// The directory is no run directory.
    #[error("`{}` is not a run directory: {reason}", path.display())]
    NotARun {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Classify for RunError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(error) => error.fault(),
            _ => Fault::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Different { .. } => {
                Some("choose another `--run-dir`, or start over there with `--fresh` (the old run is kept)".to_owned())
            }
            Self::Locked { .. } => Some("wait for it to end, or choose another `--run-dir`".to_owned()),
            Self::NotARun { .. } => Some("choose an empty or new directory with `--run-dir`".to_owned()),
            Self::File(error) => error.hint(),
        }
    }
}

/// A run directory that this process holds.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    identity: RunIdentity,
    /// Where the environment differs from the one that began the run: bits may differ from there on.
    pub environment_changes: Vec<String>,
    /// Released when the directory is closed, or by the operating system when the process dies.
    _lock: Option<std::fs::File>,
}

impl RunDir {
    /// Opens the run directory at `root`, creating it when it is not there. With `is_fresh` an older run there is first
    /// renamed to `<name>.old-N`.
    ///
    /// # Errors
    /// When another process works there, when it holds a run of another recipe, settings or inputs, or when a file
    /// operation fails.
    pub fn open(root: &Path, identity: RunIdentity, is_fresh: bool) -> Result<Self, RunError> {
        let path = root.join(IDENTITY);
        let is_foreign = |entry: &PathBuf| !entry.ends_with(LOCK) && !files::is_temporary(entry);
        if root.is_dir() && !path.exists() && files::list_dir(root)?.iter().any(is_foreign) {
            let reason = format!("it has files but no {IDENTITY}");
            return Err(RunError::NotARun { path: root.to_owned(), reason });
        }
        if is_fresh && root.is_dir() {
            // Held during the renaming, so that a directory in use is never moved away.
            let _lock = lock(root, true)?;
            files::rename(root, free_name(root))?;
        }
        files::create_dir_all(root)?;
        let lock = lock(root, true)?;
        sweep(root)?;
        let mut environment_changes = Vec::new();
        if path.exists() {
            let old = read_identity(root)?;
            let keys = differences(&old, &identity);
            if !keys.is_empty() {
                return Err(RunError::Different { path: root.to_owned(), keys });
            }
            compare("", &to_value(&old.environment), &to_value(&identity.environment), &mut environment_changes);
        } else {
            files::write_atomic(&path, &serde_json::to_vec_pretty(&identity).expect("an identity is plain data"))?;
        }
        Ok(Self { root: root.to_owned(), identity, environment_changes, _lock: Some(lock) })
    }

    /// Opens a run directory to look at it, without holding it.
    ///
    /// # Errors
    /// When it is no run directory or cannot be read.
    pub fn load_readonly(root: &Path) -> Result<Self, RunError> {
        let identity = read_identity(root)?;
        Ok(Self { root: root.to_owned(), identity, environment_changes: Vec::new(), _lock: None })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What run this is.
    pub fn identity(&self) -> &RunIdentity {
        &self.identity
    }

    /// Where the artifact of the stage at `index` is published.
    pub fn stage_dir(&self, index: usize, name: &str) -> PathBuf {
        self.root.join(STAGES).join(format!("{:02}-{name}", index + 1))
    }

    /// The result, once the run is finished.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn report(&self) -> Result<Option<Value>, RunError> {
        let path = self.root.join(REPORT);
        if !path.is_file() {
            return Ok(None);
        }
        serde_json::from_slice(&files::read(&path)?).map(Some).map_err(|error| RunError::NotARun {
            path: self.root.clone(),
            reason: format!("{REPORT} does not parse: {error}"),
        })
    }

    /// Writes the result; the run is then finished.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(&self, report: &Value) -> Result<(), RunError> {
        let json = serde_json::to_vec_pretty(report).expect("a JSON value can be written");
        Ok(files::write_atomic(self.root.join(REPORT), &json)?)
    }
}

/// Whether a process works in a run directory right now.
pub fn is_in_use(root: &Path) -> bool {
    // Opening the lock file would create it where there is none.
    root.join(LOCK).is_file() && matches!(lock(root, false), Err(RunError::Locked { .. }))
}

/// The run directories directly below `parent`, sorted by name.
///
/// # Errors
/// When `parent` cannot be listed.
pub fn list(parent: &Path) -> Result<Vec<RunDir>, RunError> {
    let entries = files::list_dir(parent)?;
    Ok(entries
        .iter()
        .filter(|path| path.join(IDENTITY).is_file())
        .filter_map(|path| RunDir::load_readonly(path).ok())
        .collect())
}

fn read_identity(root: &Path) -> Result<RunIdentity, RunError> {
    let path = root.join(IDENTITY);
    let not_a_run = |reason: String| RunError::NotARun { path: root.to_owned(), reason };
    if !path.is_file() {
        return Err(not_a_run(format!("it has no {IDENTITY}")));
    }
    let identity: RunIdentity = serde_json::from_slice(&files::read(&path)?)
        .map_err(|error| not_a_run(format!("{IDENTITY} does not parse: {error}")))?;
    if identity.format > FORMAT {
        let reason = format!("it has format {}, this program knows up to {FORMAT}", identity.format);
        return Err(not_a_run(reason));
    }
    Ok(identity)
}

/// Takes the lock of a run directory; `signs` leaves this process's number there.
fn lock(root: &Path, signs: bool) -> Result<std::fs::File, RunError> {
    use std::io::{Read, Seek, Write};
    let path = root.join(LOCK);
    let mut file = files::open_lock(&path)?;
    match fs4::FileExt::try_lock(&file) {
        Ok(()) if !signs => Ok(file),
        Ok(()) => {
            // For whoever is refused; losing it would only make their message vaguer.
            let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
            Ok(file)
        }
        Err(fs4::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let is_known = file.read_to_string(&mut pid).is_ok() && !pid.is_empty();
            let pid = if is_known { pid } else { "unknown".to_owned() };
            Err(RunError::Locked { path: root.to_owned(), pid })
        }
        Err(fs4::TryLockError::Error(source)) => Err(FileError::at("lock", &path)(source).into()),
    }
}

/// Removes what a killed process left under temporary names. Work directories are swept by their stages.
fn sweep(root: &Path) -> Result<(), FileError> {
    let mut entries = files::list_dir(root)?;
    if root.join(STAGES).is_dir() {
        entries.extend(files::list_dir(root.join(STAGES))?);
    }
    for entry in entries.iter().filter(|entry| files::is_temporary(entry)) {
        if entry.is_dir() { files::remove_dir_all(entry)? } else { files::remove_file(entry)? }
    }
    Ok(())
}

fn free_name(root: &Path) -> PathBuf {
    let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
    (1..=u32::MAX)
        .map(|n| root.with_file_name(format!("{name}.old-{n}")))
        .find(|path| !path.exists())
        .expect("there are fewer old runs than numbers")
}

fn to_value(data: &impl Serialize) -> Value {
    serde_json::to_value(data).expect("plain data")
}

/// Key paths in which two identities differ, the environment left out.
fn differences(old: &RunIdentity, new: &RunIdentity) -> Vec<String> {
    let mut keys = Vec::new();
    compare("recipe", &old.recipe.clone().into(), &new.recipe.clone().into(), &mut keys);
    compare("seed", &old.seed.into(), &new.seed.into(), &mut keys);
    compare("", &old.settings, &new.settings, &mut keys);
    compare("inputs", &to_value(&old.inputs), &to_value(&new.inputs), &mut keys);
    keys
}

fn compare(path: &str, old: &Value, new: &Value, keys: &mut Vec<String>) {
    if old == new {
        return;
    }
    let (Value::Object(a), Value::Object(b)) = (old, new) else {
        keys.push(format!("{path} ({old} there, {new} asked for)"));
        return;
    };
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        compare(&inner, a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null), keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn identity(settings: Value) -> RunIdentity {
        RunIdentity {
            format: FORMAT,
            recipe: "sft".to_owned(),
            seed: 1,
            settings,
            inputs: BTreeMap::from([("data".to_owned(), "ab".to_owned())]),
            environment: Environment {
                version: "1".to_owned(),
                precision: "f32".to_owned(),
                cpu_level: "avx2".to_owned(),
                threads: 2,
                device: "cpu".to_owned(),
            },
        }
    }

    fn settings() -> Value {
        json!({"train": {"learning_rate": 0.1, "epochs": 1}, "data": {"path": "a"}})
    }

    #[test]
    fn a_run_directory_is_reopened_by_the_same_run_and_finished_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("runs/x");
        let run = RunDir::open(&root, identity(settings()), false).expect("creates");
        assert_eq!(run.report().expect("reads"), None);
        run.finish(&json!({"status": "done"})).expect("writes");
        drop(run);
        let run = RunDir::open(&root, identity(settings()), false).expect("reopens");
        assert_eq!(run.report().expect("reads"), Some(json!({"status": "done"})));
        assert_eq!(run.environment_changes, [""; 0]);
        let seen = RunDir::load_readonly(&root).expect("can be looked at while held");
        assert_eq!(seen.identity(), &identity(settings()));
    }

    #[test]
    fn another_runs_directory_is_refused_naming_the_keys_that_differ() {
        let dir = tempfile::tempdir().expect("a directory");
        RunDir::open(dir.path(), identity(settings()), false).expect("creates");
        let mut other = identity(json!({"train": {"learning_rate": 0.2, "epochs": 1}, "data": {"path": "a", "n": 1}}));
        other.seed = 2;
        other.inputs.insert("data".to_owned(), "cd".to_owned());
        let error = RunDir::open(dir.path(), other, false).expect_err("differs");
        assert_eq!(error.fault(), Fault::Input);
        let RunError::Different { keys, .. } = &error else { panic!("{error}") };
        let expected = [
            "seed (1 there, 2 asked for)",
            "data.n (null there, 1 asked for)",
            "train.learning_rate (0.1 there, 0.2 asked for)",
            "inputs.data (\"ab\" there, \"cd\" asked for)",
        ];
        assert_eq!(keys, &expected);
        assert!(error.hint().expect("a hint").contains("--fresh"));
    }

    #[test]
    fn another_machine_may_go_on_and_is_told_what_differs() {
        let dir = tempfile::tempdir().expect("a directory");
        RunDir::open(dir.path(), identity(settings()), false).expect("creates");
        let mut other = identity(settings());
        other.environment.cpu_level = "avx512".to_owned();
        let run = RunDir::open(dir.path(), other, false).expect("opens");
        assert_eq!(run.environment_changes, ["cpu_level (\"avx2\" there, \"avx512\" asked for)"]);
    }

    #[test]
    fn a_directory_in_use_is_refused_naming_the_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = RunDir::open(dir.path(), identity(settings()), false).expect("creates");
        for is_fresh in [false, true] {
            let error = RunDir::open(dir.path(), identity(settings()), is_fresh).expect_err("is held");
            let expected = format!("`{}` is in use by process {}", dir.path().display(), std::process::id());
            assert_eq!(error.to_string(), expected);
        }
        assert!(is_in_use(dir.path()));
        drop(first);
        assert!(!is_in_use(dir.path()));
        RunDir::open(dir.path(), identity(settings()), false).expect("is free again");
    }

    #[test]
    fn a_fresh_start_keeps_the_old_run_under_another_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("x");
        for n in 0..3 {
            let run = RunDir::open(&root, identity(settings()), true).expect("opens");
            run.finish(&json!(n)).expect("writes");
        }
        let reports: Vec<_> = list(dir.path()).expect("lists").iter().map(|r| r.report().expect("reads")).collect();
        assert_eq!(reports, [Some(json!(2)), Some(json!(0)), Some(json!(1))]);
        assert!(dir.path().join("x.old-1").is_dir() && dir.path().join("x.old-2").is_dir());
    }

    #[test]
    fn a_directory_of_something_else_is_neither_used_nor_moved_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("mine");
        files::create_dir_all(&root).expect("creates");
        files::write_atomic(root.join("thesis.txt"), b"x").expect("writes");
        for is_fresh in [false, true] {
            let error = RunDir::open(&root, identity(settings()), is_fresh).expect_err("is not a run");
            assert!(error.to_string().contains("it has files but no run.json"), "{error}");
        }
        assert_eq!(files::list_dir(&root).expect("lists").len(), 1);
        assert!(RunDir::load_readonly(&root).is_err());
    }

    #[test]
    fn what_a_process_killed_at_the_start_left_does_not_bar_the_way() {
        let dir = tempfile::tempdir().expect("a directory");
        files::write_atomic(dir.path().join(".run.json.1-0.didact-tmp"), b"{").expect("writes");
        files::write_atomic(dir.path().join(LOCK), b"1").expect("writes");
        RunDir::open(dir.path(), identity(settings()), false).expect("opens");
        let names = files::list_dir(dir.path()).expect("lists");
        assert_eq!(names, [dir.path().join(IDENTITY), dir.path().join(LOCK)]);
    }
}
