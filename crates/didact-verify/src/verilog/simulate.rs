//! One candidate through the compiler and the simulator.

use super::lexer::{modules, replace_words};
use super::{VerilogTask, VerilogVerdict, digest_of};
use crate::sandbox::{Ending, Job, Limits, Outcome, Sandbox, SandboxError, find_program, scratch};
use didact_core::cancel::Cancel;
use didact_core::hash::Digest;
use regex::Regex;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names of VerilogEval's benches by which a candidate could reach its judge, beside those of all modules.
const NAMES: [&str; 9] =
    ["tb", "good1", "RefModule", "top_module1", "stimulus_gen", "stim1", "tb_match", "tb_mismatch", "stats1"];

/// How long and how much. The defaults are those for evaluation; training does with less time.
#[derive(Debug, Clone)]
pub struct VerilogOptions {
    /// What the compiler may use.
    pub compile: Limits,
    /// What the simulation may use.
    pub simulate: Limits,
}

impl Default for VerilogOptions {
    fn default() -> Self {
        let seconds = |n| Limits { wall: Duration::from_secs(n), cpu_seconds: n, ..Limits::default() };
        Self { compile: seconds(10), simulate: seconds(30) }
    }
}

/// Icarus Verilog in a sandbox.
pub struct Icarus {
    sandbox: Sandbox,
    compiler: PathBuf,
    simulator: PathBuf,
    version: String,
    options: VerilogOptions,
    dumps: Regex,
    result: Regex,
}

impl Icarus {
    /// Finds `iverilog` and `vvp` on `PATH`.
    ///
    /// # Errors
    /// When one of them is missing or does not run in the sandbox.
    pub fn find(sandbox: Sandbox, options: VerilogOptions) -> Result<Self, SandboxError> {
        let mut icarus = Self {
            compiler: find_program("iverilog", Some("iverilog"))?,
            simulator: find_program("vvp", Some("iverilog"))?,
            sandbox,
            version: String::new(),
            options,
            dumps: Regex::new(r"\$dump(file|vars)\s*\([^;]*\)\s*;").expect("a valid expression"),
            result: Regex::new(r"^ Mismatches: (\d+) in (\d+) samples$").expect("a valid expression"),
        };
        let dir = scratch()?;
        let asked = job(&icarus.simulator, vec!["-V".into()], dir.path(), icarus.options.compile.clone());
        let outcome = icarus.sandbox.run(&asked, &Cancel::new())?;
        // It is said on standard error.
        let said = [outcome.stdout.as_slice(), outcome.stderr.as_slice()].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        icarus.version = said.lines().find(|line| !line.trim().is_empty()).map(str::to_owned).unwrap_or_default();
        if outcome.ending.is_success() && !icarus.version.is_empty() {
            return Ok(icarus);
        }
        let message = format!("`vvp -V` ended with {:?}: {}", outcome.ending, String::from_utf8_lossy(&outcome.stderr));
        Err(SandboxError::Setup { mechanism: icarus.sandbox.mechanism(), message })
    }

    /// The simulator's name and version, as it says it itself.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn fingerprint(&self) -> Digest {
        let limits = format!("{:?}", self.options);
        digest_of(&[("rules", "1"), ("version", &self.version), ("limits", &limits)])
    }

    /// Compiles and simulates: mismatches and samples, or why there are none; `None` after a stop.
    pub(super) fn run(
        &self,
        task: &VerilogTask,
        candidate: &str,
        cancel: &Cancel,
    ) -> Result<Option<Result<(u64, u64), VerilogVerdict>>, SandboxError> {
        let names = names(task);
        let rename = |text: &str| replace_words(text, |word| names.get(word).cloned());
        let mark = unguessable();
        let bench = self.dumps.replace_all(&task.bench, "");
        let bench = rename(&bench).replace("\"Mismatches: ", &format!("\"{mark} Mismatches: "));
        let dir = scratch()?;
        // The candidate comes last: what a directive in it changes, it changes for itself alone.
        let mut arguments: Vec<std::ffi::OsString> =
            ["-Wall", "-Winfloop", "-Wno-timescale", "-g2012", "-s"].map(Into::into).to_vec();
        arguments.push(rename(&task.top).into());
        arguments.extend(["-o", "out.vvp"].map(Into::into));
        for (name, text) in [("bench", &bench), ("golden", &rename(&task.golden)), ("candidate", &candidate.to_owned())]
        {
            arguments.push(source(dir.path(), name, text)?);
        }
        let asked = job(&self.compiler, arguments, dir.path(), self.options.compile.clone());
        let compiled = self.sandbox.run(&asked, cancel)?;
        if compiled.ending == Ending::Cancelled {
            return Ok(None);
        }
        if let Some(verdict) = compile_verdict(&compiled) {
            return Ok(Some(Err(verdict)));
        }
        let arguments = ["-n", "out.vvp"].map(Into::into).to_vec();
        let asked = job(&self.simulator, arguments, dir.path(), self.options.simulate.clone());
        let simulated = self.sandbox.run(&asked, cancel)?;
        Ok(match simulated.ending {
            Ending::Cancelled => None,
            Ending::Exited(0) => Some(self.result(&simulated, &mark)),
            Ending::Exited(code) => {
                Some(Err(VerilogVerdict::RuntimeError(format!("the simulator ended with {code}: {}", log(&simulated)))))
            }
            ending => Some(Err(cut_short(ending))),
        })
    }

    fn result(&self, simulated: &Outcome, mark: &str) -> Result<(u64, u64), VerilogVerdict> {
        let said = String::from_utf8_lossy(&simulated.stdout);
        let mut results = said.lines().filter_map(|line| {
            let captures = self.result.captures(line.strip_prefix(mark)?)?;
            Some((captures[1].parse().ok()?, captures[2].parse().ok()?))
        });
        match (results.next(), results.next()) {
            (Some(result), None) => Ok(result),
            (None, _) => {
                Err(VerilogVerdict::RuntimeError(format!("the bench did not say its result: {}", log(simulated))))
            }
            (Some(_), Some(_)) => {
                let found = "the bench said its result twice".to_owned();
                Err(VerilogVerdict::Rejected { rule: "result", found })
            }
        }
    }
}

fn job<'a>(program: &Path, arguments: Vec<std::ffi::OsString>, dir: &'a Path, limits: Limits) -> Job<'a> {
    Job { program: program.to_owned(), arguments, scratch: dir, limits }
}

/// A name that nobody can guess for every module of bench and golden model, and for what stands between them and
/// the candidate.
fn names(task: &VerilogTask) -> BTreeMap<String, String> {
    let declared = modules(&task.bench).into_iter().chain(modules(&task.golden));
    let known = NAMES.into_iter().map(str::to_owned);
    declared
        .chain(known)
        .chain([task.top.clone()])
        .filter(|name| *name != task.module)
        .map(|name| (name, format!("n{}", unguessable())))
        .collect()
}

/// Thirty-two random hexadecimal digits: the standard library seeds each hasher from the operating system.
fn unguessable() -> String {
    format!("{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1))
}

/// Puts a source file into the scratch folder; its name there. It lives as long as the folder, so nothing is synced.
fn source(dir: &Path, name: &str, text: &str) -> Result<std::ffi::OsString, SandboxError> {
    let mut file = tempfile::Builder::new()
        .prefix(name)
        .suffix(".sv")
        .rand_bytes(0)
        .tempfile_in(dir)
        .map_err(SandboxError::io("write a source file"))?;
    file.write_all(text.as_bytes()).map_err(SandboxError::io("write a source file"))?;
    let (_, path) = file.keep().map_err(|e| e.error).map_err(SandboxError::io("keep a source file"))?;
    Ok(path.file_name().unwrap_or_default().to_owned())
}

/// Why a candidate does not compile; `None` when it does.
fn compile_verdict(compiled: &Outcome) -> Option<VerilogVerdict> {
    let said = String::from_utf8_lossy(&compiled.stderr);
    match compiled.ending {
        // An input that the candidate drives itself reaches the golden model, too.
        Ending::Exited(0) if said.contains("coerced to inout") => {
            Some(VerilogVerdict::Rejected { rule: "drives_input", found: log(compiled) })
        }
        Ending::Exited(0) => None,
        Ending::Exited(_) if said.contains("syntax error") => Some(VerilogVerdict::SyntaxError(log(compiled))),
        Ending::Exited(_) => Some(VerilogVerdict::ElabError(log(compiled))),
        ending => Some(cut_short(ending)),
    }
}

fn cut_short(ending: Ending) -> VerilogVerdict {
    match ending {
        Ending::TimeLimit | Ending::CpuLimit => VerilogVerdict::Timeout,
        Ending::OutputLimit => VerilogVerdict::Limit("too much output".to_owned()),
        Ending::MemoryLimit => VerilogVerdict::Limit("too much memory".to_owned()),
        Ending::ProcessLimit => VerilogVerdict::Limit("too many processes".to_owned()),
        Ending::FileLimit => VerilogVerdict::Limit("files too large".to_owned()),
        Ending::Signalled(signal) => VerilogVerdict::Limit(format!("killed by signal {signal}")),
        Ending::Exited(_) | Ending::Cancelled => VerilogVerdict::RuntimeError(format!("{ending:?}")),
    }
}

/// The first lines of what a tool said, without the names that differ from run to run.
fn log(outcome: &Outcome) -> String {
    let said = String::from_utf8_lossy(&outcome.stderr);
    let lines = said.lines().filter(|line| !line.contains("warning:") || line.contains("coerced"));
    let lines: Vec<String> = lines.take(5).map(|line| line.chars().take(200).collect()).collect();
    replace_words(&lines.join("; "), |word| {
        let digits = word.strip_prefix('n')?;
        (digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| "(bench)".to_owned())
    })
}
