//! From an HTTP request to its response: who may ask, how much, where it goes.

use super::Names;
use super::answer::{EventWriter, Frame, Scores};
use super::error::ApiError;
use super::metrics::Metrics;
use super::request::{self, Context, Job};
use super::worker::{Ticket, Update, Worker};
use didact_core::generate::Answer;
use didact_infer::{LocalModel, Reading};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Frame as BodyFrame, Incoming};
use hyper::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Time for the body of a request to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Events that wait for a slow client before the next one is made.
const EVENTS_AHEAD: usize = 64;
/// Seconds after which a client that was turned away may come back.
const COME_BACK: u64 = 1;

type Reply = Response<BoxBody<Bytes, Infallible>>;

/// How much is allowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_concurrent: usize,
    pub(super) max_queue: usize,
    pub(super) max_request_bytes: usize,
    pub(super) timeout: Duration,
}

/// What all requests share.
#[derive(Debug)]
pub(super) struct App {
    model: Arc<LocalModel>,
    worker: Worker,
    metrics: Arc<Metrics>,
    names: Names,
    /// Of the key: hashes are compared in the same time wherever they differ.
    key: Option<blake3::Hash>,
    limits: Limits,
    slots: Arc<Semaphore>,
    /// Refuse requests that were addressed to another host.
    is_guarded: bool,
    is_stopping: AtomicBool,
    created: u64,
    seed: u64,
    /// Tells the responses of this server from those of others.
    mark: u64,
    count: AtomicU64,
}

/// A place among the requests that are worked on.
struct Place {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
    started: Instant,
    /// Nobody gave it up.
    is_settled: bool,
}

impl Place {
    /// The answer is complete.
    fn done(mut self) {
        self.is_settled = true;
        self.metrics.request.add(self.started.elapsed());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.active.fetch_sub(1, Ordering::Relaxed);
        if !self.is_settled {
            self.metrics.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A place among those that wait.
struct Waiting<'a>(&'a Metrics);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl App {
    pub(super) fn new(
        model: Arc<LocalModel>,
        worker: Worker,
        metrics: Arc<Metrics>,
        names: Names,
        key: Option<&str>,
        limits: Limits,
    ) -> Self {
        let mark = RandomState::new().hash_one("responses");
        Self {
            model,
            worker,
            metrics,
            names,
            key: key.map(|key| blake3::hash(key.as_bytes())),
            limits,
            slots: Arc::new(Semaphore::new(limits.max_concurrent)),
            is_guarded: false,
            is_stopping: AtomicBool::new(false),
            created: now(),
            seed: RandomState::new().hash_one("seeds"),
            mark,
            count: AtomicU64::new(0),
        }
    }

    /// Requests without a seed get seeds that follow from this one.
    pub(super) fn with_seed(mut self, seed: Option<u64>) -> Self {
        self.seed = seed.unwrap_or(self.seed);
        self
    }

    /// Whether requests must be addressed to this machine by one of its own names. A page in somebody's browser can make
    /// a name of its own mean this machine; a server that asks for no key would obey it.
    pub(super) fn guarded(mut self, is_guarded: bool) -> Self {
        self.is_guarded = is_guarded;
        self
    }

    /// From now on requests are turned away.
    pub(super) fn stop_taking(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Requests that are worked on or wait.
    pub(super) fn under_way(&self) -> u64 {
        self.metrics.active.load(Ordering::Relaxed) + self.metrics.waiting.load(Ordering::Relaxed)
    }

    /// Gives up what is under way.
    pub(super) fn give_up(&self) {
        self.slots.close();
        self.worker.stop();
    }

    fn next_number(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    fn check_key(&self, request: &Request<Incoming>) -> Result<(), ApiError> {
        let Some(key) = &self.key else { return Ok(()) };
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
        // Comparing digests of BLAKE3 takes the same time wherever they differ.
        if blake3::hash(given.unwrap_or_default().trim().as_bytes()) == *key { Ok(()) } else { Err(ApiError::key()) }
    }

    fn check_host(&self, request: &Request<Incoming>) -> Result<(), ApiError> {
        let Some(host) = request.headers().get(HOST).and_then(|value| value.to_str().ok()) else { return Ok(()) };
        if !self.is_guarded || is_own_name(host) {
            return Ok(());
        }
        let message =
            format!("`{host}` is no name of this machine; a server that is reached by other names needs a key");
        Err(ApiError::malformed(403, message))
    }

    async fn body(&self, request: Request<Incoming>) -> Result<Bytes, ApiError> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        // Anything else a page in a browser could send without asking first.
        if !kind.trim_start().to_ascii_lowercase().starts_with("application/json") {
            return Err(ApiError::malformed(415, "the body has to be sent as `Content-Type: application/json`"));
        }
        let limit = self.limits.max_request_bytes;
        let read = Limited::new(request.into_body(), limit).collect();
        match tokio::time::timeout(BODY_TIME, read).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err(ApiError::malformed(413, format!("the body is larger than {limit} bytes")))
            }
            Ok(Err(error)) => Err(ApiError::malformed(400, format!("the body broke off: {error}"))),
            Err(_) => Err(ApiError::malformed(408, format!("the body did not arrive within {BODY_TIME:?}"))),
        }
    }

    async fn route(self: &Arc<Self>, request: Request<Incoming>) -> Result<Reply, ApiError> {
        let path = request.uri().path().trim_end_matches('/').to_owned();
        let allowed = match path.as_str() {
            "/health" | "/metrics" | "/v1/models" => Method::GET,
            "/v1/completions" | "/v1/chat/completions" | "/v1/embeddings" => Method::POST,
            path if path.starts_with("/v1/models/") => Method::GET,
            path => {
                let known = "/v1/models, /v1/completions, /v1/chat/completions, /health and /metrics";
                return Err(ApiError::no_such_path(format!("there is no `{path}`; there are {known}")));
            }
        };
        self.check_host(&request)?;
        if path != "/health" {
            self.check_key(&request)?;
        }
        if request.method() != allowed {
            let error = ApiError::malformed(405, format!("`{path}` takes {allowed}"));
            let mut reply = error_reply(&error);
            reply.headers_mut().insert(ALLOW, HeaderValue::from_str(allowed.as_str()).map_err(|_| error)?);
            return Ok(reply);
        }
        match path.as_str() {
            "/health" if self.is_stopping.load(Ordering::Relaxed) => Err(ApiError::stopping()),
            "/health" => Ok(json_reply(StatusCode::OK, &json!({"status": "ok"}))),
            "/metrics" => Ok(reply(StatusCode::OK, "text/plain; version=0.0.4", self.metrics.text().into())),
            "/v1/models" => Ok(json_reply(
                StatusCode::OK,
                &json!({"object": "list", "data": self.names.all().map(|name| self.card(name)).collect::<Vec<_>>()}),
            )),
            "/v1/embeddings" => {
                let message = format!("`{}` generates text and makes no embeddings", self.names.model);
                Err(ApiError::unsupported("model", message))
            }
            "/v1/completions" => self.generate(request, request::completions).await,
            "/v1/chat/completions" => self.generate(request, request::chat).await,
            path => {
                let name = path.trim_start_matches("/v1/models/");
                if self.names.all().any(|known| known == name) {
                    Ok(json_reply(StatusCode::OK, &self.card(name)))
                } else {
                    Err(ApiError::no_such_model(name, self.names.all()))
                }
            }
        }
    }

    fn card(&self, name: &str) -> Value {
        json!({"id": name, "object": "model", "created": self.created, "owned_by": "didact"})
    }

    /// A place to work in, perhaps after waiting.
    async fn place(&self, started: Instant) -> Result<Place, ApiError> {
        if self.is_stopping.load(Ordering::Relaxed) {
            return Err(ApiError::stopping());
        }
        let slots = Arc::clone(&self.slots);
        let permit = if let Ok(permit) = Arc::clone(&slots).try_acquire_owned() {
            permit
        } else {
            let waiting = Waiting(&self.metrics);
            if self.metrics.waiting.fetch_add(1, Ordering::Relaxed) >= self.limits.max_queue as u64 {
                return Err(ApiError::busy(COME_BACK));
            }
            let permit = slots.acquire_owned().await.map_err(|_| ApiError::stopping())?;
            drop(waiting);
            permit
        };
        self.metrics.active.fetch_add(1, Ordering::Relaxed);
        Ok(Place { _permit: permit, metrics: Arc::clone(&self.metrics), started, is_settled: false })
    }

    async fn generate(
        self: &Arc<Self>,
        request: Request<Incoming>,
        understand: fn(&[u8], &Context<'_>) -> Result<Job, ApiError>,
    ) -> Result<Reply, ApiError> {
        let started = Instant::now();
        let deadline = tokio::time::Instant::now() + self.limits.timeout;
        let body = self.body(request).await?;
        let number = self.next_number();
        let app = Arc::clone(self);
        // Rendering and tokenising a long conversation takes milliseconds, in which others go on.
        let job = tokio::task::spawn_blocking(move || {
            let seed = app.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            understand(&body, &Context { model: &app.model, names: &app.names, seed })
        });
        let job = job
            .await
            .map_err(|_| ApiError::server("the request could not be read; this is a fault of the server"))??;
        let place = self.place(started);
        let place = tokio::time::timeout_at(deadline, place).await.map_err(|_| self.too_late())??;
        self.metrics.prompt_tokens.fetch_add(job.prompt_tokens as u64, Ordering::Relaxed);
        let ticket = self.worker.submit(job.requests.clone(), job.reads);
        let mut run = Run {
            app: Arc::clone(self),
            ticket: ticket.ok_or_else(|| ApiError::server("the model is gone; restart the server"))?,
            finished: 0,
            has_text: false,
            deadline,
            place,
        };
        let id = format!("{:x}{number:x}", self.mark);
        if !job.is_stream {
            let value = run.whole(&job, &id).await?;
            run.place.done();
            return Ok(json_reply(StatusCode::OK, &value));
        }
        // What fails before the first text fails with a status of its own.
        let first = run.next(job.requests.len()).await?;
        let (events, received) = mpsc::channel(EVENTS_AHEAD);
        tokio::spawn(run.stream(job, id, first, events));
        let mut reply = Response::new(EventBody(received).boxed());
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(reply)
    }

    fn too_late(&self) -> ApiError {
        ApiError::timeout(self.limits.timeout.as_secs_f64())
    }

    fn frame<'a>(&'a self, job: &'a Job, id: &str) -> Frame<'a> {
        let prefix = if matches!(job.kind, request::Kind::Chat { .. }) { "chatcmpl" } else { "cmpl" };
        Frame {
            job,
            tokenizer: self.model.tokenizer(),
            id: format!("{prefix}-{id}"),
            created: now(),
            model: &job.model,
        }
    }
}

/// A request under way. Whoever drops it gives it up.
struct Run {
    app: Arc<App>,
    ticket: Ticket,
    /// Prompts all of whose answers are complete.
    finished: usize,
    has_text: bool,
    deadline: tokio::time::Instant,
    place: Place,
}

/// What a client is told of a request under way; answers are numbered through all prompts.
enum Step {
    Read { request: usize, reading: Reading },
    Text { index: usize, text: String, scores: Scores },
    Answer { index: usize, answer: Answer },
    Done,
}

impl Run {
    /// What happens next; `None` when all of it has.
    async fn next(&mut self, prompts: usize) -> Result<Option<Update>, ApiError> {
        let next = self.wait(prompts).await;
        self.place.is_settled |= next.is_err();
        next
    }

    async fn wait(&mut self, prompts: usize) -> Result<Option<Update>, ApiError> {
        loop {
            if self.finished == prompts {
                return Ok(None);
            }
            let update = tokio::time::timeout_at(self.deadline, self.ticket.next()).await;
            match update.map_err(|_| self.app.too_late())?.ok_or_else(ApiError::stopping)? {
                Update::Finished => self.finished += 1,
                Update::Failed(error) => return Err(ApiError::of_request(&error, "prompt")),
                Update::Broken(message) => return Err(ApiError::server(message)),
                update => {
                    if !std::mem::replace(&mut self.has_text, true) {
                        self.app.metrics.first_text.add(self.place.started.elapsed());
                    }
                    if let Update::Answer { value, .. } = &update {
                        self.app.metrics.generated_tokens.fetch_add(value.ids.len() as u64, Ordering::Relaxed);
                    }
                    return Ok(Some(update));
                }
            }
        }
    }

    fn step(job: &Job, update: Option<Update>) -> Step {
        match update {
            Some(Update::Read { request, reading }) => Step::Read { request, reading },
            Some(Update::Text { request, answer, text, scores }) => {
                Step::Text { index: request * job.n + answer, text, scores }
            }
            Some(Update::Answer { request, answer, value }) => {
                Step::Answer { index: request * job.n + answer, answer: value }
            }
            _ => Step::Done,
        }
    }

    async fn whole(&mut self, job: &Job, id: &str) -> Result<Value, ApiError> {
        let mut answers: Vec<Option<Answer>> = vec![None; job.requests.len() * job.n];
        let mut readings = vec![Reading::default(); job.requests.len()];
        loop {
            let update = self.next(job.requests.len()).await?;
            match Self::step(job, update) {
                Step::Text { .. } => {}
                Step::Read { request, reading } => readings[request] = reading,
                Step::Answer { index, answer } => answers[index] = Some(answer),
                Step::Done => break,
            }
        }
        let answers: Vec<Answer> = answers.into_iter().flatten().collect();
        Ok(self.app.frame(job, id).whole(&answers, &readings))
    }

    /// Writes events until the answers are complete, something fails or the client leaves.
    async fn stream(mut self, job: Job, id: String, first: Option<Update>, events: mpsc::Sender<Bytes>) {
        let app = Arc::clone(&self.app);
        let frame = app.frame(&job, &id);
        let mut writer = EventWriter::new(&frame);
        let mut update = first;
        let outcome = loop {
            let (texts, is_done) = match Self::step(&job, update) {
                Step::Text { index, text, scores } => (writer.text(index, &text, scores), false),
                Step::Answer { index, answer } => (writer.end(index, &answer), false),
                // Prompts are not read for streams.
                Step::Read { .. } => (Vec::new(), false),
                Step::Done => (writer.usage().into_iter().collect(), true),
            };
            for text in texts {
                if events.send(event(&text)).await.is_err() {
                    return;
                }
            }
            if is_done {
                break Ok(());
            }
            update = tokio::select! {
                next = self.next(job.requests.len()) => match next {
                    Ok(update) => update,
                    Err(error) => break Err(error),
                },
                () = events.closed() => return,
            };
        };
        match outcome {
            Ok(()) => {
                // Before the last words: whoever has read them may look at the counts.
                self.place.done();
                let _ = events.send(Bytes::from_static(b"data: [DONE]\n\n")).await;
            }
            Err(error) => {
                drop(self);
                let _ = events.send(event(&error.body())).await;
            }
        }
    }
}

fn event(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// A response's body that is written while it is sent.
struct EventBody(mpsc::Receiver<Bytes>);

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        Poll::Ready(ready!(self.0.poll_recv(context)).map(|bytes| Ok(BodyFrame::data(bytes))))
    }
}

/// Answers a request.
pub(super) async fn answer(app: Arc<App>, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let endpoint = match request.uri().path() {
        "/v1/chat/completions" => "chat",
        "/v1/completions" => "completions",
        "/v1/embeddings" => "embeddings",
        "/health" => "health",
        "/metrics" => "metrics",
        path if path.starts_with("/v1/models") => "models",
        _ => "other",
    };
    let reply = app.route(request).await.unwrap_or_else(|error| error_reply(&error));
    tracing::debug!(endpoint, status = reply.status().as_u16(), "answered");
    app.metrics.answered(endpoint, reply.status().as_u16());
    Ok(reply)
}

fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body).boxed());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

fn json_reply(status: StatusCode, value: &Value) -> Reply {
    reply(status, "application/json", value.to_string().into())
}

fn error_reply(error: &ApiError) -> Reply {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = json_reply(status, &error.body());
    if let Some(seconds) = error.retry_after {
        reply.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if status == StatusCode::UNAUTHORIZED {
        reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    reply
}

/// Whether a `Host` header names this machine by itself: an address, or `localhost`.
fn is_own_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_own_names() {
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "[::1]:8080", "[::1]", "192.168.0.2"] {
            assert!(is_own_name(host), "{host}");
        }
        for host in ["example.org", "example.org:8080", "localhost.example.org", ""] {
            assert!(!is_own_name(host), "{host}");
        }
    }
}
