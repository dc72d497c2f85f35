//! Plain loops, compiled for the level in force.
//!
//! Element-wise code needs no intrinsics: the compiler makes vector instructions of simple loops, once it may use them.
//! [`vectorize`] is where it may. The bits do not depend on the level, since nothing is fused or reordered.

use crate::level::level;
use crate::simd::{Kernel, Simd, dispatch};

/// A function with its arguments.
pub trait Work {
    /// What it returns.
    type Output;
    /// Runs it. Mark implementations and what they call `#[inline(always)]`: a function that is not inlined keeps the
    /// instructions of every machine.
    fn run(self) -> Self::Output;
}

struct Plain<W>(W);

impl<W: Work> Kernel for Plain<W> {
    type Output = W::Output;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> W::Output {
        self.0.run()
    }
}

/// Runs `work` with the instructions of the level in force. Worth its call for a few hundred elements and more.
pub fn vectorize<W: Work>(work: W) -> W::Output {
    dispatch(level(), Plain(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scale<'a>(&'a mut [f32], f32);

    impl Work for Scale<'_> {
        type Output = f32;

        #[inline(always)]
        fn run(self) -> f32 {
            self.0.iter_mut().for_each(|v| *v *= self.1);
            self.1
        }
    }

    #[test]
    fn work_is_done_and_returns() {
        let mut values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        assert_eq!(vectorize(Scale(&mut values, 0.5)), 0.5);
        assert!(values.iter().enumerate().all(|(i, &v)| v == i as f32 * 0.5));
    }
}
