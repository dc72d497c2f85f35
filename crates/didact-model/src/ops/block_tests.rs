//! The three links for whole blocks, and that making activations again changes no bit.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use didact_kernels::Precision;
use didact_kernels::sdpa::Segment;

use super::block::{Block, Norm, Settings, block};
use super::tests::{Case, GRAD_F64, SAME_F64, compare, vector};
use super::*;
use crate::config::Activation;
use crate::rotary::RotaryTable;

/// `f32` against `f64` through the two halves of a block, each of which is within `SUMS_F32`; measured 1.8e-6.
const BLOCK_F32: f64 = 8e-6;
/// Six products in a row with operands rounded to 8 bits, and the feed-forward's inner values kept so: measured worst
/// case 2.6 %, times 2.
const BLOCK_HALF: f64 = 5.2e-2;

/// Tokens, hidden size, heads, key/value heads, head size, feed-forward.
const N: usize = 9;
const E: usize = 6;
const H: usize = 2;
const K: usize = 1;
const D: usize = 4;
const F: usize = 5;
const RANK: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// RMS norms, rotary embedding, a gated feed-forward.
    Llama,
    /// Layer norms, one joint projection laid out by inputs, biases, a plain feed-forward.
    Gpt2,
    /// As Llama, with norms of heads, a bias, and adapters with dropout.
    Qwen3,
}

fn settings(kind: Kind, precision: Precision, recompute: bool) -> Settings {
    let positions = [0, 1, 2, 3, 0, 0, 1, 2, 3];
    let rotary = (kind != Kind::Gpt2).then(|| RotaryTable::from_frequencies(&[1.0, 0.1], 1.0, &positions));
    Settings {
        attention: Arc::new(AttentionPlan {
            segments: [0..4, 4..5, 5..9].map(Segment::whole).into(),
            heads: H,
            kv_heads: K,
            head_dim: D,
            rotary,
            precision,
        }),
        eps: 1e-3,
        activation: if kind == Kind::Gpt2 { Activation::GeluTanh } else { Activation::Silu },
        precision,
        recompute,
    }
}

/// Shapes of the input and of the parameters, in the order in which [`parameters`] takes them.
fn dims(kind: Kind) -> Vec<[usize; 2]> {
    let qkv = (H + 2 * K) * D;
    match kind {
        Kind::Llama => {
            vec![[N, E], [1, E], [H * D, E], [K * D, E], [K * D, E], [E, H * D], [1, E], [F, E], [F, E], [E, F]]
        }
        Kind::Gpt2 => vec![
            [N, E],
            [1, E],
            [1, E],
            [E, qkv],
            [1, qkv],
            [H * D, E],
            [1, E],
            [1, E],
            [1, E],
            [E, F],
            [1, F],
            [F, E],
            [1, E],
        ],
        Kind::Qwen3 => vec![
            [N, E],
            [1, E],
            [H * D, E],
            [1, H * D],
            [RANK, E],
            [H * D, RANK],
            [K * D, E],
            [K * D, E],
            [1, D],
            [1, D],
            [E, H * D],
            [1, E],
            [F, E],
            [F, E],
            [RANK, E],
            [F, RANK],
            [E, F],
            [RANK, F],
            [E, RANK],
        ],
    }
}

fn parameters(kind: Kind, t: &[Tensor<2>]) -> Block {
    let mut rest = t[1..].iter().cloned();
    let mut matrix = move || rest.next().expect("as many tensors as `dims` says");
    let by = |weight: Tensor<2>| Projection::new(weight, WeightLayout::OutIn, None);
    match kind {
        Kind::Llama => Block {
            attention_norm: Norm { gain: vector(&matrix()), bias: None },
            qkv: vec![by(matrix()), by(matrix()), by(matrix())],
            head_gains: None,
            attention_out: by(matrix()),
            feed_norm: Norm { gain: vector(&matrix()), bias: None },
            feed_in: vec![by(matrix()), by(matrix())],
            feed_out: by(matrix()),
        },
        Kind::Gpt2 => {
            let vector_of = |m: Tensor<2>| vector(&m);
            Block {
                attention_norm: Norm { gain: vector_of(matrix()), bias: Some(vector_of(matrix())) },
                qkv: vec![Projection::new(matrix(), WeightLayout::InOut, Some(vector_of(matrix())))],
                head_gains: None,
                attention_out: Projection::new(matrix(), WeightLayout::InOut, Some(vector_of(matrix()))),
                feed_norm: Norm { gain: vector_of(matrix()), bias: Some(vector_of(matrix())) },
                feed_in: vec![Projection::new(matrix(), WeightLayout::InOut, Some(vector_of(matrix())))],
                feed_out: Projection::new(matrix(), WeightLayout::InOut, Some(vector_of(matrix()))),
            }
        }
        Kind::Qwen3 => {
            let branch = |a: Tensor<2>, b: Tensor<2>, key: u64| {
                Some(LoraBranch { a, b, scale: 1.5, dropout: Some(Dropout { key, keep: 0.75 }) })
            };
            let attention_norm = Norm { gain: vector(&matrix()), bias: None };
            let mut query = Projection::new(matrix(), WeightLayout::OutIn, Some(vector(&matrix())));
            query.lora = branch(matrix(), matrix(), 1);
            let (key, value) = (by(matrix()), by(matrix()));
            let head_gains = Some([vector(&matrix()), vector(&matrix())]);
            let attention_out = by(matrix());
            let feed_norm = Norm { gain: vector(&matrix()), bias: None };
            let (gate, mut up) = (by(matrix()), by(matrix()));
            up.lora = branch(matrix(), matrix(), 2);
            let mut feed_out = by(matrix());
            feed_out.lora = branch(matrix(), matrix(), 3);
            Block {
                attention_norm,
                qkv: vec![query, key, value],
                head_gains,
                attention_out,
                feed_norm,
                feed_in: vec![gate, up],
                feed_out,
            }
        }
    }
}

/// A block from Burn's own functions.
fn composed(x: Tensor<2>, block: Block, settings: &Settings) -> Tensor<2> {
    let norm = |x: Tensor<2>, norm: Norm| match norm.bias {
        Some(bias) => norm::layer_norm_composed(x, norm.gain, bias, settings.eps),
        None => norm::rms_norm_composed(x, norm.gain, settings.eps),
    };
    let Block { attention_norm, qkv, head_gains, attention_out, feed_norm, feed_in, feed_out } = block;
    let mut mixed = linear::project_composed(norm(x.clone(), attention_norm), qkv);
    if let Some([query, key]) = head_gains {
        mixed = norm::head_norm_composed(mixed, query, key, H, K, settings.eps);
    }
    let mixed = attention::attention_composed(mixed, &settings.attention);
    let x = x + linear::project_composed(mixed, vec![attention_out]);
    let is_gated = feed_in.len() == 2;
    let inner = linear::project_composed(norm(x.clone(), feed_norm), feed_in);
    let inner = if is_gated {
        activation::gated_composed(inner, settings.activation)
    } else {
        activation::activate_composed(inner, settings.activation)
    };
    x + linear::project_composed(inner, vec![feed_out])
}

#[test]
fn blocks_of_every_kind() {
    for kind in [Kind::Llama, Kind::Gpt2, Kind::Qwen3] {
        let [single, half] = [Precision::F32, Precision::Bf16].map(|precision| settings(kind, precision, false));
        let case = Case {
            name: &format!("{kind:?} block"),
            dims: dims(kind),
            composed: &|t| composed(t[0].clone(), parameters(kind, t), &single),
            fused: &|t| block(t[0].clone(), parameters(kind, t), &single),
            bf16: None,
        };
        let inputs = case.inputs();
        let expected = case.run(case.composed, &inputs, DType::F64);
        let fused = case.run(case.fused, &inputs, DType::F64);
        let differences = case.finite_differences(case.composed);
        compare(case.name, "composed f64 against differences", &expected.gradients, &differences, GRAD_F64);
        compare(case.name, "values f64", std::slice::from_ref(&fused.values), &[expected.values], SAME_F64);
        compare(case.name, "hand-written f64 against composed", &fused.gradients, &expected.gradients, SAME_F64);
        let f32 = case.run(case.fused, &inputs, DType::F32);
        compare(case.name, "values f32", &[f32.values], std::slice::from_ref(&fused.values), BLOCK_F32);
        compare(case.name, "f32 against f64", &f32.gradients, &fused.gradients, BLOCK_F32);
        let bf16 = case.run(&|t| block(t[0].clone(), parameters(kind, t), &half), &inputs, DType::F32);
        compare(case.name, "values bf16", &[bf16.values], &[fused.values], BLOCK_HALF);
        compare(case.name, "bf16 against f64", &bf16.gradients, &fused.gradients, BLOCK_HALF);
    }
}

#[test]
fn activations_made_again_give_the_same_bits() {
    for kind in [Kind::Llama, Kind::Gpt2, Kind::Qwen3] {
        for precision in [Precision::F32, Precision::Bf16] {
            let run = |recompute: bool| {
                let settings = settings(kind, precision, recompute);
                let fused: &dyn Fn(&[Tensor<2>]) -> Tensor<2> =
                    &|t| block(t[0].clone(), parameters(kind, t), &settings);
                let case = Case { name: "block", dims: dims(kind), composed: fused, fused, bf16: None };
                let outcome = case.run(fused, &case.inputs(), DType::F32);
                (outcome.values, outcome.gradients)
            };
            assert_eq!(run(true), run(false), "{kind:?} {precision:?}");
        }
    }
}
