//! How much memory running and training a model will take, predicted from its configuration alone.
//!
//! The prediction follows what the operators really keep for the backward pass; `didact bench train` shows it beside the
//! measured peak.

use didact_kernels::{Precision, cross_entropy};
use serde::Serialize;

use crate::config::ModelConfig;
use crate::gradients::GradientDtype;
use crate::lora::{TargetModules, target_layers};
use crate::shapes::parameter_count;

/// Bytes of an `f32`.
const FLOAT: u64 = 4;
/// Program, allocator and thread stacks, measured with a model of no size to speak of.
const PROGRAM: u64 = 48 << 20;
/// Logits while generating.
const LOGIT_CHUNK: u64 = 32 << 20;
/// Gradients of logits that wait for the gradient of the output projection at most.
const WAITING_LOGITS: u64 = cross_entropy::KEPT as u64 * FLOAT;
/// Numbers of the feed-forward that are worked on at a time.
const PIECE: u64 = crate::ops::block::PIECE as u64;

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

/// The shape of one forward and backward pass, and what decides how much of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingShape {
    /// Rows per micro-batch, B.
    pub rows: usize,
    /// Tokens per row, T.
    pub len: usize,
    /// What is trained.
    pub trained: Trained,
    /// Arithmetic of the matrix products.
    pub precision: Precision,
    /// Whether only the inputs of blocks are kept.
    pub activation_checkpointing: bool,
    /// The number type of gradients.
    pub gradient_dtype: GradientDtype,
}

impl TrainingShape {
    /// Training in `f32`, with nothing done to save memory.
    pub fn new(rows: usize, len: usize, trained: Trained) -> Self {
        Self {
            rows,
            len,
            trained,
            precision: Precision::F32,
            activation_checkpointing: false,
            gradient_dtype: GradientDtype::F32,
        }
    }
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
    let per_gradient = if shape.gradient_dtype == GradientDtype::Bf16 { 2 } else { FLOAT };
    let word = if shape.precision == Precision::Bf16 { 2 } else { FLOAT };
    let is_saving = shape.activation_checkpointing || shape.gradient_dtype == GradientDtype::Bf16;

    let (v, e, f) = (config.vocab_size as u64, config.hidden_size as u64, config.intermediate_size as u64);
    let layers = config.num_hidden_layers as u64;
    let heads = (config.num_attention_heads * config.head_dim) as u64;
    let qkv = heads + 2 * (config.num_key_value_heads * config.head_dim) as u64;
    let feed = if config.is_gated() { 2 * f } else { f };
    // A block's input; and inside it queries, keys and values, what attention gives with its log-sums, the residual
    // stream between the halves, and the feed-forward before its non-linearity (see `ops::block`).
    let inside = tokens * ((qkv + heads + config.num_attention_heads as u64 + e) * FLOAT + feed * word)
        + tokens * adapted / layers.max(1) * FLOAT;
    let kept = if shape.activation_checkpointing {
        layers * tokens * e * FLOAT + inside
    } else {
        layers * (tokens * e * FLOAT + inside)
    };
    // The backward pass of a block: gradients of the residual stream, of queries, keys and values and of what attention
    // gives, one piece of the feed-forward's, and the block's weights packed; with norms of heads, those and their
    // gradients once more.
    let piece = tokens.min((PIECE / feed).max(64));
    let head_norms = if config.has_qk_norm() { 2 * qkv } else { 0 };
    let weights = e * (qkv + heads + feed + f) * word;
    let within = (tokens * (2 * e + qkv + heads + head_norms) + piece * (feed + 2 * f + 3 * e)) * FLOAT + weights;
    let within = within + if dropout { piece * f.max(e) * FLOAT } else { 0 };
    // The output projection: packed twice, hidden values and their gradient, a few rows of logits, and their gradients
    // as they wait for the product that makes the weight's.
    let waiting = if shape.trained == Trained::Full { (tokens * v * word).min(WAITING_LOGITS) } else { 0 };
    let logits = (cross_entropy::ROWS as u64 * v).max(cross_entropy::LOGITS as u64) * FLOAT;
    let head = 2 * v * e * word + 3 * tokens * e * FLOAT + logits + waiting;
    let head_gradient = if shape.trained == Trained::Full { v * e * per_gradient } else { 0 };
    let (gradients, activations) = if is_saving {
        // Gradients come as activations go.
        let at_head = kept + head + head_gradient;
        let at_end = trained * per_gradient + inside + within;
        (head_gradient, at_head.max(at_end) - head_gradient)
    } else {
        (trained * per_gradient, kept + head.max(within))
    };
    MemoryEstimate {
        weights: parameters * FLOAT,
        adapter: adapter * FLOAT,
        gradients,
        optimizer: 2 * trained * FLOAT,
        activations,
        cache: 0,
        program: PROGRAM,
    }
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
