//! The one list of a model's parameters: what loading asks for and initialisation makes.

use crate::config::{Architecture, ModelConfig};

/// One parameter: name, shape, and whether weight decay applies to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// The name in Hugging Face's layout.
    pub name: String,
    /// Row-major shape. Linear weights are `[out, in]`, except GPT-2's, which are `[in, out]`.
    pub shape: Vec<usize>,
    /// Matrices decay, norms and biases do not (as in the Hugging Face Trainer).
    pub decay: bool,
}

impl ParameterSpec {
    /// How many numbers it holds.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All parameters of a model in the order of the forward pass. A tied output projection is not listed.
pub fn expected_parameters(config: &ModelConfig) -> Vec<ParameterSpec> {
    let mut out = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        out.push(ParameterSpec { name, shape: shape.to_vec(), decay: shape.len() > 1 });
    };
    let ModelConfig { vocab_size: v, hidden_size: e, intermediate_size: f, head_dim: d, .. } = *config;
    if config.model_type == Architecture::Gpt2 {
        add("transformer.wte.weight".into(), &[v, e]);
        add("transformer.wpe.weight".into(), &[config.max_position_embeddings, e]);
        for layer in 0..config.num_hidden_layers {
            let p = format!("transformer.h.{layer}");
            add(format!("{p}.ln_1.weight"), &[e]);
            add(format!("{p}.ln_1.bias"), &[e]);
            add(format!("{p}.attn.c_attn.weight"), &[e, 3 * e]);
            add(format!("{p}.attn.c_attn.bias"), &[3 * e]);
            add(format!("{p}.attn.c_proj.weight"), &[e, e]);
            add(format!("{p}.attn.c_proj.bias"), &[e]);
            add(format!("{p}.ln_2.weight"), &[e]);
            add(format!("{p}.ln_2.bias"), &[e]);
            add(format!("{p}.mlp.c_fc.weight"), &[e, f]);
            add(format!("{p}.mlp.c_fc.bias"), &[f]);
            add(format!("{p}.mlp.c_proj.weight"), &[f, e]);
            add(format!("{p}.mlp.c_proj.bias"), &[e]);
        }
        add("transformer.ln_f.weight".into(), &[e]);
        add("transformer.ln_f.bias".into(), &[e]);
    } else {
        let (q, kv) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        add("model.embed_tokens.weight".into(), &[v, e]);
        for layer in 0..config.num_hidden_layers {
            let p = format!("model.layers.{layer}");
            add(format!("{p}.input_layernorm.weight"), &[e]);
            for (name, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                add(format!("{p}.self_attn.{name}.weight"), &[rows, e]);
                if config.attention_bias {
                    add(format!("{p}.self_attn.{name}.bias"), &[rows]);
                }
            }
            if config.has_qk_norm() {
                add(format!("{p}.self_attn.q_norm.weight"), &[d]);
                add(format!("{p}.self_attn.k_norm.weight"), &[d]);
            }
            add(format!("{p}.self_attn.o_proj.weight"), &[e, q]);
            if config.attention_output_bias {
                add(format!("{p}.self_attn.o_proj.bias"), &[e]);
            }
            add(format!("{p}.post_attention_layernorm.weight"), &[e]);
            for (name, rows, columns) in [("gate_proj", f, e), ("up_proj", f, e), ("down_proj", e, f)] {
                add(format!("{p}.mlp.{name}.weight"), &[rows, columns]);
                if config.mlp_bias {
                    add(format!("{p}.mlp.{name}.bias"), &[rows]);
                }
            }
        }
        add("model.norm.weight".into(), &[e]);
    }
    if !config.tie_word_embeddings {
        add("lm_head.weight".into(), &[v, e]);
    }
    out
}

/// How many parameters a model has; a tied output projection counts once.
pub fn parameter_count(config: &ModelConfig) -> u64 {
    expected_parameters(config).iter().map(|p| p.elements() as u64).sum()
}
