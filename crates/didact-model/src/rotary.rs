//! Rotary position embedding: the table of rotations for the positions of a batch.
//!
//! The layout is that of Hugging Face: element `j` of a head turns together with element `j + D/2`.
//!
//! # Reference
//! Su et al., 2021, arXiv:2104.09864.
#![expect(
    clippy::inline_always,
    reason = "the loops that call these are compiled for vectors only where they are inlined"
)]

use crate::config::ModelConfig;
use crate::ops::real::Real;

/// Cosines and sines of every token's position.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// Pairs per head, `D/2`.
    half: usize,
    /// `[N, D/2]`.
    pub(crate) cos: Vec<f32>,
    /// `[N, D/2]`.
    pub(crate) sin: Vec<f32>,
}

impl RotaryTable {
    /// The rotations for `positions`, one per token, or `None` for a model without rotary embedding.
    pub fn new(config: &ModelConfig, positions: &[u32]) -> Option<Self> {
        config.rope.as_ref()?;
        let (frequencies, scale) = crate::rope::inverse_frequencies(config);
        Some(Self::from_frequencies(&frequencies, scale, positions))
    }

    /// The rotations by `position · frequency`, cosine and sine multiplied by `scale`. Angles are computed in `f32`, as
    /// the Python library does.
    pub fn from_frequencies(frequencies: &[f32], scale: f32, positions: &[u32]) -> Self {
        let half = frequencies.len();
        let mut cos = Vec::with_capacity(positions.len() * half);
        let mut sin = Vec::with_capacity(positions.len() * half);
        for &position in positions {
            for &frequency in frequencies {
                let angle = position as f32 * frequency;
                cos.push(angle.cos() * scale);
                sin.push(angle.sin() * scale);
            }
        }
        Self { half, cos, sin }
    }

    /// `out = rotation · x · scale` for one head of token `token`.
    #[inline(always)]
    pub(crate) fn rotate<E: Real>(&self, token: usize, x: &[E], out: &mut [E], scale: E) {
        let (cos, sin) = self.at(token);
        let (low, high) = x.split_at(self.half);
        let (out_low, out_high) = out.split_at_mut(self.half);
        for j in 0..self.half {
            let (c, s) = (E::of(f64::from(cos[j])), E::of(f64::from(sin[j])));
            out_low[j] = (low[j] * c - high[j] * s) * scale;
            out_high[j] = (high[j] * c + low[j] * s) * scale;
        }
    }

    /// The transpose of [`rotate`](Self::rotate), which carries gradients back.
    #[inline(always)]
    pub(crate) fn rotate_back<E: Real>(&self, token: usize, x: &[E], out: &mut [E], scale: E) {
        let (cos, sin) = self.at(token);
        let (low, high) = x.split_at(self.half);
        let (out_low, out_high) = out.split_at_mut(self.half);
        for j in 0..self.half {
            let (c, s) = (E::of(f64::from(cos[j])), E::of(f64::from(sin[j])));
            out_low[j] = (low[j] * c + high[j] * s) * scale;
            out_high[j] = (high[j] * c - low[j] * s) * scale;
        }
    }

    fn at(&self, token: usize) -> (&[f32], &[f32]) {
        let range = token * self.half..(token + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
