//! Didact's cache of pulled models, and the manifest that describes each.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use didact_core::files;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::PullError;
use super::{OnProgress, Progress};

/// The manifest's file name, in the directory of a pulled model.
pub(super) const MANIFEST: &str = ".didact-pull.json";
/// Raised when the manifest's meaning changes; others are ignored and pulled anew.
const FORMAT: u32 = 1;

/// Where a model was pulled from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    /// The Hugging Face hub.
    Hub {
        /// `owner/name`.
        repo: String,
        /// The commit.
        commit: String,
    },
    /// The Python package registry.
    Registry {
        /// Package and version, as pip writes them.
        package: String,
    },
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hub { repo, commit } => write!(f, "hub {repo}@{commit}"),
            Self::Registry { package } => write!(f, "registry {package}"),
        }
    }
}

/// One file of a pulled model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PulledFile {
    /// Path below the model's directory.
    pub(crate) name: String,
    /// Size.
    pub(crate) bytes: u64,
    /// Hash of the content, in lower-case hex.
    pub(crate) sha256: String,
    /// Time of last change when it was hashed, in nanoseconds since 1970: while it stands, so does the hash.
    pub(crate) modified: u64,
}

/// What a pulled model consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    /// The name that was asked for.
    pub(crate) name: String,
    /// Where it is from.
    pub(crate) source: Source,
    /// The directory of the files, where it is not the manifest's own.
    pub(crate) directory: Option<PathBuf>,
    /// The files, sorted by name.
    pub(crate) files: Vec<PulledFile>,
}

impl Manifest {
    pub(super) fn new(name: &str, source: Source, directory: Option<PathBuf>, mut files: Vec<PulledFile>) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Self { format: FORMAT, name: name.to_owned(), source, directory, files }
    }

    /// The manifest in `dir`, if there is one that is understood.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(dir.join(MANIFEST)).ok()?;
        serde_json::from_str(&text).ok().filter(|m: &Self| m.format == FORMAT)
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), PullError> {
        let text = serde_json::to_string_pretty(self).expect("a manifest can be written as JSON");
        Ok(files::write_atomic(dir.join(MANIFEST), text.as_bytes())?)
    }

    /// Where the files are, for a manifest that was read from `dir`.
    pub(super) fn files_in<'a>(&'a self, dir: &'a Path) -> &'a Path {
        self.directory.as_deref().unwrap_or(dir)
    }

    /// Whether every file is there as it was: same size and time, or else same hash.
    pub(super) fn holds(&self, dir: &Path) -> bool {
        let dir = self.files_in(dir);
        !self.files.is_empty()
            && self.files.iter().all(|f| {
                let path = dir.join(&f.name);
                let Ok(found) = std::fs::metadata(&path) else { return false };
                found.len() == f.bytes
                    && (modified(&found) == f.modified || sha256_of(&path, &|_| ()).is_ok_and(|h| h == f.sha256))
            })
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// The hash of the weights file if there is just one; otherwise the hash of all files' hashes and names, as
    /// `sha256sum * | sha256sum` computes it.
    pub(crate) fn sha256(&self) -> String {
        let is_weights = |f: &&PulledFile| f.name.ends_with(".safetensors") || is_gguf(&f.name);
        let mut weights = self.files.iter().filter(is_weights);
        if let (Some(only), None) = (weights.next(), weights.next()) {
            return only.sha256.clone();
        }
        let mut hasher = Sha256::new();
        for f in &self.files {
            hasher.update(format!("{}  {}\n", f.sha256, f.name));
        }
        hex(&hasher.finalize())
    }

    /// What to give to `--model`: the GGUF file if that is all there is, else the directory.
    pub(super) fn model_path(&self, dir: &Path) -> PathBuf {
        let dir = self.files_in(dir);
        let mut gguf = self.files.iter().filter(|f| is_gguf(&f.name));
        match (gguf.next(), gguf.next()) {
            (Some(only), None) if !self.files.iter().any(|f| f.name == "config.json") => dir.join(&only.name),
            _ => dir.to_owned(),
        }
    }
}

/// Whether that is a GGUF file by its name.
pub(super) fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == "gguf")
}

/// `$DIDACT_CACHE`, else `$XDG_CACHE_HOME/didact`, else `~/.cache/didact`.
pub(crate) fn cache_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("DIDACT_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("didact")))
        .or_else(|| Some(set("HOME")?.join(".cache/didact")))
        .unwrap_or_else(|| std::env::temp_dir().join("didact"))
}

/// The cache's directory for a model.
pub(super) fn model_dir(name: &str) -> PathBuf {
    cache_dir().join("models").join(name.to_lowercase().replace('/', "--"))
}

pub(super) fn modified(metadata: &std::fs::Metadata) -> u64 {
    let time = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    time.map_or(0, |d| d.as_nanos() as u64)
}

/// Describes a file whose hash is known.
pub(super) fn describe(dir: &Path, name: &str, sha256: String) -> Result<PulledFile, PullError> {
    let path = dir.join(name);
    let metadata = std::fs::metadata(&path).map_err(files::FileError::at("read", &path))?;
    Ok(PulledFile { name: name.to_owned(), bytes: metadata.len(), sha256, modified: modified(&metadata) })
}

/// Hashes a file, telling how many bytes are done.
pub(super) fn sha256_of(path: &Path, done: &dyn Fn(u64)) -> Result<String, PullError> {
    let mut hasher = Sha256::new();
    read_chunks(path, &mut |chunk, at| {
        hasher.update(chunk);
        done(at);
    })?;
    Ok(hex(&hasher.finalize()))
}

/// Reads a file piece by piece; `each` gets the piece and the bytes read so far, this piece included.
pub(super) fn read_chunks(path: &Path, each: &mut dyn FnMut(&[u8], u64)) -> Result<(), PullError> {
    use std::io::Read;
    let mut file = std::fs::File::open(path).map_err(files::FileError::at("open", path))?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        match file.read(&mut buffer).map_err(files::FileError::at("read", path))? {
            0 => return Ok(()),
            n => {
                at += n as u64;
                each(&buffer[..n], at);
            }
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// Hashes every file of `names` below `dir`.
pub(super) fn describe_all(dir: &Path, names: &[String], on: OnProgress<'_>) -> Result<Vec<PulledFile>, PullError> {
    names
        .iter()
        .map(|name| {
            let path = dir.join(name);
            let total = std::fs::metadata(&path).ok().map(|m| m.len());
            let sha256 = sha256_of(&path, &|done| on(Progress::Bytes { file: name, done, total }))?;
            describe(dir, name, sha256)
        })
        .collect()
}

/// Held while a model is being pulled, so that a second process waits instead of doing the work again.
#[derive(Debug)]
pub(super) struct Lock {
    _file: std::fs::File,
}

impl Lock {
    /// Waits for other processes that pull the same model.
    pub(super) fn take(dir: &Path, on: OnProgress<'_>) -> Result<Self, PullError> {
        let parent = dir.parent().unwrap_or(Path::new("."));
        files::create_dir_all(parent)?;
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let path = parent.join(format!(".{name}.lock"));
        let file = files::open_lock(&path)?;
        if file.try_lock().is_err() {
            on(Progress::Message("waiting for another process that pulls the same model"));
            file.lock().map_err(files::FileError::at("lock", &path))?;
        }
        Ok(Self { _file: file })
    }
}
