//! Tokenised sequences on disk: written as a stream, read through a memory map, checked by checksums.
//!
//! A store is a directory of three files, all little-endian:
//! - `tokens.bin`: the sequences one after the other: ids (4 bytes each), then weights and segments where they do not
//!   follow from the rule below, which keeps running text at 4 bytes per token;
//! - `index.bin`: one record of `ENTRY` bytes per sequence: where it is, how long, how it is laid down, its CRC-32C, its
//!   total weight, and where it came from;
//! - `store.json`: counts, names, sizes and the checksum of the index. It is written last: without it there is no store.
//!
//! Neither writing nor reading holds more than one sequence in memory (and the names of the files read from).

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use didact_core::fault::{Classify, Fault};
use didact_core::files::{self, AtomicFile, FileError};
use didact_core::hash::{Digest, Hasher};
use didact_core::mmap::Mmap;
use didact_core::sequence::Sequence;
use layout::Checked;
use serde::{Deserialize, Serialize};

/// The layout's version; a store of another one is not read.
const VERSION: u32 = 1;
/// Bytes of an index record.
const ENTRY: usize = 48;
const FORMAT: &str = "didact sequence store";
const TOKENS: &str = "tokens.bin";
const INDEX: &str = "index.bin";
const HEADER: &str = "store.json";

pub(crate) mod layout;

/// Why a store cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no store at the path.
    #[error("`{}` holds no sequence store: {cause}", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// What is missing or not understood.
        cause: String,
    },
    /// A store of another version of the layout.
    #[error("`{}` is a sequence store of version {found}, this program reads version {VERSION}", path.display())]
    Version {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// There is no finished corpus at the path.
    #[error("`{}` holds no corpus: {cause}", path.display())]
    NotACorpus {
        /// The directory.
        path: PathBuf,
        /// What is missing or not understood.
        cause: String,
    },
    /// A corpus was begun and not finished.
    #[error("the corpus `{}` is not finished: {documents} documents are there so far", path.display())]
    Unfinished {
        /// The directory.
        path: PathBuf,
        /// Documents that are there.
        documents: u64,
    },
    /// A corpus was made, or begun, otherwise than is now asked for.
    #[error("the corpus `{}` was made with another {what}: {found}, now {expected}", path.display())]
    OtherCorpus {
        /// The directory.
        path: PathBuf,
        /// Which setting differs.
        what: &'static str,
        /// Its value in the corpus.
        found: String,
        /// Its value now.
        expected: String,
    },
    /// Another process is writing to the corpus.
    #[error("another process is writing to `{}`", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// A file of the store is not as it was written.
    #[error("`{}` is damaged: {what} is {found}, expected {expected}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which quantity does not agree.
        what: String,
        /// Its value.
        found: String,
        /// The value that was recorded.
        expected: String,
    },
    /// A sequence that the store does not hold.
    #[error("`{}` holds {sequences} sequences, there is no number {index}", path.display())]
    NoSuchSequence {
        /// The directory.
        path: PathBuf,
        /// The number asked for, from 0.
        index: usize,
        /// How many there are.
        sequences: usize,
    },
    /// More was to be stored than the layout can count.
    #[error("`{}` cannot hold {what}", path.display())]
    TooLarge {
        /// The directory.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
}

impl Classify for StoreError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(error) => error.fault(),
            Self::NotACorpus { .. } | Self::Unfinished { .. } | Self::OtherCorpus { .. } => Fault::Input,
            _ => Fault::Running,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Damaged { path, .. } | Self::NotAStore { path, .. } | Self::Version { path, .. } => {
                let dir = if path.extension().is_some() { path.parent().unwrap_or(path) } else { path };
                Some(format!("remove `{}` and run the same command again: it is made anew", dir.display()))
            }
            Self::NotACorpus { .. } => Some("make one with `didact data tokenize`".to_owned()),
            Self::Unfinished { .. } => Some("run the command that makes it again: it goes on where it was".to_owned()),
            Self::OtherCorpus { .. } => Some("name another directory, or make this one anew with `--fresh`".to_owned()),
            Self::Busy { .. } => Some("wait for it, or name another directory".to_owned()),
            _ => None,
        }
    }
}

/// Where a stored sequence came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin<'a> {
    /// The recipe's source.
    pub source: &'a str,
    /// The file.
    pub path: &'a str,
    /// The row within the file, from 1.
    pub row: u64,
}

impl std::fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` row {}", self.path, self.row)
    }
}

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSummary {
    /// Sequences.
    pub sequences: u64,
    /// Tokens.
    pub tokens: u64,
    /// Sum of all weights.
    pub weight: f64,
    /// Length of the longest sequence, in tokens.
    pub longest: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    summary: StoreSummary,
    tokens_bytes: u64,
    index_bytes: u64,
    index_crc32c: u32,
    names: Vec<String>,
}

/// An index record.
#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: u64,
    row: u64,
    weight: f64,
    tokens: u32,
    crc: u32,
    source: u32,
    path: u32,
    layout: u32,
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[0..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.row.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.weight.to_le_bytes());
        for (i, word) in [self.tokens, self.crc, self.source, self.path, self.layout].into_iter().enumerate() {
            bytes[24 + 4 * i..28 + 4 * i].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Self {
            offset: long(0),
            row: long(8),
            weight: f64::from_bits(long(16)),
            tokens: word(24),
            crc: word(28),
            source: word(32),
            path: word(36),
            layout: word(40),
        }
    }
}

/// Writes a store. Nothing is visible as a store before [`SequenceWriter::finish`].
#[derive(Debug)]
pub struct SequenceWriter {
    dir: PathBuf,
    tokens: AtomicFile,
    index: AtomicFile,
    index_crc: u32,
    offset: u64,
    summary: StoreSummary,
    names: BTreeMap<String, u32>,
    buffer: Vec<u8>,
}

impl SequenceWriter {
    /// Begins a store in the directory `dir`, which is created when needed. An older store there is replaced.
    ///
    /// # Errors
    /// When a file cannot be created.
    pub fn create(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let dir = dir.as_ref().to_owned();
        files::create_dir_all(&dir)?;
        files::remove_file(dir.join(HEADER))?;
        Ok(Self {
            tokens: AtomicFile::create(dir.join(TOKENS))?,
            index: AtomicFile::create(dir.join(INDEX))?,
            dir,
            index_crc: 0,
            offset: 0,
            summary: StoreSummary::default(),
            names: BTreeMap::new(),
            buffer: Vec::new(),
        })
    }

    /// Appends a sequence and returns its number, from 0.
    ///
    /// # Errors
    /// When it cannot be written.
    ///
    /// # Panics
    /// If the sequence's ids, weights and segments differ in number, or the first token of a segment has a weight.
    pub fn push(&mut self, sequence: &Sequence, origin: Origin<'_>) -> Result<u64, StoreError> {
        let n = sequence.len();
        check(sequence);
        let tokens = u32::try_from(n).map_err(|_| StoreError::TooLarge {
            path: self.dir.clone(),
            what: format!("a sequence of {n} tokens ({origin})"),
        })?;
        let (source, path) = (self.name(origin.source), self.name(origin.path));
        let layout = layout::encode(sequence, false, &mut self.buffer);
        let entry = Entry {
            offset: self.offset,
            row: origin.row,
            weight: sequence.total_weight(),
            tokens,
            crc: crc32c::crc32c(&self.buffer),
            source,
            path,
            layout,
        };
        let bytes = entry.to_bytes();
        self.tokens.write_all(&self.buffer).map_err(FileError::at("write", &self.dir.join(TOKENS)))?;
        self.index.write_all(&bytes).map_err(FileError::at("write", &self.dir.join(INDEX)))?;
        self.index_crc = crc32c::crc32c_append(self.index_crc, &bytes);
        self.offset += self.buffer.len() as u64;
        let number = self.summary.sequences;
        self.summary.sequences += 1;
        self.summary.tokens += u64::from(tokens);
        self.summary.weight += entry.weight;
        self.summary.longest = self.summary.longest.max(tokens);
        Ok(number)
    }

    /// What was written so far.
    pub fn summary(&self) -> StoreSummary {
        self.summary
    }

    /// Makes the store durable and visible.
    ///
    /// # Errors
    /// When any file cannot be completed; there is then no store.
    pub fn finish(self) -> Result<StoreSummary, StoreError> {
        self.tokens.commit()?;
        self.index.commit()?;
        let mut names = vec![String::new(); self.names.len()];
        for (name, number) in self.names {
            names[number as usize] = name;
        }
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            summary: self.summary,
            tokens_bytes: self.offset,
            index_bytes: self.summary.sequences * ENTRY as u64,
            index_crc32c: self.index_crc,
            names,
        };
        let mut text = serde_json::to_vec_pretty(&header).expect("a header of strings and numbers is JSON");
        text.push(b'\n');
        files::write_atomic(self.dir.join(HEADER), &text)?;
        Ok(self.summary)
    }

    fn name(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.names.get(name) {
            return number;
        }
        let number = self.names.len() as u32;
        self.names.insert(name.to_owned(), number);
        number
    }
}

/// # Panics
/// If the sequence's ids, weights and segments differ in number, or the first token of a segment has a weight.
pub(crate) fn check(sequence: &Sequence) {
    let n = sequence.len();
    assert_eq!(n, sequence.weight.len(), "a sequence has one weight per token");
    assert_eq!(n, sequence.segment.len(), "a sequence has one segment number per token");
    let is_first = |i: usize| i == 0 || sequence.segment[i] != sequence.segment[i - 1];
    let is_context = |i: usize| !is_first(i) || sequence.weight[i] == 0.0;
    assert!((0..n).all(is_context), "the first token of a segment follows nothing and has weight 0");
}

/// A store opened for reading. Clones share the memory maps.
#[derive(Debug, Clone)]
pub struct SequenceStore {
    dir: PathBuf,
    tokens: Mmap,
    index: Mmap,
    summary: StoreSummary,
    names: Arc<[String]>,
    digest: Digest,
    checked: Arc<Checked>,
}

impl SequenceStore {
    /// Opens the store in the directory `dir`. Sizes and the index are checked here, each sequence when it is read.
    ///
    /// # Errors
    /// When there is no store, one of another version, or a damaged one.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let dir = dir.as_ref().to_owned();
        let header_path = dir.join(HEADER);
        if !header_path.is_file() {
            return Err(StoreError::NotAStore { path: dir, cause: format!("it has no `{HEADER}`") });
        }
        let text = files::read(&header_path)?;
        let not_a_store = |cause: String| StoreError::NotAStore { path: header_path.clone(), cause };
        let header: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| not_a_store(error.to_string()))?;
        if header.get("format").and_then(serde_json::Value::as_str) != Some(FORMAT) {
            return Err(not_a_store(format!("`format` is not `{FORMAT}`")));
        }
        if let Some(found) = header.get("version").and_then(serde_json::Value::as_u64)
            && found != u64::from(VERSION)
        {
            return Err(StoreError::Version { path: dir, found: u32::try_from(found).unwrap_or(u32::MAX) });
        }
        let header: Header = serde_json::from_value(header).map_err(|error| not_a_store(error.to_string()))?;
        let (tokens, index) = (Mmap::open(dir.join(TOKENS))?, Mmap::open(dir.join(INDEX))?);
        let agree = |file: &str, what: &str, found: u64, expected: u64| {
            if found == expected {
                return Ok(());
            }
            let (found, expected) = (found.to_string(), expected.to_string());
            Err(StoreError::Damaged { path: dir.join(file), what: what.to_owned(), found, expected })
        };
        agree(TOKENS, "its size in bytes", tokens.len() as u64, header.tokens_bytes)?;
        agree(INDEX, "its size in bytes", index.len() as u64, header.index_bytes)?;
        agree(
            HEADER,
            "the size of the index",
            header.index_bytes,
            header.summary.sequences.saturating_mul(ENTRY as u64),
        )?;
        agree(INDEX, "its checksum", u64::from(crc32c::crc32c(&index)), u64::from(header.index_crc32c))?;
        let mut hasher = Hasher::new();
        // The index carries the checksum of every sequence.
        hasher.field("header", &text).field("index", &index);
        let digest = hasher.finish();
        Ok(Self {
            dir,
            tokens,
            index,
            summary: header.summary,
            names: header.names.into(),
            digest,
            checked: Arc::default(),
        })
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.index.len() / ENTRY
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it holds.
    pub fn summary(&self) -> StoreSummary {
        self.summary
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A digest of everything in it.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Length of a sequence, in tokens.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn length(&self, index: usize) -> u32 {
        self.entry(index).tokens
    }

    /// Total weight of a sequence.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn weight(&self, index: usize) -> f64 {
        self.entry(index).weight
    }

    /// Lengths of all sequences, in tokens.
    pub fn lengths(&self) -> Vec<u32> {
        (0..self.len()).map(|i| self.length(i)).collect()
    }

    /// Where a sequence came from.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn origin(&self, index: usize) -> Origin<'_> {
        let entry = self.entry(index);
        let name = |number: u32| self.names.get(number as usize).map_or("?", String::as_str);
        Origin { source: name(entry.source), path: name(entry.path), row: entry.row }
    }

    /// Reads a sequence and checks it against its checksum.
    ///
    /// # Errors
    /// When there is no such sequence, or it is damaged.
    pub fn sequence(&self, index: usize) -> Result<Sequence, StoreError> {
        self.part(index, 0..usize::MAX)
    }

    /// Reads the tokens `part` of a sequence, as far as there are so many, after a check of all of it (of a long one: once).
    ///
    /// # Errors
    /// As [`SequenceStore::sequence`].
    pub fn part(&self, index: usize, part: Range<usize>) -> Result<Sequence, StoreError> {
        if index >= self.len() {
            return Err(StoreError::NoSuchSequence { path: self.dir.clone(), index, sequences: self.len() });
        }
        let entry = self.entry(index);
        let damaged = |what: &str, found: String, expected: String| StoreError::Damaged {
            path: self.dir.join(TOKENS),
            what: format!("the {what} of sequence {index}"),
            found,
            expected,
        };
        let size = layout::size(entry.layout, entry.tokens)
            .ok_or_else(|| damaged("layout", entry.layout.to_string(), "a known one".to_owned()))?;
        let end = entry.offset.checked_add(size).filter(|&end| end <= self.tokens.len() as u64).ok_or_else(|| {
            damaged("end", format!("{} + {size}", entry.offset), format!("at most {}", self.tokens.len()))
        })?;
        let bytes = &self.tokens[entry.offset as usize..end as usize];
        if !self.checked.is_known(index, bytes.len()) {
            let crc = crc32c::crc32c(bytes);
            if crc != entry.crc {
                return Err(damaged("checksum", format!("{crc:08x}"), format!("{:08x}", entry.crc)));
            }
            self.checked.remember(index, bytes.len());
        }
        let n = entry.tokens as usize;
        Ok(layout::decode_part(bytes, n, entry.layout, part.start.min(n)..part.end.min(n)))
    }

    /// Reads every sequence once.
    ///
    /// # Errors
    /// The first damage found.
    pub fn verify(&self) -> Result<(), StoreError> {
        (0..self.len()).try_for_each(|index| self.sequence(index).map(drop))
    }

    fn entry(&self, index: usize) -> Entry {
        Entry::from_bytes(&self.index[index * ENTRY..(index + 1) * ENTRY])
    }
}

#[cfg(test)]
pub(crate) mod tests;
