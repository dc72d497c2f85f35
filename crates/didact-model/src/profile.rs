//! Where the time of a training step goes, operator by operator.
//!
//! Off unless [`start`] was called: then a [`scope`] costs one load of a flag. What is measured is wall time on the
//! thread that runs the step; the threads that help it are not counted again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// A part of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// Rows of the embedding, and of the positions that have a loss.
    Embedding,
    /// RMS norm and layer norm, with the sums of the residual stream that are made in the same pass.
    Norm,
    /// Products with the weights of the blocks, biases and low-rank branches included.
    Projection,
    /// Attention, rotary embedding included.
    Attention,
    /// The non-linearity of the feed-forward.
    Activation,
    /// The output projection and the cross-entropy over it.
    CrossEntropy,
    /// Sums, norm and clipping of gradients, and the update.
    Optimizer,
}

/// All operators, in the order of a step.
pub const OPERATORS: [Operator; 7] = [
    Operator::Embedding,
    Operator::Norm,
    Operator::Projection,
    Operator::Attention,
    Operator::Activation,
    Operator::CrossEntropy,
    Operator::Optimizer,
];

impl Operator {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Norm => "norms and residuals",
            Self::Projection => "projections",
            Self::Attention => "attention",
            Self::Activation => "activation",
            Self::CrossEntropy => "cross-entropy",
            Self::Optimizer => "optimiser",
        }
    }
}

/// The direction of a pass. What an operator computes again for its gradient counts as backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Values.
    Forward,
    /// Gradients, and the update.
    Backward,
}

static IS_ON: AtomicBool = AtomicBool::new(false);
static NANOSECONDS: [[AtomicU64; 2]; OPERATORS.len()] = [const { [const { AtomicU64::new(0) }; 2] }; OPERATORS.len()];

/// Begins to measure, from 0.
pub fn start() {
    for cell in NANOSECONDS.as_flattened() {
        cell.store(0, Ordering::Relaxed);
    }
    IS_ON.store(true, Ordering::Relaxed);
}

/// Ends the measurement: seconds forward and backward of each of [`OPERATORS`].
pub fn finish() -> [[f64; 2]; OPERATORS.len()] {
    IS_ON.store(false, Ordering::Relaxed);
    std::array::from_fn(|i| std::array::from_fn(|j| NANOSECONDS[i][j].load(Ordering::Relaxed) as f64 * 1e-9))
}

/// Counts the time until it is dropped.
#[derive(Debug)]
#[must_use = "a scope measures until it is dropped"]
pub struct Scope(Option<(Operator, Pass, Instant)>);

/// Counts what follows as `operator`'s, until the result is dropped. Scopes do not nest.
pub fn scope(operator: Operator, pass: Pass) -> Scope {
    Scope(IS_ON.load(Ordering::Relaxed).then(|| (operator, pass, Instant::now())))
}

impl Drop for Scope {
    fn drop(&mut self) {
        if let Some((operator, pass, begun)) = self.0 {
            let nanoseconds = begun.elapsed().as_nanos() as u64;
            NANOSECONDS[operator as usize][pass as usize].fetch_add(nanoseconds, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_inside_a_scope_is_counted_and_only_while_measuring() {
        drop(scope(Operator::Norm, Pass::Forward));
        start();
        {
            let _scope = scope(Operator::Attention, Pass::Backward);
            std::hint::black_box((0..1000).sum::<u64>());
        }
        let times = finish();
        // Other tests may run operators meanwhile, so nothing is said about the other places.
        assert!(times[Operator::Attention as usize][Pass::Backward as usize] > 0.0);
        assert!(times.as_flattened().iter().all(|&t| t >= 0.0));
        assert_eq!(OPERATORS.map(|o| o as usize), [0, 1, 2, 3, 4, 5, 6]);
    }
}
