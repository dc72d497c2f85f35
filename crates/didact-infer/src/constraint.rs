//! Answers that must be JSON of a schema, match a regular expression or belong to a grammar.
//!
//! The work is done by `llguidance`: it walks the vocabulary as a tree of bytes and says which tokens can stand next. What
//! is here is the tree of our tokenizers, and the manners of a request that may be wrong.

use didact_core::generate::{Constraint, RequestError};
use didact_data::tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// White space between the parts of a JSON document: a space, or a new line and its indentation. Models that are made to
/// write JSON otherwise tend to write white space for ever.
const WHITE_SPACE: &str = r" |\r?\n[ \t]{0,32}";

/// Compiles the constraints of one model's requests.
pub(crate) struct Constraints {
    tokenizer: Arc<Tokenizer>,
    eos: Vec<u32>,
    vocab: usize,
    /// Made when it is first needed: it takes a moment and some memory.
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraints").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Constraints {
    /// For a model with scores for `vocab` tokens whose answers end with one of `eos`.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, eos: Vec<u32>, vocab: usize) -> Self {
        Self { tokenizer, eos, vocab, factory: OnceLock::new() }
    }

    /// The constraint, ready for the first token.
    ///
    /// # Errors
    /// [`RequestError::Constraint`] naming what is wrong with it.
    pub(crate) fn compile(&self, constraint: &Constraint) -> Result<Grammar, RequestError> {
        let kind = match constraint {
            Constraint::Json => "json",
            Constraint::JsonSchema(_) => "json_schema",
            Constraint::Regex(_) => "regex",
            Constraint::Grammar(_) => "grammar",
        };
        let refuse = |message: String| RequestError::Constraint { kind: kind.to_owned(), message };
        let grammar = match constraint {
            Constraint::Json => schema(json!({"type": "object"})),
            Constraint::JsonSchema(value @ (Value::Object(_) | Value::Bool(_))) => schema(value.clone()),
            Constraint::JsonSchema(other) => {
                return Err(refuse(format!("a schema is an object or a boolean, this is `{other}`")));
            }
            // Between slashes, as it is written below, it would begin a comment.
            Constraint::Regex(regex) if regex.is_empty() => TopLevelGrammar::from_lark("start: \"\"".into()),
            Constraint::Regex(regex) => {
                // Compiled for its message: what it says names the place.
                regex::Regex::new(regex).map_err(|error| refuse(error.to_string()))?;
                TopLevelGrammar::from_regex(regex)
            }
            Constraint::Grammar(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        };
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(|error| refuse(error.clone()))?;
        let parser = factory.create_parser(grammar).map_err(|error| refuse(format!("{error:#}")))?;
        let fresh = Matcher::new(Ok(parser));
        // Some errors only show when the first token is looked for.
        let mut matcher = fresh.deep_clone();
        let is_accepting = matcher.is_accepting().unwrap_or(false);
        if let Err(error) = matcher.compute_mask_or_eos()
            && !is_accepting
        {
            return Err(refuse(format!("{error:#}")));
        }
        Ok(Grammar { kind, matcher: fresh.deep_clone(), fresh: Arc::new(Fresh(fresh)), is_complete: false })
    }

    fn factory(&self) -> Result<ParserFactory, String> {
        let env: TokEnv = Arc::new(Vocabulary::new(&self.tokenizer, &self.eos, self.vocab)?);
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|error| format!("the tokenizer cannot be used for constraints: {error}"))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(factory)
    }
}

/// A schema with our white space, unless it brings settings of its own.
fn schema(value: Value) -> TopLevelGrammar {
    let value = match value {
        Value::Bool(true) => json!({}),
        other => other,
    };
    TopLevelGrammar::from_json_schema(match value {
        Value::Object(mut schema) if !schema.contains_key("x-guidance") => {
            schema.insert("x-guidance".into(), json!({"whitespace_pattern": WHITE_SPACE}));
            Value::Object(schema)
        }
        other => other,
    })
}

/// A constraint and how far an answer has come in it.
#[derive(Clone)]
pub(crate) struct Grammar {
    kind: &'static str,
    matcher: Matcher,
    /// Before the first token.
    fresh: Arc<Fresh>,
    is_complete: bool,
}

/// A matcher that nothing is asked of but copies.
struct Fresh(Matcher);

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar")
            .field("kind", &self.kind)
            .field("is_complete", &self.is_complete)
            .finish_non_exhaustive()
    }
}

impl Grammar {
    /// The constraint before the first token. It shares nothing that another thread may wait for.
    pub(crate) fn restarted(&self) -> Self {
        let fresh = Arc::clone(&self.fresh);
        Self { kind: self.kind, matcher: fresh.0.deep_clone(), fresh, is_complete: false }
    }

    /// Sets the scores of tokens that cannot stand next to -∞. None is left if the constraint is fulfilled, nothing can
    /// follow, and there is no token for the end.
    ///
    /// # Errors
    /// [`RequestError::Constraint`] when looking for them became too costly.
    pub(crate) fn rule_out(&mut self, scores: &mut [f32]) -> Result<(), RequestError> {
        // Asked first: a failure leaves nothing to ask.
        let is_accepting = self.matcher.is_accepting().unwrap_or(false);
        match self.matcher.compute_mask_or_eos() {
            Ok(mask) => {
                for (word, scores) in mask.as_slice().iter().zip(scores.chunks_mut(32)) {
                    if *word == u32::MAX {
                        continue;
                    }
                    for (bit, score) in scores.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *score = f32::NEG_INFINITY;
                        }
                    }
                }
                if mask.is_zero() {
                    self.is_complete = true;
                }
                Ok(())
            }
            Err(_) if is_accepting => {
                scores.fill(f32::NEG_INFINITY);
                self.is_complete = true;
                Ok(())
            }
            Err(error) => Err(self.refuse(&error)),
        }
    }

    /// Takes the next token. `true` if nothing can follow.
    ///
    /// # Errors
    /// [`RequestError::Constraint`] when it became too costly.
    pub(crate) fn accept(&mut self, id: u32) -> Result<bool, RequestError> {
        if let Err(error) = self.matcher.consume_token(id) {
            return Err(self.refuse(&error));
        }
        self.is_complete = self.matcher.is_stopped();
        Ok(self.is_complete)
    }

    /// Whether the text so far is complete and nothing can follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    fn refuse(&self, error: &impl fmt::Display) -> RequestError {
        RequestError::Constraint { kind: self.kind.to_owned(), message: error.to_string() }
    }
}

/// A tokenizer as a tree of bytes.
struct Vocabulary {
    trie: TokTrie,
    /// Recognises no special tokens in text: text that is forced is text.
    inner: Option<tokenizers::Tokenizer>,
}

impl Vocabulary {
    fn new(tokenizer: &Tokenizer, eos: &[u32], vocab: usize) -> Result<Self, String> {
        let is_byte_level = tokenizer.is_byte_level();
        let spells_spaces = (0..vocab as u32).any(|id| tokenizer.token(id).is_some_and(|token| token == "<0x0A>"));
        if !is_byte_level && !spells_spaces {
            return Err(
                "constraints need a tokenizer whose tokens are bytes (byte-level BPE, or with byte fallback)".into()
            );
        }
        let word = |id: u32| -> Vec<u8> {
            let Some(token) = tokenizer.token(id) else { return Vec::new() };
            if tokenizer.is_special(id) || eos.contains(&id) {
                return [&[TokTrie::SPECIAL_TOKEN_MARKER], token.as_bytes()].concat();
            }
            if is_byte_level {
                return tokenizer.token_bytes(id).unwrap_or_default();
            }
            byte_of(&token).map_or_else(|| token.replace('\u{2581}', " ").into_bytes(), |byte| vec![byte])
        };
        let words: Vec<Vec<u8>> = (0..vocab as u32).map(word).collect();
        let first = eos.first().copied().unwrap_or(INVALID_TOKEN);
        let mut trie = TokTrie::from(&TokRxInfo::new(vocab as u32, first), &words);
        if eos.len() > 1 {
            trie = trie.with_eos_tokens(eos);
        }
        let inner = is_byte_level.then(|| {
            let mut inner = tokenizer.inner().clone();
            inner.set_encode_special_tokens(true);
            inner
        });
        Ok(Self { trie, inner })
    }
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let encoding = self.inner.as_ref().and_then(|inner| inner.encode_fast(text, false).ok());
            encoding.map_or_else(|| self.trie.greedy_tokenize(text.as_bytes()), |encoding| encoding.get_ids().to_vec())
        })
    }

    fn tokenize_is_canonical(&self) -> bool {
        // Without byte levels a text's first token depends on what stands before it.
        self.inner.is_some()
    }
}
