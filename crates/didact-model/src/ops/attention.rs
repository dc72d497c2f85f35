//! Causal self-attention over ragged sequences, with the rotary embedding of queries and keys inside.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, Flex, backend_extension};
use burn::tensor::{Bool, Tensor, TensorData, activation};
use burn_flex::FlexTensor;
use didact_kernels::Precision;
use didact_kernels::sdpa::{self, Segment};

use super::real::Real;
use super::storage::{contiguous, dims2, on_flex, tensor, values, with_real};
use crate::profile::{Operator, Pass, scope};
use crate::rotary::RotaryTable;

/// Everything that attention is told beside its input. One plan serves all layers of a forward pass.
#[derive(Debug, Clone)]
pub struct AttentionPlan {
    /// Where each sequence's tokens are: consecutive, from 0 to N. A query sees the keys of its own sequence up to
    /// itself.
    pub segments: Vec<Segment>,
    /// Query heads, H.
    pub heads: usize,
    /// Key/value heads, K; divides H, and query head `h` reads key head `h / (H / K)`.
    pub kv_heads: usize,
    /// Head size, D.
    pub head_dim: usize,
    /// Rotations of the N tokens' positions; `None` where positions are learned vectors.
    pub rotary: Option<RotaryTable>,
    /// Arithmetic of the matrix products; the softmax is always in full precision.
    pub precision: Precision,
}

impl AttentionPlan {
    /// What scores are multiplied with, `1 / √D`.
    fn scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }

    /// Columns of the input: queries, keys, values.
    pub(super) fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    pub(super) fn check(&self, dims: [usize; 2]) {
        let mut tokens = 0;
        for segment in &self.segments {
            assert_eq!(segment.queries.start, tokens, "attention: {:?} are not consecutive", self.segments);
            tokens = segment.queries.end;
        }
        assert_eq!(
            dims,
            [tokens, self.width()],
            "attention: the input does not fit {tokens} tokens, {} heads, {} key/value heads of size {}",
            self.heads,
            self.kv_heads,
            self.head_dim
        );
    }

    /// As the kernels take it.
    pub(super) fn for_kernel(&self) -> sdpa::Attention<'_> {
        sdpa::Attention {
            segments: &self.segments,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scale(),
            causal: true,
            window: None,
            rotary: self.rotary.as_ref().map(|table| sdpa::Rotary { cos: &table.cos, sin: &table.sin }),
            precision: self.precision,
        }
    }
}

/// `softmax(rot(Q) · rot(K)ᵀ / √D) · V` within each sequence, causally.
///
/// # Shapes
/// - `qkv`: `[N, (H + 2K)·D]`: queries, keys, values side by side
/// - returns: `[N, H·D]`
///
/// # Panics
/// If the input does not fit the plan.
pub fn attention(qkv: Tensor<2>, plan: &Arc<AttentionPlan>) -> Tensor<2> {
    plan.check(qkv.dims());
    if !on_flex(&qkv) {
        return attention_composed(qkv, plan);
    }
    Tensor::from_dispatch(<Dispatch as AttentionOps>::attention(qkv.into_dispatch(), Arc::clone(plan)))
}

/// [`attention`] from Burn's own functions.
pub(crate) fn attention_composed(qkv: Tensor<2>, plan: &AttentionPlan) -> Tensor<2> {
    let outputs = plan.segments.iter().map(|segment| sequence_composed(&qkv, plan, &segment.queries)).collect();
    Tensor::cat(outputs, 0)
}

fn sequence_composed(qkv: &Tensor<2>, plan: &AttentionPlan, sequence: &Range<usize>) -> Tensor<2> {
    let AttentionPlan { heads: h, kv_heads: k, head_dim: d, .. } = *plan;
    let t = sequence.len();
    let (device, dtype) = (qkv.device(), qkv.dtype());
    // [count, T, D]
    let part = |first: usize, count: usize| -> Tensor<3> {
        let part = qkv.clone().slice([sequence.clone(), first * d..(first + count) * d]);
        part.reshape([t, count, d]).swap_dims(0, 1)
    };
    let rotate = |x: Tensor<3>| -> Tensor<3> {
        let Some(table) = &plan.rotary else { return x };
        let half = d / 2;
        let [count, _, _] = x.dims();
        let values = |v: &[f32]| {
            let v = v[sequence.start * half..sequence.end * half].to_vec();
            Tensor::<3>::from_data(TensorData::new(v, [1, t, half]), (&device, dtype))
        };
        let (cos, sin) = (values(&table.cos), values(&table.sin));
        let low = x.clone().slice([0..count, 0..t, 0..half]);
        let high = x.slice([0..count, 0..t, half..d]);
        Tensor::cat(vec![low.clone() * cos.clone() - high.clone() * sin.clone(), high * cos + low * sin], 2)
    };
    let query = rotate(part(0, h)).reshape([k, (h / k) * t, d]);
    let key = rotate(part(h, k));
    let value = part(h + k, k);
    let scores = query.matmul(key.swap_dims(1, 2)).mul_scalar(f64::from(plan.scale())).reshape([h, t, t]);
    let hidden: Vec<bool> = (0..t * t).map(|i| i % t > i / t).collect();
    let hidden = Tensor::<3, Bool>::from_data(TensorData::new(hidden, [1, t, t]), &device);
    let scores = scores.mask_fill(hidden.expand([h, t, t]), f64::NEG_INFINITY);
    let weights = activation::softmax(scores, 2).reshape([k, (h / k) * t, t]);
    weights.matmul(value).reshape([h, t, d]).swap_dims(0, 1).reshape([t, h * d])
}

/// The extension point through which Burn reaches this operator.
#[backend_extension(Flex, Autodiff)]
pub trait AttentionOps: burn::backend::Backend {
    /// See [`attention`].
    fn attention(qkv: FloatTensor<Self>, plan: Arc<AttentionPlan>) -> FloatTensor<Self>;
}

/// `[N, H·D]` and the log-sum-exps, `[H, N]`.
fn forward<E: Real>(qkv: &FlexTensor, plan: &AttentionPlan) -> (FlexTensor, FlexTensor) {
    let [n, _] = dims2(qkv);
    let mut out = vec![E::ZERO; n * plan.heads * plan.head_dim];
    let mut log_sums = vec![E::ZERO; plan.heads * n];
    E::attention(&plan.for_kernel(), values(qkv), &mut out, &mut log_sums);
    (tensor(out, [n, plan.heads * plan.head_dim]), tensor(log_sums, [plan.heads * n]))
}

fn backward<E: Real>(
    qkv: &FlexTensor,
    out: &FlexTensor,
    log_sums: &FlexTensor,
    dout: &FlexTensor,
    plan: &AttentionPlan,
) -> FlexTensor {
    let [n, width] = dims2(qkv);
    let mut dqkv = vec![E::ZERO; n * width];
    E::attention_backward(&plan.for_kernel(), values(qkv), values(out), values(log_sums), values(dout), &mut dqkv);
    tensor(dqkv, [n, width])
}

impl AttentionOps for Flex {
    fn attention(qkv: FlexTensor, plan: Arc<AttentionPlan>) -> FlexTensor {
        let qkv = contiguous(&qkv);
        with_real!(&qkv, E => forward::<E>(&qkv, &plan)).0
    }
}

#[derive(Debug)]
struct AttentionBackward;

#[derive(Debug, Clone)]
struct State {
    qkv: FlexTensor,
    out: FlexTensor,
    log_sums: FlexTensor,
    plan: Arc<AttentionPlan>,
}

impl Backward<Flex, 1> for AttentionBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dout = contiguous(&grads.consume::<Flex>(&ops.node));
        let _time = scope(Operator::Attention, Pass::Backward);
        let State { qkv, out, log_sums, plan } = ops.state;
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            let dqkv = with_real!(&qkv, E => backward::<E>(&qkv, &out, &log_sums, &dout, &plan));
            grads.register::<Flex>(parent.id, dqkv);
        }
    }
}

impl<C: CheckpointStrategy> AttentionOps for Autodiff<Flex, C> {
    fn attention(qkv: FloatTensor<Self>, plan: Arc<AttentionPlan>) -> FloatTensor<Self> {
        let nodes = [qkv.node()];
        let _time = scope(Operator::Attention, Pass::Forward);
        let qkv = contiguous(qkv.primitive());
        let (out, log_sums) = with_real!(&qkv, E => forward::<E>(&qkv, &plan));
        match AttentionBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(State { qkv, out: out.clone(), log_sums, plan }, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}
