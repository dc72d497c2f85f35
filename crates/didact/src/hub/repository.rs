//! The Hugging Face hub as a source.
//!
//! The `hf-hub` crate knows the API, the token, the address and the layout of the cache that it shares with the Python
//! libraries. It fetches a file in one go, whatever the answer's status, and compares nothing with its hash; so the
//! bytes are fetched here, from where an earlier attempt stopped, checked, and put where `hf-hub` looks for them.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use didact_core::files;
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClient, HFClientSync, HFRepositorySync};
use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use reqwest::header::{HeaderMap, LOCATION, RANGE};
use reqwest::redirect::Policy;

use super::cache::{self, PulledFile};
use super::error::{PullError, first_line};
use super::{OnProgress, Progress};

/// A connection that gives nothing for so long is taken for dead.
const STALL: Duration = Duration::from_mins(1);
/// Attempts in a row that bring nothing new before a download is given up.
const ATTEMPTS: u32 = 5;
/// Relative redirects (a renamed repository) that are followed.
const REDIRECTS: usize = 5;

/// The hub, with the settings of the environment: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`.
pub(super) struct Hub {
    client: HFClientSync,
    endpoint: String,
    cache: PathBuf,
    /// Follows redirects, for content.
    follow: Client,
    /// Does not, for what only the hub's own answer says.
    stay: Client,
    token: Option<String>,
}

/// A model's files in the hub's cache.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// The commit.
    pub(super) commit: String,
    /// The directory.
    pub(super) directory: PathBuf,
    /// The files in it.
    pub(super) files: Vec<PulledFile>,
}

/// Whether `HF_HUB_OFFLINE` is set, as the Python library reads it.
pub(super) fn is_offline() -> bool {
    std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// What the hub's own answer says about a file.
struct Head {
    /// sha256 of large files, git's hash of small ones.
    etag: String,
    size: u64,
}

impl Hub {
    /// A client that waits so long for a connection, and tries so often.
    pub(super) fn new(connect: Duration, retries: usize) -> Result<Self, PullError> {
        let unusable = |problem: String| PullError::Answer {
            endpoint: std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "the hub".into()),
            what: "HF_ENDPOINT".into(),
            problem,
        };
        let http = reqwest::Client::builder()
            .connect_timeout(connect)
            .read_timeout(STALL)
            .build()
            .map_err(|e| unusable(e.to_string()))?;
        let client = HFClient::builder()
            .client(http)
            .retry_max_attempts(retries)
            .build()
            .map_err(|e| unusable(e.to_string()))?;
        let (endpoint, cache) = (client.endpoint().to_owned(), client.cache_dir().to_owned());
        let blocking = |policy: Policy| {
            let client = Client::builder().connect_timeout(connect).timeout(None).redirect(policy);
            client.build().map_err(|e| unusable(e.to_string()))
        };
        Ok(Self {
            endpoint,
            cache,
            client: HFClientSync::from_inner(client).map_err(|e| unusable(e.to_string()))?,
            follow: blocking(Policy::limited(10))?,
            stay: blocking(Policy::none())?,
            token: token(),
        })
    }

    /// The cache shared with the Python libraries.
    pub(super) fn cache(&self) -> &Path {
        &self.cache
    }

    fn repository(&self, repo: &str) -> HFRepositorySync<RepoTypeModel> {
        let (owner, name) = hf_hub::split_id(repo);
        self.client.model(owner, name)
    }

    /// What the cache holds of a repository, without asking the hub.
    pub(super) fn cached(&self, repo: &str, revision: &str) -> Option<PathBuf> {
        let snapshot = self.repository(repo).snapshot_download().revision(revision).local_files_only(true).send();
        snapshot.ok().filter(|dir| dir.exists())
    }

    /// Brings a repository's model files into the cache; `only` names one file instead.
    pub(super) fn fetch(
        &self,
        repo: &str,
        revision: &str,
        only: Option<&str>,
        on: OnProgress<'_>,
    ) -> Result<Snapshot, PullError> {
        let repository = self.repository(repo);
        let hub_error = |what: &str| {
            let what = what.to_owned();
            move |e| PullError::from_hub(e, &self.endpoint, repo, &what)
        };
        let info = repository.info().revision(revision).send().map_err(|e| match e {
            // The hub does not say which of the two it is that is not there.
            hf_hub::HFError::RevisionNotFound { .. } | hf_hub::HFError::RepoNotFound { .. } => PullError::NotFound {
                endpoint: self.endpoint.clone(),
                what: format!("repository `{repo}` at revision `{revision}`"),
            },
            other => PullError::from_hub(other, &self.endpoint, repo, revision),
        })?;
        let answer = |problem: &str| PullError::Answer {
            endpoint: self.endpoint.clone(),
            what: repo.to_owned(),
            problem: problem.to_owned(),
        };
        let commit = info.sha.ok_or_else(|| answer("it names no commit"))?;
        let listed: Vec<String> =
            info.siblings.unwrap_or_default().into_iter().map(|s| s.rfilename).filter(|n| is_plain(n)).collect();
        let wanted = match only {
            Some(file) if listed.iter().any(|n| n == file) => vec![file.to_owned()],
            Some(file) => {
                let what = format!("file `{file}` in `{repo}`");
                return Err(PullError::NotFound { endpoint: self.endpoint.clone(), what });
            }
            None => choose(repo, &listed)?,
        };
        on(Progress::Message(&format!("{} files of {repo}@{} from {}", wanted.len(), &commit, self.endpoint)));
        let mut out = Vec::with_capacity(wanted.len());
        let mut directory = None;
        for name in &wanted {
            let head = self.head(repo, &commit, name)?;
            let blob = self.cache.join(folder(repo)).join("blobs").join(&head.etag);
            let is_there = match blob.exists().then(|| check(&blob, name, &head, on)) {
                None => false,
                Some(Ok(())) => true,
                Some(Err(error @ PullError::Hash { .. })) => {
                    on(Progress::Message(&format!("in the cache, {error}; fetching it again")));
                    false
                }
                Some(Err(error)) => return Err(error),
            };
            if !is_there {
                self.download(repo, &commit, name, &head, &blob, on)?;
            }
            // Finds the content in place and makes the snapshot's link to it.
            let path = repository
                .download_file()
                .filename(name.as_str())
                .revision(commit.as_str())
                .send()
                .map_err(hub_error(name))?;
            let depth = name.split('/').count();
            let root = path.ancestors().nth(depth).ok_or_else(|| answer("its cache has an unknown layout"))?.to_owned();
            let sha256 = if is_sha256(&head.etag) { head.etag } else { cache::sha256_of(&path, &|_| ())? };
            out.push(cache::describe(&root, name, sha256)?);
            directory = Some(root);
        }
        let directory = directory.ok_or_else(|| answer("it lists no files"))?;
        if revision != commit {
            let reference = self.cache.join(folder(repo)).join("refs").join(revision);
            if let Some(parent) = reference.parent() {
                files::create_dir_all(parent)?;
            }
            files::write_atomic(&reference, commit.as_bytes())?;
        }
        Ok(Snapshot { commit, directory, files: out })
    }

    fn url(&self, repo: &str, commit: &str, file: &str) -> Result<reqwest::Url, PullError> {
        let text = format!("{}/{repo}/resolve/{commit}", self.endpoint);
        let broken = |problem: String| PullError::Answer {
            endpoint: self.endpoint.clone(),
            what: "HF_ENDPOINT".into(),
            problem,
        };
        let mut url = reqwest::Url::parse(&text).map_err(|e| broken(e.to_string()))?;
        url.path_segments_mut().map_err(|()| broken("not an http address".into()))?.extend(file.split('/'));
        Ok(url)
    }

    fn head(&self, repo: &str, commit: &str, file: &str) -> Result<Head, PullError> {
        let mut url = self.url(repo, commit, file)?;
        for _ in 0..REDIRECTS {
            let mut request = self.stay.head(url.clone());
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            let response = request.send().map_err(|e| self.unreachable(e))?;
            let status = response.status();
            let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            let location = header(LOCATION.as_str());
            if status.is_redirection()
                && header("x-linked-etag").is_none()
                && let Some(next) = location.filter(|l| l.starts_with('/') && !l.starts_with("//"))
                && let Ok(next) = url.join(next)
            {
                url = next;
                continue;
            }
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refused(repo, file, response));
            }
            let missing = |problem: &str| PullError::Answer {
                endpoint: self.endpoint.clone(),
                what: file.to_owned(),
                problem: problem.to_owned(),
            };
            let etag = header("x-linked-etag").or_else(|| header("etag"));
            let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase());
            let etag = etag.filter(|e| is_hash(e)).ok_or_else(|| missing("it has no hash in its headers"))?;
            let size = header("x-linked-size").or_else(|| header("content-length")).and_then(|v| v.parse().ok());
            return Ok(Head { etag, size: size.ok_or_else(|| missing("it has no size in its headers"))? });
        }
        Err(PullError::Answer {
            endpoint: self.endpoint.clone(),
            what: file.to_owned(),
            problem: format!("more than {REDIRECTS} redirects"),
        })
    }

    /// Fetches a file's content to `blob`, continuing where an earlier attempt stopped.
    fn download(
        &self,
        repo: &str,
        commit: &str,
        name: &str,
        head: &Head,
        blob: &Path,
        on: OnProgress<'_>,
    ) -> Result<(), PullError> {
        if let Some(parent) = blob.parent() {
            files::create_dir_all(parent)?;
        }
        let partial = blob.with_extension("didact-partial");
        let url = self.url(repo, commit, name)?;
        let mut file = files::PartialFile::open(&partial)?;
        if file.len() > head.size {
            file.restart()?;
        }
        let mut fruitless = 0;
        while file.len() < head.size {
            let before = file.len();
            let cause = match self.stream(url.clone(), repo, name, head.size, &mut file, on) {
                Ok(()) => "the connection was closed early".into(),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(cause)) => cause,
            };
            if file.len() >= head.size {
                break;
            }
            fruitless = if file.len() > before { 0 } else { fruitless + 1 };
            if fruitless >= ATTEMPTS {
                return Err(PullError::Cut {
                    file: name.to_owned(),
                    received: file.len(),
                    expected: head.size,
                    attempts: ATTEMPTS,
                    source: cause,
                });
            }
        }
        file.sync()?;
        check(&partial, name, head, on)?;
        files::rename(&partial, blob)?;
        Ok(())
    }

    /// One request, from the first byte that is missing.
    fn stream(
        &self,
        url: reqwest::Url,
        repo: &str,
        name: &str,
        size: u64,
        file: &mut files::PartialFile,
        on: OnProgress<'_>,
    ) -> Result<(), Attempt> {
        let mut headers = HeaderMap::new();
        if file.len() > 0 {
            let range = format!("bytes={}-", file.len());
            headers.insert(RANGE, range.parse().expect("digits make a header"));
        }
        let mut request = self.follow.get(url).headers(headers);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let mut response = request.send().map_err(|e| Attempt::Again(Box::new(e)))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            // The server takes no ranges and sends everything again.
            StatusCode::OK => file.restart().map_err(|e| Attempt::Final(e.into()))?,
            s if s.is_server_error() || s == StatusCode::TOO_MANY_REQUESTS || s == StatusCode::REQUEST_TIMEOUT => {
                return Err(Attempt::Again(format!("HTTP {s}").into()));
            }
            _ => return Err(Attempt::Final(self.refused(repo, name, response))),
        }
        let mut buffer = vec![0; 1 << 18];
        while file.len() < size {
            match response.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    file.append(&buffer[..n]).map_err(|e| Attempt::Final(e.into()))?;
                    on(Progress::Bytes { file: name, done: file.len(), total: Some(size) });
                }
                Err(e) => return Err(Attempt::Again(Box::new(e))),
            }
        }
        Ok(())
    }

    fn unreachable(&self, source: reqwest::Error) -> PullError {
        PullError::Unreachable { endpoint: self.endpoint.clone(), source: Box::new(source) }
    }

    fn refused(&self, repo: &str, what: &str, response: Response) -> PullError {
        let status = response.status();
        let header = response.headers().get("x-error-message").and_then(|v| v.to_str().ok()).map(first_line);
        let message = header.map_or(String::new(), |m| format!(": {m}"));
        let endpoint = self.endpoint.clone();
        match status.as_u16() {
            401 | 403 => PullError::Refused { endpoint, repo: repo.to_owned(), status: status.as_u16(), message },
            404 => PullError::NotFound { endpoint, what: format!("`{what}` in `{repo}`") },
            status => PullError::Status { endpoint, what: what.to_owned(), status, message },
        }
    }
}

/// What became of one request.
enum Attempt {
    /// Worth another one.
    Again(Box<dyn std::error::Error + Send + Sync>),
    /// Not.
    Final(PullError),
}

/// Compares a file's size and hash with what the hub says; deletes it if they differ.
fn check(path: &Path, name: &str, head: &Head, on: OnProgress<'_>) -> Result<(), PullError> {
    let size = std::fs::metadata(path).map_or(0, |m| m.len());
    let (kind, found, expected) = if size != head.size {
        ("size", size.to_string(), head.size.to_string())
    } else if is_sha256(&head.etag) {
        let done = |done| on(Progress::Bytes { file: name, done, total: Some(size) });
        ("sha256", cache::sha256_of(path, &done)?, head.etag.clone())
    } else {
        // Git's name for a blob: the hash of a header and the content.
        let mut hasher = sha1_smol::Sha1::from(format!("blob {size}\0"));
        cache::read_chunks(path, &mut |chunk, _| hasher.update(chunk))?;
        ("git hash", hasher.digest().to_string(), head.etag.clone())
    };
    if found == expected {
        return Ok(());
    }
    files::remove_file(path)?;
    Err(PullError::Hash { file: name.to_owned(), kind, found, from: "the hub".into(), expected })
}

fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64
}

/// A path below the repository and nothing else.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('/')
        && !name.contains('\\')
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// The repository's folder in the hub's cache.
fn folder(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

/// `HF_TOKEN`, else the file that `hf auth login` writes.
fn token() -> Option<String> {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let text = std::env::var("HF_TOKEN").ok().filter(|t| !t.trim().is_empty()).or_else(|| {
        if std::env::var("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_ok_and(|v| matches!(v.as_str(), "1" | "true" | "TRUE")) {
            return None;
        }
        let path = std::env::var_os("HF_TOKEN_PATH").map_or_else(|| hf_hub::hf_home().join("token"), PathBuf::from);
        read(path)
    })?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

/// The files of a model that are read: settings, tokenizer, and weights as safetensors or, failing those, one GGUF.
fn choose(repo: &str, listed: &[String]) -> Result<Vec<String>, PullError> {
    const SETTINGS: [&str; 5] = [".json", ".jinja", "merges.txt", "vocab.txt", "tokenizer.model"];
    let in_root = |n: &&String| !n.contains('/');
    let settings = listed.iter().filter(|n| {
        let wanted = SETTINGS.iter().any(|end| n.ends_with(end));
        wanted && (in_root(n) || n.as_str() == "1_Pooling/config.json")
    });
    let weights: Vec<&String> = listed.iter().filter(in_root).filter(|n| n.ends_with(".safetensors")).collect();
    // Some repositories hold the same weights twice, under another library's names.
    let standard: Vec<&String> = weights.iter().copied().filter(|n| n.starts_with("model")).collect();
    let weights = if standard.is_empty() { weights } else { standard };
    if !weights.is_empty() {
        let mut all: Vec<String> = settings.chain(weights).cloned().collect();
        all.sort();
        return Ok(all);
    }
    let gguf: Vec<&String> = listed.iter().filter(|n| cache::is_gguf(n)).collect();
    let problem = match gguf.as_slice() {
        [one] => return Ok(vec![(*one).clone()]),
        [] => "there are no .safetensors or .gguf files in it".into(),
        many => {
            let names: Vec<&str> = many.iter().map(|n| n.as_str()).collect();
            format!("there are several GGUF files; pull one as {repo}/FILE, where FILE is one of {}", names.join(", "))
        }
    };
    Err(PullError::NoModel { repo: repo.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(listed: &[&str]) -> Result<Vec<String>, String> {
        let listed: Vec<String> = listed.iter().map(|&n| n.to_owned()).collect();
        choose("o/n", &listed).map_err(|e| e.to_string())
    }

    #[test]
    fn settings_and_standard_weights_are_chosen() {
        let listed = [
            ".gitattributes",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "onnx/config.json",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let expected = [
            "config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ];
        assert_eq!(chosen(&listed).expect("a model"), expected);
    }

    #[test]
    fn one_gguf_is_chosen_and_several_are_listed() {
        assert_eq!(chosen(&["README.md", "a.Q4.gguf"]).expect("a model"), ["a.Q4.gguf"]);
        let error = chosen(&["a.gguf", "b.gguf"]).expect_err("ambiguous");
        assert!(error.ends_with("pull one as o/n/FILE, where FILE is one of a.gguf, b.gguf"), "{error}");
        assert!(chosen(&["pytorch_model.bin"]).expect_err("pickled").contains("no .safetensors or .gguf"));
    }

    #[test]
    fn paths_that_leave_the_repository_are_not_plain() {
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a\\b", "./x"] {
            assert!(!is_plain(bad), "{bad}");
        }
        assert!(is_plain("1_Pooling/config.json"));
    }
}
