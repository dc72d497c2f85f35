//! The number types of safetensors files that are read and written.

use half::{bf16, f16};
use rayon::prelude::*;

/// How many numbers are converted per task; fixed, so that the work splits the same way on any number of threads.
const CHUNK: usize = 1 << 16;

/// The type of weights in a safetensors file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// Brain floats: 8 bits of exponent, 7 of fraction.
    Bf16,
    /// 16-bit IEEE floats.
    F16,
}

impl Dtype {
    /// The name in `config.json` (`dtype`, `torch_dtype`).
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
        }
    }

    /// Bytes per number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The names of all, for messages.
    pub(crate) fn names() -> String {
        [Self::F32, Self::Bf16, Self::F16].map(Self::name).join(" ")
    }

    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        Some(match dtype {
            safetensors::Dtype::F32 => Self::F32,
            safetensors::Dtype::BF16 => Self::Bf16,
            safetensors::Dtype::F16 => Self::F16,
            _ => return None,
        })
    }

    /// Little-endian bytes to numbers; exact for every type.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len() / self.bytes()];
        out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * self.bytes())).for_each(|(out, bytes)| match self {
            Self::F32 => convert(out, bytes, f32::from_le_bytes),
            Self::Bf16 => convert(out, bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F16 => convert(out, bytes, |b| f16::from_le_bytes(b).to_f32()),
        });
        out
    }

    /// Numbers to little-endian bytes, rounded to the nearest with ties to even.
    pub(crate) fn encode(self, values: &[f32]) -> Vec<u8> {
        let mut out = vec![0; values.len() * self.bytes()];
        out.par_chunks_mut(CHUNK * self.bytes()).zip(values.par_chunks(CHUNK)).for_each(|(out, values)| match self {
            Self::F32 => fill(out, values, f32::to_le_bytes),
            Self::Bf16 => fill(out, values, |x| bf16::from_f32(x).to_le_bytes()),
            Self::F16 => fill(out, values, |x| f16::from_f32(x).to_le_bytes()),
        });
        out
    }

    /// The largest magnitude that does not round to infinity, exclusive; `None` where every finite `f32` fits.
    pub(crate) fn overflow_at(self) -> Option<f32> {
        match self {
            Self::F32 => None,
            // Half a unit in the last place above the largest finite value.
            Self::Bf16 => Some(f32::from_bits(0x7f7f_8000)),
            Self::F16 => Some(65520.0),
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.torch_name())
    }
}

impl std::str::FromStr for Dtype {
    type Err = String;

    /// Reads `f32`, `bf16`, `f16` and the names that `config.json` uses.
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "f32" | "float32" => Self::F32,
            "bf16" | "bfloat16" => Self::Bf16,
            "f16" | "float16" => Self::F16,
            _ => return Err(format!("unknown dtype `{text}`; known: f32 bf16 f16")),
        })
    }
}

fn convert<const N: usize>(out: &mut [f32], bytes: &[u8], from: impl Fn([u8; N]) -> f32) {
    for (x, b) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *x = from(*b);
    }
}

fn fill<const N: usize>(out: &mut [u8], values: &[f32], to: impl Fn(f32) -> [u8; N]) {
    for (b, x) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *b = to(*x);
    }
}
