//! Verilog modules, compiled and simulated by Icarus Verilog against a test bench and a golden model.
//!
//! The candidate runs in the same simulation as what judges it, so nothing that comes out of it is believed by itself.
//! Four walls, each of which has tests that climb it (`crates/didact/tests/verilog.rs`): rules on the candidate's text
//! (`rules.rs`), names that it cannot guess and a mark on the result's line, the number of samples that the golden model
//! was given, and the sandbox. The list of attacks is ITERTL's (arXiv 2407.12022) and grown since; `docs/verifiers.md`.

mod lexer;
mod rules;
mod simulate;
mod task;

pub use simulate::{Icarus, VerilogOptions};
pub use task::{TaskError, VerilogTask, verilog_eval};

use crate::sandbox::SandboxError;
use crate::verdict;
use didact_core::cancel::Cancel;
use didact_core::hash::{Digest, Hasher};
use didact_core::verdict::{Item, Verdict, Verifier, VerifyError};
use rules::Ports;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};

/// What became of a candidate. [`Verdict::category`] is the name of one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerilogVerdict {
    /// Every sample matches.
    Pass,
    /// Some samples do not.
    Mismatch {
        /// How many.
        errors: u64,
        /// Of how many.
        samples: u64,
    },
    /// There is no module, or the compiler cannot read it.
    SyntaxError(String),
    /// The compiler cannot put it together: unknown modules, names, ports.
    ElabError(String),
    /// The simulation ended without a result.
    RuntimeError(String),
    /// It ran out of time, to compile or to simulate.
    Timeout,
    /// It ran out of memory, output, files or processes.
    Limit(String),
    /// It breaks a rule: it tries to fool the test bench, or looks like it.
    Rejected {
        /// Which.
        rule: &'static str,
        /// What was found.
        found: String,
    },
}

impl VerilogVerdict {
    /// Timeouts depend on how busy the machine is; they are not for a cache.
    pub const VOLATILE: &'static [&'static str] = &["timeout", "limit"];

    /// As a verdict: 1 for a pass, `0.2 + 0.5 (1 - errors/samples)` for a mismatch, 0.1 for what compiles in part or runs
    /// without an end, 0 for what cannot be read or breaks a rule.
    pub fn into_verdict(self) -> Verdict {
        match self {
            Self::Pass => verdict(1.0, "pass", "every sample matches"),
            Self::Mismatch { errors, samples } => {
                let share = errors as f64 / samples.max(1) as f64;
                let reason = format!("{errors} of {samples} samples do not match");
                verdict(0.2 + 0.5 * (1.0 - share.min(1.0)), "mismatch", &reason)
            }
            Self::SyntaxError(log) => verdict(0.0, "syntax_error", &log),
            Self::ElabError(log) => verdict(0.1, "elab_error", &log),
            Self::RuntimeError(log) => verdict(0.1, "runtime_error", &log),
            Self::Timeout => verdict(0.1, "timeout", "it did not end in time"),
            Self::Limit(what) => verdict(0.1, "limit", &what),
            Self::Rejected { rule, found } => verdict(0.0, "rejected", &format!("{rule}: {found}")),
        }
    }
}

/// What is known of a task: the golden model's ports and how many samples it is given.
#[derive(Debug, Clone)]
struct Golden {
    ports: Ports,
    samples: u64,
}

/// Judges Verilog modules. An item's reference is a [`VerilogTask`]; one whose own solution does not pass is not judged:
/// no score, category `golden_fails`.
pub struct VerilogVerifier {
    icarus: Icarus,
    threads: usize,
    goldens: Mutex<BTreeMap<Digest, Result<Golden, String>>>,
}

/// What may be known of an answer.
enum Judged {
    Candidate(VerilogVerdict),
    /// The task itself is unusable.
    Unjudged {
        category: &'static str,
        reason: String,
    },
    Cancelled,
}

impl VerilogVerifier {
    /// Judges with this simulator, `threads` candidates at a time (more than cores would make false timeouts).
    pub fn new(icarus: Icarus, threads: usize) -> Self {
        Self { icarus, threads: threads.max(1), goldens: Mutex::default() }
    }

    /// What verdicts depend on beside task and candidate: for [`crate::cached::Cached`].
    pub fn fingerprint(&self) -> Digest {
        self.icarus.fingerprint()
    }

    /// Whether a task's own solution passes, and with how many samples.
    ///
    /// # Errors
    /// When the simulator or the sandbox is broken.
    pub fn golden_samples(&self, task: &VerilogTask, cancel: &Cancel) -> Result<Result<u64, String>, SandboxError> {
        Ok(self.golden(task, cancel)?.map(|golden| golden.samples))
    }

    fn golden(&self, task: &VerilogTask, cancel: &Cancel) -> Result<Result<Golden, String>, SandboxError> {
        let key = task.digest();
        let known = self.goldens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = match task.solution() {
            Err(error) => Err(error.to_string()),
            Ok(solution) => match rules::ports_of(&solution, &task.module) {
                None => Err(format!("the solution has no module `{}` with a header that can be read", task.module)),
                Some(ports) => match self.icarus.run(task, &solution, cancel)? {
                    None => return Ok(Err("stopped".to_owned())),
                    Some(Ok((0, samples))) if samples > 0 => Ok(Golden { ports, samples }),
                    Some(Ok((errors, samples))) => {
                        Err(format!("its own solution has {errors} mismatches in {samples} samples"))
                    }
                    Some(Err(verdict)) => Err(format!("its own solution: {verdict:?}")),
                },
            },
        };
        if !(found.is_err() && cancel.is_cancelled()) {
            self.goldens.lock().unwrap_or_else(PoisonError::into_inner).insert(key, found.clone());
        }
        Ok(found)
    }

    fn judge(&self, item: &Item, answer: &str, cancel: &Cancel) -> Result<Judged, SandboxError> {
        let task = match VerilogTask::from_reference(&item.reference) {
            Ok(task) => task,
            Err(error) => {
                return Ok(Judged::Unjudged { category: "bad_reference", reason: error.to_string() });
            }
        };
        let golden = match self.golden(&task, cancel)? {
            Ok(golden) => golden,
            Err(_) if cancel.is_cancelled() => return Ok(Judged::Cancelled),
            Err(reason) => return Ok(Judged::Unjudged { category: "golden_fails", reason }),
        };
        let Some(code) = rules::extract(answer, &task.module, task.header.as_deref()) else {
            let log = format!("no module `{}` with its endmodule", task.module);
            return Ok(Judged::Candidate(VerilogVerdict::SyntaxError(log)));
        };
        let checked = match rules::check(&code, &task.module) {
            Ok(checked) => checked,
            Err(rules::Broken { rule, found }) => {
                return Ok(Judged::Candidate(VerilogVerdict::Rejected { rule, found }));
            }
        };
        if checked.ports != golden.ports {
            let found = format!("{:?}, asked for were {:?}", checked.ports, golden.ports);
            return Ok(Judged::Candidate(VerilogVerdict::Rejected { rule: "ports", found }));
        }
        Ok(match self.icarus.run(&task, &checked.code, cancel)? {
            None => Judged::Cancelled,
            Some(Err(verdict)) => Judged::Candidate(verdict),
            Some(Ok((_, samples))) if samples != golden.samples => Judged::Candidate(VerilogVerdict::Rejected {
                rule: "samples",
                found: format!("{samples} samples, the golden model has {}", golden.samples),
            }),
            Some(Ok((0, _))) => Judged::Candidate(VerilogVerdict::Pass),
            Some(Ok((errors, samples))) => Judged::Candidate(VerilogVerdict::Mismatch { errors, samples }),
        })
    }
}

impl Verifier for VerilogVerifier {
    fn verify(
        &self,
        items: &[(&Item, &str)],
        sink: &mut dyn FnMut(usize, Verdict),
        cancel: &Cancel,
    ) -> Result<(), VerifyError> {
        let (sender, results) = channel();
        let next = AtomicUsize::new(0);
        // A broken simulator stops the other threads, but not the caller's other work.
        let is_broken = std::sync::atomic::AtomicBool::new(false);
        let mut late = Vec::new();
        std::thread::scope(|scope| {
            for _ in 0..self.threads.min(items.len()) {
                let (sender, next, is_broken) = (sender.clone(), &next, &is_broken);
                scope.spawn(move || {
                    while !cancel.is_cancelled() && !is_broken.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some((item, answer)) = items.get(index) else { break };
                        let result = self.judge(item, answer, cancel);
                        if result.is_err() {
                            is_broken.store(true, Ordering::Relaxed);
                        }
                        if sender.send((index, result)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let mut failure = None;
            for (index, result) in results {
                match result {
                    // Others may have taken its time: it is tried again alone.
                    Ok(Judged::Candidate(VerilogVerdict::Timeout)) if self.threads > 1 => late.push(index),
                    Ok(judged) => hand_on(index, judged, sink),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            failure.map_or(Ok(()), Err)
        })
        .map_err(broken)?;
        for index in late {
            let (item, answer) = items[index];
            hand_on(index, self.judge(item, answer, cancel).map_err(broken)?, sink);
        }
        Ok(())
    }
}

fn hand_on(index: usize, judged: Judged, sink: &mut dyn FnMut(usize, Verdict)) {
    match judged {
        Judged::Candidate(verdict) => sink(index, verdict.into_verdict()),
        Judged::Unjudged { category, reason } => {
            sink(index, Verdict { score: None, category: category.to_owned(), reason });
        }
        Judged::Cancelled => {}
    }
}

fn broken(error: SandboxError) -> VerifyError {
    VerifyError { message: "Verilog cannot be simulated".to_owned(), source: Some(Box::new(error)) }
}

/// Digest of settings, for fingerprints.
fn digest_of(fields: &[(&str, &str)]) -> Digest {
    let mut hasher = Hasher::new();
    for (name, value) in fields {
        hasher.field(name, value.as_bytes());
    }
    hasher.finish()
}
