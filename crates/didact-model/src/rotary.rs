//! Rotary position embedding: the table of rotations for the positions of a batch.
//!
//! The layout is that of Hugging Face: element `j` of a head turns together with element `j + D/2`.
//!
//! # Reference
//! Su et al., 2021, arXiv:2104.09864.

use crate::config::ModelConfig;

/// Cosines and sines of every token's position.
#[derive(Debug, Clone)]
pub struct RotaryTable {
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
        let mut cos: Vec<f32> = Vec::with_capacity(positions.len() * half);
        let mut sin: Vec<f32> = Vec::with_capacity(positions.len() * half);
        // Where each position was met first: rows of a batch mostly have the same ones.
        let last = positions.iter().max().map_or(0, |&last| last as usize);
        let mut first = vec![usize::MAX; (last + 1).min(positions.len())];
        for (token, &position) in positions.iter().enumerate() {
            if let Some(first) = first.get_mut(position as usize) {
                if *first != usize::MAX {
                    let range = *first * half..(*first + 1) * half;
                    cos.extend_from_within(range.clone());
                    sin.extend_from_within(range);
                    continue;
                }
                *first = token;
            }
            for &frequency in frequencies {
                let angle = position as f32 * frequency;
                cos.push(angle.cos() * scale);
                sin.push(angle.sin() * scale);
            }
        }
        Self { cos, sin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_has_the_rotation_of_its_position() {
        let positions = [0, 1, 2, 0, 1, 7, 2, 900, 7];
        let frequencies = [1.0, 0.1, 0.01];
        let table = RotaryTable::from_frequencies(&frequencies, 1.5, &positions);
        for (token, &position) in positions.iter().enumerate() {
            for (j, frequency) in frequencies.iter().enumerate() {
                let angle = position as f32 * frequency;
                let at = token * frequencies.len() + j;
                assert_eq!((table.cos[at], table.sin[at]), (angle.cos() * 1.5, angle.sin() * 1.5));
            }
        }
    }
}
