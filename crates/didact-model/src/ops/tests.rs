//! Three links from every operator's gradient to the truth: the operator composed of Burn's functions in `f64` against
//! finite differences; the hand-written forward and backward, in `f64`, against the composed one; the same code on the
//! `f32` and bf16 kernels against its `f64` run.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use didact_kernels::Precision;
use didact_kernels::sdpa::Segment;

use super::*;
use crate::config::Activation;
use crate::rotary::RotaryTable;

/// Finite differences in `f64` with `h = 1e-5 · max(1, |x|)`: the error of central differences is about `h²` and the
/// rounding `1e-16 / h`, both well below this.
pub(super) const GRAD_F64: f64 = 1e-6;
/// Two ways to compute the same in `f64`, a few hundred operations each.
pub(super) const SAME_F64: f64 = 1e-11;
/// `f32` against `f64` over sums of at most a few hundred terms: `4 · 2^-24 · √300`.
const SUMS_F32: f64 = 4e-6;
/// Products of operands rounded to 8 bits: measured worst case 0.7 %, times 2.
const HALF: f64 = 1.4e-2;

/// Numbers in `[-1, 1)` that depend on the seed only.
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 / (1u64 << 53) as f64) * 2.0 - 1.0
        })
        .collect()
}

fn matrix(values: &[f64], dims: [usize; 2], dtype: DType) -> Tensor<2> {
    let data = TensorData::new(values.to_vec(), dims);
    Tensor::from_data(data.convert_dtype(dtype), (&Device::flex().autodiff(), dtype))
}

pub(super) type Function<'a> = &'a dyn Fn(&[Tensor<2>]) -> Tensor<2>;

/// One operator with its inputs; vectors are matrices of one row.
pub(super) struct Case<'a> {
    pub(super) name: &'a str,
    pub(super) dims: Vec<[usize; 2]>,
    pub(super) composed: Function<'a>,
    pub(super) fused: Function<'a>,
    /// The fused operator with bf16 products, where it has products.
    pub(super) bf16: Option<Function<'a>>,
}

/// What an operator gives at its inputs: its values and, for the loss `Σ values · cotangent`, the inputs' gradients.
pub(super) struct Outcome {
    pub(super) values: Vec<f64>,
    pub(super) gradients: Vec<Vec<f64>>,
}

impl Case<'_> {
    pub(super) fn inputs(&self) -> Vec<Vec<f64>> {
        self.dims.iter().enumerate().map(|(i, d)| numbers(100 + i as u64, d[0] * d[1])).collect()
    }

    pub(super) fn run(&self, function: Function<'_>, inputs: &[Vec<f64>], dtype: DType) -> Outcome {
        let inputs: Vec<Tensor<2>> =
            inputs.iter().zip(&self.dims).map(|(v, &d)| matrix(v, d, dtype).require_grad()).collect();
        let output = function(&inputs);
        let dims = output.dims();
        let cotangent = matrix(&numbers(7, dims[0] * dims[1]), dims, dtype);
        let gradients = (output.clone() * cotangent).sum().backward();
        Outcome {
            values: wide(output),
            gradients: inputs.iter().map(|t| wide(t.grad(&gradients).expect("every input has a gradient"))).collect(),
        }
    }

    fn loss(&self, function: Function<'_>, inputs: &[Vec<f64>]) -> f64 {
        let inputs: Vec<Tensor<2>> = inputs.iter().zip(&self.dims).map(|(v, &d)| matrix(v, d, DType::F64)).collect();
        let output = wide(function(&inputs));
        output.iter().zip(numbers(7, output.len())).map(|(o, c)| o * c).sum()
    }

    pub(super) fn finite_differences(&self, function: Function<'_>) -> Vec<Vec<f64>> {
        let mut inputs = self.inputs();
        (0..inputs.len())
            .map(|i| {
                (0..inputs[i].len())
                    .map(|j| {
                        let x = inputs[i][j];
                        let h = 1e-5 * x.abs().max(1.0);
                        inputs[i][j] = x + h;
                        let above = self.loss(function, &inputs);
                        inputs[i][j] = x - h;
                        let below = self.loss(function, &inputs);
                        inputs[i][j] = x;
                        (above - below) / (2.0 * h)
                    })
                    .collect()
            })
            .collect()
    }

    fn check(&self) {
        let inputs = self.inputs();
        let composed = self.run(self.composed, &inputs, DType::F64);
        let fused = self.run(self.fused, &inputs, DType::F64);
        compare(
            self.name,
            "composed f64 against differences",
            &composed.gradients,
            &self.finite_differences(self.composed),
            GRAD_F64,
        );
        compare(self.name, "values f64", std::slice::from_ref(&fused.values), &[composed.values], SAME_F64);
        compare(self.name, "hand-written f64 against composed", &fused.gradients, &composed.gradients, SAME_F64);
        let single = self.run(self.fused, &inputs, DType::F32);
        compare(self.name, "values f32", &[single.values], std::slice::from_ref(&fused.values), SUMS_F32);
        compare(self.name, "f32 against f64", &single.gradients, &fused.gradients, SUMS_F32);
        if let Some(bf16) = self.bf16 {
            let half = self.run(bf16, &inputs, DType::F32);
            compare(self.name, "values bf16", &[half.values], &[fused.values], HALF);
            compare(self.name, "bf16 against f64", &half.gradients, &fused.gradients, HALF);
        }
    }
}

fn wide(t: Tensor<2>) -> Vec<f64> {
    t.into_data().convert_dtype(DType::F64).try_into_vec::<f64>().expect("just converted")
}

/// `‖actual - expected‖ / ‖expected‖`.
fn relative_error(actual: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut actual.iter().zip(expected).map(|(a, e)| a - e)) / norm(&mut expected.iter().copied()).max(1e-300)
}

pub(super) fn compare(name: &str, what: &str, actual: &[Vec<f64>], expected: &[Vec<f64>], tolerance: f64) {
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let error = relative_error(actual, expected);
        assert!(
            error <= tolerance,
            "{name}, {what}, input {index}: relative error {error:.2e}, tolerance {tolerance:.0e}"
        );
    }
}

pub(super) fn vector(t: &Tensor<2>) -> Tensor<1> {
    let n = t.dims()[1];
    t.clone().reshape([n])
}

fn branch(t: &[Tensor<2>], dropout: Option<Dropout>) -> LoraBranch {
    LoraBranch { a: t[0].clone(), b: t[1].clone(), scale: 1.5, dropout }
}

#[test]
fn projections_with_biases_and_adapters() {
    let dropout = Some(Dropout { key: 5, keep: 0.75 });
    let projections = |t: &[Tensor<2>]| {
        vec![
            Projection {
                weight: t[1].clone(),
                layout: WeightLayout::OutIn,
                bias: Some(vector(&t[2])),
                lora: Some(branch(&t[3..5], dropout)),
            },
            Projection {
                weight: t[5].clone(),
                layout: WeightLayout::InOut,
                bias: None,
                lora: Some(branch(&t[6..8], None)),
            },
            Projection::new(t[8].clone(), WeightLayout::OutIn, None),
        ]
    };
    let dims = vec![[9, 10], [6, 10], [1, 6], [2, 10], [6, 2], [10, 5], [3, 10], [5, 3], [4, 10]];
    Case {
        name: "project",
        dims,
        composed: &|t| linear::project_composed(t[0].clone(), projections(t)),
        fused: &|t| project(t[0].clone(), projections(t), Precision::F32),
        bf16: Some(&|t| project(t[0].clone(), projections(t), Precision::Bf16)),
    }
    .check();
}

#[test]
fn a_frozen_weight_gets_no_gradient_and_passes_the_same_one_on() {
    let x = numbers(1, 12);
    let w = numbers(2, 8);
    let run = |trained: bool| {
        let x = matrix(&x, [3, 4], DType::F32).require_grad();
        let w = matrix(&w, [2, 4], DType::F32).set_require_grad(trained);
        let gradients = super::linear(x.clone(), w.clone(), None, Precision::F32).sum().backward();
        (wide(x.grad(&gradients).expect("x is tracked")), w.grad(&gradients).is_some())
    };
    let ((frozen, no), (trained, yes)) = (run(false), run(true));
    assert_eq!((no, yes), (false, true));
    assert_eq!(frozen, trained);
}

#[test]
fn norms() {
    Case {
        name: "rms_norm",
        dims: vec![[70, 19], [1, 19]],
        composed: &|t| norm::rms_norm_composed(t[0].clone(), vector(&t[1]), 1e-3),
        fused: &|t| rms_norm(t[0].clone(), vector(&t[1]), 1e-3),
        bf16: None,
    }
    .check();
    Case {
        name: "layer_norm",
        dims: vec![[5, 70], [1, 70], [1, 70]],
        composed: &|t| norm::layer_norm_composed(t[0].clone(), vector(&t[1]), vector(&t[2]), 1e-3),
        fused: &|t| layer_norm(t[0].clone(), vector(&t[1]), vector(&t[2]), 1e-3),
        bf16: None,
    }
    .check();
    Case {
        name: "head_norm",
        dims: vec![[6, (4 + 2 + 2) * 5], [1, 5], [1, 5]],
        composed: &|t| norm::head_norm_composed(t[0].clone(), vector(&t[1]), vector(&t[2]), 4, 2, 1e-3),
        fused: &|t| head_norm(t[0].clone(), vector(&t[1]), vector(&t[2]), 4, 2, 1e-3),
        bf16: None,
    }
    .check();
}

#[test]
fn activations() {
    for kind in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        Case {
            name: &format!("activate {kind:?}"),
            dims: vec![[5, 9]],
            composed: &|t| activation::activate_composed(t[0].clone().mul_scalar(4.0), kind),
            fused: &|t| activate(t[0].clone().mul_scalar(4.0), kind),
            bf16: None,
        }
        .check();
        Case {
            name: &format!("gated {kind:?}"),
            dims: vec![[5, 18]],
            composed: &|t| activation::gated_composed(t[0].clone().mul_scalar(4.0), kind),
            fused: &|t| gated(t[0].clone().mul_scalar(4.0), kind),
            bf16: None,
        }
        .check();
    }
}

#[test]
fn gathered_rows_add_up_their_gradients() {
    let ids = [3, 0, 3, 3, 1];
    Case {
        name: "gather_rows",
        dims: vec![[5, 4]],
        composed: &|t| embedding::gather_rows_composed(t[0].clone(), &ids),
        fused: &|t| gather_rows(t[0].clone(), &ids),
        bf16: None,
    }
    .check();
}

/// Sequences of these lengths; positions that restart in the middle.
fn plan(lengths: &[usize], rotary: bool, precision: Precision) -> Arc<AttentionPlan> {
    let mut segments = Vec::new();
    let mut tokens = 0;
    for &len in lengths {
        segments.push(Segment::whole(tokens..tokens + len));
        tokens += len;
    }
    let positions: Vec<u32> = (0..tokens).map(|i| (i % 7) as u32).collect();
    Arc::new(AttentionPlan {
        segments,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        rotary: rotary.then(|| RotaryTable::from_frequencies(&[1.0, 0.3, 0.05], 1.25, &positions)),
        precision,
    })
}

#[test]
fn attention_over_ragged_sequences() {
    for rotary in [false, true] {
        let single = plan(&[5, 1, 8], rotary, Precision::F32);
        let half = plan(&[5, 1, 8], rotary, Precision::Bf16);
        Case {
            name: "attention",
            dims: vec![[14, (4 + 2 * 2) * 6]],
            composed: &|t| attention::attention_composed(t[0].clone(), &single),
            fused: &|t| attention(t[0].clone(), &single),
            bf16: Some(&|t| attention(t[0].clone(), &half)),
        }
        .check();
    }
}

#[test]
fn attention_over_several_blocks_of_queries() {
    let plan = plan(&[70, 150], true, Precision::F32);
    let case = Case {
        name: "long attention",
        dims: vec![[220, (4 + 2 * 2) * 6]],
        composed: &|t| attention::attention_composed(t[0].clone(), &plan),
        fused: &|t| attention(t[0].clone(), &plan),
        bf16: None,
    };
    let inputs = case.inputs();
    let composed = case.run(case.composed, &inputs, DType::F64);
    let fused = case.run(case.fused, &inputs, DType::F64);
    compare("long attention", "values", &[fused.values], &[composed.values], SAME_F64);
    compare("long attention", "gradients", &fused.gradients, &composed.gradients, SAME_F64);
}

#[test]
fn cross_entropy_with_its_projection() {
    let targets = [2, 0, 6, 6];
    let weights = [1.0, 0.5, 2.0, 1.0];
    let first = |loss: (Tensor<1>, Tensor<1>)| loss.0.reshape([1, 1]);
    let fused = |precision: Precision| {
        move |t: &[Tensor<2>]| {
            first(linear_cross_entropy(t[0].clone(), t[1].clone().mul_scalar(3.0), &targets, &weights, precision))
        }
    };
    Case {
        name: "cross-entropy",
        dims: vec![[4, 10], [7, 10]],
        composed: &|t| {
            let scaled = t[1].clone().mul_scalar(3.0);
            first(cross_entropy::linear_cross_entropy_composed(t[0].clone(), scaled, &targets, &weights))
        },
        fused: &fused(Precision::F32),
        bf16: Some(&fused(Precision::Bf16)),
    }
    .check();
}

/// The same value with 1.01 times the gradient.
fn skewed(t: &Tensor<2>) -> Tensor<2> {
    t.clone().mul_scalar(1.01) - t.clone().mul_scalar(0.01).detach()
}

#[test]
#[should_panic(expected = "hand-written f64 against composed, input 0")]
fn a_backward_that_is_wrong_by_one_percent_is_caught() {
    Case {
        name: "skewed",
        dims: vec![[5, 8], [1, 8]],
        composed: &|t| norm::rms_norm_composed(t[0].clone(), vector(&t[1]), 1e-3),
        fused: &|t| rms_norm(skewed(&t[0]), vector(&t[1]), 1e-3),
        bf16: None,
    }
    .check();
}

#[test]
#[should_panic(expected = "composed f64 against differences, input 1")]
fn a_composed_gradient_that_is_wrong_by_one_percent_is_caught() {
    Case {
        name: "skewed",
        dims: vec![[5, 8], [1, 8]],
        composed: &|t| norm::rms_norm_composed(t[0].clone(), vector(&skewed(&t[1])), 1e-3),
        fused: &|t| rms_norm(t[0].clone(), vector(&t[1]), 1e-3),
        bf16: None,
    }
    .check();
}
