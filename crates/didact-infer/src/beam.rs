//! Beam search: the answers whose tokens are together the likeliest, instead of the likeliest token at each step.
//!
//! What is searched and when it stops follows `transformers` (`generate` with `num_beams` and `do_sample=False`): of all
//! continuations of the running beams by one token, those among the `beams` best that end are finished, the best others
//! run on. A finished beam is scored by the sum of its tokens' log-probabilities, the one that ends it included, divided
//! by their number to the power of `length_penalty`. Only tokens and lengths end a beam, no stop strings.

use crate::cache::KvCache;
use crate::engine::Span;
use crate::model::LocalModel;
use crate::sampler::{largest, most_likely, refuse};
use didact_core::cancel::Cancel;
use didact_core::generate::{Answer, FinishReason, GenerateError, Prompt, RequestError};
use didact_kernels::softmax;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// When a search ends although beams could run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EarlyStopping {
    /// When the best running beam, scored as if it ended now, is not better than the worst finished one
    /// (`early_stopping=False`).
    #[default]
    Heuristic,
    /// When as many beams are finished as there are beams (`early_stopping=True`).
    WhenFull,
    /// When no running beam can become better than the worst finished one (`early_stopping="never"`).
    Never,
}

/// What to search for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BeamSearch {
    /// Beams that run at a time.
    pub beams: usize,
    /// Answers to give, at most `beams`.
    pub n: usize,
    /// Most new tokens.
    pub max_tokens: usize,
    /// 0 compares sums of log-probabilities, 1 their means; more favours longer answers.
    pub length_penalty: f32,
    /// When the search ends early.
    pub early_stopping: EarlyStopping,
    /// Tokens that end an answer, beside the model's own end-of-turn tokens.
    pub stop_token_ids: Vec<u32>,
}

impl Default for BeamSearch {
    fn default() -> Self {
        Self {
            beams: 4,
            n: 1,
            max_tokens: 128,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
            stop_token_ids: Vec::new(),
        }
    }
}

impl BeamSearch {
    /// Checks ranges for a model of `vocab` tokens.
    fn check(&self, vocab: usize) -> Result<(), RequestError> {
        let most = (vocab / 2).min(1024);
        if !(1..=most).contains(&self.beams) {
            return refuse("beams", self.beams, format!("expected a count from 1 to {most}"));
        }
        if !(1..=self.beams).contains(&self.n) {
            return refuse("n", self.n, format!("expected a count from 1 to the number of beams, {}", self.beams));
        }
        if self.max_tokens == 0 {
            return refuse("max_tokens", 0, "expected a count from 1");
        }
        if !(-10.0..=10.0).contains(&self.length_penalty) {
            return refuse("length_penalty", self.length_penalty, "expected a number from -10 to 10");
        }
        if let Some(id) = self.stop_token_ids.iter().find(|&&id| id as usize >= vocab) {
            let expected = format!("expected ids below {vocab}, the model's vocabulary");
            return refuse("stop_token_ids", format!("token {id}"), expected);
        }
        Ok(())
    }

    fn score(&self, sum: f64, tokens: usize) -> f64 {
        sum / (tokens as f64).powf(f64::from(self.length_penalty))
    }
}

/// An answer that a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Beam {
    /// The answer.
    pub answer: Answer,
    /// Sum of the log-probabilities of its tokens and of the one that ended it, by length.
    pub score: f64,
}

#[derive(Debug, Clone, Default)]
struct Tokens {
    ids: Vec<u32>,
    log_probs: Vec<f32>,
}

struct Running {
    tokens: Tokens,
    sum: f64,
    cache: KvCache,
}

struct Finished {
    tokens: Tokens,
    score: f64,
    finish_reason: FinishReason,
}

/// A beam and a token behind it.
struct Continuation {
    beam: usize,
    id: u32,
    log_prob: f64,
    sum: f64,
}

/// Searches for the best continuations of a prompt, best first. When cancelled, the running beams are given as they are.
///
/// # Errors
/// A [`RequestError`] when this prompt cannot be answered so, a [`GenerateError`] when the tokenizer cannot decode.
pub fn beam_search(
    model: &LocalModel,
    prompt: &Prompt,
    search: &BeamSearch,
    cancel: &Cancel,
) -> Result<Result<Vec<Beam>, RequestError>, GenerateError> {
    let found = match find(model, prompt, search, cancel) {
        Ok(found) => found,
        Err(error) => return Ok(Err(error)),
    };
    let beams = found.into_iter().take(search.n).map(|Finished { tokens, score, finish_reason }| {
        let text = model.tokenizer().decode(&tokens.ids, true).map_err(|error| GenerateError {
            message: "generated tokens cannot be decoded".into(),
            source: Some(Box::new(error)),
        })?;
        let Tokens { ids, log_probs } = tokens;
        Ok(Beam { answer: Answer { text, ids, log_probs, top_log_probs: Vec::new(), finish_reason }, score })
    });
    beams.collect::<Result<_, _>>().map(Ok)
}

fn find(
    model: &LocalModel,
    prompt: &Prompt,
    search: &BeamSearch,
    cancel: &Cancel,
) -> Result<Vec<Finished>, RequestError> {
    let vocab = model.engine().config().vocab_size;
    search.check(vocab)?;
    let prompt = model.encode_to_continue(prompt)?;
    let mut ends = [model.eos(), &search.stop_token_ids].concat();
    ends.sort_unstable();
    ends.dedup();
    let most_tokens = search.max_tokens.min(model.context() - prompt.len());
    // So many that enough are left when every end of every beam is among them.
    let looked_at = ((1 + ends.len()).max(2) * search.beams).min(vocab);

    let mut running = vec![Running { tokens: Tokens::default(), sum: 0.0, cache: model.engine().cache() }];
    let mut finished: Vec<Finished> = Vec::new();
    for length in 1..=most_tokens {
        if cancel.is_cancelled() {
            let as_it_is = |beam: Running| Finished {
                score: search.score(beam.sum, beam.tokens.ids.len().max(1)),
                tokens: beam.tokens,
                finish_reason: FinishReason::Cancelled,
            };
            finished.extend(running.into_iter().map(as_it_is));
            finished.sort_by(|a, b| b.score.total_cmp(&a.score));
            return Ok(finished);
        }
        let best = continuations(model, &mut running, &prompt, looked_at)?;
        let ends_with = |c: &Continuation| ends.binary_search(&c.id).is_ok();
        for c in best.iter().take(search.beams).filter(|c| length == most_tokens || ends_with(c)) {
            let mut tokens = running[c.beam].tokens.clone();
            let is_end = ends_with(c);
            if !is_end {
                tokens.ids.push(c.id);
                tokens.log_probs.push(c.log_prob as f32);
            }
            let finish_reason = if is_end { FinishReason::Stop } else { FinishReason::Length };
            finished.push(Finished { tokens, score: search.score(c.sum, length), finish_reason });
        }
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(search.beams);
        if length == most_tokens {
            break;
        }
        let next: Vec<&Continuation> = best.iter().filter(|c| !ends_with(c)).take(search.beams).collect();
        let Some(best_sum) = next.first().map(|c| c.sum) else { break };
        if finished.len() == search.beams {
            let length = match search.early_stopping {
                EarlyStopping::WhenFull => break,
                EarlyStopping::Never if search.length_penalty > 0.0 => most_tokens,
                EarlyStopping::Never | EarlyStopping::Heuristic => length,
            };
            if finished.last().is_none_or(|worst| search.score(best_sum, length) <= worst.score) {
                break;
            }
        }
        running = next.into_iter().map(|c| continued(&running[c.beam], c)).collect();
    }
    Ok(finished)
}

fn continued(beam: &Running, with: &Continuation) -> Running {
    let mut tokens = beam.tokens.clone();
    tokens.ids.push(with.id);
    tokens.log_probs.push(with.log_prob as f32);
    Running { tokens, sum: with.sum, cache: beam.cache.clone() }
}

/// One forward pass over all beams: their best continuations, best first.
fn continuations(
    model: &LocalModel,
    running: &mut [Running],
    prompt: &[u32],
    count: usize,
) -> Result<Vec<Continuation>, RequestError> {
    let vocab = model.engine().config().vocab_size;
    let tokens = prompt.len() + running[0].tokens.ids.len();
    let mut sums = Vec::with_capacity(running.len());
    let spans = running.iter_mut().map(|beam| {
        sums.push(beam.sum);
        let ids = beam.tokens.ids.last().map_or(prompt, std::slice::from_ref);
        Span { cache: &mut beam.cache, ids, logits_from: ids.len() - 1 }
    });
    let mut spans: Vec<Span<'_>> = spans.collect();
    // The best of each beam; the best of all are among them.
    let mut of_beams: Vec<Option<Vec<(usize, f64)>>> = Vec::with_capacity(sums.len());
    model.engine().forward(&mut spans, |_, scores| {
        of_beams.par_extend(scores.par_chunks_exact(vocab).map(|scores| {
            largest(scores)?;
            let total = softmax::log_sum_exp(scores);
            let ids = most_likely(scores, count);
            Some(ids.into_iter().map(|id| (id, f64::from(scores[id]) - total)).collect())
        }));
    });
    let mut all = Vec::with_capacity(count * sums.len());
    for (beam, (of_beam, sum)) in of_beams.into_iter().zip(sums).enumerate() {
        let of_beam = of_beam.ok_or(RequestError::NotFinite { tokens })?;
        let of_beam = of_beam.into_iter().filter(|(_, log_prob)| log_prob.is_finite());
        all.extend(of_beam.map(|(id, log_prob)| Continuation { beam, id: id as u32, log_prob, sum: sum + log_prob }));
    }
    // The sort is stable: among equals the first beam's, and of it the likeliest, come first.
    all.sort_by(|a, b| b.sum.total_cmp(&a.sum));
    all.truncate(count);
    Ok(all)
}
