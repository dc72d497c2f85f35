//! Text to token ids and back, with everything that belongs to it: special tokens, end of sequence, chat template.
//!
//! A tokenizer is read from a Hugging Face directory (`tokenizer.json` and what lies beside it) or out of a GGUF file,
//! and written as a directory that Python's `AutoTokenizer` loads to the same ids.

mod fast;
mod gguf;
mod incremental;
mod settings;
mod words;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use didact_core::files;
use didact_core::hash::{Digest, Hasher};
use serde_json::{Map, Value, json};
use tokenizers::DecoderWrapper;

use crate::error::DataError;
use crate::template::ChatTemplate;
use fast::FastBpe;

pub use incremental::IncrementalDecoder;

/// The special tokens that have a role of their own, by the names Hugging Face's files give them.
pub(crate) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A tokenizer with its special tokens and chat template.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    /// `tokenizer_config.json` as it will be written, without the chat template.
    config: Map<String, Value>,
    /// Role to text, in the order of [`ROLES`].
    special: Vec<(String, String)>,
    bos: Option<u32>,
    pad: Option<u32>,
    eos: Vec<u32>,
    adds_bos: bool,
    template: Option<ChatTemplate>,
    is_byte_level: bool,
    /// Tables for much text, made by [`Tokenizer::prepare_for_much`]; `None` in it when this tokenizer has no fast form.
    fast: Arc<OnceLock<Option<FastBpe>>>,
}

/// A token and the bytes of the text that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenSpan {
    /// The token.
    pub id: u32,
    /// First byte of the text. White space that belongs to the token counts.
    pub start: usize,
    /// One past its last byte. Tokens that share a character share its bytes.
    pub end: usize,
}

/// What [`Tokenizer`] is made from; the parts of it that differ between sources.
struct Parts {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    config: Map<String, Value>,
    special: Vec<(String, String)>,
    eos: Vec<u32>,
    adds_bos: bool,
    template: Option<(String, String)>,
}

impl Tokenizer {
    /// Reads a tokenizer from a directory with `tokenizer.json`, from that file itself, or from a `.gguf` file.
    ///
    /// The chat template is taken from `chat_template.jinja`, else from `tokenizer_config.json` (the one named
    /// `default` where there are several), else from the GGUF metadata. End-of-sequence ids are gathered from
    /// `generation_config.json`, `config.json`, `tokenizer_config.json` and the GGUF metadata.
    ///
    /// # Errors
    /// [`DataError`] naming the file: nothing there, not a tokenizer, an unsupported kind, a template with a mistake.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let parts = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            gguf::read(path)?
        } else {
            settings::read(path)?
        };
        Self::assemble(parts)
    }

    /// A tokenizer made here, with `special` tokens by role (`bos_token`, `eos_token`, …). The end-of-sequence token is
    /// the only one that ends a text.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if a special token is not in the vocabulary.
    pub fn from_parts(inner: tokenizers::Tokenizer, special: Vec<(String, String)>) -> Result<Self, DataError> {
        let path = PathBuf::from("tokenizer");
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        for (role, text) in &special {
            config.insert(role.clone(), text.as_str().into());
        }
        let eos = special.iter().filter(|(role, _)| role == "eos_token");
        let eos = eos.filter_map(|(_, text)| inner.token_to_id(text)).collect();
        Self::assemble(Parts { inner, path, config, special, eos, adds_bos: false, template: None })
    }

    fn assemble(parts: Parts) -> Result<Self, DataError> {
        let Parts { mut inner, path, config, mut special, eos, adds_bos, template } = parts;
        // Padding and truncation stored in the file are somebody else's batch settings.
        let broken = |cause: String| DataError::Tokenizer { path: path.clone(), cause };
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| broken(e.to_string()))?;
        special.sort_by_key(|(role, _)| ROLES.iter().position(|r| r == role));
        let id_of = |role: &str| -> Result<Option<u32>, DataError> {
            let Some((_, text)) = special.iter().find(|(r, _)| r == role) else { return Ok(None) };
            match inner.token_to_id(text) {
                Some(id) => Ok(Some(id)),
                None => Err(broken(format!("`{role}` is `{text}`, which is not in the vocabulary"))),
            }
        };
        let (bos, pad) = (id_of("bos_token")?, id_of("pad_token")?);
        let mut ids = Vec::new();
        for id in eos.into_iter().chain(id_of("eos_token")?) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let template = match template {
            Some((source, origin)) => Some(ChatTemplate::new(source, origin, special.clone())?),
            None => None,
        };
        let is_byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        Ok(Self {
            inner,
            path,
            config,
            special,
            bos,
            pad,
            eos: ids,
            adds_bos,
            template,
            is_byte_level,
            fast: Arc::default(),
        })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens of a text. Special tokens written in the text are recognised; none are added.
    ///
    /// # Errors
    /// [`DataError::Tokenize`] for text outside the vocabulary of a tokenizer without an unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Appends the tokens of a text, as [`encode`](Self::encode).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), DataError> {
        if let Some(Some(fast)) = self.fast.get()
            && fast.encode(&self.inner, text, ids)
        {
            return Ok(());
        }
        let encoding = self.inner.encode_fast(text, false).map_err(|e| refused("encode", &e))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// Makes tables that encode the common kinds of byte-level BPE several times faster, to the same ids; whether this
    /// tokenizer is one of them. Worth its tenths of a second before megabytes of text.
    pub fn prepare_for_much(&self) -> bool {
        self.fast.get_or_init(|| FastBpe::new(&self.inner)).is_some()
    }

    /// The tokens of a text and which bytes each stands for, as [`encode`](Self::encode).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_spans(&self, text: &str) -> Result<Vec<TokenSpan>, DataError> {
        let encoding = self.inner.encode(text, false).map_err(|e| refused("encode", &e))?;
        let mut spans = Vec::with_capacity(encoding.len());
        let mut covered = 0;
        for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            // Some tokenizers leave white space out of the offsets of the token that begins with it.
            let start = start.min(covered);
            let end = end.clamp(start, text.len());
            spans.push(TokenSpan { id, start, end });
            covered = covered.max(end);
        }
        Ok(spans)
    }

    /// The text of tokens; `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// [`DataError::Tokenize`] if the decoder refuses.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, DataError> {
        self.inner.decode(ids, skip_special).map_err(|e| refused("decode", &e))
    }

    /// Decodes one token at a time; text comes out as soon as its characters are complete.
    pub fn incremental_decoder(&self, skip_special: bool) -> IncrementalDecoder {
        IncrementalDecoder::new(skip_special)
    }

    /// The token's own spelling in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes of text that a token of a byte-level tokenizer stands for; `None` for other kinds and unknown ids.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        if !self.is_byte_level {
            return None;
        }
        let token = self.inner.id_to_token(id)?;
        // Added tokens are spelled as they are.
        let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
        Some(bytes.unwrap_or_else(|| token.into_bytes()))
    }

    /// Whether a token is a special one: never split, left out by `skip_special`.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// Whether a token is an added one: recognised in text as a whole, special or not.
    pub fn is_added(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
    }

    /// The token that begins a text, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a text or turn, from every place that names them.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The token that fills up short rows, if there is one.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Whether tokens stand for bytes as they are, so that texts can be tokenised piece by piece.
    pub fn is_byte_level(&self) -> bool {
        self.is_byte_level
    }

    /// Whether the model expects plain text to begin with [`bos`](Self::bos).
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Puts another chat template in the place of the model's own.
    ///
    /// # Errors
    /// [`DataError::TemplateSyntax`].
    pub fn with_template(mut self, source: &str, origin: &str) -> Result<Self, DataError> {
        self.template = Some(ChatTemplate::new(source, origin, self.special.clone())?);
        Ok(self)
    }

    /// The special tokens by role, such as (`eos_token`, `<|im_end|>`).
    pub fn special_tokens(&self) -> &[(String, String)] {
        &self.special
    }

    /// The tokenizer as the `tokenizers` crate has it.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// A digest of everything that decides ids and rendered text.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the tokenizer cannot be written as JSON.
    pub fn digest(&self) -> Result<Digest, DataError> {
        let mut hasher = Hasher::new();
        hasher.field("tokenizer.json", self.to_json(false)?.as_bytes());
        for (role, text) in &self.special {
            hasher.field(role, text.as_bytes());
        }
        for id in &self.eos {
            hasher.field("eos", &id.to_le_bytes());
        }
        hasher.field("adds_bos", &[u8::from(self.adds_bos)]);
        hasher.field("template", self.template.as_ref().map_or("", |t| t.source()).as_bytes());
        Ok(hasher.finish())
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and, if there is a template,
    /// `chat_template.jinja` into an existing or new directory. Python's `AutoTokenizer` loads it to the same ids.
    ///
    /// # Errors
    /// [`DataError::File`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), DataError> {
        let dir = dir.as_ref();
        files::create_dir_all(dir)?;
        files::write_atomic(dir.join("tokenizer.json"), self.to_json(true)?.as_bytes())?;
        let config = Value::Object(self.config.clone());
        files::write_atomic(dir.join("tokenizer_config.json"), pretty(&config).as_bytes())?;
        let map: Map<String, Value> = self.special.iter().map(|(role, text)| (role.clone(), json!(text))).collect();
        files::write_atomic(dir.join("special_tokens_map.json"), pretty(&Value::Object(map)).as_bytes())?;
        if let Some(template) = &self.template {
            files::write_atomic(dir.join("chat_template.jinja"), template.source().as_bytes())?;
        }
        Ok(())
    }

    fn to_json(&self, is_pretty: bool) -> Result<String, DataError> {
        self.inner
            .to_string(is_pretty)
            .map_err(|e| DataError::Tokenizer { path: self.path.clone(), cause: e.to_string() })
    }
}

/// The byte that a character of a byte-level vocabulary stands for: printable bytes are spelled as themselves, the
/// other 68 as U+0100 onwards, in order (GPT-2's `bytes_to_unicode`).
fn byte_of(c: char) -> Option<u8> {
    let is_itself = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = c as u32;
    if is_itself(code) {
        return u8::try_from(code).ok();
    }
    let index = code.checked_sub(0x100)? as usize;
    (0..=255u8).filter(|&b| !is_itself(u32::from(b))).nth(index)
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("JSON values print");
    text.push('\n');
    text
}

fn refused(action: &'static str, error: &tokenizers::Error) -> DataError {
    DataError::Tokenize { action, cause: error.to_string() }
}

#[cfg(test)]
mod tests;
