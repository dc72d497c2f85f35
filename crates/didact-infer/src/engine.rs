//! The model's mathematics for inference: a forward pass over rows of tokens of many sequences at once.
//!
//! Start with [`Engine::forward`]. Rows of different sequences stand together in every matrix; only attention knows
//! which sequence a row belongs to, through the sequence's [`KvCache`]. Since every kernel gives a row the same bits
//! whatever stands beside it, a token's logits do not depend on the batch or on how a prompt was cut into pieces.

use crate::adapter::{EngineAdapter, Run, Site, add_branches};
use crate::cache::{KvCache, Pool};
use crate::error::InferError;
use crate::weights::EngineWeights;
use didact_kernels::gemm::{MatRef, PackedB, gemm_rows};
use didact_kernels::{Precision, activation, attention, norm, rope, vector};
use didact_model::peft::Adapter;
use didact_model::rope::inverse_frequencies;
use didact_model::{Activation, Architecture, ModelConfig};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Rows of logits that exist at a time.
const LOGIT_ROWS: usize = 256;

/// A model, its weights packed for inference.
#[derive(Debug)]
pub struct Engine {
    config: ModelConfig,
    precision: Precision,
    /// `[E, V]`; the output projection too, unless there is a `head`. In bf16 it is rounded as the products' operands are.
    embedding: PackedB,
    /// `[context, E]`, of models that learn their positions.
    positions: Option<Vec<f32>>,
    blocks: Vec<Block>,
    norm: Norm,
    head: Option<PackedB>,
    /// Angle per position of each pair of dimensions; empty without rotary embedding.
    frequencies: Vec<f32>,
    rotary_scale: f32,
    pool: Arc<Pool>,
    /// Memory of passes, for those that run at the same time one each.
    spare: Mutex<Vec<Workspace>>,
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
        let weight = PackedB::for_rows(from, inputs, outputs, precision);
        Self { weight, bias: (!bias.is_empty()).then_some(bias) }
    }

    /// `y = x·Wᵀ + b`.
    fn apply(&self, y: &mut [f32], x: &[f32]) {
        let (inputs, outputs) = (self.weight.k(), self.weight.n());
        gemm_rows(y, outputs, x.len() / inputs, x, &self.weight, false);
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
        let table = |values: &[f32]| {
            let columns = MatRef::transposed(values, config.hidden_size);
            PackedB::for_rows(columns, config.hidden_size, config.vocab_size, precision)
        };
        let embedding = table(&w.take(embedding).1);
        let head = (!config.tie_word_embeddings).then(|| table(&w.take("lm_head.weight").1));
        let (frequencies, rotary_scale) = inverse_frequencies(&config);
        Self {
            positions: positions.map(|name| w.take(name).1),
            norm: Norm::take(w, norm, eps),
            pool: pool(&config, precision),
            config,
            precision,
            embedding,
            blocks,
            head,
            frequencies,
            rotary_scale,
            spare: Mutex::new(Vec::new()),
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

    /// Memory of the packed weights.
    pub fn weight_bytes(&self) -> usize {
        let linear = |l: &Linear| l.weight.bytes();
        let blocks = self
            .blocks
            .iter()
            .map(|b| linear(&b.qkv) + linear(&b.attention_out) + linear(&b.feed_in) + linear(&b.feed_out));
        blocks.sum::<usize>() + self.embedding.bytes() + self.head.as_ref().map_or(0, PackedB::bytes)
    }

    /// Memory of the caches in use, of those that were made by [`cache`](Self::cache).
    pub fn cache_bytes(&self) -> usize {
        self.pool.live() * self.pool.page_bytes()
    }

    /// A cache for a new sequence.
    pub fn cache(&self) -> KvCache {
        self.pool.cache(None)
    }

    /// A cache for a new sequence that is read with an adapter.
    pub fn cache_with(&self, adapter: &Arc<EngineAdapter>) -> KvCache {
        self.pool.cache(Some(Arc::clone(adapter)))
    }

    /// A place for caches of its own.
    pub(crate) fn new_pool(&self) -> Arc<Pool> {
        pool(&self.config, self.precision)
    }

    /// Packs a LoRA adapter, to be used beside the weights: see [`cache_with`](Self::cache_with).
    ///
    /// # Errors
    /// When it does not fit the model.
    pub fn adapter(&self, adapter: &Adapter) -> Result<Arc<EngineAdapter>, InferError> {
        Ok(Arc::new(EngineAdapter::new(adapter, &self.config, self.precision)?))
    }

    /// Reads the spans' tokens and hands over logits in pieces: the range of rows, counted over all rows that were asked
    /// for in the order of the spans, and their logits `[range.len(), V]`.
    ///
    /// # Panics
    /// If an id is not in the vocabulary or a sequence becomes longer than the context of a model that learns its
    /// positions.
    pub fn forward(&self, spans: &mut [Span<'_>], mut logits: impl FnMut(Range<usize>, &[f32])) {
        let (hidden, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let rows: usize = spans.iter().map(|s| s.ids.len()).sum();
        if rows == 0 {
            return;
        }
        self.tokens_read.fetch_add(rows as u64, Ordering::Relaxed);
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let mut work = spare().pop().unwrap_or_default();
        in_pool(|| self.hidden(spans, rows, &mut work));

        // The output projection is most of a small model: only for rows whose logits are asked for.
        let mut wanted = Vec::new();
        let mut first = 0;
        for span in spans.iter() {
            wanted.extend(first + span.logits_from..first + span.ids.len());
            first += span.ids.len();
        }
        let Workspace { x, normed, scores, picked, .. } = &mut work;
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        for (piece, wanted) in wanted.chunks(LOGIT_ROWS).enumerate() {
            picked.clear();
            picked.extend(wanted.iter().flat_map(|&r| &x[r * hidden..][..hidden]));
            let normed = sized(normed, picked.len());
            let scores = sized(scores, wanted.len() * vocab);
            in_pool(|| {
                self.norm.apply(normed, picked);
                gemm_rows(scores, vocab, wanted.len(), normed, head, false);
            });
            let begin = piece * LOGIT_ROWS;
            logits(begin..begin + wanted.len(), scores);
        }
        spare().push(work);
    }

    /// The blocks: what stands behind each of the spans' tokens, `[rows, E]`, in `work.x`.
    fn hidden(&self, spans: &mut [Span<'_>], rows: usize, work: &mut Workspace) {
        let config = &self.config;
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let qkv_width = (heads + 2 * kv_heads) * d;
        let positions: Vec<u32> =
            spans.iter().flat_map(|s| (s.cache.len()..s.cache.len() + s.ids.len()).map(|p| p as u32)).collect();
        let runs = runs(spans);
        for span in spans.iter_mut() {
            span.cache.grow(span.ids.len());
        }
        let ids: Vec<u32> = spans.iter().flat_map(|s| s.ids).copied().collect();
        let Workspace { x, normed, qkv, mixed, inner, activated, .. } = work;
        let x = sized(x, rows * hidden);
        self.embed(x, &ids, &positions);
        let (cos, sin) = self.rotations(&positions);
        // Each row of the tables belongs to one row of tokens.
        let table_rows: Vec<u32> = (0..rows as u32).collect();

        let normed = sized(normed, rows * hidden);
        let qkv = sized(qkv, rows * qkv_width);
        let mixed = sized(mixed, rows * heads * d);
        let inner_width = self.blocks.first().map_or(0, |b| b.feed_in.weight.n());
        let inner = sized(inner, rows * inner_width);
        let activated = sized(activated, if config.is_gated() { rows * config.intermediate_size } else { 0 });

        for (layer, block) in self.blocks.iter().enumerate() {
            block.attention_norm.apply(normed, x);
            block.qkv.apply(qkv, normed);
            add_branches(&runs, layer, Site::Qkv, qkv, qkv_width, normed);
            if let Some((query, key)) = &block.head_gains {
                self.norm_heads(qkv, qkv_width, query, key);
            }
            if !self.frequencies.is_empty() {
                // Queries and keys stand side by side, so they are rotated as one.
                rope::apply(qkv, qkv_width, heads + kv_heads, d, &cos, &sin, &table_rows);
            }
            self.attend(mixed, qkv, layer, spans);
            // Added when it is whole: a sum that began at the residual would be rounded at every step as coarsely as the
            // largest residuals are, which some models' first tokens have in the ten thousands.
            block.attention_out.apply(normed, mixed);
            vector::add(x, normed);
            add_branches(&runs, layer, Site::AttentionOut, x, hidden, mixed);

            block.feed_norm.apply(normed, x);
            block.feed_in.apply(inner, normed);
            add_branches(&runs, layer, Site::FeedIn, inner, inner_width, normed);
            let fed = if config.is_gated() {
                gate(config.hidden_act, activated, inner, config.intermediate_size);
                &*activated
            } else {
                activate(config.hidden_act, inner);
                &*inner
            };
            block.feed_out.apply(normed, fed);
            vector::add(x, normed);
            add_branches(&runs, layer, Site::FeedOut, x, hidden, fed);
        }
        for span in spans.iter_mut() {
            span.cache.advance(span.ids.len());
        }
    }

    /// Fills `x`, `[rows, E]`: each token's embedding, plus its position's where those are learned.
    fn embed(&self, x: &mut [f32], ids: &[u32], positions: &[u32]) {
        let hidden = self.config.hidden_size;
        x.par_chunks_exact_mut(hidden).zip(ids.par_iter().zip(positions)).with_min_len(16).for_each(
            |(row, (&id, &position))| {
                self.embedding.column(id as usize, row);
                if let Some(table) = &self.positions {
                    vector::add(row, &table[position as usize * hidden..][..hidden]);
                }
            },
        );
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

    /// Keys and values go to the caches, and each row's heads attend to its sequence up to the row itself.
    fn attend(&self, mixed: &mut [f32], qkv: &[f32], layer: usize, spans: &mut [Span<'_>]) {
        let shape = HeadShape::of(&self.config);
        let (row, width) = (shape.qkv_width(), shape.heads * shape.head_dim);
        // Rows of one sequence that are worked on together.
        let tile = shape.rows_together();
        let mut rest = qkv;
        for span in spans.iter_mut() {
            let (own, others) = rest.split_at(span.ids.len() * row);
            rest = others;
            if span.ids.len() > tile {
                shape.store(span.cache, layer, own);
            }
        }
        let mut tasks = Vec::new();
        let (mut rest, mut rest_out) = (qkv, mixed);
        for span in spans.iter_mut().filter(|span| !span.ids.is_empty()) {
            let (own, others) = rest.split_at(span.ids.len() * row);
            let (out, others_out) = std::mem::take(&mut rest_out).split_at_mut(span.ids.len() * width);
            (rest, rest_out) = (others, others_out);
            let begin = span.cache.len();
            if span.ids.len() > tile {
                let cache = &*span.cache;
                let pieces = out.chunks_mut(tile * width).zip(own.chunks(tile * row)).enumerate();
                tasks.extend(pieces.map(|(i, (out, qkv))| Task {
                    out,
                    qkv,
                    begin: begin + i * tile,
                    sequence: Sequence::Stored(cache),
                }));
            } else {
                tasks.push(Task { out, qkv: own, begin, sequence: Sequence::New(&mut *span.cache) });
            }
        }
        let is_alone = tasks.len() == 1;
        let run = |scratch: &mut Scratch, task| shape.run(task, layer, is_alone, scratch);
        tasks.into_par_iter().for_each_init(Scratch::default, run);
    }
}

/// Rows of one sequence, to attend.
struct Task<'a> {
    out: &'a mut [f32],
    qkv: &'a [f32],
    /// Position of the first row.
    begin: usize,
    sequence: Sequence<'a>,
}

enum Sequence<'a> {
    /// The rows' keys and values are in the cache.
    Stored(&'a KvCache),
    /// They are not yet.
    New(&'a mut KvCache),
}

#[derive(Default)]
struct Scratch {
    query: Vec<f32>,
    out: Vec<f32>,
    lens: Vec<usize>,
    scores: Vec<f32>,
}

/// The heads of a row of queries, keys and values.
#[derive(Clone, Copy)]
struct HeadShape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl HeadShape {
    fn of(config: &ModelConfig) -> Self {
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        Self { heads, kv_heads, head_dim: config.head_dim }
    }

    fn qkv_width(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// So that about as many queries meet each load of the cache as the kernel can take.
    fn rows_together(self) -> usize {
        (attention::QUERIES / (self.heads / self.kv_heads)).max(1)
    }

    fn store(self, cache: &mut KvCache, layer: usize, qkv: &[f32]) {
        let keys_at = self.heads * self.head_dim;
        cache.store(layer, qkv, self.qkv_width(), keys_at, keys_at + self.kv_heads * self.head_dim);
    }

    fn run(self, task: Task<'_>, layer: usize, is_alone: bool, scratch: &mut Scratch) {
        let Task { out, qkv, begin, sequence } = task;
        let cache = match sequence {
            Sequence::Stored(cache) => cache,
            Sequence::New(cache) => {
                self.store(cache, layer, qkv);
                &*cache
            }
        };
        let d = self.head_dim;
        let (row, width) = (self.qkv_width(), self.heads * d);
        // Query heads that share a key/value head.
        let group = self.heads / self.kv_heads;
        let scale = 1.0 / (d as f32).sqrt();
        let blocks = cache.blocks();
        let rows = qkv.len() / row;
        let Scratch { query, out: results, lens, scores } = scratch;
        lens.clear();
        lens.extend((0..rows).flat_map(|r| std::iter::repeat_n(begin + r + 1, group)));
        if rows == 1 {
            let heads = out.chunks_exact_mut(group * d).zip(qkv.chunks_exact(group * d)).enumerate();
            if !is_alone || begin < LONG {
                for (h, (out, query)) in heads {
                    attention::attend(out, query, lens, &blocks, layer * self.kv_heads + h, scale, scores);
                }
            } else {
                let heads: Vec<_> = heads.collect();
                heads.into_par_iter().for_each(|(h, (out, query))| {
                    let slot = layer * self.kv_heads + h;
                    attention::attend(out, query, lens, &blocks, slot, scale, &mut Vec::new());
                });
            }
            return;
        }
        results.resize(rows * group * d, 0.0);
        for h in 0..self.kv_heads {
            let at = h * group * d;
            query.clear();
            query.extend(qkv.chunks_exact(row).flat_map(|row| &row[at..at + group * d]));
            attention::attend(results, query, lens, &blocks, layer * self.kv_heads + h, scale, scores);
            for (out, result) in out.chunks_exact_mut(width).zip(results.chunks_exact(group * d)) {
                out[at..at + group * d].copy_from_slice(result);
            }
        }
    }
}

/// Positions from which on the heads of a single row are worth several threads.
const LONG: usize = 32;

/// Memory of a pass.
#[derive(Debug, Default)]
struct Workspace {
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    inner: Vec<f32>,
    activated: Vec<f32>,
    picked: Vec<f32>,
    scores: Vec<f32>,
}

/// The first `len` floats, of any value.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Runs on a thread of the current pool and keeps the others awake meanwhile: a pass is hundreds of products of some
/// microseconds each, and waking a thread takes as long as one.
fn in_pool(work: impl FnOnce() + Send) {
    /// Lets the others go, whatever happens.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let is_done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let done = Done(&is_done);
        let (is_done, own) = (&is_done, rayon::current_thread_index());
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(move |_| {
                // This thread has the work to do itself.
                let is_own = rayon::current_thread_index() == own;
                while !is_own && !is_done.load(Ordering::Acquire) {
                    if rayon::yield_now() != Some(rayon::Yield::Executed) {
                        std::hint::spin_loop();
                    }
                }
            });
        }
        work();
        drop(done);
    });
}

fn pool(config: &ModelConfig, precision: Precision) -> Arc<Pool> {
    Pool::new(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, precision)
}

/// The rows of spans that use an adapter, neighbours of the same one together.
fn runs(spans: &[Span<'_>]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut first = 0;
    for span in spans {
        let rows = first..first + span.ids.len();
        first = rows.end;
        let Some(adapter) = span.cache.adapter() else { continue };
        match runs.last_mut() {
            Some(last) if last.rows.end == rows.start && Arc::ptr_eq(&last.adapter, adapter) => {
                last.rows.end = rows.end;
            }
            _ => runs.push(Run { rows, adapter: Arc::clone(adapter) }),
        }
    }
    runs
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
