//! How likely the tokens of a given text are, each given those before it.

use crate::cache::{KvCache, PAGE};
use crate::engine::Span;
use crate::prefix::{Place, Scored};
use crate::sampler::most_likely;
use crate::scheduler::Scheduler;
use didact_core::generate::{RequestError, TokenLogProb};
use didact_kernels::softmax;
use rayon::prelude::*;
use std::sync::Arc;

/// Tokens of a forward pass.
const PIECE: usize = 512;

/// A text that was read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    /// Log-probability in nats of each token but the first, which nothing predicts.
    pub log_probs: Vec<f32>,
    /// For each of these the likeliest tokens in its place, likeliest first; empty if none were asked for.
    pub top_log_probs: Vec<Vec<TokenLogProb>>,
}

impl Scheduler {
    /// Reads a text at once, with as many alternatives to each token as asked for, with an adapter if one is named.
    ///
    /// What the text has in common with texts that were read before is not read again, as long as its pages are known;
    /// requests for answers share them too. Keys and values that find no room beside those of the requests under way are
    /// kept apart until the text is read, beyond the limit.
    ///
    /// # Errors
    /// [`RequestError::PromptTooLong`], [`RequestError::Setting`] for an unknown adapter, or [`RequestError::NotFinite`] when
    /// the model gives no numbers.
    ///
    /// # Panics
    /// If an id is not in the vocabulary; those that [`LocalModel::encode`](crate::LocalModel::encode) gives are.
    pub fn read(&mut self, ids: &[u32], alternatives: usize, adapter: Option<&str>) -> Result<Reading, RequestError> {
        let model = Arc::clone(self.model());
        if ids.len() > model.context() {
            return Err(RequestError::PromptTooLong { tokens: ids.len(), context: model.context() });
        }
        let adapter = model.adapter(adapter)?;
        let root = Place::root(adapter.map_or(0, |(number, _)| number + 1));
        let adapter = || adapter.map(|(_, adapter)| Arc::clone(adapter));
        // The last token is never read: nothing is predicted after it.
        let read = &ids[..ids.len().saturating_sub(1)];
        let (mut place, mut cache) = (root, self.pool.cache(adapter()));
        let mut found = self.prefixes.follow_scored(&mut place, &mut cache, read, alternatives);
        // What follows a known page is predicted by its last token, which is read again.
        cache.truncate(found.len());
        let pages = KvCache::pages_for(read.len()) + 1 - KvCache::pages_for(found.len());
        let has_room = self.is_free(pages);
        if has_room {
            self.prefixes.forget((self.pool.live() + pages).saturating_sub(self.limit));
        } else {
            found.clear();
            cache = match adapter() {
                Some(adapter) => model.engine().cache_with(&adapter),
                None => model.engine().cache(),
            };
        }
        let (known, vocab) = (found.len(), model.engine().config().vocab_size);
        let targets = ids.get(1..).unwrap_or_default()[known..].chunks(PIECE);
        for (piece, targets) in read[known..].chunks(PIECE).zip(targets) {
            let mut spans = [Span { cache: &mut cache, ids: piece, logits_from: 0 }];
            model.engine().forward(&mut spans, |rows, scores| {
                found.par_extend(scores.par_chunks_exact(vocab).zip(&targets[rows]).map(|(scores, &target)| {
                    let total = softmax::log_sum_exp(scores);
                    let log_prob = |id: usize| (f64::from(scores[id]) - total) as f32;
                    let top = most_likely(scores, alternatives);
                    let top = top.into_iter().map(|id| TokenLogProb { id: id as u32, log_prob: log_prob(id) });
                    Scored { log_prob: log_prob(target as usize), top: top.collect() }
                }));
            });
        }
        if found.iter().any(|token| token.log_prob.is_nan()) {
            return Err(RequestError::NotFinite { tokens: ids.len() });
        }
        if has_room {
            self.prefixes.register_scored(&mut place, &mut cache, read, &found, alternatives);
        }
        drop(cache);
        self.forget_idle();
        let (log_probs, top_log_probs): (_, Vec<_>) =
            found.into_iter().map(|token| (token.log_prob, token.top)).unzip();
        Ok(Reading { log_probs, top_log_probs: if alternatives == 0 { Vec::new() } else { top_log_probs } })
    }
}

/// Numbers in the list of scores that belong to a page's tokens: of each token but the very first.
pub(crate) fn scores_of(page: usize) -> std::ops::Range<usize> {
    (page * PAGE).max(1) - 1..(page + 1) * PAGE - 1
}
