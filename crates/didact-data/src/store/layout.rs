//! How one sequence is laid down in bytes, shared by stores and corpora: ids, then weights and segments where they do not
//! follow from the rule that the first token has weight 0 and every other 1, all of segment 0.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use didact_core::sequence::Sequence;

/// Weights: 0 for the first token, 1 for every other.
const WEIGHTS_ONES: u32 = 0;
/// Weights: one bit per token, 0 or 1.
const WEIGHTS_BITS: u32 = 1;
/// Weights: 4 bytes per token.
const WEIGHTS_F32: u32 = 2;
const WEIGHTS_MASK: u32 = 3;
/// Segments are laid down, 4 bytes per token; otherwise all are 0.
const HAS_SEGMENTS: u32 = 4;
/// Ids take 2 bytes each, otherwise 4.
const NARROW: u32 = 8;

/// Bytes that `n` tokens of a layout take; `None` for a layout that no writer makes.
pub(crate) fn size(layout: u32, n: u32) -> Option<u64> {
    let n = u64::from(n);
    let ids = if layout & NARROW == 0 { 4 * n } else { 2 * n };
    let weights = match layout & WEIGHTS_MASK {
        WEIGHTS_ONES => 0,
        WEIGHTS_BITS => n.div_ceil(8),
        WEIGHTS_F32 => 4 * n,
        _ => return None,
    };
    let segments = if layout & HAS_SEGMENTS == 0 { 0 } else { 4 * n };
    (layout & !(WEIGHTS_MASK | HAS_SEGMENTS | NARROW) == 0).then_some(ids + weights + segments)
}

/// Ids of running text, weights and segments by the rule; returns the layout.
pub(crate) fn encode_text(ids: &[u32], is_narrow: bool, buffer: &mut Vec<u8>) -> u32 {
    buffer.clear();
    encode_ids(ids, is_narrow, buffer)
}

fn encode_ids(ids: &[u32], is_narrow: bool, buffer: &mut Vec<u8>) -> u32 {
    if is_narrow {
        buffer.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes()));
        NARROW
    } else {
        buffer.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        0
    }
}

/// Lays a sequence down in `buffer` and returns its layout. Ids fit 2 bytes where `is_narrow`.
pub(crate) fn encode(sequence: &Sequence, is_narrow: bool, buffer: &mut Vec<u8>) -> u32 {
    buffer.clear();
    let mut layout = encode_ids(&sequence.ids, is_narrow, buffer);
    let weight = &sequence.weight;
    // Bits are compared, so that -0.0 comes back as -0.0.
    let is = |w: &f32, value: f32| w.to_bits() == value.to_bits();
    layout |= if weight.iter().enumerate().all(|(i, w)| is(w, if i == 0 { 0.0 } else { 1.0 })) {
        WEIGHTS_ONES
    } else if weight.iter().all(|w| is(w, 0.0) || is(w, 1.0)) {
        for chunk in weight.chunks(8) {
            buffer.push(chunk.iter().enumerate().fold(0, |bits, (i, w)| bits | (u8::from(is(w, 1.0)) << i)));
        }
        WEIGHTS_BITS
    } else {
        for w in weight {
            buffer.extend_from_slice(&w.to_le_bytes());
        }
        WEIGHTS_F32
    };
    if sequence.segment.iter().any(|&segment| segment != 0) {
        for segment in &sequence.segment {
            buffer.extend_from_slice(&segment.to_le_bytes());
        }
        layout |= HAS_SEGMENTS;
    }
    layout
}

/// The inverse of [`encode`] for bytes of the size that the layout asks for: some of the `n` tokens, with the weights and
/// segments that they have among all.
///
/// # Panics
/// If the range reaches beyond the tokens.
pub(crate) fn decode_part(bytes: &[u8], n: usize, layout: u32, part: Range<usize>) -> Sequence {
    let words = |bytes: &[u8]| -> Vec<u32> {
        let bytes = &bytes[4 * part.start..4 * part.end];
        bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    };
    let is_narrow = layout & NARROW != 0;
    let (ids, rest) = bytes.split_at(if is_narrow { 2 * n } else { 4 * n });
    let ids = if is_narrow {
        let halves = ids[2 * part.start..2 * part.end].as_chunks::<2>().0;
        halves.iter().map(|half| u32::from(u16::from_le_bytes(*half))).collect()
    } else {
        words(ids)
    };
    let (weight, rest) = match layout & WEIGHTS_MASK {
        WEIGHTS_ONES => (part.clone().map(|i| if i == 0 { 0.0 } else { 1.0 }).collect(), rest),
        WEIGHTS_BITS => {
            let (bits, rest) = rest.split_at(n.div_ceil(8));
            (part.clone().map(|i| f32::from((bits[i / 8] >> (i % 8)) & 1)).collect(), rest)
        }
        _ => {
            let (weights, rest) = rest.split_at(4 * n);
            (words(weights).into_iter().map(f32::from_bits).collect(), rest)
        }
    };
    let segment = if layout & HAS_SEGMENTS == 0 { vec![0; part.len()] } else { words(rest) };
    Sequence { ids, weight, segment }
}

/// Bytes of a sequence above which it is checked once and then read in parts.
const LONG: usize = 256 << 10;

/// Which long sequences have been checked, so that reading a piece of one does not read all of it every time. Shorter ones
/// are checked whenever they are read.
#[derive(Debug, Default)]
pub(crate) struct Checked(Mutex<BTreeSet<usize>>);

impl Checked {
    /// Whether the bytes of sequence `index` need not be checked.
    pub(crate) fn is_known(&self, index: usize, bytes: usize) -> bool {
        bytes > LONG && self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&index)
    }

    /// Remembers that they are as they were written.
    pub(crate) fn remember(&self, index: usize, bytes: usize) {
        if bytes > LONG {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(index);
        }
    }
}
