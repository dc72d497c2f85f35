//! Token sequences with a loss weight per token: the form in which everything is trained.

use serde::{Deserialize, Serialize};

/// Token ids with one loss weight and one segment number per token.
///
/// Weight 0 is context, 1 an ordinary target, anything else emphasis. `weight[i]` belongs to token `i` **as a target**:
/// it multiplies the loss of predicting `ids[i]` from the tokens of the same segment before it. A segment's first token
/// has nothing before it and therefore weight 0, by construction.
///
/// Tokens of different segments never attend to each other, and positions restart at each segment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Loss weight of each token as a target.
    pub weight: Vec<f32>,
    /// Segment number of each token: non-decreasing, from 0.
    pub segment: Vec<u32>,
}

impl Sequence {
    /// A sequence of one segment. The first token's weight is forced to 0.
    ///
    /// # Panics
    /// If `ids` and `weight` differ in length.
    pub fn single(ids: Vec<u32>, mut weight: Vec<f32>) -> Self {
        assert_eq!(ids.len(), weight.len(), "a sequence has one weight per token");
        if let Some(first) = weight.first_mut() {
            *first = 0.0;
        }
        let segment = vec![0; ids.len()];
        Self { ids, weight, segment }
    }

    /// Several sequences of one segment each as one, in which they are segments that see nothing of each other.
    pub fn joined(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for (number, part) in (0..).zip(parts) {
            all.segment.extend(std::iter::repeat_n(number, part.len()));
            all.ids.extend(part.ids);
            all.weight.extend(part.weight);
        }
        all
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Sum of the weights, in f64 and in order, so that it is the same everywhere it is taken.
    pub fn total_weight(&self) -> f64 {
        self.weight.iter().map(|&w| f64::from(w)).sum()
    }

    /// Position of each token within its segment, from 0.
    pub fn positions(&self) -> Vec<u32> {
        let mut positions = Vec::with_capacity(self.len());
        for (i, segment) in self.segment.iter().enumerate() {
            let restarts = i == 0 || self.segment[i - 1] != *segment;
            positions.push(if restarts { 0 } else { positions[i - 1] + 1 });
        }
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_token_of_a_sequence_is_never_a_target() {
        let s = Sequence::single(vec![5, 6, 7], vec![1.0, 1.0, 2.0]);
        assert_eq!(s.weight, [0.0, 1.0, 2.0]);
        assert_eq!(s.total_weight(), 3.0);
    }

    #[test]
    fn joined_sequences_are_segments() {
        let part = |ids: &[u32]| Sequence::single(ids.to_vec(), vec![1.0; ids.len()]);
        let joined = Sequence::joined([part(&[1, 2]), part(&[3, 4, 5])]);
        assert_eq!((joined.ids, joined.weight), (vec![1, 2, 3, 4, 5], vec![0.0, 1.0, 0.0, 1.0, 1.0]));
        assert_eq!(joined.segment, [0, 0, 1, 1, 1]);
    }

    #[test]
    fn positions_restart_at_each_segment() {
        let s = Sequence { ids: vec![1; 5], weight: vec![0.0; 5], segment: vec![0, 0, 1, 1, 1] };
        assert_eq!(s.positions(), [0, 1, 0, 1, 2]);
    }
}
