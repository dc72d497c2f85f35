//! From GGUF's tensor names and row orders to Hugging Face's.

use crate::config::{Architecture, ModelConfig};

/// What has to be done to a tensor's numbers besides reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rearrange {
    /// Nothing.
    None,
    /// Llama's query and key rows: llama.cpp rotates neighbouring pairs, Hugging Face halves, so each head's rows
    /// are interleaved in the file.
    Unpermute {
        /// Number of heads the rows are divided into.
        heads: usize,
    },
    /// GPT-2's linear weights: `[out, in]` in the file, `[in, out]` in Hugging Face's layout.
    Transpose,
}

/// The Hugging Face name of a GGUF tensor and how its numbers are to be rearranged; `None` if the architecture has no
/// such tensor.
pub(super) fn translate(config: &ModelConfig, name: &str) -> Option<(String, Rearrange)> {
    if config.model_type == Architecture::Gpt2 { gpt2(name) } else { llama_like(config, name) }
}

/// Tensors that hold what the metadata says already.
pub(super) fn is_redundant(name: &str) -> bool {
    name == "rope_freqs.weight"
}

fn llama_like(config: &ModelConfig, name: &str) -> Option<(String, Rearrange)> {
    let plain = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(hf) = plain {
        return Some((hf.to_owned(), Rearrange::None));
    }
    let (layer, part, suffix) = block(name)?;
    let hf = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    let heads = match part {
        "attn_q" => Some(config.num_attention_heads),
        "attn_k" => Some(config.num_key_value_heads),
        _ => None,
    };
    let rearrange = match heads {
        Some(heads) if config.model_type == Architecture::Llama => Rearrange::Unpermute { heads },
        _ => Rearrange::None,
    };
    Some((format!("model.layers.{layer}.{hf}.{suffix}"), rearrange))
}

fn gpt2(name: &str) -> Option<(String, Rearrange)> {
    let plain = match name {
        "token_embd.weight" => Some("transformer.wte.weight"),
        "position_embd.weight" => Some("transformer.wpe.weight"),
        "output_norm.weight" => Some("transformer.ln_f.weight"),
        "output_norm.bias" => Some("transformer.ln_f.bias"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(hf) = plain {
        return Some((hf.to_owned(), Rearrange::None));
    }
    let (layer, part, suffix) = block(name)?;
    let (hf, linear) = match part {
        "attn_norm" => ("ln_1", false),
        "attn_qkv" => ("attn.c_attn", true),
        "attn_output" => ("attn.c_proj", true),
        "ffn_norm" => ("ln_2", false),
        "ffn_up" => ("mlp.c_fc", true),
        "ffn_down" => ("mlp.c_proj", true),
        _ => return None,
    };
    let rearrange = if linear && suffix == "weight" { Rearrange::Transpose } else { Rearrange::None };
    Some((format!("transformer.h.{layer}.{hf}.{suffix}"), rearrange))
}

/// `blk.3.attn_q.weight` -> (3, `attn_q`, `weight`).
fn block(name: &str) -> Option<(usize, &str, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, suffix) = rest.split_once('.')?;
    if !matches!(suffix, "weight" | "bias") {
        return None;
    }
    Some((layer.parse().ok()?, part, suffix))
}

/// Applies the rearrangement to numbers of the file's shape `[rows, columns]`.
pub(super) fn rearrange(values: Vec<f32>, rows: usize, columns: usize, how: Rearrange) -> Vec<f32> {
    match how {
        Rearrange::None => values,
        Rearrange::Unpermute { heads } => {
            let d = rows / heads;
            let mut out = Vec::with_capacity(values.len());
            for head in 0..heads {
                for half in 0..2 {
                    for pair in 0..d / 2 {
                        let row = head * d + 2 * pair + half;
                        out.extend_from_slice(&values[row * columns..][..columns]);
                    }
                }
            }
            out
        }
        Rearrange::Transpose => {
            let mut out = vec![0.0; values.len()];
            for r in 0..rows {
                for c in 0..columns {
                    out[c * rows + r] = values[r * columns + c];
                }
            }
            out
        }
    }
}
