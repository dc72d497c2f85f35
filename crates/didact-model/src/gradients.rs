//! Where operators write the gradients of parameters: into buffers that live from step to step, added to what earlier
//! micro-batches left there.
//!
//! Without [`record`] gradients go the usual way, as tensors in what Burn's backward pass returns. Inside it, our
//! operators write those of the parameters named into the buffers given. A gradient that takes another way all the same
//! (through Burn's own functions) is among the returned ones and is for the caller to add.

use std::cell::RefCell;
use std::collections::HashMap;

use burn::backend::Flex;
use burn::backend::autodiff::grads::Gradients;
use burn_autodiff::NodeId;
use didact_kernels::adamw::Gradient;
use half::bf16;
use rayon::prelude::*;

use crate::ops::pool::Buffer;
use crate::ops::real::Real;
use crate::ops::storage::tensor;
use crate::parameters::{ParameterId, ParameterSet};

/// The number type in which gradients are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GradientDtype {
    /// 32-bit.
    #[default]
    F32,
    /// 16 bits: half the memory, and every micro-batch's sum is rounded to 8 bits.
    Bf16,
}

/// The gradient of one parameter, row-major.
#[derive(Debug, Clone)]
pub enum GradientValues {
    /// See [`GradientDtype::F32`].
    F32(Vec<f32>),
    /// See [`GradientDtype::Bf16`].
    Bf16(Vec<bf16>),
}

/// A buffer for one parameter's gradient.
#[derive(Debug, Clone)]
pub struct GradientBuffer {
    values: GradientValues,
    elements: usize,
    is_filled: bool,
}

/// Elements that one thread takes at a time.
const PIECE: usize = 1 << 14;

impl GradientBuffer {
    /// An empty buffer, which takes no memory yet.
    pub fn new(elements: usize, dtype: GradientDtype) -> Self {
        let values = match dtype {
            GradientDtype::F32 => GradientValues::F32(Vec::new()),
            GradientDtype::Bf16 => GradientValues::Bf16(Vec::new()),
        };
        Self { values, elements, is_filled: false }
    }

    /// Whether something was added since the last [`clear`](Self::clear).
    pub fn is_filled(&self) -> bool {
        self.is_filled
    }

    /// The sum so far; zeros if nothing was added.
    pub fn values(&mut self) -> &mut GradientValues {
        if !self.is_filled {
            self.add(&vec![0.0; self.elements]);
        }
        &mut self.values
    }

    /// The sum, once it is complete.
    ///
    /// # Panics
    /// If nothing was added and [`values`](Self::values) was not called.
    pub fn filled(&self) -> &GradientValues {
        assert!(self.is_filled, "a gradient that nothing was added to");
        &self.values
    }

    /// As the kernels take it.
    ///
    /// # Panics
    /// As [`filled`](Self::filled).
    pub fn as_kernel(&self) -> Gradient<'_> {
        match self.filled() {
            GradientValues::F32(values) => Gradient::F32(values),
            GradientValues::Bf16(values) => Gradient::Bf16(values),
        }
    }

    /// Lets `change` work on the sum in `f32`, and rounds again where that is how it is kept.
    pub fn change(&mut self, change: impl FnOnce(&mut [f32])) {
        match self.values() {
            GradientValues::F32(values) => change(values),
            GradientValues::Bf16(values) => {
                let mut wide = vec![0.0; values.len()];
                f32::widen(values, &mut wide);
                change(&mut wide);
                f32::narrow(&wide, values);
            }
        }
    }

    /// Forgets the sum and keeps the memory.
    pub fn clear(&mut self) {
        self.is_filled = false;
    }

    /// Forgets the sum and gives the memory back.
    pub fn release(&mut self) {
        self.is_filled = false;
        match &mut self.values {
            GradientValues::F32(values) => *values = Vec::new(),
            GradientValues::Bf16(values) => *values = Vec::new(),
        }
    }

    /// Adds a gradient.
    ///
    /// # Panics
    /// If it has another length.
    pub fn add(&mut self, gradient: &[f32]) {
        assert_eq!(gradient.len(), self.elements, "a gradient of another length");
        let is_first = !self.is_filled;
        self.is_filled = true;
        match &mut self.values {
            GradientValues::F32(values) => {
                values.resize(self.elements, 0.0);
                values.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE)).for_each(|(sum, part)| {
                    if is_first {
                        sum.copy_from_slice(part);
                    } else {
                        sum.iter_mut().zip(part).for_each(|(s, &p)| *s += p);
                    }
                });
            }
            GradientValues::Bf16(values) => {
                values.resize(self.elements, bf16::ZERO);
                values.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE)).for_each(|(sum, part)| {
                    if is_first {
                        f32::narrow(part, sum);
                    } else {
                        let mut wide = vec![0.0; part.len()];
                        f32::widen(sum, &mut wide);
                        wide.iter_mut().zip(part).for_each(|(s, &p)| *s += p);
                        f32::narrow(&wide, sum);
                    }
                });
            }
        }
    }
}

thread_local! {
    /// The buffers of the recording in progress. An operator takes the one it writes to out of the map meanwhile.
    static TARGETS: RefCell<Option<HashMap<NodeId, GradientBuffer>>> = const { RefCell::new(None) };
}

/// Ends a recording however its closure ends.
struct Recording;

impl Drop for Recording {
    fn drop(&mut self) {
        TARGETS.take();
    }
}

/// Runs `pass`, a forward and backward pass on this thread, with the gradients of the parameters `ids` added to
/// `buffers`. When `pass` panics the buffers are lost.
///
/// # Panics
/// If a recording is in progress on this thread already, or the lengths differ.
pub fn record<R>(
    parameters: &ParameterSet,
    ids: &[ParameterId],
    buffers: &mut [GradientBuffer],
    pass: impl FnOnce() -> R,
) -> R {
    assert_eq!(ids.len(), buffers.len(), "one buffer per parameter");
    let nodes: Vec<Option<NodeId>> = ids.iter().map(|&id| parameters.node(id)).collect();
    let lent = nodes.iter().zip(buffers.iter_mut()).filter_map(|(node, buffer)| {
        let empty = GradientBuffer::new(buffer.elements, buffer.dtype());
        node.map(|node| (node, std::mem::replace(buffer, empty)))
    });
    let lent = lent.collect();
    TARGETS.with_borrow_mut(|targets| {
        assert!(targets.is_none(), "recordings do not nest");
        *targets = Some(lent);
    });
    let recording = Recording;
    let result = pass();
    let mut lent = TARGETS.take().expect("a recording is in progress");
    drop(recording);
    for (node, buffer) in nodes.iter().zip(buffers) {
        // An operator that was not reached by the backward pass may have kept one: its place stays empty.
        if let Some(back) = node.and_then(|node| lent.remove(&node)) {
            *buffer = back;
        }
    }
    result
}

impl GradientBuffer {
    fn dtype(&self) -> GradientDtype {
        match self.values {
            GradientValues::F32(_) => GradientDtype::F32,
            GradientValues::Bf16(_) => GradientDtype::Bf16,
        }
    }
}

/// A large gradient that an operator is about to compute.
#[derive(Debug, Clone)]
pub(crate) struct Sum<E: Real> {
    place: Place<E>,
    /// Whether the values are those of earlier sums, to be added to.
    is_begun: bool,
}

#[derive(Debug, Clone)]
enum Place<E: Real> {
    /// A buffer that was given for it.
    Target(NodeId, GradientBuffer),
    /// One that will be rounded into the buffer that was given for it.
    Rounded(NodeId, GradientBuffer, Buffer<E>),
    /// A tensor of its own.
    Tensor(Vec<E>),
}

impl<E: Real> Sum<E> {
    /// A place for the gradient of the parameter behind `node`, of `elements` numbers. With `is_alone`, one that holds
    /// nothing of others.
    pub(crate) fn begin(node: Option<NodeId>, elements: usize, is_alone: bool) -> Self {
        let target = node.filter(|_| E::HAS_BF16).and_then(|node| {
            TARGETS.with_borrow_mut(|targets| {
                let targets = targets.as_mut()?;
                let is_fit = !is_alone || !targets.get(&node)?.is_filled;
                if is_fit { targets.remove(&node).map(|buffer| (node, buffer)) } else { None }
            })
        });
        let Some((node, mut buffer)) = target else {
            return Self { place: Place::Tensor(vec![E::ZERO; elements]), is_begun: false };
        };
        assert_eq!(buffer.elements, elements, "a gradient of another length");
        match &mut buffer.values {
            GradientValues::F32(values) => {
                values.resize(elements, 0.0);
                let is_begun = buffer.is_filled;
                Self { place: Place::Target(node, buffer), is_begun }
            }
            GradientValues::Bf16(_) => {
                Self { place: Place::Rounded(node, buffer, Buffer::any(elements)), is_begun: false }
            }
        }
    }

    /// The numbers, and whether to add to them; from now on they are begun.
    pub(crate) fn next(&mut self) -> (&mut [E], bool) {
        let is_begun = std::mem::replace(&mut self.is_begun, true);
        (self.values(), is_begun)
    }

    /// The numbers.
    pub(crate) fn values(&mut self) -> &mut [E] {
        match &mut self.place {
            Place::Target(_, buffer) => match &mut buffer.values {
                GradientValues::F32(values) => bytemuck::cast_slice_mut(values),
                GradientValues::Bf16(_) => unreachable!("rounded buffers have a place of their own"),
            },
            Place::Rounded(_, _, values) => values,
            Place::Tensor(values) => values,
        }
    }

    /// Hands the gradient over: to the buffer it is for, or to `grads` in the shape given.
    pub(crate) fn finish<const D: usize>(self, grads: &mut Gradients, node: NodeId, shape: [usize; D]) {
        let (node, buffer) = match self.place {
            Place::Tensor(values) => {
                grads.register::<Flex>(node, tensor(values, shape));
                return;
            }
            Place::Target(node, mut buffer) => {
                buffer.is_filled = true;
                (node, buffer)
            }
            Place::Rounded(node, mut buffer, values) => {
                buffer.add(bytemuck::cast_slice(&values));
                (node, buffer)
            }
        };
        TARGETS.with_borrow_mut(|targets| {
            // Outside a recording nobody asks for it.
            if let Some(targets) = targets {
                targets.insert(node, buffer);
            }
        });
    }
}

/// Hands over a small gradient that was computed on its own.
pub(crate) fn deliver<E: Real, const D: usize>(grads: &mut Gradients, node: NodeId, values: Vec<E>, shape: [usize; D]) {
    let left = TARGETS.with_borrow_mut(|targets| {
        match targets.as_mut().filter(|_| E::HAS_BF16).and_then(|targets| targets.get_mut(&node)) {
            Some(buffer) => {
                buffer.add(bytemuck::cast_slice(&values));
                None
            }
            None => Some(values),
        }
    });
    if let Some(values) = left {
        grads.register::<Flex>(node, tensor(values, shape));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_added_in_f32_and_rounded_once_per_micro_batch_in_bf16() {
        let parts = [[1.0f32, -2.5, 1e-3], [0.001, 0.25, 1.0]];
        let mut full = GradientBuffer::new(3, GradientDtype::F32);
        let mut half = GradientBuffer::new(3, GradientDtype::Bf16);
        for part in &parts {
            full.add(part);
            half.add(part);
        }
        let GradientValues::F32(sums) = full.values() else { panic!("an f32 buffer") };
        assert_eq!(sums[..], [1.001, -2.25, 1.001]);
        let GradientValues::Bf16(sums) = half.values() else { panic!("a bf16 buffer") };
        let rounded = |x: f32| bf16::from_f32(x);
        let expected: Vec<bf16> = (0..3).map(|i| rounded(rounded(parts[0][i]).to_f32() + parts[1][i])).collect();
        assert_eq!(sums[..], expected);
        full.clear();
        let GradientValues::F32(sums) = full.values() else { panic!("an f32 buffer") };
        assert_eq!(sums[..], [0.0; 3]);
    }
}
