//! From rows to a corpus: reading, encoding and writing side by side, in the order of the rows.

use std::path::Path;
use std::time::Instant;

use didact_core::cancel::Cancel;
use didact_core::example::{Example, SourcedExample};
use didact_core::progress::Reporter;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::CorpusSummary;
use super::write::{Begun, CorpusWriter, Identity};
use crate::check::text_size;
use crate::encode::{EncodeOptions, Encoded, Encoder, LongText, TrainOn};
use crate::error::DataError;
use crate::reader::{self, BadRows, Keep, RowError, RowStream, SourceConfig};
use crate::schema::Detection;
use crate::store::Origin;
use crate::tokenizer::Tokenizer;

/// Rows handed out at a time, and the bytes of text at which a batch of rows is closed before. Both decide where shards
/// end and must not change: a corpus begun by one version would not be continued to the same bytes by another.
const CHUNK_ROWS: usize = 1024;
const CHUNK_BYTES: usize = 4 << 20;

/// How a corpus is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorpusOptions {
    /// Fields of each row that are kept beside its tokens.
    pub keep: Vec<String>,
    /// What is trained in conversations and completions.
    pub train_on: TrainOn,
    /// Whether text begins with the beginning-of-sequence token; `None` as the tokenizer says.
    pub add_bos: Option<bool>,
    /// Whether text ends with the end-of-sequence token; `None` if the tokenizer has one.
    pub add_eos: Option<bool>,
    /// Tokens after which a shard is closed. An interrupted run does at most this much again.
    pub shard_tokens: u64,
    /// Add to a finished corpus.
    pub append: bool,
    /// Remove what is there and begin anew.
    pub fresh: bool,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self {
            keep: Vec::new(),
            train_on: TrainOn::default(),
            add_bos: None,
            add_eos: None,
            shard_tokens: 1 << 25,
            append: false,
            fresh: false,
        }
    }
}

/// What [`tokenize`] did.
#[derive(Debug, Clone)]
pub struct Tokenized {
    /// What the files given became.
    pub summary: CorpusSummary,
    /// Tokens made by this call: fewer than all when it went on with an interrupted one, none when all was done before.
    pub new_tokens: u64,
    /// Seconds that took.
    pub seconds: f64,
    /// Rows that were left out.
    pub bad_rows: BadRows,
    /// The schemas found.
    pub detections: Vec<Detection>,
    /// Whether a stop was asked for; the same call goes on.
    pub is_cancelled: bool,
}

/// A row with what is kept of it.
type Row = (SourcedExample, Map<String, Value>);

/// Rows read together.
#[derive(Default)]
struct Chunk {
    rows: Vec<Row>,
    text_bytes: u64,
    /// Rows of the source seen when this chunk was full, and bad ones among them.
    seen: u64,
    bad: u64,
    /// What ended the source before its end.
    error: Option<RowError>,
}

/// What a row became.
enum Made {
    /// Running text.
    Text(Vec<u32>),
    /// Sequences with weights of their own.
    Sequences(Vec<Encoded>),
}

/// Makes, or goes on making, a corpus at `dir` of the rows of `source`, on all threads of rayon's current pool. The bytes
/// that are written do not depend on their number, nor on how often it was interrupted.
///
/// # Errors
/// A row that cannot be read or encoded, a file that cannot be written, or a corpus made otherwise at `dir`.
pub fn tokenize(
    source: &SourceConfig,
    tokenizer: &Tokenizer,
    dir: &Path,
    options: &CorpusOptions,
    cancel: &Cancel,
    reporter: &dyn Reporter,
) -> Result<Tokenized, DataError> {
    let encode = EncodeOptions {
        train_on: options.train_on,
        add_bos: options.add_bos,
        add_eos: options.add_eos,
        long_text: LongText::Whole,
        ..EncodeOptions::default()
    };
    let encoder = Encoder::new(tokenizer, encode)?;
    let mut inputs = Vec::new();
    for file in reader::resolve(source)? {
        let size = std::fs::metadata(&file.path).map_err(didact_core::files::FileError::at("read", &file.path))?.len();
        inputs.push((file.path.to_string_lossy().into_owned(), size));
    }
    let settings = json!({
        "name": source.name, "schema": source.schema, "format": source.format, "fields": source.fields,
        "text_unit": source.text_unit, "on_bad_row": source.on_bad_row, "max_row_bytes": source.max_row_bytes,
        "train_on": options.train_on, "add_bos": options.add_bos, "add_eos": options.add_eos,
        "shard_tokens": options.shard_tokens,
    });
    let identity = Identity {
        tokenizer: tokenizer.digest()?,
        vocab_size: highest_id(tokenizer),
        keep: options.keep.clone(),
        settings,
    };
    let begun = CorpusWriter::begin(dir, identity, inputs, options.shard_tokens, options.append, options.fresh)?;
    let mut done = Tokenized {
        summary: CorpusSummary::default(),
        new_tokens: 0,
        seconds: 0.0,
        bad_rows: BadRows::default(),
        detections: Vec::new(),
        is_cancelled: false,
    };
    let (mut writer, rows) = match begun {
        Begun::Done(summary) => return Ok(Tokenized { summary, ..done }),
        Begun::From(writer, rows) => (writer, rows),
    };
    tokenizer.prepare_for_much();
    let started = Instant::now();
    let before = writer.summary();
    let mut stream = reader::open(source)?.keeping(match options.keep.as_slice() {
        [] => Keep::Nothing,
        names => Keep::Fields(names.to_vec()),
    });
    stream.skip_to(rows);
    let mut next = read(&mut stream);
    loop {
        let mut chunk = next;
        if cancel.is_cancelled() {
            done.is_cancelled = true;
            break;
        }
        let error = chunk.error.take();
        if chunk.rows.is_empty() {
            if let Some(error) = error {
                return Err(error.into());
            }
            let summary = writer.finish(chunk.seen, before.bad_rows + chunk.bad)?;
            done.new_tokens = summary.tokens - before.tokens;
            (done.summary, done.seconds) = (summary, started.elapsed().as_secs_f64());
            done.bad_rows = stream.bad_rows().clone();
            done.detections = stream.detections().to_vec();
            return Ok(done);
        }
        // The next rows are read while these are encoded; the thread that reads then helps.
        let is_last = error.is_some();
        let read_on = || if is_last { Chunk::default() } else { read(&mut stream) };
        let encode = || chunk.rows.par_iter().map(|(row, _)| encode_row(&encoder, row)).collect::<Vec<_>>();
        let (following, made) = rayon::join(read_on, encode);
        for ((row, fields), made) in chunk.rows.iter().zip(made) {
            add(&mut writer, row, fields, made?)?;
        }
        if let Some(error) = error {
            return Err(error.into());
        }
        writer.count(chunk.text_bytes, 0);
        writer.reached(chunk.seen, before.bad_rows + chunk.bad)?;
        reporter.count("tokenize", "documents", writer.summary().documents, None);
        next = following;
    }
    done.summary = writer.summary();
    done.seconds = started.elapsed().as_secs_f64();
    Ok(done)
}

/// One more than the highest id, so that ids fit a type that holds it.
fn highest_id(tokenizer: &Tokenizer) -> u64 {
    let vocab = tokenizer.inner().get_vocab(true);
    vocab.into_values().max().map_or(0, |id| u64::from(id) + 1)
}

fn read(stream: &mut RowStream) -> Chunk {
    let mut chunk = Chunk::default();
    while chunk.rows.len() < CHUNK_ROWS && chunk.text_bytes < CHUNK_BYTES as u64 {
        match stream.next() {
            None => break,
            Some(Ok(row)) => {
                chunk.text_bytes += text_size(&row.example, str::len) as u64;
                let kept = stream.kept();
                chunk.rows.push((row, kept));
            }
            Some(Err(error)) => {
                chunk.error = Some(error);
                break;
            }
        }
    }
    (chunk.seen, chunk.bad) = (stream.rows(), stream.bad_rows().count);
    chunk
}

fn encode_row(encoder: &Encoder<'_>, row: &SourcedExample) -> Result<Made, DataError> {
    match &row.example {
        Example::Text { text } => {
            encoder.text_ids(text).map(Made::Text).map_err(|error| error.at_row(&row.path, row.row))
        }
        Example::Preference { .. } => Err(DataError::Example {
            place: crate::error::place(&row.path, row.row),
            cause: "a pair of answers; the recipe `dpo` reads it from its file".to_owned(),
        }),
        _ => encoder.encode(row).map(Made::Sequences),
    }
}

fn add(
    writer: &mut CorpusWriter,
    row: &SourcedExample,
    fields: &Map<String, Value>,
    made: Made,
) -> Result<(), DataError> {
    let origin = Origin { source: &row.source, path: &row.path, row: row.row };
    match made {
        Made::Text(ids) if ids.is_empty() => writer.count(0, 1),
        Made::Text(ids) => writer.push_text(&ids, origin, fields)?,
        Made::Sequences(sequences) => {
            for encoded in &sequences {
                if encoded.sequence.is_empty() {
                    writer.count(0, 1);
                } else {
                    writer.push(&encoded.sequence, origin, fields)?;
                }
            }
        }
    }
    Ok(())
}
