//! Training a tokenizer: byte-level BPE for real use, whole words for small experiments.
//!
//! The same texts in the same order give the same tokenizer, whatever the number of threads.

use didact_core::example::Example;
use serde::{Deserialize, Serialize};
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::whitespace::Whitespace;

use crate::error::DataError;
use crate::reader::{self, SourceConfig};
use crate::tokenizer::Tokenizer;

/// The bytes that a byte-level vocabulary always holds.
const ALPHABET: usize = 256;

/// What kind of tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// Byte-level BPE as GPT-2's: every text can be written, and comes back as it was.
    Bpe,
    /// Whole words and punctuation marks, split at white space, which is lost. Rare words become `<unk>`.
    Word,
}

/// How a tokenizer is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerSettings {
    /// The kind.
    pub kind: TokenizerKind,
    /// Most tokens, special ones included. There are fewer if the texts do not give as many.
    pub vocab_size: usize,
    /// Special tokens; they get the first ids, in this order.
    pub special_tokens: Vec<String>,
    /// Which of them ends a text.
    pub eos_token: Option<String>,
    /// How often a pair (BPE) or word must occur to become a token.
    pub min_frequency: u64,
}

impl TokenizerSettings {
    /// The usual settings: `<|endoftext|>` ends a text, words also have `<unk>`, everything that occurs twice may count.
    pub fn new(kind: TokenizerKind, vocab_size: usize) -> Self {
        let eos = "<|endoftext|>".to_owned();
        let mut special_tokens = vec![eos.clone()];
        if kind == TokenizerKind::Word {
            special_tokens.push(UNKNOWN.to_owned());
        }
        Self { kind, vocab_size, special_tokens, eos_token: Some(eos), min_frequency: 2 }
    }
}

/// What a word tokenizer writes for words it does not know.
const UNKNOWN: &str = "<unk>";

fn untrainable(cause: impl Into<String>) -> DataError {
    DataError::TokenizerTraining { cause: cause.into() }
}

/// Trains a tokenizer on the texts of a source: running text, prompts and completions, what is said in conversations.
///
/// # Errors
/// A file or row that cannot be read; otherwise as [`train_tokenizer`].
pub fn train_tokenizer_on(source: &SourceConfig, settings: &TokenizerSettings) -> Result<Tokenizer, DataError> {
    let mut failure = None;
    let mut rows = reader::open(source)?;
    let texts = std::iter::from_fn(|| match rows.next()? {
        Ok(row) => Some(texts_of(row.example)),
        Err(e) => {
            failure = Some(e);
            None
        }
    });
    let trained = train_tokenizer(texts.flatten(), settings);
    match failure {
        Some(e) => Err(e.into()),
        None => trained,
    }
}

fn texts_of(example: Example) -> Vec<String> {
    match example {
        Example::Text { text } => vec![text],
        Example::Completion { prompt, completion } => vec![prompt, completion],
        Example::Chat { messages, .. } => messages.into_iter().map(|m| m.content).collect(),
        Example::Preference { chosen, rejected } => [texts_of(*chosen), texts_of(*rejected)].concat(),
    }
}

/// Trains a tokenizer on texts.
///
/// # Errors
/// [`DataError::TokenizerTraining`] for texts without a word in them, for a vocabulary that has no room for its fixed
/// part, and for special tokens that are empty, given twice or missing.
pub fn train_tokenizer(
    texts: impl Iterator<Item = String> + Send,
    settings: &TokenizerSettings,
) -> Result<Tokenizer, DataError> {
    check(settings)?;
    let special: Vec<AddedToken> =
        settings.special_tokens.iter().map(|t| AddedToken::from(t.clone(), true).normalized(false)).collect();
    let (mut inner, mut trainer) = match settings.kind {
        TokenizerKind::Bpe => {
            let trainer = BpeTrainer::builder()
                .vocab_size(settings.vocab_size)
                .min_frequency(settings.min_frequency)
                .special_tokens(special)
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .show_progress(false)
                .build();
            let mut inner = tokenizers::Tokenizer::new(BPE::default());
            inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
            inner.with_decoder(Some(ByteLevel::new(true, true, true)));
            (inner, TrainerWrapper::from(trainer))
        }
        TokenizerKind::Word => {
            let trainer = WordLevelTrainer::builder()
                .vocab_size(settings.vocab_size)
                .min_frequency(settings.min_frequency)
                .special_tokens(special)
                .show_progress(false)
                .build()
                .map_err(|e| untrainable(e.to_string()))?;
            let model = WordLevel::builder().unk_token(UNKNOWN.into()).build();
            let mut inner = tokenizers::Tokenizer::new(model.map_err(|e| untrainable(e.to_string()))?);
            inner.with_pre_tokenizer(Some(Whitespace {}));
            (inner, TrainerWrapper::from(trainer))
        }
    };
    let mut is_blank = true;
    let texts = texts.inspect(|text| is_blank &= text.trim().is_empty());
    // The trainer shares its work out among threads; counting words does not depend on who counts.
    inner.train(&mut trainer, texts).map_err(|e| untrainable(e.to_string()))?;
    if is_blank {
        return Err(untrainable("there is no text in the input"));
    }
    let mut roles = Vec::new();
    if let Some(eos) = &settings.eos_token {
        roles.push(("eos_token".to_owned(), eos.clone()));
    }
    if settings.kind == TokenizerKind::Word {
        roles.push(("unk_token".to_owned(), UNKNOWN.to_owned()));
    }
    Tokenizer::from_parts(inner, roles)
}

fn check(settings: &TokenizerSettings) -> Result<(), DataError> {
    let special = &settings.special_tokens;
    if special.iter().any(|t| t.trim().is_empty()) {
        return Err(untrainable("a special token is empty"));
    }
    if let Some(twice) = special.iter().enumerate().find(|(i, t)| special[..*i].contains(t)) {
        return Err(untrainable(format!("special token `{}` is given twice", twice.1)));
    }
    if let Some(eos) = settings.eos_token.as_ref().filter(|eos| !special.contains(eos)) {
        return Err(untrainable(format!("`{eos}` is to end texts, but is not among the special tokens")));
    }
    let fixed = match settings.kind {
        TokenizerKind::Bpe => ALPHABET + special.len(),
        TokenizerKind::Word if !special.iter().any(|t| t == UNKNOWN) => {
            return Err(untrainable(format!("a word tokenizer needs the special token `{UNKNOWN}`")));
        }
        TokenizerKind::Word => special.len() + 1,
    };
    if settings.vocab_size < fixed {
        return Err(untrainable(format!(
            "a vocabulary of {} has no room: it needs at least {fixed} tokens (special tokens and {})",
            settings.vocab_size,
            if settings.kind == TokenizerKind::Bpe { "one per byte" } else { "one word" },
        )));
    }
    if u32::try_from(settings.vocab_size).is_err() {
        return Err(untrainable(format!("a vocabulary of {} is too large", settings.vocab_size)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
