//! The model's mathematics for inference: a forward pass over rows of tokens of many sequences at once.
//!
//! Start with [`Engine::forward`]. Rows of different sequences stand together in every matrix; only attention knows
//! which sequence a row belongs to, through the sequence's [`KvCache`]. Since every kernel gives a row the same bits
//! whatever stands beside it, a token's logits do not depend on the batch or on how a prompt was cut into pieces.

use crate::cache::KvCache;
use crate::weights::EngineWeights;
use didact_kernels::gemm::{MatRef, PackedB, gemm_packed};
use didact_kernels::{Precision, activation, attention, norm, rope, vector};
use didact_model::rope::inverse_frequencies;
use didact_model::{Activation, Architecture, ModelConfig};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows of logits that exist at a time.
const LOGIT_ROWS: usize = 256;

/// A model, its weights packed for inference.
#[derive(Debug)]
pub struct Engine {
    config: ModelConfig,
    precision: Precision,
    /// `[V, E]`.
    embedding: Vec<f32>,
    /// `[context, E]`, of models that learn their positions.
    positions: Option<Vec<f32>>,
    blocks: Vec<Block>,
    norm: Norm,
    head: PackedB,
    /// Angle per position of each pair of dimensions; empty without rotary embedding.
    frequencies: Vec<f32>,
    rotary_scale: f32,
    tokens_read: AtomicU64,
}

#[derive(Debug)]
struct Block {
    attention_norm: Norm,
    /// Queries, keys and values side by side.
    qkv: Linear,
    /// Gains of the norms of query and key heads.
    head_gains: Option<(Vec<f32>, Vec<f32>)>,
    attention_out: Linear,
    feed_norm: Norm,
    /// Gate and up side by side, or the one inner layer.
    feed_in: Linear,
    feed_out: Linear,
}

#[derive(Debug)]
struct Norm {
    gain: Vec<f32>,
    /// With a bias this is a layer norm, without an RMS norm.
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl Norm {
    fn take(weights: &mut EngineWeights, path: &str, eps: f32) -> Self {
        let gain = weights.take(&format!("{path}.weight")).1;
        Self { gain, bias: weights.take_optional(&format!("{path}.bias")), eps }
    }

    fn apply(&self, y: &mut [f32], x: &[f32]) {
        match &self.bias {
            Some(bias) => norm::layer_norm(y, x, &self.gain, bias, self.eps),
            None => norm::rms_norm(y, x, &self.gain, self.eps),
        }
    }
}

#[derive(Debug)]
struct Linear {
    weight: PackedB,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Layers that read the same rows, as one layer.
    fn take(weights: &mut EngineWeights, paths: &[String], precision: Precision) -> Self {
        let is_in_out = weights.config().model_type == Architecture::Gpt2;
        let (mut stacked, mut inputs, mut outputs, mut bias) = (Vec::new(), 0, 0, Vec::new());
        for path in paths {
            let (shape, mut values) = weights.take(&format!("{path}.weight"));
            let (o, i) = if is_in_out { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
            (inputs, outputs) = (i, outputs + o);
            stacked.append(&mut values);
            bias.append(&mut weights.take_optional(&format!("{path}.bias")).unwrap_or_default());
        }
        let from = if is_in_out {
            assert_eq!(paths.len(), 1, "weights that are kept [in, out] are not stacked");
            MatRef::rows(&stacked, outputs)
        } else {
            MatRef::transposed(&stacked, inputs)
        };
        let weight = PackedB::new(from, inputs, outputs, precision);
        Self { weight, bias: (!bias.is_empty()).then_some(bias) }
    }

    /// `y = x·Wᵀ + b`.
    fn apply(&self, y: &mut [f32], x: &[f32]) {
        self.product(y, x, false);
    }

    /// `y += x·Wᵀ + b`.
    fn add_to(&self, y: &mut [f32], x: &[f32]) {
        self.product(y, x, true);
    }

    fn product(&self, y: &mut [f32], x: &[f32], accumulate: bool) {
        let (inputs, outputs) = (self.weight.k(), self.weight.n());
        gemm_packed(y, outputs, x.len() / inputs, MatRef::rows(x, inputs), &self.weight, accumulate);
        if let Some(bias) = &self.bias {
            vector::add_bias(y, bias);
        }
    }
}

/// The next tokens of one sequence.
#[derive(Debug)]
pub struct Span<'a> {
    /// What came before; it grows by the tokens.
    pub cache: &'a mut KvCache,
    /// The tokens.
    pub ids: &'a [u32],
    /// Logits are computed after each token from this index on; `ids.len()` for none.
    pub logits_from: usize,
}

impl Engine {
    /// Packs the weights: as bf16 for [`Precision::Bf16`], else f32.
    pub fn new(mut weights: EngineWeights, precision: Precision) -> Self {
        let config = weights.config().clone();
        let eps = config.norm_eps as f32;
        let is_gpt2 = config.model_type == Architecture::Gpt2;
        let w = &mut weights;
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| {
                if is_gpt2 {
                    let p = format!("transformer.h.{layer}");
                    return Block {
                        attention_norm: Norm::take(w, &format!("{p}.ln_1"), eps),
                        qkv: Linear::take(w, &[format!("{p}.attn.c_attn")], precision),
                        head_gains: None,
                        attention_out: Linear::take(w, &[format!("{p}.attn.c_proj")], precision),
                        feed_norm: Norm::take(w, &format!("{p}.ln_2"), eps),
                        feed_in: Linear::take(w, &[format!("{p}.mlp.c_fc")], precision),
                        feed_out: Linear::take(w, &[format!("{p}.mlp.c_proj")], precision),
                    };
                }
                let p = format!("model.layers.{layer}");
                let gains = ["q_norm", "k_norm"].map(|n| w.take_optional(&format!("{p}.self_attn.{n}.weight")));
                let [query_gain, key_gain] = gains;
                Block {
                    attention_norm: Norm::take(w, &format!("{p}.input_layernorm"), eps),
                    qkv: Linear::take(w, &["q", "k", "v"].map(|n| format!("{p}.self_attn.{n}_proj")), precision),
                    head_gains: query_gain.zip(key_gain),
                    attention_out: Linear::take(w, &[format!("{p}.self_attn.o_proj")], precision),
                    feed_norm: Norm::take(w, &format!("{p}.post_attention_layernorm"), eps),
                    feed_in: Linear::take(w, &["gate", "up"].map(|n| format!("{p}.mlp.{n}_proj")), precision),
                    feed_out: Linear::take(w, &[format!("{p}.mlp.down_proj")], precision),
                }
            })
            .collect();
        let (embedding, positions, norm) = if is_gpt2 {
            ("transformer.wte.weight", Some("transformer.wpe.weight"), "transformer.ln_f")
        } else {
            ("model.embed_tokens.weight", None, "model.norm")
        };
        let embedding = w.take(embedding).1;
        let untied = if config.tie_word_embeddings { None } else { Some(w.take("lm_head.weight").1) };
        let head = MatRef::transposed(untied.as_deref().unwrap_or(&embedding), config.hidden_size);
        let head = PackedB::new(head, config.hidden_size, config.vocab_size, precision);
        let (frequencies, rotary_scale) = inverse_frequencies(&config);
        Self {
            positions: positions.map(|name| w.take(name).1),
            norm: Norm::take(w, norm, eps),
            config,
            precision,
            embedding,
            blocks,
            head,
            frequencies,
            rotary_scale,
            tokens_read: AtomicU64::new(0),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// In what the products are computed.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Tokens that forward passes have read so far.
    pub fn tokens_read(&self) -> u64 {
        self.tokens_read.load(Ordering::Relaxed)
    }

    /// A cache for a new sequence.
    pub fn cache(&self) -> KvCache {
        KvCache::new(self.config.num_hidden_layers, self.config.num_key_value_heads, self.config.head_dim)
    }

    /// Reads the spans' tokens and hands over logits in pieces: the range of rows, counted over all rows that were asked
    /// for in the order of the spans, and their logits `[range.len(), V]`.
    ///
    /// # Panics
    /// If an id is not in the vocabulary or a sequence becomes longer than the context of a model that learns its
    /// positions.
    pub fn forward(&self, spans: &mut [Span<'_>], mut logits: impl FnMut(Range<usize>, &[f32])) {
        let config = &self.config;
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let qkv_width = (heads + 2 * kv_heads) * d;
        let rows: usize = spans.iter().map(|s| s.ids.len()).sum();
        if rows == 0 {
            return;
        }
        self.tokens_read.fetch_add(rows as u64, Ordering::Relaxed);
        let positions: Vec<u32> =
            spans.iter().flat_map(|s| (s.cache.len()..s.cache.len() + s.ids.len()).map(|p| p as u32)).collect();
        // Where each row's sequence stands among the spans.
        let owners: Vec<usize> = spans.iter().enumerate().flat_map(|(i, s)| vec![i; s.ids.len()]).collect();
        for span in spans.iter_mut() {
            span.cache.grow(span.ids.len());
        }
        let mut x = self.embed(spans.iter().flat_map(|s| s.ids), &positions);
        let (cos, sin) = self.rotations(&positions);
        // Each row of the tables belongs to one row of tokens.
        let table_rows: Vec<u32> = (0..rows as u32).collect();

        let mut normed = vec![0.0; rows * hidden];
        let mut qkv = vec![0.0; rows * qkv_width];
        let mut mixed = vec![0.0; rows * heads * d];
        let inner_width = self.blocks.first().map_or(0, |b| b.feed_in.weight.n());
        let mut inner = vec![0.0; rows * inner_width];
        let mut activated = vec![0.0; if config.is_gated() { rows * config.intermediate_size } else { 0 }];

        for (layer, block) in self.blocks.iter().enumerate() {
            block.attention_norm.apply(&mut normed, &x);
            block.qkv.apply(&mut qkv, &normed);
            if let Some((query, key)) = &block.head_gains {
                self.norm_heads(&mut qkv, qkv_width, query, key);
            }
            if !self.frequencies.is_empty() {
                // Queries and keys stand side by side, so they are rotated as one.
                rope::apply(&mut qkv, qkv_width, heads + kv_heads, d, &cos, &sin, &table_rows);
            }
            let mut rest = &qkv[..];
            for span in spans.iter_mut() {
                let (own, others) = rest.split_at(span.ids.len() * qkv_width);
                span.cache.store(layer, own, qkv_width, heads * d, (heads + kv_heads) * d);
                rest = others;
            }
            let caches: Vec<&KvCache> = spans.iter().map(|s| &*s.cache).collect();
            self.attend(&mut mixed, &qkv, qkv_width, layer, &caches, &owners, &positions);
            block.attention_out.add_to(&mut x, &mixed);

            block.feed_norm.apply(&mut normed, &x);
            block.feed_in.apply(&mut inner, &normed);
            if config.is_gated() {
                gate(config.hidden_act, &mut activated, &inner, config.intermediate_size);
                block.feed_out.add_to(&mut x, &activated);
            } else {
                activate(config.hidden_act, &mut inner);
                block.feed_out.add_to(&mut x, &inner);
            }
        }
        for span in spans.iter_mut() {
            span.cache.advance(span.ids.len());
        }

        // The output projection is most of a small model: only for rows whose logits are asked for.
        let mut wanted = Vec::new();
        let mut first = 0;
        for span in spans.iter() {
            wanted.extend(first + span.logits_from..first + span.ids.len());
            first += span.ids.len();
        }
        let mut scores = vec![0.0; wanted.len().min(LOGIT_ROWS) * config.vocab_size];
        for (piece, wanted) in wanted.chunks(LOGIT_ROWS).enumerate() {
            let picked: Vec<f32> = wanted.iter().flat_map(|&r| &x[r * hidden..][..hidden]).copied().collect();
            let normed = &mut normed[..picked.len()];
            self.norm.apply(normed, &picked);
            let scores = &mut scores[..wanted.len() * config.vocab_size];
            gemm_packed(scores, config.vocab_size, wanted.len(), MatRef::rows(normed, hidden), &self.head, false);
            let begin = piece * LOGIT_ROWS;
            logits(begin..begin + wanted.len(), scores);
        }
    }

    /// `[rows, E]`: each token's embedding, plus its position's where those are learned.
    fn embed<'a>(&self, ids: impl Iterator<Item = &'a u32>, positions: &[u32]) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let mut x = Vec::with_capacity(positions.len() * hidden);
        for &id in ids {
            x.extend_from_slice(&self.embedding[id as usize * hidden..][..hidden]);
        }
        if let Some(table) = &self.positions {
            for (row, &position) in x.chunks_exact_mut(hidden).zip(positions) {
                vector::add(row, &table[position as usize * hidden..][..hidden]);
            }
        }
        x
    }

    /// Cosine and sine of each row's angles, `[rows, D/2]` each. Angles are computed in f32, as the Python library does.
    fn rotations(&self, positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let angles = || positions.iter().flat_map(|&p| self.frequencies.iter().map(move |f| p as f32 * f));
        let scale = self.rotary_scale;
        (angles().map(|a| a.cos() * scale).collect(), angles().map(|a| a.sin() * scale).collect())
    }

    /// Normalises the query and key heads of each row in place.
    fn norm_heads(&self, qkv: &mut [f32], width: usize, query: &[f32], key: &[f32]) {
        let (d, eps) = (self.config.head_dim, self.config.norm_eps as f32);
        let queries = self.config.num_attention_heads * d;
        let both = queries + self.config.num_key_value_heads * d;
        qkv.par_chunks_exact_mut(width).for_each_init(Vec::new, |before: &mut Vec<f32>, row| {
            before.clear();
            before.extend_from_slice(&row[..both]);
            norm::rms_norm(&mut row[..queries], &before[..queries], query, eps);
            norm::rms_norm(&mut row[queries..both], &before[queries..], key, eps);
        });
    }

    /// Each row's heads attend to its sequence up to the row itself.
    fn attend(
        &self,
        mixed: &mut [f32],
        qkv: &[f32],
        qkv_width: usize,
        layer: usize,
        caches: &[&KvCache],
        owners: &[usize],
        positions: &[u32],
    ) {
        let d = self.config.head_dim;
        let heads = self.config.num_attention_heads;
        // Query heads that share a key/value head.
        let group = heads / self.config.num_key_value_heads * d;
        let scale = 1.0 / (d as f32).sqrt();
        mixed
            .par_chunks_exact_mut(heads * d)
            .zip(qkv.par_chunks_exact(qkv_width))
            .zip(owners.par_iter().zip(positions))
            .for_each_init(Vec::new, |scratch, ((out, row), (&owner, &position))| {
                let groups = out.chunks_exact_mut(group).zip(row.chunks_exact(group));
                for ((out, query), head) in groups.zip(caches[owner].layer(layer)) {
                    let len = position as usize + 1;
                    attention::decode(out, query, &head.keys, &head.values, len, d, scale, scratch);
                }
            });
    }
}

/// The non-linearity, in place.
fn activate(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Silu => {
            let ones = vec![1.0; x.len()];
            let both = [&*x, &ones].concat();
            activation::silu_mul(x, &both, ones.len());
        }
        Activation::GeluTanh => activation::gelu_tanh(x),
        Activation::Gelu => activation::gelu_erf(x),
    }
}

/// `y = activation(gate) · up`, where each row of `x` is `gate` then `up`, `width` floats each.
fn gate(activation: Activation, y: &mut [f32], x: &[f32], width: usize) {
    if activation == Activation::Silu {
        activation::silu_mul(y, x, width);
        return;
    }
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
        y.copy_from_slice(&x[..width]);
    }
    activate(activation, y);
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
        for (y, up) in y.iter_mut().zip(&x[width..]) {
            *y *= up;
        }
    }
}
