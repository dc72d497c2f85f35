//! Whole runs of every named recipe on a model of toy size, through the public functions that the program calls.

use didact_core::cancel::Cancel;
use didact_core::fault::{Classify, Fault};
use didact_core::files;
use didact_core::progress::{Reporter, Silent, Table};
use didact_data::train::{TokenizerKind, TokenizerSettings, train_tokenizer};
use didact_methods::{Env, MethodError, Recipe, RunOptions, RunReport, load_recipe, plan, run};
use didact_model::DeviceName;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

#[derive(Debug, thiserror::Error)]
#[error("no model is named like that")]
struct Unknown;

impl Classify for Unknown {
    fn fault(&self) -> Fault {
        Fault::Input
    }
}

fn nowhere(_: &str) -> Result<PathBuf, Box<dyn Classify>> {
    Err(Box::new(Unknown))
}

fn unknown() -> Option<u64> {
    None
}

fn options<'a>(dir: &Path, reporter: &'a dyn Reporter) -> RunOptions<'a> {
    RunOptions {
        run_dir: Some(dir.to_owned()),
        fresh: false,
        force: false,
        env: Env {
            version: "test",
            threads: 1,
            device: DeviceName::default(),
            resolve_model: &nowhere,
            free_memory: &unknown,
            peak_memory: &unknown,
            sandbox: &no_sandbox,
        },
        cancel: Cancel::new(),
        reporter,
    }
}

fn recipe(name: &str, overrides: &[(&str, &str)]) -> Recipe {
    let overrides: Vec<(String, String)> = overrides.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    load_recipe(name, &overrides).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn finished(recipe: &Recipe, options: &RunOptions<'_>) -> RunReport {
    run(recipe, options).unwrap_or_else(|e| panic!("{e}; {:?}", e.hint()))
}

/// Rows of the tiny model's embedding; the tokenizer has at most as many tokens.
const VOCABULARY: usize = 400;

const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
                        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Makes a tokenizer with a chat template in `dir`.
fn tokenizer(dir: &Path) -> PathBuf {
    let at = dir.join("tokenizer");
    if !at.exists() {
        let texts = (0..200).map(|i| format!("sentence number {i} says that {i} is a number . answer with one call"));
        let mut settings = TokenizerSettings::new(TokenizerKind::Bpe, VOCABULARY);
        settings.special_tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).to_vec();
        settings.eos_token = Some("<|im_end|>".into());
        let tokenizer = train_tokenizer(texts, &settings).expect("enough text");
        let tokenizer = tokenizer.with_template(TEMPLATE, "test").expect("a template");
        tokenizer.save(&at).expect("writable");
    }
    at
}

/// A recipe that trains a tiny model from scratch on a text file in `dir`.
fn pretraining(dir: &Path, more: &[(&str, &str)]) -> Recipe {
    let text: Vec<String> = (0..120).map(|i| format!("sentence number {i} says that {i} is a number .")).collect();
    let path = dir.join("notes.txt");
    files::write_atomic(&path, text.join("\n").as_bytes()).expect("a fixture");
    let toml = format!(
        r#"
recipe = "continue-pretraining-text"
precision = "f32"
[model]
tokenizer = "{}"
[model.config]
model_type = "llama"
vocab_size = {VOCABULARY}
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 512
rms_norm_eps = 1e-5
tie_word_embeddings = true
hidden_act = "silu"
rope_theta = 10000.0
[data]
path = "{}"
[train]
max_steps = 12
batch_size = 4
gradient_accumulation_steps = 2
learning_rate = 1e-2
max_seq_len = 64
packing = "concat"
save_steps = 3
[generate]
max_tokens = 4
samples = 1
[eval]
plain_text = false
[export]
dtype = "f32"
"#,
        tokenizer(dir).display(),
        path.display()
    );
    let file = dir.join("mine.toml");
    files::write_atomic(&file, toml.as_bytes()).expect("a fixture");
    recipe(&file.display().to_string(), more)
}

/// A tiny model as a Hugging Face directory.
fn tiny_model(dir: &Path) -> PathBuf {
    let report = finished(&pretraining(dir, &[]), &options(&dir.join("pretraining"), &Silent));
    report.model_dir.expect("models are exported by default")
}

/// Remembers tables' titles.
#[derive(Default)]
struct Titles(Mutex<Vec<String>>);

impl Reporter for Titles {
    fn table(&self, table: &Table) {
        self.0.lock().expect("nobody panicked").push(table.title.clone());
    }
}

#[test]
fn pretraining_from_scratch_lowers_held_out_loss_and_is_not_repeated() {
    let dir = tempfile::tempdir().expect("a directory");
    let recipe = pretraining(dir.path(), &[]);
    let at = dir.path().join("run");
    let planned = plan(&recipe, &options(&at, &Silent)).unwrap_or_else(|e| panic!("{e}"));
    assert!(!at.exists(), "planning writes nothing");
    assert_eq!(planned.steps, 12);
    assert!(planned.stages.iter().all(|s| !s.skipped) && !planned.finished);

    let report = finished(&recipe, &options(&at, &Silent));
    let loss = |m: &didact_methods::stages::evaluate::Metrics| m["held_out/loss"];
    let (before, after) = (loss(&report.metrics_before), loss(&report.metrics_after));
    // A model that knows nothing is as good as a guess among all tokens.
    assert!((before - (VOCABULARY as f64).ln()).abs() < 0.1, "{before}");
    assert!(after < before - 1.0, "{before} to {after}");
    assert!(at.join("report.json").is_file());
    let names: Vec<&str> = report.stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["prepare", "evaluate-before", "train", "export", "evaluate-after"]);

    let again = finished(&recipe, &options(&at, &Silent));
    assert_eq!(again, report, "a finished run gives its report");
    let planned = plan(&recipe, &options(&at, &Silent)).unwrap_or_else(|e| panic!("{e}"));
    assert!(planned.finished && planned.stages.iter().all(|s| s.skipped));

    let other = pretraining(dir.path(), &[("train.max_steps", "13")]);
    for error in [
        run(&other, &options(&at, &Silent)).expect_err("another run"),
        plan(&other, &options(&at, &Silent)).expect_err("another run"),
    ] {
        assert_eq!(error.fault(), Fault::Input, "{error}");
        assert!(error.to_string().contains("holds another run"), "{error}");
    }
}

#[test]
fn the_same_recipe_gives_the_same_artifacts_elsewhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let recipe = pretraining(dir.path(), &[]);
    let contents = |at: &str| -> Vec<String> {
        let report = finished(&recipe, &options(&dir.path().join(at), &Silent));
        report.stages.into_iter().map(|s| s.content).collect()
    };
    assert_eq!(contents("one"), contents("two"));
}

#[test]
fn sft_trains_an_adapter_on_chats_and_exports_model_and_adapter() {
    let dir = tempfile::tempdir().expect("a directory");
    let model = tiny_model(dir.path());
    let rows: Vec<String> = (0..40)
        .map(|i| {
            format!(
                r#"{{"messages": [{{"role": "user", "content": "say {i}"}}, {{"role": "assistant", "content": "number {i}"}}]}}"#
            )
        })
        .collect();
    let path = dir.path().join("chats.jsonl");
    files::write_atomic(&path, rows.join("\n").as_bytes()).expect("a fixture");
    let overrides = [
        ("model.path", model.to_str().expect("utf-8")),
        ("data.path", path.to_str().expect("utf-8")),
        ("precision", "f32"),
        ("train.max_steps", "4"),
        ("train.batch_size", "4"),
        ("train.gradient_accumulation_steps", "1"),
        ("train.max_seq_len", "128"),
        ("train.lora.rank", "2"),
        ("generate.max_tokens", "4"),
        ("eval.plain_text", "false"),
    ];
    let titles = Titles::default();
    let report = finished(&recipe("sft", &overrides), &options(&dir.path().join("run"), &titles));
    assert!(report.metrics_after["held_out/loss"] < report.metrics_before["held_out/loss"], "{report:?}");
    let adapter = report.adapter_dir.clone().expect("an adapter was trained");
    for file in ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"] {
        assert!(adapter.join(file).is_file(), "{file}");
    }
    let exported = report.model_dir.clone().expect("the model is exported too");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(exported.join(file).is_file(), "{file}");
    }
    assert_eq!(report.samples.len(), 2, "5 % of 40 rows are held out and shown");
    assert_eq!(report.ledger["sources"]["chats.jsonl"]["examples"], 38);
    let titles = titles.0.lock().expect("nobody panicked");
    assert!(titles.iter().any(|t| t.contains("loss")), "{titles:?}");
}

/// The recipe `dpo` over 40 pairs, for a tiny model.
fn dpo(dir: &Path, model: &Path, more: &[(&str, &str)]) -> Recipe {
    let rows: Vec<String> = (0..40)
        .map(|i| {
            format!(
                r#"{{"prompt": [{{"role": "user", "content": "say {i}"}}],
                "chosen": [{{"role": "assistant", "content": "number {i}"}}], "rejected": [{{"role": "assistant", "content": "answer {i} one"}}]}}"#
            )
            .replace('\n', " ")
        })
        .collect();
    let path = dir.join("pairs.jsonl");
    files::write_atomic(&path, rows.join("\n").as_bytes()).expect("a fixture");
    let mut overrides = vec![
        ("model.path", model.to_str().expect("utf-8")),
        ("data.path", path.to_str().expect("utf-8")),
        ("precision", "f32"),
        ("train.max_steps", "8"),
        ("train.batch_size", "4"),
        ("train.gradient_accumulation_steps", "2"),
        ("train.learning_rate", "1e-2"),
        ("train.max_seq_len", "128"),
        ("train.lora.rank", "2"),
        ("train.save_steps", "3"),
        ("generate.max_tokens", "4"),
        ("eval.plain_text", "false"),
    ];
    overrides.extend(more);
    recipe("dpo", &overrides)
}

#[test]
fn dpo_learns_the_order_of_held_out_pairs_by_every_loss() {
    let dir = tempfile::tempdir().expect("a directory");
    let model = tiny_model(dir.path());
    for (loss, beta) in [("dpo", "0.5"), ("ipo", "0.5"), ("simpo", "2.5"), ("orpo", "0.5")] {
        let recipe = dpo(dir.path(), &model, &[("preference.loss", loss), ("preference.beta", beta)]);
        let at = dir.path().join(loss);
        let planned = plan(&recipe, &options(&at, &Silent)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(planned.steps, 8);
        let report = finished(&recipe, &options(&at, &Silent));
        let (before, after) = (&report.metrics_before, &report.metrics_after);
        assert!(after["held_out_pairs/loss"] < before["held_out_pairs/loss"], "{loss}: {before:?} to {after:?}");
        assert!(after["held_out_pairs/accuracy"] > 0.5, "{loss}: {after:?}");
        let has_reference = matches!(loss, "dpo" | "ipo");
        assert_eq!(before.contains_key("held_out_pairs/accuracy"), !has_reference, "{loss}");
        let reference = at.join("stages").join("03-train").join("reference.json");
        assert_eq!(reference.is_file(), has_reference, "{loss}");
        assert_eq!(report.ledger["sources"]["pairs.jsonl"]["examples"], 38);
        assert_eq!(report.samples.len(), 2);
        assert_eq!(report.samples[0].expected.split(' ').next(), Some("number"), "the better answer is shown");
        assert!(report.tables().iter().any(|t| t.title == "held-out pairs"));
        assert!(report.model_dir.is_some() && report.adapter_dir.is_some());
    }
}

#[test]
fn dpo_that_was_stopped_goes_on_to_the_same_bits() {
    let dir = tempfile::tempdir().expect("a directory");
    let model = tiny_model(dir.path());
    let recipe = dpo(dir.path(), &model, &[]);
    struct Stopper(Cancel);
    impl Reporter for Stopper {
        fn step(&self, report: &didact_core::progress::StepReport) {
            if report.step == 4 {
                self.0.cancel();
            }
        }
    }
    let at = dir.path().join("run");
    let cancel = Cancel::new();
    let stopper = Stopper(cancel.clone());
    let mut stopped = options(&at, &stopper);
    stopped.cancel = cancel;
    let error = run(&recipe, &stopped).expect_err("stopped");
    assert!(matches!(error, MethodError::Stopped { .. }), "{error}");
    let report = finished(&recipe, &options(&at, &Silent));
    let straight = finished(&recipe, &options(&dir.path().join("straight"), &Silent));
    let contents = |r: &RunReport| r.stages.iter().map(|s| s.content.clone()).collect::<Vec<_>>();
    assert_eq!(contents(&report), contents(&straight), "stopping changes no bit");
}

#[test]
fn pairs_and_rows_to_imitate_are_not_confused() {
    let dir = tempfile::tempdir().expect("a directory");
    let model = tiny_model(dir.path());
    // Writes the pairs.
    let pairs = dpo(dir.path(), &model, &[]);
    let path = dir.path().join("pairs.jsonl");
    let given = [
        ("model.path", model.to_str().expect("utf-8")),
        ("data.path", path.to_str().expect("utf-8")),
        ("train.max_seq_len", "128"),
    ];
    let error = run(&recipe("sft", &given), &options(&dir.path().join("sft"), &Silent)).expect_err("pairs");
    assert!(error.to_string().contains("pair of answers"), "{error}");
    assert_eq!(error.fault(), Fault::Input);
    drop(pairs);
    let chats = dir.path().join("chats.jsonl");
    files::write_atomic(&chats, br#"{"messages": [{"role": "assistant", "content": "x"}]}"#).expect("a fixture");
    let recipe = dpo(dir.path(), &model, &[("data.path", chats.to_str().expect("utf-8"))]);
    let error = run(&recipe, &options(&dir.path().join("dpo"), &Silent)).expect_err("no pairs");
    assert!(error.to_string().contains("chosen"), "{error}");
    for (key, value) in [
        ("preference.beta", "0"),
        ("preference.label_smoothing", "0.5"),
        ("train.packing", "concat"),
        ("train.eval_steps", "2"),
        ("data.train_on", "all"),
        ("data.schema", "messages"),
    ] {
        let overrides = [("data.path".to_owned(), "x".to_owned()), (key.to_owned(), value.to_owned())];
        let error = load_recipe("dpo", &overrides).expect_err("refused").to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn quickstart_runs_on_a_tiny_model() {
    let dir = tempfile::tempdir().expect("a directory");
    let model = tiny_model(dir.path());
    let overrides = [
        ("model.path", model.to_str().expect("utf-8")),
        ("precision", "f32"),
        ("toolworld.train_examples", "16"),
        ("toolworld.test_examples", "6"),
        ("train.max_steps", "2"),
        ("train.batch_size", "4"),
        ("train.max_seq_len", "400"),
        ("train.lora.rank", "2"),
        ("generate.max_tokens", "4"),
        ("eval.plain_text", "false"),
    ];
    let recipe = recipe("quickstart", &overrides);
    let at = dir.path().join("run");
    let planned = plan(&recipe, &options(&at, &Silent)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(planned.steps, 2);
    let report = finished(&recipe, &options(&at, &Silent));
    for set in ["held_out_tools", "trained_tools"] {
        let categories = ["exact", "format", "tool", "argument_name", "missing", "extra", "value"];
        let sum: f64 = categories.iter().map(|c| report.metrics_after[&format!("{set}/{c}")]).sum();
        assert!((sum - 1.0).abs() < 1e-12, "every answer has one category");
    }
    let titles: Vec<String> = report.tables().into_iter().map(|t| t.title).collect();
    assert_eq!(titles[0], "right tool calls");
    let answers = files::read_to_string(at.join("stages/06-evaluate-after/answers.jsonl")).expect("judged answers");
    assert_eq!(answers.lines().count(), 12);
}

#[test]
fn a_stop_is_no_failure_and_the_same_call_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let recipe = pretraining(dir.path(), &[]);
    let at = dir.path().join("run");
    /// Asks for a stop after the third step.
    struct Stopper(Cancel);
    impl Reporter for Stopper {
        fn step(&self, report: &didact_core::progress::StepReport) {
            if report.step == 3 {
                self.0.cancel();
            }
        }
    }
    let cancel = Cancel::new();
    let stopper = Stopper(cancel.clone());
    let mut stopped = options(&at, &stopper);
    stopped.cancel = cancel;
    let error = run(&recipe, &stopped).expect_err("stopped");
    assert!(matches!(error, MethodError::Stopped { .. }), "{error}");
    assert_eq!(error.fault(), Fault::Stopped);
    let titles = Titles::default();
    let report = finished(&recipe, &options(&at, &titles));
    assert!(
        titles.0.lock().expect("nobody panicked").iter().any(|t| t.contains("ledger")),
        "the ledger is shown again"
    );
    let straight = finished(&recipe, &options(&dir.path().join("straight"), &Silent));
    let contents = |r: &RunReport| r.stages.iter().map(|s| s.content.clone()).collect::<Vec<_>>();
    assert_eq!(contents(&report), contents(&straight), "stopping changes no bit");
}

#[test]
fn too_little_memory_is_refused_before_loading() {
    let dir = tempfile::tempdir().expect("a directory");
    let recipe = pretraining(dir.path(), &[]);
    let none = || Some(1000);
    let mut poor = options(&dir.path().join("run"), &Silent);
    poor.env.free_memory = &none;
    for error in [plan(&recipe, &poor).expect_err("refused"), run(&recipe, &poor).expect_err("refused")] {
        assert_eq!(error.fault(), Fault::Input, "{error}");
        assert!(error.to_string().contains("of memory, and 0.00 GB are free"), "{error}");
    }
    poor.force = true;
    assert!(plan(&recipe, &poor).is_ok());
}

#[test]
fn a_model_that_nobody_knows_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let recipe = recipe("quickstart", &[]);
    let error = run(&recipe, &options(&dir.path().join("run"), &Silent)).expect_err("unknown");
    assert_eq!(error.to_string(), "cannot get the model `smollm2-135m-instruct`: no model is named like that");
}

#[test]
fn rows_longer_than_the_models_context_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let recipe = pretraining(dir.path(), &[("train.max_seq_len", "513")]);
    let error = run(&recipe, &options(&dir.path().join("run"), &Silent)).expect_err("refused");
    assert_eq!(error.to_string(), "`train.max_seq_len` is 513, the context of `from scratch` is 512 tokens");
    assert_eq!(error.fault(), Fault::Input);
}

#[test]
fn a_bad_row_stops_the_run_by_name_or_is_skipped_and_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let _ = pretraining(dir.path(), &[]);
    let rows: Vec<String> = (0..30)
        .map(|i| if i == 11 { "{\"text\": 3}".into() } else { format!("{{\"text\": \"the row with number {i}\"}}") })
        .collect();
    let path = dir.path().join("rows.jsonl");
    files::write_atomic(&path, rows.join("\n").as_bytes()).expect("a fixture");
    let data = ("data.path", path.to_str().expect("utf-8"));
    let error = run(&pretraining(dir.path(), &[data]), &options(&dir.path().join("a"), &Silent)).expect_err("bad");
    assert_eq!(error.fault(), Fault::Input);
    assert!(error.to_string().contains("rows.jsonl") && error.to_string().contains("12"), "{error}");
    let skipping = pretraining(dir.path(), &[data, ("data.on_bad_row", "skip"), ("train.max_steps", "1")]);
    let report = finished(&skipping, &options(&dir.path().join("b"), &Silent));
    let notes = files::read_to_string(dir.path().join("b/stages/01-prepare/notes.json")).expect("notes");
    let notes: serde_json::Value = serde_json::from_str(&notes).expect("JSON");
    assert_eq!(notes["bad_rows"]["count"], 1);
    assert_eq!(notes["rows"], 30);
    assert_eq!(report.training.steps, 1);
}

#[test]
fn hyperfitting_learns_snippets_by_heart_and_compares_what_is_written_before_and_after() {
    let dir = tempfile::tempdir().expect("a directory");
    let model = tiny_model(dir.path());
    // Long enough for 24 learned tokens, and one that is not.
    let words = ["sentence", "number", "says", "that", "is", "a", "answer", "with", "one", "call"];
    let document = |i: usize| (0..40).map(|j| words[(i * 7 + j * (i % 3 + 1)) % 10]).collect::<Vec<_>>().join(" ");
    let mut rows: Vec<String> = (0..30).map(|i| format!("{{\"text\": \"{i} {}\"}}", document(i))).collect();
    rows.push(r#"{"text": "a number"}"#.into());
    let path = dir.path().join("documents.jsonl");
    files::write_atomic(&path, rows.join("\n").as_bytes()).expect("a fixture");
    let overrides = |more: &[(&'static str, &'static str)]| {
        let mut all = vec![
            ("model.path", model.to_str().expect("utf-8")),
            ("data.path", path.to_str().expect("utf-8")),
            ("precision", "f32"),
            ("hyperfit.snippets", "8"),
            ("hyperfit.held_out", "5"),
            ("hyperfit.prompts", "4"),
            ("hyperfit.prompt_tokens", "6"),
            ("hyperfit.continuation_tokens", "20"),
            ("train.max_seq_len", "24"),
            ("train.batch_size", "4"),
            ("train.learning_rate", "2e-2"),
            ("train.epochs", "200"),
            ("train.target_loss", "0.1"),
            ("generate.max_tokens", "4"),
            ("eval.plain_text", "false"),
        ];
        all.extend(more);
        recipe("hyperfitting", &all)
    };
    let at = dir.path().join("run");
    let planned = plan(&overrides(&[]), &options(&at, &Silent)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(planned.stages.last().map(|s| s.name.as_str()), Some("diversity"));
    let report = finished(&overrides(&[]), &options(&at, &Silent));
    assert_eq!(report.ledger["sources"]["documents.jsonl"]["examples"], 8);
    let loss = report.training.final_loss.expect("has trained");
    assert!(loss <= 0.1 && report.training.steps < 400, "{loss} after {} steps", report.training.steps);
    let names: Vec<&str> = report.diversity.iter().map(|way| way.name.as_str()).collect();
    let expected = [
        "original, greedy",
        "original, top-p 0.9",
        "original, penalty 1.2",
        "hyperfitted, greedy",
        "hyperfitted, no citations",
    ];
    assert_eq!(names, expected);
    let [original, sampled, _, fitted, blocked] = &report.diversity[..] else { panic!("five ways") };
    assert_eq!(original.sureness, sampled.sureness, "a way to choose changes no prediction");
    assert!(fitted.sureness.entropy < original.sureness.entropy && fitted.sureness != original.sureness);
    assert!(blocked.diversity.overlap_max <= 5.0, "{:?}", blocked.diversity);
    assert!(fitted.diversity.overlap_max > 5.0, "what is learned by heart is cited: {:?}", fitted.diversity);
    assert!(report.diversity.iter().all(|way| way.diversity.tokens == 20.0));
    let texts = files::read_to_string(at.join("stages/06-diversity/continuations.jsonl")).expect("written");
    assert_eq!(texts.lines().count(), 4);
    let row: serde_json::Value = serde_json::from_str(texts.lines().next().expect("a line")).expect("JSON");
    assert!(names.iter().all(|name| row[*name].is_string()) && row["prompt"].is_string());
    assert!(report.tables().iter().any(|table| table.title.starts_with("continuations")));
    assert_eq!(finished(&overrides(&[]), &options(&at, &Silent)), report, "a finished run gives its report");

    let error = run(&overrides(&[("train.max_seq_len", "400")]), &options(&dir.path().join("long"), &Silent));
    let error = error.expect_err("no document is that long");
    assert_eq!(error.fault(), Fault::Input);
    assert!(error.to_string().contains("0 different documents of at least 401 tokens, expected 5"), "{error}");
}

/// These runs verify nothing.
fn no_sandbox() -> Result<didact_verify::sandbox::Sandbox, didact_verify::sandbox::SandboxError> {
    Err(didact_verify::sandbox::SandboxError::Unavailable { reasons: Vec::new() })
}
