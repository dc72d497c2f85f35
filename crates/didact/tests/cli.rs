//! The command line: what is refused and how, what `--json` holds, what is left behind.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{World, lasting_files, sft};
use didact_core::files;
use serde_json::Value;

#[test]
fn wrong_usage_ends_with_2_and_says_what_would_do() {
    let world = World::new();
    let cases: [(&[&str], &[&str]); 17] = [
        (&["frobnicate"], &["frobnicate"]),
        (&["run"], &["<RECIPE>"]),
        (&["run", "quikstart"], &["quikstart", "`quickstart`"]),
        (&["run", "nowhere.toml"], &["nowhere.toml"]),
        (&["run", "sft", "--set", "x"], &["`--set x`", "hint: write it as"]),
        (&["run", "sft", "--set", "train.lerning_rate=1"], &["lerning_rate", "learning_rate"]),
        (&["doctor", "--device", "rocm:0"], &["no device `rocm`", "--features rocm", "--device cpu"]),
        (&["doctor", "--device", "tpu"], &["expected cpu, cuda[:i]"]),
        (&["doctor", "--threads", "0"], &["--threads"]),
        (&["reproduce"], &["<METHOD>"]),
        (&["reproduce", "nonesuch"], &["there is no method `nonesuch`", "hint: `didact methods` lists all"]),
        (&["reproduce", "nonesuch", "--size", "l"], &["'l'", "s, m"]),
        (&["reproduce", "all", "--seed", "1"], &["hint: give them as `--seeds 1,2,3`"]),
        (&["reproduce", "--render", "chats.jsonl"], &["chats.jsonl"]),
        (&["generate", "--model", "model"], &["--prompt", "--input"]),
        (&["recipes", "show", "sfd"], &["sfd", "sft"]),
        (&["runs", "show", "nothing"], &["there is no run `nothing`", "hint: see `didact runs list`"]),
    ];
    for (arguments, texts) in cases {
        let stderr = world.refused(arguments, 2);
        assert!(stderr.starts_with("error: "), "{arguments:?}: {stderr}");
        for text in texts {
            assert!(stderr.contains(text), "{arguments:?} says `{text}`: {stderr}");
        }
        let document = world.json(arguments, 2);
        assert_eq!(document["exit_code"], 2);
        assert!(!document["error"].as_str().unwrap().starts_with("error"), "{document}");
    }
}

#[test]
fn an_unavailable_kernel_level_is_refused() {
    let world = World::new();
    let output = world.command(&["doctor"]).env("DIDACT_CPU", "avx1024").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("avx1024") && stderr.contains("hint: unset DIDACT_CPU"), "{stderr}");
}

#[test]
fn global_options_stand_before_or_after_the_verb_and_underscores_are_dashes() {
    let world = World::new();
    for arguments in [["--json", "--threads", "1", "doctor"], ["doctor", "--json", "--threads", "1"]] {
        let doctor: Value = serde_json::from_str(&world.ok(&arguments)).unwrap();
        assert_eq!(doctor["cpu"]["threads"], 1);
    }
    let output = world.command(&["doctor", "--json"]).env("OMP_NUM_THREADS", "3,2").output().unwrap();
    let doctor: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(doctor["cpu"]["threads"], 3);
    let output =
        world.command(&["doctor", "--json"]).env("OMP_NUM_THREADS", "3").env("RAYON_NUM_THREADS", "2").output();
    let doctor: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    assert_eq!(doctor["cpu"]["threads"], 2);
    let plan = world.json(&sft("planned", &["--dry_run"]), 0);
    assert_eq!(plan["recipe"], "sft");
}

#[test]
fn doctor_says_what_is_there_and_what_absence_costs() {
    let world = World::new();
    let doctor = world.json(&["doctor"], 0);
    assert!(doctor["cpu"]["levels"].as_array().unwrap().contains(&"portable".into()));
    let devices = doctor["devices"].as_array().unwrap();
    let available: Vec<_> = devices.iter().filter(|d| d["available"] == true).map(|d| &d["name"]).collect();
    assert_eq!(available, ["cpu"]);
    assert!(doctor["memory"]["free_bytes"].as_u64().unwrap() > 0);
    assert!(doctor["tools"].as_array().unwrap().iter().all(|tool| tool["without_it"].is_string()));
    let secret = world.command(&["doctor"]).env("HF_TOKEN", "hf_secret").output().unwrap();
    let text = String::from_utf8(secret.stdout).unwrap();
    assert!(text.contains("HF_TOKEN") && !text.contains("hf_secret"), "{text}");
}

#[test]
fn recipes_are_listed_shown_and_copied_once() {
    let world = World::new();
    let list = world.json(&["recipes", "list"], 0);
    let names: Vec<_> = list.as_array().unwrap().iter().map(|recipe| recipe["name"].as_str().unwrap()).collect();
    for name in ["quickstart", "sft", "continue-pretraining-text"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let shown = world.ok(&["recipes", "show", "sft"]);
    assert!(shown.contains("recipe = \"sft\""), "{shown}");
    world.ok(&["recipes", "copy", "sft", "mine.toml"]);
    assert_eq!(files::read_to_string(world.path("mine.toml")).unwrap().trim_end(), shown.trim_end());
    let stderr = world.refused(&["recipes", "copy", "sft", "mine.toml"], 2);
    assert!(stderr.contains("`mine.toml` exists already"), "{stderr}");
}

#[test]
fn a_dry_run_prints_plan_ledger_and_cost_and_leaves_nothing() {
    let world = World::new();
    let before = files::list_dir(world.path("")).unwrap();
    let plan = world.json(&sft("planned", &["--dry-run"]), 0);
    assert_eq!(plan["steps"], 6);
    let names: Vec<_> = plan["stages"].as_array().unwrap().iter().map(|stage| stage["name"].clone()).collect();
    assert!(names.contains(&"train".into()), "{names:?}");
    assert!(plan["predicted_memory_bytes"].as_u64().unwrap() > 0);
    assert!(plan["ledger"].is_object());
    let text = world.ok(&sft("planned", &["--dry-run"]));
    for part in ["loss ledger", "assistant", "peak memory", "optimiser steps"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(files::list_dir(world.path("")).unwrap(), before);
}

#[test]
fn a_run_says_what_it_did_and_a_second_one_finds_it_finished() {
    let world = World::new();
    let report = world.json(&sft("run", &[]), 0);
    assert_eq!((&report["status"], &report["run_dir"]), (&"done".into(), &"run".into()));
    for key in ["stages", "metrics_before", "metrics_after", "wall_s", "ledger"] {
        assert!(!report[key].is_null(), "{key}: {report}");
    }
    let loss = |of: &str| report[of]["held_out/loss"].as_f64().unwrap();
    assert!(loss("metrics_after") < loss("metrics_before"), "it learned: {report}");
    let files_then = lasting_files(&world.path("run"));
    let again = world.json(&sft("run", &[]), 0);
    assert_eq!(again, report, "the result of a finished run is printed, and no work done");
    assert_eq!(lasting_files(&world.path("run")), files_then);
    let list = world.json(&["runs", "list", "."], 0);
    assert_eq!(list[0]["status"], "done");
    let shown = world.json(&["runs", "show", "run"], 0);
    assert_eq!(shown["settings"]["train"]["max_steps"], 6);
    assert!(shown["last_metrics"]["train"]["train/loss"]["step"].as_u64() == Some(6), "{shown}");
    let text = world.ok(&["runs", "show", "run"]);
    assert!(text.contains("held-out rows") && text.contains("train.max_steps"), "{text}");
    let events: Vec<_> = files::list_dir(world.path("run/tensorboard/train")).unwrap();
    assert_eq!(events.len(), 1);

    let stderr = world.refused(&sft("run", &["--set", "train.learning_rate=0.5", "--seed", "9"]), 2);
    assert!(
        stderr.contains("train.learning_rate") && stderr.contains("seed") && stderr.contains("--fresh"),
        "{stderr}"
    );
    world.ok(&sft("run", &["--set", "train.max_steps=2", "--fresh"]));
    assert!(world.path("run.old-1/report.json").is_file(), "the old run is kept");
    // What was exported is a model that the other commands take.
    let exported = report["model_dir"].as_str().unwrap().replacen("run", "run.old-1", 1);
    let answer = world.json(&["generate", "--model", &exported, "--prompt", "add 3", "--chat", "--max-tokens", "3"], 0);
    assert!(answer["completions"][0]["tokens"].as_u64().unwrap() <= 3);
}

#[test]
fn people_see_progress_on_stderr_and_tables_on_stdout() {
    let world = World::new();
    let arguments: Vec<_> = sft("run", &[]).into_iter().filter(|argument| *argument != "-q").collect();
    let output = world.output(&arguments);
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.contains("loss ledger") && stdout.contains("run directory: run"), "{stdout}");
    assert!(stderr.contains("train step 1/6  loss ") && stderr.contains("train step 6/6"), "{stderr}");
    assert!(stderr.contains("tokens/s") && stderr.contains(" left") && stderr.contains("  lr "), "{stderr}");
    assert!(!stdout.contains('\x1b') && !stderr.contains('\x1b'), "no colours into a pipe");
    let quiet = world.output(&sft("quiet", &[]));
    assert_eq!(String::from_utf8(quiet.stderr).unwrap(), "", "nothing with -q");
}

#[test]
fn a_second_process_is_refused_while_one_works() {
    let world = World::new();
    let long = sft("run", &["--set", "train.max_steps=400"]);
    let mut first = world.command(&long).stdout(std::process::Stdio::null()).spawn().unwrap();
    while !world.path("run/metrics.jsonl").exists() {
        std::thread::yield_now();
    }
    let stderr = world.refused(&long, 2);
    let status = world.json(&["runs", "show", "run"], 0)["status"].clone();
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(stderr.contains(&format!("`run` is in use by process {}", first.id())), "{stderr}");
    assert_eq!(status, "running");
}

#[test]
fn bad_models_are_refused_naming_file_and_cause() {
    let world = World::new();
    let model = world.path("model");
    let weights = files::read(model.join("model.safetensors")).unwrap();
    let config = files::read_to_string(model.join("config.json")).unwrap();
    let generate = ["generate", "--model", "model", "--prompt", "x", "--max-tokens", "1"];
    world.ok(&generate);

    // Header cut, data cut, and a bit flipped in the header.
    for (bytes, what) in [(&weights[..100], "cut header"), (&weights[..weights.len() - 8], "cut data")] {
        files::write_atomic(model.join("model.safetensors"), bytes).unwrap();
        let stderr = world.refused(&generate, 2);
        assert!(stderr.contains("model.safetensors"), "{what}: {stderr}");
    }
    let mut flipped = weights.clone();
    flipped[9] ^= 0x80;
    files::write_atomic(model.join("model.safetensors"), &flipped).unwrap();
    assert!(world.refused(&generate, 2).contains("model.safetensors"));
    files::write_atomic(model.join("model.safetensors"), b"").unwrap();
    assert!(world.refused(&generate, 2).contains("model.safetensors"));
    files::write_atomic(model.join("model.safetensors"), &weights).unwrap();

    let changes = [
        ("\"vocab_size\": 260", "\"vocab_size\": 261", "embed_tokens"),
        ("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"", "mamba"),
        ("\"rope_type\": \"default\"", "\"rope_type\": \"longrope\"", "longrope"),
        ("\"hidden_size\"", "\"hidden_sighs\"", "hidden_size"),
    ];
    for (from, to, text) in changes {
        assert!(config.contains(from), "{from}");
        world.write("model/config.json", &config.replace(from, to));
        let stderr = world.refused(&generate, 2);
        assert!(stderr.contains(text), "{to}: {stderr}");
    }
    world.write("model/config.json", &config);
    // A shard that is not there.
    let index = "{\"metadata\": {}, \"weight_map\": {\"model.norm.weight\": \"model-00002-of-00002.safetensors\"}}";
    files::remove_file(model.join("model.safetensors")).unwrap();
    world.write("model/model.safetensors.index.json", index);
    let stderr = world.refused(&generate, 2);
    assert!(stderr.contains("model-00002-of-00002.safetensors"), "{stderr}");

    let gguf = files::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden/gguf/llama.gguf")).unwrap();
    for length in [0, 3, 20, gguf.len() / 3, gguf.len() - 1] {
        files::write_atomic(world.path("cut.gguf"), &gguf[..length]).unwrap();
        let stderr = world.refused(&["model", "info", "cut.gguf"], 2);
        assert!(stderr.contains("cut.gguf"), "{length}: {stderr}");
    }
    assert!(world.refused(&["model", "info", "not/there"], 2).contains("not/there"));
}

#[test]
fn bad_data_is_refused_naming_file_row_and_cause() {
    let world = World::new();
    let good = files::read_to_string(world.path("chats.jsonl")).unwrap();
    let rows: Vec<&str> = good.lines().collect();
    let cases = [
        ("{\"messages\": [", "row 3"),
        ("{\"text\": \"x\"}", "row 3"),
        ("{\"messages\": [{\"role\": \"user\"}]}", "row 3"),
        ("[1, 2]", "row 3"),
        ("{\"messages\": [{\"role\": \"wizard\", \"content\": \"x\"}]}", "row 3"),
    ];
    for (bad, place) in cases {
        let mut changed = rows.clone();
        changed[2] = bad;
        world.write("bad.jsonl", &changed.join("\n"));
        let arguments = sft("bad", &["--set", "data.path=bad.jsonl", "--fresh"]);
        let stderr = world.refused(&arguments, 2);
        assert!(stderr.contains("bad.jsonl") && stderr.contains(place), "{bad}: {stderr}");
        let check = world.json(&["data", "check", "bad.jsonl"], 3);
        assert_eq!((check["rows"].as_u64(), check["problems"][0]["row"].as_u64()), (Some(24), Some(3)), "{check}");
        let report = world.json(&[&arguments[..], &["--set", "data.on_bad_row=skip"]].concat(), 0);
        assert_eq!(report["status"], "done");
    }
    world.write("empty.jsonl", "");
    for path in ["empty.jsonl", "nowhere.jsonl", "nothing-*.jsonl"] {
        let stderr = world.refused(&sft("bad2", &["--set", &format!("data.path={path}")]), 2);
        assert!(stderr.contains(path), "{stderr}");
        assert!(!world.path("bad2/report.json").exists());
    }
    world.ok(&["data", "check", "chats.jsonl"]);
}

#[test]
fn a_failing_template_and_unrendered_fields_are_refused_by_name() {
    let world = World::new();
    world.write("model/chat_template.jinja", "{{ raise_exception('no chats here') }}");
    let stderr = world.refused(&sft("template", &[]), 2);
    assert!(stderr.contains("no chats here") && stderr.contains("chats.jsonl"), "{stderr}");
    world.write("model/chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor");
    let stderr = world.refused(&sft("template", &[]), 2);
    assert!(stderr.contains("chat_template.jinja"), "{stderr}");

    let world = World::new();
    let chats = files::read_to_string(world.path("chats.jsonl")).unwrap();
    let tools = ",\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {}}}]}\n";
    world.write("tools.jsonl", &chats.replace("}\n", tools));
    let stderr = world.refused(&sft("tools", &["--set", "data.path=tools.jsonl"]), 2);
    assert!(stderr.contains("`tools`"), "{stderr}");
}

#[test]
fn too_little_memory_is_an_error_before_loading_unless_forced() {
    let world = World::new();
    let config = files::read_to_string(world.path("model/config.json")).unwrap();
    let head = "recipe = \"sft\"\n[model]\ntokenizer = \"model\"\n[model.config]\n";
    let Value::Object(map) = serde_json::from_str(&config).unwrap() else { panic!("an object") };
    let mut table = String::new();
    for (key, value) in map.iter().filter(|(key, value)| value.is_number() && *key != "bos_token_id") {
        // Half a terabyte of weights.
        let value = match key.as_str() {
            "hidden_size" => &Value::from(48 * 4096),
            "intermediate_size" => &Value::from(112 * 1024),
            _ => value,
        };
        table.extend([key, " = ", &value.to_string(), "\n"]);
    }
    table += "model_type = \"llama\"\nhidden_act = \"silu\"\ntie_word_embeddings = true\n";
    world.write("huge.toml", &format!("{head}{table}[data]\npath = \"chats.jsonl\"\n[train]\nmax_seq_len = 64\n"));
    let refusal = world.json(&["run", "huge.toml", "--run-dir", "huge", "-q"], 2);
    let text = |key: &str| refusal[key].as_str().unwrap().to_owned();
    assert!(text("error").contains("of memory") && text("hint").contains("--force"), "{refusal}");
}

#[test]
fn data_inspect_shows_ids_tokens_and_weights() {
    let world = World::new();
    let report = world.json(&["data", "inspect", "chats.jsonl", "--model", "model", "-n", "2"], 0);
    let examples = report["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 2);
    for example in examples {
        let length = |key: &str| example[key].as_array().unwrap().len();
        assert!(length("ids") > 10 && length("ids") == length("tokens") && length("ids") == length("weights"));
    }
    // The answer `1 is it` and its end of turn are trained, and nothing else.
    let first = &examples[0];
    let trained = first["tokens"].as_array().unwrap().iter().zip(first["weights"].as_array().unwrap());
    let trained: String = trained.filter(|(_, w)| w.as_f64() != Some(0.0)).map(|(t, _)| t.as_str().unwrap()).collect();
    assert_eq!(trained, "1 is it<|im_end|>");
    let text = world.ok(&["data", "inspect", "chats.jsonl", "--model", "model", "-n", "1"]);
    assert!(text.contains("⟦1 is it<|im_end|>⟧") && text.contains("loss ledger"), "{text}");
    let rows = world.json(&["data", "inspect", "chats.jsonl"], 0);
    assert_eq!(rows["examples"][0]["example"]["messages"][0]["content"], "add 0");
}

#[test]
fn generate_answers_prompts_in_order_and_the_same_in_any_company() {
    let world = World::new();
    world.write(
        "prompts.jsonl",
        "{\"prompt\": \"one\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"two\"}]}\n",
    );
    let options = ["--model", "model", "--max-tokens", "5", "--temperature", "1", "--seed", "3", "--n", "2"];
    let both = world.json(&[&["generate", "--input", "prompts.jsonl"][..], &options].concat(), 0);
    let rows = both["completions"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 0, 1, 1]);
    assert!(rows[2]["prompt"].as_str().unwrap().ends_with("<|im_start|>assistant\n"));
    assert!(both["tokens_per_s"].as_f64().unwrap() > 0.0);
    for row in rows {
        assert!(row["text"].is_string() && ["stop", "length"].contains(&row["finish_reason"].as_str().unwrap()));
        assert_eq!(row["tokens"].as_u64().unwrap() as usize, row["ids"].as_array().unwrap().len());
    }
    let alone = world.json(&[&["generate", "--prompt", "one"][..], &options].concat(), 0);
    assert_eq!(alone["completions"][0]["ids"], rows[0]["ids"]);
    let lines = world.ok(&[&["generate", "--input", "prompts.jsonl"][..], &options].concat());
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(&lines, rows);

    let stderr = world.refused(&["generate", "--model", "model", "--prompt", "x", "--top-p", "3"], 2);
    assert!(stderr.contains("top_p"), "{stderr}");
    world.write("prompts.jsonl", "{\"prompt\": \"one\"}\n{\"prompd\": \"two\"}\n");
    let stderr = world.refused(&["generate", "--model", "model", "--input", "prompts.jsonl"], 2);
    assert!(stderr.contains("`prompts.jsonl`, row 2: it has neither `prompt` nor `messages`"), "{stderr}");
    let long = world.json(&["generate", "--model", "model", "--prompt", &"x ".repeat(99)], 2);
    assert_eq!(long["exit_code"], 2, "a prompt beyond the context");
}

#[test]
fn a_tokenizer_and_a_model_from_scratch_learn_text() {
    let world = World::new();
    world.write("text.txt", &"the cat sat on the mat and the dog sat on the log. ".repeat(60));
    let trained = world.json(&["tokenizer", "train", "text.txt", "--kind", "bpe", "--vocab", "270", "--to", "tok"], 0);
    assert_eq!(trained["path"], "tok/tokenizer.json");
    assert!(trained["vocab"].as_u64().unwrap() <= 270);
    let words = world.json(&["tokenizer", "train", "text.txt", "--kind", "word", "--vocab", "50", "--to", "words"], 0);
    assert_eq!(words["vocab"], 11, "nine words and marks, two special tokens: {words}");
    let config = "model.config={ model_type = \"llama\", vocab_size = 270, hidden_size = 32, intermediate_size = 64, \
                  num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1, max_position_embeddings = 64, \
                  rms_norm_eps = 1e-5, tie_word_embeddings = true, hidden_act = \"silu\" }";
    world.ok(&["recipes", "copy", "continue-pretraining-text", "scratch.toml"]);
    let recipe = files::read_to_string(world.path("scratch.toml")).unwrap();
    world.write("scratch.toml", &recipe.replace("path = \"smollm2-135m-instruct\"", "tokenizer = \"tok\""));
    let more = ["train.max_steps=20", "train.learning_rate=1e-2", "train.batch_size=4", "train.max_seq_len=32"];
    let more =
        [&more[..], &["data.path=text.txt", "eval.plain_text=false", "generate.samples=0", "precision=f32"]].concat();
    let mut arguments = vec!["run", "scratch.toml", "--set", config];
    arguments.extend(more.iter().flat_map(|setting| ["--set", setting]));
    let report = world.json(&arguments, 0);
    let perplexity = |of: &str| report[of]["held_out/perplexity"].as_f64().unwrap();
    assert!(perplexity("metrics_after") < 0.5 * perplexity("metrics_before"), "{report}");
    assert!(report["run_dir"].as_str().unwrap().starts_with("runs/continue-pretraining-text-"));
}

#[test]
fn one_bad_prompt_does_not_stop_the_others() {
    let world = World::new();
    world.write("prompts.jsonl", &format!("{{\"prompt\": \"{}\"}}\n{{\"prompt\": \"two\"}}\n", "x".repeat(200)));
    let report = world.json(&["generate", "--model", "model", "--input", "prompts.jsonl", "--max-tokens", "2"], 1);
    assert_eq!(report["failed"], 1);
    assert!(report["completions"][0]["error"].as_str().unwrap().contains("200 tokens"), "{report}");
    assert!(report["completions"][1]["text"].is_string());
}

#[test]
fn bench_gemm_measures_every_variant() {
    let world = World::new();
    let report = world.json(&["bench", "gemm", "--sizes", "32,48", "--squares", "--seconds", "0.001"], 0);
    assert_eq!(report["peak_size"], 48);
    assert_eq!(report["products"].as_array().unwrap().len(), 2);
    for rate in ["f32_gflops", "bf16_gflops"] {
        let rate = report[rate].as_f64().unwrap();
        let last = &report["products"][1];
        assert!(rate > 0.0 && rate.is_finite(), "{report}");
        assert!(last["gflops"]["f32"]["min"].as_f64() <= last["gflops"]["f32"]["median"].as_f64(), "{last}");
    }
    assert!(world.ok(&["bench", "gemm", "--sizes", "32", "--squares", "--seconds", "0.001"]).contains("in registers"));
    assert!(world.refused(&["bench", "gemm", "--seconds", "0"], 2).contains("`--seconds` is 0"));
    let warned = world.output(&["bench", "gemm", "--sizes", "8", "--squares", "--seconds", "0.001", "--device", "cpu"]);
    assert!(!String::from_utf8(warned.stderr).unwrap().contains("warning"));
}

#[test]
fn methods_are_listed_and_a_directory_of_results_becomes_a_page() {
    let world = World::new();
    let methods: Vec<Value> = serde_json::from_str(&world.ok(&["methods", "--json"])).unwrap();
    for method in &methods {
        for key in ["slug", "paper", "year", "arxiv", "needs", "summary"] {
            assert!(!method[key].is_null(), "`{key}` in {method}");
        }
        let slug = method["slug"].as_str().unwrap();
        let one = world.json(&["methods", slug], 0);
        assert_eq!(one[0], *method);
        assert!(world.ok(&["methods", slug]).contains("claim"));
    }
    files::create_dir_all(world.path("kept")).unwrap();
    let rendered = world.json(&["reproduce", "--render", "kept"], 0);
    assert_eq!(rendered["path"], "RESULTS.md");
    assert!(files::read_to_string(world.path("RESULTS.md")).unwrap().starts_with("<!-- Made by"));
}
