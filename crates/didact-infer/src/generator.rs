//! The generator of this process: many requests at once over one [`Engine`].
//!
//! Work goes in steps. A step reads one new token of every answer that is being written and, as far as
//! [`Options::max_batch_tokens`] allows, the next pieces of waiting prompts, all in one forward pass; answers join when a
//! place is free and leave when they end. The answers to one request share its prompt's pass.

use crate::cache::KvCache;
use crate::engine::{Engine, Span};
use crate::error::InferError;
use crate::sampler::{self, Choice, Sampler};
use crate::stop::StopSearch;
use crate::weights::EngineWeights;
use didact_core::cancel::Cancel;
use didact_core::generate::{
    Answer, Completion, FinishReason, GenerateError, Generator, Prompt, Request, RequestError, Sampling, TokenLogProbs,
};
use didact_core::message::{Message, Tool};
use didact_data::DataError;
use didact_data::template::RenderOptions;
use didact_data::tokenizer::{IncrementalDecoder, Tokenizer};
use didact_kernels::{Precision, softmax};
use rayon::prelude::*;
use std::collections::VecDeque;
use std::sync::Arc;

/// How a [`LocalGenerator`] works. None of it changes what is generated, but for the precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// In what matrix products are computed.
    pub precision: Precision,
    /// Most tokens in a forward pass.
    pub max_batch_tokens: usize,
    /// Most answers that are written at a time; their caches are what takes memory.
    pub max_streams: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { precision: Precision::F32, max_batch_tokens: 2048, max_streams: 64 }
    }
}

/// A [`Generator`] that runs a model in this process.
#[derive(Debug)]
pub struct LocalGenerator {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    eos: Vec<u32>,
    options: Options,
}

/// A request whose prompt is being read or whose answers are being written.
struct Group<'a> {
    index: usize,
    sampling: &'a Sampling,
    prompt: Vec<u32>,
    /// The prompt's, as far as it was read; gone once the last answer has taken it.
    cache: Option<KvCache>,
    /// Scores after the prompt, once it was read; each answer's first token comes from them.
    first_scores: Vec<f32>,
    /// Answers that were begun.
    begun: usize,
    answers: Vec<Option<Answer>>,
}

impl Group<'_> {
    /// Tokens of the prompt not read yet.
    fn unread(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| self.prompt.len() - cache.len())
    }
}

/// An answer that is being written.
struct Stream {
    group: usize,
    answer: usize,
    sampler: Sampler,
    cache: KvCache,
    ids: Vec<u32>,
    log_probs: Vec<f32>,
    /// Both work only if there are stop strings.
    decoder: IncrementalDecoder,
    stop: StopSearch,
}

impl LocalGenerator {
    /// Packs the weights for generation.
    ///
    /// # Errors
    /// When the tokenizer does not belong to the model, or an option is 0.
    pub fn new(weights: EngineWeights, tokenizer: Arc<Tokenizer>, options: Options) -> Result<Self, InferError> {
        for (name, value) in [("max_batch_tokens", options.max_batch_tokens), ("max_streams", options.max_streams)] {
            if value == 0 {
                return Err(InferError::Option { name, value, expected: "a count from 1" });
            }
        }
        let (tokens, rows) = (tokenizer.vocab_size(), weights.config().vocab_size);
        if tokens > rows {
            return Err(InferError::Vocabulary { tokenizer: tokens, model: rows });
        }
        let mut eos = tokenizer.eos_ids().to_vec();
        if eos.is_empty() {
            eos.clone_from(&weights.config().eos_token_ids);
        }
        Ok(Self { engine: Engine::new(weights, options.precision), tokenizer, eos, options })
    }

    /// The engine underneath.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn context(&self) -> usize {
        self.engine.config().max_position_embeddings
    }

    fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, RequestError> {
        match prompt {
            Prompt::Messages { messages, tools } => self.encode(&Prompt::Text(self.render(messages, tools)?)),
            Prompt::Text(text) => {
                let mut ids = self.tokenizer.encode(text).map_err(|e| RequestError::Tokenizer(e.to_string()))?;
                // A rendered chat template writes the first token itself.
                if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos())
                    && ids.first() != Some(&bos)
                {
                    ids.insert(0, bos);
                }
                Ok(ids)
            }
            Prompt::Ids(ids) => {
                let limit = self.engine.config().vocab_size;
                match ids.iter().find(|&&id| id as usize >= limit) {
                    Some(id) => Err(RequestError::Setting {
                        name: "prompt".into(),
                        value: format!("token {id}"),
                        expected: format!("expected ids below {limit}, the model's vocabulary"),
                    }),
                    None => Ok(ids.clone()),
                }
            }
        }
    }

    fn render(&self, messages: &[Message], tools: &[Tool]) -> Result<String, RequestError> {
        let template = self.tokenizer.template();
        let template = template.ok_or_else(|| RequestError::Template("the model has no chat template".into()))?;
        let options = RenderOptions::default().with_generation_prompt();
        template.render(messages, tools, &options).map_err(|e| RequestError::Template(e.to_string()))
    }

    fn decode(&self, ids: &[u32]) -> Result<String, GenerateError> {
        self.tokenizer.decode(ids, true).map_err(undecodable)
    }

    fn admit<'a>(&self, index: usize, request: &'a Request) -> Result<Group<'a>, RequestError> {
        sampler::check(&request.sampling)?;
        let prompt = self.encode(&request.prompt)?;
        if prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        if prompt.len() >= self.context() {
            return Err(RequestError::PromptTooLong { tokens: prompt.len(), context: self.context() });
        }
        Ok(Group {
            index,
            sampling: &request.sampling,
            prompt,
            cache: Some(self.engine.cache()),
            first_scores: Vec::new(),
            begun: 0,
            answers: vec![None; request.sampling.n],
        })
    }

    /// Adds a chosen token to a stream; an answer when it is done.
    fn add(&self, stream: &mut Stream, group: &Group, choice: Choice) -> Result<Option<Answer>, GenerateError> {
        if self.eos.contains(&choice.id) {
            return self.finish(stream, FinishReason::Stop).map(Some);
        }
        stream.ids.push(choice.id);
        stream.log_probs.push(choice.log_prob);
        let stop = &group.sampling.stop;
        if !stop.is_empty()
            && let Some(stopped) = {
                let added = stream.decoder.push(&self.tokenizer, choice.id).map_err(undecodable)?;
                stream.stop.push(&added, stop)
            }
        {
            stream.ids.truncate(stopped.tokens);
            stream.log_probs.truncate(stopped.tokens);
            let (ids, log_probs) = (std::mem::take(&mut stream.ids), std::mem::take(&mut stream.log_probs));
            let top_log_probs = Vec::new();
            return Ok(Some(Answer {
                text: stopped.text,
                ids,
                log_probs,
                top_log_probs,
                finish_reason: FinishReason::Stop,
            }));
        }
        let is_full = group.prompt.len() + stream.ids.len() >= self.context();
        if is_full || stream.ids.len() >= group.sampling.max_tokens {
            return self.finish(stream, FinishReason::Length).map(Some);
        }
        Ok(None)
    }

    fn finish(&self, stream: &mut Stream, finish_reason: FinishReason) -> Result<Answer, GenerateError> {
        let (ids, log_probs) = (std::mem::take(&mut stream.ids), std::mem::take(&mut stream.log_probs));
        Ok(Answer { text: self.decode(&ids)?, ids, log_probs, top_log_probs: Vec::new(), finish_reason })
    }
}

fn undecodable(error: DataError) -> GenerateError {
    GenerateError { message: "generated tokens cannot be decoded".into(), source: Some(Box::new(error)) }
}

const STAYS: &str = "a group stays until its answers are done";

/// Requests on their way, and the answers that are being written.
struct Work<'a> {
    generator: &'a LocalGenerator,
    /// In the order of admission; a finished group leaves its place empty.
    groups: Vec<Option<Group<'a>>>,
    /// Groups whose prompt is not read to its end, in order.
    reading: VecDeque<usize>,
    /// Groups with answers still to be begun, in order.
    ready: VecDeque<usize>,
    streams: Vec<Stream>,
    /// Groups all of whose answers are there.
    done: Vec<usize>,
}

impl<'a> Work<'a> {
    fn new(generator: &'a LocalGenerator) -> Self {
        Self {
            generator,
            groups: Vec::new(),
            reading: VecDeque::new(),
            ready: VecDeque::new(),
            streams: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Places that are taken, or will be once prompts are read.
    fn taken(&self) -> usize {
        let to_come = |slot: &usize| {
            let group = self.groups[*slot].as_ref().expect(STAYS);
            group.sampling.n - group.begun
        };
        self.streams.len() + self.reading.iter().chain(&self.ready).map(to_come).sum::<usize>()
    }

    fn is_idle(&self) -> bool {
        self.streams.is_empty() && self.reading.is_empty() && self.ready.is_empty()
    }

    fn admit(&mut self, group: Group<'a>) {
        self.reading.push_back(self.groups.len());
        self.groups.push(Some(group));
    }

    /// Begins answers whose prompt is read, while places are free.
    fn begin(&mut self) -> Result<(), GenerateError> {
        while self.streams.len() < self.generator.options.max_streams
            && let Some(&slot) = self.ready.front()
        {
            let group = self.groups[slot].as_mut().expect(STAYS);
            let answer = group.begun;
            group.begun += 1;
            let cache = if group.begun == group.sampling.n {
                self.ready.pop_front();
                group.cache.take()
            } else {
                group.cache.clone()
            };
            let stream = Stream {
                group: slot,
                answer,
                sampler: Sampler::new(group.sampling, answer),
                cache: cache.expect("the prompt's cache stays until the last answer begins"),
                ids: Vec::new(),
                log_probs: Vec::new(),
                decoder: self.generator.tokenizer.incremental_decoder(true),
                stop: StopSearch::default(),
            };
            let choice = stream.sampler.choose(&group.first_scores, 0);
            self.go_on(stream, choice)?;
        }
        Ok(())
    }

    /// Adds the chosen token to a stream, which goes on or ends.
    fn go_on(&mut self, mut stream: Stream, choice: Option<Choice>) -> Result<(), GenerateError> {
        let choice = choice.ok_or(InferError::NotFinite { tokens: stream.cache.len() })?;
        let group = self.groups[stream.group].as_mut().expect(STAYS);
        let Some(answer) = self.generator.add(&mut stream, group, choice)? else {
            self.streams.push(stream);
            return Ok(());
        };
        group.answers[stream.answer] = Some(answer);
        if group.answers.iter().all(Option::is_some) {
            self.done.push(stream.group);
        }
        Ok(())
    }

    /// One forward pass: a token of each stream, and as much of the prompts as there is room for.
    fn step(&mut self) -> Result<(), GenerateError> {
        let engine = &self.generator.engine;
        let vocab = engine.config().vocab_size;
        let mut room = self.generator.options.max_batch_tokens.saturating_sub(self.streams.len());
        if self.streams.is_empty() {
            room = room.max(1);
        }
        let mut spans = Vec::new();
        let mut choosers = Vec::with_capacity(self.streams.len());
        for stream in &mut self.streams {
            choosers.push((&stream.sampler, stream.ids.len()));
            let last = stream.ids.len() - 1;
            spans.push(Span { cache: &mut stream.cache, ids: &stream.ids[last..], logits_from: 0 });
        }
        // Slots are numbered in the order of admission, which is the order of `reading`.
        let mut read_to_the_end = Vec::new();
        let first = self.reading.front().copied().unwrap_or(self.groups.len());
        for (slot, group) in self.groups.iter_mut().enumerate().skip(first) {
            let Some(group) = group.as_mut().filter(|group| group.unread() > 0) else { continue };
            let take = group.unread().min(room);
            if take == 0 {
                break;
            }
            room -= take;
            let is_end = take == group.unread();
            let cache = group.cache.as_mut().expect("the prompt's cache stays until the last answer begins");
            let ids = &group.prompt[cache.len()..][..take];
            spans.push(Span { cache, ids, logits_from: if is_end { take - 1 } else { take } });
            if is_end {
                read_to_the_end.push((slot, &mut group.first_scores));
            }
        }
        // Scores come in the order of the spans: of the streams, then of the prompts that were read to their end.
        let mut choices: Vec<Option<Choice>> = Vec::with_capacity(choosers.len());
        let mut ends = read_to_the_end.iter_mut();
        engine.forward(&mut spans, |rows, scores| {
            let of_streams = choosers.len().saturating_sub(rows.start).min(rows.len());
            let (of_streams, of_prompts) = scores.split_at(of_streams * vocab);
            let choosers = choosers.get(rows.start..).unwrap_or_default();
            choices.par_extend(
                of_streams
                    .par_chunks_exact(vocab)
                    .zip(choosers)
                    .map(|(scores, (sampler, index))| sampler.choose(scores, *index)),
            );
            for (scores, (_, keep)) in of_prompts.chunks_exact(vocab).zip(&mut ends) {
                scores.clone_into(keep);
            }
        });
        let ready: Vec<usize> = read_to_the_end.into_iter().map(|(slot, _)| slot).collect();
        self.reading.retain(|slot| !ready.contains(slot));
        self.ready.extend(ready);
        for (stream, choice) in std::mem::take(&mut self.streams).into_iter().zip(choices) {
            self.go_on(stream, choice)?;
        }
        Ok(())
    }

    /// Completed requests, with their indices.
    fn completed(&mut self) -> Vec<(usize, Completion)> {
        let groups = std::mem::take(&mut self.done).into_iter().map(|slot| self.groups[slot].take().expect(STAYS));
        groups
            .map(|group| {
                let answers = group.answers.into_iter().map(|a| a.expect("every answer is there")).collect();
                (group.index, Completion { answers, prompt_tokens: group.prompt.len() })
            })
            .collect()
    }

    /// Ends everything that was begun, as far as it got.
    fn cancel(&mut self) -> Result<(), GenerateError> {
        for mut stream in std::mem::take(&mut self.streams) {
            let group = self.groups[stream.group].as_mut().expect(STAYS);
            group.answers[stream.answer] = Some(self.generator.finish(&mut stream, FinishReason::Cancelled)?);
        }
        for (slot, group) in self.groups.iter_mut().enumerate() {
            // A request none of whose answers was begun is left out.
            let Some(group) = group.as_mut().filter(|group| group.begun > 0) else { continue };
            for answer in &mut group.answers {
                answer.get_or_insert_with(|| Answer {
                    text: String::new(),
                    ids: Vec::new(),
                    log_probs: Vec::new(),
                    top_log_probs: Vec::new(),
                    finish_reason: FinishReason::Cancelled,
                });
            }
            self.done.push(slot);
        }
        Ok(())
    }
}

impl Generator for LocalGenerator {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let mut waiting = requests.iter().enumerate();
        let mut work = Work::new(self);
        loop {
            if cancel.is_cancelled() {
                work.cancel()?;
                for (index, completion) in work.completed() {
                    sink(index, Ok(completion));
                }
                return Ok(());
            }
            while work.taken() < self.options.max_streams
                && let Some((index, request)) = waiting.next()
            {
                match self.admit(index, request) {
                    Ok(group) => work.admit(group),
                    Err(error) => sink(index, Err(error)),
                }
            }
            if work.is_idle() {
                return Ok(());
            }
            work.step()?;
            work.begin()?;
            for (index, completion) in work.completed() {
                sink(index, Ok(completion));
            }
        }
    }

    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let mut waiting = pairs.iter().enumerate().peekable();
        while waiting.peek().is_some() {
            if cancel.is_cancelled() {
                return Ok(());
            }
            // As many pairs as a pass has room for, at least one.
            let mut batch = Vec::new();
            let mut tokens = 0;
            while tokens < self.options.max_batch_tokens
                && batch.len() < self.options.max_streams
                && let Some((index, (prompt, continuation))) = waiting.next()
            {
                match self.pair(prompt, continuation) {
                    Ok(pair) => {
                        tokens += pair.ids.len();
                        batch.push((index, pair));
                    }
                    Err(error) => sink(index, Err(error)),
                }
            }
            for (index, scored) in self.score_batch(batch)? {
                sink(index, Ok(scored));
            }
        }
        Ok(())
    }
}

/// A prompt and its continuation as one sequence.
struct Pair {
    ids: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
}

impl LocalGenerator {
    /// Two texts are tokenised together, so that the border falls as it would in running text: the continuation is what
    /// follows after as many tokens as the prompt has alone.
    fn pair(&self, prompt: &Prompt, continuation: &Prompt) -> Result<Pair, RequestError> {
        let begin = self.encode(prompt)?;
        let ids = match (prompt, continuation) {
            (Prompt::Text(first), Prompt::Text(second)) => self.encode(&Prompt::Text(format!("{first}{second}")))?,
            (Prompt::Messages { messages, tools }, Prompt::Text(second)) => {
                self.encode(&Prompt::Text(self.render(messages, tools)? + second))?
            }
            _ => [begin.clone(), self.encode(continuation)?].concat(),
        };
        if begin.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        if ids.len() > self.context() {
            return Err(RequestError::PromptTooLong { tokens: ids.len(), context: self.context() });
        }
        let prompt = begin.len().min(ids.len());
        Ok(Pair { ids, prompt })
    }

    fn score_batch(&self, batch: Vec<(usize, Pair)>) -> Result<Vec<(usize, TokenLogProbs)>, GenerateError> {
        let vocab = self.engine.config().vocab_size;
        // The last token is never read: nothing is predicted after it.
        let read = |pair: &Pair| if pair.prompt == pair.ids.len() { 0 } else { pair.ids.len() - 1 };
        let mut caches: Vec<KvCache> = batch.iter().map(|_| self.engine.cache()).collect();
        let mut spans: Vec<Span> = caches
            .iter_mut()
            .zip(&batch)
            .map(|(cache, (_, pair))| {
                let ids = &pair.ids[..read(pair)];
                Span { cache, ids, logits_from: ids.len().min(pair.prompt - 1) }
            })
            .collect();
        let targets: Vec<u32> = batch.iter().flat_map(|(_, pair)| &pair.ids[pair.prompt..]).copied().collect();
        let mut scored: Vec<(f32, bool)> = Vec::with_capacity(targets.len());
        self.engine.forward(&mut spans, |rows, scores| {
            scored.par_extend(scores.par_chunks_exact(vocab).zip(&targets[rows]).map(|(scores, &target)| {
                let log_prob = f64::from(scores[target as usize]) - softmax::log_sum_exp(scores);
                (log_prob as f32, sampler::largest(scores) == Some(target as usize))
            }));
        });
        let mut rest = &scored[..];
        let mut out = Vec::with_capacity(batch.len());
        for (index, pair) in batch {
            let (own, others) = rest.split_at(pair.ids.len() - pair.prompt);
            rest = others;
            if own.iter().any(|(log_prob, _)| log_prob.is_nan()) {
                return Err(InferError::NotFinite { tokens: pair.ids.len() }.into());
            }
            let ids = pair.ids[pair.prompt..].to_vec();
            let log_probs = own.iter().map(|own| own.0).collect();
            out.push((index, TokenLogProbs { ids, log_probs, is_greedy: own.iter().all(|own| own.1) }));
        }
        Ok(out)
    }
}
