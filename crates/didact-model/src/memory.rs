//! How much memory running and training a model will take, predicted from its configuration alone.
//!
//! The prediction follows what the operators really keep for the backward pass. `examples/peak_memory.rs` compares it
//! with the measured peak.

use serde::Serialize;

use crate::config::ModelConfig;
use crate::lora::{TargetModules, target_layers};
use crate::shapes::parameter_count;

/// Bytes of an `f32`.
const FLOAT: u64 = 4;
/// Program, allocator and thread stacks, measured with a model of no size to speak of.
const PROGRAM: u64 = 48 << 20;
/// Logits and their gradient exist in chunks of this many bytes at most (see `ops::cross_entropy`).
const LOGIT_CHUNK: u64 = 32 << 20;

/// A prediction, itemised. All numbers are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// The model's weights.
    pub weights: u64,
    /// An adapter's weights.
    pub adapter: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// The optimiser's two moments of what is trained.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward pass, and what the backward pass needs besides.
    pub activations: u64,
    /// Keys and values of the sequences being generated.
    pub cache: u64,
    /// The program itself.
    pub program: u64,
}

impl MemoryEstimate {
    /// The sum of all parts: the predicted peak.
    pub fn total(&self) -> u64 {
        self.weights + self.adapter + self.gradients + self.optimizer + self.activations + self.cache + self.program
    }
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trained {
    /// Every parameter.
    Full,
    /// A low-rank adapter; everything else is frozen.
    Lora {
        /// Rank, R.
        rank: usize,
        /// The adapted layers.
        target_modules: TargetModules,
        /// Whether the adapter's input is dropped at random, which takes a copy of it.
        dropout: bool,
    },
}

/// The shape of one forward and backward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingShape {
    /// Rows per micro-batch, B.
    pub rows: usize,
    /// Tokens per row, T.
    pub len: usize,
    /// Micro-batches per optimiser step; from two on, gradients are summed in buffers of their own.
    pub accumulation: usize,
    /// What is trained.
    pub trained: Trained,
}

/// Memory to train.
///
/// Targets that name no layer count as none; [`target_layers`] is where that is an error.
pub fn to_train(config: &ModelConfig, shape: &TrainingShape) -> MemoryEstimate {
    let tokens = (shape.rows * shape.len) as u64;
    let parameters = parameter_count(config);
    let (adapter, adapted, dropout) = match &shape.trained {
        Trained::Full => (0, 0, false),
        Trained::Lora { rank, target_modules, dropout } => {
            let layers = target_layers(config, target_modules).unwrap_or_default();
            let rank = *rank as u64;
            let size = layers.iter().map(|l| rank * (l.inputs + l.outputs) as u64).sum();
            (size, rank * layers.len() as u64, *dropout)
        }
    };
    let trained = if shape.trained == Trained::Full { parameters } else { adapter };
    let (v, e) = (config.vocab_size as u64, config.hidden_size as u64);
    let per_layer = kept_per_token(config);
    let kept = tokens * (config.num_hidden_layers as u64 * per_layer + adapted + 3 * e);
    // The widest step of the backward pass holds the gradients of a block's feed-forward beside what is kept, and the
    // copy of a linear layer's input that dropout makes.
    let f = config.intermediate_size as u64;
    let widest = tokens * (if config.is_gated() { 3 * f } else { 2 * f } + 3 * e + u64::from(dropout) * f.max(e));
    // The output projection's gradient is made in the forward pass already.
    let head = if shape.trained == Trained::Full { v * e } else { 0 };
    let logits = (2 * tokens * v * FLOAT).min(2 * LOGIT_CHUNK).max(2 * v * FLOAT);
    let sums = if shape.accumulation > 1 { trained } else { 0 };
    MemoryEstimate {
        weights: parameters * FLOAT,
        adapter: adapter * FLOAT,
        gradients: (trained + sums) * FLOAT,
        optimizer: 2 * trained * FLOAT,
        activations: (kept + widest + head) * FLOAT + logits,
        cache: 0,
        program: PROGRAM,
    }
}

/// Numbers per token that a block keeps: its two inputs to norms, the two norms' outputs, queries, keys and values
/// (twice where heads are normalised), the attention's output and log-sums, and the feed-forward's inner values before
/// and after the non-linearity.
fn kept_per_token(config: &ModelConfig) -> u64 {
    let (h, k, d) = (config.num_attention_heads as u64, config.num_key_value_heads as u64, config.head_dim as u64);
    let (e, f) = (config.hidden_size as u64, config.intermediate_size as u64);
    let qkv = (h + 2 * k) * d * if config.has_qk_norm() { 2 } else { 1 };
    let feed = if config.is_gated() { 3 * f } else { 2 * f };
    4 * e + qkv + h * d + h + feed
}

/// Memory to generate with `streams` sequences of up to `context` tokens at a time.
pub fn to_run(config: &ModelConfig, streams: usize, context: usize) -> MemoryEstimate {
    let tokens = (streams * context) as u64;
    let (k, d) = (config.num_key_value_heads as u64, config.head_dim as u64);
    let cache = 2 * tokens * config.num_hidden_layers as u64 * k * d;
    MemoryEstimate {
        weights: parameter_count(config) * FLOAT,
        adapter: 0,
        gradients: 0,
        optimizer: 0,
        activations: LOGIT_CHUNK,
        cache: cache * FLOAT,
        program: PROGRAM,
    }
}
