//! Comparison with the outputs of a reference implementation (`golden/README.md` has the format).
//!
//! A golden of one model holds logits, the loss and every gradient; a golden of a real model is a list of prompts with
//! their mean loss and largest logits. What those prompts are as text, and what a greedy continuation is, is checked
//! where there is a tokenizer and an engine.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use didact_core::files;
use serde::Deserialize;
use serde::Serialize;

use crate::decoder::{Decoder, DecoderInput, ForwardMode};
use crate::error::ModelError;
use crate::loss;
use crate::weights::{Checkpoint, TensorFile};

/// Logits of the tiny models, absolute.
pub const TINY_LOGITS: f64 = 1e-4;
/// Mean losses in nats, absolute.
pub const LOSS: f64 = 1e-5;
/// Gradients: of their norms relative, and of their elements relative to the largest element of the tensor.
pub const GRADIENTS: f64 = 1e-4;
/// Logits of a real model, absolute.
pub const REAL_LOGITS: f64 = 2e-3;
/// Mean losses of a real model, in nats, absolute. The reference computes its softmax over the vocabulary in f32 and is up
/// to 1.1e-5 below the exact losses of SmolLM2 (`golden/smollm2_nll.py`), we up to 5.4e-6 to either side of them.
pub const REAL_LOSS: f64 = 2e-5;

/// One comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// The largest absolute difference.
    pub max_abs: f64,
    /// The largest difference relative to the largest expected value.
    pub max_rel: f64,
    /// The bound: on `max_rel` for gradients, on `max_abs` otherwise.
    pub tolerance: f64,
    /// Whether the bound holds.
    pub ok: bool,
}

impl Check {
    /// Compares values by their absolute difference.
    pub fn absolute(name: impl Into<String>, actual: &[f64], expected: &[f64], tolerance: f64) -> Self {
        let (max_abs, max_rel) = differences(actual, expected);
        Self { name: name.into(), max_abs, max_rel, tolerance, ok: max_abs <= tolerance }
    }

    /// Compares values by their difference relative to the largest expected one.
    pub fn relative(name: impl Into<String>, actual: &[f64], expected: &[f64], tolerance: f64) -> Self {
        let (max_abs, max_rel) = differences(actual, expected);
        Self { name: name.into(), max_abs, max_rel, tolerance, ok: max_rel <= tolerance }
    }

    /// A comparison of things that are equal or not: ids, names, text.
    pub fn equal(name: impl Into<String>, ok: bool) -> Self {
        let difference = if ok { 0.0 } else { f64::INFINITY };
        Self { name: name.into(), max_abs: difference, max_rel: difference, tolerance: 0.0, ok }
    }
}

/// Largest absolute difference, and that over the largest expected magnitude. Infinite if the lengths differ or a
/// difference is not a number.
fn differences(actual: &[f64], expected: &[f64]) -> (f64, f64) {
    if actual.len() != expected.len() {
        return (f64::INFINITY, f64::INFINITY);
    }
    let mut max_abs = 0.0f64;
    for (a, e) in actual.iter().zip(expected) {
        let difference = (a - e).abs();
        max_abs = if difference.is_nan() { f64::INFINITY } else { max_abs.max(difference) };
    }
    let scale = expected.iter().fold(0.0f64, |m, e| m.max(e.abs()));
    (max_abs, if max_abs == 0.0 { 0.0 } else { max_abs / scale.max(f64::MIN_POSITIVE) })
}

/// A golden file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Golden {
    Model(ModelGolden),
    Prompts(Vec<serde_json::Value>),
}

#[derive(Deserialize)]
struct ModelGolden {
    inputs: Inputs,
    outputs: Outputs,
    #[serde(default)]
    grads: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Inputs {
    input_ids: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct Outputs {
    logits: Vec<Vec<Vec<f64>>>,
    loss: f64,
}

#[derive(Deserialize)]
struct Gradient {
    norm: f64,
}

/// The part of a prompt's golden that needs neither text nor an engine.
#[derive(Debug, Clone, Deserialize)]
pub struct PromptGolden {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Mean next-token loss over them, nats.
    pub mean_nll: f64,
    /// The ids of the largest logits at the last position.
    pub top_ids: Vec<u32>,
    /// Those logits.
    pub top_logits: Vec<f64>,
}

/// Compares the model at `path` with `golden`: logits, loss and gradients, or the losses and logits of prompts.
/// Gradients are compared in full where `grads.safetensors` lies beside the golden, else by their norms.
///
/// # Errors
/// [`ModelError`] if the model or the golden cannot be read.
pub fn verify(path: &Path, golden: &Path) -> Result<Vec<Check>, ModelError> {
    let text = files::read_to_string(golden)?;
    let parsed: Golden = parse(golden, &text)?;
    let decoder = Decoder::load(&Checkpoint::open(path)?, &Device::flex())?;
    match parsed {
        Golden::Model(model) => verify_model(&decoder, &model, golden),
        Golden::Prompts(entries) => {
            let mut checks = Vec::new();
            for (index, entry) in entries.into_iter().enumerate() {
                if entry.get("ids").is_some() {
                    let prompt: PromptGolden = serde_json::from_value(entry)
                        .map_err(|source| ModelError::Json { path: golden.to_owned(), source })?;
                    checks.extend(verify_prompt(&decoder, &format!("prompt {index}"), &prompt)?);
                }
            }
            Ok(checks)
        }
    }
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path, text: &str) -> Result<T, ModelError> {
    serde_json::from_str(text).map_err(|source| ModelError::Json { path: path.to_owned(), source })
}

fn verify_model(decoder: &Decoder, golden: &ModelGolden, path: &Path) -> Result<Vec<Check>, ModelError> {
    let batch = Rows::new(&golden.inputs.input_ids);
    let input = batch.input();
    input.check(decoder.config())?;
    let logits = wide(decoder.logits(decoder.hidden(&input, &ForwardMode::Eval)));
    let expected: Vec<f64> = golden.outputs.logits.iter().flatten().flatten().copied().collect();
    let mut checks = vec![Check::absolute("logits", &logits, &expected, TINY_LOGITS)];

    let (targets, weights) = batch.next_tokens();
    let mode = ForwardMode::Train { dropout_key: 0 };
    let loss = loss::next_token(decoder, &input, &targets, &weights, &mode);
    checks.push(Check::absolute("loss", &[loss.value() / loss.total_weight], &[golden.outputs.loss], LOSS));

    let mut gradients = loss.loss_sum.div_scalar(loss.total_weight).backward();
    let full = path.with_file_name("grads.safetensors");
    let full = if full.exists() { Some(TensorFile::open(&full)?) } else { None };
    for (name, expected) in &golden.grads {
        let expected: Gradient = serde_json::from_value(expected.clone())
            .map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
        let Some(id) = decoder.parameters().id(name) else {
            checks.push(Check::equal(format!("gradient {name}"), false));
            continue;
        };
        let actual = decoder.parameters().take_gradient(&mut gradients, id).unwrap_or_default();
        let actual: Vec<f64> = actual.into_iter().map(f64::from).collect();
        let norm = actual.iter().map(|g| g * g).sum::<f64>().sqrt();
        checks.push(Check::relative(format!("gradient norm {name}"), &[norm], &[expected.norm], GRADIENTS));
        if let Some(full) = &full {
            let expected = full
                .read(name)
                .ok_or_else(|| ModelError::NoTensor { path: full.path.clone(), tensor: name.clone() })??;
            let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
            checks.push(Check::relative(format!("gradient {name}"), &actual, &expected, GRADIENTS));
        }
    }
    let listed = decoder.parameters().iter().all(|(_, p)| golden.grads.contains_key(p.name()));
    if !golden.grads.is_empty() {
        checks.push(Check::equal("every parameter has a reference gradient", listed));
    }
    Ok(checks)
}

/// Compares one prompt's mean loss and largest last logits.
///
/// # Errors
/// [`ModelError::BatchInput`] if a token is outside the vocabulary.
pub fn verify_prompt(decoder: &Decoder, name: &str, golden: &PromptGolden) -> Result<Vec<Check>, ModelError> {
    let (mean_nll, logits) = prompt_outputs(decoder, &golden.ids)?;
    let at_top: Vec<f64> =
        golden.top_ids.iter().map(|&id| logits.get(id as usize).copied().map_or(f64::NAN, f64::from)).collect();
    let largest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id as u32);
    // The order of the first two is decided only where they are further apart than the tolerance.
    let decided = match golden.top_logits[..] {
        [first, second, ..] => first - second > 2.0 * REAL_LOGITS,
        _ => true,
    };
    Ok(vec![
        // The mean over a few tokens of a model whose logits are within their own tolerance.
        Check::absolute(format!("{name} mean_nll"), &[mean_nll], &[golden.mean_nll], REAL_LOSS),
        Check::absolute(format!("{name} top logits"), &at_top, &golden.top_logits, REAL_LOGITS),
        Check::equal(format!("{name} likeliest token"), !decided || largest == golden.top_ids.first().copied()),
    ])
}

/// The mean next-token loss over `ids`, in nats (0 for fewer than two tokens), and the logits at the last one.
///
/// # Errors
/// [`ModelError::BatchInput`] if a token is outside the vocabulary or the context.
///
/// # Panics
/// If there are no ids.
pub fn prompt_outputs(decoder: &Decoder, ids: &[u32]) -> Result<(f64, Vec<f32>), ModelError> {
    assert!(!ids.is_empty(), "a prompt of no tokens has no outputs");
    let batch = Rows::new(std::slice::from_ref(&ids));
    let input = batch.input();
    input.check(decoder.config())?;
    let (targets, weights) = batch.next_tokens();
    let loss = loss::next_token(decoder, &input, &targets, &weights, &ForwardMode::Eval);
    let mean = if loss.total_weight == 0.0 { 0.0 } else { loss.value() / loss.total_weight };
    let hidden = decoder.hidden(&input, &ForwardMode::Eval);
    let [n, e] = hidden.dims();
    let last = decoder.logits(hidden.slice([n - 1..n, 0..e]));
    Ok((mean, last.into_data().try_into_vec::<f32>().expect("logits are f32")))
}

/// Rows of equal length, one document each.
struct Rows {
    ids: Vec<u32>,
    segments: Vec<u32>,
    positions: Vec<u32>,
    count: usize,
    len: usize,
}

impl Rows {
    fn new(rows: &[impl AsRef<[u32]>]) -> Self {
        let len = rows.first().map_or(0, |r| r.as_ref().len());
        let count = rows.len();
        Self {
            ids: rows.iter().flat_map(|r| r.as_ref().iter().copied()).collect(),
            segments: vec![0; count * len],
            positions: (0..count).flat_map(|_| 0..len as u32).collect(),
            count,
            len,
        }
    }

    fn input(&self) -> DecoderInput<'_> {
        let Self { ids, segments, positions, count, len } = self;
        DecoderInput { ids, segments, positions, rows: *count, len: *len }
    }

    /// What follows each token, with weight 1 where something does.
    fn next_tokens(&self) -> (Vec<u32>, Vec<f32>) {
        let mut targets = self.ids.clone();
        targets.rotate_left(1);
        let weights = (0..self.ids.len()).map(|i| if (i + 1) % self.len == 0 { 0.0 } else { 1.0 }).collect();
        (targets, weights)
    }
}

fn wide(t: Tensor<2>) -> Vec<f64> {
    let values = t.into_data().try_into_vec::<f32>().expect("logits are f32");
    values.into_iter().map(f64::from).collect()
}
