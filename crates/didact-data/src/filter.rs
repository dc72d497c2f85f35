//! Leaving rows out: by length, by heuristics of quality, because they repeat others, or because they hold what a model
//! will be tested on. Every row left out is counted under the rule that did it, and can be listed.
//!
//! Rules are asked in this order, and the first that says no decides: length, [`quality`], exact repetition, near
//! repetition ([`near`]), contamination ([`contamination`]). What a rule sees of a row is pure and done on all threads; what
//! depends on earlier rows is decided in the order of the rows, so that the result does not depend on the threads.

use std::borrow::Cow;
use std::collections::BTreeMap;

use didact_core::cancel::Cancel;
use didact_core::example::{Example, SourcedExample};
use didact_core::hash::hash_bytes;
use didact_core::progress::{Reporter, Table};
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::DataError;
use crate::reader::{self, BadRows, Keep, SourceConfig};

pub mod contamination;
pub mod near;
pub mod quality;
pub mod words;

use contamination::{Contamination, ContaminationSettings};
use near::{NearIndex, NearSettings};
use quality::QualitySet;

/// Rows, and bytes of text, at which a batch of rows is handed out.
const CHUNK_ROWS: usize = 1024;
const CHUNK_BYTES: usize = 8 << 20;

/// What is to be left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilterSettings {
    /// Least characters.
    pub min_chars: Option<u64>,
    /// Most characters.
    pub max_chars: Option<u64>,
    /// Least words, between white space.
    pub min_words: Option<u64>,
    /// Most words.
    pub max_words: Option<u64>,
    /// Sets of heuristics.
    pub quality: Vec<QualitySet>,
    /// Rows that repeat an earlier one exactly.
    pub exact: bool,
    /// Rows that nearly repeat an earlier one.
    pub near: Option<NearSettings>,
    /// Rows that share words in a row with evaluation data.
    pub contamination: Option<ContaminationSettings>,
}

impl FilterSettings {
    /// Whether nothing is to be left out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It stays; its text is another when lines were taken out.
    Keep(Option<String>),
    /// It is left out.
    Drop(Dropped),
}

/// Why a row is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The rule.
    pub rule: String,
    /// What it found.
    pub found: String,
}

/// Rows that a rule left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Count {
    /// Rows.
    pub rows: u64,
    /// Characters of their text.
    pub chars: u64,
}

impl Count {
    fn add(&mut self, chars: u64) {
        self.rows += 1;
        self.chars += chars;
    }
}

/// What a filter did.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FilterReport {
    /// Rows read.
    pub read: Count,
    /// Rows that stay.
    pub kept: Count,
    /// Rows left out, by rule.
    pub dropped: BTreeMap<String, Count>,
    /// Rows from which lines were taken out, and characters of those lines, whether the row stayed or not.
    pub edited: Count,
    /// Rows that could not be read and were left out.
    pub bad_rows: u64,
}

impl FilterReport {
    /// As a table for people.
    pub fn table(&self) -> Table {
        let share = |count: &Count| format!("{:.2} %", 100.0 * count.rows as f64 / self.read.rows.max(1) as f64);
        let row = |name: &str, count: &Count| {
            vec![name.to_owned(), count.rows.to_string(), share(count), count.chars.to_string()]
        };
        let mut rows = vec![row("read", &self.read)];
        rows.extend(self.dropped.iter().map(|(rule, count)| row(rule, count)));
        rows.push(row("kept", &self.kept));
        if self.edited.rows > 0 {
            rows.push(row("c4_lines (taken out of rows)", &self.edited));
        }
        Table {
            title: "rows by rule".to_owned(),
            columns: ["rule", "rows", "share", "characters"].map(str::to_owned).to_vec(),
            rows,
        }
    }
}

/// What can be said of a row without the others.
#[derive(Debug)]
pub struct Measured {
    chars: u64,
    edited: Option<(String, u64)>,
    dropped: Option<Dropped>,
    digest: u128,
    signature: Option<near::Signature>,
}

/// The rules, and what they remember of the rows so far.
#[derive(Debug)]
pub struct Filter {
    settings: FilterSettings,
    contamination: Option<Contamination>,
    /// Only looked up, never walked: its order cannot show.
    seen: FxHashMap<u128, u32>,
    near: Option<NearIndex>,
    paths: Vec<String>,
    /// Path and row of each row that others may repeat.
    places: Vec<(u32, u64)>,
    report: FilterReport,
}

impl Filter {
    /// A filter that has seen nothing. Reads the evaluation data, if there are any.
    ///
    /// # Errors
    /// When a setting makes no sense, or evaluation data cannot be read.
    pub fn new(settings: FilterSettings) -> Result<Self, DataError> {
        let contamination = settings.contamination.as_ref().map(Contamination::new).transpose()?;
        let near = settings.near.map(NearIndex::new).transpose()?;
        Ok(Self {
            settings,
            contamination,
            seen: FxHashMap::default(),
            near,
            paths: Vec::new(),
            places: Vec::new(),
            report: FilterReport::default(),
        })
    }

    /// What it did so far.
    pub fn report(&self) -> &FilterReport {
        &self.report
    }

    /// The evaluation data it looks for.
    pub fn contamination(&self) -> Option<&Contamination> {
        self.contamination.as_ref()
    }

    /// Looks at a row by itself.
    pub fn measure(&self, row: &SourcedExample) -> Measured {
        let text = text_of(&row.example);
        let chars = text.chars().count() as u64;
        let mut measured = Measured { chars, edited: None, dropped: None, digest: 0, signature: None };
        let is_text = matches!(row.example, Example::Text { .. });
        let mut shown = text;
        if is_text && self.settings.quality.contains(&QualitySet::C4) {
            let (lines, removed) = quality::without_poor_lines(&shown);
            if removed > 0 {
                measured.edited = Some((lines.clone(), removed));
                shown = Cow::Owned(lines);
            }
        }
        measured.dropped = self.by_itself(&shown);
        if measured.dropped.is_some() {
            return measured;
        }
        if self.settings.exact {
            let digest = match (&measured.edited, &row.example) {
                (None, Example::Completion { .. } | Example::Chat { .. } | Example::Preference { .. }) => {
                    hash_bytes(&serde_json::to_vec(&row.example).unwrap_or_default())
                }
                _ => hash_bytes(shown.as_bytes()),
            };
            let digest = digest.to_string();
            // 128 bits: no two of a trillion rows are alike by chance.
            measured.digest = u128::from_str_radix(&digest[..32], 16).expect("hexadecimal digits");
        }
        measured.signature = self.near.as_ref().map(|near| near.signature(&shown));
        measured
    }

    fn by_itself(&self, text: &str) -> Option<Dropped> {
        let FilterSettings { min_chars, max_chars, min_words, max_words, .. } = self.settings;
        let chars = || text.chars().count() as u64;
        let words = || text.split_whitespace().count() as u64;
        let limits: [(&str, Option<u64>, bool, &dyn Fn() -> u64); 4] = [
            ("min_chars", min_chars, true, &chars),
            ("max_chars", max_chars, false, &chars),
            ("min_words", min_words, true, &words),
            ("max_words", max_words, false, &words),
        ];
        for (rule, limit, is_least, count) in limits {
            if let Some(limit) = limit {
                let found = count();
                if (is_least && found < limit) || (!is_least && found > limit) {
                    return Some(Dropped { rule: rule.to_owned(), found: found.to_string() });
                }
            }
        }
        if let Some((rule, found)) = self.settings.quality.iter().find_map(|set| quality::check(*set, text)) {
            return Some(Dropped { rule: rule.to_owned(), found });
        }
        let (file, row) = self.contamination.as_ref()?.find(text)?;
        Some(Dropped { rule: "contamination".to_owned(), found: format!("`{file}` row {row}") })
    }

    /// Decides about a row, after all rows before it.
    pub fn decide(&mut self, row: &SourcedExample, measured: Measured) -> Decision {
        let Measured { chars, edited, dropped, digest, signature } = measured;
        self.report.read.add(chars);
        let removed = edited.as_ref().map_or(0, |(_, removed)| *removed);
        if removed > 0 {
            self.report.edited.add(removed);
        }
        let dropped = dropped.or_else(|| self.repeats(digest, signature.as_ref()));
        if let Some(dropped) = dropped {
            self.report.dropped.entry(dropped.rule.clone()).or_default().add(chars);
            return Decision::Drop(dropped);
        }
        if self.settings.exact || self.near.is_some() {
            if self.paths.last() != Some(&row.path) {
                self.paths.push(row.path.clone());
            }
            let number = self.places.len() as u32;
            self.places.push((self.paths.len() as u32 - 1, row.row));
            if self.settings.exact {
                self.seen.insert(digest, number);
            }
            if let (Some(near), Some(signature)) = (&mut self.near, signature) {
                near.insert(number, signature);
            }
        }
        self.report.kept.add(chars - removed);
        Decision::Keep(edited.map(|(text, _)| text))
    }

    fn repeats(&self, digest: u128, signature: Option<&near::Signature>) -> Option<Dropped> {
        let place = |number: u32| {
            let (path, row) = self.places[number as usize];
            format!("`{}` row {row}", self.paths[path as usize])
        };
        if self.settings.exact
            && let Some(&first) = self.seen.get(&digest)
        {
            return Some(Dropped { rule: "exact_repetition".to_owned(), found: place(first) });
        }
        let (first, similarity) = self.near.as_ref()?.find(signature?)?;
        let found = format!("{} (similarity about {similarity:.2})", place(first));
        Some(Dropped { rule: "near_repetition".to_owned(), found })
    }
}

/// All text of a row, its parts on lines of their own.
pub(crate) fn text_of(example: &Example) -> Cow<'_, str> {
    match example {
        Example::Text { text } => Cow::Borrowed(text),
        Example::Completion { prompt, completion } => Cow::Owned(format!("{prompt}\n{completion}")),
        Example::Chat { messages, .. } => {
            let parts: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
            Cow::Owned(parts.join("\n"))
        }
        Example::Preference { chosen, rejected } => Cow::Owned(format!("{}\n{}", text_of(chosen), text_of(rejected))),
    }
}

/// How [`filter`] ended.
#[derive(Debug, Clone)]
pub struct Filtered {
    /// What was left out.
    pub report: FilterReport,
    /// Rows that could not be read.
    pub bad_rows: BadRows,
    /// Whether a stop was asked for.
    pub is_cancelled: bool,
}

/// Runs the rows of a source through a filter, on all threads of rayon's current pool; `sink` gets each row as it was, in
/// order, with what became of it.
///
/// # Errors
/// The first error of the rows or of the sink.
pub fn filter<E: From<DataError>>(
    source: &SourceConfig,
    filter: &mut Filter,
    cancel: &Cancel,
    reporter: &dyn Reporter,
    mut sink: impl FnMut(&SourcedExample, Map<String, Value>, Decision) -> Result<(), E>,
) -> Result<Filtered, E> {
    let mut stream = reader::open(source).map_err(DataError::from)?.keeping(Keep::Everything);
    let mut is_cancelled = false;
    loop {
        let mut chunk = Vec::new();
        let (mut bytes, mut error) = (0, None);
        while chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
            match stream.next() {
                None => break,
                Some(Ok(row)) => {
                    bytes += text_of(&row.example).len();
                    let kept = stream.kept();
                    chunk.push((row, kept));
                }
                Some(Err(found)) => {
                    error = Some(found);
                    break;
                }
            }
        }
        is_cancelled |= cancel.is_cancelled();
        if is_cancelled || chunk.is_empty() && error.is_none() {
            break;
        }
        let rules = &*filter;
        let measured: Vec<Measured> = chunk.par_iter().map(|(row, _)| rules.measure(row)).collect();
        for ((row, kept), measured) in chunk.into_iter().zip(measured) {
            let decision = filter.decide(&row, measured);
            sink(&row, kept, decision)?;
        }
        if let Some(error) = error {
            return Err(DataError::from(error).into());
        }
        filter.report.bad_rows = stream.bad_rows().count;
        reporter.count("filter", "rows", filter.report.read.rows, None);
    }
    Ok(Filtered { report: filter.report.clone(), bad_rows: stream.bad_rows().clone(), is_cancelled })
}

#[cfg(test)]
mod tests;
