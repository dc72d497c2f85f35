//! Recipes that read from several named sources: what their stages share.
//!
//! A source is a corpus: the one the user made, read where it is, or one that the stage `prepare` makes. Documents held out
//! are numbers in it; nothing is copied.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use didact_core::hash::hash_file;
use didact_core::seed::Streams;
use didact_data::batch::TrainingSet;
use didact_data::corpus::Corpus;
use didact_data::packing::Packing;
use didact_data::reader::{self, SourceConfig};
use didact_data::sequences::Sequences;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::MethodError;
use crate::recipe::{
    ContinualTable, CurriculumTable, DataSettings, DecompositionTable, OnBadRow, SkillsSetting, SkillsTable,
};
use crate::stages::read_json;

/// Name of the source where there is only one.
pub const DATA: &str = "data";

/// What is held out of which source; see [`SourceRecord`].
pub const SOURCES: &str = "sources.json";

/// A source as a recipe names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceSpec {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub data: DataSettings,
}

/// What is read next, in the words of the method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// `continual-pretraining`: the last source is new, the others old.
    Replay(ContinualTable),
    /// `dataset-decomposition`.
    Length(DecompositionTable),
    /// `skill-it`.
    Skills(SkillsTable),
    /// `mixture`.
    Curriculum(CurriculumTable),
}

/// Sources and what is read of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mixed {
    /// The recipe.
    pub method: String,
    /// The sources, in order.
    pub sources: Vec<SourceSpec>,
    /// What is read next.
    pub reading: Reading,
}

/// What the stage `prepare` notes about a pool: a source, or the rows of a source that have one skill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The pool's name.
    pub name: String,
    /// Number of its source.
    pub source: usize,
    /// Documents to train on.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Numbers of the documents held out of the source, or of all of the source's held-out corpus.
    pub held_out: Vec<u32>,
    /// Whether those are numbers in a corpus of their own.
    pub is_apart: bool,
    /// Their tokens.
    pub held_out_tokens: u64,
}

/// A pool opened.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Its name.
    pub name: String,
    /// What is trained on; `None` for a skill that is only measured.
    pub train: Option<Sequences>,
    /// What is measured on.
    pub held_out: Option<Sequences>,
}

/// The directory of a corpus, if that is what these settings name.
fn corpus_at(paths: &[String]) -> Option<PathBuf> {
    let [path] = paths else { return None };
    let dir = PathBuf::from(path);
    dir.join("corpus.json").is_file().then_some(dir)
}

fn paths(of: Option<&crate::recipe::Paths>) -> Vec<String> {
    of.map(crate::recipe::Paths::list).unwrap_or_default()
}

impl SourceSpec {
    /// A source under a name.
    pub fn new(name: impl Into<String>, data: DataSettings) -> Self {
        Self { name: name.into(), data }
    }

    /// The corpus that is there already.
    pub fn given(&self) -> Option<PathBuf> {
        corpus_at(&paths(self.data.path.as_ref()))
    }

    /// The corpus of held-out documents that is there already.
    pub fn given_held_out(&self) -> Option<PathBuf> {
        corpus_at(&paths(self.data.held_out_path.as_ref()))
    }

    /// The files, and those of the held-out documents, as the reader takes them.
    pub fn files(&self) -> [Option<SourceConfig>; 2] {
        let config = |paths: Vec<String>| {
            let mut config = SourceConfig::new(String::new());
            config.path = paths;
            config.name = Some(self.name.clone());
            config.schema = self.data.schema;
            config.fields = self.data.fields.clone();
            config.text_unit = self.data.text_unit;
            config.on_bad_row = match self.data.on_bad_row {
                OnBadRow::Stop => reader::OnBadRow::Stop,
                OnBadRow::Skip => reader::OnBadRow::Skip,
            };
            config
        };
        let main = self.given().is_none().then(|| config(paths(self.data.path.as_ref())));
        let apart = self.data.held_out_path.is_some() && self.given_held_out().is_none();
        [main, apart.then(|| config(paths(self.data.held_out_path.as_ref())))]
    }

    /// Everything that will be read, with a hash of its content.
    ///
    /// # Errors
    /// When a path leads nowhere or a file cannot be read.
    pub fn digests(&self) -> Result<BTreeMap<String, String>, MethodError> {
        let mut digests = BTreeMap::new();
        for dir in [self.given(), self.given_held_out()].into_iter().flatten() {
            digests.insert(dir.display().to_string(), Corpus::open(&dir)?.digest().to_string());
        }
        for config in self.files().iter().flatten() {
            for file in reader::resolve(config)? {
                digests.insert(file.path.display().to_string(), hash_file(&file.path)?.to_string());
            }
        }
        Ok(digests)
    }

    /// Its corpus, given or made in the artifact of the stage `prepare`.
    pub fn corpus_dir(&self, prepared: &Path) -> PathBuf {
        self.given().unwrap_or_else(|| prepared.join(&self.name))
    }

    /// The corpus of its held-out documents, where they have one.
    pub fn held_out_dir(&self, prepared: &Path) -> Option<PathBuf> {
        self.data.held_out_path.as_ref()?;
        Some(self.given_held_out().unwrap_or_else(|| prepared.join(format!("{}.held-out", self.name))))
    }
}

/// Documents by what they are for.
type Groups = BTreeMap<String, Vec<u32>>;

impl Mixed {
    /// The key of the rows by which the source is divided into pools.
    pub fn column(&self) -> Option<&str> {
        match &self.reading {
            Reading::Skills(skills) => Some(&skills.column),
            _ => None,
        }
    }

    /// The keys of the rows that must be kept.
    pub fn kept(&self) -> Vec<String> {
        match &self.reading {
            Reading::Skills(skills) => vec![skills.column.clone()],
            Reading::Curriculum(CurriculumTable { easy_first_by: Some(key), .. })
                if key != crate::curricula::LENGTH =>
            {
                vec![key.clone()]
            }
            _ => Vec::new(),
        }
    }

    /// Skills that are measured and never trained on.
    fn untrained(&self) -> BTreeSet<&str> {
        match &self.reading {
            Reading::Skills(skills) if skills.setting == SkillsSetting::Ood => {
                skills.targets.iter().map(String::as_str).collect()
            }
            _ => BTreeSet::new(),
        }
    }

    /// The documents of a corpus by pool.
    fn groups(&self, name: &str, corpus: &Corpus) -> Result<Groups, MethodError> {
        let Some(column) = self.column() else {
            return Ok(BTreeMap::from([(name.to_owned(), (0..corpus.len() as u32).collect())]));
        };
        let mut groups = Groups::new();
        for index in 0..corpus.len() {
            let skill = match corpus.field(index, column)? {
                Value::String(skill) => skill,
                Value::Number(number) => number.to_string(),
                Value::Bool(value) => value.to_string(),
                other => {
                    let what = if other.is_null() { "has none" } else { "has something that is no name" };
                    let reason =
                        format!("{} {what} under `{column}`, which is to name its skill", corpus.origin(index)?);
                    return Err(MethodError::Sources { reason });
                }
            };
            groups.entry(skill).or_default().push(index as u32);
        }
        Ok(groups)
    }

    /// Decides which documents are held out.
    ///
    /// # Errors
    /// When a corpus cannot be read, or there are too few documents.
    pub fn choose(&self, prepared: &Path, streams: Streams) -> Result<Vec<SourceRecord>, MethodError> {
        let untrained = self.untrained();
        let mut records = Vec::new();
        for (number, source) in self.sources.iter().enumerate() {
            let corpus = Corpus::open(source.corpus_dir(prepared))?;
            let apart = source.held_out_dir(prepared).map(Corpus::open).transpose()?;
            let mut theirs = match &apart {
                Some(corpus) => self.groups(&source.name, corpus)?,
                None => Groups::new(),
            };
            for (name, documents) in self.groups(&source.name, &corpus)? {
                let is_trained = !untrained.contains(name.as_str());
                let (train, held_out) = if apart.is_some() {
                    (documents, theirs.remove(&name).unwrap_or_default())
                } else if is_trained {
                    split(&corpus, documents, &source.data, streams, &name)?
                } else {
                    let all = documents.into_iter().take(source.data.held_out_rows).collect();
                    (Vec::new(), all)
                };
                let train = if is_trained { train } else { Vec::new() };
                let tokens = |corpus: &Corpus, of: &[u32]| -> Result<u64, MethodError> {
                    of.iter().try_fold(0, |sum, &i| Ok(sum + u64::from(corpus.length(i as usize)?)))
                };
                records.push(SourceRecord {
                    tokens: tokens(&corpus, &train)?,
                    held_out_tokens: tokens(apart.as_ref().unwrap_or(&corpus), &held_out)?,
                    name,
                    source: number,
                    documents: train.len() as u64,
                    held_out,
                    is_apart: apart.is_some(),
                });
            }
        }
        self.check(&records)?;
        Ok(records)
    }

    /// Rules about the pools that were found.
    fn check(&self, records: &[SourceRecord]) -> Result<(), MethodError> {
        let refuse = |reason: String| Err(MethodError::Sources { reason });
        let names: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
        match &self.reading {
            Reading::Skills(skills) => {
                if let Some(target) = skills.targets.iter().find(|target| !names.contains(&target.as_str())) {
                    return refuse(format!("there is no skill `{target}`; the data has {}", names.join(", ")));
                }
                if let Some(name) = skills.prior.keys().find(|name| !names.contains(&name.as_str())) {
                    return refuse(format!("`skills.prior` names `{name}`; the data has {}", names.join(", ")));
                }
                let untrained = self.untrained();
                let trained = records.iter().filter(|record| !untrained.contains(record.name.as_str()));
                let trained: Vec<&SourceRecord> = trained.collect();
                if trained.len() < 2 {
                    return refuse(format!("there are {} skills to train on, expected at least 2", trained.len()));
                }
                if let Some(empty) = trained.iter().find(|record| record.documents == 0) {
                    return refuse(format!("skill `{}` has no row to train on", empty.name));
                }
                let counts = |name: &str| skills.targets.is_empty() || skills.targets.iter().any(|t| t == name);
                if let Some(record) = records.iter().find(|r| counts(&r.name) && r.held_out.is_empty()) {
                    return refuse(format!(
                        "skill `{}` has no row to measure on; hold some out with `data.held_out`",
                        record.name
                    ));
                }
                Ok(())
            }
            Reading::Replay(table) => {
                let old: u64 = records.iter().rev().skip(1).map(|record| record.documents).sum();
                let share = table.share();
                if share > 0.0 && old == 0 {
                    return refuse(format!("replay={share}, but the old data has 0 usable documents"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Opens what the stage `prepare` chose.
    ///
    /// # Errors
    /// When a corpus cannot be read.
    pub fn open(&self, prepared: &Path) -> Result<Vec<Opened>, MethodError> {
        let records: Vec<SourceRecord> = read_json(&prepared.join(SOURCES))?;
        let mut opened = Vec::new();
        for (number, source) in self.sources.iter().enumerate() {
            let corpus = Corpus::open(source.corpus_dir(prepared))?;
            let apart = source.held_out_dir(prepared).map(Corpus::open).transpose()?;
            let mut groups = self.groups(&source.name, &corpus)?;
            for record in records.iter().filter(|record| record.source == number) {
                let mut documents = groups.remove(&record.name).unwrap_or_default();
                let whole = Sequences::from(corpus.clone());
                let measured = apart.as_ref().map_or_else(|| whole.clone(), |corpus| corpus.clone().into());
                let held_out = (!record.held_out.is_empty()).then(|| measured.some(record.held_out.clone()));
                if !record.is_apart {
                    documents.retain(|document| record.held_out.binary_search(document).is_err());
                }
                let train = if record.documents == 0 {
                    None
                } else if documents.len() == corpus.len() {
                    Some(whole)
                } else {
                    Some(whole.some(documents)?)
                };
                opened.push(Opened { name: record.name.clone(), train, held_out: held_out.transpose()? });
            }
        }
        Ok(opened)
    }

    /// The pools that are measured along the way, and before and after: with targets only those.
    pub fn measured<'o>(&self, opened: &'o [Opened]) -> Vec<(&'o str, &'o Sequences)> {
        let targets: &[String] = match &self.reading {
            Reading::Skills(skills) => &skills.targets,
            _ => &[],
        };
        let counts = |name: &str| targets.is_empty() || targets.iter().any(|target| target == name);
        let set = |pool: &'o Opened| Some((pool.name.as_str(), pool.held_out.as_ref()?));
        opened.iter().filter(|pool| counts(&pool.name)).filter_map(set).collect()
    }

    /// The same laid into rows of at most `row_len` targets.
    ///
    /// # Errors
    /// When a record of a corpus is damaged.
    pub fn measuring_sets(
        &self,
        opened: &[Opened],
        row_len: usize,
        batch_size: usize,
    ) -> Result<Vec<(String, TrainingSet)>, MethodError> {
        let set = |(name, held_out): (&str, &Sequences)| -> Result<(String, TrainingSet), MethodError> {
            let set = TrainingSet::of(held_out.clone(), row_len, Packing::BestFit, batch_size, None)?;
            Ok((name.to_owned(), set))
        };
        let sets: Result<Vec<_>, MethodError> = self.measured(opened).into_iter().map(set).collect();
        Ok(sets?.into_iter().filter(|(_, set)| !set.is_empty()).collect())
    }
}

/// Divides documents into those to train on and those held out: by their content, so that equal ones stand on one side.
fn split(
    corpus: &Corpus,
    documents: Vec<u32>,
    data: &DataSettings,
    streams: Streams,
    name: &str,
) -> Result<(Vec<u32>, Vec<u32>), MethodError> {
    if data.held_out == 0.0 {
        return Ok((documents, Vec::new()));
    }
    let key = |&index: &u32| -> Result<u64, MethodError> {
        Ok(streams.key("held_out", &[u64::from(corpus.checksum(index as usize)?)]))
    };
    let keys: Vec<u64> = documents.iter().map(key).collect::<Result<_, _>>()?;
    let mut sorted = keys.clone();
    sorted.sort_unstable();
    let wanted = ((documents.len() as f64 * data.held_out).round() as usize).clamp(1, data.held_out_rows.max(1));
    let Some(&limit) = sorted.get(wanted - 1) else {
        return Err(MethodError::TooFewRows { path: name.to_owned(), rows: 0 });
    };
    let is_out: BTreeSet<u32> =
        documents.iter().zip(&keys).filter(|(_, key)| **key <= limit).map(|(&index, _)| index).collect();
    if is_out.len() == documents.len() {
        return Err(MethodError::TooFewRows { path: name.to_owned(), rows: documents.len() as u64 });
    }
    let (held_out, train) = documents.into_iter().partition(|index| is_out.contains(index));
    Ok((train, held_out))
}
