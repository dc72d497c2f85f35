//! The number formats in which attention multiplies: f32, f32 rounded to bf16, and pairs of bf16.
//!
//! An operand is stored in words of f32's size. A word is one step of the sum as f32, or two steps as a pair of bf16, the
//! earlier one in the low half, as in the matrix products of this crate.

use crate::level::{Level, Precision};
use crate::simd::{Kernel, LANES, Lanes, Simd, dispatch};

/// Lanes that are computed side by side: the queries of a block, or columns of a result.
pub(super) const WIDE: usize = 2 * LANES;
/// Rows of a result that are computed together. Head sizes are padded to a multiple of it.
pub(super) const ROWS: usize = 8;

/// One line of [`WIDE`] lanes.
pub(super) type Line<S> = [<S as Simd>::V; 2];

/// A format and how it is multiplied.
pub(super) trait Arithmetic: Copy + Send + Sync {
    /// Its vectors.
    type S: Simd;
    /// Steps in a word.
    const STEPS: usize;

    /// The vectors' operations.
    fn simd(self) -> Self::S;

    /// `sums + a·b` over the steps of a word.
    fn step(self, a: f32, b: <Self::S as Simd>::V, sums: <Self::S as Simd>::V) -> <Self::S as Simd>::V;

    /// Stores 32 consecutive steps of one row as the `32 / STEPS` words of a left operand.
    fn store_row(self, to: &mut [f32], row: Line<Self::S>);

    /// Stores two consecutive steps of 32 lanes as the `2 / STEPS` lines of a right operand.
    fn store_steps(self, to: &mut [f32], earlier: Line<Self::S>, later: Line<Self::S>);
}

/// Words that `steps` steps take, in whole pairs of steps.
pub(super) fn words<M: Arithmetic>(steps: usize) -> usize {
    steps.next_multiple_of(2) / M::STEPS
}

/// Something to run in one of the formats.
pub(super) trait Task {
    /// Runs it. Implementations are `#[inline(always)]`, so that the level's instructions reach the whole body.
    fn run<M: Arithmetic>(self, m: M);
}

/// Runs a task with the instructions of `level` at `precision`.
pub(super) fn run<T: Task>(level: Level, precision: Precision, task: T) {
    match (precision, level) {
        (Precision::F32, _) => dispatch(level, InF32(task)),
        #[cfg(target_arch = "x86_64")]
        (Precision::Bf16, Level::Avx512Bf16) => crate::simd::x86::dispatch_bf16(InPairs(task)),
        (Precision::Bf16, _) => dispatch(level, InRounded(task)),
    }
}

struct InF32<T>(T);

impl<T: Task> Kernel for InF32<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.run(Single::<S, false>(simd));
    }
}

struct InRounded<T>(T);

impl<T: Task> Kernel for InRounded<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.run(Single::<S, true>(simd));
    }
}

/// One f32 per word, rounded to bf16 or not.
#[derive(Clone, Copy)]
struct Single<S, const ROUNDED: bool>(S);

impl<S: Simd, const ROUNDED: bool> Single<S, ROUNDED> {
    #[inline(always)]
    fn put(self, to: &mut [f32], line: Line<S>) {
        let to = &mut to.as_chunks_mut::<LANES>().0[..2];
        for (to, v) in to.iter_mut().zip(line) {
            let mut lanes: Lanes = [0.0; LANES];
            self.0.store(&mut lanes, v);
            if ROUNDED {
                lanes = lanes.map(crate::gemm::round_to_bf16);
            }
            *to = lanes;
        }
    }
}

impl<S: Simd, const ROUNDED: bool> Arithmetic for Single<S, ROUNDED> {
    type S = S;
    const STEPS: usize = 1;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn step(self, a: f32, b: S::V, sums: S::V) -> S::V {
        self.0.mul_add(self.0.splat(a), b, sums)
    }

    #[inline(always)]
    fn store_row(self, to: &mut [f32], row: Line<S>) {
        self.put(to, row);
    }

    #[inline(always)]
    fn store_steps(self, to: &mut [f32], earlier: Line<S>, later: Line<S>) {
        let (first, second) = to.split_at_mut(WIDE);
        self.put(first, earlier);
        self.put(second, later);
    }
}

#[cfg(target_arch = "x86_64")]
use pairs::InPairs;

#[cfg(target_arch = "x86_64")]
mod pairs {
    //! Pairs of bf16, with AVX-512 and its bf16 dot product.

    use super::{Arithmetic, LANES, Line, Task};
    use crate::simd::x86::{Avx512, Bf16, Bf16Kernel};

    pub(super) struct InPairs<T>(pub(super) T);

    impl<T: Task> Bf16Kernel for InPairs<T> {
        #[inline(always)]
        fn run(self, bf16: Bf16) {
            self.0.run(Pairs(bf16));
        }
    }

    #[derive(Clone, Copy)]
    struct Pairs(Bf16);

    impl Arithmetic for Pairs {
        type S = Avx512;
        const STEPS: usize = 2;

        #[inline(always)]
        fn simd(self) -> Avx512 {
            self.0.simd()
        }

        #[inline(always)]
        fn step(
            self,
            a: f32,
            b: <Avx512 as crate::simd::Simd>::V,
            sums: <Avx512 as crate::simd::Simd>::V,
        ) -> <Avx512 as crate::simd::Simd>::V {
            self.0.dot(a, b, sums)
        }

        #[inline(always)]
        fn store_row(self, to: &mut [f32], row: Line<Avx512>) {
            let to = to.first_chunk_mut::<LANES>().expect("a row of words");
            crate::simd::Simd::store(self.simd(), to, self.0.round(row[0], row[1]));
        }

        #[inline(always)]
        fn store_steps(self, to: &mut [f32], earlier: Line<Avx512>, later: Line<Avx512>) {
            let to = &mut to.as_chunks_mut::<LANES>().0[..2];
            for ((to, earlier), later) in to.iter_mut().zip(earlier).zip(later) {
                crate::simd::Simd::store(self.simd(), to, self.0.interleave(earlier, later));
            }
        }
    }
}
