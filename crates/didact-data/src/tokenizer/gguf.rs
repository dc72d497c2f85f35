//! A tokenizer out of the metadata of a GGUF file.
//!
//! GGUF keeps the vocabulary and merges of a byte-level BPE, a type per token, and the name of the rule that cuts text
//! into words before merging; the rules themselves are those of llama.cpp (`src/llama-vocab.cpp`) and of the models'
//! own `tokenizer.json`.

use std::path::Path;

use didact_core::gguf::GgufFile;
use serde_json::{Map, Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer};

use super::Parts;
use crate::error::DataError;

/// Words of Qwen2's tokenizer.
pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of Llama 3's tokenizer: as Qwen2's, but up to three digits together.
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Token types of the format (`llama_token_type`): special tokens, and others that are recognised as a whole.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// How text is cut into words, by the name in `tokenizer.ggml.pre`.
struct Rule {
    pre_tokenizer: PreTokenizerWrapper,
    uses_nfc: bool,
    ignores_merges: bool,
}

const RULES: &str = "smollm, gpt-2, qwen2, llama-bpe";

fn rule(name: &str) -> Option<Rule> {
    let words = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.into());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).expect("the patterns are valid");
        Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()])
    };
    Some(match name {
        "smollm" => Rule {
            pre_tokenizer: Sequence::new(vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()])
                .into(),
            uses_nfc: false,
            ignores_merges: false,
        },
        "gpt-2" => {
            Rule { pre_tokenizer: ByteLevel::new(false, true, true).into(), uses_nfc: false, ignores_merges: false }
        }
        "qwen2" => Rule { pre_tokenizer: words(QWEN2).into(), uses_nfc: true, ignores_merges: false },
        "llama-bpe" => Rule { pre_tokenizer: words(LLAMA3).into(), uses_nfc: false, ignores_merges: true },
        _ => return None,
    })
}

pub(super) fn read(path: &Path) -> Result<Parts, DataError> {
    let file = GgufFile::open(path)?;
    let broken = |cause: String| DataError::Tokenizer { path: path.to_path_buf(), cause };
    let unsupported = |kind, name: &str, supported: &str| DataError::UnsupportedTokenizer {
        path: path.to_path_buf(),
        kind,
        name: name.into(),
        supported: supported.into(),
    };
    let model = file.get_str("tokenizer.ggml.model")?.ok_or_else(|| file.missing("tokenizer.ggml.model"))?;
    if model != "gpt2" {
        return Err(unsupported("tokenizer model", model, "gpt2 (byte-level BPE)"));
    }
    let pre = file.get_str("tokenizer.ggml.pre")?.ok_or_else(|| file.missing("tokenizer.ggml.pre"))?;
    let rule = rule(pre).ok_or_else(|| unsupported("pre-tokenizer", pre, RULES))?;
    let tokens = file.get_str_array("tokenizer.ggml.tokens")?.ok_or_else(|| file.missing("tokenizer.ggml.tokens"))?;
    let merges = file.get_str_array("tokenizer.ggml.merges")?.ok_or_else(|| file.missing("tokenizer.ggml.merges"))?;
    let types = file.get_i32_array("tokenizer.ggml.token_type")?.unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(broken(format!("{} token types for {} tokens", types.len(), tokens.len())));
    }

    let mut vocab = tokenizers::models::bpe::Vocab::default();
    for (id, token) in tokens.iter().enumerate() {
        let id = u32::try_from(id).map_err(|_| broken("more than 2^32 tokens".into()))?;
        if let Some(other) = vocab.insert(token.clone(), id) {
            return Err(broken(format!("tokens {other} and {id} are both `{token}`")));
        }
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (i, merge) in merges.iter().enumerate() {
        // A space is never part of a byte-level token, so the one in the middle separates.
        match merge.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => pairs.push((left.into(), right.into())),
            _ => return Err(broken(format!("merge {i} is `{merge}`, expected two tokens with a space between"))),
        }
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, pairs)
        .ignore_merges(rule.ignores_merges)
        .build()
        .map_err(|e| broken(e.to_string()))?;
    let mut inner = Tokenizer::new(bpe);
    inner.with_pre_tokenizer(Some(rule.pre_tokenizer));
    if rule.uses_nfc {
        inner.with_normalizer(Some(NFC)).map_err(|e| broken(e.to_string()))?;
    }
    inner.with_decoder(Some(ByteLevel::new(true, true, true)));
    let is_whole = |kind: i32| kind == CONTROL || kind == USER_DEFINED;
    let added: Vec<AddedToken> = types
        .iter()
        .zip(tokens)
        .filter(|(kind, _)| is_whole(**kind))
        .map(|(kind, token)| AddedToken::from(token.clone(), *kind == CONTROL).normalized(false))
        .collect();
    inner.add_tokens(added).map_err(|e| broken(e.to_string()))?;

    let mut special = Vec::new();
    for (role, key) in [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("sep_token", "tokenizer.ggml.seperator_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ] {
        if let Some(id) = file.get_u64(key)? {
            special.push((role.to_owned(), token_at(tokens, id, key).map_err(&broken)?.to_owned()));
        }
    }
    let mut eos = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        if let Some(id) = file.get_u64(key)? {
            token_at(tokens, id, key).map_err(&broken)?;
            eos.push(id as u32);
        }
    }
    let adds_bos = file.get_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
    let template = file.get_str("tokenizer.chat_template")?.map(|t| (t.to_owned(), path.display().to_string()));
    let architecture = file.get_str("general.architecture")?.unwrap_or("llama");
    let context = file.get_u64(&format!("{architecture}.context_length"))?;
    let config = config(&special, tokens, &types, adds_bos, context);
    Ok(Parts { inner, path: path.to_path_buf(), config, special, eos, adds_bos, template })
}

fn token_at<'t>(tokens: &'t [String], id: u64, key: &str) -> Result<&'t str, String> {
    usize::try_from(id)
        .ok()
        .and_then(|i| tokens.get(i))
        .map(String::as_str)
        .ok_or_else(|| format!("`{key}` is {id}, but there are {} tokens", tokens.len()))
}

/// The `tokenizer_config.json` that Python expects.
fn config(
    special: &[(String, String)],
    tokens: &[String],
    types: &[i32],
    adds_bos: bool,
    context: Option<u64>,
) -> Map<String, Value> {
    let mut config = Map::new();
    config.insert("add_prefix_space".into(), false.into());
    config.insert("add_bos_token".into(), adds_bos.into());
    let added: Map<String, Value> = types
        .iter()
        .enumerate()
        .filter(|(_, kind)| **kind == CONTROL || **kind == USER_DEFINED)
        .map(|(id, kind)| {
            let entry = json!({
                "content": tokens[id], "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": *kind == CONTROL,
            });
            (id.to_string(), entry)
        })
        .collect();
    config.insert("added_tokens_decoder".into(), added.into());
    for (role, text) in special {
        config.insert(role.clone(), text.as_str().into());
    }
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    if let Some(context) = context {
        config.insert("model_max_length".into(), context.into());
    }
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    config
}
