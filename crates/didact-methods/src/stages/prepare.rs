//! Stage `prepare`: rows become sequences with a loss weight per token, counted in the loss ledger.
//!
//! Writes the stores `train`, `held_out` and `plain_text`, `ledger.json` and `notes.json`. The ledger is shown before
//! anything is trained, and refuses what cannot be meant.

use super::rows::{Notes, Rows, Side};
use super::snippets;
use super::{read_json, read_jsonl, toolworld, write_json, write_jsonl};
use crate::error::MethodError;
use crate::model_source::ModelHandle;
use crate::recipe::{DataSettings, HyperfitTable, TrainOn};
use didact_core::cancel::Cancel;
use didact_core::example::{Example, SourcedExample};
use didact_core::progress::{Level, Reporter};
use didact_core::seed::Streams;
use didact_core::stage::{Stage, StageContext, StageError, StageInput};
use didact_data::batch::TrainingSet;
use didact_data::encode::{EncodeOptions, Encoded, Encoder, LongText};
use didact_data::ledger::LossLedger;
use didact_data::packing::Packing;
use didact_data::prepare::EncodeQueue;
use didact_data::store::{Origin, SequenceStore, SequenceWriter};
use didact_train::TrainConfig;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name and kind of the stage.
pub const NAME: &str = "prepare";
/// Store of what is trained on.
pub const TRAIN: &str = "train";
/// Store of what is measured on.
pub const HELD_OUT: &str = "held_out";
/// Store of the plain English that ships with Didact.
pub const PLAIN_TEXT: &str = "plain_text";
/// The loss ledger.
pub const LEDGER: &str = "ledger.json";
/// What was found while reading.
pub const NOTES: &str = "notes.json";

/// Held-out rows that answers are shown for.
pub const SAMPLE_ROWS: &str = "sample_rows.jsonl";
/// How many of those are kept.
pub(super) const SAMPLE_ROWS_KEPT: usize = 16;

/// Plain English that no model was trained on; see `recipes/data/README.md`.
const EVERYDAY: &str = include_str!("../../../../recipes/data/everyday.txt");
/// Tokens per row in which plain text is measured: enough context for it to matter.
pub const PLAIN_TEXT_ROW: usize = 512;
/// Rows between two reports of progress.
const REPORT_EVERY: u64 = 1000;

/// Where rows come from.
#[derive(Debug, Clone)]
pub enum RowSource {
    /// The stage [`toolworld`].
    Toolworld,
    /// The user's files.
    Data {
        /// Which, and how to read them.
        settings: Box<DataSettings>,
        /// The recipe's name, when it takes running text only.
        text_only: Option<&'static str>,
        /// Every file and the hash of its content.
        digests: BTreeMap<String, String>,
    },
}

/// Turns rows into sequences.
#[derive(Debug, Clone)]
pub struct PrepareStage {
    /// Whose tokenizer and template.
    pub model: ModelHandle,
    /// The rows.
    pub source: RowSource,
    /// Length and packing.
    pub train: TrainConfig,
    /// Whether to prepare the plain English too.
    pub plain_text: bool,
    /// How few documents of one length are drawn, where not everything is trained on.
    pub snippets: Option<HyperfitTable>,
}

/// What [`PrepareStage::write`] counted.
#[derive(Debug)]
pub struct Prepared {
    /// What will be trained.
    pub ledger: LossLedger,
    /// What was found while reading.
    pub notes: Notes,
}

impl PrepareStage {
    fn options(&self) -> EncodeOptions {
        use didact_data::encode::TrainOn as On;
        let train_on = match &self.source {
            RowSource::Toolworld => On::Assistant,
            RowSource::Data { settings, .. } => match settings.train_on {
                TrainOn::Assistant => On::Assistant,
                TrainOn::LastAssistant => On::LastAssistant,
                TrainOn::All => On::All,
            },
        };
        // Text that is laid one after the other is cut where rows end, whatever its length.
        let long_text = if self.train.packing == Packing::Concat { LongText::Whole } else { LongText::Split };
        EncodeOptions { train_on, max_seq_len: Some(self.train.max_seq_len), long_text, ..EncodeOptions::default() }
    }

    /// Reads, encodes and stores everything in `dir`.
    ///
    /// # Errors
    /// When rows cannot be read, encoded or stored, or the ledger refuses; [`MethodError::Stopped`] when cancelled.
    pub fn write(
        &self,
        dir: &Path,
        toolworld_dir: Option<&Path>,
        streams: Streams,
        cancel: &Cancel,
        reporter: &dyn Reporter,
    ) -> Result<Prepared, MethodError> {
        if let (Some(table), RowSource::Data { settings, text_only, .. }) = (&self.snippets, &self.source) {
            return snippets::write(self, table, settings, *text_only, dir, streams, cancel, reporter);
        }
        let options = self.options();
        let mut ledger = LossLedger::new(options.train_on);
        let encoder = Encoder::new(self.model.tokenizer(), options)?;
        let mut train = SequenceWriter::create(dir.join(TRAIN))?;
        let mut held_out = SequenceWriter::create(dir.join(HELD_OUT))?;
        let mut samples = Vec::new();
        let mut done = 0;
        let mut keep = |side: Side, row: SourcedExample, encoded: Vec<Encoded>| -> Result<(), MethodError> {
            for encoded in &encoded {
                match side {
                    Side::Train if ledger.add(encoded) => push(&mut train, encoded)?,
                    Side::HeldOut if encoded.has_targets() => push(&mut held_out, encoded)?,
                    _ => {}
                }
            }
            if side == Side::HeldOut && samples.len() < SAMPLE_ROWS_KEPT {
                samples.push(row);
            }
            done += 1;
            if done % REPORT_EVERY == 0 {
                reporter.count(NAME, "rows", done, None);
            }
            Ok(())
        };
        let mut queue = EncodeQueue::new(&encoder);
        let mut sink = |side: Side, row: SourcedExample| -> Result<(), MethodError> {
            if cancel.is_cancelled() {
                return Err(MethodError::Stopped { run_dir: dir.to_owned() });
            }
            queue.push(side, row, &mut keep)
        };
        let notes = match &self.source {
            RowSource::Toolworld => {
                let dir = toolworld_dir.expect("the stage that makes the rows comes before");
                visit_toolworld(dir, &mut sink)?
            }
            RowSource::Data { settings, text_only, .. } => Rows::new(settings, *text_only, streams).visit(&mut sink)?,
        };
        queue.flush(&mut keep)?;
        reporter.count(NAME, "rows", done, Some(done));
        train.finish()?;
        held_out.finish()?;
        if self.plain_text {
            write_plain_text(&self.model, &dir.join(PLAIN_TEXT))?;
        }
        write_jsonl(&dir.join(SAMPLE_ROWS), &samples)?;
        write_json(&dir.join(LEDGER), &ledger)?;
        write_json(&dir.join(NOTES), &notes)?;
        let prepared = Prepared { ledger, notes };
        prepared.show(reporter);
        prepared.ledger.check()?;
        Ok(prepared)
    }
}

impl Prepared {
    /// What an earlier process counted.
    ///
    /// # Errors
    /// When the files are not there or damaged.
    pub fn read(dir: &Path) -> Result<Self, MethodError> {
        Ok(Self { ledger: read_json(&dir.join(LEDGER))?, notes: read_json(&dir.join(NOTES))? })
    }

    /// Shows the ledger and what was left out.
    pub fn show(&self, reporter: &dyn Reporter) {
        for schema in &self.notes.schemas {
            reporter.message(Level::Info, schema);
        }
        if self.notes.bad_rows.count > 0 {
            reporter.table(&self.notes.bad_rows.table());
        }
        reporter.table(&self.ledger.table());
        reporter.table(&self.ledger.exceptions_table());
        for warning in self.ledger.warnings() {
            reporter.message(Level::Warning, &warning);
        }
    }
}

pub(super) fn push(writer: &mut SequenceWriter, encoded: &Encoded) -> Result<(), MethodError> {
    let origin = Origin { source: &encoded.source, path: &encoded.path, row: encoded.row };
    writer.push(&encoded.sequence, origin)?;
    Ok(())
}

fn visit_toolworld(
    dir: &Path,
    sink: &mut dyn FnMut(Side, SourcedExample) -> Result<(), MethodError>,
) -> Result<Notes, MethodError> {
    let mut rows = 0;
    for (file, side) in [(toolworld::TRAIN, Side::Train), (toolworld::HELD_OUT, Side::HeldOut)] {
        let read: Vec<toolworld::Row> = read_jsonl(&dir.join(file))?;
        for (index, row) in read.into_iter().enumerate() {
            rows += 1;
            let example = Example::Chat { messages: row.messages, tools: Vec::new() };
            let row = index as u64 + 1;
            sink(side, SourcedExample { example, source: file.into(), path: file.into(), row })?;
        }
    }
    Ok(Notes { rows, split: "tools of their own".into(), ..Notes::default() })
}

/// The plain English as one document per paragraph is too short to show context; it is one document.
pub(super) fn write_plain_text(model: &ModelHandle, dir: &Path) -> Result<(), MethodError> {
    let encoder = Encoder::new(model.tokenizer(), EncodeOptions::default())?;
    let mut writer = SequenceWriter::create(dir)?;
    let example = Example::Text { text: EVERYDAY.to_owned() };
    let path = "everyday.txt".to_owned();
    for encoded in encoder.encode(&SourcedExample { example, source: path.clone(), path, row: 1 })? {
        push(&mut writer, &encoded)?;
    }
    writer.finish()?;
    Ok(())
}

/// Opens what was prepared for training. `streams` shuffle it.
///
/// # Errors
/// When the store is missing or damaged.
pub fn training_set(dir: &Path, train: &TrainConfig, streams: Streams) -> Result<TrainingSet, MethodError> {
    let store = SequenceStore::open(dir.join(TRAIN))?;
    Ok(TrainingSet::new(store, train.max_seq_len, train.packing, train.batch_size, streams))
}

/// Opens a prepared store for measuring, or `None` when there is nothing in it.
///
/// # Errors
/// When the store is damaged.
pub fn measuring_set(dir: PathBuf, row_len: usize, batch_size: usize) -> Result<Option<TrainingSet>, MethodError> {
    if !dir.is_dir() {
        return Ok(None);
    }
    let store = SequenceStore::open(dir)?;
    // Text longer than a row continues in the next one, with as much context as the row holds.
    let set = TrainingSet::in_order(store, row_len, Packing::BestFit, batch_size);
    Ok((!set.is_empty()).then_some(set))
}

impl Stage for PrepareStage {
    fn name(&self) -> &str {
        NAME
    }

    fn kind(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        let data = match &self.source {
            RowSource::Toolworld => Value::Null,
            RowSource::Data { settings, text_only, .. } => json!({ "settings": settings, "text_only": text_only }),
        };
        let mut settings = json!({
            "data": data,
            "max_seq_len": self.train.max_seq_len,
            "concat": self.train.packing == Packing::Concat,
            "plain_text": self.plain_text,
        });
        if let Some(HyperfitTable { snippets, held_out, .. }) = self.snippets {
            settings["snippets"] = json!([snippets, held_out]);
        }
        settings
    }

    fn inputs(&self) -> Vec<StageInput> {
        let mut inputs = vec![StageInput::Content { label: "tokenizer".into(), digest: self.model.tokenizer_digest() }];
        match &self.source {
            RowSource::Toolworld => inputs.push(StageInput::Stage(toolworld::NAME.into())),
            RowSource::Data { digests, .. } => inputs.extend(digests.iter().map(|(label, digest)| {
                let digest = didact_core::hash::hash_bytes(digest.as_bytes());
                StageInput::Content { label: label.clone(), digest }
            })),
        }
        inputs
    }

    fn depends_on_arithmetic(&self) -> bool {
        false
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        let toolworld_dir = matches!(self.source, RowSource::Toolworld).then(|| context.input(toolworld::NAME));
        let streams = context.streams;
        self.write(&context.work_dir, toolworld_dir, streams, &context.cancel, context.reporter)
            .map(drop)
            .map_err(MethodError::into_stage_error)
    }
}
