//! Byte-level BPE for much text: the ids of the `tokenizers` crate, exactly, several times faster.
//!
//! Words are found by hand-written scanners ([`super::words`]), looked up in a cache as one machine word where they are
//! short, and merged pair by pair in the order of the merges' ranks only when they are new. Whatever a tokenizer does
//! beyond that (a normaliser, added tokens that swallow white space, another pattern) is left to the crate.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

use aho_corasick::{AhoCorasick, MatchKind};
use rustc_hash::FxHashMap;
use serde_json::Value;
use tokenizers::Model;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::words::{Digits, Pattern, Splitter};

/// Entries of the cache of short words (32 bytes each); it is emptied when three quarters are taken.
const SHORT_WORDS: usize = 1 << 16;
/// Bytes of a short word: they and their number fit 16 bytes.
const SHORT: usize = 15;
/// Entries of the cache of longer words, and the longest word that is remembered.
const LONG_WORDS: usize = 1 << 13;
const LONG: usize = 256;

/// No symbol.
const NONE: u32 = u32::MAX;

/// The tables of a byte-level BPE.
pub(super) struct FastBpe {
    splitter: Splitter,
    /// Texts that are not ASCII go through the crate, whose normaliser may change them.
    is_ascii_only: bool,
    /// Added tokens with their ids, those that are looked for first in front.
    added: Vec<(AhoCorasick, Vec<u32>)>,
    /// Id of each byte on its own; [`NONE`] for those that the vocabulary lacks. Words with such bytes are the model's.
    bytes: Box<[u32; 256]>,
    /// How each byte is spelt.
    spelling: Box<[char; 256]>,
    /// Rank and result of the merge of two ids.
    merges: FxHashMap<u64, (u32, u32)>,
    /// Whole words that are tokens, for tokenizers that look there first.
    whole: FxHashMap<Box<[u8]>, u32>,
    /// Caches not in use. What is in them does not show in the ids.
    caches: Mutex<Vec<Cache>>,
}

impl std::fmt::Debug for FastBpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FastBpe").field("splitter", &self.splitter).finish_non_exhaustive()
    }
}

/// How a pre-tokenizer cuts, when it is one of those known here.
fn splitter(pre_tokenizer: &PreTokenizerWrapper) -> Option<Splitter> {
    let bytes = |step: &PreTokenizerWrapper, wanted_regex: bool| matches!(step, PreTokenizerWrapper::ByteLevel(ByteLevel { add_prefix_space: false, use_regex, .. }) if *use_regex == wanted_regex);
    let gpt2 = |digits| Some(Splitter { digits, pattern: Pattern::Gpt2 });
    match pre_tokenizer {
        step if bytes(step, true) => gpt2(Digits::Kept),
        PreTokenizerWrapper::Sequence(steps) => match steps.as_ref() {
            [step] if bytes(step, true) => gpt2(Digits::Kept),
            [PreTokenizerWrapper::Digits(digits), step] if bytes(step, true) => {
                gpt2(if digits.individual_digits { Digits::Each } else { Digits::Runs })
            }
            [PreTokenizerWrapper::Split(split), step] if bytes(step, false) => {
                let SplitPattern::Regex(regex) = &split.pattern else { return None };
                let digits = match regex.as_str() {
                    super::gguf::QWEN2 => 1,
                    super::gguf::LLAMA3 => 3,
                    _ => return None,
                };
                (split.behavior == SplitDelimiterBehavior::Isolated && !split.invert)
                    .then_some(Splitter { digits: Digits::Kept, pattern: Pattern::Modern { digits } })
            }
            _ => None,
        },
        _ => None,
    }
}

impl FastBpe {
    /// The tables of a tokenizer, or `None` when it does something that is not known here.
    pub(super) fn new(inner: &tokenizers::Tokenizer) -> Option<Self> {
        let splitter = splitter(inner.get_pre_tokenizer()?)?;
        let is_ascii_only = match inner.get_normalizer() {
            None => false,
            // What is ASCII is in the composed form already.
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return None,
        };
        let ModelWrapper::BPE(bpe) = inner.get_model() else { return None };
        let is_plain = bpe.dropout.is_none_or(|p| p == 0.0)
            && bpe.continuing_subword_prefix.as_deref().unwrap_or_default().is_empty()
            && bpe.end_of_word_suffix.as_deref().unwrap_or_default().is_empty();
        if !is_plain || inner.get_encode_special_tokens() {
            return None;
        }
        // The crate shows its merges in no other way.
        let model = serde_json::to_value(bpe).ok()?;
        let vocab = model.get("vocab")?.as_object()?;
        let id = |token: &str| vocab.get(token).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let mut spelling = Box::new(['\0'; 256]);
        for c in (0..0x144).filter_map(char::from_u32) {
            if let Some(byte) = super::byte_of(c) {
                spelling[usize::from(byte)] = c;
            }
        }
        let mut bytes = Box::new([NONE; 256]);
        let mut whole = FxHashMap::default();
        for (token, number) in vocab {
            let number = u32::try_from(number.as_u64()?).ok()?;
            let mut chars = token.chars();
            if let (Some(c), None) = (chars.next(), chars.next())
                && let Some(byte) = super::byte_of(c)
            {
                bytes[usize::from(byte)] = number;
            }
            if bpe.ignore_merges
                && let Some(spelt) = token.chars().map(super::byte_of).collect::<Option<Vec<u8>>>()
            {
                whole.insert(spelt.into(), number);
            }
        }
        let mut merges = FxHashMap::default();
        for (rank, merge) in model.get("merges")?.as_array()?.iter().enumerate() {
            let (left, right) = match merge {
                Value::Array(pair) => (pair.first()?.as_str()?, pair.get(1)?.as_str()?),
                Value::String(pair) => pair.split_once(' ')?,
                _ => return None,
            };
            let result = id(&format!("{left}{right}"))?;
            merges.insert(pair(id(left)?, id(right)?), (u32::try_from(rank).ok()?, result));
        }
        let mut added: [Vec<(u32, String)>; 2] = Default::default();
        for (&id, token) in inner.get_added_vocabulary().get_added_tokens_decoder() {
            if token.single_word || token.lstrip || token.rstrip || token.content.is_empty() {
                return None;
            }
            if token.normalized && inner.get_normalizer().is_some() && !token.content.is_ascii() {
                return None;
            }
            added[usize::from(token.normalized)].push((id, token.content.clone()));
        }
        let mut searches = Vec::new();
        for mut tokens in added.into_iter().filter(|tokens| !tokens.is_empty()) {
            tokens.sort_unstable();
            let search = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(tokens.iter().map(|(_, content)| content))
                .ok()?;
            searches.push((search, tokens.iter().map(|(id, _)| *id).collect()));
        }
        Some(Self {
            splitter,
            is_ascii_only,
            added: searches,
            bytes,
            spelling,
            merges,
            whole,
            caches: Mutex::default(),
        })
    }

    /// Appends the ids of a text; `false` when this text is the crate's to encode.
    pub(super) fn encode(&self, inner: &tokenizers::Tokenizer, text: &str, out: &mut Vec<u32>) -> bool {
        if self.is_ascii_only && !text.is_ascii() {
            return false;
        }
        let lock = || self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cache = lock().pop().unwrap_or_default();
        let start = out.len();
        cache.scratch.is_refused = false;
        self.around(inner.get_model(), &self.added, text, &mut cache, out);
        let is_refused = cache.scratch.is_refused;
        lock().push(cache);
        if is_refused {
            out.truncate(start);
        }
        !is_refused
    }

    /// The text around added tokens, and their ids.
    fn around(
        &self,
        model: &ModelWrapper,
        added: &[(AhoCorasick, Vec<u32>)],
        text: &str,
        cache: &mut Cache,
        out: &mut Vec<u32>,
    ) {
        let Some(((search, ids), later)) = added.split_first() else {
            self.splitter.split(text, |word| self.word(model, word.as_bytes(), cache, out));
            return;
        };
        let mut start = 0;
        for found in search.find_iter(text) {
            self.around(model, later, &text[start..found.start()], cache, out);
            out.push(ids[found.pattern().as_usize()]);
            start = found.end();
        }
        self.around(model, later, &text[start..], cache, out);
    }

    fn word(&self, model: &ModelWrapper, word: &[u8], cache: &mut Cache, out: &mut Vec<u32>) {
        if word.len() <= SHORT {
            let key = short_key(word);
            let slot = cache.find(key);
            if cache.short[slot].key == key {
                return cache.short[slot].append(&cache.spilled, out);
            }
            let start = out.len();
            self.merge(model, word, &mut cache.scratch, out);
            if !cache.scratch.is_refused {
                cache.remember(slot, key, &out[start..]);
            }
            return;
        }
        if let Some(ids) = cache.long.get(word) {
            return out.extend_from_slice(ids);
        }
        let start = out.len();
        self.merge(model, word, &mut cache.scratch, out);
        if word.len() <= LONG && !cache.scratch.is_refused {
            if cache.long.len() >= LONG_WORDS {
                cache.long.clear();
            }
            cache.long.insert(word.into(), out[start..].into());
        }
    }

    /// Merges the bytes of a word, lowest rank first, of equal ones the leftmost first. An entry of the queue is out of
    /// date when its pair would no longer become the token it stands for: this is the crate's rule, and it decides ties
    /// between different spellings of one token as the crate does.
    fn merge(&self, model: &ModelWrapper, word: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if let Some(&id) = self.whole.get(word) {
            return out.push(id);
        }
        if word.iter().any(|&byte| self.bytes[usize::from(byte)] == NONE) {
            let spelt: String = word.iter().map(|&byte| self.spelling[usize::from(byte)]).collect();
            match model.tokenize(&spelt) {
                Ok(tokens) => out.extend(tokens.iter().map(|token| token.id)),
                Err(_) => scratch.is_refused = true,
            }
            return;
        }
        let Scratch { symbols, queue, .. } = scratch;
        symbols.clear();
        queue.clear();
        let n = word.len() as u32;
        for (i, &byte) in (0u32..).zip(word) {
            let (prev, next) = (i.wrapping_sub(1), if i + 1 == n { NONE } else { i + 1 });
            symbols.push(Symbol { id: self.bytes[usize::from(byte)], prev, next });
        }
        for (at, two) in (0u32..).zip(symbols.windows(2)) {
            if let Some(&(rank, id)) = self.merges.get(&pair(two[0].id, two[1].id)) {
                queue.push(Reverse((rank, at, id)));
            }
        }
        while let Some(Reverse((_, at, id))) = queue.pop() {
            let left = symbols[at as usize];
            if left.id == NONE || left.next == NONE {
                continue;
            }
            let right = symbols[left.next as usize];
            if self.merges.get(&pair(left.id, right.id)).is_none_or(|&(_, result)| result != id) {
                continue;
            }
            symbols[left.next as usize].id = NONE;
            symbols[at as usize] = Symbol { id, prev: left.prev, next: right.next };
            if right.next != NONE {
                symbols[right.next as usize].prev = at;
                let behind = symbols[right.next as usize].id;
                if let Some(&(rank, result)) = self.merges.get(&pair(id, behind)) {
                    queue.push(Reverse((rank, at, result)));
                }
            }
            if left.prev != NONE {
                let before = symbols[left.prev as usize].id;
                if let Some(&(rank, result)) = self.merges.get(&pair(before, id)) {
                    queue.push(Reverse((rank, left.prev, result)));
                }
            }
        }
        out.extend(symbols.iter().map(|symbol| symbol.id).filter(|&id| id != NONE));
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// A byte, or what it and its neighbours were merged into.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    /// [`NONE`] once it is part of the one before.
    id: u32,
    prev: u32,
    next: u32,
}

#[derive(Default)]
struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>,
    /// Whether the model refused a word of the text.
    is_refused: bool,
}

/// A short word and its ids: up to three in place, more among the spilled ones.
#[derive(Clone, Copy)]
struct Slot {
    /// The bytes and, in the highest one, their number; 0 for an empty slot.
    key: u128,
    ids: [u32; 3],
    count: u32,
}

impl Slot {
    #[inline]
    fn append(&self, spilled: &[u32], out: &mut Vec<u32>) {
        let count = self.count as usize;
        if count <= self.ids.len() {
            out.extend_from_slice(&self.ids[..count]);
        } else {
            let at = self.ids[0] as usize;
            out.extend_from_slice(&spilled[at..at + count]);
        }
    }
}

#[inline]
fn short_key(word: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    bytes[..word.len()].copy_from_slice(word);
    bytes[15] = word.len() as u8;
    u128::from_le_bytes(bytes)
}

/// Words met before.
struct Cache {
    short: Vec<Slot>,
    taken: usize,
    spilled: Vec<u32>,
    long: FxHashMap<Box<[u8]>, Box<[u32]>>,
    scratch: Scratch,
}

impl Default for Cache {
    fn default() -> Self {
        let empty = Slot { key: 0, ids: [0; 3], count: 0 };
        let short = vec![empty; SHORT_WORDS];
        Self { short, taken: 0, spilled: Vec::new(), long: FxHashMap::default(), scratch: Scratch::default() }
    }
}

impl Cache {
    /// Where a word is, or would be put.
    #[inline]
    fn find(&self, key: u128) -> usize {
        let (low, high) = (key as u64, (key >> 64) as u64);
        let mixed = u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(high ^ 0xd1b5_4a32_d192_ed03);
        let mut slot = (mixed as u64 ^ (mixed >> 64) as u64) as usize % SHORT_WORDS;
        while self.short[slot].key != 0 && self.short[slot].key != key {
            slot = (slot + 1) % SHORT_WORDS;
        }
        slot
    }

    fn remember(&mut self, mut slot: usize, key: u128, ids: &[u32]) {
        if self.taken >= SHORT_WORDS / 4 * 3 {
            self.short.fill(Slot { key: 0, ids: [0; 3], count: 0 });
            self.spilled.clear();
            self.taken = 0;
            slot = self.find(key);
        }
        let mut entry = Slot { key, ids: [0; 3], count: ids.len() as u32 };
        if ids.len() <= entry.ids.len() {
            entry.ids[..ids.len()].copy_from_slice(ids);
        } else {
            entry.ids[0] = self.spilled.len() as u32;
            self.spilled.extend_from_slice(ids);
        }
        self.short[slot] = entry;
        self.taken += 1;
    }
}
