//! Weights in and out: safetensors single and sharded, GGUF of every storage type, damaged files.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use didact_core::gguf::GgufFile;
use didact_model::export::save_model;
use didact_model::weights::dequantize;
use didact_model::{Checkpoint, Dtype, ModelConfig, ModelError, expected_parameters};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

#[expect(clippy::disallowed_methods, reason = "test fixture: thousands of small files, which need not be synced")]
fn put(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "test fixture")]
fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

/// A model small enough to damage at every byte.
fn small_config() -> ModelConfig {
    let Value::Object(map) = json!({
        "model_type": "llama", "vocab_size": 6, "hidden_size": 4, "intermediate_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true,
    }) else {
        unreachable!()
    };
    ModelConfig::from_value(Path::new("config.json"), map).unwrap()
}

fn numbers(config: &ModelConfig) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    expected_parameters(config)
        .into_iter()
        .enumerate()
        .map(|(t, p)| {
            let values = (0..p.elements()).map(|i| ((t * 31 + i * 7) % 64) as f32 / 32.0 - 1.0).collect();
            (p.name, p.shape, values)
        })
        .collect()
}

fn small_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = small_config();
    save_model(dir.path(), &config, numbers(&config), Dtype::F32).unwrap();
    dir
}

fn message(path: &Path) -> String {
    Checkpoint::open(path).map(|_| ()).unwrap_err().to_string()
}

/// Opening and reading everything: an error or a sound model, never a panic.
fn open_and_read(path: &Path) -> Result<(), ModelError> {
    let checkpoint = Checkpoint::open(path)?;
    for name in checkpoint.names() {
        let values = checkpoint.tensor_f32(name)?;
        assert_eq!(values.len(), checkpoint.shape(name)?.iter().product::<usize>());
    }
    Ok(())
}

#[test]
fn loading_saving_and_loading_is_the_identity() {
    for arch in ["llama", "qwen2", "qwen3", "gpt2"] {
        let first = Checkpoint::open(golden(arch)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tensors =
            first.names().map(|n| (n.to_owned(), first.shape(n).unwrap().to_vec(), first.tensor_f32(n).unwrap()));
        let written = save_model(dir.path(), first.config(), tensors, Dtype::F32).unwrap();
        assert_eq!(written.files, ["model.safetensors"]);
        let second = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(second.config().to_json(), first.config().to_json(), "{arch}");
        let names: Vec<_> = first.names().collect();
        assert_eq!(second.names().collect::<Vec<_>>(), names);
        for n in names {
            assert_eq!(second.tensor_f32(n).unwrap(), first.tensor_f32(n).unwrap(), "{arch} {n}");
        }
        let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let generation = std::fs::read_to_string(dir.path().join("generation_config.json")).unwrap();
        assert!(generation.contains("_from_model_config"));
    }
}

#[test]
fn half_precision_rounds_to_nearest_and_is_stated() {
    for (dtype, name, tolerance) in [(Dtype::Bf16, "bfloat16", 1.0 / 256.0), (Dtype::F16, "float16", 1.0 / 2048.0)] {
        let dir = tempfile::tempdir().unwrap();
        let config = small_config();
        let tensors = numbers(&config).into_iter().map(|(n, s, v)| (n, s, v.iter().map(|x| x * 1.001).collect()));
        save_model(dir.path(), &config, tensors, dtype).unwrap();
        let back = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(back.config().stated_dtype(), Some(name));
        assert_eq!(back.dtype("model.norm.weight").unwrap(), dtype.name());
        for (n, _, values) in numbers(&config) {
            for (found, x) in back.tensor_f32(&n).unwrap().iter().zip(values) {
                let exact = x * 1.001;
                assert!((found - exact).abs() <= tolerance * exact.abs(), "{n}: {found} for {exact}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_the_configuration_is_not_written() {
    let config = small_config();
    let attempt = |change: &dyn Fn(&mut Vec<(String, Vec<usize>, Vec<f32>)>), dtype: Dtype| {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = numbers(&config);
        change(&mut tensors);
        let error = save_model(dir.path(), &config, tensors, dtype).unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing half-written");
        error.to_string().replace(&dir.path().display().to_string(), "DIR")
    };
    assert_eq!(
        attempt(&|t| drop(t.pop()), Dtype::F32),
        "cannot write `DIR/model.safetensors`: 1 tensors were not given, the first is `model.norm.weight`"
    );
    assert!(attempt(&|t| t[0].1 = vec![4, 6], Dtype::F32).contains("has shape [4, 6] and 24 numbers"));
    assert!(attempt(&|t| t[1].0 = "x".into(), Dtype::F32).contains("`x` is no parameter of a llama model"));
    let twice = |t: &mut Vec<(String, Vec<usize>, Vec<f32>)>| {
        let first = t[0].clone();
        t.push(first);
    };
    assert!(attempt(&twice, Dtype::F32).contains("was given twice"));
    assert!(attempt(&|t| t[0].2[3] = f32::NAN, Dtype::F32).contains("holds NaN at index 3"));
    assert!(attempt(&|t| t[0].2[0] = 65520.0, Dtype::F16).contains("not a finite number in float16"));
    assert!(attempt(&|t| t[0].2[0] = f32::MAX, Dtype::Bf16).contains("not a finite number in bfloat16"));
}

#[test]
fn shards_are_read_through_their_index() {
    let dir = small_model();
    shard(dir.path());
    let whole = small_model();
    let (a, b) = (Checkpoint::open(dir.path()).unwrap(), Checkpoint::open(whole.path()).unwrap());
    for n in b.names() {
        assert_eq!(a.tensor_f32(n).unwrap(), b.tensor_f32(n).unwrap());
    }
}

/// Splits a directory's `model.safetensors` into two shards with an index.
fn shard(dir: &Path) {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    for (i, file) in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].iter().enumerate() {
        let part: BTreeMap<_, _> = tensors.iter().filter(|(n, _)| usize::from(n.contains("mlp")) == i).collect();
        map.extend(part.keys().map(|n| ((*n).to_owned(), json!(file))));
        put(&dir.join(file), &safetensors::serialize(part, None).unwrap());
    }
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    put(&dir.join("model.safetensors.index.json"), index.to_string().as_bytes());
    remove(&dir.join("model.safetensors"));
}

#[test]
fn a_bad_index_names_shard_and_tensor() {
    let dir = small_model();
    let d = dir.path();
    shard(d);
    let shown = |text: String| text.replace(&d.display().to_string(), "DIR");
    let index_path = d.join("model.safetensors.index.json");
    let good = std::fs::read_to_string(&index_path).unwrap();
    let with = |tensor: &str, file: &str| {
        let mut index: Value = serde_json::from_str(&good).unwrap();
        index["weight_map"][tensor] = json!(file);
        put(&index_path, index.to_string().as_bytes());
        shown(message(d))
    };
    assert_eq!(
        with("model.norm.weight", "model-00002-of-00002.safetensors"),
        "`DIR/model-00001-of-00002.safetensors`: tensor `model.norm.weight` is in this shard, \
         but the index says it is in `model-00002-of-00002.safetensors`"
    );
    assert_eq!(
        with("model.extra.weight", "model-00001-of-00002.safetensors"),
        "`DIR/model-00001-of-00002.safetensors`: tensor `model.extra.weight` is not in this shard, \
         but the index says it is"
    );
    assert!(with("model.norm.weight", "../secret.safetensors").contains("expected a file name in the same directory"));
    put(&index_path, good.as_bytes());
    remove(&d.join("model-00002-of-00002.safetensors"));
    assert_eq!(
        shown(message(d)),
        "`DIR/model.safetensors.index.json` names the shard `model-00002-of-00002.safetensors`, which is not in the \
         directory; tensor `model.layers.0.mlp.down_proj.weight` should be in it"
    );
    put(&index_path, b"{}");
    assert!(shown(message(d)).contains("key `weight_map` is absent or empty"));
}

/// Writes the small model with a tensor replaced, removed or added.
fn altered(change: impl Fn(&mut BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>)) -> tempfile::TempDir {
    let dir = small_model();
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let mut tensors: BTreeMap<_, _> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    change(&mut tensors);
    let views: BTreeMap<_, _> = tensors
        .iter()
        .map(|(n, (d, s, b))| (n.clone(), safetensors::tensor::TensorView::new(*d, s.clone(), b).unwrap()))
        .collect();
    put(&path, &safetensors::serialize(views, None).unwrap());
    dir
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let shown = |dir: tempfile::TempDir| message(dir.path()).replace(&dir.path().display().to_string(), "DIR");
    let norm = "model.norm.weight".to_owned();
    assert_eq!(
        shown(altered(|t| drop(t.insert(norm.clone(), (safetensors::Dtype::F32, vec![2], vec![0; 8]))))),
        "`DIR/model.safetensors`: tensor `model.norm.weight` has shape [2], the configuration says [4]"
    );
    assert_eq!(
        shown(altered(|t| drop(t.insert(norm.clone(), (safetensors::Dtype::I32, vec![4], vec![0; 16]))))),
        "`DIR/model.safetensors`: tensor `model.norm.weight` has dtype I32, expected one of F32 BF16 F16"
    );
    assert_eq!(
        shown(altered(|t| drop(t.remove(&norm)))),
        "`DIR/model.safetensors`: 1 of 11 tensors are missing, the first is `model.norm.weight`"
    );
    assert_eq!(
        shown(altered(|t| drop(t.insert("extra".into(), (safetensors::Dtype::F32, vec![1], vec![0; 4]))))),
        "`DIR/model.safetensors`: 1 tensors have no place in a model of type llama, the first is `extra`"
    );
    let nan = altered(|t| t.get_mut(&norm).unwrap().2[8..12].copy_from_slice(&f32::NAN.to_le_bytes()));
    let error = Checkpoint::open(nan.path()).unwrap().tensor_f32(&norm).unwrap_err().to_string();
    assert!(error.ends_with("tensor `model.norm.weight` holds NaN at index 2"), "{error}");
}

#[test]
fn repeated_and_derived_tensors_are_no_trouble() {
    let dir = altered(|t| {
        let embedding = t["model.embed_tokens.weight"].clone();
        t.insert("lm_head.weight".into(), embedding);
        let frequencies = (safetensors::Dtype::F32, vec![1], vec![0; 4]);
        t.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), frequencies);
    });
    assert_eq!(Checkpoint::open(dir.path()).unwrap().names().count(), 11);
}

#[test]
fn gpt2_without_its_prefix_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read(golden("gpt2/config.json")).unwrap();
    put(&dir.path().join("config.json"), &text);
    let bytes = std::fs::read(golden("gpt2/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let renamed: BTreeMap<_, _> =
        tensors.iter().map(|(n, t)| (n.strip_prefix("transformer.").unwrap().to_owned(), t)).collect();
    put(&dir.path().join("model.safetensors"), &safetensors::serialize(renamed, None).unwrap());
    let (a, b) = (Checkpoint::open(dir.path()).unwrap(), Checkpoint::open(golden("gpt2")).unwrap());
    assert_eq!(a.tensor_f32("transformer.wpe.weight").unwrap(), b.tensor_f32("transformer.wpe.weight").unwrap());
}

#[test]
fn a_path_without_a_model_says_what_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let shown = |path: &Path| message(path).replace(&dir.path().display().to_string(), "DIR");
    assert_eq!(shown(&dir.path().join("absent")), "no model at `DIR/absent`: it does not exist");
    assert_eq!(shown(dir.path()), "no model at `DIR`: there is neither config.json nor a .gguf file");
    put(&dir.path().join("notes.txt"), b"");
    assert_eq!(shown(&dir.path().join("notes.txt")), "no model at `DIR/notes.txt`: a file must end in .gguf");
    put(&dir.path().join("adapter_config.json"), b"{}");
    assert!(shown(dir.path()).contains("it holds an adapter"));
    put(&dir.path().join("config.json"), small_config().to_json().to_string().as_bytes());
    assert!(shown(dir.path()).contains("neither model.safetensors nor model.safetensors.index.json"));
    put(&dir.path().join("pytorch_model.bin"), b"");
    assert!(shown(dir.path()).contains("its weights are pickled"));
    put(&dir.path().join("model.safetensors"), b"");
    assert!(shown(dir.path()).contains("is not a valid safetensors file of 0 bytes"));
}

#[test]
fn every_storage_type_is_dequantised_to_the_bit() {
    let file = GgufFile::open(golden("gguf/quants.gguf")).unwrap();
    let bytes = std::fs::read(golden("gguf/quants.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensors.len(), 19);
    let mut kinds = std::collections::BTreeSet::new();
    for tensor in &file.tensors {
        kinds.insert(tensor.kind);
        let found = dequantize(tensor.kind, file.bytes(tensor));
        let view = expected.tensor(&tensor.name).unwrap();
        assert_eq!(view.shape(), tensor.shape);
        for (i, (f, e)) in found.iter().zip(view.data().as_chunks::<4>().0).enumerate() {
            let e = f32::from_le_bytes(*e);
            assert!(f.to_bits() == e.to_bits() || (*f == 0.0 && e == 0.0), "{} [{i}]: {f} is not {e}", tensor.name);
        }
    }
    assert_eq!(kinds.len(), 11, "all storage types are covered");
}

#[test]
fn gguf_models_are_the_models_they_were_made_from() {
    for arch in ["llama", "qwen2", "qwen3", "gpt2"] {
        let gguf = Checkpoint::open(golden(&format!("gguf/{arch}.gguf"))).unwrap();
        let hf = Checkpoint::open(golden(arch)).unwrap();
        let names: Vec<_> = hf.names().collect();
        assert_eq!(gguf.names().collect::<Vec<_>>(), names, "{arch}");
        for n in names {
            assert_eq!(gguf.tensor_f32(n).unwrap(), hf.tensor_f32(n).unwrap(), "{arch} {n}");
        }
        let (a, b) = (gguf.config(), hf.config());
        assert_eq!((a.norm_eps, &a.rope, a.head_dim), (b.norm_eps, &b.rope, b.head_dim));
        assert_eq!((a.tie_word_embeddings, a.vocab_size), (b.tie_word_embeddings, b.vocab_size));
        assert_eq!((a.hidden_act, a.attention_bias, a.mlp_bias), (b.hidden_act, b.attention_bias, b.mlp_bias));
    }
}

#[test]
fn a_gguf_model_saved_as_safetensors_keeps_every_number() {
    let gguf = Checkpoint::open(golden("gguf/llama.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tensors = gguf.names().map(|n| (n.to_owned(), gguf.shape(n).unwrap().to_vec(), gguf.tensor_f32(n).unwrap()));
    save_model(dir.path(), gguf.config(), tensors, Dtype::F32).unwrap();
    let back = Checkpoint::open(dir.path()).unwrap();
    for n in gguf.names() {
        assert_eq!(back.tensor_f32(n).unwrap(), gguf.tensor_f32(n).unwrap());
    }
}

#[test]
fn a_directory_with_one_gguf_file_is_that_model() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("m.gguf"), &std::fs::read(golden("gguf/qwen3.gguf")).unwrap());
    assert!(Checkpoint::open(dir.path()).unwrap().is_gguf());
    put(&dir.path().join("n.gguf"), b"");
    assert!(message(dir.path()).contains("there are several .gguf files (m.gguf, n.gguf); name one"));
}

#[test]
fn source_digest_follows_the_content() {
    let dir = small_model();
    let first = Checkpoint::open(dir.path()).unwrap().source_digest().unwrap();
    assert_eq!(first, Checkpoint::open(small_model().path()).unwrap().source_digest().unwrap());
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    put(&path, &bytes);
    assert_ne!(first, Checkpoint::open(dir.path()).unwrap().source_digest().unwrap());
}

#[test]
fn safetensors_cut_anywhere_is_an_error() {
    let dir = small_model();
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for len in 0..bytes.len() {
        put(&path, &bytes[..len]);
        assert!(open_and_read(dir.path()).is_err(), "accepted when cut at byte {len}");
    }
    put(&path, &bytes);
    open_and_read(dir.path()).unwrap();
}

#[test]
fn gguf_cut_anywhere_is_an_error() {
    let bytes = std::fs::read(golden("gguf/llama.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    // Every byte of header and directory, then the data in strides.
    for len in (0..3000).chain((3000..bytes.len()).step_by(4999)).chain([bytes.len() - 1]) {
        put(&path, &bytes[..len]);
        assert!(open_and_read(&path).is_err(), "accepted when cut at byte {len}");
    }
}

static SMALL: LazyLock<(tempfile::TempDir, Vec<u8>)> = LazyLock::new(|| {
    let dir = small_model();
    let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    (dir, bytes)
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn flipped_bits_in_safetensors_never_panic(flips in prop::collection::vec((0usize..1 << 16, 0u8..8), 1..5)) {
        let (dir, good) = &*SMALL;
        let mut bytes = good.clone();
        for (at, bit) in flips {
            let len = bytes.len();
            bytes[at % len] ^= 1 << bit;
        }
        put(&dir.path().join("model.safetensors"), &bytes);
        let _ = open_and_read(dir.path());
    }

    #[test]
    fn flipped_bits_in_gguf_never_panic(flips in prop::collection::vec((0usize..3000, 0u8..8), 1..5)) {
        static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| std::fs::read(golden("gguf/llama.gguf")).unwrap());
        let mut bytes = GOOD.clone();
        for (at, bit) in flips {
            bytes[at] ^= 1 << bit;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flipped.gguf");
        put(&path, &bytes);
        let _ = open_and_read(&path);
    }

    #[test]
    fn flipped_bits_in_a_configuration_never_panic(flips in prop::collection::vec((0usize..4096, 0u8..7), 1..4)) {
        static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| std::fs::read(golden("llama/config.json")).unwrap());
        let mut bytes = GOOD.clone();
        for (at, bit) in flips {
            let len = bytes.len();
            bytes[at % len] ^= 1 << bit;
        }
        if let Ok(text) = String::from_utf8(bytes)
            && let Ok(config) = ModelConfig::from_json(Path::new("config.json"), &text)
        {
            prop_assert!(expected_parameters(&config).len() < 200_000);
            let _ = config.to_json();
        }
    }
}
