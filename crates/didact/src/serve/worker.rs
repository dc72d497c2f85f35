//! The thread that runs the model: it takes requests between forward passes and hands out what happens to them.

use super::answer::Scores;
use super::metrics::Metrics;
use didact_core::generate::{Answer, FinishReason, Prompt, Request, RequestError};
use didact_infer::{Event, LocalModel, Options, Reading, RequestId, Scheduler};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What happens to one of the requests of a [`Ticket`].
#[derive(Debug)]
pub(super) enum Update {
    /// A prompt was read for its own sake.
    Read { request: usize, reading: Reading },
    /// An answer grew.
    Text { request: usize, answer: usize, text: String, scores: Scores },
    /// An answer is complete.
    Answer { request: usize, answer: usize, value: Answer },
    /// A request is complete.
    Finished,
    /// A request cannot be answered.
    Failed(RequestError),
    /// The model could not go on.
    Broken(String),
}

enum Command {
    Submit {
        ticket: u64,
        requests: Vec<Request>,
        reads: Option<usize>,
        updates: UnboundedSender<Update>,
    },
    Cancel {
        ticket: u64,
    },
    /// Everything under way is given up.
    Stop,
}

/// The way to the model's thread.
#[derive(Debug)]
pub(super) struct Worker {
    commands: Sender<Command>,
    next: AtomicU64,
}

/// Requests under way. Dropping it frees their places.
#[derive(Debug)]
pub(super) struct Ticket {
    number: u64,
    updates: UnboundedReceiver<Update>,
    commands: Sender<Command>,
}

impl Ticket {
    /// What happens next; `None` when the server gives everything up.
    pub(super) async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // The thread may be gone, and everything with it.
        let _ = self.commands.send(Command::Cancel { ticket: self.number });
    }
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When an option is out of range or no thread can be started.
    pub(super) fn start(model: Arc<LocalModel>, options: Options, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let scheduler = Scheduler::new(Arc::clone(&model), options)?;
        let (commands, received) = channel();
        let work = Work { scheduler, model, options, metrics, requests: BTreeMap::new(), tickets: BTreeMap::new() };
        std::thread::Builder::new().name("model".to_owned()).spawn(move || work.run(&received))?;
        Ok(Self { commands, next: AtomicU64::new(0) })
    }

    /// Gives requests to the model; with `reads`, their prompts are scored, with so many alternatives to each token, and
    /// a request for no new tokens ends there. `None` when the model's thread is gone.
    pub(super) fn submit(&self, requests: Vec<Request>, reads: Option<usize>) -> Option<Ticket> {
        let (number, (sender, updates)) = (self.next.fetch_add(1, Ordering::Relaxed), unbounded_channel());
        self.commands.send(Command::Submit { ticket: number, requests, reads, updates: sender }).ok()?;
        Some(Ticket { number, updates, commands: self.commands.clone() })
    }

    /// Gives up everything under way: tickets get no more updates.
    pub(super) fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }
}

/// An answer of no tokens.
fn nothing() -> Answer {
    let finish_reason = FinishReason::Length;
    Answer { text: String::new(), ids: Vec::new(), log_probs: Vec::new(), top_log_probs: Vec::new(), finish_reason }
}

/// Whose a request is.
struct Place {
    ticket: u64,
    /// Which of the ticket's requests.
    request: usize,
    wants_scores: bool,
}

struct Work {
    scheduler: Scheduler,
    model: Arc<LocalModel>,
    options: Options,
    metrics: Arc<Metrics>,
    requests: BTreeMap<RequestId, Place>,
    tickets: BTreeMap<u64, (Vec<RequestId>, UnboundedSender<Update>)>,
}

impl Work {
    fn run(mut self, commands: &Receiver<Command>) {
        let mut events = Vec::new();
        let mut has_work = false;
        loop {
            // Whoever waits for a pass waits for one; without one, for the next request.
            loop {
                let command = if has_work {
                    match commands.try_recv() {
                        Ok(command) => command,
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return,
                    }
                } else {
                    let Ok(command) = commands.recv() else { return };
                    command
                };
                self.obey(command);
                has_work = !self.requests.is_empty();
            }
            match self.scheduler.step(&mut events) {
                Ok(_) => {}
                Err(error) => self.broken(&error.to_string()),
            }
            // Before anybody is told: whoever knows that an answer is complete finds it counted as such.
            self.metrics.streams.store(self.scheduler.running() as u64, Ordering::Relaxed);
            for event in events.drain(..) {
                self.tell(event);
            }
            has_work = !self.requests.is_empty();
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit { ticket, requests, reads, updates } => {
                let mut ids = Vec::with_capacity(requests.len());
                for (request, asked) in requests.into_iter().enumerate() {
                    if let (Some(alternatives), Prompt::Ids(ids)) = (reads, &asked.prompt) {
                        match self.scheduler.read(ids, alternatives, asked.sampling.adapter.as_deref()) {
                            Ok(reading) => {
                                let _ = updates.send(Update::Read { request, reading });
                            }
                            Err(error) => {
                                let _ = updates.send(Update::Failed(error));
                                continue;
                            }
                        }
                        if asked.sampling.max_tokens == 0 {
                            for answer in 0..asked.sampling.n {
                                let _ = updates.send(Update::Answer { request, answer, value: nothing() });
                            }
                            let _ = updates.send(Update::Finished);
                            continue;
                        }
                    }
                    let wants_scores = asked.sampling.log_probs;
                    match self.scheduler.submit(asked) {
                        Ok(id) => {
                            ids.push(id);
                            self.requests.insert(id, Place { ticket, request, wants_scores });
                        }
                        Err(error) => {
                            let _ = updates.send(Update::Failed(error));
                        }
                    }
                }
                self.tickets.insert(ticket, (ids, updates));
            }
            Command::Cancel { ticket } => {
                let Some((ids, _)) = self.tickets.remove(&ticket) else { return };
                for id in ids {
                    if self.requests.remove(&id).is_some() {
                        self.scheduler.cancel(id);
                    }
                }
            }
            Command::Stop => {
                for id in std::mem::take(&mut self.requests).into_keys() {
                    self.scheduler.cancel(id);
                }
                self.tickets.clear();
            }
        }
        self.metrics.streams.store(self.scheduler.running() as u64, Ordering::Relaxed);
    }

    fn tell(&mut self, event: Event) {
        let (id, is_last) = match &event {
            Event::Text { id, .. } | Event::Answer { id, .. } => (*id, false),
            Event::Finished { id, .. } | Event::Failed { id, .. } => (*id, true),
        };
        let Some(place) = self.requests.get(&id) else { return };
        let request = place.request;
        let update = match event {
            Event::Text { answer, text, tokens, .. } => {
                // A complete answer brings its scores itself.
                let written = self.scheduler.written(id, answer).filter(|_| place.wants_scores);
                let scores = written.map_or_else(Scores::default, |written| Scores::of_written(written, tokens));
                Update::Text { request, answer, text, scores }
            }
            Event::Answer { answer, value, .. } => Update::Answer { request, answer, value },
            Event::Finished { .. } => Update::Finished,
            Event::Failed { error, .. } => Update::Failed(error),
        };
        if let Some((_, updates)) = self.tickets.get(&place.ticket) {
            // Whoever does not listen any more drops the ticket too, which frees the place.
            let _ = updates.send(update);
        }
        if is_last {
            self.requests.remove(&id);
        }
    }

    /// What was under way is lost; a new scheduler takes what comes.
    fn broken(&mut self, message: &str) {
        tracing::error!("the model could not go on: {message}");
        for (_, updates) in std::mem::take(&mut self.tickets).into_values() {
            let _ = updates.send(Update::Broken(message.to_owned()));
        }
        self.requests.clear();
        // The same options were in range before.
        if let Ok(scheduler) = Scheduler::new(Arc::clone(&self.model), self.options) {
            self.scheduler = scheduler;
        }
    }
}
