//! The decoder's operators. Each file holds one, in three parts: the operator composed from Burn's own tensor functions
//! (what devices other than this processor run, and the oracle of the tests), the fused forward, and the hand-written
//! backward, both over the slices of `didact-kernels`.
//!
//! Matrices are `[N, width]` with N tokens; heads lie side by side in a row. Gradients have the same bits in
//! every run and with every number of threads: sums over tokens go through blocks of fixed size in a fixed order.

pub mod activation;
pub mod attention;
pub(crate) mod block;
#[cfg(test)]
mod block_tests;
pub mod cross_entropy;
pub mod embedding;
mod group;
pub mod linear;
pub mod norm;
pub(crate) mod pool;
pub(crate) mod real;
pub(crate) mod rows;
pub(crate) mod storage;
#[cfg(test)]
mod tests;
pub(crate) mod vector;

pub use activation::{activate, gated};
pub use attention::{AttentionPlan, attention};
pub use cross_entropy::linear_cross_entropy;
pub use embedding::gather_rows;
pub use linear::{Dropout, LoraBranch, Projection, WeightLayout, linear, project};
pub use norm::{head_norm, layer_norm, rms_norm};
pub use pool::release_spare_memory;
