//! How likely the tokens of a given text are, each given those before it.

use crate::engine::Span;
use crate::model::LocalModel;
use crate::sampler::most_likely;
use didact_core::generate::{RequestError, TokenLogProb};
use didact_kernels::softmax;
use rayon::prelude::*;

/// Tokens of a forward pass: who waits for a pass of their own does not wait for the whole text.
const PIECE: usize = 512;

/// A text that was read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    /// Log-probability in nats of each token but the first, which nothing predicts.
    pub log_probs: Vec<f32>,
    /// For each of these the likeliest tokens in its place, likeliest first; empty if none were asked for.
    pub top_log_probs: Vec<Vec<TokenLogProb>>,
}

impl LocalModel {
    /// Reads a text, with as many alternatives to each token as asked for, with an adapter if one is named.
    ///
    /// # Errors
    /// [`RequestError::PromptTooLong`], [`RequestError::Setting`] for an unknown adapter, or [`RequestError::NotFinite`] when
    /// the model gives no numbers.
    ///
    /// # Panics
    /// If an id is not in the vocabulary; those that [`encode`](Self::encode) gives are.
    pub fn read(&self, ids: &[u32], alternatives: usize, adapter: Option<&str>) -> Result<Reading, RequestError> {
        if ids.len() > self.context() {
            return Err(RequestError::PromptTooLong { tokens: ids.len(), context: self.context() });
        }
        let engine = self.engine();
        let vocab = engine.config().vocab_size;
        let mut cache = match self.adapter(adapter)? {
            Some((_, adapter)) => engine.cache_with(adapter),
            None => engine.cache(),
        };
        // The last token is never read: nothing is predicted after it.
        let read = &ids[..ids.len().saturating_sub(1)];
        let mut found: Vec<(f32, Vec<TokenLogProb>)> = Vec::with_capacity(read.len());
        for (piece, targets) in read.chunks(PIECE).zip(ids.get(1..).unwrap_or_default().chunks(PIECE)) {
            let mut spans = [Span { cache: &mut cache, ids: piece, logits_from: 0 }];
            engine.forward(&mut spans, |rows, scores| {
                found.par_extend(scores.par_chunks_exact(vocab).zip(&targets[rows]).map(|(scores, &target)| {
                    let total = softmax::log_sum_exp(scores);
                    let log_prob = |id: usize| (f64::from(scores[id]) - total) as f32;
                    let top = most_likely(scores, alternatives);
                    let top = top.into_iter().map(|id| TokenLogProb { id: id as u32, log_prob: log_prob(id) });
                    (log_prob(target as usize), top.collect())
                }));
            });
        }
        if found.iter().any(|(log_prob, _)| log_prob.is_nan()) {
            return Err(RequestError::NotFinite { tokens: ids.len() });
        }
        let (log_probs, top_log_probs): (_, Vec<_>) = found.into_iter().unzip();
        Ok(Reading { log_probs, top_log_probs: if alternatives == 0 { Vec::new() } else { top_log_probs } })
    }
}
