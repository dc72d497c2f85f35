//! Frequencies of the rotary position embedding, with the scaling kinds linear, llama3 and yarn.
//!
//! Arithmetic is in f64 and rounded once at the end; the Python library computes in f32, so its values differ from
//! these in the last bits (`golden/rope` holds them, with the script).

use std::f64::consts::PI;

use crate::config::{ModelConfig, RopeScaling};

/// The angle per position of each pair of dimensions, `[D/2]`, and the factor by which cosine and sine are multiplied
/// (1 except for YaRN). Empty for a model without rotary embedding.
pub fn inverse_frequencies(config: &ModelConfig) -> (Vec<f32>, f32) {
    let Some(rope) = &config.rope else { return (Vec::new(), 1.0) };
    let d = config.head_dim;
    let plain = (0..d / 2).map(|i| rope.theta.powf(-(2.0 * i as f64) / d as f64));
    let mut attention_scale = 1.0;
    let frequencies: Vec<f64> = match &rope.scaling {
        RopeScaling::Default => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = *original_max_position_embeddings as f64;
            plain
                .map(|f| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength < original / high_freq_factor {
                        f
                    } else if wavelength > original / low_freq_factor {
                        f / factor
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                })
                .collect()
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
        } => {
            let scale = |m: f64| if *factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
            attention_scale = attention_factor.unwrap_or_else(|| match (mscale, mscale_all_dim) {
                (Some(m), Some(all)) => scale(*m) / scale(*all),
                _ => scale(1.0),
            });
            // The (fractional) pair that makes that many rotations over the original context.
            let pair = |rotations: f64| {
                d as f64 * (*original_max_position_embeddings as f64 / (rotations * 2.0 * PI)).ln()
                    / (2.0 * rope.theta.ln())
            };
            let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(d as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            plain
                .enumerate()
                .map(|(i, f)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                })
                .collect()
        }
    };
    (frequencies.into_iter().map(|f| f as f32).collect(), attention_scale as f32)
}
