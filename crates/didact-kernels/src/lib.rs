//! The mathematics of language models on the CPU: functions on slices that know neither tensors nor models.
//!
//! Start with [`gemm`], which most of the time goes to, and [`Level`], which says with what instructions. Everything
//! here keeps two promises, each tested:
//!
//! - **Threads do not show.** Results have the same bits with one thread or many: work is cut into pieces whose results
//!   do not depend on the cut, or whose cut is fixed.
//! - **Neighbours do not show.** One row of a matrix product, norm or attention has the same bits alone or among others,
//!   which is what makes generated text independent of the batch it was generated in.
//!
//! Each kernel is written once over vectors of 16 floats and compiled for each [`Level`]; the level is found at run time
//! or forced with `DIDACT_CPU`. Every kernel has a plain f64 reference in its tests. Wrong lengths are a programming
//! mistake and panic with the operation and the lengths.
//!
//! Rows are token positions; matrices are row-major unless strides say otherwise.

#![expect(unsafe_code, reason = "vector instructions and tiles written side by side; each block says why it is sound")]
#![expect(
    clippy::inline_always,
    reason = "a body compiled for a level must be part of the function that has the level's instructions"
)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod embedding;
pub mod gemm;
mod level;
pub mod low_rank;
mod memory;
pub mod norm;
pub mod random;
pub mod reduce;
pub mod rope;
pub mod sdpa;
mod simd;
pub mod softmax;
#[cfg(test)]
mod tolerance;
pub mod vector;
pub mod vectorize;

pub use level::{Level, LevelError, Precision, VARIABLE, init_level, level, parse_level};
pub use memory::LargePages;
