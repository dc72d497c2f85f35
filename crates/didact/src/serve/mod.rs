//! The HTTP server: the API of OpenAI over the model of this process.
//!
//! [`worker`] runs the model in a thread of its own. Everything else is asynchronous: a connection is read by hyper,
//! [`request`] understands what is asked, [`answer`] says what the model wrote, as a whole or as events. A request that
//! is under way holds a [`worker::Ticket`]; when its client leaves, hyper drops the ticket with everything else of the
//! request, and its place is free.

mod answer;
mod error;
mod fields;
mod http;
mod metrics;
mod request;
mod tools;
mod worker;

use crate::output::Output;
use didact_core::cancel::Cancel;
use didact_infer::{LocalModel, Options};
use error::ApiError;
use http::{App, Limits};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::Metrics;
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use worker::Worker;

/// How often the user's wish to stop is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Time for the head of a request to arrive.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Time for clients to be told that the server gave them up.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Connections beside those that a request is worked on or waits for.
const SPARE_CONNECTIONS: usize = 128;

/// What requests call the model and its adapters.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) model: String,
    /// The adapter that answers for the model itself, by its name in the [`LocalModel`].
    pub(crate) adapter: Option<String>,
    /// Adapters that are asked for as models of their own names.
    pub(crate) adapters: Vec<String>,
}

impl Names {
    /// All models there are, the one itself first.
    fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&*self.model).chain(self.adapters.iter().map(String::as_str))
    }

    /// The adapter of the model that is asked for, if it has one.
    fn adapter_of(&self, model: &str) -> Result<Option<&str>, ApiError> {
        if model == self.model {
            return Ok(self.adapter.as_deref());
        }
        let found = self.adapters.iter().find(|name| *name == model);
        found.map(|name| Some(name.as_str())).ok_or_else(|| ApiError::no_such_model(model, self.all()))
    }
}

/// What the server is and allows.
#[derive(Debug, Clone)]
pub(crate) struct ServeOptions {
    pub(crate) host: String,
    /// 0 lets the system choose.
    pub(crate) port: u16,
    pub(crate) names: Names,
    /// What clients must send.
    pub(crate) key: Option<String>,
    /// Requests that are worked on at a time.
    pub(crate) max_concurrent: usize,
    /// Requests that wait beside those.
    pub(crate) max_queue: usize,
    pub(crate) max_request_bytes: usize,
    /// For a request, waiting included.
    pub(crate) timeout: Duration,
    /// For requests under way once the server shall stop.
    pub(crate) shutdown_timeout: Duration,
    /// Root of the seeds of requests without one; drawn when there is none.
    pub(crate) seed: Option<u64>,
    pub(crate) infer: Options,
}

/// What is said once the server listens.
#[derive(Debug, Serialize)]
struct Listening {
    url: String,
    model: String,
}

/// Serves until `cancel` is raised; then no new requests are taken, and those under way have
/// [`ServeOptions::shutdown_timeout`] to finish before they are given up.
///
/// # Errors
/// When the address cannot be used.
pub(crate) fn serve(
    model: Arc<LocalModel>,
    options: ServeOptions,
    cancel: &Cancel,
    output: &Output,
) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::default());
    let worker = Worker::start(Arc::clone(&model), options.infer, Arc::clone(&metrics))?;
    // Two threads suffice for HTTP; the others are the model's.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(async {
        let listener = TcpListener::bind((options.host.as_str(), options.port)).await.map_err(|error| {
            crate::output::usage(
                format!("cannot listen on {}:{}: {error}", options.host, options.port),
                "choose another --host or --port",
            )
        })?;
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() && options.key.is_none() {
            output.warn("everybody who reaches this machine can use the server; --api-key-env asks for a key");
        }
        let limits = Limits {
            max_concurrent: options.max_concurrent,
            max_queue: options.max_queue,
            max_request_bytes: options.max_request_bytes,
            timeout: options.timeout,
        };
        let is_open = options.key.is_none() && address.ip().is_loopback();
        let app = App::new(model, worker, metrics, options.names.clone(), options.key.as_deref(), limits)
            .with_seed(options.seed)
            .guarded(is_open);
        let listening = Listening { url: format!("http://{address}/v1"), model: options.names.model.clone() };
        output.result(&listening, || format!("`{}` at {}", listening.model, listening.url))?;
        let most = options.max_concurrent + options.max_queue + SPARE_CONNECTIONS;
        accept(listener, Arc::new(app), most, options.shutdown_timeout, cancel, output).await;
        anyhow::Ok(())
    });
    runtime.shutdown_timeout(LAST_WORDS);
    served
}

/// Accepts connections until the user wants to stop, then lets them end.
async fn accept(
    listener: TcpListener,
    app: Arc<App>,
    most: usize,
    shutdown_timeout: Duration,
    cancel: &Cancel,
    output: &Output,
) {
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    while !cancel.is_cancelled() {
        let may_accept = connections.len() < most;
        tokio::select! {
            accepted = listener.accept(), if may_accept => match accepted {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(connection(stream, peer, Arc::clone(&app), stopping.clone()));
                }
                Err(error) => {
                    // Such as too many open files: others will be closed.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(POLL).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
    drop(listener);
    app.stop_taking();
    let _ = stop.send(true);
    let started = Instant::now();
    if app.under_way() > 0 {
        output.note(&format!("{} requests under way have {shutdown_timeout:?} to finish", app.under_way()));
    }
    while app.under_way() > 0 && started.elapsed() < shutdown_timeout {
        tokio::time::sleep(POLL.min(shutdown_timeout)).await;
    }
    let given_up = app.under_way();
    app.give_up();
    let everybody = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_WORDS, everybody).await;
    output.note(&format!("stopped; {given_up} requests were given up"));
}

async fn connection(
    stream: tokio::net::TcpStream,
    peer: SocketAddr,
    app: Arc<App>,
    mut stopping: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| http::answer(Arc::clone(&app), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { let _ = stopping.wait_for(|stop| *stop).await; } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, "a connection ended early: {error}");
    }
}
