//! GGUF's storage types to f32, following `ggml-quants.c` operation by operation, so that values agree to the bit.

use didact_core::gguf::GgmlType;
use half::{bf16, f16};
use rayon::prelude::*;

/// Blocks per task; fixed, so that the work splits the same way on any number of threads.
const BLOCKS: usize = 4096;

/// Turns a tensor's bytes into numbers.
///
/// # Panics
/// If the bytes are not a whole number of blocks.
pub fn dequantize(kind: GgmlType, bytes: &[u8]) -> Vec<f32> {
    let (len, size) = (kind.block_len(), kind.block_bytes());
    assert_eq!(bytes.len() % size, 0, "dequantize: {} bytes are not whole blocks of {}", bytes.len(), kind.name());
    let mut out = vec![0.0; bytes.len() / size * len];
    out.par_chunks_mut(BLOCKS * len).zip(bytes.par_chunks(BLOCKS * size)).for_each(|(out, bytes)| {
        for (y, x) in out.chunks_exact_mut(len).zip(bytes.chunks_exact(size)) {
            block(kind, x, y);
        }
    });
    out
}

fn half(x: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([x[at], x[at + 1]]).to_f32()
}

/// One block of `x` to its numbers `y`.
fn block(kind: GgmlType, x: &[u8], y: &mut [f32]) {
    match kind {
        GgmlType::F32 => y[0] = f32::from_le_bytes([x[0], x[1], x[2], x[3]]),
        GgmlType::F16 => y[0] = half(x, 0),
        GgmlType::BF16 => y[0] = bf16::from_le_bytes([x[0], x[1]]).to_f32(),
        GgmlType::Q4_0 => {
            let d = half(x, 0);
            for (j, &q) in x[2..].iter().enumerate() {
                y[j] = d * f32::from((q & 15) as i8 - 8);
                y[j + 16] = d * f32::from((q >> 4) as i8 - 8);
            }
        }
        GgmlType::Q4_1 => {
            let (d, m) = (half(x, 0), half(x, 2));
            for (j, &q) in x[4..].iter().enumerate() {
                y[j] = d * f32::from(q & 15) + m;
                y[j + 16] = d * f32::from(q >> 4) + m;
            }
        }
        GgmlType::Q5_0 => {
            let d = half(x, 0);
            for (j, (low, high)) in five_bits(&x[2..]).enumerate() {
                y[j] = d * f32::from(low as i8 - 16);
                y[j + 16] = d * f32::from(high as i8 - 16);
            }
        }
        GgmlType::Q5_1 => {
            let (d, m) = (half(x, 0), half(x, 2));
            for (j, (low, high)) in five_bits(&x[4..]).enumerate() {
                y[j] = d * f32::from(low) + m;
                y[j + 16] = d * f32::from(high) + m;
            }
        }
        GgmlType::Q8_0 => {
            let d = half(x, 0);
            for (y, &q) in y.iter_mut().zip(&x[2..]) {
                *y = f32::from(q as i8) * d;
            }
        }
        GgmlType::Q4_K => {
            let (d, m) = (half(x, 0), half(x, 2));
            for group in 0..8 {
                let (scale, min) = scale_and_min(&x[4..16], group);
                let (scale, min) = (d * f32::from(scale), m * f32::from(min));
                let quants = &x[16 + group / 2 * 32..][..32];
                for (y, &q) in y[group * 32..][..32].iter_mut().zip(quants) {
                    let q = if group % 2 == 0 { q & 15 } else { q >> 4 };
                    *y = scale * f32::from(q) - min;
                }
            }
        }
        GgmlType::Q5_K => {
            let (d, m) = (half(x, 0), half(x, 2));
            let high = &x[16..48];
            for group in 0..8 {
                let (scale, min) = scale_and_min(&x[4..16], group);
                let (scale, min) = (d * f32::from(scale), m * f32::from(min));
                let quants = &x[48 + group / 2 * 32..][..32];
                for (j, y) in y[group * 32..][..32].iter_mut().enumerate() {
                    let low = if group % 2 == 0 { quants[j] & 15 } else { quants[j] >> 4 };
                    *y = scale * f32::from(low | ((high[j] >> group) & 1) << 4) - min;
                }
            }
        }
        GgmlType::Q6_K => {
            let (low, high, scales, d) = (&x[..128], &x[128..192], &x[192..208], half(x, 208));
            for (i, y) in y.iter_mut().enumerate() {
                // Two halves of 128 numbers; in each, four runs of 32 share 64 low bytes and 32 high bytes.
                let (part, run, j) = (i / 128, i % 128 / 32, i % 32);
                let byte = low[part * 64 + (run % 2) * 32 + j];
                let nibble = if run < 2 { byte & 15 } else { byte >> 4 };
                let top = (high[part * 32 + j] >> (2 * run)) & 3;
                let q = (nibble | top << 4) as i8 - 32;
                *y = (d * f32::from(scales[i / 16] as i8)) * f32::from(q);
            }
        }
    }
}

/// The 32 five-bit numbers of a block as 16 pairs (number j, number j + 16): four bytes of fifth bits, then nibbles.
fn five_bits(x: &[u8]) -> impl Iterator<Item = (u8, u8)> {
    let fifth = u32::from_le_bytes([x[0], x[1], x[2], x[3]]);
    x[4..].iter().enumerate().map(move |(j, &q)| {
        let bit = |i: usize| (((fifth >> i) & 1) as u8) << 4;
        ((q & 15) | bit(j), (q >> 4) | bit(j + 16))
    })
}

/// The six-bit scale and minimum of a group of 32 in a super-block, packed into twelve bytes.
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let shared = packed[group + 4];
        ((shared & 15) | (packed[group - 4] >> 6) << 4, (shared >> 4) | (packed[group] >> 6) << 4)
    }
}
