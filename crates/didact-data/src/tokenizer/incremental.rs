//! Decoding token by token, for text that is shown while it is made.

use super::Tokenizer;
use crate::error::DataError;

/// Tokens looked back at by decoders whose output depends on what came before.
const CONTEXT: usize = 8;

/// Decodes a stream of tokens. Text comes out when its characters are complete: a character whose bytes are spread over
/// several tokens is held back until the last of them. Everything that comes out, put together, is what
/// [`Tokenizer::decode`] gives for all tokens at once.
#[derive(Debug, Clone)]
pub struct IncrementalDecoder {
    skip_special: bool,
    /// Bytes of a character that is not complete yet (byte-level tokenizers).
    pending: Vec<u8>,
    /// Recent tokens, and how many bytes of their text are out (other tokenizers).
    window: Vec<u32>,
    printed: usize,
}

impl IncrementalDecoder {
    pub(super) fn new(skip_special: bool) -> Self {
        Self { skip_special, pending: Vec::new(), window: Vec::new(), printed: 0 }
    }

    /// Takes the next token; gives the text that is complete with it, often a word, sometimes nothing.
    ///
    /// # Errors
    /// [`DataError::Tokenize`] if the tokenizer's decoder refuses.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, DataError> {
        if self.skip_special && tokenizer.is_special(id) {
            return Ok(String::new());
        }
        if tokenizer.is_byte_level {
            if let Some(bytes) = tokenizer.token_bytes(id) {
                self.pending.extend(bytes);
            }
            return Ok(self.complete_characters());
        }
        self.window.push(id);
        let text = tokenizer.decode(&self.window, false)?;
        if text.ends_with('\u{fffd}') || !text.is_char_boundary(self.printed.min(text.len())) {
            return Ok(String::new());
        }
        let out = text.get(self.printed..).unwrap_or_default().to_owned();
        self.printed = text.len();
        if self.window.len() > 2 * CONTEXT {
            self.window.drain(..self.window.len() - CONTEXT);
            self.printed = tokenizer.decode(&self.window, false)?.len();
        }
        Ok(out)
    }

    /// The rest, when no more tokens come: an incomplete character comes out as U+FFFD.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, DataError> {
        if tokenizer.is_byte_level {
            let rest = String::from_utf8_lossy(&self.pending).into_owned();
            self.pending.clear();
            return Ok(rest);
        }
        let text = tokenizer.decode(&self.window, false)?;
        let rest = text.get(self.printed..).unwrap_or_default().to_owned();
        self.window.clear();
        self.printed = 0;
        Ok(rest)
    }

    fn complete_characters(&mut self) -> String {
        let mut out = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = done + invalid.len() == self.pending.len();
            if !invalid.is_empty() && (!at_end || !may_continue(invalid)) {
                out.push('\u{fffd}');
                done += invalid.len();
            }
        }
        self.pending.drain(..done);
        out
    }
}

/// Whether these bytes, which are not UTF-8, could be the beginning of a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}
