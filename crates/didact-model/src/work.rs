//! How much arithmetic training is, to compare speeds of different models with what a machine can do.

use crate::config::ModelConfig;
use crate::shapes::expected_parameters;

/// What one forward pass works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// Tokens.
    pub tokens: u64,
    /// Pairs of a query and a key it sees, in one head: `T·(T + 1) / 2` of a sequence of T tokens.
    pub pairs: u64,
}

impl Amount {
    /// `rows` sequences of `len` tokens.
    pub fn of_rows(rows: u64, len: u64) -> Self {
        Self { tokens: rows * len, pairs: rows * (len * (len + 1) / 2) }
    }
}

/// Floating-point operations of the matrix products of a forward and backward pass: two per weight and token forward, as
/// many backward for the inputs' gradients, and as many for the weights'; and the same for the two products of attention.
/// The output projection counts; the embedding, norms and the optimiser do not. With an adapter the model's own weights
/// need no gradient, and the adapter's small products are not counted.
pub fn of_training(config: &ModelConfig, amount: Amount, is_adapter: bool) -> f64 {
    let is_embedding = |name: &str| {
        name.ends_with("embed_tokens.weight") || name.ends_with("wte.weight") || name.ends_with("wpe.weight")
    };
    let shapes = expected_parameters(config);
    let matrices = shapes.iter().filter(|spec| spec.shape.len() == 2 && !is_embedding(&spec.name));
    let inner: usize = matrices.map(crate::shapes::ParameterSpec::elements).sum();
    // A tied output projection is the embedding, which is left out above.
    let head = if config.tie_word_embeddings { config.vocab_size * config.hidden_size } else { 0 };
    let weights = 2.0 * (inner + head) as f64 * amount.tokens as f64;
    let width = (config.num_hidden_layers * config.num_attention_heads * config.head_dim) as f64;
    let attention = 2.0 * 2.0 * width * amount.pairs as f64;
    if is_adapter { 2.0 * weights + 3.0 * attention } else { 3.0 * (weights + attention) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn work_is_six_operations_per_weight_and_token_and_attention() {
        let config = r#"{"model_type": "llama", "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 688,
            "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4,
            "max_position_embeddings": 2048, "tie_word_embeddings": true}"#;
        let config = ModelConfig::from_json(Path::new("test"), config).expect("a complete configuration");
        // 6 layers of 4·256² + 3·256·688 weights, and the output projection.
        let weights = 6.0 * (4.0 * 65536.0 + 3.0 * 176_128.0) + 4096.0 * 256.0;
        let attention = 12.0 * 6.0 * 256.0 * 257.0 / 2.0;
        let amount = Amount::of_rows(16, 256);
        assert_eq!(of_training(&config, amount, false), 4096.0 * (6.0 * weights + attention));
        assert_eq!(of_training(&config, amount, true), 4096.0 * (4.0 * weights + attention));
    }
}
