//! Stage `prepare` of recipes with named sources: files become corpora, and documents are held out.
//!
//! Writes a corpus per source that is none yet, `sources.json`, `sample_rows.jsonl` and the store `plain_text`.

use std::collections::BTreeMap;
use std::path::Path;

use didact_core::cancel::Cancel;
use didact_core::example::{Example, SourcedExample};
use didact_core::hash::hash_bytes;
use didact_core::progress::{Level, Reporter, Table};
use didact_core::seed::Streams;
use didact_core::stage::{Stage, StageContext, StageError, StageInput};
use didact_data::corpus::{Corpus, CorpusOptions, tokenize};
use didact_data::encode::TrainOn as On;
use serde_json::{Value, json};

use super::{prepare, read_json, write_json, write_jsonl};
use crate::error::MethodError;
use crate::mixed::{Mixed, Reading, SOURCES, SourceRecord};
use crate::model_source::ModelHandle;
use crate::recipe::TrainOn;

/// Held-out documents that continuations are shown of.
const SAMPLES_KEPT: usize = 4;
/// Tokens of such a document that are kept.
const SAMPLE_TOKENS: usize = 256;

/// Prepares named sources.
#[derive(Debug, Clone)]
pub struct SourcesStage {
    /// Whose tokenizer.
    pub model: ModelHandle,
    /// The sources.
    pub mixed: Mixed,
    /// Everything that is read, with a hash of its content.
    pub digests: BTreeMap<String, String>,
    /// Whether to prepare the plain English too.
    pub plain_text: bool,
}

impl SourcesStage {
    /// Makes corpora, chooses what is held out, and says what there is.
    ///
    /// # Errors
    /// When rows or corpora cannot be read, or do not fit the model; [`MethodError::Stopped`] when cancelled.
    pub fn write(
        &self,
        dir: &Path,
        streams: Streams,
        cancel: &Cancel,
        reporter: &dyn Reporter,
    ) -> Result<Vec<SourceRecord>, MethodError> {
        let tokenizer = self.model.tokenizer();
        for source in &self.mixed.sources {
            let options = CorpusOptions {
                keep: self.mixed.kept(),
                train_on: match source.data.train_on {
                    TrainOn::Assistant => On::Assistant,
                    TrainOn::LastAssistant => On::LastAssistant,
                    TrainOn::All => On::All,
                },
                ..CorpusOptions::default()
            };
            let held_out_dir = source.held_out_dir(dir);
            let [main, held_out] = source.files();
            let made = main.map(|files| (files, source.corpus_dir(dir)));
            for (files, to) in made.into_iter().chain(held_out.zip(held_out_dir.clone())) {
                let done = tokenize(&files, tokenizer, &to, &options, cancel, reporter)?;
                if done.is_cancelled {
                    return Err(MethodError::Stopped { run_dir: dir.to_owned() });
                }
                for detection in &done.detections {
                    reporter.message(Level::Info, &detection.to_string());
                }
                if done.bad_rows.count > 0 {
                    reporter.table(&done.bad_rows.table());
                }
            }
            for corpus in [Some(source.corpus_dir(dir)), held_out_dir].into_iter().flatten() {
                self.check(&Corpus::open(corpus)?)?;
            }
        }
        let records = self.mixed.choose(dir, streams)?;
        self.write_samples(dir, &records)?;
        if self.plain_text {
            prepare::write_plain_text(&self.model, &dir.join(prepare::PLAIN_TEXT))?;
        }
        write_json(&dir.join(SOURCES), &records)?;
        show(&records, reporter);
        if let Reading::Replay(table) = &self.mixed.reading
            && table.share() == 0.0
            && tokenizer.template().is_some()
        {
            let text = "the model has a chat template and nothing old is read again: training on plain text will cost its \
                        skill at chat";
            reporter.message(Level::Warning, text);
        }
        Ok(records)
    }

    /// Whether a corpus was made for this model.
    fn check(&self, corpus: &Corpus) -> Result<(), MethodError> {
        let (theirs, ours) = (corpus.vocab_size(), self.model.tokenizer().vocab_size() as u64);
        if corpus.tokenizer() != self.model.tokenizer_digest() {
            let reason = format!(
                "the corpus `{}` was made with another tokenizer (of {theirs} tokens) than that of the model `{}` (of {ours})",
                corpus.path().display(),
                self.model.name()
            );
            return Err(MethodError::Sources { reason });
        }
        let rows = self.model.config().vocab_size as u64;
        if theirs > rows {
            let reason = format!(
                "the corpus `{}` has a vocabulary of {theirs} tokens, the model `{}` one of {rows}",
                corpus.path().display(),
                self.model.name()
            );
            return Err(MethodError::Sources { reason });
        }
        Ok(())
    }

    /// Keeps the beginnings of some held-out documents, to show continuations of.
    fn write_samples(&self, dir: &Path, records: &[SourceRecord]) -> Result<(), MethodError> {
        let mut samples = Vec::new();
        for record in records {
            let source = &self.mixed.sources[record.source];
            let apart = if record.is_apart { source.held_out_dir(dir) } else { None };
            let corpus = Corpus::open(apart.unwrap_or_else(|| source.corpus_dir(dir)))?;
            for &index in record.held_out.iter().take(SAMPLES_KEPT.div_ceil(records.len())) {
                let ids = corpus.part(index as usize, 0..SAMPLE_TOKENS)?.ids;
                let text = self.model.tokenizer().decode(&ids, true)?;
                let row = corpus.origin(index as usize)?.row;
                let example = Example::Text { text };
                samples.push(SourcedExample { example, source: record.name.clone(), path: record.name.clone(), row });
            }
        }
        write_jsonl(&dir.join(prepare::SAMPLE_ROWS), samples)
    }
}

/// Shows what there is.
fn show(records: &[SourceRecord], reporter: &dyn Reporter) {
    reporter.table(&table(records));
}

/// What there is.
pub(crate) fn table(records: &[SourceRecord]) -> Table {
    let row = |record: &SourceRecord| {
        let numbers = [record.documents, record.tokens, record.held_out.len() as u64, record.held_out_tokens];
        [record.name.clone()].into_iter().chain(numbers.map(|n| n.to_string())).collect()
    };
    let columns =
        ["source", "documents", "tokens", "held-out documents", "held-out tokens"].map(str::to_owned).to_vec();
    Table { title: "sources".into(), columns, rows: records.iter().map(row).collect() }
}

/// Shows what an earlier process found.
///
/// # Errors
/// When the file is not there or damaged.
pub(crate) fn show_again(dir: &Path, reporter: &dyn Reporter) -> Result<(), MethodError> {
    show(&read_json::<Vec<SourceRecord>>(&dir.join(SOURCES))?, reporter);
    Ok(())
}

impl Stage for SourcesStage {
    fn name(&self) -> &str {
        prepare::NAME
    }

    fn kind(&self) -> &'static str {
        "sources"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        json!({ "sources": self.mixed.sources, "column": self.mixed.column(), "kept": self.mixed.kept(),
            "plain_text": self.plain_text })
    }

    fn inputs(&self) -> Vec<StageInput> {
        let content = |label: &String, digest: &String| StageInput::Content {
            label: label.clone(),
            digest: hash_bytes(digest.as_bytes()),
        };
        let tokenizer = StageInput::Content { label: "tokenizer".into(), digest: self.model.tokenizer_digest() };
        [tokenizer].into_iter().chain(self.digests.iter().map(|(label, digest)| content(label, digest))).collect()
    }

    fn depends_on_arithmetic(&self) -> bool {
        false
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        let written = self.write(&context.work_dir, context.streams, &context.cancel, context.reporter);
        written.map(drop).map_err(MethodError::into_stage_error)
    }
}
