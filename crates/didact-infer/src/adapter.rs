//! LoRA adapters beside the weights: rows of one batch may use different ones, or none.

use crate::error::InferError;
use didact_kernels::Precision;
use didact_kernels::gemm::{MatRef, PackedB, gemm_rows};
use didact_model::peft::{Adapter, LoraPair};
use didact_model::{Architecture, ModelConfig};
use std::ops::Range;
use std::sync::Arc;

/// A layer that a branch stands beside; layers that read the same rows are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    Qkv,
    AttentionOut,
    FeedIn,
    FeedOut,
}

/// One adapter, packed for an engine.
#[derive(Debug)]
pub struct EngineAdapter {
    /// Of each block, by [`Site`].
    blocks: Vec<[Vec<Branch>; 4]>,
}

/// `y[at..] += scale · B·A·x` beside one layer.
#[derive(Debug)]
struct Branch {
    /// `[I, R]`.
    a: PackedB,
    /// `[R, O]`, the scale included.
    b: PackedB,
    /// First output column, where several layers are one.
    at: usize,
}

impl EngineAdapter {
    /// Packs an adapter for a model.
    ///
    /// # Errors
    /// When it has a branch beside a layer that the model does not have, or of another size.
    pub(crate) fn new(adapter: &Adapter, config: &ModelConfig, precision: Precision) -> Result<Self, InferError> {
        let mut blocks: Vec<[Vec<Branch>; 4]> =
            (0..config.num_hidden_layers).map(|_| std::array::from_fn(|_| Vec::new())).collect();
        for pair in &adapter.pairs {
            let place = place(config, pair).and_then(|(layer, site, at)| Some((blocks.get_mut(layer)?, site, at)));
            let Some((block, site, at)) = place else {
                return Err(InferError::Adapter { module: pair.module.clone() });
            };
            let LoraPair { rank, inputs, outputs, scale, a, b, .. } = pair;
            let scaled: Vec<f32> = b.iter().map(|&b| (f64::from(b) * scale) as f32).collect();
            block[site as usize].push(Branch {
                a: PackedB::new(MatRef::transposed(a, *inputs), *inputs, *rank, precision),
                b: PackedB::new(MatRef::transposed(&scaled, *rank), *rank, *outputs, precision),
                at,
            });
        }
        Ok(Self { blocks })
    }

    fn branches(&self, layer: usize, site: Site) -> &[Branch] {
        &self.blocks[layer][site as usize]
    }
}

/// Block, layer and first output column of a pair.
fn place(config: &ModelConfig, pair: &LoraPair) -> Option<(usize, Site, usize)> {
    let is_gpt2 = config.model_type == Architecture::Gpt2;
    let rest = pair.module.strip_prefix(if is_gpt2 { "transformer.h." } else { "model.layers." })?;
    let (layer, name) = rest.split_once('.')?;
    let d = config.head_dim;
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (site, at, inputs, outputs) = match name {
        "attn.c_attn" => (Site::Qkv, 0, hidden, (heads + 2 * kv_heads) * d),
        "self_attn.q_proj" => (Site::Qkv, 0, hidden, heads * d),
        "self_attn.k_proj" => (Site::Qkv, heads * d, hidden, kv_heads * d),
        "self_attn.v_proj" => (Site::Qkv, (heads + kv_heads) * d, hidden, kv_heads * d),
        "attn.c_proj" | "self_attn.o_proj" => (Site::AttentionOut, 0, heads * d, hidden),
        "mlp.c_fc" | "mlp.gate_proj" => (Site::FeedIn, 0, hidden, inner),
        "mlp.up_proj" => (Site::FeedIn, inner, hidden, inner),
        "mlp.c_proj" | "mlp.down_proj" => (Site::FeedOut, 0, inner, hidden),
        _ => return None,
    };
    let fits = [pair.inputs, pair.outputs, pair.a.len(), pair.b.len()]
        == [inputs, outputs, inputs * pair.rank, outputs * pair.rank];
    Some((layer.parse().ok()?, site, at)).filter(|_| fits)
}

/// Rows that use one adapter.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) rows: Range<usize>,
    pub(crate) adapter: Arc<EngineAdapter>,
}

/// Adds each run's branches beside one layer: `y` has rows of `width` floats, `x` of the layer's inputs.
pub(crate) fn add_branches(runs: &[Run], layer: usize, site: Site, y: &mut [f32], width: usize, x: &[f32]) {
    for Run { rows, adapter } in runs {
        for Branch { a, b, at } in adapter.branches(layer, site) {
            let (inputs, rank) = (a.k(), a.n());
            let mut narrow = vec![0.0; rows.len() * rank];
            let x = &x[rows.start * inputs..rows.end * inputs];
            gemm_rows(&mut narrow, rank, rows.len(), x, a, false);
            let y = &mut y[rows.start * width + at..];
            gemm_rows(y, width, rows.len(), &narrow, b, true);
        }
    }
}
