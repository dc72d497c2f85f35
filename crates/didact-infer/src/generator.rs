//! The generator of this process: the [`Generator`] trait as a thin loop over a [`Scheduler`], and scoring.

use crate::cache::{KvCache, PAGE, Pool};
use crate::engine::{Engine, Span};
use crate::error::InferError;
use crate::model::LocalModel;
use crate::prefix::{Place, Prefixes};
use crate::sampler;
use crate::scheduler::{Event, Options, Scheduler};
use crate::weights::EngineWeights;
use didact_core::cancel::Cancel;
use didact_core::generate::{Completion, GenerateError, Generator, Prompt, Request, RequestError, TokenLogProbs};
use didact_data::tokenizer::Tokenizer;
use didact_kernels::softmax;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// A [`Generator`] that runs a model in this process.
#[derive(Debug)]
pub struct LocalGenerator {
    model: Arc<LocalModel>,
    options: Options,
    /// The scheduler of the last call, idle: it knows the beginnings of that call's prompts.
    idle: Mutex<Option<Scheduler>>,
}

impl LocalGenerator {
    /// Packs the weights for generation.
    ///
    /// # Errors
    /// When the tokenizer does not belong to the model, or an option is 0.
    pub fn new(weights: EngineWeights, tokenizer: Arc<Tokenizer>, options: Options) -> Result<Self, InferError> {
        options.validate()?;
        Self::with_model(Arc::new(LocalModel::new(weights, tokenizer, options.precision)?), options)
    }

    /// A generator over a model that others may use too.
    ///
    /// # Errors
    /// When an option is 0.
    pub fn with_model(model: Arc<LocalModel>, options: Options) -> Result<Self, InferError> {
        let idle = Mutex::new(Some(Scheduler::new(Arc::clone(&model), options)?));
        Ok(Self { model, options, idle })
    }

    /// The model.
    pub fn model(&self) -> &Arc<LocalModel> {
        &self.model
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<Scheduler>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine underneath.
    pub fn engine(&self) -> &Engine {
        self.model.engine()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.model.tokenizer()
    }
}

impl Generator for LocalGenerator {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let idle = self.idle().take();
        let mut scheduler = match idle {
            Some(scheduler) => scheduler,
            None => Scheduler::new(Arc::clone(&self.model), self.options)?,
        };
        let mut waiting = requests.iter().enumerate();
        let mut indices = BTreeMap::new();
        let mut events = Vec::new();
        loop {
            if cancel.is_cancelled() {
                for (id, index) in indices {
                    if let Some(completion) = scheduler.cancel(id) {
                        sink(index, Ok(completion));
                    }
                }
                break;
            }
            while scheduler.has_room()
                && let Some((index, request)) = waiting.next()
            {
                match scheduler.submit(request.clone()) {
                    Ok(id) => {
                        indices.insert(id, index);
                    }
                    Err(error) => sink(index, Err(error)),
                }
            }
            if indices.is_empty() {
                break;
            }
            scheduler.step(&mut events)?;
            for event in events.drain(..) {
                let (id, result) = match event {
                    Event::Finished { id, completion } => (id, Ok(completion)),
                    Event::Failed { id, error } => (id, Err(error)),
                    Event::Text { .. } | Event::Answer { .. } => continue,
                };
                if let Some(index) = indices.remove(&id) {
                    sink(index, result);
                }
            }
        }
        *self.idle() = Some(scheduler);
        Ok(())
    }

    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let mut scoring = Scoring::new(self);
        let mut waiting = pairs.iter().enumerate();
        let mut queue = VecDeque::new();
        loop {
            if cancel.is_cancelled() {
                return Ok(());
            }
            while queue.len() < AHEAD * self.options.max_streams
                && let Some((index, (prompt, continuation))) = waiting.next()
            {
                match self.pair(prompt, continuation).and_then(|pair| scoring.fits(pair)) {
                    Ok(pair) => queue.push_back((index, pair)),
                    Err(error) => sink(index, Err(error)),
                }
            }
            if queue.is_empty() {
                return Ok(());
            }
            for (index, scored) in scoring.pass(&mut queue) {
                sink(index, scored);
            }
        }
    }
}

/// Pairs that are looked at for each one that a pass has room for: those whose beginning another one is reading wait for
/// it, and there shall be enough others.
const AHEAD: usize = 4;

/// A prompt and its continuation as one sequence.
struct Pair {
    ids: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
}

impl Pair {
    /// What is read: the last token never is, since nothing is predicted after it, and nothing if there is nothing to
    /// score.
    fn read(&self) -> &[u32] {
        if self.prompt == self.ids.len() { &[] } else { &self.ids[..self.ids.len() - 1] }
    }

    /// The part of it after which no scores are needed, so that others may have read it.
    fn shared(&self) -> &[u32] {
        &self.read()[..self.read().len().min(self.prompt - 1)]
    }
}

impl LocalGenerator {
    /// Two texts are tokenised together, so that the border falls as it would in running text: the continuation is what
    /// follows after as many tokens as the prompt has alone. White space at the end of the prompt counts as the
    /// continuation's, since tokens begin with white space. Before an empty prompt stands the token that begins a text, or
    /// else the one that ends it. All of this as the lm-evaluation-harness has it.
    fn pair(&self, prompt: &Prompt, continuation: &Prompt) -> Result<Pair, RequestError> {
        let rendered = if let Prompt::Messages { messages, tools } = prompt {
            Some(Prompt::Text(self.model.render(messages, tools)?))
        } else {
            None
        };
        let prompt = rendered.as_ref().unwrap_or(prompt);
        let (begin, ids) = if let (Prompt::Text(first), Prompt::Text(second)) = (prompt, continuation) {
            let whole = format!("{first}{second}");
            let first = first.trim_end();
            if first.is_empty() {
                let prefix = self.tokenizer().bos().or(self.model.eos().first().copied());
                let begin: Vec<u32> = prefix.into_iter().collect();
                let rest = self.tokenizer().encode(&whole).map_err(|e| RequestError::Tokenizer(e.to_string()))?;
                (begin.clone(), [begin, rest].concat())
            } else {
                (self.model.encode(&Prompt::Text(first.to_owned()))?, self.model.encode(&Prompt::Text(whole))?)
            }
        } else {
            let begin = self.model.encode(prompt)?;
            (begin.clone(), [begin, self.model.encode(continuation)?].concat())
        };
        if begin.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        // The last token is predicted and never read.
        if ids.len() > self.model.context() + 1 {
            return Err(RequestError::PromptTooLong { tokens: ids.len(), context: self.model.context() });
        }
        let prompt = begin.len().min(ids.len());
        Ok(Pair { ids, prompt })
    }
}

/// Pairs on their way: what their prompts have in common is read once.
struct Scoring<'a> {
    engine: &'a Engine,
    options: Options,
    pool: Arc<Pool>,
    prefixes: Prefixes,
    /// Most pages.
    limit: usize,
}

/// A pair of a pass.
struct Chosen {
    index: usize,
    pair: Pair,
    place: Place,
    cache: KvCache,
}

impl<'a> Scoring<'a> {
    fn new(generator: &'a LocalGenerator) -> Self {
        let (engine, options) = (generator.engine(), generator.options);
        let pool = engine.new_pool();
        let limit = options.max_cache_bytes / pool.page_bytes();
        Self { engine, options, pool, prefixes: Prefixes::new(), limit }
    }

    /// The pair, if the memory can hold it.
    fn fits(&self, pair: Pair) -> Result<Pair, RequestError> {
        let context = self.limit * PAGE;
        if pair.read().len() > context {
            return Err(RequestError::PromptTooLong { tokens: pair.read().len(), context });
        }
        Ok(pair)
    }

    /// As many pairs as a pass has room for, at least one, but none whose next page another one of them reads. Makes room
    /// for the pages that the pass fills.
    fn choose(&mut self, queue: &mut VecDeque<(usize, Pair)>) -> Vec<Chosen> {
        let (mut chosen, mut later): (Vec<Chosen>, VecDeque<_>) = (Vec::new(), VecDeque::new());
        let mut in_flight = BTreeSet::new();
        let (mut tokens, mut pages) = (0, 0);
        while tokens < self.options.max_batch_tokens
            && chosen.len() < self.options.max_streams
            && let Some((index, pair)) = queue.pop_front()
        {
            let (mut place, mut cache) = (Place::root(0), self.pool.cache(None));
            self.prefixes.follow(&mut place, &mut cache, pair.shared());
            let next = pair.shared()[cache.len()..].first_chunk::<PAGE>().map(|page| (place.number(), *page));
            let own = cache.pages_to_come(pair.read().len());
            let used = self.pool.live() - self.prefixes.idle();
            let has_room = chosen.is_empty() || used + pages + own <= self.limit;
            if !has_room || next.is_some_and(|next| !in_flight.insert(next)) {
                later.push_back((index, pair));
                continue;
            }
            tokens += pair.read().len() - cache.len();
            pages += own;
            chosen.push(Chosen { index, pair, place, cache });
        }
        // What waited stays in front.
        later.append(queue);
        *queue = later;
        self.prefixes.forget((self.pool.live() + pages).saturating_sub(self.limit));
        chosen
    }

    /// One forward pass: the scores of some of the pairs.
    fn pass(&mut self, queue: &mut VecDeque<(usize, Pair)>) -> Vec<(usize, Result<TokenLogProbs, RequestError>)> {
        let mut chosen = self.choose(queue);
        let vocab = self.engine.config().vocab_size;
        let continuations = chosen.iter().flat_map(|Chosen { pair, .. }| &pair.ids[pair.prompt..]);
        let targets: Vec<u32> = continuations.copied().collect();
        let mut spans: Vec<Span> = chosen
            .iter_mut()
            .map(|Chosen { pair, cache, .. }| {
                let known = cache.len();
                let ids = &pair.read()[known..];
                Span { cache, ids, logits_from: ids.len().min(pair.prompt - 1 - known) }
            })
            .collect();
        let mut scored: Vec<(f32, bool)> = Vec::with_capacity(targets.len());
        self.engine.forward(&mut spans, |rows, scores| {
            scored.par_extend(scores.par_chunks_exact(vocab).zip(&targets[rows]).map(|(scores, &target)| {
                let log_prob = f64::from(scores[target as usize]) - softmax::log_sum_exp(scores);
                (log_prob as f32, sampler::largest(scores) == Some(target as usize))
            }));
        });
        let mut rest = &scored[..];
        let mut out = Vec::with_capacity(chosen.len());
        for Chosen { index, pair, mut place, mut cache } in chosen {
            self.prefixes.register(&mut place, &mut cache, pair.shared());
            let (own, others) = rest.split_at(pair.ids.len() - pair.prompt);
            rest = others;
            if own.iter().any(|(log_prob, _)| log_prob.is_nan()) {
                out.push((index, Err(RequestError::NotFinite { tokens: pair.ids.len() })));
                continue;
            }
            let ids = pair.ids[pair.prompt..].to_vec();
            let log_probs = own.iter().map(|own| own.0).collect();
            out.push((index, Ok(TokenLogProbs { ids, log_probs, is_greedy: own.iter().all(|own| own.1) })));
        }
        out
    }
}
