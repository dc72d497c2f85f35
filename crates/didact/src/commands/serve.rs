//! `didact serve`: an OpenAI-compatible server.

use super::local::{DEFAULT_CACHE_MIB, ModelFiles, NamedAdapter, mebibytes};
use crate::cli::Global;
use crate::output::{Output, Status, usage};
use crate::serve::{Names, ServeOptions, serve};
use crate::signals;
use clap::Args;
use didact_core::cancel::Cancel;
use didact_infer::Options;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

/// Options of `didact serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// A model directory, a .gguf file, or a name that `model pull` knows
    #[arg(long, value_name = "PATH")]
    model: String,
    /// A LoRA adapter, used beside the weights without merging; may be given several times: NAME=DIR answers to requests
    /// for the model NAME, DIR alone to those for the model itself
    #[arg(long, value_name = "[NAME=]DIR")]
    adapter: Vec<NamedAdapter>,
    /// The model's name in the API [default: the last part of --model]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Address to listen on; others than loopback let other machines in
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 lets the system choose, and it is printed
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// The environment variable that holds the key that clients must send
    #[arg(long, value_name = "VAR")]
    api_key_env: Option<String>,
    /// Requests that are worked on at a time
    #[arg(long, value_name = "N", default_value = "64")]
    max_concurrent: NonZeroUsize,
    /// Requests that may wait beside those; more are turned away with status 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_queue: usize,
    /// Most memory for keys and values of requests under way, in MiB; requests wait for it
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_CACHE_MIB, value_parser = clap::value_parser!(u64).range(1..))]
    max_cache_mib: u64,
    /// Largest body of a request
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    max_request_bytes: usize,
    /// Longest time for a request, waiting included
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = seconds)]
    timeout: f64,
    /// Time that requests under way have to finish after Ctrl-C or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    shutdown_timeout: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if (0.0..=1e8).contains(&seconds) { Ok(seconds) } else { Err("expected a number of seconds from 0".to_owned()) }
}

pub(crate) fn run(args: &ServeArgs, global: &Global, output: &Output) -> anyhow::Result<Status> {
    let key = match &args.api_key_env {
        None => None,
        Some(variable) => match std::env::var(variable) {
            Ok(key) if !key.trim().is_empty() => Some(key.trim().to_owned()),
            _ => {
                let message = format!("the environment variable `{variable}` should hold the API key, but does not");
                return Err(usage(message, "set it, or leave --api-key-env out"));
            }
        },
    };
    let last_part = Path::new(&args.model).file_stem().map(|name| name.to_string_lossy().into_owned());
    let name = args.name.clone().or(last_part).unwrap_or_else(|| args.model.clone());
    let mut names = Names { model: name, adapter: None, adapters: Vec::new() };
    for adapter in &args.adapter {
        let name = adapter.name.clone();
        if adapter.is_named && name != names.model {
            names.adapters.push(name);
        } else if names.adapter.replace(name).is_some() {
            let message = format!("--adapter: two would answer for `{}`", names.model);
            return Err(usage(message, "give each a name of its own: --adapter NAME=DIR"));
        }
    }
    let options = ServeOptions {
        host: args.host.clone(),
        port: args.port,
        names,
        key,
        max_concurrent: args.max_concurrent.get(),
        max_queue: args.max_queue,
        max_request_bytes: args.max_request_bytes,
        timeout: Duration::from_secs_f64(args.timeout),
        shutdown_timeout: Duration::from_secs_f64(args.shutdown_timeout),
        seed: global.seed,
        infer: Options {
            max_streams: args.max_concurrent.get(),
            max_cache_bytes: mebibytes(args.max_cache_mib),
            ..Options::default()
        },
    };
    let model = ModelFiles::open(&args.model, output)?.load_beside(&args.adapter, global)?;
    let cancel = Cancel::new();
    signals::watch(&cancel)?;
    serve(model, options, &cancel, output)?;
    Ok(Status::Stopped)
}
