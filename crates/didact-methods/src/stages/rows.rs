//! The user's rows, split into those to train on and those to measure on.

use crate::error::MethodError;
use crate::recipe::{DataSettings, OnBadRow};
use didact_core::example::{Example, SourcedExample};
use didact_core::hash::{Hasher, hash_file};
use didact_core::seed::Streams;
use didact_data::reader::{self, BadRows, RowStream, SourceConfig};
use didact_data::schema::Schema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BinaryHeap};

/// With fewer documents than this, a part of each is held out instead of some of them.
const FEW_DOCUMENTS: u64 = 20;

/// What a row is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// To learn from.
    Train,
    /// To measure on.
    HeldOut,
}

/// What was found while reading.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Notes {
    /// Rows read, good and bad.
    pub rows: u64,
    /// What the rows were taken for, and why.
    pub schemas: Vec<String>,
    /// How rows were held out.
    pub split: String,
    /// Rows left out.
    pub bad_rows: BadRows,
}

/// Which rows are held out.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Split {
    /// None.
    Nothing,
    /// Those whose content hashes to at most this.
    Hash(u64),
    /// The last part of every document.
    Tails(f64),
}

/// The user's rows.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    settings: &'a DataSettings,
    /// Only running text is accepted when the recipe says so.
    text_only: Option<&'static str>,
    streams: Streams,
}

impl<'a> Rows<'a> {
    /// Rows as the settings say. With `text_only`, the name of the recipe that takes nothing else, other rows are errors.
    pub fn new(settings: &'a DataSettings, text_only: Option<&'static str>, streams: Streams) -> Self {
        Self { settings, text_only, streams }
    }

    fn source(&self, paths: Vec<String>) -> SourceConfig {
        let mut config = SourceConfig::new(String::new());
        config.path = paths;
        config.schema = self.settings.schema;
        config.fields = self.settings.fields.clone();
        config.text_unit = self.settings.text_unit;
        config.on_bad_row = match self.settings.on_bad_row {
            OnBadRow::Stop => reader::OnBadRow::Stop,
            OnBadRow::Skip => reader::OnBadRow::Skip,
        };
        config
    }

    fn main_paths(&self) -> Vec<String> {
        self.settings.path.as_ref().map(crate::recipe::Paths::list).unwrap_or_default()
    }

    fn held_out_paths(&self) -> Option<Vec<String>> {
        self.settings.held_out_path.as_ref().map(crate::recipe::Paths::list)
    }

    /// Every file that will be read, with the hash of its content.
    ///
    /// # Errors
    /// When a path leads nowhere or a file cannot be read.
    pub fn digests(&self) -> Result<BTreeMap<String, String>, MethodError> {
        let mut digests = BTreeMap::new();
        for paths in [Some(self.main_paths()), self.held_out_paths()].into_iter().flatten() {
            for file in reader::resolve(&self.source(paths))? {
                digests.insert(file.path.display().to_string(), hash_file(&file.path)?.to_string());
            }
        }
        Ok(digests)
    }

    /// Gives every usable row to `sink`, in order, with its side.
    ///
    /// # Errors
    /// When a path or row cannot be used, or rows are too few to split.
    pub fn visit(
        &self,
        sink: &mut dyn FnMut(Side, SourcedExample) -> Result<(), MethodError>,
    ) -> Result<Notes, MethodError> {
        let mut notes = Notes::default();
        let split = if self.settings.held_out_path.is_some() { Split::Nothing } else { self.split()? };
        notes.split = match split {
            Split::Nothing if self.settings.held_out_path.is_some() => "files of their own".into(),
            Split::Nothing => "none".into(),
            Split::Hash(_) => "by content".into(),
            Split::Tails(share) => format!("the last {:.1} % of every document", share * 100.0),
        };
        let mut stream = reader::open(&self.source(self.main_paths()))?;
        for row in &mut stream {
            let row = self.accept(row?)?;
            match split {
                Split::Nothing => sink(Side::Train, row)?,
                Split::Hash(limit) => {
                    let side = if self.hash(&row.example) <= limit { Side::HeldOut } else { Side::Train };
                    sink(side, row)?;
                }
                Split::Tails(share) => {
                    let (head, tail) = cut(row, share);
                    sink(Side::Train, head)?;
                    if let Some(tail) = tail {
                        sink(Side::HeldOut, tail)?;
                    }
                }
            }
        }
        note(&mut notes, &stream);
        if let Some(paths) = self.held_out_paths() {
            let mut stream = reader::open(&self.source(paths))?;
            for row in &mut stream {
                sink(Side::HeldOut, self.accept(row?)?)?;
            }
            note(&mut notes, &stream);
        }
        Ok(notes)
    }

    fn accept(&self, row: SourcedExample) -> Result<SourcedExample, MethodError> {
        let wants_pairs = self.settings.schema == Some(Schema::Preference);
        if matches!(row.example, Example::Preference { .. }) && !wants_pairs {
            return Err(MethodError::Pairs { path: row.path, row: row.row });
        }
        let found = match &row.example {
            Example::Text { .. } => return Ok(row),
            Example::Completion { .. } => Schema::PromptCompletion.as_str(),
            Example::Chat { .. } => Schema::Messages.as_str(),
            Example::Preference { .. } => Schema::Preference.as_str(),
        };
        match self.text_only {
            None => Ok(row),
            Some(recipe) => Err(MethodError::WrongSchema { path: row.path, row: row.row, found, recipe }),
        }
    }

    /// A number that depends on the seed and on what the row says, so that equal rows stand on one side.
    fn hash(&self, example: &Example) -> u64 {
        let mut hasher = Hasher::new();
        hasher.field("key", &self.streams.key("held_out", &[]).to_le_bytes());
        hasher.field("row", &serde_json::to_vec(example).expect("examples are plain data"));
        let text = hasher.finish().to_string();
        u64::from_str_radix(&text[..16], 16).expect("a digest is written in hexadecimal")
    }

    /// Reads the rows once to find which to hold out; keeps as many hashes as rows can be held out.
    fn split(&self) -> Result<Split, MethodError> {
        let DataSettings { held_out, held_out_rows, .. } = *self.settings;
        if held_out == 0.0 {
            return Ok(Split::Nothing);
        }
        let mut smallest: BinaryHeap<u64> = BinaryHeap::new();
        let (mut rows, mut texts) = (0u64, 0u64);
        for row in reader::open(&self.source(self.main_paths()))? {
            let row = row?;
            rows += 1;
            texts += u64::from(matches!(row.example, Example::Text { .. }));
            smallest.push(self.hash(&row.example));
            if smallest.len() > held_out_rows {
                smallest.pop();
            }
        }
        if texts == rows && rows < FEW_DOCUMENTS {
            return Ok(Split::Tails(held_out));
        }
        let path = || self.main_paths().first().cloned().unwrap_or_default();
        let wanted = ((rows as f64 * held_out).round() as usize).clamp(1, held_out_rows);
        let sorted = smallest.into_sorted_vec();
        let limit = sorted.get(wanted.min(sorted.len()).wrapping_sub(1)).copied();
        match limit {
            // One row, or rows that are all the same, leave nothing to train on.
            Some(limit) if rows > 1 && (sorted.first() != sorted.last() || rows > sorted.len() as u64) => {
                Ok(Split::Hash(limit))
            }
            _ => Err(MethodError::TooFewRows { path: path(), rows }),
        }
    }
}

fn note(notes: &mut Notes, stream: &RowStream) {
    notes.rows += stream.rows();
    notes.schemas.extend(stream.detections().iter().map(ToString::to_string));
    notes.bad_rows.merge(stream.bad_rows());
}

/// Cuts the last `share` of a document off, at a line's end where there is one near, else between words.
fn cut(row: SourcedExample, share: f64) -> (SourcedExample, Option<SourcedExample>) {
    let Example::Text { text } = &row.example else { return (row, None) };
    let wanted = (text.len() as f64 * (1.0 - share)) as usize;
    let mut at = wanted.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let line = text[at..].find('\n').filter(|&n| n < text.len() / 50).map(|n| at + n + 1);
    let space = || text[at..].find(char::is_whitespace).map(|n| at + n);
    let Some(at) = line.or_else(space).filter(|&at| at > 0 && !text[at..].trim().is_empty()) else {
        return (row, None);
    };
    let part = |text: &str| SourcedExample { example: Example::Text { text: text.to_owned() }, ..row.clone() };
    let (head, tail) = text.split_at(at);
    (part(head), Some(part(tail.trim_start())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Paths;
    use didact_core::files;
    use std::collections::BTreeSet;

    fn file(dir: &tempfile::TempDir, name: &str, rows: &[String]) -> String {
        let path = dir.path().join(name);
        files::write_atomic(&path, (rows.join("\n") + "\n").as_bytes()).expect("a fixture");
        path.display().to_string()
    }

    fn split(settings: &DataSettings, seed: u64) -> Result<(Vec<String>, Vec<String>, Notes), MethodError> {
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        let notes = Rows::new(settings, None, Streams::new(seed)).visit(&mut |side, row| {
            let text = serde_json::to_string(&row.example).expect("plain data");
            if side == Side::Train {
                train.push(text);
            } else {
                held_out.push(text);
            }
            Ok(())
        })?;
        Ok((train, held_out, notes))
    }

    fn pairs(count: usize) -> Vec<String> {
        (0..count).map(|i| format!(r#"{{"prompt": "question {i}", "completion": "answer {i}"}}"#)).collect()
    }

    #[test]
    fn a_share_of_the_rows_is_held_out_and_none_stands_on_both_sides() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut rows = pairs(100);
        rows.extend(pairs(30));
        let settings = DataSettings {
            path: Some(Paths::One(file(&dir, "a.jsonl", &rows))),
            held_out: 0.1,
            ..DataSettings::default()
        };
        let (train, held_out, notes) = split(&settings, 1).expect("usable rows");
        assert_eq!(train.len() + held_out.len(), 130);
        assert!((13..=20).contains(&held_out.len()), "{}", held_out.len());
        let sides: [BTreeSet<&String>; 2] = [train.iter().collect(), held_out.iter().collect()];
        assert!(sides[0].is_disjoint(&sides[1]));
        assert_eq!(notes.rows, 130);
        assert_eq!(split(&settings, 1).expect("usable"), (train.clone(), held_out.clone(), notes));
        assert_ne!(split(&settings, 2).expect("usable").1, held_out);
        let capped = DataSettings { held_out_rows: 5, ..settings };
        assert!(split(&capped, 1).expect("usable").1.len() <= 10);
    }

    #[test]
    fn few_documents_lose_their_last_part_instead() {
        let dir = tempfile::tempdir().expect("a directory");
        let text: Vec<String> = (0..200).map(|i| format!("line number {i} of the document")).collect();
        let settings = DataSettings {
            path: Some(Paths::One(file(&dir, "a.txt", &text))),
            held_out: 0.1,
            ..DataSettings::default()
        };
        let (train, held_out, notes) = split(&settings, 1).expect("usable");
        assert_eq!((train.len(), held_out.len()), (1, 1));
        assert!(notes.split.contains("10.0 %"), "{}", notes.split);
        assert!(train[0].contains("line number 179 of") && !train[0].contains("line number 185 of"), "{}", train[0]);
        assert!(held_out[0].contains("line number 199 of"));
    }

    #[test]
    fn nothing_is_held_out_when_nothing_is_asked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = DataSettings {
            path: Some(Paths::One(file(&dir, "a.jsonl", &pairs(3)))),
            held_out: 0.0,
            ..DataSettings::default()
        };
        assert_eq!(split(&settings, 1).expect("usable").1.len(), 0);
        let own = DataSettings {
            held_out_path: Some(Paths::One(file(&dir, "b.jsonl", &pairs(2)))),
            held_out: 0.5,
            ..settings
        };
        let (train, held_out, _) = split(&own, 1).expect("usable");
        assert_eq!((train.len(), held_out.len()), (3, 2));
    }

    #[test]
    fn one_row_is_too_few_to_split() {
        let dir = tempfile::tempdir().expect("a directory");
        let settings =
            DataSettings { path: Some(Paths::One(file(&dir, "a.jsonl", &pairs(1)))), ..DataSettings::default() };
        let error = split(&settings, 1).expect_err("too few").to_string();
        assert!(error.starts_with("1 usable rows in `"), "{error}");
    }

    #[test]
    fn text_recipes_refuse_other_rows_by_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let settings =
            DataSettings { path: Some(Paths::One(file(&dir, "a.jsonl", &pairs(30)))), ..DataSettings::default() };
        let rows = Rows::new(&settings, Some("continue-pretraining-text"), Streams::new(1));
        let error = rows.visit(&mut |_, _| Ok(())).expect_err("not text").to_string();
        assert!(error.contains("a.jsonl`, row 1: a row of schema `prompt_completion`"), "{error}");
    }
}
