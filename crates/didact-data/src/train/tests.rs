use didact_core::files;

use super::*;

fn texts() -> Vec<String> {
    let line = "the cat sat on the mat; the dog sat on the log. ";
    (0..40).map(|i| format!("{line}{}", ["alpha beta", "gamma", "Grüße 🦀"][i % 3])).collect()
}

fn trained(settings: &TokenizerSettings) -> Tokenizer {
    train_tokenizer(texts().into_iter(), settings).expect("trains")
}

#[test]
fn bpe_writes_any_text_and_merges_frequent_pairs() {
    let tokenizer = trained(&TokenizerSettings::new(TokenizerKind::Bpe, 290));
    assert_eq!(tokenizer.vocab_size(), 290);
    assert_eq!((tokenizer.token_id("<|endoftext|>"), tokenizer.eos_ids()), (Some(0), &[0][..]));
    for text in ["the cat", "日本語 never seen", "<|endoftext|>x", ""] {
        let ids = tokenizer.encode(text).expect("encodes");
        assert_eq!(tokenizer.decode(&ids, false).expect("decodes"), text);
    }
    assert!(tokenizer.encode(" the").expect("encodes").len() < 4, "a frequent word is a token");
}

#[test]
fn words_are_counted_and_rare_ones_unknown() {
    let tokenizer = trained(&TokenizerSettings::new(TokenizerKind::Word, 8));
    assert_eq!(tokenizer.vocab_size(), 8);
    let ids = tokenizer.encode("the zebra").expect("encodes");
    assert_eq!(tokenizer.decode(&ids, false).expect("decodes"), "the <unk>");
}

#[test]
fn the_same_texts_give_the_same_tokenizer() {
    for kind in [TokenizerKind::Bpe, TokenizerKind::Word] {
        let settings = TokenizerSettings::new(kind, 290);
        let json = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| trained(&settings)).inner().to_string(false).expect("prints")
        };
        assert_eq!(json(1), json(1));
        assert_eq!(json(1), json(3));
    }
}

#[test]
fn a_trained_tokenizer_is_saved_and_opened() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for (kind, name) in [(TokenizerKind::Bpe, "bpe"), (TokenizerKind::Word, "word")] {
        let tokenizer = trained(&TokenizerSettings::new(kind, 280));
        tokenizer.save(dir.path().join(name)).expect("saves");
        let again = Tokenizer::open(dir.path().join(name)).expect("opens");
        let text = "the cat sat on alpha<|endoftext|>";
        assert_eq!(again.encode(text).expect("encodes"), tokenizer.encode(text).expect("encodes"));
        assert_eq!(again.eos_ids(), tokenizer.eos_ids());
    }
}

#[test]
fn a_source_is_read_by_schema() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("rows.jsonl");
    let rows = "{\"prompt\": \"one two\", \"completion\": \"three\"}\n".repeat(4);
    files::write_atomic(&path, rows.as_bytes()).expect("writes");
    let source = SourceConfig::new(path.display().to_string());
    let tokenizer = train_tokenizer_on(&source, &TokenizerSettings::new(TokenizerKind::Word, 10)).expect("trains");
    assert_eq!(tokenizer.vocab_size(), 5);
    files::write_atomic(&path, b"{\"prompt\": \"one two\", \"completion\": \"three\"}\nnot json\n").expect("writes");
    let error = train_tokenizer_on(&source, &TokenizerSettings::new(TokenizerKind::Word, 10)).expect_err("a bad row");
    assert!(error.to_string().contains("rows.jsonl"), "{error}");
}

#[test]
fn what_cannot_be_trained_is_said() {
    let error = |texts: &[&str], settings: &TokenizerSettings| {
        let texts: Vec<String> = texts.iter().map(|&t| t.to_owned()).collect();
        train_tokenizer(texts.into_iter(), settings).expect_err("not trainable").to_string()
    };
    let bpe = TokenizerSettings::new(TokenizerKind::Bpe, 300);
    assert_eq!(error(&[], &bpe), "cannot train a tokenizer: there is no text in the input");
    assert_eq!(error(&["", " \n"], &bpe), "cannot train a tokenizer: there is no text in the input");
    let small = TokenizerSettings::new(TokenizerKind::Bpe, 100);
    assert_eq!(
        error(&["a"], &small),
        "cannot train a tokenizer: a vocabulary of 100 has no room: it needs at least 257 tokens (special tokens and \
         one per byte)"
    );
    let mut settings = bpe.clone();
    settings.special_tokens = vec!["<x>".into(), "<x>".into()];
    assert!(error(&["a"], &settings).ends_with("special token `<x>` is given twice"));
    settings.special_tokens = vec!["<x>".into()];
    assert!(error(&["a"], &settings).ends_with("`<|endoftext|>` is to end texts, but is not among the special tokens"));
    let mut settings = TokenizerSettings::new(TokenizerKind::Word, 10);
    settings.special_tokens.pop();
    assert!(error(&["a"], &settings).ends_with("a word tokenizer needs the special token `<unk>`"));
}
