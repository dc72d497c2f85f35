//! Contamination: training rows that hold runs of words of evaluation data.
//!
//! Words are compared in lower case, without punctuation. Runs of 13 words are the usual measure (Brown et al., "Language
//! Models are Few-Shot Learners", 2020, appendix C). An evaluation text shorter than a run is looked for as a whole, unless
//! it is so short that finding it would mean nothing.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::words::{normalised, runs};
use crate::error::DataError;
use crate::reader::{self, SourceConfig};

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContaminationSettings {
    /// Files, folders and globs of evaluation data.
    pub against: Vec<String>,
    /// Words of a run.
    #[serde(default = "default_words")]
    pub words: usize,
    /// Evaluation texts of fewer words are not looked for.
    #[serde(default = "default_least_words")]
    pub least_words: usize,
}

fn default_words() -> usize {
    13
}

fn default_least_words() -> usize {
    8
}

impl ContaminationSettings {
    /// The usual measure against some files.
    pub fn new(against: Vec<String>) -> Self {
        Self { against, words: default_words(), least_words: default_least_words() }
    }
}

/// The runs of the evaluation data.
#[derive(Debug)]
pub struct Contamination {
    /// By number of words: each run, and the file and row it was first found in. Only looked up, never walked.
    by_words: BTreeMap<usize, FxHashMap<u64, (u32, u64)>>,
    files: Vec<String>,
    /// Rows of evaluation data.
    pub rows: u64,
    /// Texts that are too short to be looked for.
    pub too_short: u64,
}

impl Contamination {
    /// Reads evaluation data: every text of every row by itself.
    ///
    /// # Errors
    /// When a setting makes no sense, or the data cannot be read.
    pub fn new(settings: &ContaminationSettings) -> Result<Self, DataError> {
        if settings.words == 0 {
            return Err(DataError::Setting { key: "contamination.words", found: "0".into(), expected: "at least 1" });
        }
        let mut found = Self { by_words: BTreeMap::new(), files: Vec::new(), rows: 0, too_short: 0 };
        let source = SourceConfig { path: settings.against.clone(), ..SourceConfig::new("") };
        for row in reader::open(&source)? {
            let row = row?;
            found.rows += 1;
            if found.files.last() != Some(&row.path) {
                found.files.push(row.path.clone());
            }
            let file = found.files.len() as u32 - 1;
            for text in texts(&row.example) {
                let words = normalised(text);
                if words.len() < settings.least_words.min(settings.words) {
                    found.too_short += u64::from(!words.is_empty());
                    continue;
                }
                let n = settings.words.min(words.len());
                let table = found.by_words.entry(n).or_default();
                for run in runs(&words, n) {
                    table.entry(run).or_insert((file, row.row));
                }
            }
        }
        Ok(found)
    }

    /// The file and row of the first run of evaluation data in a text.
    pub fn find(&self, text: &str) -> Option<(&str, u64)> {
        let words = normalised(text);
        let found = self.by_words.iter().find_map(|(&n, table)| runs(&words, n).find_map(|run| table.get(&run)));
        found.map(|&(file, row)| (self.files[file as usize].as_str(), row))
    }
}

/// The texts of an example.
pub fn texts(example: &didact_core::example::Example) -> Vec<&str> {
    use didact_core::example::Example;
    match example {
        Example::Text { text } => vec![text],
        Example::Completion { prompt, completion } => vec![prompt, completion],
        Example::Chat { messages, .. } => messages.iter().map(|message| message.content.as_str()).collect(),
        Example::Preference { chosen, rejected } => [texts(chosen), texts(rejected)].concat(),
    }
}
