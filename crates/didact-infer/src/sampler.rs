//! Choosing the next token from the model's scores.
//!
//! A step's scores (logits) are changed in this order, which is vLLM's as far as scores are changed and that of
//! `transformers` as far as tokens are left out: the constraint rules tokens out, then the model's own
//! [rule](crate::ScoreRule) if it has one; biases are added; tokens that would end
//! the answer before `min_tokens` are ruled out; repetition, frequency and presence penalties; temperature; top-k; top-p
//! over what top-k left; min-p. (vLLM applies min-p before top-k and top-p; that differs only where top-p is given too.)
//! Log-probabilities are those of the scores as the model gave them.
//!
//! The whole vocabulary is sorted for nobody: greedy decoding is one scan, cut-offs select what they keep, and a draw from
//! everything walks through sums of blocks.

mod filter;
#[cfg(test)]
mod tests;

use crate::constraint::{Constraints, Grammar};
use crate::rule::ScoreRule;
use didact_core::generate::{RequestError, Sampling, TokenLogProb};
use didact_core::seed::Streams;
use didact_data::tokenizer::Tokenizer;
use didact_kernels::{random, softmax};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use filter::{largest, most_likely};

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Its id.
    pub id: u32,
    /// Its log-probability in nats under the model's own scores, if the request asked for log-probabilities.
    pub log_prob: Option<f32>,
    /// The likeliest tokens, likeliest first, as many as the request asked for.
    pub top: Vec<TokenLogProb>,
    /// Whether the answer ends here.
    pub end: Option<End>,
}

/// Where an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Before the token: it is an end of turn or a stop token, and no part of the answer.
    Before,
    /// After the token: the constraint is fulfilled and lets nothing follow.
    After,
}

/// Makes the samplers of one model's requests.
#[derive(Debug)]
pub struct Samplers {
    vocab: usize,
    eos: Vec<u32>,
    constraints: Constraints,
    rule: Option<Arc<dyn ScoreRule>>,
}

impl Samplers {
    /// For a model with scores for `vocab` tokens whose answers end with one of `eos`.
    pub fn new(tokenizer: Arc<Tokenizer>, eos: Vec<u32>, vocab: usize) -> Self {
        Self { vocab, constraints: Constraints::new(tokenizer, eos.clone(), vocab), eos, rule: None }
    }

    /// Sets the rule that all samplers made from now on follow.
    pub(crate) fn set_rule(&mut self, rule: Arc<dyn ScoreRule>) {
        self.rule = Some(rule);
    }

    /// Checks a request's settings; the sampler of its first answer.
    ///
    /// # Errors
    /// [`RequestError::Setting`] naming a setting that is out of range or a token that the model does not have,
    /// [`RequestError::Constraint`].
    pub fn prepare(&self, sampling: &Sampling) -> Result<Sampler, RequestError> {
        check(sampling)?;
        check_tokens(sampling, self.vocab)?;
        let grammar = sampling.constraint.as_ref().map(|c| self.constraints.compile(c)).transpose()?;
        Ok(Sampler::new(sampling, &self.eos, grammar, self.rule.clone()))
    }
}

/// How one answer of a request chooses its tokens. What it draws is a pure function of the request's seed, the answer's
/// number and the token's number.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Arc<Settings>,
    key: u64,
    /// How often the answer has each token; tokens of the prompt alone 0 times. Kept only for penalties.
    seen: BTreeMap<u32, u32>,
    /// Tokens of the answer that are counted in `seen`; `None` before the prompt is.
    counted: Option<usize>,
    grammar: Option<Grammar>,
    /// Scores that were changed.
    row: Vec<f32>,
}

#[derive(Debug)]
struct Settings {
    sampling: Sampling,
    /// Tokens that end an answer, in order.
    ends: Vec<u32>,
    rule: Option<Arc<dyn ScoreRule>>,
}

impl Settings {
    fn has_penalties(&self) -> bool {
        let s = &self.sampling;
        s.repetition_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0
    }
}

impl Sampler {
    /// The sampler of a request's first answer. The settings were checked.
    fn new(sampling: &Sampling, eos: &[u32], grammar: Option<Grammar>, rule: Option<Arc<dyn ScoreRule>>) -> Self {
        let mut ends = if sampling.ignore_eos { Vec::new() } else { eos.to_vec() };
        ends.extend(&sampling.stop_token_ids);
        ends.sort_unstable();
        ends.dedup();
        let settings = Arc::new(Settings { sampling: sampling.clone(), ends, rule });
        let key = key(sampling.seed, 0);
        Self { settings, key, seen: BTreeMap::new(), counted: None, grammar, row: Vec::new() }
    }

    /// The sampler of answer number `answer` of the same request, from its beginning.
    pub fn for_answer(&self, answer: usize) -> Self {
        Self {
            settings: Arc::clone(&self.settings),
            key: key(self.settings.sampling.seed, answer),
            seen: BTreeMap::new(),
            counted: None,
            grammar: self.grammar.as_ref().map(Grammar::restarted),
            row: Vec::new(),
        }
    }

    /// Chooses the token after `answer`, the tokens of the answer so far, from the model's scores there. Each token is
    /// chosen once and in order. Between equal scores the smaller id wins.
    ///
    /// # Errors
    /// [`RequestError::NotFinite`], [`RequestError::Constraint`] when keeping the constraint became too costly.
    ///
    /// # Panics
    /// If there are fewer scores than the settings speak of.
    pub fn choose(&mut self, scores: &[f32], prompt: &[u32], answer: &[u32]) -> Result<Choice, RequestError> {
        let not_finite = || RequestError::NotFinite { tokens: prompt.len() + answer.len() };
        let own_best = largest(scores).ok_or_else(not_finite)?;
        let settings = Arc::clone(&self.settings);
        let sampling = &settings.sampling;
        let mut row = std::mem::take(&mut self.row);
        let is_changed = self.change(&mut row, scores, prompt, answer)?;
        let changed = if is_changed { &row[..] } else { scores };
        let best = if is_changed { largest(changed) } else { Some(own_best) };
        let id = match best {
            // The constraint is fulfilled, and the model has no token to say so.
            None if self.grammar.as_ref().is_some_and(Grammar::is_complete) => None,
            None => return Err(not_finite()),
            Some(best) if sampling.temperature == 0.0 => Some(best as u32),
            Some(best) => {
                let u = random::uniform(self.key, answer.len() as u64);
                Some(filter::draw(sampling, changed, best, u) as u32)
            }
        };
        self.row = row;
        let end = match id {
            None => Some(End::Before),
            Some(id) if settings.ends.binary_search(&id).is_ok() => Some(End::Before),
            Some(id) => match &mut self.grammar {
                Some(grammar) => grammar.accept(id)?.then_some(End::After),
                None => None,
            },
        };
        let id = id.unwrap_or(own_best as u32);
        let (mut log_prob, mut top) = (None, Vec::new());
        if sampling.log_probs || sampling.top_log_probs > 0 {
            let total = softmax::log_sum_exp(scores);
            let of = |id: usize| (f64::from(scores[id]) - total) as f32;
            log_prob = sampling.log_probs.then(|| of(id as usize));
            if sampling.top_log_probs > 0 {
                let likeliest = most_likely(scores, sampling.top_log_probs);
                top = likeliest.into_iter().map(|id| TokenLogProb { id: id as u32, log_prob: of(id) }).collect();
            }
        }
        Ok(Choice { id, log_prob, top, end })
    }

    /// Writes the scores into `row` as constraint, rule, bias and penalties change them. `false` if none does.
    fn change(
        &mut self,
        row: &mut Vec<f32>,
        scores: &[f32],
        prompt: &[u32],
        answer: &[u32],
    ) -> Result<bool, RequestError> {
        let settings = Arc::clone(&self.settings);
        let s = &settings.sampling;
        let is_early = answer.len() < s.min_tokens && !settings.ends.is_empty();
        let has_penalties = settings.has_penalties();
        let is_free = self.grammar.is_none() && settings.rule.is_none();
        if is_free && s.logit_bias.is_empty() && !is_early && !has_penalties {
            return Ok(false);
        }
        scores.clone_into(row);
        let mut may_end_early = false;
        if let Some(grammar) = &mut self.grammar {
            grammar.rule_out(row)?;
            // A constraint that is fulfilled wins over `min_tokens`.
            may_end_early = is_early && settings.ends.iter().any(|&id| row[id as usize] > f32::NEG_INFINITY);
        }
        if let Some(rule) = &settings.rule {
            let kept = row.clone();
            rule.rule_out(prompt, answer, row);
            if largest(row).is_none() {
                kept.clone_into(row);
            }
        }
        for (&id, bias) in &s.logit_bias {
            row[id as usize] += bias;
        }
        if is_early {
            let kept = if may_end_early { row.clone() } else { Vec::new() };
            for &id in &settings.ends {
                row[id as usize] = f32::NEG_INFINITY;
            }
            if may_end_early && largest(row).is_none() {
                kept.clone_into(row);
            }
        }
        if has_penalties {
            self.count(prompt, answer);
            for (&id, &count) in &self.seen {
                let score = &mut row[id as usize];
                if *score > 0.0 {
                    *score /= s.repetition_penalty;
                } else {
                    *score *= s.repetition_penalty;
                }
                if count > 0 {
                    *score -= s.frequency_penalty * count as f32 + s.presence_penalty;
                }
            }
        }
        Ok(true)
    }

    /// Brings `seen` up to date.
    fn count(&mut self, prompt: &[u32], answer: &[u32]) {
        let counted = self.counted.unwrap_or_else(|| {
            self.seen.extend(prompt.iter().map(|&id| (id, 0)));
            0
        });
        for &id in &answer[counted..] {
            *self.seen.entry(id).or_default() += 1;
        }
        self.counted = Some(answer.len());
    }
}

fn key(seed: u64, answer: usize) -> u64 {
    Streams::new(seed).key("sample", &[answer as u64])
}

/// The error that a setting is out of range.
pub(crate) fn refuse(name: &str, value: impl ToString, expected: impl Into<String>) -> Result<(), RequestError> {
    Err(RequestError::Setting { name: name.into(), value: value.to_string(), expected: expected.into() })
}

/// Checks the ranges of a request's settings, as far as they can be checked without the model.
///
/// # Errors
/// [`RequestError::Setting`] naming the setting that is out of range.
pub fn check(sampling: &Sampling) -> Result<(), RequestError> {
    let s = sampling;
    if !(s.temperature.is_finite() && s.temperature >= 0.0) {
        return refuse("temperature", s.temperature, "expected a number from 0");
    }
    if let Some(p) = s.top_p.filter(|&p| !(p > 0.0 && p <= 1.0)) {
        return refuse("top_p", p, "expected a number above 0 and at most 1");
    }
    if s.top_k == Some(0) {
        return refuse("top_k", 0, "expected a count from 1; leave it out to keep all tokens");
    }
    if let Some(p) = s.min_p.filter(|p| !(0.0..=1.0).contains(p)) {
        return refuse("min_p", p, "expected a number from 0 to 1");
    }
    if !(0.01..=100.0).contains(&s.repetition_penalty) {
        return refuse(
            "repetition_penalty",
            s.repetition_penalty,
            "expected a number from 0.01 to 100; 1 is no penalty",
        );
    }
    for (name, penalty) in [("presence_penalty", s.presence_penalty), ("frequency_penalty", s.frequency_penalty)] {
        if !(-2.0..=2.0).contains(&penalty) {
            return refuse(name, penalty, "expected a number from -2 to 2");
        }
    }
    if let Some((id, bias)) = s.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(*bias)) {
        return refuse("logit_bias", format!("{bias} for token {id}"), "expected a number from -100 to 100");
    }
    if s.max_tokens == 0 {
        return refuse("max_tokens", 0, "expected a count from 1");
    }
    if s.min_tokens > s.max_tokens {
        return refuse("min_tokens", s.min_tokens, format!("expected at most `max_tokens`, which is {}", s.max_tokens));
    }
    if s.n == 0 {
        return refuse("n", 0, "expected a count from 1");
    }
    if s.n > 1 && s.temperature == 0.0 {
        return refuse(
            "n",
            s.n,
            "expected 1 at temperature 0, where all answers would be the same; give a temperature",
        );
    }
    if s.stop.iter().any(String::is_empty) {
        return refuse("stop", "\"\"", "expected strings of at least one character");
    }
    if s.ignore_eos && s.constraint.is_some() {
        return refuse("ignore_eos", true, "expected false with a constraint, which ends with an end-of-turn token");
    }
    Ok(())
}

/// Checks the tokens that the settings name.
fn check_tokens(sampling: &Sampling, vocab: usize) -> Result<(), RequestError> {
    let below = || format!("expected ids below {vocab}, the model's vocabulary");
    if let Some(id) = sampling.stop_token_ids.iter().find(|&&id| id as usize >= vocab) {
        return refuse("stop_token_ids", format!("token {id}"), below());
    }
    if let Some((id, _)) = sampling.logit_bias.last_key_value().filter(|(id, _)| **id as usize >= vocab) {
        return refuse("logit_bias", format!("token {id}"), below());
    }
    if sampling.top_log_probs > vocab {
        return refuse("top_log_probs", sampling.top_log_probs, format!("expected at most {vocab}, the vocabulary"));
    }
    Ok(())
}
