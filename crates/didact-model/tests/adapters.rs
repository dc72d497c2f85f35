//! LoRA adapters in PEFT's layout: read, written, refused.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use didact_core::seed::Streams;
use didact_model::lora::linear_layers;
use didact_model::peft::{Adapter, AdapterConfig, LoraPair, save_adapter};
use didact_model::{Checkpoint, Decoder, LoraConfig, ModelConfig, TargetModules};
use serde_json::{Value, json};

fn config(arch: &str) -> ModelConfig {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(arch).join("config.json");
    ModelConfig::from_json(&path, &std::fs::read_to_string(&path).unwrap()).unwrap()
}

fn settings() -> AdapterConfig {
    AdapterConfig {
        r: 2,
        lora_alpha: 8.0,
        lora_dropout: 0.05,
        target_modules: vec!["q_proj".into(), "v_proj".into()],
        use_rslora: false,
        base_model_name_or_path: Some("base".into()),
    }
}

fn pairs(model: &ModelConfig, ends: &[&str]) -> Vec<LoraPair> {
    linear_layers(model)
        .into_iter()
        .filter(|l| ends.iter().any(|e| l.path.ends_with(e)))
        .map(|layer| (layer.path, layer.inputs, layer.outputs))
        .map(|(module, inputs, outputs)| LoraPair {
            module,
            rank: 2,
            scale: 4.0,
            inputs,
            outputs,
            a: (0..2 * inputs).map(|i| i as f32 / 64.0).collect(),
            b: (0..2 * outputs).map(|i| -(i as f32) / 64.0).collect(),
        })
        .collect()
}

fn edit(dir: &Path, key: &str, value: Value) {
    let path = dir.join("adapter_config.json");
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    json[key] = value;
    didact_core::files::write_atomic(&path, json.to_string().as_bytes()).unwrap();
}

#[test]
fn an_adapter_survives_writing_and_reading() {
    for (arch, ends) in [("llama", &["q_proj", "v_proj"][..]), ("gpt2", &["c_attn", "c_fc"])] {
        let model = config(arch);
        let dir = tempfile::tempdir().unwrap();
        let settings = AdapterConfig { target_modules: ends.iter().map(|&s| s.to_owned()).collect(), ..settings() };
        let mut written = pairs(&model, ends);
        assert_eq!(written.len(), 4);
        save_adapter(dir.path(), &model, &settings, written.clone()).unwrap();
        let back = Adapter::read(dir.path(), &model).unwrap();
        written.sort_by(|a, b| a.module.cmp(&b.module));
        assert_eq!(back.pairs, written);
        assert_eq!(back.config, settings.clone().sorted());
        let json: Value =
            serde_json::from_str(&std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(json["peft_type"], "LORA");
        assert_eq!(json["fan_in_fan_out"], arch == "gpt2");
        assert_eq!(json["lora_alpha"], json!(8));
    }
}

trait Sorted {
    fn sorted(self) -> Self;
}

impl Sorted for AdapterConfig {
    fn sorted(mut self) -> Self {
        self.target_modules.sort();
        self
    }
}

#[test]
fn scales_follow_alpha_rank_and_patterns() {
    let model = config("llama");
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), &model, &settings(), pairs(&model, &["q_proj", "v_proj"])).unwrap();
    edit(dir.path(), "use_rslora", json!(true));
    let scale = Adapter::read(dir.path(), &model).unwrap().pairs[0].scale;
    assert!((scale - 8.0 / 2f64.sqrt()).abs() < 1e-12);
    edit(dir.path(), "use_rslora", json!(false));
    edit(dir.path(), "alpha_pattern", json!({ "layers.1.self_attn.v_proj": 2.0 }));
    let scales: Vec<_> = Adapter::read(dir.path(), &model).unwrap().pairs.iter().map(|p| p.scale).collect();
    assert_eq!(scales, [4.0, 4.0, 4.0, 1.0]);
}

#[test]
fn a_pattern_of_ranks_and_scales_is_written() {
    let model = config("llama");
    let dir = tempfile::tempdir().unwrap();
    let mut odd = pairs(&model, &["q_proj"]);
    odd[0].rank = 1;
    let (inputs, outputs) = (odd[0].inputs, odd[0].outputs);
    odd[0].a.truncate(inputs);
    odd[0].b.truncate(outputs);
    save_adapter(dir.path(), &model, &settings(), odd.clone()).unwrap();
    assert_eq!(Adapter::read(dir.path(), &model).unwrap().pairs, odd);
}

#[test]
fn what_is_not_plain_lora_is_refused_by_name() {
    let model = config("llama");
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), &model, &settings(), pairs(&model, &["q_proj"])).unwrap();
    let good = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
    for (key, value, shown) in [
        ("peft_type", json!("IA3"), "`peft_type` = \"IA3\" is not supported; supported: \"LORA\""),
        ("use_dora", json!(true), "`use_dora` = true is not supported; supported: false"),
        ("bias", json!("all"), "`bias` = \"all\" is not supported"),
        ("modules_to_save", json!(["lm_head"]), "`modules_to_save` = [\"lm_head\"] is not supported"),
        ("init_lora_weights", json!("pissa"), "`init_lora_weights` = \"pissa\" is not supported"),
        ("kasa_config", json!({}), "`kasa_config` = {} is not supported; supported: null"),
        ("r", json!(0), "key `r` is 0, expected a rank from 1 to 65536"),
        ("r", json!(3), "has shape [2, 48], the configuration says [3, 48]"),
    ] {
        edit(dir.path(), key, value);
        let error = Adapter::read(dir.path(), &model).unwrap_err().to_string();
        assert!(error.contains(shown), "{error}");
        didact_core::files::write_atomic(dir.path().join("adapter_config.json"), good.as_bytes()).unwrap();
    }
    let error = Adapter::read(dir.path(), &config("gpt2")).unwrap_err().to_string();
    assert!(
        error.contains("`model.layers.0.self_attn.q_proj`, which is no linear layer of this gpt2 model"),
        "{error}"
    );
    let empty = tempfile::tempdir().unwrap();
    let error = Adapter::read(empty.path(), &model).unwrap_err().to_string();
    assert!(error.contains("there is no adapter_config.json, so it is not an adapter"), "{error}");
}

fn golden(arch: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(arch)
}

#[test]
fn a_decoders_adapter_goes_out_and_comes_back() {
    let checkpoint = Checkpoint::open(golden("llama")).unwrap();
    let device = Device::flex().autodiff();
    let mut decoder = Decoder::load(&checkpoint, &device).unwrap();
    assert!(Adapter::from_decoder(&decoder, None).is_none());
    let lora =
        LoraConfig { rank: 3, alpha: 6.0, dropout: 0.1, target_modules: TargetModules::AllLinear, use_rslora: false };
    decoder.add_lora(&lora, &Streams::new(1)).unwrap();
    for id in decoder.lora().unwrap().branches.iter().map(|b| b.b).collect::<Vec<_>>() {
        decoder.parameters_mut().data_mut(id, |b| b.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 / 512.0));
    }
    let adapter = Adapter::from_decoder(&decoder, Some("base".into())).unwrap();
    assert_eq!(adapter.pairs.len(), 14);
    let names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    assert_eq!(adapter.config.target_modules, names);
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), decoder.config(), &adapter.config, adapter.pairs.clone()).unwrap();
    let back = Adapter::read(dir.path(), decoder.config()).unwrap();
    assert_eq!(back, adapter);
    let mut second = Decoder::load(&checkpoint, &device).unwrap();
    back.attach(&mut second).unwrap();
    assert_eq!(Adapter::from_decoder(&second, Some("base".into())).unwrap().pairs, adapter.pairs);
    // Folding into the files gives the very numbers of folding in memory.
    for (merged, expected) in back.merged_into(&checkpoint).zip(decoder.merged()) {
        assert_eq!(merged.unwrap(), expected);
    }
}

#[test]
fn an_adapter_of_many_ranks_is_merged_but_not_attached() {
    let checkpoint = Checkpoint::open(golden("llama")).unwrap();
    let mut odd = pairs(checkpoint.config(), &["q_proj"]);
    odd[1].scale = 0.5;
    let adapter = Adapter { config: settings(), pairs: odd };
    let mut decoder = Decoder::load(&checkpoint, &Device::flex().autodiff()).unwrap();
    let error = adapter.attach(&mut decoder).unwrap_err().to_string();
    assert!(error.contains("has rank 2 and scale 0.5, the others 2 and 4"), "{error}");
    let changed = adapter
        .merged_into(&checkpoint)
        .map(Result::unwrap)
        .filter(|(name, _, values)| checkpoint.tensor_f32(name).unwrap() != *values)
        .map(|(name, ..)| name)
        .collect::<Vec<_>>();
    assert_eq!(changed, ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"]);
}

/// PEFT adds the update in f32 in another order; its elements are of the size of 1.
const MERGE_TOLERANCE: f32 = 2e-6;

#[test]
fn adapters_made_by_peft_merge_to_what_peft_merges_them_to() {
    for (arch, count) in [("llama", 6), ("gpt2", 4)] {
        let checkpoint = Checkpoint::open(golden(arch)).unwrap();
        let dir = golden("peft").join(arch);
        let adapter = Adapter::read(&dir, checkpoint.config()).unwrap();
        assert_eq!(adapter.pairs.len(), count);
        let bytes = std::fs::read(dir.join("merged.safetensors")).unwrap();
        let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(expected.len(), count);
        let mut compared = 0;
        for merged in adapter.merged_into(&checkpoint) {
            let (name, shape, values) = merged.unwrap();
            let Ok(view) = expected.tensor(&name) else {
                assert_eq!(values, checkpoint.tensor_f32(&name).unwrap(), "{arch} {name} is not adapted");
                continue;
            };
            assert_eq!(view.shape(), shape);
            for (i, (v, e)) in values.iter().zip(view.data().as_chunks::<4>().0).enumerate() {
                let e = f32::from_le_bytes(*e);
                assert!((v - e).abs() <= MERGE_TOLERANCE * (1.0 + e.abs()), "{arch} {name} [{i}]: {v} is not {e}");
            }
            compared += 1;
        }
        assert_eq!(compared, count);
    }
}
