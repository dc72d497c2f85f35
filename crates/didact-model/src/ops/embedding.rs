//! Rows of a table by number: the embedding, and the selection of the positions that have a loss.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, Flex, backend_extension};
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::FlexTensor;

use super::real::Real;
use super::storage::{contiguous, dims2, on_flex, tensor, values, with_real};
use crate::gradients::Sum;
use crate::profile::{Operator, Pass, scope};

/// `table[ids[i], :]` for every `i`; the gradient adds the rows of one id in the order of `ids`.
///
/// # Shapes
/// - `table`: `[V, E]`, `ids`: `N` numbers below V
/// - returns: `[N, E]`
///
/// # Panics
/// If an id is not below V.
pub fn gather_rows(table: Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let [rows, _] = table.dims();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        panic!("gather_rows: row {id} of a table of {rows} rows");
    }
    if !on_flex(&table) {
        return gather_rows_composed(table, ids);
    }
    Tensor::from_dispatch(<Dispatch as GatherOps>::gather_rows(table.into_dispatch(), ids.into()))
}

/// [`gather_rows`] from Burn's own functions.
pub(crate) fn gather_rows_composed(table: Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let indices: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [ids.len()]), &table.device());
    table.select(0, indices)
}

/// The extension point through which Burn reaches this operator.
#[backend_extension(Flex, Autodiff)]
pub trait GatherOps: burn::backend::Backend {
    /// See [`gather_rows`].
    fn gather_rows(table: FloatTensor<Self>, ids: Arc<[u32]>) -> FloatTensor<Self>;
}

fn forward<E: Real>(table: &FlexTensor, ids: &[u32]) -> FlexTensor {
    let [_, width] = dims2(table);
    let table = values::<E>(table);
    let mut out = Vec::with_capacity(ids.len() * width);
    for &id in ids {
        out.extend_from_slice(&table[id as usize * width..(id as usize + 1) * width]);
    }
    tensor(out, [ids.len(), width])
}

/// Adds the rows of `dy` to those of `gradient` that `ids` name.
fn backward<E: Real>(dy: &FlexTensor, ids: &[u32], gradient: &mut [E]) {
    let [_, width] = dims2(dy);
    for (&id, dy) in ids.iter().zip(values::<E>(dy).chunks_exact(width)) {
        let row = &mut gradient[id as usize * width..(id as usize + 1) * width];
        row.iter_mut().zip(dy).for_each(|(t, &v)| *t += v);
    }
}

impl GatherOps for Flex {
    fn gather_rows(table: FlexTensor, ids: Arc<[u32]>) -> FlexTensor {
        let table = contiguous(&table);
        with_real!(&table, E => forward::<E>(&table, &ids))
    }
}

#[derive(Debug)]
struct GatherBackward;

impl Backward<Flex, 1> for GatherBackward {
    type State = (Arc<[u32]>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = contiguous(&grads.consume::<Flex>(&ops.node));
        let _time = scope(Operator::Embedding, Pass::Backward);
        let (ids, rows) = ops.state;
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            let [_, width] = dims2(&dy);
            with_real!(&dy, E => {
                let mut sum = Sum::<E>::begin(Some(parent.id), rows * width, false);
                let (gradient, is_begun) = sum.next();
                if !is_begun {
                    gradient.fill(E::ZERO);
                }
                backward::<E>(&dy, &ids, gradient);
                sum.finish(grads, parent.id, [rows, width]);
            });
        }
    }
}

impl<C: CheckpointStrategy> GatherOps for Autodiff<Flex, C> {
    fn gather_rows(table: FloatTensor<Self>, ids: Arc<[u32]>) -> FloatTensor<Self> {
        let nodes = [table.node()];
        let _time = scope(Operator::Embedding, Pass::Forward);
        let table = contiguous(table.primitive());
        let rows = dims2(&table)[0];
        let y = with_real!(&table, E => forward::<E>(&table, &ids));
        match GatherBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((ids, rows), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
