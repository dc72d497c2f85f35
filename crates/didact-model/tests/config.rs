//! Configurations: what is read, kept, written again and refused; rotary frequencies against the Python library.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use didact_model::rope::inverse_frequencies;
use didact_model::{Activation, Architecture, ModelConfig, RopeScaling, expected_parameters, parameter_count};
use serde_json::{Map, Value, json};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

fn read(value: Value) -> Result<ModelConfig, String> {
    let Value::Object(map) = value else { panic!("not an object") };
    ModelConfig::from_value(Path::new("config.json"), map).map_err(|e| e.to_string())
}

fn llama() -> Map<String, Value> {
    let Value::Object(map) = json!({
        "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4,
    }) else {
        unreachable!()
    };
    map
}

fn with(key: &str, value: Value) -> Result<ModelConfig, String> {
    let mut map = llama();
    map.insert(key.into(), value);
    read(Value::Object(map))
}

#[test]
fn a_complete_configuration_is_written_as_it_was_read() {
    for arch in ["llama", "qwen2", "qwen3", "gpt2"] {
        let path = golden(arch).join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let config = ModelConfig::from_json(&path, &text).unwrap();
        let raw: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config.to_json(), raw, "{arch}");
    }
}

#[test]
fn unknown_keys_survive_and_absent_ones_are_stated() {
    let mut map = llama();
    map.insert("my_note".into(), json!({ "deep": [1, null] }));
    let config = read(Value::Object(map)).unwrap();
    let out = config.to_json();
    assert_eq!(out["my_note"], json!({ "deep": [1, null] }));
    assert_eq!(out["head_dim"], Value::Null, "a derived head size is not stated");
    assert_eq!(out["num_key_value_heads"], 4);
    assert_eq!(out["rms_norm_eps"], 1e-6);
    assert_eq!(out["rope_theta"], 10000.0);
    assert_eq!(out["architectures"], json!(["LlamaForCausalLM"]));
    let again = read(out.clone()).unwrap();
    assert_eq!(again.to_json(), out);
}

#[test]
fn changed_fields_are_written() {
    let mut config = read(Value::Object(llama())).unwrap();
    config.tie_word_embeddings = true;
    config.eos_token_ids = vec![2, 3];
    config.rope.as_mut().unwrap().scaling = RopeScaling::Linear { factor: 2.0 };
    let again = read(config.to_json()).unwrap();
    assert!(again.tie_word_embeddings);
    assert_eq!(again.eos_token_ids, [2, 3]);
    assert_eq!(again.rope, config.rope);
}

#[test]
fn defaults_are_those_of_the_python_library() {
    let c = read(Value::Object(llama())).unwrap();
    assert_eq!((c.max_position_embeddings, c.norm_eps, c.head_dim), (2048, 1e-6, 4));
    assert!(!c.tie_word_embeddings && !c.attention_bias && !c.mlp_bias);
    let c = read(json!({
        "model_type": "qwen3", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2,
    }))
    .unwrap();
    assert_eq!((c.head_dim, c.max_position_embeddings), (128, 32768));
    assert!(c.has_qk_norm());
    let c = read(json!({ "model_type": "gpt2", "vocab_size": 8, "n_embd": 8, "n_layer": 1, "n_head": 2 })).unwrap();
    assert_eq!((c.intermediate_size, c.max_position_embeddings, c.norm_eps), (32, 1024, 1e-5));
    assert_eq!((c.hidden_act, c.tie_word_embeddings, c.rope), (Activation::GeluTanh, true, None));
    assert!(c.attention_bias && c.attention_output_bias && c.mlp_bias);
}

#[test]
fn qwen2_has_biases_on_queries_keys_and_values_only() {
    let text = std::fs::read_to_string(golden("qwen2/config.json")).unwrap();
    let c = ModelConfig::from_json(Path::new("config.json"), &text).unwrap();
    let names: Vec<_> = expected_parameters(&c).into_iter().map(|p| p.name).collect();
    assert!(names.contains(&"model.layers.0.self_attn.k_proj.bias".to_owned()));
    assert!(!names.contains(&"model.layers.0.self_attn.o_proj.bias".to_owned()));
    assert!(names.contains(&"lm_head.weight".to_owned()));
}

#[test]
fn parameters_are_counted_and_only_matrices_decay() {
    let c = read(Value::Object(llama())).unwrap();
    let layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16;
    assert_eq!(parameter_count(&c), 2 * 32 * 16 + 2 * layer + 16);
    for p in expected_parameters(&c) {
        assert_eq!(p.decay, !p.name.contains("norm"), "{}", p.name);
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let refused = |key: &str, value: Value| with(key, value).unwrap_err();
    assert_eq!(
        refused("model_type", json!("mamba")),
        "`config.json`: `model_type` = \"mamba\" is not supported; supported: llama qwen2 qwen3 gpt2"
    );
    assert_eq!(
        refused("rope_scaling", json!({ "type": "dynamic", "factor": 2.0 })),
        "`config.json`: `rope_scaling.rope_type` = \"dynamic\" is not supported; supported: default linear llama3 yarn"
    );
    assert_eq!(
        refused("hidden_act", json!("relu2")),
        "`config.json`: `hidden_act` = \"relu2\" is not supported; supported: silu gelu gelu_new gelu_pytorch_tanh"
    );
    assert!(refused("quantization_config", json!({ "quant_method": "gptq" })).contains("\"gptq\" is not supported"));
    assert!(refused("layer_types", json!(["full_attention", "sliding_attention"])).contains("\"sliding_attention\""));
    assert!(refused("partial_rotary_factor", json!(0.5)).contains("partial_rotary_factor"));
    assert!(refused("architectures", json!(["LlamaForSequenceClassification"])).contains("LlamaForCausalLM"));
    let qwen = |window: Value| {
        read(json!({
            "model_type": "qwen2", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 30, "num_attention_heads": 2, "use_sliding_window": true,
            "sliding_window": window, "max_window_layers": 28,
        }))
    };
    assert!(qwen(json!(4096)).unwrap_err().contains("`sliding_window` = 4096 is not supported"));
    assert!(qwen(Value::Null).is_ok());
}

#[test]
fn impossible_values_are_named() {
    assert_eq!(
        with("hidden_size", json!(0)).unwrap_err(),
        "`config.json`: key `hidden_size` is 0, expected a whole number from 1 to 268435456"
    );
    assert_eq!(
        with("num_hidden_layers", json!(4_000_000_000u64)).unwrap_err(),
        "`config.json`: key `num_hidden_layers` is 4000000000, expected a whole number from 1 to 10000"
    );
    assert_eq!(
        with("num_key_value_heads", json!(3)).unwrap_err(),
        "`config.json`: key `num_key_value_heads` is 3, expected a divisor of num_attention_heads (4)"
    );
    assert!(with("rms_norm_eps", json!("1e-5")).unwrap_err().contains("expected a number above 0"));
    assert!(with("tie_word_embeddings", json!("yes")).unwrap_err().contains("expected true or false"));
    let mut map = llama();
    map.shift_remove("vocab_size");
    assert_eq!(
        read(Value::Object(map)).unwrap_err(),
        "`config.json`: key `vocab_size` is missing, which a model of type llama needs"
    );
    let e = ModelConfig::from_json(Path::new("config.json"), "{\"model_type\": ").unwrap_err();
    assert_eq!(e.to_string(), "`config.json` is not valid JSON");
    assert!(std::error::Error::source(&e).unwrap().to_string().contains("line 1"));
}

#[test]
fn dropout_that_has_no_effect_is_listed() {
    let c = with("attention_dropout", json!(0.1)).unwrap();
    assert_eq!(c.without_effect(), ["attention_dropout = 0.1"]);
    assert_eq!(with("attention_dropout", json!(0.0)).unwrap().without_effect(), [""; 0]);
}

/// The Python library computes in f32, in a few dependent operations; each rounds to 2^-24.
const FREQUENCY_TOLERANCE: f32 = 1e-6;

#[test]
fn rotary_frequencies_agree_with_the_python_library() {
    let text = std::fs::read_to_string(golden("rope/frequencies.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 8);
    let mut kinds = std::collections::BTreeSet::new();
    for case in cases {
        let config = read(case["config"].clone()).unwrap();
        kinds.insert(config.rope.as_ref().unwrap().scaling.kind());
        let (found, scale) = inverse_frequencies(&config);
        let expected: Vec<f32> = serde_json::from_value(case["inverse_frequencies"].clone()).unwrap();
        assert_eq!(found.len(), expected.len(), "{}", case["name"]);
        for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
            assert!((f - e).abs() <= FREQUENCY_TOLERANCE * e.abs(), "{} pair {i}: {f} is not {e}", case["name"]);
        }
        let expected = case["attention_scale"].as_f64().unwrap() as f32;
        assert!((scale - expected).abs() <= FREQUENCY_TOLERANCE * expected, "{}: {scale}", case["name"]);
        let again = read(config.to_json()).unwrap();
        assert_eq!(again.rope, config.rope, "{}", case["name"]);
    }
    assert_eq!(Vec::from_iter(kinds), ["default", "linear", "llama3", "yarn"]);
}

#[test]
fn architectures_know_their_names() {
    for a in Architecture::ALL {
        assert_eq!(Architecture::from_model_type(a.model_type()), Some(a));
    }
}
