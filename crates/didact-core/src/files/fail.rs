//! Named points at which a test makes the program fail or die.
//!
//! `DIDACT_FAIL="checkpoint.before_publish=kill"` kills the process there; `fsync@3=eio` makes the third sync fail.
//! Several are separated by `;`. Actions: `kill` (SIGKILL to this process), `panic`, `eio`, `enospc`, `short` (half of the
//! data is written, then an error). Without the variable a point costs one atomic load.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Name of the environment variable.
pub const VARIABLE: &str = "DIDACT_FAIL";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Panic,
    Eio,
    Enospc,
    Short,
}

#[derive(Debug)]
struct Rule {
    name: String,
    /// Which passage through the point acts, from 1.
    nth: u64,
    action: Action,
    passed: AtomicU64,
}

/// What a write should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteFault {
    None,
    Short,
}

fn rules() -> &'static [Rule] {
    static RULES: OnceLock<Vec<Rule>> = OnceLock::new();
    RULES.get_or_init(|| match std::env::var(VARIABLE) {
        Ok(text) => text.split(';').filter(|part| !part.trim().is_empty()).map(parse).collect(),
        Err(_) => Vec::new(),
    })
}

/// # Panics
/// On a rule that is not `name[@n]=action`: a misspelt fail point would let a test pass that tests nothing.
fn parse(part: &str) -> Rule {
    let (point, action) = part.trim().split_once('=').unwrap_or_else(|| panic!("{VARIABLE}: `{part}` has no `=`"));
    let (name, nth) = match point.split_once('@') {
        Some((name, n)) => (name, n.parse().unwrap_or_else(|_| panic!("{VARIABLE}: `{n}` is not a number"))),
        None => (point, 1),
    };
    let action = match action {
        "kill" => Action::Kill,
        "panic" => Action::Panic,
        "eio" => Action::Eio,
        "enospc" => Action::Enospc,
        "short" => Action::Short,
        other => panic!("{VARIABLE}: unknown action `{other}`"),
    };
    Rule { name: name.to_owned(), nth, action, passed: AtomicU64::new(0) }
}

fn hit(name: &str) -> Option<Action> {
    rules()
        .iter()
        .filter(|rule| rule.name == name)
        .find(|rule| rule.passed.fetch_add(1, Ordering::SeqCst) + 1 == rule.nth)
        .map(|rule| rule.action)
}

fn act(name: &str, action: Action) -> io::Result<WriteFault> {
    match action {
        Action::Kill => {
            let this = rustix::process::getpid();
            // If the signal cannot be sent the test must still see a death here.
            let _ = rustix::process::kill_process(this, rustix::process::Signal::KILL);
            std::process::abort()
        }
        Action::Panic => panic!("fail point `{name}`"),
        Action::Eio => Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
        Action::Enospc => Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())),
        Action::Short => Ok(WriteFault::Short),
    }
}

/// Passes the point `name`: returns at once, unless the environment asks for a failure here.
///
/// # Errors
/// The failure asked for.
///
/// # Panics
/// When a panic was asked for.
pub fn point(name: &str) -> io::Result<()> {
    if rules().is_empty() {
        return Ok(());
    }
    match hit(name) {
        None => Ok(()),
        Some(action) => match act(name, action)? {
            WriteFault::None => Ok(()),
            WriteFault::Short => Err(io::Error::new(io::ErrorKind::StorageFull, "fail point: short write")),
        },
    }
}

/// As [`point`], for a write, which can also be cut short.
pub(super) fn write_point(name: &str) -> io::Result<WriteFault> {
    if rules().is_empty() {
        return Ok(WriteFault::None);
    }
    hit(name).map_or(Ok(WriteFault::None), |action| act(name, action))
}
