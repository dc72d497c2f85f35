//! The decoder: Llama, Qwen 2, Qwen 3 and GPT-2 from one block.
//!
//! `x += attention(norm(x)); x += feed_forward(norm(x))`, and a norm at the end. What differs between the architectures
//! is which parameters a block has: RMS norm or layer norm, rotary or learned positions, separate or joint projections
//! of queries, keys and values, norms on query and key heads, biases, a gated or plain feed-forward.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use didact_core::seed::Streams;
use didact_kernels::Precision;
use didact_kernels::sdpa::Segment;

use crate::config::{Architecture, ModelConfig};
use crate::error::ModelError;
use crate::init::{initial_lora_a, initial_values};
use crate::lora::{
    LoraBranchIds, LoraConfig, LoraState, lora_a_name, lora_b_name, merge_branch, target_layers, weight_layout,
};
use crate::ops::{
    AttentionPlan, Dropout, LoraBranch, Projection, WeightLayout, activate, attention, gated, gather_rows, head_norm,
    layer_norm, linear, project, rms_norm,
};
use crate::ops::{block as fused, storage::on_flex};
use crate::parameters::{ParameterId, ParameterSet};
use crate::rotary::RotaryTable;
use crate::shapes::expected_parameters;
use crate::weights::Checkpoint;

/// A rectangular batch of packed rows.
#[derive(Debug, Clone, Copy)]
pub struct DecoderInput<'a> {
    /// Token ids, `[B·T]`.
    pub ids: &'a [u32],
    /// The document that each token belongs to, `[B·T]`; only equality within a row matters.
    pub segments: &'a [u32],
    /// Each token's position within its document, `[B·T]`.
    pub positions: &'a [u32],
    /// Rows, B.
    pub rows: usize,
    /// Tokens per row, T.
    pub len: usize,
}

impl DecoderInput<'_> {
    /// Checks the lengths, the ids against the vocabulary, and the positions against the context.
    ///
    /// # Errors
    /// [`ModelError::BatchInput`] naming what does not fit.
    pub fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let refuse =
            |what: &'static str, found: usize, limit: usize| Err(ModelError::BatchInput { what, found, limit });
        let tokens = self.rows * self.len;
        for (what, found) in [
            ("number of ids", self.ids.len()),
            ("number of segments", self.segments.len()),
            ("number of positions", self.positions.len()),
        ] {
            if found != tokens {
                return refuse(what, found, tokens);
            }
        }
        if let Some(&id) = self.ids.iter().find(|&&id| id as usize >= config.vocab_size) {
            return refuse("token id", id as usize, config.vocab_size - 1);
        }
        let context = config.max_position_embeddings;
        if config.rope.is_none()
            && let Some(&position) = self.positions.iter().find(|&&p| p as usize >= context)
        {
            return refuse("position", position as usize, context - 1);
        }
        Ok(())
    }
}

/// The tokens of a batch that are computed, document after document. Everything but attention works on single tokens,
/// and attention sees its own document only, so rows and padding need not exist inside the decoder.
#[derive(Debug)]
pub(crate) struct Order {
    /// Places in the batch, `0..B·T`.
    tokens: Vec<u32>,
    /// Each document's part of `tokens`.
    sequences: Vec<Range<usize>>,
    /// `B·T`.
    batch: usize,
}

impl Order {
    /// All tokens.
    fn all(input: &DecoderInput<'_>) -> Self {
        Self::new(input, |_| true)
    }

    /// The tokens that a loss with these weights depends on: each document up to its last token with a weight. All
    /// tokens if there is no weight at all.
    pub(crate) fn for_weights(input: &DecoderInput<'_>, weights: &[f32]) -> Self {
        let order = Self::new(input, |i| weights[i] != 0.0);
        if order.tokens.is_empty() { Self::all(input) } else { order }
    }

    fn new(input: &DecoderInput<'_>, is_needed: impl Fn(usize) -> bool) -> Self {
        let mut order = Self { tokens: Vec::new(), sequences: Vec::new(), batch: input.rows * input.len };
        for row in 0..input.rows {
            // In the order in which they begin; a document may go on after another one.
            let mut documents: Vec<(u32, Vec<u32>)> = Vec::new();
            let mut places = BTreeMap::new();
            for i in row * input.len..(row + 1) * input.len {
                let segment = input.segments[i];
                let place = *places.entry(segment).or_insert_with(|| {
                    documents.push((segment, Vec::new()));
                    documents.len() - 1
                });
                documents[place].1.push(i as u32);
            }
            for (_, document) in documents {
                let used = document.iter().rposition(|&i| is_needed(i as usize)).map_or(0, |last| last + 1);
                if used > 0 {
                    let begin = order.tokens.len();
                    order.tokens.extend_from_slice(&document[..used]);
                    order.sequences.push(begin..order.tokens.len());
                }
            }
        }
        order
    }

    fn is_that_of_the_batch(&self) -> bool {
        self.tokens.len() == self.batch && self.tokens.iter().enumerate().all(|(i, &t)| i == t as usize)
    }

    fn pick(&self, values: &[u32]) -> Vec<u32> {
        self.tokens.iter().map(|&i| values[i as usize]).collect()
    }

    /// Where each token of the batch is in this order; `u32::MAX` for those that are not.
    pub(crate) fn places(&self) -> Vec<u32> {
        let mut places = vec![u32::MAX; self.batch];
        for (place, &token) in self.tokens.iter().enumerate() {
            places[token as usize] = place as u32;
        }
        places
    }
}

/// Whether a forward pass is for training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardMode {
    /// No gradients are recorded, nothing is dropped.
    Eval,
    /// Gradients are recorded; adapters drop inputs by masks made from the key.
    Train {
        /// Names the masks: different for every micro-batch of every step.
        dropout_key: u64,
    },
}

/// A causal language model.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    parameters: ParameterSet,
    base_len: usize,
    lora: Option<LoraState>,
    layers: Layers,
    precision: Precision,
    is_recomputing: bool,
}

#[derive(Debug)]
struct Layers {
    embedding: ParameterId,
    positions: Option<ParameterId>,
    blocks: Vec<Block>,
    norm: Norm,
    head: ParameterId,
}

#[derive(Debug)]
struct Block {
    attention_norm: Norm,
    qkv: Vec<Linear>,
    head_gains: Option<(ParameterId, ParameterId)>,
    attention_out: Linear,
    feed_norm: Norm,
    feed_in: Vec<Linear>,
    feed_out: Linear,
}

#[derive(Debug)]
struct Norm {
    gain: ParameterId,
    /// With a bias this is a layer norm, without an RMS norm.
    bias: Option<ParameterId>,
}

#[derive(Debug)]
struct Linear {
    path: String,
    /// Counts the model's linear layers; mixed into dropout keys.
    number: u64,
    weight: ParameterId,
    bias: Option<ParameterId>,
    layout: WeightLayout,
    lora: Option<(ParameterId, ParameterId)>,
}

/// Looks names up in a complete parameter set.
struct Names<'a> {
    parameters: &'a ParameterSet,
    layout: WeightLayout,
    linears: u64,
}

impl Names<'_> {
    fn need(&self, name: &str) -> ParameterId {
        self.parameters.id(name).unwrap_or_else(|| panic!("`{name}` is missing from the list of parameters"))
    }

    fn norm(&self, path: &str) -> Norm {
        Norm { gain: self.need(&format!("{path}.weight")), bias: self.parameters.id(&format!("{path}.bias")) }
    }

    fn linear(&mut self, path: String) -> Linear {
        self.linears += 1;
        Linear {
            number: self.linears - 1,
            weight: self.need(&format!("{path}.weight")),
            bias: self.parameters.id(&format!("{path}.bias")),
            layout: self.layout,
            lora: None,
            path,
        }
    }
}

impl Layers {
    fn new(config: &ModelConfig, parameters: &ParameterSet) -> Self {
        let mut names = Names { parameters, layout: weight_layout(config), linears: 0 };
        let gpt2 = config.model_type == Architecture::Gpt2;
        let (embedding, positions, norm) = if gpt2 {
            ("transformer.wte.weight", Some("transformer.wpe.weight"), "transformer.ln_f")
        } else {
            ("model.embed_tokens.weight", None, "model.norm")
        };
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| {
                if gpt2 {
                    let p = format!("transformer.h.{layer}");
                    return Block {
                        attention_norm: names.norm(&format!("{p}.ln_1")),
                        qkv: vec![names.linear(format!("{p}.attn.c_attn"))],
                        head_gains: None,
                        attention_out: names.linear(format!("{p}.attn.c_proj")),
                        feed_norm: names.norm(&format!("{p}.ln_2")),
                        feed_in: vec![names.linear(format!("{p}.mlp.c_fc"))],
                        feed_out: names.linear(format!("{p}.mlp.c_proj")),
                    };
                }
                let p = format!("model.layers.{layer}");
                let gains = ["q_norm", "k_norm"].map(|n| names.parameters.id(&format!("{p}.self_attn.{n}.weight")));
                Block {
                    attention_norm: names.norm(&format!("{p}.input_layernorm")),
                    qkv: ["q_proj", "k_proj", "v_proj"].map(|n| names.linear(format!("{p}.self_attn.{n}"))).into(),
                    head_gains: gains[0].zip(gains[1]),
                    attention_out: names.linear(format!("{p}.self_attn.o_proj")),
                    feed_norm: names.norm(&format!("{p}.post_attention_layernorm")),
                    feed_in: ["gate_proj", "up_proj"].map(|n| names.linear(format!("{p}.mlp.{n}"))).into(),
                    feed_out: names.linear(format!("{p}.mlp.down_proj")),
                }
            })
            .collect();
        Self {
            embedding: names.need(embedding),
            positions: positions.map(|n| names.need(n)),
            blocks,
            norm: names.norm(norm),
            head: names.need(if config.tie_word_embeddings { embedding } else { "lm_head.weight" }),
        }
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(|b| {
            let Block { qkv, attention_out, feed_in, feed_out, .. } = b;
            qkv.iter_mut().chain([attention_out]).chain(feed_in).chain([feed_out])
        })
    }
}

impl Decoder {
    /// Loads every parameter of a model. All of them are trainable.
    ///
    /// # Errors
    /// [`ModelError`] if a tensor cannot be read or holds a number that is not finite.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self, ModelError> {
        let config = checkpoint.config().clone();
        let mut parameters = ParameterSet::new(device);
        for spec in expected_parameters(&config) {
            let values = checkpoint.tensor_f32(&spec.name)?;
            parameters.push(spec.name, &spec.shape, values, true, spec.decay);
        }
        Ok(Self::assemble(config, parameters))
    }

    /// A model from scratch, see [`initial_values`]. All parameters are trainable.
    pub fn init(config: &ModelConfig, streams: &Streams, device: &Device) -> Self {
        let mut parameters = ParameterSet::new(device);
        for spec in expected_parameters(config) {
            let values = initial_values(config, &spec, streams);
            parameters.push(spec.name, &spec.shape, values, true, spec.decay);
        }
        Self::assemble(config.clone(), parameters)
    }

    fn assemble(config: ModelConfig, parameters: ParameterSet) -> Self {
        let layers = Layers::new(&config, &parameters);
        let base_len = parameters.len();
        Self { config, parameters, base_len, lora: None, layers, precision: Precision::F32, is_recomputing: false }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// All parameters; an adapter's come last.
    pub fn parameters(&self) -> &ParameterSet {
        &self.parameters
    }

    /// All parameters, to be changed.
    pub fn parameters_mut(&mut self) -> &mut ParameterSet {
        &mut self.parameters
    }

    /// The adapter, if one was added.
    pub fn lora(&self) -> Option<&LoraState> {
        self.lora.as_ref()
    }

    /// Arithmetic of the matrix products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Sets the arithmetic of the matrix products; `F32` at first.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Whether training keeps only the inputs of blocks and does their forward pass again before the backward pass: the
    /// same gradients, for less memory and more time. Not at first. Without effect on devices other than this processor.
    pub fn set_activation_checkpointing(&mut self, is_on: bool) {
        self.is_recomputing = is_on;
    }

    /// Adds a fresh adapter, which changes no output yet, and freezes everything else.
    ///
    /// # Errors
    /// [`ModelError::LoraSetting`] or [`ModelError::LoraTarget`].
    ///
    /// # Panics
    /// If there is an adapter already.
    pub fn add_lora(&mut self, config: &LoraConfig, streams: &Streams) -> Result<(), ModelError> {
        self.attach_lora(config, |layer, rank| {
            let a = initial_lora_a(&layer.path, rank, layer.inputs, streams);
            Ok((a, vec![0.0; layer.outputs * rank]))
        })
    }

    /// Adds an adapter whose matrices `values` gives for each layer and rank: `A [R, I]` and `B [O, R]`, row-major.
    /// Freezes everything else.
    ///
    /// # Errors
    /// [`ModelError::LoraSetting`], [`ModelError::LoraTarget`], or what `values` gives.
    ///
    /// # Panics
    /// If there is an adapter already, or `values` gives the wrong number of values.
    pub fn attach_lora(
        &mut self,
        config: &LoraConfig,
        mut values: impl FnMut(&crate::lora::LinearLayer, usize) -> Result<(Vec<f32>, Vec<f32>), ModelError>,
    ) -> Result<(), ModelError> {
        assert!(self.lora.is_none(), "the decoder has an adapter already");
        config.validate()?;
        let targets = target_layers(&self.config, &config.target_modules)?;
        let matrices = targets.iter().map(|layer| values(layer, config.rank)).collect::<Result<Vec<_>, _>>()?;
        for id in self.base_ids() {
            self.parameters.set_trainable(id, false);
        }
        let mut branches = Vec::with_capacity(targets.len());
        for (layer, (a, b)) in targets.iter().zip(matrices) {
            let (path, rank) = (&layer.path, config.rank);
            let a = self.parameters.push(lora_a_name(path), &[rank, layer.inputs], a, true, true);
            let b = self.parameters.push(lora_b_name(path), &[layer.outputs, rank], b, true, true);
            branches.push(LoraBranchIds { path: path.clone(), a, b });
        }
        for linear in self.layers.linears_mut() {
            linear.lora = branches.iter().find(|b| b.path == linear.path).map(|b| (b.a, b.b));
        }
        self.lora = Some(LoraState { config: config.clone(), branches });
        Ok(())
    }

    /// Drops the adapter without merging it; everything else becomes trainable again.
    pub fn remove_lora(&mut self) {
        self.lora = None;
        self.parameters.truncate(self.base_len);
        for linear in self.layers.linears_mut() {
            linear.lora = None;
        }
        for id in self.base_ids() {
            self.parameters.set_trainable(id, true);
        }
    }

    /// The model's own parameters, which come before an adapter's.
    fn base_ids(&self) -> Vec<ParameterId> {
        self.parameters.iter().take(self.base_len).map(|(id, _)| id).collect()
    }

    /// The model's own parameters as they are saved: name, shape, values, with the adapter folded in. One at a time, so
    /// that a second copy of the model never exists.
    pub fn merged(&self) -> impl Iterator<Item = (String, Vec<usize>, Vec<f32>)> + '_ {
        let layers = crate::lora::linear_layers(&self.config);
        self.parameters.iter().take(self.base_len).map(move |(_, parameter)| {
            let mut values = parameter.to_vec();
            if let Some(lora) = &self.lora
                && let Some(path) = parameter.name().strip_suffix(".weight")
                && let Some(branch) = lora.branch(path)
                && let Some(layer) = layers.iter().find(|l| l.path == path)
            {
                let (rank, scale) = (lora.config.rank, lora.config.scale());
                self.parameters.with_data(branch.a, |a| {
                    self.parameters.with_data(branch.b, |b| merge_branch(&mut values, a, b, layer, rank, scale));
                });
            }
            (parameter.name().to_owned(), parameter.shape(), values)
        })
    }

    /// Hidden states after the final norm.
    ///
    /// # Shapes
    /// - returns: `[B·T, E]`
    ///
    /// # Panics
    /// If [`DecoderInput::check`] would refuse the input.
    pub fn hidden(&self, input: &DecoderInput<'_>, mode: &ForwardMode) -> Tensor<2> {
        let order = Order::all(input);
        let hidden = self.hidden_in_order(input, &order, mode);
        if order.is_that_of_the_batch() { hidden } else { gather_rows(hidden, &order.places()) }
    }

    /// As [`hidden`](Self::hidden), of the tokens that `order` names and in its order: `[N, E]`.
    pub(crate) fn hidden_in_order(&self, input: &DecoderInput<'_>, order: &Order, mode: &ForwardMode) -> Tensor<2> {
        if let Err(error) = input.check(&self.config) {
            panic!("{error}");
        }
        let pass = Pass { decoder: self, mode: *mode };
        let config = &self.config;
        let (ids, positions) = (order.pick(input.ids), order.pick(input.positions));
        let plan = Arc::new(AttentionPlan {
            segments: order.sequences.iter().cloned().map(Segment::whole).collect(),
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            rotary: RotaryTable::new(config, &positions),
            precision: self.precision,
        });
        let mut x = gather_rows(pass.matrix(self.layers.embedding), &ids);
        if let Some(table) = self.layers.positions {
            x = x + gather_rows(pass.matrix(table), &positions);
        }
        for block in &self.layers.blocks {
            x = pass.block(block, x, &plan);
        }
        pass.norm(&self.layers.norm, x)
    }

    /// Logits of hidden states.
    ///
    /// # Shapes
    /// - `hidden`: `[N, E]`, from [`hidden`](Self::hidden), all rows or some
    /// - returns: `[N, V]`
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let head = self.head(hidden.device().is_autodiff());
        linear(hidden, head, None, self.precision)
    }

    /// The output projection `[V, E]`, without gradients when `recorded` is false.
    pub(crate) fn head(&self, recorded: bool) -> Tensor<2> {
        self.parameters.matrix(self.layers.head, recorded)
    }
}

/// One forward pass.
struct Pass<'a> {
    decoder: &'a Decoder,
    mode: ForwardMode,
}

impl Pass<'_> {
    fn is_recorded(&self) -> bool {
        self.mode != ForwardMode::Eval
    }

    fn matrix(&self, id: ParameterId) -> Tensor<2> {
        self.decoder.parameters.matrix(id, self.is_recorded())
    }

    fn vector(&self, id: ParameterId) -> Tensor<1> {
        self.decoder.parameters.vector(id, self.is_recorded())
    }

    fn block(&self, block: &Block, x: Tensor<2>, plan: &Arc<AttentionPlan>) -> Tensor<2> {
        if on_flex(&x) {
            return self.fused_block(block, x, plan);
        }
        let config = &self.decoder.config;
        let mut qkv = self.linears(&block.qkv, self.norm(&block.attention_norm, x.clone()));
        if let Some((query, key)) = block.head_gains {
            let (query, key) = (self.vector(query), self.vector(key));
            qkv = head_norm(qkv, query, key, plan.heads, plan.kv_heads, config.norm_eps);
        }
        let mixed = attention(qkv, plan);
        let x = x + self.linears(std::slice::from_ref(&block.attention_out), mixed);
        let inner = self.linears(&block.feed_in, self.norm(&block.feed_norm, x.clone()));
        let inner = match block.feed_in.len() {
            1 => activate(inner, config.hidden_act),
            _ => gated(inner, config.hidden_act),
        };
        x + self.linears(std::slice::from_ref(&block.feed_out), inner)
    }

    fn fused_block(&self, block: &Block, x: Tensor<2>, plan: &Arc<AttentionPlan>) -> Tensor<2> {
        let norm = |norm: &Norm| fused::Norm { gain: self.vector(norm.gain), bias: norm.bias.map(|b| self.vector(b)) };
        let layers = |linears: &[Linear]| linears.iter().map(|linear| self.projection(linear)).collect();
        let tensors = fused::Block {
            attention_norm: norm(&block.attention_norm),
            qkv: layers(&block.qkv),
            head_gains: block.head_gains.map(|(query, key)| [self.vector(query), self.vector(key)]),
            attention_out: self.projection(&block.attention_out),
            feed_norm: norm(&block.feed_norm),
            feed_in: layers(&block.feed_in),
            feed_out: self.projection(&block.feed_out),
        };
        let settings = fused::Settings {
            attention: Arc::clone(plan),
            eps: self.decoder.config.norm_eps,
            activation: self.decoder.config.hidden_act,
            precision: self.decoder.precision,
            recompute: self.decoder.is_recomputing,
        };
        fused::block(x, tensors, &settings)
    }

    fn norm(&self, norm: &Norm, x: Tensor<2>) -> Tensor<2> {
        let (gain, eps) = (self.vector(norm.gain), self.decoder.config.norm_eps);
        match norm.bias {
            Some(bias) => layer_norm(x, gain, self.vector(bias), eps),
            None => rms_norm(x, gain, eps),
        }
    }

    fn linears(&self, linears: &[Linear], x: Tensor<2>) -> Tensor<2> {
        let projections = linears.iter().map(|linear| self.projection(linear)).collect();
        project(x, projections, self.decoder.precision)
    }

    fn projection(&self, linear: &Linear) -> Projection {
        Projection {
            weight: self.matrix(linear.weight),
            layout: linear.layout,
            bias: linear.bias.map(|b| self.vector(b)),
            lora: linear.lora.map(|ids| self.branch(linear, ids)),
        }
    }

    fn branch(&self, linear: &Linear, (a, b): (ParameterId, ParameterId)) -> LoraBranch {
        let config = &self.decoder.lora.as_ref().expect("layers have branches only beside an adapter").config;
        let dropout = match self.mode {
            ForwardMode::Train { dropout_key } if config.dropout > 0.0 => {
                Some(Dropout { key: mix(dropout_key, linear.number), keep: (1.0 - config.dropout) as f32 })
            }
            _ => None,
        };
        LoraBranch { a: self.matrix(a), b: self.matrix(b), scale: config.scale(), dropout }
    }
}

/// A key for each value of `index`, unrelated to those of other keys and indices (SplitMix64's finaliser).
fn mix(key: u64, index: u64) -> u64 {
    let mut z = key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
