//! Continuous batching: many requests over one [`LocalModel`], in steps.
//!
//! A step is one forward pass. It reads one new token of every answer that is being written and, as far as
//! [`Options::max_batch_tokens`] allows, the next pieces of waiting prompts; requests join and leave between steps.
//!
//! # Memory
//! Keys and values lie in pages of 16 tokens. The answers to one request share its prompt's pages, and prompts that begin
//! alike share those of their beginning, which is read once; pages stay known for a while after their last reader. A
//! request gets a place when the pages it may still need are free, so that what was begun can always be finished:
//! too little memory makes requests wait, never fail.
//!
//! One thread calls a scheduler. Who asks for many things at once (a server) gives each request to that thread and
//! passes its [`Event`]s on.

use crate::cache::{KvCache, PAGE, Pool};
use crate::engine::Span;
use crate::error::InferError;
use crate::model::LocalModel;
use crate::prefix::{Place, Prefixes};
use crate::sampler::{Choice, End, Sampler};
use crate::stop::StopSearch;
use didact_core::generate::{
    Answer, Completion, FinishReason, GenerateError, Request, RequestError, Sampling, TokenLogProb,
};
use didact_data::DataError;
use didact_data::tokenizer::IncrementalDecoder;
use didact_kernels::Precision;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// How generation in this process works. None of it changes what is generated, but for the precision, and for answers
/// too long for [`max_cache_bytes`](Self::max_cache_bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// In what matrix products are computed. Decided when a model's weights are packed; a [`Scheduler`] uses its
    /// model's.
    pub precision: Precision,
    /// Most tokens in a forward pass.
    pub max_batch_tokens: usize,
    /// Most answers that are written at a time.
    pub max_streams: usize,
    /// Most memory for keys and values. Requests wait for it; a prompt that it cannot hold alone is too long, and an
    /// answer that outgrows it alone ends as at the model's context.
    pub max_cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { precision: Precision::F32, max_batch_tokens: 2048, max_streams: 64, max_cache_bytes: 2 << 30 }
    }
}

impl Options {
    /// Checks ranges.
    ///
    /// # Errors
    /// Naming the option that is 0.
    pub(crate) fn validate(&self) -> Result<(), InferError> {
        for (name, value) in [("max_batch_tokens", self.max_batch_tokens), ("max_streams", self.max_streams)] {
            if value == 0 {
                return Err(InferError::Option { name, value, expected: "a count from 1" });
            }
        }
        Ok(())
    }
}

/// A request of one [`Scheduler`], numbered in the order of submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// What happened to a request in a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An answer became longer.
    Text {
        /// Whose.
        id: RequestId,
        /// Which of its answers.
        answer: usize,
        /// What can be shown now: whole characters that cannot become part of a stop string. All of an answer's pieces
        /// together are its text.
        text: String,
        /// The answer's tokens that end in this piece.
        tokens: Range<usize>,
    },
    /// An answer is complete.
    Answer {
        /// Whose.
        id: RequestId,
        /// Which of its answers.
        answer: usize,
        /// The answer.
        value: Answer,
    },
    /// All answers of a request are complete; the last one's [`Event::Answer`] came just before.
    Finished {
        /// Which request.
        id: RequestId,
        /// Its answers.
        completion: Completion,
    },
    /// A request cannot be answered. The others go on.
    Failed {
        /// Which request.
        id: RequestId,
        /// Why.
        error: RequestError,
    },
}

/// An answer's tokens so far, with what [`Answer`] says of them.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a> {
    /// As [`Answer::ids`].
    pub ids: &'a [u32],
    /// As [`Answer::log_probs`].
    pub log_probs: &'a [f32],
    /// As [`Answer::top_log_probs`].
    pub top_log_probs: &'a [Vec<TokenLogProb>],
}

/// A request whose prompt is being read or whose answers are being written.
#[derive(Debug)]
struct Group {
    sampling: Sampling,
    /// What the answers' samplers are made from.
    sampler: Sampler,
    prompt: Arc<[u32]>,
    /// The prompt's, as far as it was read; gone once the last answer has taken it.
    cache: Option<KvCache>,
    /// How much of the prompt others can share.
    place: Place,
    /// A number for each whole page of the prompt and all before it.
    chain: Vec<u64>,
    /// Most tokens of prompt and answer that are read.
    total: usize,
    /// Scores after the prompt, once it was read; each answer's first token comes from them.
    first_scores: Vec<f32>,
    /// Answers that were begun.
    begun: usize,
    answers: Vec<Option<Answer>>,
}

impl Group {
    /// Tokens of the prompt not read yet.
    fn unread(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| self.prompt.len() - cache.len())
    }

    /// Pages that its prompt and its first answer may still take from the pool.
    fn promised(&self) -> usize {
        match &self.cache {
            Some(cache) if self.begun == 0 => {
                let copied = self.sampling.n > 1 && !self.prompt.len().is_multiple_of(PAGE);
                cache.pages_to_come(self.total) + usize::from(copied)
            }
            _ => 0,
        }
    }

    fn is_complete(&self) -> bool {
        self.answers.iter().all(Option::is_some)
    }

    /// What was answered so far, the rest as cancelled.
    fn into_completion(self) -> Completion {
        let answers = self.answers.into_iter().map(|answer| answer.unwrap_or_else(nothing_yet)).collect();
        Completion { answers, prompt_tokens: self.prompt.len() }
    }
}

/// An answer that was cancelled before its first token.
fn nothing_yet() -> Answer {
    Answer {
        text: String::new(),
        ids: Vec::new(),
        log_probs: Vec::new(),
        top_log_probs: Vec::new(),
        finish_reason: FinishReason::Cancelled,
    }
}

/// An answer that is being written.
#[derive(Debug)]
struct Stream {
    request: RequestId,
    answer: usize,
    sampler: Sampler,
    prompt: Arc<[u32]>,
    cache: KvCache,
    place: Place,
    /// Most tokens of prompt and answer that are read.
    total: usize,
    ids: Vec<u32>,
    log_probs: Vec<f32>,
    top_log_probs: Vec<Vec<TokenLogProb>>,
    decoder: IncrementalDecoder,
    written: StopSearch,
}

/// The requests of one model, on their way.
#[derive(Debug)]
pub struct Scheduler {
    model: Arc<LocalModel>,
    options: Options,
    submitted: u64,
    groups: BTreeMap<RequestId, Group>,
    /// Requests that have no place yet, in order.
    waiting: VecDeque<RequestId>,
    /// Requests whose prompt is not read to its end, in order.
    reading: VecDeque<RequestId>,
    /// Requests with answers still to be begun, in order.
    ready: VecDeque<RequestId>,
    streams: Vec<Stream>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) prefixes: Prefixes,
    /// Most pages.
    pub(crate) limit: usize,
    /// Most tokens of prompt and answer together.
    context: usize,
}

const STAYS: &str = "a request stays until its answers are done";
const PROMPT: &str = "a prompt's cache stays until the last answer begins";

/// A number for each whole page of a prompt and all before it (FNV-1a). Equal ones make a request wait for another's
/// reading, no more.
fn chain(root: Place, prompt: &[u32]) -> Vec<u64> {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ root.number();
    let pages = prompt[..prompt.len().saturating_sub(1)].chunks_exact(PAGE);
    pages
        .map(|page| {
            for &id in page {
                hash = (hash ^ u64::from(id)).wrapping_mul(0x0100_0000_01b3);
            }
            hash
        })
        .collect()
}

impl Scheduler {
    /// A scheduler without requests.
    ///
    /// # Errors
    /// When an option is out of range.
    pub fn new(model: Arc<LocalModel>, options: Options) -> Result<Self, InferError> {
        options.validate()?;
        let pool = model.engine().new_pool();
        let limit = options.max_cache_bytes / pool.page_bytes();
        if limit < 2 {
            let expected = "memory for 32 tokens at least";
            return Err(InferError::Option { name: "max_cache_bytes", value: options.max_cache_bytes, expected });
        }
        // A page more than the tokens take, for one that is shared and then written to.
        let context = model.context().min((limit - 1) * PAGE);
        Ok(Self {
            model,
            options,
            submitted: 0,
            groups: BTreeMap::new(),
            waiting: VecDeque::new(),
            reading: VecDeque::new(),
            ready: VecDeque::new(),
            streams: Vec::new(),
            pool,
            prefixes: Prefixes::new(),
            limit,
            context,
        })
    }

    /// Memory of the keys and values that are kept now, of what is being read or written and of known beginnings.
    pub fn cache_bytes(&self) -> usize {
        self.pool.live() * self.pool.page_bytes()
    }

    /// The model.
    pub fn model(&self) -> &Arc<LocalModel> {
        &self.model
    }

    /// Takes a request; it waits until there is room for it.
    ///
    /// # Errors
    /// When it cannot be answered; nothing was changed.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, RequestError> {
        let Request { prompt, sampling } = request;
        let sampler = self.model.samplers().prepare(&sampling)?;
        let prompt = self.model.encode_to_continue(&prompt)?;
        if prompt.len() >= self.context {
            return Err(RequestError::PromptTooLong { tokens: prompt.len(), context: self.context });
        }
        let adapter = self.model.adapter(sampling.adapter.as_deref())?;
        let id = RequestId(self.submitted);
        self.submitted += 1;
        let answers = vec![None; sampling.n];
        let root = Place::root(adapter.map_or(0, |(number, _)| number + 1));
        let cache = Some(self.pool.cache(adapter.map(|(_, adapter)| Arc::clone(adapter))));
        let total = prompt.len().saturating_add(sampling.max_tokens).min(self.context) - 1;
        let (place, chain) = (root, chain(root, &prompt));
        let group = Group {
            sampling,
            sampler,
            prompt: prompt.into(),
            cache,
            place,
            chain,
            total,
            first_scores: Vec::new(),
            begun: 0,
            answers,
        };
        self.groups.insert(id, group);
        self.waiting.push_back(id);
        Ok(id)
    }

    /// Ends a request at once and frees its places. No event speaks of it any more.
    ///
    /// What was written of it so far, if any answer was begun; `None` also for a request that is done or unknown.
    pub fn cancel(&mut self, id: RequestId) -> Option<Completion> {
        let mut group = self.forget(id, |group, mut stream, model| {
            // What cannot be decoded is left out: nobody waits for it.
            let _ = end(&mut stream, model);
            let answer = stream.answer;
            group.answers[answer] = Some(stream.into_answer(FinishReason::Cancelled));
        })?;
        group.cache = None;
        (group.begun > 0).then(|| group.into_completion())
    }

    /// Ends one answer of a request at once, as far as it got; the others go on. One that was not begun is left alone.
    pub fn cancel_answer(&mut self, id: RequestId, answer: usize, events: &mut Vec<Event>) {
        let Some(at) = self.streams.iter().position(|s| s.request == id && s.answer == answer) else { return };
        let mut stream = self.streams.remove(at);
        let rest = end(&mut stream, &self.model).ok().flatten();
        events.extend(rest.map(|(text, tokens)| Event::Text { id, answer, text, tokens }));
        self.complete(id, answer, stream.into_answer(FinishReason::Cancelled), events);
    }

    /// The tokens of an answer that is being written; `None` before it is begun and once it is complete. Stop strings may
    /// still take the last ones back: those that an [`Event::Text`] has shown stay.
    pub fn written(&self, id: RequestId, answer: usize) -> Option<Written<'_>> {
        let stream = self.streams.iter().find(|s| s.request == id && s.answer == answer)?;
        Some(Written { ids: &stream.ids, log_probs: &stream.log_probs, top_log_probs: &stream.top_log_probs })
    }

    /// Whether another request would get a place now. Submitting more is fine; they wait.
    pub fn has_room(&self) -> bool {
        let to_come = |id: &RequestId| {
            let group = &self.groups[id];
            group.sampling.n - group.begun
        };
        let queued = self.waiting.iter().chain(&self.reading).chain(&self.ready);
        self.streams.len() + queued.map(to_come).sum::<usize>() < self.options.max_streams
    }

    /// Requests that have no place yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Answers that are being written.
    pub fn running(&self) -> usize {
        self.streams.len()
    }

    /// One forward pass, if there is anything to do: a token of each answer, and as much of the prompts as there is
    /// room for. What happened is added to `events`.
    ///
    /// `false` when nothing is left to do.
    ///
    /// # Errors
    /// When the tokenizer cannot decode what was generated; the scheduler must not be used any more.
    pub fn step(&mut self, events: &mut Vec<Event>) -> Result<bool, GenerateError> {
        self.admit();
        let (choices, read_to_the_end) = self.forward();
        self.reading.retain(|id| !read_to_the_end.contains(id));
        self.ready.extend(read_to_the_end);
        for (stream, choice) in std::mem::take(&mut self.streams).into_iter().zip(choices) {
            self.go_on(stream, choice, events)?;
        }
        self.begin(events)?;
        self.forget_idle();
        Ok(!self.groups.is_empty())
    }

    /// Known beginnings are kept in a quarter of the memory, or in what nobody needs while the work goes on.
    pub(crate) fn forget_idle(&mut self) {
        if self.groups.is_empty() {
            self.prefixes.forget(self.prefixes.idle().saturating_sub(self.limit / 4));
        }
    }

    /// Gives places to waiting requests while there are any, and memory.
    fn admit(&mut self) {
        let to_come = |groups: &BTreeMap<RequestId, Group>, id: &RequestId| groups[id].sampling.n - groups[id].begun;
        let admitted = self.reading.iter().chain(&self.ready);
        let mut taken = self.streams.len() + admitted.map(|id| to_come(&self.groups, id)).sum::<usize>();
        while taken < self.options.max_streams
            && let Some(&id) = self.waiting.front()
        {
            let group = self.groups.get_mut(&id).expect(STAYS);
            let before = group.place;
            let Group { place, cache, prompt, .. } = group;
            let cache = cache.as_mut().expect(PROMPT);
            self.prefixes.follow(place, cache, &prompt[..prompt.len() - 1]);
            let promised = group.promised();
            if !self.is_free(promised) {
                let group = self.groups.get_mut(&id).expect(STAYS);
                group.place = before;
                group.cache.as_mut().expect(PROMPT).truncate(0);
                return;
            }
            self.waiting.pop_front();
            taken += to_come(&self.groups, &id);
            self.reading.push_back(id);
        }
    }

    /// Whether so many pages are neither used nor promised; known ones that nobody has are as good as free.
    pub(crate) fn is_free(&self, pages: usize) -> bool {
        let admitted = self.reading.iter().chain(&self.ready).map(|id| self.groups[id].promised());
        let written = self.streams.iter().map(|stream| stream.cache.pages_to_come(stream.total));
        let promised: usize = admitted.chain(written).sum();
        self.pool.live() - self.prefixes.idle() + promised + pages <= self.limit
    }

    /// The pass: what each stream chose, and the requests whose prompt was read to its end.
    fn forward(&mut self) -> (Vec<Result<Choice, RequestError>>, Vec<RequestId>) {
        let reading = self.choose_readers();
        let engine = self.model.engine();
        let vocab = engine.config().vocab_size;
        let mut room = self.options.max_batch_tokens.saturating_sub(self.streams.len());
        if self.streams.is_empty() {
            room = room.max(1);
        }
        let mut spans = Vec::new();
        let mut choosers = Vec::with_capacity(self.streams.len());
        for stream in &mut self.streams {
            let Stream { sampler, prompt, ids, cache, .. } = stream;
            spans.push(Span { cache, ids: &ids[ids.len() - 1..], logits_from: 0 });
            choosers.push((sampler, &**prompt, &**ids));
        }
        let mut read_to_the_end = Vec::new();
        let mut keep = Vec::new();
        let range = reading.first().copied().zip(reading.last().copied());
        let groups = range.map(|(first, last)| self.groups.range_mut(first..=last));
        for (id, group) in groups.into_iter().flatten().filter(|(id, _)| reading.contains(id)) {
            let take = group.unread().min(room);
            if take == 0 {
                break;
            }
            room -= take;
            let is_end = take == group.unread();
            let cache = group.cache.as_mut().expect(PROMPT);
            let ids = &group.prompt[cache.len()..][..take];
            spans.push(Span { cache, ids, logits_from: if is_end { take - 1 } else { take } });
            if is_end {
                read_to_the_end.push(*id);
                keep.push(&mut group.first_scores);
            }
        }
        // Scores come in the order of the spans: of the streams, then of the prompts that were read to their end.
        let mut choices: Vec<Result<Choice, RequestError>> = Vec::with_capacity(choosers.len());
        let mut keep = keep.into_iter();
        engine.forward(&mut spans, |rows, scores| {
            let of_streams = choosers.len().saturating_sub(rows.start).min(rows.len());
            let (of_streams, of_prompts) = scores.split_at(of_streams * vocab);
            let choosers = choosers.get_mut(rows.start..).unwrap_or_default();
            choices.par_extend(
                of_streams
                    .par_chunks_exact(vocab)
                    .zip(choosers)
                    .map(|(scores, (sampler, prompt, ids))| sampler.choose(scores, prompt, ids)),
            );
            for (scores, keep) in of_prompts.chunks_exact(vocab).zip(&mut keep) {
                scores.clone_into(keep);
            }
        });
        for id in reading {
            let Group { place, cache, prompt, .. } = self.groups.get_mut(&id).expect(STAYS);
            self.prefixes.register(place, cache.as_mut().expect(PROMPT), prompt);
        }
        (choices, read_to_the_end)
    }

    /// The requests whose prompt is read in this pass as far as there is room, in the order of submission: all but those
    /// whose next page another one reads. Makes room for the pages that the pass fills.
    fn choose_readers(&mut self) -> Vec<RequestId> {
        let mut chosen = Vec::new();
        let mut in_flight: BTreeSet<u64> = BTreeSet::new();
        let mut tokens = self.options.max_batch_tokens;
        let mut pages: usize = self.streams.iter().map(|s| s.cache.pages_to_come(s.cache.len() + 1)).sum();
        for id in &self.reading {
            let Group { place, cache, prompt, chain, .. } = self.groups.get_mut(id).expect(STAYS);
            let cache = cache.as_mut().expect(PROMPT);
            self.prefixes.follow(place, cache, &prompt[..prompt.len() - 1]);
            let next = cache.len() / PAGE;
            if chain.get(next).is_some_and(|page| in_flight.contains(page)) {
                continue;
            }
            in_flight.extend(&chain[next.min(chain.len())..]);
            let take = (prompt.len() - cache.len()).min(tokens);
            tokens -= take;
            pages += cache.pages_to_come(cache.len() + take);
            if take > 0 {
                chosen.push(*id);
            }
        }
        let needed = self.pool.live() + pages;
        self.prefixes.forget(needed.saturating_sub(self.limit));
        chosen
    }

    /// Begins answers whose prompt is read, while places and memory are free.
    fn begin(&mut self, events: &mut Vec<Event>) -> Result<(), GenerateError> {
        for request in self.ready.clone() {
            while self.streams.len() < self.options.max_streams
                && let Some(group) = self.groups.get(&request).filter(|group| group.begun < group.sampling.n)
            {
                // Room for the first answer was kept; the last one takes the prompt's pages over.
                let cache = group.cache.as_ref().expect(PROMPT);
                let shared = usize::from(!group.prompt.len().is_multiple_of(PAGE));
                if group.begun > 0 && !self.is_free(cache.pages_to_come(group.total) + shared) {
                    break;
                }
                self.begin_one(request, events)?;
            }
        }
        Ok(())
    }

    /// Begins a request's next answer.
    fn begin_one(&mut self, request: RequestId, events: &mut Vec<Event>) -> Result<(), GenerateError> {
        let group = self.groups.get_mut(&request).expect(STAYS);
        let answer = group.begun;
        group.begun += 1;
        let cache = if group.begun == group.sampling.n {
            self.ready.retain(|other| *other != request);
            group.cache.take()
        } else {
            group.cache.clone()
        };
        let mut stream = Stream {
            request,
            answer,
            sampler: group.sampler.for_answer(answer),
            prompt: Arc::clone(&group.prompt),
            cache: cache.expect(PROMPT),
            place: group.place,
            total: group.total,
            ids: Vec::new(),
            log_probs: Vec::new(),
            top_log_probs: Vec::new(),
            decoder: self.model.tokenizer().incremental_decoder(true),
            written: StopSearch::default(),
        };
        let choice = stream.sampler.choose(&group.first_scores, &group.prompt, &[]);
        self.go_on(stream, choice, events)
    }

    /// Adds the chosen token to a stream, which goes on or ends.
    fn go_on(
        &mut self,
        mut stream: Stream,
        choice: Result<Choice, RequestError>,
        events: &mut Vec<Event>,
    ) -> Result<(), GenerateError> {
        let (id, answer) = (stream.request, stream.answer);
        // Another answer of the same request may have failed in this step.
        let Some(group) = self.groups.get(&id) else { return Ok(()) };
        let choice = match choice {
            Ok(choice) => choice,
            Err(error) => {
                self.fail(id, error, events);
                return Ok(());
            }
        };
        let finish_reason = add(&mut stream, group, choice, &self.model, self.context).map_err(undecodable)?;
        let shown = match finish_reason {
            None => stream.written.release(&group.sampling.stop),
            Some(_) => end(&mut stream, &self.model).map_err(undecodable)?,
        };
        events.extend(shown.map(|(text, tokens)| Event::Text { id, answer, text, tokens }));
        match finish_reason {
            None => self.streams.push(stream),
            Some(reason) => {
                // A conversation goes on from its last answer.
                let read = [&group.prompt[..], &stream.ids].concat();
                self.prefixes.register(&mut stream.place, &mut stream.cache, &read);
                self.complete(id, answer, stream.into_answer(reason), events);
            }
        }
        Ok(())
    }

    /// Keeps a finished answer; the request is finished with its last one.
    fn complete(&mut self, id: RequestId, answer: usize, value: Answer, events: &mut Vec<Event>) {
        events.push(Event::Answer { id, answer, value: value.clone() });
        let group = self.groups.get_mut(&id).expect(STAYS);
        group.answers[answer] = Some(value);
        if group.is_complete() {
            let completion = self.groups.remove(&id).expect(STAYS).into_completion();
            events.push(Event::Finished { id, completion });
        }
    }

    fn fail(&mut self, id: RequestId, error: RequestError, events: &mut Vec<Event>) {
        if self.forget(id, |_, _, _| {}).is_some() {
            events.push(Event::Failed { id, error });
        }
    }

    /// Takes a request out, and each of its streams.
    fn forget(&mut self, id: RequestId, mut ended: impl FnMut(&mut Group, Stream, &LocalModel)) -> Option<Group> {
        let mut group = self.groups.remove(&id)?;
        for queue in [&mut self.waiting, &mut self.reading, &mut self.ready] {
            queue.retain(|other| *other != id);
        }
        for stream in self.streams.extract_if(.., |stream| stream.request == id) {
            ended(&mut group, stream, &self.model);
        }
        Some(group)
    }
}

fn undecodable(error: DataError) -> GenerateError {
    GenerateError { message: "generated tokens cannot be decoded".into(), source: Some(Box::new(error)) }
}

impl Stream {
    fn into_answer(self, finish_reason: FinishReason) -> Answer {
        let Self { ids, log_probs, top_log_probs, written, .. } = self;
        Answer { text: written.text().to_owned(), ids, log_probs, top_log_probs, finish_reason }
    }
}

/// Adds a chosen token to a stream; why the answer ends, if it does.
fn add(
    stream: &mut Stream,
    group: &Group,
    choice: Choice,
    model: &LocalModel,
    context: usize,
) -> Result<Option<FinishReason>, DataError> {
    if choice.end == Some(End::Before) {
        return Ok(Some(FinishReason::Stop));
    }
    stream.ids.push(choice.id);
    stream.log_probs.extend(choice.log_prob);
    if group.sampling.top_log_probs > 0 {
        stream.top_log_probs.push(choice.top);
    }
    let added = stream.decoder.push(model.tokenizer(), choice.id)?;
    // Text that is too short to end is not searched.
    let is_early = stream.ids.len() <= group.sampling.min_tokens;
    let stop: &[String] = if is_early { &[] } else { &group.sampling.stop };
    if let Some(stopped) = stream.written.push(&added, stop) {
        stream.ids.truncate(stopped.tokens);
        stream.log_probs.truncate(stopped.tokens);
        stream.top_log_probs.truncate(stopped.tokens);
        stream.written.cut(stopped.text.len());
        stream.decoder = model.tokenizer().incremental_decoder(true);
        return Ok(Some(FinishReason::Stop));
    }
    if choice.end == Some(End::After) {
        return Ok(Some(FinishReason::Stop));
    }
    let is_full = group.prompt.len() + stream.ids.len() >= context;
    Ok((is_full || stream.ids.len() >= group.sampling.max_tokens).then_some(FinishReason::Length))
}

/// What is still to be shown of an answer that ends.
fn end(stream: &mut Stream, model: &LocalModel) -> Result<Option<(String, Range<usize>)>, DataError> {
    let rest = stream.decoder.finish(model.tokenizer())?;
    Ok(stream.written.release_rest(&rest, stream.ids.len()))
}
