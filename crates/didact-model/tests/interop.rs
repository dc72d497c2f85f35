//! What Didact writes, loaded by the Python libraries. Needs `DIDACT_PYTHON`, an interpreter that has torch,
//! transformers and peft; without it these tests fail, so they are run by name:
//! `DIDACT_PYTHON=/path/to/python cargo test -p didact-model --test interop -- --ignored`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::Device;
use didact_core::seed::Streams;
use didact_model::export::{save_model, try_save_model};
use didact_model::peft::{Adapter, save_adapter};
use didact_model::{Checkpoint, Decoder, Dtype, LoraConfig, TargetModules};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn python(arguments: &[&Path]) -> String {
    let interpreter = std::env::var("DIDACT_PYTHON").expect("DIDACT_PYTHON names a Python that has transformers");
    let output = Command::new(interpreter)
        .arg(root().join("tests/interop/load_in_transformers.py"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn tensors(checkpoint: &Checkpoint) -> impl Iterator<Item = (String, Vec<usize>, Vec<f32>)> + '_ {
    checkpoint.names().map(|n| (n.to_owned(), checkpoint.shape(n).unwrap().to_vec(), checkpoint.tensor_f32(n).unwrap()))
}

#[test]
#[ignore = "needs DIDACT_PYTHON with transformers"]
fn written_models_compute_the_golden_logits() {
    for arch in ["llama", "qwen2", "qwen3", "gpt2"] {
        let golden = root().join("golden").join(arch);
        for source in [golden.clone(), root().join(format!("golden/gguf/{arch}.gguf"))] {
            let checkpoint = Checkpoint::open(&source).unwrap();
            let dir = tempfile::tempdir().unwrap();
            save_model(dir.path(), checkpoint.config(), tensors(&checkpoint), Dtype::F32).unwrap();
            let printed = python(&[dir.path(), Path::new("--compare"), &golden]);
            assert!(printed.contains("max_abs_difference"), "{printed}");
        }
    }
}

#[test]
#[ignore = "needs DIDACT_PYTHON with transformers and peft"]
fn written_adapters_compute_what_the_merged_model_computes() {
    for arch in ["llama", "qwen2", "gpt2"] {
        let golden = root().join("golden").join(arch);
        let checkpoint = Checkpoint::open(&golden).unwrap();
        let mut decoder = Decoder::load(&checkpoint, &Device::flex().autodiff()).unwrap();
        let lora = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.1,
            target_modules: TargetModules::AllLinear,
            use_rslora: arch == "qwen2",
        };
        decoder.add_lora(&lora, &Streams::new(3)).unwrap();
        for id in decoder.lora().unwrap().branches.iter().map(|b| b.b).collect::<Vec<_>>() {
            let change = |b: &mut [f32]| b.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 17) as f32 / 64.0 - 0.1);
            decoder.parameters_mut().data_mut(id, change);
        }
        let adapter = Adapter::from_decoder(&decoder, Some(golden.display().to_string())).unwrap();
        let (with_adapter, merged) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        save_adapter(with_adapter.path(), decoder.config(), &adapter.config, adapter.pairs.clone()).unwrap();
        try_save_model(merged.path(), checkpoint.config(), adapter.merged_into(&checkpoint), Dtype::F32).unwrap();
        python(&[&golden, Path::new("--adapter"), with_adapter.path(), Path::new("--compare"), merged.path()]);
    }
}
