//! A generator behind an OpenAI-compatible endpoint (feature `remote`).
//!
//! Texts and token ids go to `/completions`, conversations to `/chat/completions`, several at a time. What may pass
//! (status 429 and 5xx, time-outs, broken connections, answers that are garbage or end half-way) is asked again after a
//! wait; what the server refuses fails that request alone; a key that is not accepted, a model that is not there or a
//! server that answers nothing any more ends the batch.
//!
//! With a journal every response is on disk before it is handed on, and no request is ever sent again whose response is
//! there: a batch that was killed goes on where it was and pays for nothing twice.

mod backoff;
mod client;
mod error;
mod events;
mod journal;
mod wire;

pub use backoff::Backoff;
pub use error::RemoteError;

use client::{Client, Failure};
use didact_core::cancel::Cancel;
use didact_core::generate::{
    Answer, Completion, GenerateError, Generator, Prompt, Request, RequestError, TokenLogProbs,
};
use didact_core::hash::{Digest, Hasher, hash_json};
use didact_core::seed::Streams;
use journal::Journal;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// How often the caller's wish to stop is looked at.
const POLL: Duration = Duration::from_millis(50);

/// An endpoint and how to ask it.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteOptions {
    /// The address up to `/chat/completions`, such as `http://127.0.0.1:8080/v1`.
    pub base_url: String,
    /// The model, as the server names it.
    pub model: String,
    /// The environment variable that holds the API key. The key itself is neither logged nor stored.
    pub api_key_env: Option<String>,
    /// Requests that are on their way at a time.
    pub concurrency: usize,
    /// Attempts at a request before it counts as unanswered.
    pub max_attempts: u32,
    /// Waits between attempts.
    pub backoff: Backoff,
    /// Longest wait for an answer; of a streamed answer, for its next piece.
    pub timeout: Duration,
    /// Unanswered requests in a row after which the endpoint counts as broken.
    pub max_unanswered: usize,
    /// Ask for answers as event streams: a server that died is noticed after `timeout` however long the answer is.
    pub stream: bool,
    /// Whether the server gives log-probabilities of tokens; some refuse requests that ask for them. Servers differ in
    /// whether they are taken before or after temperature and cut-offs.
    pub has_log_probs: bool,
    /// Call the limit of a chat's answer `max_completion_tokens`, as newer models of OpenAI want it, not `max_tokens`.
    pub uses_max_completion_tokens: bool,
    /// Most bytes of a response.
    pub max_answer_bytes: usize,
    /// What tokens cost.
    pub prices: Option<Prices>,
    /// Where responses are kept.
    pub journal: Option<PathBuf>,
    /// Seed of the waits' jitter.
    pub seed: u64,
    /// Further fields of every request, for what one server knows and the others do not.
    pub extra: Map<String, Value>,
}

impl RemoteOptions {
    /// An endpoint and model, and what suits most of them otherwise.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            model: model.into(),
            api_key_env: None,
            concurrency: 16,
            max_attempts: 8,
            backoff: Backoff::default(),
            timeout: Duration::from_mins(5),
            max_unanswered: 4,
            stream: false,
            has_log_probs: true,
            uses_max_completion_tokens: false,
            max_answer_bytes: 64 << 20,
            prices: None,
            journal: None,
            seed: 0,
            extra: Map::new(),
        }
    }
}

/// What tokens cost, in whichever currency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prices {
    /// Of a million tokens of prompts.
    pub prompt_per_million: f64,
    /// Of a million generated tokens.
    pub completion_per_million: f64,
}

/// What was used, as the server counts.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Spent {
    /// Responses.
    pub responses: u64,
    /// Responses that did not say what they used; they are missing in the counts below.
    pub uncounted: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Generated tokens.
    pub completion_tokens: u64,
    /// What that costs, when prices are known.
    pub cost: Option<f64>,
}

impl Spent {
    fn add(&mut self, response: &Value, prices: Option<Prices>) {
        self.responses += 1;
        match wire::usage(response) {
            None => self.uncounted += 1,
            Some(usage) => {
                self.prompt_tokens += usage.prompt_tokens;
                self.completion_tokens += usage.completion_tokens;
            }
        }
        self.cost = prices.map(|prices| {
            let of = |tokens: u64, price: f64| tokens as f64 * price / 1e6;
            of(self.prompt_tokens, prices.prompt_per_million)
                + of(self.completion_tokens, prices.completion_per_million)
        });
    }
}

/// What a [`RemoteGenerator`] has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Bill {
    /// Asked for and answered now.
    pub paid: Spent,
    /// Taken from the journal: paid for earlier.
    pub kept: Spent,
    /// Attempts that failed and were followed by another.
    pub retries: u64,
}

/// A [`Generator`] that asks a server. Answers have text but no token ids; see [`RemoteOptions::has_log_probs`].
#[derive(Debug)]
pub struct RemoteGenerator {
    shared: Arc<Shared>,
    concurrency: usize,
    max_unanswered: usize,
    runtime: Runtime,
}

/// What all requests on their way use.
#[derive(Debug)]
struct Shared {
    client: Client,
    style: wire::Style,
    max_attempts: u32,
    backoff: Backoff,
    streams: Streams,
    prices: Option<Prices>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    journal: Journal,
    bill: Bill,
    /// A server that is asked too much says when to come back; that holds for all requests.
    not_before: Option<Instant>,
}

/// How a request failed for good.
enum Failed {
    Request(RequestError),
    /// Every attempt at it failed.
    Unanswered {
        url: String,
        attempts: u32,
        message: String,
    },
    Endpoint(RemoteError),
}

impl RemoteGenerator {
    /// Checks the options, reads the key and opens the journal. The server is not asked yet.
    ///
    /// # Errors
    /// [`RemoteError`]: an address that is none, a missing key, an option out of range, a journal that is none.
    pub fn new(options: RemoteOptions) -> Result<Self, RemoteError> {
        let counts = [
            ("concurrency", options.concurrency),
            ("max_attempts", options.max_attempts as usize),
            ("max_unanswered", options.max_unanswered),
        ];
        for (name, value) in counts {
            if value == 0 {
                return Err(RemoteError::Option { name, value: value.to_string(), expected: "a count from 1" });
            }
        }
        if let Some(prices) = options.prices {
            for (name, price) in [("prompt", prices.prompt_per_million), ("completion", prices.completion_per_million)]
            {
                if !(price.is_finite() && price >= 0.0) {
                    return Err(RemoteError::Option { name, value: price.to_string(), expected: "a price from 0" });
                }
            }
        }
        let client = Client::new(&options)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| RemoteError::Client(e.to_string()))?;
        let journal = options.journal.as_deref().map(Journal::open).transpose()?.unwrap_or_default();
        let style = wire::Style {
            model: options.model,
            has_log_probs: options.has_log_probs,
            uses_max_completion_tokens: options.uses_max_completion_tokens,
            extra: options.extra,
        };
        let shared = Shared {
            client,
            style,
            max_attempts: options.max_attempts,
            backoff: options.backoff,
            streams: Streams::new(options.seed),
            prices: options.prices,
            state: Mutex::new(State { journal, ..State::default() }),
        };
        let (concurrency, max_unanswered) = (options.concurrency, options.max_unanswered);
        Ok(Self { shared: Arc::new(shared), concurrency, max_unanswered, runtime })
    }

    /// What was used so far.
    pub fn bill(&self) -> Bill {
        self.shared.state().bill
    }

    /// Runs one job per number below `count`, `concurrency` at a time, until all are done, the endpoint is broken or the
    /// caller wants to stop; what is on its way then is given up.
    fn run<T: Send + 'static, F: Future<Output = Result<T, Failed>> + Send + 'static>(
        &self,
        count: usize,
        job: impl Fn(usize) -> F,
        mut sink: impl FnMut(usize, Result<T, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        self.runtime.block_on(async {
            let mut jobs = JoinSet::new();
            let (mut next, mut unanswered) = (0, 0);
            loop {
                while jobs.len() < self.concurrency && next < count && !cancel.is_cancelled() {
                    let (number, work) = (next, job(next));
                    jobs.spawn(async move { (number, work.await) });
                    next += 1;
                }
                let joined = tokio::select! {
                    joined = jobs.join_next() => joined,
                    () = sleep(POLL) => {
                        if cancel.is_cancelled() {
                            return Ok(());
                        }
                        continue;
                    }
                };
                let Some(joined) = joined else { return Ok(()) };
                let (number, outcome) = joined.map_err(|error| GenerateError {
                    message: "a request was given up by a fault of this program".into(),
                    source: Some(Box::new(error)),
                })?;
                match outcome {
                    Ok(value) => {
                        unanswered = 0;
                        sink(number, Ok(value));
                    }
                    Err(Failed::Request(error)) => {
                        // Somebody was there to refuse it.
                        unanswered = 0;
                        sink(number, Err(error));
                    }
                    Err(Failed::Unanswered { url, attempts, message }) => {
                        unanswered += 1;
                        if unanswered >= self.max_unanswered {
                            return Err(RemoteError::Failing { url, requests: unanswered, attempts, message }.into());
                        }
                        sink(number, Err(RequestError::Unanswered { attempts, message }));
                    }
                    Err(Failed::Endpoint(error)) => return Err(error.into()),
                }
            }
        })
    }
}

impl Generator for RemoteGenerator {
    /// Requests that are equal, seed included, are asked once. After a stop, requests without an answer are left out.
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let mut first_of: HashMap<String, usize> = HashMap::new();
        let mut groups: Vec<(&Request, Vec<usize>)> = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            let content = serde_json::to_string(request).unwrap_or_else(|_| format!("{request:?}"));
            let group = *first_of.entry(content).or_insert(groups.len());
            if group == groups.len() {
                groups.push((request, Vec::new()));
            }
            groups[group].1.push(index);
        }
        let job = |number: usize| Arc::clone(&self.shared).complete(groups[number].0.clone());
        let sink = |number: usize, answer: Result<Completion, RequestError>| {
            for &index in &groups[number].1 {
                sink(index, answer.clone());
            }
        };
        self.run(groups.len(), job, sink, cancel)
    }

    /// Works with servers that echo prompts with log-probabilities (`echo` of `/completions`).
    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let job = |number: usize| Arc::clone(&self.shared).score(pairs[number].clone());
        self.run(pairs.len(), job, sink, cancel)
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Counts and a map: whoever panicked left them whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All answers to a request. A server that gives fewer at a time than asked for is asked for the rest.
    async fn complete(self: Arc<Self>, request: Request) -> Result<Completion, Failed> {
        let n = request.sampling.n;
        if n == 0 {
            let error = RequestError::Setting {
                name: "n".into(),
                value: "0".into(),
                expected: "expected a count from 1".into(),
            };
            return Err(Failed::Request(error));
        }
        let mut answers: Vec<Answer> = Vec::with_capacity(n);
        let mut prompt_tokens = None;
        while answers.len() < n {
            let missing = n - answers.len();
            let body = wire::body(&request, missing, answers.len(), &self.style);
            let (path, body) = body.map_err(Failed::Request)?;
            let (response, found) = self.answer(path, &body, wire::answers).await?;
            answers.extend(found.into_iter().take(missing));
            prompt_tokens = prompt_tokens.or(wire::usage(&response).map(|usage| usage.prompt_tokens));
        }
        Ok(Completion { answers, prompt_tokens: prompt_tokens.unwrap_or_default() as usize })
    }

    async fn score(self: Arc<Self>, (prompt, continuation): (Prompt, Prompt)) -> Result<TokenLogProbs, Failed> {
        let body = wire::scoring(&prompt, &continuation, &self.style).map_err(Failed::Request)?;
        let (response, _) = self.answer(wire::COMPLETIONS, &body, wire::answers).await?;
        // A server that cannot do it would not be able to the next time either.
        wire::score(&prompt, &continuation, &response).map_err(|why| Failed::Request(RequestError::Unsupported(why)))
    }

    /// The response to a request, from the journal or the server, in which `read` finds what it looks for.
    async fn answer<T>(
        &self,
        path: &str,
        body: &Map<String, Value>,
        read: impl Fn(&Value) -> Result<T, String>,
    ) -> Result<(Value, T), Failed> {
        let key = self.key(path, body);
        {
            let mut state = self.state();
            if let Some(response) = state.journal.get(key).cloned()
                && let Ok(found) = read(&response)
            {
                state.bill.kept.add(&response, self.prices);
                return Ok((response, found));
            }
        }
        let number = u64::from_str_radix(&key.to_string()[..16], 16).unwrap_or_default();
        let mut attempt = 0;
        loop {
            self.wait_for_turn().await;
            let failure = match self.client.ask(path, body).await {
                Ok(response) => match read(&response) {
                    Ok(found) => {
                        let mut state = self.state();
                        state.bill.paid.add(&response, self.prices);
                        state.journal.keep(key, &response).map_err(Failed::Endpoint)?;
                        return Ok((response, found));
                    }
                    Err(message) => Failure::Passing { message, asked: None, is_reached: true },
                },
                Err(failure) => failure,
            };
            attempt += 1;
            let url = || self.client.url(path);
            let (message, asked, is_reached) = match failure {
                Failure::Broken(error) => return Err(Failed::Endpoint(error)),
                Failure::Refused { status, message } => {
                    return Err(Failed::Request(RequestError::Refused { status, message }));
                }
                Failure::Passing { message, asked, is_reached } => (message, asked, is_reached),
            };
            if attempt >= self.max_attempts {
                return Err(if is_reached {
                    Failed::Unanswered { url: url(), attempts: attempt, message }
                } else {
                    Failed::Endpoint(RemoteError::Unreachable { url: url(), attempts: attempt, message })
                });
            }
            let wait = self.backoff.wait(self.streams, number, attempt - 1, asked);
            tracing::debug!(url = url(), attempt, ?wait, message, "asking again");
            {
                let mut state = self.state();
                state.bill.retries += 1;
                if asked.is_some() {
                    state.not_before = state.not_before.max(Some(Instant::now() + wait));
                }
            }
            sleep(wait).await;
        }
    }

    /// Waits while the server wants nobody to come.
    async fn wait_for_turn(&self) {
        loop {
            let not_before = self.state().not_before;
            match not_before {
                Some(then) if then > Instant::now() => sleep_until(then).await,
                _ => return,
            }
        }
    }

    /// Tells requests apart by all that decides the answer: where it goes and what it says.
    fn key(&self, path: &str, body: &Map<String, Value>) -> Digest {
        let mut hasher = Hasher::new();
        hasher.field("url", self.client.url(path).as_bytes());
        hasher.field("body", hash_json(&Value::Object(body.clone())).to_string().as_bytes());
        hasher.finish()
    }
}
