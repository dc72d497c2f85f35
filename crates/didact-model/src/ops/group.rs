//! Linear layers of one input, on slices: the arithmetic of [`super::linear`] and of whole blocks.
//!
//! Work goes row range by row range. Sums over rows (the gradients of weights, biases and adapters) go on from one
//! range to the next, so the ranges decide the order of addition and must not depend on the machine.

use burn::backend::autodiff::grads::Gradients;
use burn_autodiff::NodeId;
use didact_kernels::Precision;
use didact_kernels::random::dropout_mask;
use rayon::prelude::*;

use super::linear::{Dropout, WeightLayout};
use super::pool::Buffer;
use super::real::{Real, Rows, View};
use super::rows::column_sums;
use super::vector::vectorized;
use crate::gradients::{Sum, deliver};

/// One layer.
#[derive(Debug)]
pub(super) struct Member<'a, E> {
    pub(super) weight: &'a [E],
    pub(super) layout: WeightLayout,
    pub(super) bias: Option<&'a [E]>,
    pub(super) low_rank: Option<LowRank<'a, E>>,
    pub(super) outputs: usize,
}

/// A layer's low-rank branch.
#[derive(Debug)]
pub(super) struct LowRank<'a, E> {
    /// `[R, I]`.
    pub(super) a: &'a [E],
    /// `[O, R]`.
    pub(super) b: &'a [E],
    pub(super) rank: usize,
    pub(super) scale: f64,
    pub(super) dropout: Option<Dropout>,
}

/// Layers of one input; their outputs lie side by side.
#[derive(Debug)]
pub(super) struct Group<'a, E> {
    pub(super) members: Vec<Member<'a, E>>,
    pub(super) inputs: usize,
    pub(super) precision: Precision,
}

/// The tensors of one layer that need a gradient: weight, bias, `A`, `B`.
pub(super) type Nodes = [Option<NodeId>; 4];

/// The gradients of one layer's tensors: weight, bias, `A` (transposed, `[I, R]`), `B`. Those that are not needed, or
/// that nothing was added to, are missing.
#[derive(Debug)]
pub(super) struct Own<E: Real> {
    weight: Option<Sum<E>>,
    bias: Option<Vec<E>>,
    a: Option<Vec<E>>,
    b: Option<Vec<E>>,
}

impl<E: Real> Own<E> {
    /// Places for the gradients of the tensors behind `nodes`.
    pub(super) fn new(nodes: &Nodes, member: &Member<'_, E>) -> Self {
        let weight = nodes[0].map(|node| Sum::begin(Some(node), member.weight.len(), false));
        Self { weight, bias: None, a: None, b: None }
    }

    /// Hands the gradients over.
    pub(super) fn finish(self, grads: &mut Gradients, nodes: &Nodes, member: &Member<'_, E>, inputs: usize) {
        let outputs = member.outputs;
        if let (Some(sum), Some(node)) = (self.weight, nodes[0]) {
            let shape = match member.layout {
                WeightLayout::OutIn => [outputs, inputs],
                WeightLayout::InOut => [inputs, outputs],
            };
            sum.finish(grads, node, shape);
        }
        if let (Some(bias), Some(node)) = (self.bias, nodes[1]) {
            deliver(grads, node, bias, [outputs]);
        }
        let rank = member.low_rank.as_ref().map_or(0, |branch| branch.rank);
        if let (Some(a), Some(node)) = (self.a, nodes[2]) {
            deliver(grads, node, transposed(&a, rank), [rank, inputs]);
        }
        if let (Some(b), Some(node)) = (self.b, nodes[3]) {
            deliver(grads, node, b, [outputs, rank]);
        }
    }
}

/// What the forward pass keeps of a layer's low-rank branch: `[N, R]`, scaled.
pub(super) type Hidden<E> = Option<Vec<E>>;

impl<E: Real> Group<'_, E> {
    /// Columns of the outputs.
    pub(super) fn width(&self) -> usize {
        self.members.iter().map(|m| m.outputs).sum()
    }

    /// The layers' weights as right factors of `x · W`, prepared for many ranges of rows.
    pub(super) fn pack_forward(&self) -> E::Packed {
        let parts: Vec<_> = self.members.iter().map(|m| (m.forward_view(self.inputs), m.outputs)).collect();
        E::pack_beside(&parts, self.inputs, self.precision)
    }

    /// The layers' weights as right factors of `dy · Wᵀ`, prepared for many ranges of rows.
    pub(super) fn pack_backward(&self) -> E::Packed {
        let parts: Vec<_> = self.members.iter().map(|m| (m.backward_view(self.inputs), m.outputs)).collect();
        E::pack_above(&parts, self.inputs, self.precision)
    }

    /// `y` of rows `first..` of the input; `hidden` takes what the branches keep.
    pub(super) fn forward(
        &self,
        packed: Option<&E::Packed>,
        first: usize,
        x: &[E],
        y: &mut [E],
        hidden: &mut [Hidden<E>],
    ) {
        let (n, width) = (x.len() / self.inputs, self.width());
        assert_eq!(y.len(), n * width, "project: output of {n} rows");
        let has_bias = self.members.iter().any(|m| m.bias.is_some());
        if has_bias {
            y.par_chunks_mut(width).for_each(|row| {
                let mut rest = row;
                for member in &self.members {
                    let (own, others) = rest.split_at_mut(member.outputs);
                    match member.bias {
                        Some(bias) => own.copy_from_slice(bias),
                        None => own.fill(E::ZERO),
                    }
                    rest = others;
                }
            });
        }
        if let Some(packed) = packed {
            E::gemm_packed(y, width, n, View::rows(x, self.inputs), packed, has_bias);
        }
        let mut offset = 0;
        for (member, hidden) in self.members.iter().zip(hidden) {
            let outputs = member.outputs;
            let y = &mut y[offset..];
            if packed.is_none() {
                let shape = [n, outputs, self.inputs];
                let weight = member.forward_view(self.inputs);
                E::gemm(y, width, shape, View::rows(x, self.inputs), weight, has_bias, self.precision);
            }
            if let Some(branch) = &member.low_rank {
                let h = branch.project(first, x, self.inputs);
                E::low_rank_update(y, width, outputs, &h, &transposed(branch.b, branch.rank), branch.rank);
                hidden.get_or_insert_default().extend_from_slice(&h);
            }
            offset += outputs;
        }
    }

    /// What the branches keep of rows `first..`, where the output itself is not wanted.
    pub(super) fn branches(&self, first: usize, x: &[E], hidden: &mut [Hidden<E>]) {
        for (member, hidden) in self.members.iter().zip(hidden) {
            if let Some(branch) = &member.low_rank {
                hidden.get_or_insert_default().extend_from_slice(&branch.project(first, x, self.inputs));
            }
        }
    }

    /// Whether a layer has a low-rank branch.
    pub(super) fn has_branches(&self) -> bool {
        self.members.iter().any(|member| member.low_rank.is_some())
    }

    /// Writes `dx` of rows `first..`, if it is wanted; gives the gradients of the branches' hidden values.
    pub(super) fn backward_input(
        &self,
        packed: Option<&E::Packed>,
        first: usize,
        dy: &[E],
        mut dx: Option<&mut [E]>,
    ) -> Vec<Hidden<E>> {
        let (width, inputs) = (self.width(), self.inputs);
        let n = dy.len() / width;
        if let Some(dx) = dx.as_deref_mut() {
            assert_eq!(dx.len(), n * inputs, "project: gradient of {n} rows");
            if let Some(packed) = packed {
                E::gemm_packed(dx, inputs, n, View::rows(dy, width), packed, false);
            }
        }
        let mut offset = 0;
        let mut hidden = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let outputs = member.outputs;
            let dy = &dy[offset..];
            if let (Some(dx), None) = (dx.as_deref_mut(), packed) {
                let dy = View { data: dy, row_stride: width, col_stride: 1 };
                let shape = [n, inputs, outputs];
                E::gemm(dx, inputs, shape, dy, member.backward_view(inputs), offset > 0, self.precision);
            }
            hidden.push(member.low_rank.as_ref().map(|branch| {
                let dy = Rows { data: dy, count: n, width: outputs, stride: width };
                let mut dh = E::low_rank_project(dy, branch.b, branch.rank);
                scale(&mut dh, branch.scale);
                if let Some(dx) = dx.as_deref_mut() {
                    branch.add_through(first, &dh, dx, inputs);
                }
                dh
            }));
            offset += outputs;
        }
        hidden
    }

    /// Adds what rows `first..` give to the layers' own gradients. `through` is what
    /// [`backward_input`](Self::backward_input) gave.
    pub(super) fn backward_own(
        &self,
        first: usize,
        x: &[E],
        dy: &[E],
        through: &[Hidden<E>],
        hidden: &[Hidden<E>],
        nodes: &[Nodes],
        own: &mut [Own<E>],
    ) {
        let (width, inputs) = (self.width(), self.inputs);
        let n = dy.len() / width;
        // The input is packed once for the gradients of all weights that lie by outputs.
        let is_by_outputs = |i: usize| nodes[i][0].is_some() && self.members[i].layout == WeightLayout::OutIn;
        let packed = (0..self.members.len())
            .any(is_by_outputs)
            .then(|| E::pack_beside(&[(View::rows(x, inputs), inputs)], n, self.precision));
        let mut offset = 0;
        for (index, member) in self.members.iter().enumerate() {
            let outputs = member.outputs;
            let dy = &dy[offset..];
            let [_, needs_bias, needs_a, needs_b] = nodes[index].map(|node| node.is_some());
            let own = &mut own[index];
            if let Some(weight) = &mut own.weight {
                let (gradient, accumulate) = weight.next();
                if let (WeightLayout::OutIn, Some(packed)) = (member.layout, &packed) {
                    let dy = View { data: dy, row_stride: 1, col_stride: width };
                    E::gemm_packed(gradient, inputs, outputs, dy, packed, accumulate);
                } else {
                    let dy = View { data: dy, row_stride: width, col_stride: 1 };
                    let shape = [inputs, outputs, n];
                    E::gemm(gradient, outputs, shape, View::columns(x, inputs), dy, accumulate, self.precision);
                }
            }
            if needs_bias {
                add_or_set(&mut own.bias, column_sums(dy, n, outputs, width));
            }
            if let Some(branch) = &member.low_rank {
                let rank = branch.rank;
                if needs_b {
                    let all = hidden[index].as_ref().expect("the forward pass keeps a branch's hidden values");
                    let h = &all[first * rank..][..n * rank];
                    let dy = Rows { data: dy, count: n, width: outputs, stride: width };
                    add_or_set(&mut own.b, E::low_rank_outer(dy, h, rank));
                }
                if needs_a {
                    let dh = through[index].as_ref().expect("a branch has hidden values");
                    let dropped = branch.dropped(first, x, inputs);
                    let x = dropped.as_deref().unwrap_or(x);
                    let input = Rows { data: x, count: n, width: inputs, stride: inputs };
                    add_or_set(&mut own.a, E::low_rank_outer(input, dh, rank));
                }
            }
            offset += outputs;
        }
    }
}

impl<E: Real> Member<'_, E> {
    /// `W` as the right factor of `x · W`: `[I, O]`.
    fn forward_view(&self, inputs: usize) -> View<'_, E> {
        match self.layout {
            WeightLayout::OutIn => View::columns(self.weight, inputs),
            WeightLayout::InOut => View::rows(self.weight, self.outputs),
        }
    }

    /// `Wᵀ` as the right factor of `dy · Wᵀ`: `[O, I]`.
    fn backward_view(&self, inputs: usize) -> View<'_, E> {
        match self.layout {
            WeightLayout::OutIn => View::rows(self.weight, inputs),
            WeightLayout::InOut => View::columns(self.weight, self.outputs),
        }
    }
}

impl<E: Real> LowRank<'_, E> {
    /// The scaled hidden values of rows `first..`: `[n, R]`.
    fn project(&self, first: usize, x: &[E], inputs: usize) -> Vec<E> {
        let dropped = self.dropped(first, x, inputs);
        let x = dropped.as_deref().unwrap_or(x);
        let input = Rows { data: x, count: x.len() / inputs, width: inputs, stride: inputs };
        let mut h = E::low_rank_project(input, &transposed(self.a, inputs), self.rank);
        scale(&mut h, self.scale);
        h
    }

    /// Adds to `dx` of rows `first..` what the gradients `dh` of the hidden values bring.
    fn add_through(&self, first: usize, dh: &[E], dx: &mut [E], inputs: usize) {
        match self.dropout {
            None => E::low_rank_update(dx, inputs, inputs, dh, self.a, self.rank),
            Some(dropout) => {
                let mut through = Buffer::zeros(dx.len());
                E::low_rank_update(&mut through, inputs, inputs, dh, self.a, self.rank);
                apply_dropout(dx, &through, first * inputs, dropout, false);
            }
        }
    }

    /// The branch's input, where dropout makes another one of `x`, which begins at row `first`.
    fn dropped(&self, first: usize, x: &[E], inputs: usize) -> Option<Buffer<E>> {
        self.dropout.map(|dropout| {
            let mut dropped = Buffer::any(x.len());
            apply_dropout(&mut dropped, x, first * inputs, dropout, true);
            dropped
        })
    }
}

fn scale<E: Real>(values: &mut [E], factor: f64) {
    let factor = E::of(factor);
    for v in values {
        *v = *v * factor;
    }
}

fn add_or_set<E: Real>(sum: &mut Option<Vec<E>>, part: Vec<E>) {
    match sum {
        Some(sum) => sum.iter_mut().zip(part).for_each(|(s, p)| *s += p),
        None => *sum = Some(part),
    }
}

/// Elements whose dropout mask is made at a time.
const MASK_CHUNK: usize = 1 << 14;

/// `target = source · mask` when `replace`, else `target += source · mask`; the mask is that of elements `offset..`.
fn apply_dropout<E: Real>(target: &mut [E], source: &[E], offset: usize, dropout: Dropout, replace: bool) {
    target.par_chunks_mut(MASK_CHUNK).zip(source.par_chunks(MASK_CHUNK)).enumerate().for_each(|(index, (t, s))| {
        let mut mask = vec![0.0f32; t.len()];
        dropout_mask(dropout.key, (offset + index * MASK_CHUNK) as u64, dropout.keep, &mut mask);
        masked(t, s, &mask, replace);
    });
}

vectorized! {
    fn masked<'a, E: Real>(target: &'a mut [E], source: &'a [E], mask: &'a [f32], replace: bool) -> () {
        for ((t, &s), &m) in target.iter_mut().zip(source).zip(mask) {
            let kept = s * E::of(f64::from(m));
            *t = if replace { kept } else { *t + kept };
        }
    }
}

/// The transpose of a small matrix of `columns` columns.
pub(super) fn transposed<E: Real>(m: &[E], columns: usize) -> Vec<E> {
    let rows = m.len() / columns;
    let mut out = vec![E::ZERO; m.len()];
    for (i, row) in m.chunks_exact(columns).enumerate() {
        for (j, &v) in row.iter().enumerate() {
            out[j * rows + i] = v;
        }
    }
    out
}
