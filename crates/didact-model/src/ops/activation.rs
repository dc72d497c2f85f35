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
use crate::profile::{Operator, Pass, scope};

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
    /// Value and derivative.
    fn both<E: Real>(x: E) -> (E, E);
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
    fn both<E: Real>(x: E) -> (E, E) {
        let sigmoid = E::ONE / (E::ONE + (-x).exp());
        (x * sigmoid, sigmoid * (E::ONE + x * (E::ONE - sigmoid)))
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
    fn both<E: Real>(x: E) -> (E, E) {
        let t = tanh_part(x);
        let inner_slope = E::of(SQRT_2_OVER_PI) * (E::ONE + E::of(3.0 * CUBIC) * x * x);
        let share = E::of(0.5) * (E::ONE + t);
        (x * share, share + E::of(0.5) * x * (E::ONE - t * t) * inner_slope)
    }
}

impl Curve for GeluErf {
    fn value<E: Real>(x: E) -> E {
        let x = x.wide();
        E::of(0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)))
    }

    fn both<E: Real>(x: E) -> (E, E) {
        let x = x.wide();
        let share = 0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
        let density = (-0.5 * x * x).exp() * ONE_OVER_SQRT_2_PI;
        (E::of(x * share), E::of(share + x * density))
    }
}

/// What the operator is told beside its tensor.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub(super) kind: Activation,
    pub(super) gated: bool,
}

/// The extension point through which Burn reaches this operator.
#[backend_extension(Flex, Autodiff)]
pub trait ActivationOps: burn::backend::Backend {
    /// See [`activate`] and [`gated`].
    fn activation(x: FloatTensor<Self>, plan: Plan) -> FloatTensor<Self>;
}

/// Rows of `width` numbers to rows of half as many, or of as many.
pub(super) fn forward_slice<E: Real>(y: &mut [E], x: &[E], width: usize, plan: Plan) {
    match plan.kind {
        Activation::Silu => forward::<E, Silu>(y, x, width, plan.gated),
        Activation::GeluTanh => forward::<E, GeluTanh>(y, x, width, plan.gated),
        Activation::Gelu => forward::<E, GeluErf>(y, x, width, plan.gated),
    }
}

/// The gradient and the values in one pass, in place: `x` becomes its gradient, and `dy` the output.
pub(super) fn backward_slice<E: Real>(x: &mut [E], dy: &mut [E], width: usize, plan: Plan) {
    match plan.kind {
        Activation::Silu => backward::<E, Silu>(x, dy, width, plan.gated),
        Activation::GeluTanh => backward::<E, GeluTanh>(x, dy, width, plan.gated),
        Activation::Gelu => backward::<E, GeluErf>(x, dy, width, plan.gated),
    }
}

fn forward<E: Real, A: Curve>(y: &mut [E], x: &[E], width: usize, gated: bool) {
    let out = if gated { width / 2 } else { width };
    y.par_chunks_mut(out * ROW_BLOCK).zip(x.par_chunks(width * ROW_BLOCK)).for_each(|(y, x)| {
        forward_rows::<E, A>(y, x, width, gated);
    });
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

fn backward<E: Real, A: Curve>(x: &mut [E], dy: &mut [E], width: usize, gated: bool) {
    let out = if gated { width / 2 } else { width };
    x.par_chunks_mut(width * ROW_BLOCK).zip(dy.par_chunks_mut(out * ROW_BLOCK)).for_each(|(x, dy)| {
        backward_rows::<E, A>(x, dy, width, gated);
    });
}

vectorized! {
    fn backward_rows<'a, E: Real, A: Curve>(x: &'a mut [E], dy: &'a mut [E], width: usize, gated: bool) -> () {
        let out = if gated { width / 2 } else { width };
        for (x, dy) in x.chunks_mut(width).zip(dy.chunks_mut(out)) {
            if gated {
                let (gate, up) = x.split_at_mut(out);
                for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
                    let (value, slope) = A::both(*gate);
                    let (g, u) = (*dy, *up);
                    *gate = g * u * slope;
                    *up = g * value;
                    *dy = value * u;
                }
            } else {
                for (x, dy) in x.iter_mut().zip(dy) {
                    let (value, slope) = A::both(*x);
                    *x = *dy * slope;
                    *dy = value;
                }
            }
        }
    }
}

fn run_forward(x: &FlexTensor, plan: Plan) -> FlexTensor {
    let [n, width] = dims2(x);
    let out = if plan.gated { width / 2 } else { width };
    with_real!(x, E => {
        let mut y = vec![E::ZERO; n * out];
        forward_slice::<E>(&mut y, values(x), width, plan);
        tensor(y, [n, out])
    })
}

fn run_backward(x: &FlexTensor, dy: &FlexTensor, plan: Plan) -> FlexTensor {
    let [n, width] = dims2(x);
    with_real!(x, E => {
        let (mut x, mut dy) = (values::<E>(x).to_vec(), values::<E>(dy).to_vec());
        backward_slice::<E>(&mut x, &mut dy, width, plan);
        tensor(x, [n, width])
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
        let _time = scope(Operator::Activation, Pass::Backward);
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
        let _time = scope(Operator::Activation, Pass::Forward);
        let x = contiguous(x.primitive());
        let y = run_forward(&x, plan);
        match ActivationBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, plan), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
