use super::*;
use didact_core::fault::{Classify, Fault};

const SFT: &str = r#"recipe = "sft"
seed = 7

[model]
path = "some/model"

[data]
path = "rows.jsonl"

[train]
learning_rate = 1e-4
max_steps = 10

[train.lora]
rank = 8
"#;

fn with(overrides: &[(&str, &str)]) -> Result<Recipe, RecipeError> {
    let overrides: Vec<(String, String)> = overrides.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    read(SFT, "mine.toml", &overrides)
}

fn refused(text: &str) -> String {
    read(text, "mine.toml", &[]).expect_err("this recipe is wrong").to_string()
}

fn data(recipe: &Recipe) -> &DataRecipeSettings {
    match recipe.typed() {
        Settings::Sft(settings) | Settings::ContinuePretrainingText(settings) => settings,
        _ => panic!("a recipe with data"),
    }
}

#[test]
fn every_named_recipe_reads_and_names_itself() {
    for named in recipes() {
        let given: &[&str] = match named.name {
            "quickstart" => &[],
            "continual-pretraining" => &["data.new", "data.old"],
            "mixture" => &["sources.a"],
            "itertl" | "toolace-r" => &["tasks.path"],
            _ => &["data.path"],
        };
        let overrides: Vec<_> = given.iter().map(|key| ((*key).to_owned(), "x.jsonl".to_owned())).collect();
        let recipe = load_recipe(named.name, &overrides).unwrap_or_else(|e| panic!("{}: {e}", named.name));
        assert_eq!(recipe.method(), named.name);
        assert_eq!(recipe.name(), named.name);
        let again = read(named.text, "copy.toml", &overrides);
        assert_eq!(again.expect("a copy reads the same").settings(), recipe.settings());
    }
}

#[test]
fn the_quickstart_file_states_the_defaults_of_its_world() {
    let recipe = load_recipe("quickstart", &[]).expect("it ships");
    let Settings::Quickstart(settings) = recipe.typed() else { panic!("the quickstart") };
    assert_eq!(settings.toolworld, ToolworldSettings::default());
    assert_eq!(settings.toolworld.train_examples, 16 * settings.train.max_steps.expect("given") as usize);
}

#[test]
fn overrides_win_and_are_typed_by_toml() {
    let recipe = with(&[
        ("train.learning_rate", "3e-4"),
        ("train.lr", "5e-4"),
        ("data.path", "other/*.jsonl"),
        ("train.packing", "true"),
        ("train.lora.target_modules", r#"["q_proj", "v_proj"]"#),
        ("data.held-out", "0.1"),
        ("name", "try 2"),
    ])
    .expect("fine");
    let settings = data(&recipe);
    assert_eq!(settings.train.learning_rate, 5e-4);
    assert_eq!(settings.data.path, Some(Paths::One("other/*.jsonl".into())));
    assert_eq!(settings.data.held_out, 0.1);
    assert_eq!(recipe.name(), "try 2");
    assert_eq!(recipe.seed(), 7);
    assert_eq!(recipe.settings()["train"]["lora"]["target_modules"], serde_json::json!(["q_proj", "v_proj"]));
    assert_eq!(recipe.settings()["train"]["packing"], "best_fit");
}

#[test]
fn a_table_can_be_switched_off_and_on() {
    assert!(data(&with(&[("train.lora", "none")]).expect("fine")).train.lora.is_none());
    let again = with(&[("train.lora", "false"), ("train.lora.rank", "4")]).expect("fine");
    assert_eq!(data(&again).train.lora.as_ref().expect("on again").rank, 4);
}

#[test]
fn resolved_settings_do_not_depend_on_how_they_were_written() {
    let one = with(&[("train.lr", "2e-4")]).expect("fine");
    let text = SFT.replace("learning_rate = 1e-4", "lr = 2e-4").replace("rank = 8", "r = 8");
    let two = read(&text, "other.toml", &[]).expect("aliases are known");
    assert_eq!(one.settings(), two.settings());
    let flat = SFT.replace("[train.lora]\nrank = 8", "").replace("max_steps = 10", "max_steps = 10\nlora_r = 8");
    let three = read(&flat, "flat.toml", &[("train.lr".into(), "2e-4".into())]).expect("aliases are known");
    assert_eq!(one.settings(), three.settings());
}

#[test]
fn unknown_keys_name_place_and_nearest() {
    assert_eq!(
        refused(&SFT.replace("max_steps", "max_step")),
        "mine.toml:12:1: unknown key `train.max_step`; did you mean `train.max_steps`?"
    );
    assert_eq!(
        refused(&SFT.replace("rank = 8", "rank = 8\n  alhpa = 1")),
        "mine.toml:16:3: unknown key `train.lora.alhpa`; did you mean `train.lora.alpha`?"
    );
    assert_eq!(
        refused(&format!("learning_rate = 1e-3\n{SFT}")),
        "mine.toml:1:1: unknown key `learning_rate`; did you mean `train.learning_rate`?"
    );
    let error = read(&format!("zebra = 1\n{SFT}"), "mine.toml", &[]).expect_err("unknown");
    assert_eq!(error.to_string(), "mine.toml:1:1: unknown key `zebra`");
    assert!(error.hint().expect("known keys").contains("model, data, train"), "{:?}", error.hint());
    assert_eq!(
        with(&[("train.warmup", "3")]).expect_err("unknown").to_string(),
        "--set train.warmup=3: unknown key `train.warmup`; did you mean `train.warmup_ratio`?"
    );
}

#[test]
fn two_spellings_of_one_setting_are_refused() {
    assert_eq!(
        refused(&SFT.replace("learning_rate = 1e-4", "learning_rate = 1e-4\nlr = 1e-3")),
        "mine.toml:12:1: `train.lr` means the same as `train.learning_rate` (mine.toml:11:1); keep one of them"
    );
    assert_eq!(
        refused(&SFT.replace("max_steps = 10", "lora_r = 4")),
        "mine.toml:15:1: `train.lora.rank` means the same as `train.lora_r` (mine.toml:12:1); keep one of them"
    );
}

#[test]
fn ambiguous_keys_of_other_trainers_are_answered() {
    let message = refused(&SFT.replace("max_steps = 10", "micro_batch_size = 4"));
    assert!(
        message.starts_with("mine.toml:12:1: `train.micro_batch_size` is not a key of Didact: write `batch_size`"),
        "{message}"
    );
    let message = refused(&SFT.replace("seed = 7", "bf16 = true"));
    assert!(message.ends_with("write `precision = \"bf16\"` at the top"), "{message}");
}

#[test]
fn wrong_values_name_place_and_key() {
    let message = refused(&SFT.replace("1e-4", "\"fast\""));
    assert!(message.starts_with("mine.toml:11:1: `train.learning_rate`: invalid type: string \"fast\""), "{message}");
    let message = refused(&SFT.replace("max_steps = 10", "max_steps = 0"));
    assert_eq!(message, "mine.toml:12:1: `train.max_steps` is 0, expected a whole number from 1");
    let message = refused(&SFT.replace("seed = 7", "precision = \"f64\""));
    assert!(message.starts_with("mine.toml:2:1: `precision`: unknown variant `f64`"), "{message}");
    let message = with(&[("data.held_out", "0.9")]).expect_err("out of range").to_string();
    assert_eq!(message, "--set data.held_out=0.9: `data.held_out`: is 0.9, expected a share from 0 to 0.5");
    let message = refused(&SFT.replace("1e-4", "nan"));
    assert_eq!(message, "mine.toml:11:17: `train.learning_rate`: `nan` is not a finite number");
}

#[test]
fn missing_parts_are_named() {
    assert_eq!(
        refused(&SFT.replace("path = \"rows.jsonl\"", "")),
        "mine.toml:7:2: `data.path`: missing; name the files to train on"
    );
    assert_eq!(
        refused(&SFT.replace("[model]\npath = \"some/model\"", "")),
        "mine.toml: `model.path`: missing; name a directory, a GGUF file, or a model that `didact model pull` knows"
    );
    let both = SFT.replace("path = \"some/model\"", "path = \"some/model\"\ntokenizer = \"t\"");
    assert!(refused(&both).contains("`model.tokenizer`: belongs to `model.config`"));
    assert_eq!(refused("seed = 1"), "mine.toml: the key `recipe` is missing; it names the method to apply");
    assert_eq!(refused("recipe = \"sfd\""), "mine.toml:1:1: `recipe`: there is no method `sfd`; did you mean `sft`?");
}

#[test]
fn text_that_is_not_toml_names_line_and_column() {
    let message = refused("recipe = \"sft\"\nseed = = 3\n");
    assert!(message.starts_with("mine.toml:2:8: not valid TOML: "), "{message}");
    let error = read("recipe = \"sft", "mine.toml", &[]).expect_err("open string");
    assert_eq!(error.fault(), Fault::Input);
}

#[test]
fn unknown_recipes_and_files_are_input_errors() {
    let error = load_recipe("quikstart", &[]).expect_err("misspelt");
    assert_eq!(error.to_string(), "there is no recipe `quikstart`; did you mean `quickstart`?");
    assert!(error.hint().expect("names").contains("continue-pretraining-text"));
    let error = load_recipe("no/such/file.toml", &[]).expect_err("absent");
    assert!(error.to_string().starts_with("cannot read the recipe `no/such/file.toml`: "), "{error}");
    let error = with(&[("train..x", "1")]).expect_err("no key");
    assert_eq!(error.to_string(), "--set train..x=1: the key is empty or has an empty part");
}

#[test]
fn a_model_from_scratch_takes_any_configuration_keys() {
    let text = SFT.replace(
        "path = \"some/model\"",
        "tokenizer = \"tok\"\nconfig = { model_type = \"llama\", hidden_size = 64, some_key = [1, 2.5, \"x\"] }",
    );
    let text = text.replace("[train.lora]\nrank = 8", "");
    let recipe = read(&text, "mine.toml", &[("model.config.hidden_size".into(), "32".into())]).expect("fine");
    let config = data(&recipe).model.config.clone().expect("given");
    assert_eq!(serde_json::Value::Object(config)["hidden_size"], 32);
    assert_eq!(recipe.settings()["model"]["config"]["some_key"], serde_json::json!([1, 2.5, "x"]));
}

#[test]
fn world_settings_are_checked_with_their_place() {
    let text = "recipe = \"quickstart\"\n[model]\npath = \"m\"\n[toolworld]\nnouns_per_verb = 13\n";
    assert_eq!(refused(text), "mine.toml:5:1: `toolworld.nouns_per_verb` is 13, expected 2 to 12");
}

#[test]
fn sources_are_paths_tables_or_several_by_name() {
    let text = |data: &str| {
        format!("recipe = \"continual-pretraining\"\n[model]\npath = \"m\"\n[data]\nnew = \"n.jsonl\"\n{data}\n")
    };
    for (data, expected) in [
        ("old = \"o.jsonl\"", vec!["o.jsonl"]),
        ("old = [\"a.jsonl\", \"b.jsonl\"]", vec!["a.jsonl", "b.jsonl"]),
        ("old = { path = \"o.jsonl\", held_out = 0.1 }", vec!["o.jsonl"]),
    ] {
        let recipe = read(&text(data), "mine.toml", &[]).expect(data);
        let Settings::Continual(settings) = recipe.typed() else { panic!("another method") };
        let Some(SourcesTable::One(old)) = &settings.data.old else { panic!("{data}: one source") };
        assert_eq!(old.data().path.map(|paths| paths.list()), Some(expected.into_iter().map(str::to_owned).collect()));
    }
    let several = read(&text("old = { wiki = \"w/\", code = { path = \"c/\", held_out = 0.01 } }"), "mine.toml", &[]);
    let several = several.expect("named sources");
    let Settings::Continual(settings) = several.typed() else { panic!("another method") };
    let Some(SourcesTable::Named(all)) = &settings.data.old else { panic!("several sources") };
    assert_eq!(all.keys().collect::<Vec<_>>(), ["code", "wiki"]);
    assert_eq!(all["code"].data().held_out, 0.01);
    for (data, message) in [
        ("", "`data.old`: missing"),
        ("old = { new = \"x\" }", "`data.old.new`: is the name of the new data"),
        ("old = { \"a/b\" = \"x\" }", "is no name for a source"),
        ("old = \"x\"\n[continual]\nreplay = 1.0", "`continual.replay`: is 1"),
        ("old = \"x\"\n[continual]\nshift = \"strange\"", "continual.shift"),
    ] {
        let error = refused(&text(data));
        assert!(error.contains(message), "{data}: {error}");
    }
}

#[test]
fn lengths_and_rounds_are_checked_before_anything_is_read() {
    let decomposition = |table: &str| {
        refused(&format!(
            "recipe = \"dataset-decomposition\"\n[model]\npath = \"m\"\n[data]\npath = \"x\"\n[decomposition]\n{table}\n"
        ))
    };
    for (table, message) in [
        ("max = 48", "`decomposition.max`: is 48, expected a power of two"),
        ("min = 64\nmax = 32", "`decomposition.min`: is 64, more than `decomposition.max`, which is 32"),
        ("max = 512\ntokens_per_step = 768", "`decomposition.tokens_per_step`: is 768, expected a multiple of"),
        ("cycles = 0", "`decomposition.cycles`: is 0"),
    ] {
        let error = decomposition(table);
        assert!(error.contains(message), "{table}: {error}");
    }
    let skills = |table: &str| {
        refused(&format!(
            "recipe = \"skill-it\"\n[model]\npath = \"m\"\n[data]\npath = \"x\"\n[train]\nmax_steps = 12\n[skills]\n{table}\n"
        ))
    };
    for (table, message) in [
        ("rounds = 5", "`skills.rounds` is 5, which does not divide the 12 steps"),
        ("rounds = 3\neval_every = 3", "`skills.eval_every` is 3, which does not divide the 4 steps"),
        ("setting = \"ft\"", "`skills.targets`: missing"),
        ("window = { size = 0 }", "`skills.window.size`: is 0"),
        ("eta = -1.0", "`skills.eta`: is -1"),
        ("graph = { mode = \"file\" }", "`skills.graph.path`: missing"),
    ] {
        let error = skills(table);
        assert!(error.contains(message), "{table}: {error}");
    }
}

#[test]
fn hyperfitting_is_checked_before_anything_is_read() {
    let with = |more: &str| {
        refused(&format!(
            "recipe = \"hyperfitting\"\n[model]\npath = \"m\"\n[data]\npath = \"x\"\n[train]\nmax_seq_len = 64\n{more}\n"
        ))
    };
    for (table, message) in [
        ("[hyperfit]\nprompts = 0", "`hyperfit.prompts`: is 0"),
        (
            "[hyperfit]\nprompt_tokens = 65",
            "`hyperfit.prompt_tokens`: is 65, more than `train.max_seq_len`, which is 64",
        ),
        ("[hyperfit]\nsnippets = 4", "`hyperfit.snippets`: is 4, less than `train.batch_size`, which is 8"),
        ("[hyperfit]\ntop_p = 1.5", "`hyperfit.top_p`: is 1.5: expected"),
        ("[hyperfit]\ntemperature = 0", "`hyperfit.temperature`: is 0"),
        ("target_loss = 0", "`train.target_loss` is 0, expected a number above 0"),
    ] {
        let error = with(table);
        assert!(error.contains(message), "{table}: {error}");
    }
    let error = refused("recipe = \"hyperfitting\"\n[model]\npath = \"m\"\n");
    assert!(error.contains("`data.path`: missing"), "{error}");
}
