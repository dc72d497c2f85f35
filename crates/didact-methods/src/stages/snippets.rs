//! What the stage `prepare` of the recipe `hyperfitting` does: a few documents, all cut to one length.
//!
//! Documents are taken in the order of a hash of their tokens, so that the draw does not depend on their order, and the same
//! text is never on both sides.

use std::collections::BTreeMap;
use std::path::Path;

use didact_core::cancel::Cancel;
use didact_core::hash::Hasher;
use didact_core::progress::Reporter;
use didact_core::seed::Streams;
use didact_data::encode::{EncodeOptions, Encoded, Encoder, LongText, TrainOn};
use didact_data::ledger::LossLedger;
use didact_data::store::SequenceWriter;

use super::prepare::{self, PrepareStage, Prepared};
use super::rows::Rows;
use super::{write_json, write_jsonl};
use crate::error::MethodError;
use crate::recipe::{DataSettings, HyperfitTable};

/// Share of the documents that is held out when there are not enough for all that is asked for.
const HELD_OUT_SHARE: usize = 5;

/// A document that may be learned.
struct Candidate {
    row: didact_core::example::SourcedExample,
    encoded: Encoded,
}

/// Reads documents and stores the ones that were drawn.
///
/// # Errors
/// When rows cannot be read, encoded or stored, or there are too few that are long enough.
pub(super) fn write(
    stage: &PrepareStage,
    table: &HyperfitTable,
    settings: &DataSettings,
    text_only: Option<&'static str>,
    dir: &Path,
    streams: Streams,
    cancel: &Cancel,
    reporter: &dyn Reporter,
) -> Result<Prepared, MethodError> {
    let length = stage.train.max_seq_len;
    let options = EncodeOptions {
        train_on: TrainOn::All,
        max_seq_len: Some(length),
        long_text: LongText::Truncate,
        ..EncodeOptions::default()
    };
    let encoder = Encoder::new(stage.model.tokenizer(), options.clone())?;
    let key = streams.key("snippets", &[]);
    let wanted = table.snippets.saturating_add(table.held_out);
    let mut chosen: BTreeMap<String, Candidate> = BTreeMap::new();
    let (mut found, mut longest) = (0u64, 0);
    // What is held out is drawn here.
    let settings = DataSettings { held_out: 0.0, ..settings.clone() };
    let mut notes = Rows::new(&settings, text_only, streams).visit(&mut |_, row| {
        if cancel.is_cancelled() {
            return Err(MethodError::Stopped { run_dir: dir.to_owned() });
        }
        let Some(encoded) = encoder.encode(&row)?.into_iter().next() else { return Ok(()) };
        longest = longest.max(encoded.sequence.len());
        if encoded.sequence.len() <= length {
            return Ok(());
        }
        found += 1;
        let mut hasher = Hasher::new();
        hasher.field("key", &key.to_le_bytes());
        hasher.field("ids", &encoded.sequence.ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
        chosen.insert(hasher.finish().to_string(), Candidate { row, encoded });
        if chosen.len() > wanted {
            chosen.pop_last();
        }
        Ok(())
    })?;
    let spare = chosen.len().saturating_sub(table.snippets);
    let held_out = table.held_out.min(spare.max(chosen.len() / HELD_OUT_SHARE)).max(1);
    let batch = stage.train.batch_size;
    if chosen.len() < batch + held_out {
        return Err(MethodError::TooFewSnippets {
            found: chosen.len(),
            needed: batch + held_out,
            tokens: length + 1,
            longest,
        });
    }
    notes.split = format!(
        "{} of {found} documents of more than {length} tokens are learned, {held_out} measured",
        chosen.len() - held_out
    );
    let mut ledger = LossLedger::new(options.train_on);
    let mut train = SequenceWriter::create(dir.join(prepare::TRAIN))?;
    let mut measured = SequenceWriter::create(dir.join(prepare::HELD_OUT))?;
    let mut samples = Vec::new();
    for (number, candidate) in chosen.into_values().enumerate() {
        if number < held_out {
            prepare::push(&mut measured, &candidate.encoded)?;
            if samples.len() < prepare::SAMPLE_ROWS_KEPT {
                samples.push(candidate.row);
            }
        } else if ledger.add(&candidate.encoded) {
            prepare::push(&mut train, &candidate.encoded)?;
        }
    }
    train.finish()?;
    measured.finish()?;
    if stage.plain_text {
        prepare::write_plain_text(&stage.model, &dir.join(prepare::PLAIN_TEXT))?;
    }
    write_jsonl(&dir.join(prepare::SAMPLE_ROWS), &samples)?;
    write_json(&dir.join(prepare::LEDGER), &ledger)?;
    write_json(&dir.join(prepare::NOTES), &notes)?;
    let prepared = Prepared { ledger, notes };
    prepared.show(reporter);
    prepared.ledger.check()?;
    Ok(prepared)
}
