//! A tokenizer whose tokens are bytes, and the golden models.
#![allow(dead_code, reason = "each test program uses a part")]

use didact_core::files;
use didact_core::generate::{Prompt, Request, Sampling};
use didact_data::tokenizer::Tokenizer;
use didact_infer::{EngineWeights, LocalModel};
use didact_kernels::Precision;
use didact_model::Checkpoint;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// The model's context.
pub(crate) const CONTEXT: usize = 64;

/// A tokenizer of 256 bytes, an unused token and an end of turn (257), in which `eos` ends answers.
pub(crate) fn tokenizer(eos: u32) -> Arc<Tokenizer> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    // GPT-2's printable stand-ins for bytes.
    let mut shifted = 256;
    let vocab: serde_json::Map<String, serde_json::Value> = (0..256u32)
        .map(|byte| {
            let is_printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let stands = if is_printable { byte } else { shifted };
            shifted += u32::from(!is_printable);
            (char::from_u32(stands).expect("a character").to_string(), json!(byte))
        })
        .collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(256, "<unused>"), special(257, "<end>")],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let write = |name: &str, value: serde_json::Value| {
        files::write_atomic(directory.path().join(name), value.to_string().as_bytes()).expect("the fixture is written");
    };
    write("tokenizer.json", tokenizer);
    write("tokenizer_config.json", json!({"eos_token": "<end>", "model_max_length": CONTEXT}));
    write("generation_config.json", json!({"eos_token_id": [eos]}));
    Arc::new(Tokenizer::open(directory.path()).expect("the fixture opens"))
}

/// A golden model's directory.
pub(crate) fn golden(model: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden")).join(model)
}

/// A golden model's weights.
pub(crate) fn weights(model: &str) -> EngineWeights {
    let checkpoint = Checkpoint::open(golden(model)).expect("the golden model opens");
    EngineWeights::from_checkpoint(&checkpoint).expect("the golden model loads")
}

/// A golden model in f32 with the tokenizer of bytes.
pub(crate) fn local_model(model: &str) -> Arc<LocalModel> {
    let model = LocalModel::new(weights(model), tokenizer(257), Precision::F32);
    Arc::new(model.expect("model and tokenizer fit"))
}

/// A request for a text.
pub(crate) fn request(text: &str, sampling: Sampling) -> Request {
    Request { prompt: Prompt::Text(text.into()), sampling }
}

/// The likeliest tokens.
pub(crate) fn greedy(max_tokens: usize) -> Sampling {
    Sampling { max_tokens, ..Sampling::default() }
}

/// Tokens drawn at temperature 1.
pub(crate) fn drawn(seed: u64, max_tokens: usize) -> Sampling {
    Sampling { temperature: 1.0, seed, max_tokens, ..Sampling::default() }
}
