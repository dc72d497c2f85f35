//! The comparisons of `model verify`: those of the mathematics, and with a real model those of tokens and text.

use std::path::Path;
use std::sync::Arc;

use didact_core::cancel::Cancel;
use didact_core::files;
use didact_core::generate::{Generator, Prompt, Request, Sampling};
use didact_core::message::Message;
use didact_data::template::RenderOptions;
use didact_data::tokenizer::Tokenizer;
use didact_infer::{EngineWeights, LocalGenerator, Options};
use didact_model::Checkpoint;
use didact_model::verify::Check;
use serde::{Deserialize, Serialize};

/// What `model verify` says.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Every comparison.
    pub(super) checks: Vec<Check>,
    /// Whether all of them hold.
    pub(super) ok: bool,
}

impl Report {
    /// The failures one by one, the rest as a number and the largest difference.
    pub(super) fn text(&self) -> String {
        let width = self.checks.iter().map(|c| c.name.chars().count()).max().unwrap_or(0);
        let mut lines: Vec<String> = self
            .checks
            .iter()
            .map(|c| {
                format!(
                    "{} {:<width$}  max_abs {:.1e}  max_rel {:.1e}  (at most {:.0e})",
                    if c.ok { "ok  " } else { "FAIL" },
                    c.name,
                    c.max_abs,
                    c.max_rel,
                    c.tolerance
                )
            })
            .collect();
        let failed = self.checks.iter().filter(|c| !c.ok).count();
        lines.push(match failed {
            0 => format!("all {} checks hold", self.checks.len()),
            n => format!("{n} of {} checks do not hold", self.checks.len()),
        });
        lines.join("\n")
    }
}

/// The part of a real model's golden that needs a tokenizer, a template or an engine.
#[derive(Deserialize)]
struct TextGolden {
    prompt: Option<String>,
    ids: Option<Vec<u32>>,
    greedy_ids: Option<Vec<u32>>,
    greedy_text: Option<String>,
    chat: Option<Vec<Message>>,
    rendered: Option<String>,
}

/// Runs every comparison that the golden has values for.
pub(super) fn all(path: &Path, golden: &Path) -> anyhow::Result<Vec<Check>> {
    let mut checks = didact_model::verify::verify(path, golden)?;
    let text = files::read_to_string(golden)?;
    // A tiny model's golden is an object and has no text; what is wrong with either has been said above.
    if let Ok(entries) = serde_json::from_str::<Vec<TextGolden>>(&text) {
        checks.extend(text_checks(path, &entries)?);
    }
    Ok(checks)
}

fn text_checks(path: &Path, entries: &[TextGolden]) -> anyhow::Result<Vec<Check>> {
    let tokenizer = Arc::new(Tokenizer::open(path)?);
    let mut checks = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if let (Some(prompt), Some(ids)) = (&entry.prompt, &entry.ids) {
            checks.push(Check::equal(format!("prompt {index} token ids"), tokenizer.encode(prompt)? == *ids));
        }
        if let (Some(chat), Some(rendered)) = (&entry.chat, &entry.rendered) {
            let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
            let found = match tokenizer.template() {
                Some(template) => template.render(chat, &[], &options)?,
                None => String::new(),
            };
            checks.push(Check::equal(format!("chat {index} rendered"), found == *rendered));
        }
    }
    checks.extend(greedy_checks(path, &tokenizer, entries)?);
    Ok(checks)
}

fn greedy_checks(path: &Path, tokenizer: &Arc<Tokenizer>, entries: &[TextGolden]) -> anyhow::Result<Vec<Check>> {
    let wanted: Vec<(usize, &Vec<u32>, &Vec<u32>, Option<&String>)> = entries
        .iter()
        .enumerate()
        .filter_map(|(i, e)| Some((i, e.ids.as_ref()?, e.greedy_ids.as_ref()?, e.greedy_text.as_ref())))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let weights = EngineWeights::from_checkpoint(&Checkpoint::open(path)?)?;
    let engine = LocalGenerator::new(weights, Arc::clone(tokenizer), Options::default())?;
    let requests: Vec<Request> = wanted
        .iter()
        .map(|(_, ids, greedy, _)| Request {
            prompt: Prompt::Ids((*ids).clone()),
            sampling: Sampling { max_tokens: greedy.len().saturating_sub(ids.len()), ..Sampling::default() },
        })
        .collect();
    let mut checks = Vec::new();
    let answers = engine.generate_all(&requests, &Cancel::default())?;
    for ((index, ids, greedy, text), answer) in wanted.into_iter().zip(answers) {
        let answered = match answer {
            Some(Ok(completion)) => completion.answers.into_iter().next().map(|a| a.ids).unwrap_or_default(),
            _ => Vec::new(),
        };
        let mut all = ids.clone();
        all.extend(answered);
        if let Some(expected) = text {
            let same = tokenizer.decode(&all, true)? == *expected;
            checks.push(Check::equal(format!("prompt {index} greedy text"), same));
        }
        checks.push(Check::equal(format!("prompt {index} greedy ids"), all == *greedy));
    }
    Ok(checks)
}
