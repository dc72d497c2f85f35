//! What the tests of the binary share: a tiny model with a tokenizer and chat template, data, and ways to call `didact`.
#![expect(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test program uses a part of this module")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use didact_core::files;
use serde_json::{Value, json};

/// A chat template with the marks that say what the model writes.
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}\
{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A directory with everything that a run needs, and the runs themselves.
pub(crate) struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// A model of two layers (`golden/llama`) with a tokenizer made by `didact tokenizer train`, and 24 chats.
    pub(crate) fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/llama");
        files::create_dir_all(world.path("model")).unwrap();
        for name in ["config.json", "model.safetensors"] {
            files::copy_atomic(golden.join(name), world.path("model").join(name)).unwrap();
        }
        world.write("template.jinja", TEMPLATE);
        let mut rows = String::new();
        for i in 0..24 {
            let (user, answer) = (format!("add {i}"), format!("{} is it{}", i + 1, "!".repeat(i % 5)));
            let message = |role, content| json!({"role": role, "content": content});
            let row = json!({"messages": [message("user", &user), message("assistant", &answer)]});
            rows.push_str(&row.to_string());
            rows.push('\n');
        }
        world.write("chats.jsonl", &rows);
        world.write("corpus.txt", "nothing that repeats");
        let to = [
            "tokenizer",
            "train",
            "corpus.txt",
            "--vocab",
            "260",
            "--to",
            "model",
            "--chat-template",
            "template.jinja",
        ];
        let special = ["--special", "<|im_start|>", "--special", "<|im_end|>", "--eos", "<|im_end|>"];
        world.ok(&[&to[..], &special].concat());
        world
    }

    /// Puts a LoRA adapter of the model there.
    pub(crate) fn adapter(&self, name: &str) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/peft/llama");
        files::create_dir_all(self.path(name)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            files::copy_atomic(golden.join(file), self.path(name).join(file)).unwrap();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        files::write_atomic(self.path(name), text.as_bytes()).unwrap();
    }

    /// `didact` in this directory, with nothing of the surrounding environment that it would listen to.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("didact"));
        command.args(arguments).current_dir(self.dir.path());
        for name in
            ["DIDACT_FAIL", "DIDACT_CPU", "DIDACT_LOG", "RAYON_NUM_THREADS", "OMP_NUM_THREADS", "COLUMNS", "NO_COLOR"]
        {
            command.env_remove(name);
        }
        // What commands keep for later stays in this directory.
        command.env("DIDACT_CACHE", self.path(".cache"));
        command
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; gives its standard output.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command with `--json`, which must end with `code` and print one document.
    pub(crate) fn json(&self, arguments: &[&str], code: i32) -> Value {
        let output = self.output(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// Runs a command that must be refused with `code`; gives its standard error.
    pub(crate) fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.output(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{arguments:?}: an error prints nothing to stdout");
        stderr
    }
}

/// `didact run sft` on the tiny model, six steps of LoRA with dropout, two micro-batches each, a checkpoint every two.
pub(crate) const SFT: [&str; 33] = [
    "run",
    "sft",
    "--set",
    "model.path=model",
    "--set",
    "data.path=chats.jsonl",
    "--set",
    "data.held_out=0.2",
    "--set",
    "train.max_steps=6",
    "--set",
    "train.batch_size=4",
    "--set",
    "train.gradient_accumulation_steps=2",
    "--set",
    "train.save_steps=2",
    "--set",
    "train.max_seq_len=48",
    "--set",
    "train.lora.rank=4",
    "--set",
    "train.lora.dropout=0.2",
    "--set",
    "train.packing=none",
    "--set",
    "generate.max_tokens=4",
    "--set",
    "generate.samples=1",
    "--set",
    "eval.plain_text=false",
    "--set",
    "precision=f32",
    "-q",
];

/// The SFT command in a run directory, with more arguments.
pub(crate) fn sft<'a>(run_dir: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&SFT[..], &["--run-dir", run_dir], more].concat()
}

/// Every file of a run that must repeat, by relative path: artifacts and metrics, without clocks.
pub(crate) fn lasting_files(run_dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn collect(dir: &Path, root: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for path in files::list_dir(dir).unwrap() {
            if path.is_dir() {
                collect(&path, root, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), files::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(&run_dir.join("stages"), run_dir, &mut found);
    found.insert("metrics.jsonl".into(), files::read(run_dir.join("metrics.jsonl")).unwrap());
    found
}

/// Says which files differ, rather than printing them.
pub(crate) fn assert_same_files(run_dir: &Path, expected: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
    let found = lasting_files(run_dir);
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected), "{what}: other files");
    let different: Vec<_> =
        found.iter().filter(|(path, bytes)| expected[*path] != **bytes).map(|(path, _)| path).collect();
    assert!(different.is_empty(), "{what}: other bytes in {different:?}");
}
