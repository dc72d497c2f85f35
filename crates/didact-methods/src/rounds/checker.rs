//! The verifier of a recipe.

use std::sync::Arc;
use std::time::Duration;

use didact_core::cancel::Cancel;
use didact_core::hash::{Digest, Hasher, hash_json};
use didact_core::verdict::{Item, Verdict, Verifier, VerifyError};
use didact_verify::matching::{ExactMatch, NumericMatch, Part, RegexMatch, SetMatch};
use didact_verify::tool_call::{LooseToolCallVerifier, ToolCallVerifier};
use didact_verify::verilog::{Icarus, VerilogOptions, VerilogVerdict, VerilogVerifier};
use serde_json::json;

use crate::env::Env;
use crate::error::MethodError;
use crate::recipe::{CheckerKind, VerifyTable};

/// A verifier, and what its verdicts depend on. Copies share it.
#[derive(Clone)]
pub struct Checker {
    verifier: Arc<dyn Verifier>,
    fingerprint: Digest,
    /// Categories that say more about the machine than about the answer.
    pub volatile: &'static [&'static str],
    /// What it runs in, where it runs something.
    pub described: Option<String>,
}

impl std::fmt::Debug for Checker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checker").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Checker {
    /// Builds what the table asks for.
    ///
    /// # Errors
    /// When a simulator or a sandbox is missing.
    pub fn new(table: &VerifyTable, env: &Env<'_>) -> Result<Self, MethodError> {
        let part = match &table.after {
            Some(mark) => Part::After(mark.clone()),
            None if table.last_line => Part::LastLine,
            None => Part::Whole,
        };
        let (ignore_case, loose) = (table.ignore_case, table.loose);
        let mut hasher = Hasher::new();
        hasher.field("table", hash_json(&json!(table)).to_string().as_bytes());
        let (mut volatile, mut described): (&'static [&'static str], _) = (&[], None);
        let verifier: Arc<dyn Verifier> = match table.kind {
            CheckerKind::Exact => Arc::new(ExactMatch { part, ignore_case, loose }),
            CheckerKind::Number => {
                Arc::new(NumericMatch { part, absolute: table.tolerance, ..NumericMatch::default() })
            }
            CheckerKind::Regex => Arc::new(RegexMatch { part, anywhere: table.anywhere }),
            CheckerKind::Set => Arc::new(SetMatch { part, ignore_case }),
            CheckerKind::ToolCall if loose => Arc::new(LooseToolCallVerifier),
            CheckerKind::ToolCall => Arc::new(ToolCallVerifier),
            CheckerKind::Verilog => {
                let sandbox = (env.sandbox)()?;
                let mechanism = sandbox.mechanism().describe();
                let mut options = VerilogOptions::default();
                for (limits, seconds) in
                    [(&mut options.compile, table.compile_seconds), (&mut options.simulate, table.simulate_seconds)]
                {
                    (limits.wall, limits.cpu_seconds) = (Duration::from_secs(seconds), seconds);
                }
                let icarus = Icarus::find(sandbox, options)?;
                described = Some(format!("{}, {mechanism}", icarus.version()));
                volatile = VerilogVerdict::VOLATILE;
                let verifier = VerilogVerifier::new(icarus, env.threads);
                hasher.field("simulator", verifier.fingerprint().to_string().as_bytes());
                Arc::new(verifier)
            }
        };
        Ok(Self { verifier, fingerprint: hasher.finish(), volatile, described })
    }

    /// Everything that verdicts depend on beside the item and the answer.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }
}

impl Verifier for Checker {
    fn verify(
        &self,
        items: &[(&Item, &str)],
        sink: &mut dyn FnMut(usize, Verdict),
        cancel: &Cancel,
    ) -> Result<(), VerifyError> {
        self.verifier.verify(items, sink, cancel)
    }
}
