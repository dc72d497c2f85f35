//! The feed-forward's non-linearity, plain or gated.
#![expect(
    clippy::inline_always,
    reason = "the loops that call these are compiled for vectors only where they are inlined"
)]

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::real::Real;
use super::rows::ROW_BLOCK;
use super::storage::{contiguous, dims2, on_flex, tensor, values, with_real};
use super::vector::vectorized;
use crate::config::Activation;

/// Applies the non-linearity to every element.
///
/// # Shapes
/// - `x`: `[N, F]`
/// - returns: `[N, F]`
pub fn activate(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    if !on_flex(&x) {
        return activate_composed(x, kind);
    }
    let plan = Plan { kind, gated: false };
    Tensor::from_dispatch(<Dispatch as ActivationOps>::activation(x.into_dispatch(), plan))
}

/// `act(gate) · up`, with the gate in the left half of each row and `up` in the right.
///
/// # Shapes
/// - `gate_up`: `[N, 2F]`
/// - returns: `[N, F]`
///
/// # Reference
/// Shazeer, 2020, arXiv:2002.05202 (SwiGLU with [`Activation::Silu`]).
pub fn gated(gate_up: Tensor<2>, kind: Activation) -> Tensor<2> {
    if !on_flex(&gate_up) {
        return gated_composed(gate_up, kind);
    }
    let plan = Plan { kind, gated: true };
    Tensor::from_dispatch(<Dispatch as ActivationOps>::activation(gate_up.into_dispatch(), plan))
}

/// [`activate`] from Burn's own functions.
pub(crate) fn activate_composed(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    match kind {
        Activation::Silu => x.clone() / (x.neg().exp().add_scalar(1.0)),
        Activation::GeluTanh => {
            let inner = x.clone() + x.clone().powi_scalar(3).mul_scalar(CUBIC);
            x * inner.mul_scalar(SQRT_2_OVER_PI).tanh().add_scalar(1.0).mul_scalar(0.5)
        }
        Activation::Gelu => {
            x.clone() * x.mul_scalar(std::f64::consts::FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5)
        }
    }
}

/// [`gated`] from Burn's own functions.
pub(crate) fn gated_composed(gate_up: Tensor<2>, kind: Activation) -> Tensor<2> {
    let [n, width] = gate_up.dims();
    let gate = gate_up.clone().slice([0..n, 0..width / 2]);
    activate_composed(gate, kind) * gate_up.slice([0..n, width / 2..width])
}

const CUBIC: f64 = 0.044_715;
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const ONE_OVER_SQRT_2_PI: f64 = 0.398_942_280_401_432_7;

/// The non-linearity and its derivative at one point.
trait Curve {
    fn value<E: Real>(x: E) -> E;
    fn slope<E: Real>(x: E) -> E;
}

struct Silu;
struct GeluTanh;
struct GeluErf;

impl Curve for Silu {
    #[inline(always)]
    fn value<E: Real>(x: E) -> E {
        x / (E::ONE + (-x).exp())
    }

    #[inline(always)]
    fn slope<E: Real>(x: E) -> E {
        let sigmoid = E::ONE / (E::ONE + (-x).exp());
        sigmoid * (E::ONE + x * (E::ONE - sigmoid))
    }
}

#[inline(always)]
fn tanh_part<E: Real>(x: E) -> E {
    let inner = E::of(SQRT_2_OVER_PI) * (x + E::of(CUBIC) * x * x * x);
    E::ONE - E::of(2.0) / ((inner + inner).exp() + E::ONE)
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value<E: Real>(x: E) -> E {
        E::of(0.5) * x * (E::ONE + tanh_part(x))
    }

    #[inline(always)]
    fn slope<E: Real>(x: E) -> E {
        let t = tanh_part(x);
        let inner_slope = E::of(SQRT_2_OVER_PI) * (E::ONE + E::of(3.0 * CUBIC) * x * x);
        E::of(0.5) * (E::ONE + t) + E::of(0.5) * x * (E::ONE - t * t) * inner_slope
    }
}

impl Curve for GeluErf {
    fn value<E: Real>(x: E) -> E {
        let x = x.wide();
        E::of(0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)))
    }

    fn slope<E: Real>(x: E) -> E {
        let x = x.wide();
        let density = (-0.5 * x * x).exp() * ONE_OVER_SQRT_2_PI;
        E::of(0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)) + x * density)
    }
}

/// What the operator is told beside its tensor.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    kind: Activation,
    gated: bool,
}

/// The extension point through which Burn reaches this operator.
#[backend_extension(Flex, Autodiff)]
pub trait ActivationOps: burn::backend::Backend {
    /// See [`activate`] and [`gated`].
    fn activation(x: FloatTensor<Self>, plan: Plan) -> FloatTensor<Self>;
}

fn forward<E: Real, A: Curve>(x: &FlexTensor, gated: bool) -> FlexTensor {
    let [n, width] = dims2(x);
    let x = values::<E>(x);
    let out = if gated { width / 2 } else { width };
    let mut y = vec![E::ZERO; n * out];
    y.par_chunks_mut(out * ROW_BLOCK).zip(x.par_chunks(width * ROW_BLOCK)).for_each(|(y, x)| {
        forward_rows::<E, A>(y, x, width, gated);
    });
    tensor(y, [n, out])
}

vectorized! {
    fn forward_rows<'a, E: Real, A: Curve>(y: &'a mut [E], x: &'a [E], width: usize, gated: bool) -> () {
        let out = if gated { width / 2 } else { width };
        for (y, x) in y.chunks_mut(out).zip(x.chunks(width)) {
            if gated {
                let (gate, up) = x.split_at(out);
                for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                    *y = A::value(gate) * up;
                }
            } else {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = A::value(x));
            }
        }
    }
}

fn backward<E: Real, A: Curve>(x: &FlexTensor, dy: &FlexTensor, gated: bool) -> FlexTensor {
    let [n, width] = dims2(x);
    let (x, dy) = (values::<E>(x), values::<E>(dy));
    let out = if gated { width / 2 } else { width };
    let mut dx = vec![E::ZERO; n * width];
    let block = width * ROW_BLOCK;
    dx.par_chunks_mut(block).zip(x.par_chunks(block)).zip(dy.par_chunks(out * ROW_BLOCK)).for_each(|((dx, x), dy)| {
        backward_rows::<E, A>(dx, x, dy, width, gated);
    });
    tensor(dx, [n, width])
}

vectorized! {
    fn backward_rows<'a, E: Real, A: Curve>(
        dx: &'a mut [E],
        x: &'a [E],
        dy: &'a [E],
        width: usize,
        gated: bool,
    ) -> () {
        let out = if gated { width / 2 } else { width };
        for ((dx, x), dy) in dx.chunks_mut(width).zip(x.chunks(width)).zip(dy.chunks(out)) {
            if gated {
                let (gate, up) = x.split_at(out);
                let (d_gate, d_up) = dx.split_at_mut(out);
                for (((d_gate, d_up), (&gate, &up)), &dy) in
                    d_gate.iter_mut().zip(d_up).zip(gate.iter().zip(up)).zip(dy)
                {
                    *d_gate = dy * up * A::slope(gate);
                    *d_up = dy * A::value(gate);
                }
            } else {
                for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                    *dx = dy * A::slope(x);
                }
            }
        }
    }
}

fn run_forward(x: &FlexTensor, plan: Plan) -> FlexTensor {
    with_real!(x, E => match plan.kind {
        Activation::Silu => forward::<E, Silu>(x, plan.gated),
        Activation::GeluTanh => forward::<E, GeluTanh>(x, plan.gated),
        Activation::Gelu => forward::<E, GeluErf>(x, plan.gated),
    })
}

fn run_backward(x: &FlexTensor, dy: &FlexTensor, plan: Plan) -> FlexTensor {
    with_real!(x, E => match plan.kind {
        Activation::Silu => backward::<E, Silu>(x, dy, plan.gated),
        Activation::GeluTanh => backward::<E, GeluTanh>(x, dy, plan.gated),
        Activation::Gelu => backward::<E, GeluErf>(x, dy, plan.gated),
    })
}

impl ActivationOps for Flex {
    fn activation(x: FlexTensor, plan: Plan) -> FlexTensor {
        run_forward(&contiguous(&x), plan)
    }
}

#[derive(Debug)]
struct ActivationBackward;

impl Backward<Flex, 1> for ActivationBackward {
    type State = (FlexTensor, Plan);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = contiguous(&grads.consume::<Flex>(&ops.node));
        let (x, plan) = ops.state;
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<Flex>(parent.id, run_backward(&x, &dy, plan));
        }
    }
}

impl<C: CheckpointStrategy> ActivationOps for Autodiff<Flex, C> {
    fn activation(x: FloatTensor<Self>, plan: Plan) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let x = contiguous(x.primitive());
        let y = run_forward(&x, plan);
        match ActivationBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, plan), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
