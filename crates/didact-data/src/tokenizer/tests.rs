use std::path::PathBuf;

use didact_core::files;
use didact_core::message::{Message, Role};
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::template::RenderOptions;

/// `golden/tokenizers/expected.json`, made by `make.py` beside it with Python's tokenizers library.
#[derive(Deserialize)]
struct Golden {
    cases: std::collections::BTreeMap<String, Vec<Case>>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
    decoded_with_special: String,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tokenizers").join(name)
}

fn open(name: &str) -> Tokenizer {
    Tokenizer::open(golden(&format!("{name}.gguf"))).expect("a golden tokenizer")
}

fn cases() -> Golden {
    let text = files::read_to_string(golden("expected.json")).expect("golden file");
    serde_json::from_str(&text).expect("golden file parses")
}

#[test]
fn ids_and_texts_equal_python() {
    for (name, cases) in cases().cases {
        let tokenizer = open(&name);
        for case in cases {
            let ids = tokenizer.encode(&case.text).expect("encodes");
            assert_eq!(ids, case.ids, "{name}: {:?}", case.text);
            assert_eq!(tokenizer.decode(&ids, true).expect("decodes"), case.decoded, "{name}: {:?}", case.text);
            let with_special = tokenizer.decode(&ids, false).expect("decodes");
            assert_eq!(with_special, case.decoded_with_special, "{name}: {:?}", case.text);
        }
    }
}

#[test]
fn a_saved_tokenizer_comes_back_the_same() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for (name, cases) in cases().cases {
        let path = dir.path().join(&name);
        let tokenizer = open(&name);
        tokenizer.save(&path).expect("saves");
        let again = Tokenizer::open(&path).expect("opens");
        for case in cases {
            assert_eq!(again.encode(&case.text).expect("encodes"), case.ids, "{name}: {:?}", case.text);
        }
        assert_eq!(again.eos_ids(), [2], "only the token of `tokenizer_config.json`");
        assert_eq!(
            (again.bos(), again.pad(), again.adds_bos()),
            (tokenizer.bos(), tokenizer.pad(), tokenizer.adds_bos())
        );
        assert_eq!(again.template().map(ChatTemplate::source), tokenizer.template().map(ChatTemplate::source));
        again.save(dir.path().join("again")).expect("saves");
        for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"] {
            let (a, b) = (files::read(path.join(file)), files::read(dir.path().join("again").join(file)));
            assert_eq!(a.expect(file), b.expect(file), "{file} is stable");
        }
    }
}

#[test]
fn special_tokens_come_out_of_the_metadata() {
    let tokenizer = open("smollm");
    assert_eq!((tokenizer.bos(), tokenizer.pad()), (Some(1), Some(2)));
    assert_eq!(tokenizer.eos_ids(), [2, 0], "end of sequence, then end of turn");
    assert!(tokenizer.is_special(2) && tokenizer.is_added(2));
    let tool = tokenizer.token_id("<tool>").expect("an added token");
    assert!(tokenizer.is_added(tool) && !tokenizer.is_special(tool));
    assert!(!tokenizer.adds_bos() && open("llama-bpe").adds_bos());
    assert_eq!(tokenizer.vocab_size(), 458);
    let template = tokenizer.template().expect("a template");
    let text = template.render(&[Message::new(Role::User, "Hi")], &[], &RenderOptions::default()).expect("renders");
    assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n");
}

#[test]
fn digests_tell_tokenizers_and_templates_apart() {
    let (a, b) = (open("smollm"), open("gpt-2"));
    let digest = |t: &Tokenizer| t.digest().expect("a digest");
    assert_eq!(digest(&a), digest(&open("smollm")));
    assert_ne!(digest(&a), digest(&b));
    let other = a.clone().with_template("{{ messages }}", "here").expect("compiles");
    assert_ne!(digest(&a), digest(&other));
}

#[test]
fn eos_is_gathered_from_every_file() {
    let dir = tempfile::tempdir().expect("temporary directory");
    open("smollm").save(dir.path()).expect("saves");
    let write = |name: &str, text: &str| files::write_atomic(dir.path().join(name), text.as_bytes()).expect("writes");
    write("generation_config.json", r#"{"eos_token_id": [5, 2]}"#);
    write("config.json", r#"{"eos_token_id": 7}"#);
    assert_eq!(Tokenizer::open(dir.path()).expect("opens").eos_ids(), [5, 2, 7]);
}

#[test]
fn templates_are_found_in_order() {
    let dir = tempfile::tempdir().expect("temporary directory");
    open("smollm").save(dir.path()).expect("saves");
    let write = |name: &str, text: &str| files::write_atomic(dir.path().join(name), text.as_bytes()).expect("writes");
    let source = || Tokenizer::open(dir.path()).expect("opens").template().map(|t| t.source().to_owned());
    write("tokenizer_config.json", r#"{"chat_template": "in config"}"#);
    assert!(source().expect("a template").starts_with("{% for m"), "the file comes first");
    files::remove_file(dir.path().join("chat_template.jinja")).expect("removes");
    assert_eq!(source().as_deref(), Some("in config"));
    let named = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
    write("tokenizer_config.json", named);
    assert_eq!(source().as_deref(), Some("d"));
    write("tokenizer_config.json", "{}");
    assert_eq!(source(), None);
    write("tokenizer_config.json", r#"{"chat_template": 5}"#);
    let error = Tokenizer::open(dir.path()).expect_err("not a template").to_string();
    assert!(error.ends_with("`chat_template` is neither a string nor a list of named templates"), "{error}");
}

#[test]
fn what_is_not_a_tokenizer_is_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let error = |path: &Path| Tokenizer::open(path).expect_err("not a tokenizer").to_string();
    let missing = dir.path().join("missing");
    assert_eq!(
        error(&missing),
        format!(
            "`{}` holds no tokenizer: it does not exist; expected a directory with `tokenizer.json` or a `.gguf` file",
            missing.display()
        )
    );
    assert!(error(dir.path()).contains("it has no `tokenizer.json`"));
    files::write_atomic(dir.path().join("tokenizer.model"), b"x").expect("writes");
    assert!(error(dir.path()).contains("it has `tokenizer.model`, an older format"));
    files::write_atomic(dir.path().join("tokenizer.json"), b"{").expect("writes");
    assert!(error(dir.path()).contains("the tokenizer cannot be read"));
    files::write_atomic(dir.path().join("x.gguf"), b"nonsense").expect("writes");
    assert!(error(&dir.path().join("x.gguf")).contains("is not a GGUF file"));
}

#[test]
fn unknown_pre_tokenizers_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut bytes = files::read(golden("smollm.gguf")).expect("golden file");
    let at = bytes.windows(6).position(|w| w == b"smollm").expect("the name is in the file");
    bytes[at..at + 6].copy_from_slice(b"unhear");
    let path = dir.path().join("other.gguf");
    files::write_atomic(&path, &bytes).expect("writes");
    let error = Tokenizer::open(&path).expect_err("unknown").to_string();
    let expected = "pre-tokenizer `unhear` is not supported; supported: smollm, gpt-2, qwen2, llama-bpe";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn damaged_metadata_is_an_error() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let bytes = files::read(golden("smollm.gguf")).expect("golden file");
    let path = dir.path().join("cut.gguf");
    for length in (0..bytes.len()).step_by(211) {
        files::write_atomic(&path, &bytes[..length]).expect("writes");
        assert!(Tokenizer::open(&path).is_err(), "cut at {length}");
    }
    // A flipped bit may leave a usable file; it must not crash.
    for at in (0..bytes.len()).step_by(97) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        files::write_atomic(&path, &flipped).expect("writes");
        let _ = Tokenizer::open(&path).map(|t| t.encode("The cat <|im_end|>"));
    }
}

#[test]
fn spans_cover_the_text() {
    let tokenizer = open("smollm");
    let text = "Hi  there 🦀!<|im_end|>\n x";
    let spans = tokenizer.encode_with_spans(text).expect("encodes");
    assert_eq!(spans.iter().map(|s| s.id).collect::<Vec<_>>(), tokenizer.encode(text).expect("encodes"));
    assert_eq!((spans[0].start, spans.last().expect("tokens").end), (0, text.len()));
    assert!(spans.windows(2).all(|w| w[0].end >= w[1].start && w[0].start <= w[1].start), "{spans:?}");
    let end = spans.iter().find(|s| s.id == 2).expect("the special token");
    assert_eq!(&text[end.start..end.end], "<|im_end|>");
}

#[test]
fn words_are_decoded_one_by_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("tokenizer.json");
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1, "b": 2, "c": 3}, "unk_token": "<unk>"},
    });
    files::write_atomic(&path, json.to_string().as_bytes()).expect("writes");
    let tokenizer = Tokenizer::open(&path).expect("opens");
    let ids: Vec<u32> = (0..100).map(|i| 1 + i % 3).collect();
    let mut decoder = tokenizer.incremental_decoder(false);
    let mut text = String::new();
    for &id in &ids {
        text += &decoder.push(&tokenizer, id).expect("decodes");
    }
    text += &decoder.finish(&tokenizer).expect("decodes");
    assert_eq!(text, tokenizer.decode(&ids, false).expect("decodes"));
}

#[test]
fn characters_come_out_whole() {
    let tokenizer = open("gpt-2");
    let mut decoder = tokenizer.incremental_decoder(true);
    let ids: Vec<u32> = "ž".bytes().map(|b| byte_token(&tokenizer, b)).collect();
    assert_eq!(decoder.push(&tokenizer, ids[0]).expect("decodes"), "");
    assert_eq!(decoder.push(&tokenizer, 2).expect("decodes"), "", "special tokens are left out");
    assert_eq!(decoder.push(&tokenizer, ids[1]).expect("decodes"), "ž");
    assert_eq!(decoder.push(&tokenizer, ids[0]).expect("decodes"), "");
    assert_eq!(decoder.finish(&tokenizer).expect("decodes"), "\u{fffd}");
}

/// The token that stands for a single byte.
fn byte_token(tokenizer: &Tokenizer, byte: u8) -> u32 {
    (0..tokenizer.vocab_size() as u32)
        .find(|&id| tokenizer.token_bytes(id).as_deref() == Some(&[byte]))
        .expect("every byte has a token")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_text_comes_back(text in "\\PC{0,40}|[a-z0-9 \\n\\t']{0,60}") {
        let tokenizer = open_once();
        let ids = tokenizer.encode(&text).expect("encodes");
        prop_assert_eq!(tokenizer.decode(&ids, false).expect("decodes"), text);
    }

    #[test]
    fn pieces_together_are_the_whole(ids in prop::collection::vec(0u32..560, 0..60), skip in any::<bool>()) {
        let tokenizer = open_once();
        let mut decoder = tokenizer.incremental_decoder(skip);
        let mut text = String::new();
        for &id in &ids {
            text += &decoder.push(tokenizer, id).expect("decodes");
        }
        text += &decoder.finish(tokenizer).expect("decodes");
        prop_assert_eq!(text, tokenizer.decode(&ids, skip).expect("decodes"));
    }
}

fn open_once() -> &'static Tokenizer {
    static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(|| open("gpt-2"))
}

/// The real model: `DIDACT_TEST_MODEL` is the path of SmolLM2-135M-Instruct's GGUF, or of a directory made from it.
#[test]
#[ignore = "needs the pulled model: make test-model"]
fn smollm2_gives_the_ids_and_the_chat_of_the_reference() {
    let path = std::env::var_os("DIDACT_TEST_MODEL").expect("DIDACT_TEST_MODEL names the pulled model");
    let tokenizer = Tokenizer::open(&path).expect("opens");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/smollm2.json");
    let entries: Vec<Value> = serde_json::from_slice(&files::read(golden).expect("golden file")).expect("parses");
    let mut compared = 0;
    for entry in &entries {
        if let Some(prompt) = entry.get("prompt").and_then(Value::as_str) {
            let expected: Vec<u32> = serde_json::from_value(entry["ids"].clone()).expect("ids");
            assert_eq!(tokenizer.encode(prompt).expect("encodes"), expected, "{prompt}");
            let greedy: Vec<u32> = serde_json::from_value(entry["greedy_ids"].clone()).expect("ids");
            assert_eq!(tokenizer.decode(&greedy, true).expect("decodes"), entry["greedy_text"].as_str().expect("text"));
            compared += 1;
        } else {
            let messages: Vec<Message> = serde_json::from_value(entry["chat"].clone()).expect("messages");
            let options = RenderOptions::default().with_generation_prompt();
            let text = tokenizer.template().expect("a template").render(&messages, &[], &options).expect("renders");
            assert_eq!(text, entry["rendered"].as_str().expect("text"));
            compared += 1;
        }
    }
    assert_eq!(compared, entries.len());
    assert_eq!(tokenizer.eos_ids(), [2]);
    let dir = tempfile::tempdir().expect("temporary directory");
    tokenizer.save(dir.path()).expect("saves");
    let again = Tokenizer::open(dir.path()).expect("opens");
    let text = "<|im_start|>user\nGrüße 12345 🦀<|im_end|>\n";
    assert_eq!(again.encode(text).expect("encodes"), tokenizer.encode(text).expect("encodes"));
}

#[test]
fn much_text_is_encoded_to_the_same_ids() {
    for (name, cases) in cases().cases {
        let tokenizer = open(&name);
        let plain: Vec<_> = cases.iter().map(|case| tokenizer.encode(&case.text).expect("encodes")).collect();
        assert!(tokenizer.prepare_for_much(), "{name} has a fast form");
        for (case, ids) in cases.iter().zip(plain) {
            assert_eq!(tokenizer.encode(&case.text).expect("encodes"), ids, "{name}: {:?}", case.text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_text_is_encoded_to_the_same_ids(
        pieces in prop::collection::vec(prop_oneof![
            "[a-zA-Z' ]{0,12}", "[ \n\t]{1,6}", "[0-9.,]{1,8}", "\\PC{0,8}", "[é漢字🙂'ſ]{1,6}", "(ab|ba){1,40}",
            Just("<|im_start|>".to_owned()), Just("<|endoftext|>".to_owned()), Just("<|im_".to_owned()),
        ], 0..12),
    ) {
        let text = pieces.concat();
        for name in ["smollm", "gpt-2", "qwen2", "llama-bpe"] {
            let (plain, fast) = pair_of(name);
            // Twice: new to the cache, and known to it.
            for _ in 0..2 {
                prop_assert_eq!(fast.encode(&text).expect("encodes"), plain.encode(&text).expect("encodes"), "{}", name);
            }
        }
    }
}

/// The same tokenizer without and with fast tables, made once.
fn pair_of(name: &str) -> &'static (Tokenizer, Tokenizer) {
    static PAIRS: OnceLock<std::collections::BTreeMap<String, (Tokenizer, Tokenizer)>> = OnceLock::new();
    let pairs = PAIRS.get_or_init(|| {
        let pair = |name: &str| {
            let (plain, fast) = (open(name), open(name));
            assert!(fast.prepare_for_much());
            (name.to_owned(), (plain, fast))
        };
        ["smollm", "gpt-2", "qwen2", "llama-bpe"].into_iter().map(pair).collect()
    });
    &pairs[name]
}

#[test]
#[ignore = "needs DIDACT_TEST_MODEL"]
fn real_model_encodes_this_repository_to_the_same_ids_either_way() {
    let path = std::env::var("DIDACT_TEST_MODEL").expect("DIDACT_TEST_MODEL names a model with a tokenizer");
    let (plain, fast) = (Tokenizer::open(&path).expect("opens"), Tokenizer::open(&path).expect("opens"));
    assert!(fast.prepare_for_much());
    let mut pending = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")];
    let mut tokens = 0;
    while let Some(place) = pending.pop() {
        let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if place.is_dir() {
            if !name.starts_with('.') && name != "target" {
                pending.extend(files::list_dir(&place).expect("listed").into_iter().filter(|p| !p.is_symlink()));
            }
        } else if let Ok(text) = files::read_to_string(&place) {
            let ids = plain.encode(&text).expect("encodes");
            tokens += ids.len();
            assert_eq!(fast.encode(&text).expect("encodes"), ids, "{}", place.display());
        }
    }
    assert!(tokens > 200_000);
}

/// SmolLM2's vocabulary lacks bytes that UTF-8 does not use and some that it does; there may be a token for the unknown.
#[test]
fn bytes_that_the_vocabulary_lacks_are_the_models_affair() {
    let alphabet = "abĠé".chars().map(|c| c.to_string());
    let vocab: tokenizers::models::bpe::Vocab =
        alphabet.chain(["ab".to_owned(), "<unk>".to_owned()]).zip(0..).collect();
    for unk in [None, Some("<unk>"), Some("<missing>")] {
        for fuse in [false, true] {
            let merges = vec![("a".to_owned(), "b".to_owned())];
            let mut builder =
                tokenizers::models::bpe::BPE::builder().vocab_and_merges(vocab.clone(), merges).fuse_unk(fuse);
            if let Some(unk) = unk {
                builder = builder.unk_token(unk.to_owned());
            }
            let mut inner = tokenizers::Tokenizer::new(builder.build().expect("a model"));
            inner.with_pre_tokenizer(Some(tokenizers::pre_tokenizers::byte_level::ByteLevel::new(false, true, true)));
            let plain = Tokenizer::from_parts(inner, Vec::new()).expect("a tokenizer");
            let fast = Tokenizer { fast: Arc::default(), ..plain.clone() };
            assert!(fast.prepare_for_much());
            for text in ["ab ab", "abc cab", "cc abab ccab", "aéb", "漢ab漢", ""] {
                let found = |t: &Tokenizer| t.encode(text).map_err(|e| e.to_string());
                assert_eq!(found(&fast), found(&plain), "{unk:?}, {fuse}: {text}");
                assert_eq!(found(&fast), found(&plain), "{unk:?}, {fuse}: {text}, known to the cache");
            }
        }
    }
}
