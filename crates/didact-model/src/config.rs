//! A model's shape and constants: `config.json` of the Hugging Face layout, or the metadata of a GGUF file.
//!
//! Keys that this program does not know are carried along and written out again; keys that it knows to change results
//! in a way it does not implement are refused by name, never ignored.

use std::path::{Path, PathBuf};

use didact_core::gguf::{GgufFile, GgufTensor};
use serde_json::{Map, Value, json};

use crate::error::ModelError;

/// The families of decoder that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama and everything of its shape (SmolLM2, TinyLlama, Llama 3.x).
    Llama,
    /// Qwen 2 and 2.5: as Llama, with biases on the query, key and value projections.
    Qwen2,
    /// Qwen 3: as Llama, with RMS norms on the query and key heads.
    Qwen3,
    /// GPT-2: learned positions, layer norms with bias, a two-matrix feed-forward.
    Gpt2,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gpt2];

    /// The `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gpt2 => "gpt2",
        }
    }

    /// The class named in `architectures` of `config.json`.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gpt2 => "GPT2LMHeadModel",
        }
    }

    /// The architecture of that `model_type`, if it can be built.
    pub fn from_model_type(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.model_type() == name)
    }

    fn supported() -> String {
        Self::ALL.map(Self::model_type).join(" ")
    }
}

/// The feed-forward's non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU by the error function (`gelu`).
    Gelu,
}

impl Activation {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu_new" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "gelu" => Self::Gelu,
            _ => return None,
        })
    }
}

/// Rotary position embedding: base and scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base wavelength (`rope_theta`).
    pub theta: f64,
    /// How the frequencies are stretched beyond the length of pre-training.
    pub scaling: RopeScaling,
}

/// The kinds of RoPE scaling that are computed; `crate::rope` has the formulas.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All frequencies divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// The low frequencies divided by a factor, as in Llama 3.1.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths longer than the original context over this are divided in full.
        low_freq_factor: f64,
        /// Wavelengths shorter than the original context over this are left alone.
        high_freq_factor: f64,
        /// The original context, in tokens.
        original_max_position_embeddings: usize,
    },
    /// YaRN (arXiv:2309.00071).
    Yarn {
        /// The factor.
        factor: f64,
        /// The original context, in tokens.
        original_max_position_embeddings: usize,
        /// Multiplies cosine and sine; computed from the factor where absent.
        attention_factor: Option<f64>,
        /// Rotations over the original context above which a frequency is left alone.
        beta_fast: f64,
        /// Rotations over the original context below which a frequency is divided in full.
        beta_slow: f64,
        /// Numerator's scale of the computed attention factor.
        mscale: Option<f64>,
        /// Denominator's scale of the computed attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the border dimensions are rounded outwards to whole numbers.
        truncate: bool,
    },
}

impl RopeScaling {
    /// The `rope_type` of `config.json`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear { .. } => "linear",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
        }
    }
}

/// Everything that fixes a decoder's shape and arithmetic. Field names are those of `config.json`, except where the
/// architectures disagree (`norm_eps` is `rms_norm_eps` or `layer_norm_epsilon`).
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub model_type: Architecture,
    /// Vocabulary, V.
    pub vocab_size: usize,
    /// Hidden size, E.
    pub hidden_size: usize,
    /// Feed-forward size, F.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads, H.
    pub num_attention_heads: usize,
    /// Key/value heads, K; divides H.
    pub num_key_value_heads: usize,
    /// Head size, D.
    pub head_dim: usize,
    /// Longest context in tokens; GPT-2 has a learned vector for each position.
    pub max_position_embeddings: usize,
    /// Added to the variance in the norms.
    pub norm_eps: f64,
    /// Rotary embedding; `None` for GPT-2.
    pub rope: Option<Rope>,
    /// Whether the query, key and value projections have biases (always for Qwen 2 and GPT-2).
    pub attention_bias: bool,
    /// Whether the attention's output projection has a bias (Llama and Qwen 3: with `attention_bias`; GPT-2: always).
    pub attention_output_bias: bool,
    /// Whether the feed-forward's projections have biases (always for GPT-2).
    pub mlp_bias: bool,
    /// The feed-forward's non-linearity.
    pub hidden_act: Activation,
    /// Whether the output projection is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// First token of a document, where the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end an answer, possibly none.
    pub eos_token_ids: Vec<u32>,
    /// Token for padding, where the model has one.
    pub pad_token_id: Option<u32>,
    /// The configuration as it was read, with all its other keys.
    raw: Map<String, Value>,
}

struct Keys<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
    model_type: &'static str,
}

impl Keys<'_> {
    fn error(&self, key: &str, found: &Value, expected: &str) -> ModelError {
        ModelError::KeyValue {
            path: self.path.to_owned(),
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.to_owned(),
        }
    }

    fn unsupported(&self, key: &str, value: impl ToString, supported: impl Into<String>) -> ModelError {
        ModelError::Unsupported {
            path: self.path.to_owned(),
            key: key.to_owned(),
            value: value.to_string(),
            supported: supported.into(),
        }
    }

    /// The value of the first of these keys that is present and not null.
    fn get(&self, names: &[&'static str]) -> Option<(&'static str, &Value)> {
        names.iter().find_map(|&n| self.map.get(n).filter(|v| !v.is_null()).map(|v| (n, v)))
    }

    fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey {
            path: self.path.to_owned(),
            key: key.to_owned(),
            model_type: self.model_type.to_owned(),
        }
    }

    /// A count of at least one that a tensor can have as a dimension.
    fn size_opt(&self, names: &[&'static str]) -> Result<Option<usize>, ModelError> {
        let Some((name, value)) = self.get(names) else { return Ok(None) };
        let limit = match name {
            "num_hidden_layers" | "n_layer" => 10_000,
            "num_attention_heads" | "n_head" | "num_key_value_heads" | "head_dim" => 1 << 16,
            _ => 1 << 28,
        };
        match value.as_u64() {
            // A layer takes a dozen list entries, a head none; the bounds keep a damaged file from asking for more
            // memory than there is, and every product of two sizes within 64 bits.
            Some(n) if n >= 1 && n <= limit => Ok(Some(n as usize)),
            _ => Err(self.error(name, value, &format!("a whole number from 1 to {limit}"))),
        }
    }

    fn size(&self, names: &[&'static str]) -> Result<usize, ModelError> {
        self.size_opt(names)?.ok_or_else(|| self.missing(names[0]))
    }

    fn number(&self, names: &[&'static str], default: f64) -> Result<f64, ModelError> {
        let Some((name, value)) = self.get(names) else { return Ok(default) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(self.error(name, value, "a number above 0")),
        }
    }

    fn bool(&self, name: &'static str, default: bool) -> Result<bool, ModelError> {
        let Some((name, value)) = self.get(&[name]) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(name, value, "true or false"))
    }

    fn text(&self, names: &[&'static str]) -> Result<Option<&str>, ModelError> {
        let Some((name, value)) = self.get(names) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(name, value, "a string"))
    }

    /// A token id; negative ones (an old way to say "none") are none.
    fn token(&self, name: &'static str) -> Result<Option<u32>, ModelError> {
        Ok(self.tokens(name)?.first().copied())
    }

    fn tokens(&self, name: &'static str) -> Result<Vec<u32>, ModelError> {
        let Some((name, value)) = self.get(&[name]) else { return Ok(Vec::new()) };
        let single = std::slice::from_ref(value);
        let list = value.as_array().map_or(single, Vec::as_slice);
        let mut out = Vec::with_capacity(list.len());
        for item in list {
            match item.as_i64() {
                Some(n) if n < 0 => {}
                Some(n) if u32::try_from(n).is_ok() => out.push(n as u32),
                _ => return Err(self.error(name, value, "a token id or a list of them")),
            }
        }
        Ok(out)
    }
}

impl ModelConfig {
    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`ModelError`] if it is not JSON, lacks a key, holds an impossible value, or asks for what is not supported.
    pub fn from_json(path: &Path, text: &str) -> Result<Self, ModelError> {
        let value: Value =
            serde_json::from_str(text).map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
        match value {
            Value::Object(map) => Self::from_value(path, map),
            other => Err(ModelError::KeyValue {
                path: path.to_owned(),
                key: "(the whole file)".into(),
                found: kind(&other).into(),
                expected: "an object".into(),
            }),
        }
    }

    /// Reads a configuration that is already a map, such as the `model.config` table of a recipe.
    /// `path` says in messages where it is from.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_value(path: &Path, map: Map<String, Value>) -> Result<Self, ModelError> {
        let model_type = architecture(path, &map)?;
        let keys = Keys { path, map: &map, model_type: model_type.model_type() };
        refuse_unsupported(&keys, model_type)?;
        let config = match model_type {
            Architecture::Gpt2 => gpt2(&keys)?,
            _ => llama_like(&keys, model_type)?,
        };
        let config = Self { raw: map, ..config };
        config.check(path)?;
        Ok(config)
    }

    /// Reads the metadata of a GGUF file (llama, qwen2, qwen3 or gpt2 as `general.architecture`).
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), with GGUF's key names.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ModelError> {
        let map = gguf_map(file)?;
        Self::from_value(file.path(), map)
    }

    /// Relations between keys.
    fn check(&self, path: &Path) -> Result<(), ModelError> {
        let value = |key: &str, found: String, expected: String| {
            Err(ModelError::KeyValue { path: path.to_owned(), key: key.to_owned(), found, expected })
        };
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return value(
                "num_key_value_heads",
                self.num_key_value_heads.to_string(),
                format!("a divisor of num_attention_heads ({})", self.num_attention_heads),
            );
        }
        if self.rope.is_some() && !self.head_dim.is_multiple_of(2) {
            return value("head_dim", self.head_dim.to_string(), "an even number, as rotary embedding needs".into());
        }
        for (key, ids) in [
            ("bos_token_id", self.bos_token_id.as_slice()),
            ("pad_token_id", self.pad_token_id.as_slice()),
            ("eos_token_id", self.eos_token_ids.as_slice()),
        ] {
            // GPT-2's default ids are those of the full vocabulary and stay in configurations with a smaller one, so
            // an id outside the vocabulary is only ever a token that cannot occur.
            if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
                tracing::debug!(key, id, vocab_size = self.vocab_size, "special token lies outside the vocabulary");
            }
        }
        Ok(())
    }

    /// The configuration as `config.json` holds it: everything that was read, in its order, with the typed fields put
    /// in under the architecture's own key names where they are absent or have been changed since.
    pub fn to_json(&self) -> Value {
        let mut out = self.raw.clone();
        let mut set = |key: &str, value: Value| {
            let same = out.get(key).is_some_and(|old| *old == value || same_number(old, &value));
            if !same {
                out.insert(key.to_owned(), value);
            }
        };
        set("architectures", json!([self.model_type.class()]));
        set("model_type", json!(self.model_type.model_type()));
        set("vocab_size", json!(self.vocab_size));
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        let gpt2 = self.model_type == Architecture::Gpt2;
        let named = |llama: &'static str, gpt: &'static str| if gpt2 { gpt } else { llama };
        set(named("hidden_size", "n_embd"), json!(self.hidden_size));
        set(named("num_hidden_layers", "n_layer"), json!(self.num_hidden_layers));
        set(named("num_attention_heads", "n_head"), json!(self.num_attention_heads));
        set(named("max_position_embeddings", "n_positions"), json!(self.max_position_embeddings));
        set(named("rms_norm_eps", "layer_norm_epsilon"), json!(self.norm_eps));
        set("initializer_range", json!(self.initializer_range));
        set("tie_word_embeddings", json!(self.tie_word_embeddings));
        let act = named("hidden_act", "activation_function");
        if self.raw.get(act).and_then(Value::as_str).and_then(Activation::parse) != Some(self.hidden_act) {
            let name = match self.hidden_act {
                Activation::Silu => "silu",
                Activation::GeluTanh => "gelu_new",
                Activation::Gelu => "gelu",
            };
            set(act, json!(name));
        }
        if gpt2 {
            let default_inner = self.intermediate_size == 4 * self.hidden_size;
            if !(default_inner && self.raw.get("n_inner").is_none_or(Value::is_null)) {
                set("n_inner", json!(self.intermediate_size));
            }
        } else {
            set("intermediate_size", json!(self.intermediate_size));
            set("num_key_value_heads", json!(self.num_key_value_heads));
            // Qwen 2 in Python takes no head size and would carry the key along unused.
            let derived = self.head_dim * self.num_attention_heads == self.hidden_size;
            if self.model_type == Architecture::Qwen3 || !derived || self.raw.contains_key("head_dim") {
                set("head_dim", json!(self.head_dim));
            }
            if self.model_type != Architecture::Qwen2 {
                set("attention_bias", json!(self.attention_bias));
            }
            if self.model_type == Architecture::Llama {
                set("mlp_bias", json!(self.mlp_bias));
            }
        }
        if self.raw_tokens("bos_token_id") != self.bos_token_id.as_slice() {
            set("bos_token_id", json!(self.bos_token_id));
        }
        if self.raw_tokens("eos_token_id") != self.eos_token_ids {
            set("eos_token_id", eos);
        }
        if self.raw_tokens("pad_token_id") != self.pad_token_id.as_slice() {
            set("pad_token_id", json!(self.pad_token_id));
        }
        if let Some(rope) = &self.rope {
            let keys = Keys { path: Path::new(""), map: &self.raw, model_type: "" };
            if self.raw_rope_is_absent() || read_rope(&keys, self.max_position_embeddings).ok().as_ref() != Some(rope) {
                out.shift_remove("rope_parameters");
                // The two keys of older configurations: every version of the Python library reads them.
                out.insert("rope_theta".into(), json!(rope.theta));
                out.insert("rope_scaling".into(), rope_scaling_json(&rope.scaling));
            }
        }
        Value::Object(out)
    }

    fn raw_rope_is_absent(&self) -> bool {
        !self.raw.contains_key("rope_theta") && !self.raw.contains_key("rope_parameters")
    }

    fn raw_tokens(&self, key: &'static str) -> Vec<u32> {
        Keys { path: Path::new(""), map: &self.raw, model_type: "" }.tokens(key).unwrap_or_default()
    }

    /// A key of the configuration as it was read, known or not.
    pub fn raw(&self, key: &str) -> Option<&Value> {
        self.raw.get(key)
    }

    /// The `dtype` (or `torch_dtype`) that the configuration states.
    pub fn stated_dtype(&self) -> Option<&str> {
        self.raw.get("dtype").or_else(|| self.raw.get("torch_dtype")).and_then(Value::as_str)
    }

    /// States the weights' dtype under the key that the configuration already uses.
    pub(crate) fn state_dtype(&mut self, dtype: &str) {
        let key = if self.raw.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        self.raw.insert(key.into(), json!(dtype));
    }

    /// The feed-forward has a gate (`down(act(gate(x)) * up(x))`) rather than two plain layers.
    pub fn is_gated(&self) -> bool {
        self.model_type != Architecture::Gpt2
    }

    /// Queries and keys are normalised per head before rotation.
    pub fn has_qk_norm(&self) -> bool {
        self.model_type == Architecture::Qwen3
    }

    /// Keys whose value would change training in Python and has no effect here: dropout inside the model.
    /// Each entry reads `key = value`.
    pub fn without_effect(&self) -> Vec<String> {
        ["attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"]
            .into_iter()
            .filter_map(|key| {
                let value = self.raw.get(key)?;
                (value.as_f64()? != 0.0).then(|| format!("{key} = {value}"))
            })
            .collect()
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

fn architecture(path: &Path, map: &Map<String, Value>) -> Result<Architecture, ModelError> {
    let unsupported = |key: &str, value: String, supported: String| ModelError::Unsupported {
        path: path.to_owned(),
        key: key.to_owned(),
        value,
        supported,
    };
    let classes: Vec<&str> =
        map.get("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let by_class = Architecture::ALL.into_iter().find(|a| classes.contains(&a.class()));
    let found = match map.get("model_type") {
        Some(Value::String(name)) => Architecture::from_model_type(name)
            .ok_or_else(|| unsupported("model_type", format!("\"{name}\""), Architecture::supported()))?,
        Some(other) if !other.is_null() => {
            return Err(unsupported("model_type", other.to_string(), Architecture::supported()));
        }
        _ => by_class.ok_or_else(|| ModelError::MissingKey {
            path: path.to_owned(),
            key: "model_type".into(),
            model_type: format!("any supported kind ({})", Architecture::supported()),
        })?,
    };
    if !classes.is_empty() && !classes.contains(&found.class()) {
        return Err(unsupported("architectures", format!("{classes:?}"), found.class().into()));
    }
    Ok(found)
}

/// Refuses keys that change results in ways that are not implemented.
fn refuse_unsupported(keys: &Keys<'_>, model_type: Architecture) -> Result<(), ModelError> {
    if let Some((key, value)) = keys.get(&["quantization_config"]) {
        let method = value.get("quant_method").map_or_else(|| value.to_string(), Value::to_string);
        return Err(keys.unsupported(key, method, "weights in float32, float16 or bfloat16, or a GGUF file"));
    }
    if let Some((key, value)) = keys.get(&["partial_rotary_factor"])
        && value.as_f64() != Some(1.0)
    {
        return Err(keys.unsupported(key, value, "1.0"));
    }
    if let Some((key, value)) = keys.get(&["layer_types"])
        && let Some(other) = value.as_array().into_iter().flatten().find(|v| v.as_str() != Some("full_attention"))
    {
        return Err(keys.unsupported(key, other, "\"full_attention\" in every layer"));
    }
    if matches!(model_type, Architecture::Qwen2 | Architecture::Qwen3) {
        let window = keys.get(&["sliding_window"]);
        let layers = keys.size(&["num_hidden_layers"])?;
        let from = keys.get(&["max_window_layers"]).and_then(|(_, v)| v.as_u64()).unwrap_or(28);
        if keys.bool("use_sliding_window", false)?
            && let Some((key, value)) = window
            && from < layers as u64
            && !keys.map.contains_key("layer_types")
        {
            return Err(keys.unsupported(key, value, "attention over the whole context in every layer"));
        }
    }
    if model_type == Architecture::Gpt2 {
        for (key, plain) in
            [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
        {
            if keys.bool(key, plain)? != plain {
                return Err(keys.unsupported(key, !plain, plain.to_string()));
            }
        }
    }
    Ok(())
}

fn activation(keys: &Keys<'_>, names: &[&'static str], default: Activation) -> Result<Activation, ModelError> {
    match keys.text(names)? {
        None => Ok(default),
        Some(name) => Activation::parse(name)
            .ok_or_else(|| keys.unsupported(names[0], format!("\"{name}\""), "silu gelu gelu_new gelu_pytorch_tanh")),
    }
}

fn llama_like(keys: &Keys<'_>, model_type: Architecture) -> Result<ModelConfig, ModelError> {
    let hidden_size = keys.size(&["hidden_size"])?;
    let heads = keys.size(&["num_attention_heads"])?;
    let max_position_embeddings = keys.size_opt(&["max_position_embeddings"])?.unwrap_or(match model_type {
        Architecture::Llama => 2048,
        _ => 32768,
    });
    let head_dim = match keys.size_opt(&["head_dim"])? {
        Some(n) => n,
        None if model_type == Architecture::Qwen3 => 128,
        None if hidden_size % heads == 0 => hidden_size / heads,
        None => {
            return Err(keys.error(
                "num_attention_heads",
                &json!(heads),
                "a divisor of hidden_size, or head_dim given",
            ));
        }
    };
    let attention_bias = match model_type {
        Architecture::Qwen2 => true,
        _ => keys.bool("attention_bias", false)?,
    };
    Ok(ModelConfig {
        model_type,
        vocab_size: keys.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: keys.size(&["intermediate_size"])?,
        num_hidden_layers: keys.size(&["num_hidden_layers"])?,
        num_attention_heads: heads,
        num_key_value_heads: keys.size_opt(&["num_key_value_heads"])?.unwrap_or(heads),
        head_dim,
        max_position_embeddings,
        norm_eps: keys.number(&["rms_norm_eps"], 1e-6)?,
        rope: Some(read_rope(keys, max_position_embeddings)?),
        attention_bias,
        attention_output_bias: attention_bias && model_type != Architecture::Qwen2,
        mlp_bias: model_type == Architecture::Llama && keys.bool("mlp_bias", false)?,
        hidden_act: activation(keys, &["hidden_act"], Activation::Silu)?,
        tie_word_embeddings: keys.bool("tie_word_embeddings", false)?,
        initializer_range: keys.number(&["initializer_range"], 0.02)?,
        bos_token_id: keys.token("bos_token_id")?,
        eos_token_ids: keys.tokens("eos_token_id")?,
        pad_token_id: keys.token("pad_token_id")?,
        raw: Map::new(),
    })
}

fn gpt2(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let hidden_size = keys.size(&["n_embd", "hidden_size"])?;
    let heads = keys.size(&["n_head", "num_attention_heads"])?;
    if hidden_size % heads != 0 {
        return Err(keys.error("n_head", &json!(heads), "a divisor of n_embd"));
    }
    Ok(ModelConfig {
        model_type: Architecture::Gpt2,
        vocab_size: keys.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: keys.size_opt(&["n_inner", "intermediate_size"])?.unwrap_or(4 * hidden_size),
        num_hidden_layers: keys.size(&["n_layer", "num_hidden_layers"])?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden_size / heads,
        max_position_embeddings: keys.size_opt(&["n_positions", "max_position_embeddings"])?.unwrap_or(1024),
        norm_eps: keys.number(&["layer_norm_epsilon"], 1e-5)?,
        rope: None,
        attention_bias: true,
        attention_output_bias: true,
        mlp_bias: true,
        hidden_act: activation(keys, &["activation_function", "hidden_act"], Activation::GeluTanh)?,
        tie_word_embeddings: keys.bool("tie_word_embeddings", true)?,
        initializer_range: keys.number(&["initializer_range"], 0.02)?,
        bos_token_id: keys.token("bos_token_id")?,
        eos_token_ids: keys.tokens("eos_token_id")?,
        pad_token_id: keys.token("pad_token_id")?,
        raw: Map::new(),
    })
}

/// Reads `rope_parameters` (newer) or `rope_theta` with `rope_scaling` (older).
fn read_rope(keys: &Keys<'_>, max_position_embeddings: usize) -> Result<Rope, ModelError> {
    let table = match keys.get(&["rope_parameters", "rope_scaling"]) {
        None => &Map::new(),
        Some((_, Value::Object(map))) => map,
        Some((key, other)) => return Err(keys.error(key, other, "an object")),
    };
    let inner = Keys { path: keys.path, map: table, model_type: keys.model_type };
    let theta = match inner.get(&["rope_theta"]) {
        Some(_) => inner.number(&["rope_theta"], 10000.0)?,
        None => keys.number(&["rope_theta"], 10000.0)?,
    };
    if let Some((key, value)) = inner.get(&["partial_rotary_factor"])
        && value.as_f64() != Some(1.0)
    {
        return Err(keys.unsupported(key, value, "1.0"));
    }
    let kind = inner.text(&["rope_type", "type"])?.unwrap_or("default");
    let factor = || match inner.get(&["factor"]) {
        Some(_) => inner.number(&["factor"], 1.0),
        None => Err(inner.missing("rope_scaling.factor")),
    };
    let original = || -> Result<usize, ModelError> {
        // A key beside the table has precedence in the Python library too.
        Ok(match keys.size_opt(&["original_max_position_embeddings"])? {
            Some(n) => n,
            None => inner.size_opt(&["original_max_position_embeddings"])?.unwrap_or(max_position_embeddings),
        })
    };
    let optional = |key: &'static str| -> Result<Option<f64>, ModelError> {
        // Zero means "not given" in the Python library.
        match inner.get(&[key]) {
            None => Ok(None),
            Some((_, value)) if value.as_f64() == Some(0.0) => Ok(None),
            Some(_) => inner.number(&[key], 1.0).map(Some),
        }
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "llama3" => {
            let need = |key: &'static str| match inner.get(&[key]) {
                Some(_) => inner.number(&[key], 1.0),
                None => Err(inner.missing(key)),
            };
            RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: original()?,
            }
        }
        "yarn" => {
            let original_max_position_embeddings = original()?;
            RopeScaling::Yarn {
                factor: match inner.get(&["factor"]) {
                    Some(_) => factor()?,
                    None => max_position_embeddings as f64 / original_max_position_embeddings as f64,
                },
                original_max_position_embeddings,
                attention_factor: optional("attention_factor")?,
                beta_fast: optional("beta_fast")?.unwrap_or(32.0),
                beta_slow: optional("beta_slow")?.unwrap_or(1.0),
                mscale: optional("mscale")?,
                mscale_all_dim: optional("mscale_all_dim")?,
                truncate: inner.bool("truncate", true)?,
            }
        }
        other => {
            return Err(keys.unsupported(
                "rope_scaling.rope_type",
                format!("\"{other}\""),
                "default linear llama3 yarn",
            ));
        }
    };
    Ok(Rope { theta, scaling })
}

fn rope_scaling_json(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::Default => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
        } => {
            let mut out = json!({
                "rope_type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow,
                "original_max_position_embeddings": original_max_position_embeddings, "truncate": truncate,
            });
            for (key, value) in
                [("attention_factor", attention_factor), ("mscale", mscale), ("mscale_all_dim", mscale_all_dim)]
            {
                if let Some(value) = value {
                    out[key] = json!(value);
                }
            }
            out
        }
    }
}

/// Translates GGUF metadata to the keys of `config.json`.
fn gguf_map(file: &GgufFile) -> Result<Map<String, Value>, ModelError> {
    let arch = file.get_str("general.architecture")?.ok_or_else(|| file.missing("general.architecture"))?.to_owned();
    let unsupported = |key: String, value: String, supported: String| ModelError::Unsupported {
        path: file.path().to_owned(),
        key,
        value,
        supported,
    };
    let Some(model_type) = Architecture::from_model_type(&arch) else {
        return Err(unsupported("general.architecture".into(), format!("\"{arch}\""), Architecture::supported()));
    };
    let gpt2 = model_type == Architecture::Gpt2;
    let mut map = Map::new();
    map.insert("architectures".into(), json!([model_type.class()]));
    map.insert("model_type".into(), json!(arch));
    let key = |name: &str| format!("{arch}.{name}");
    let number = |name: &str| -> Result<Option<u64>, ModelError> { Ok(file.get_u64(&key(name))?) };
    let needed = |name: &str| -> Result<u64, ModelError> { Ok(number(name)?.ok_or_else(|| file.missing(&key(name)))?) };
    let heads = needed("attention.head_count")?;
    let hidden = needed("embedding_length")?;
    let vocab = embedding_rows(file).or(number("vocab_size")?);
    let vocab = vocab.ok_or_else(|| file.missing(&key("vocab_size")))?;
    map.insert("vocab_size".into(), json!(vocab));
    let tied = is_tied(file);
    map.insert("tie_word_embeddings".into(), json!(tied));
    let context = needed("context_length")?;
    let layers = needed("block_count")?;
    let inner = needed("feed_forward_length")?;
    if gpt2 {
        map.insert("n_embd".into(), json!(hidden));
        map.insert("n_layer".into(), json!(layers));
        map.insert("n_head".into(), json!(heads));
        map.insert("n_positions".into(), json!(context));
        map.insert("n_inner".into(), json!(inner));
        map.insert("activation_function".into(), json!("gelu_new"));
        if let Some(eps) = file.get_f64(&key("attention.layer_norm_epsilon"))? {
            map.insert("layer_norm_epsilon".into(), json!(eps));
        }
    } else {
        map.insert("hidden_size".into(), json!(hidden));
        map.insert("intermediate_size".into(), json!(inner));
        map.insert("num_hidden_layers".into(), json!(layers));
        map.insert("num_attention_heads".into(), json!(heads));
        map.insert("num_key_value_heads".into(), json!(number("attention.head_count_kv")?.unwrap_or(heads)));
        map.insert("max_position_embeddings".into(), json!(context));
        map.insert("hidden_act".into(), json!("silu"));
        let derived = hidden.checked_div(heads).unwrap_or(0);
        let head_dim = number("attention.key_length")?.unwrap_or(derived);
        if let Some(value) = number("attention.value_length")?
            && value != head_dim
        {
            return Err(unsupported(
                key("attention.value_length"),
                value.to_string(),
                format!("{head_dim}, as for keys"),
            ));
        }
        map.insert("head_dim".into(), json!(head_dim));
        if let Some(rotated) = number("rope.dimension_count")?
            && rotated != head_dim
        {
            return Err(unsupported(
                key("rope.dimension_count"),
                rotated.to_string(),
                format!("{head_dim}, the head size"),
            ));
        }
        if number("expert_count")?.is_some_and(|n| n > 0) {
            return Err(unsupported(key("expert_count"), needed("expert_count")?.to_string(), "dense models".into()));
        }
        if let Some(eps) = file.get_f64(&key("attention.layer_norm_rms_epsilon"))? {
            map.insert("rms_norm_eps".into(), json!(eps));
        }
        let has = |name: &str| file.tensors.iter().any(|t| t.name == name);
        if model_type != Architecture::Qwen2 {
            map.insert("attention_bias".into(), json!(has("blk.0.attn_q.bias")));
        }
        if model_type == Architecture::Llama {
            map.insert("mlp_bias".into(), json!(has("blk.0.ffn_up.bias")));
        }
        map.insert("rope_theta".into(), json!(file.get_f64(&key("rope.freq_base"))?.unwrap_or(10000.0)));
        map.insert("rope_scaling".into(), gguf_rope_scaling(file, &arch, context)?);
    }
    for (gguf, hf) in [
        ("tokenizer.ggml.bos_token_id", "bos_token_id"),
        ("tokenizer.ggml.eos_token_id", "eos_token_id"),
        ("tokenizer.ggml.padding_token_id", "pad_token_id"),
    ] {
        if let Some(id) = file.get_u64(gguf)? {
            map.insert(hf.into(), json!(id));
        }
    }
    Ok(map)
}

/// Without an output projection, or with a copy of the embedding in its place, as older converters of GPT-2 wrote it.
fn is_tied(file: &GgufFile) -> bool {
    let find = |name: &str| file.tensors.iter().find(|t| t.name == name);
    match (find("token_embd.weight"), find("output.weight")) {
        (Some(input), Some(output)) => input.kind == output.kind && file.bytes(input) == file.bytes(output),
        (_, output) => output.is_none(),
    }
}

fn embedding_rows(file: &GgufFile) -> Option<u64> {
    file.tensors.iter().find(|t| t.name == "token_embd.weight").map(|t| t.shape[0] as u64)
}

fn gguf_rope_scaling(file: &GgufFile, arch: &str, context: u64) -> Result<Value, ModelError> {
    let key = |name: &str| format!("{arch}.rope.scaling.{name}");
    let kind = file.get_str(&key("type"))?.unwrap_or("none");
    let factor = file.get_f64(&key("factor"))?;
    let original = file.get_u64(&key("original_context_length"))?.unwrap_or(context);
    // Llama 3.1's scaling is stored as a tensor of divisors, one per pair of dimensions.
    if let Some(t) = file.tensors.iter().find(|t| t.name.starts_with("rope_freqs")) {
        return llama3_from_divisors(file, arch, t);
    }
    let legacy = file.get_f64(&format!("{arch}.rope.scale_linear"))?;
    match kind {
        "none" => Ok(match legacy {
            Some(f) if f != 1.0 => json!({ "rope_type": "linear", "factor": f }),
            _ => Value::Null,
        }),
        "linear" => {
            let factor = factor.ok_or_else(|| file.missing(&key("factor")))?;
            Ok(json!({ "rope_type": "linear", "factor": factor }))
        }
        "yarn" => {
            let factor = factor.ok_or_else(|| file.missing(&key("factor")))?;
            let mut out = json!({
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            });
            for (gguf, hf) in
                [("attn_factor", "attention_factor"), ("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")]
            {
                if let Some(x) = file.get_f64(&key(gguf))? {
                    out[hf] = json!(x);
                }
            }
            Ok(out)
        }
        other => Err(ModelError::Unsupported {
            path: file.path().to_owned(),
            key: key("type"),
            value: format!("\"{other}\""),
            supported: "none linear yarn".into(),
        }),
    }
}

/// Recovers Llama 3's scaling settings from the divisors that llama.cpp computed from them: the settings that Meta's
/// models use, with the factor read off the largest divisor, are tried and must give the very divisors in the file.
fn llama3_from_divisors(file: &GgufFile, arch: &str, tensor: &GgufTensor) -> Result<Value, ModelError> {
    let divisors = crate::weights::dequantize(tensor.kind, file.bytes(tensor));
    let theta = file.get_f64(&format!("{arch}.rope.freq_base"))?.unwrap_or(10000.0);
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max)).round();
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let agrees = divisors.iter().enumerate().all(|(i, &found)| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(i as f64 / divisors.len() as f64);
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        let divisor = 1.0 / ((1.0 - smooth) / factor + smooth);
        (f64::from(found) - divisor).abs() <= 1e-3 * divisor
    });
    if !agrees {
        return Err(ModelError::Unsupported {
            path: file.path().to_owned(),
            key: format!("tensor {}", tensor.name),
            value: format!("{:?}", tensor.shape),
            supported: "divisors of Llama 3's scaling over 8192 positions; use this model's safetensors files".into(),
        });
    }
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": 8192,
    }))
}

/// Where a configuration made by hand is from, for messages: the table of a recipe.
pub fn recipe_table() -> PathBuf {
    PathBuf::from("model.config")
}
