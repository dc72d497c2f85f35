//! Tokenised corpora: documents of any number on disk, read through memory maps, made by [`tokenize()`].
//!
//! A corpus is a directory, all numbers little-endian:
//! - `corpus.json`: what it was made from and with, its shards with their sizes and checksums, and how far each intake
//!   of files came. It is replaced as a whole after each shard; what it does not name is not there;
//! - `shard-NNNNN.tokens`: sequences one after the other ([`store`](crate::store)'s layout), ids in 2 bytes where the
//!   vocabulary allows it;
//! - `shard-NNNNN.index`: one record of `RECORD` bytes per sequence: where it is, how long, its CRC-32C, its weight, where
//!   it came from, where its fields are, and a checksum of the record itself;
//! - `shard-NNNNN.fields`: the fields kept of each row, as a JSON array in the order of `keep`, with a CRC-32C behind it.
//!
//! Shards never change once they are named, so that a corpus can grow while others read it. Opening reads `corpus.json`
//! and compares sizes; everything else is checked when it is read. Finding a document takes a search among the shards and
//! one record, whatever the size of the corpus.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use didact_core::files;
use didact_core::hash::{Digest, hash_bytes};
use didact_core::mmap::Mmap;
use didact_core::sequence::Sequence;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::store::layout::{self, Checked};
use crate::store::{Origin, StoreError};

mod tokenize;
mod write;

pub use tokenize::{CorpusOptions, Tokenized, tokenize};

const FORMAT: &str = "didact corpus";
const VERSION: u64 = 1;
const MANIFEST: &str = "corpus.json";
const LOCK: &str = "corpus.lock";
/// Bytes of an index record.
const RECORD: usize = 64;
/// Bytes read through the maps after which the pages are given back, so that the resident memory of a reader stays
/// small however large the corpus is. The system keeps them in its cache as long as it has room.
const RESIDENT: u64 = 128 << 20;
/// What reading one place at random makes resident: the system maps the pages around it as well.
const AROUND: u64 = 64 << 10;

/// What a corpus holds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSummary {
    /// Sequences: one per document of running text.
    pub documents: u64,
    /// Tokens.
    pub tokens: u64,
    /// Bytes of text they were made from.
    pub text_bytes: u64,
    /// Sum of all weights.
    pub weight: f64,
    /// Length of the longest sequence, in tokens.
    pub longest: u32,
    /// Rows that became no token.
    pub empty_rows: u64,
    /// Rows that could not be used and were left out.
    pub bad_rows: u64,
}

impl CorpusSummary {
    fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.tokens += other.tokens;
        self.text_bytes += other.text_bytes;
        self.weight += other.weight;
        self.longest = self.longest.max(other.longest);
        self.empty_rows += other.empty_rows;
        self.bad_rows += other.bad_rows;
    }
}

/// A shard as the manifest knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shard {
    #[serde(flatten)]
    summary: ShardSummary,
    tokens_bytes: u64,
    fields_bytes: u64,
    index_crc32c: u32,
    fields_crc32c: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct ShardSummary {
    documents: u64,
    tokens: u64,
}

/// Files that were, or are being, taken in together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Intake {
    /// The files and their sizes in bytes.
    files: Vec<(String, u64)>,
    /// Rows read so far, good and bad.
    rows: u64,
    is_done: bool,
    summary: CorpusSummary,
    /// Shards that it made.
    shards: u64,
}

/// `corpus.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    version: u64,
    /// Digest of the tokenizer.
    tokenizer: Digest,
    vocab_size: u64,
    is_narrow: bool,
    /// Names of the fields kept of each row.
    keep: Vec<String>,
    /// Everything else that decides what documents become.
    settings: Value,
    /// Files and sources, by the numbers the index uses.
    names: Vec<String>,
    intakes: Vec<Intake>,
    shards: Vec<Shard>,
}

impl Manifest {
    /// Reads a directory's manifest; `None` when there is none.
    fn read(dir: &Path) -> Result<Option<(Self, Digest)>, StoreError> {
        let path = dir.join(MANIFEST);
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = files::read(&path)?;
        let not_a_corpus = |cause: String| StoreError::NotACorpus { path: dir.to_owned(), cause };
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| not_a_corpus(error.to_string()))?;
        if value.get("format").and_then(Value::as_str) != Some(FORMAT) {
            return Err(not_a_corpus(format!("`format` in `{MANIFEST}` is not `{FORMAT}`")));
        }
        let version = value.get("version").and_then(Value::as_u64);
        if version != Some(VERSION) {
            let found = version.map_or("no number".to_owned(), |version| version.to_string());
            return Err(not_a_corpus(format!("its version is {found}, this program reads {VERSION}")));
        }
        let manifest = serde_json::from_value(value).map_err(|error| not_a_corpus(error.to_string()))?;
        Ok(Some((manifest, hash_bytes(&bytes))))
    }

    fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let mut text = serde_json::to_vec_pretty(self).expect("strings and numbers are JSON");
        text.push(b'\n');
        Ok(files::write_atomic(dir.join(MANIFEST), &text)?)
    }
}

/// The files of a shard.
struct Files {
    tokens: PathBuf,
    index: PathBuf,
    fields: PathBuf,
}

impl Files {
    fn of(dir: &Path, shard: usize) -> Self {
        let name = |kind: &str| dir.join(format!("shard-{shard:05}.{kind}"));
        Self { tokens: name("tokens"), index: name("index"), fields: name("fields") }
    }
}

/// An index record.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Record {
    /// In bytes, within the shard's tokens.
    offset: u64,
    row: u64,
    weight: f64,
    /// In bytes, within the shard's fields.
    fields: u64,
    tokens: u32,
    crc: u32,
    source: u32,
    path: u32,
    layout: u32,
    fields_len: u32,
}

impl Record {
    /// A record's bytes; the checksum covers its place as well, so that no record can stand in for another.
    fn to_bytes(self, shard: usize, number: u64) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        for (i, long) in [self.offset, self.row, self.weight.to_bits(), self.fields].into_iter().enumerate() {
            bytes[8 * i..8 * i + 8].copy_from_slice(&long.to_le_bytes());
        }
        let words = [self.tokens, self.crc, self.source, self.path, self.layout, self.fields_len];
        for (i, word) in words.into_iter().enumerate() {
            bytes[32 + 4 * i..36 + 4 * i].copy_from_slice(&word.to_le_bytes());
        }
        let crc = Self::checksum(&bytes[..RECORD - 4], shard, number);
        bytes[RECORD - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn checksum(bytes: &[u8], shard: usize, number: u64) -> u32 {
        let place = crc32c::crc32c(&(shard as u64).to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(place, &number.to_le_bytes()), bytes)
    }

    fn from_bytes(bytes: &[u8], shard: usize, number: u64) -> Option<Self> {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        (Self::checksum(&bytes[..RECORD - 4], shard, number) == word(RECORD - 4)).then(|| Self {
            offset: long(0),
            row: long(8),
            weight: f64::from_bits(long(16)),
            fields: long(24),
            tokens: word(32),
            crc: word(36),
            source: word(40),
            path: word(44),
            layout: word(48),
            fields_len: word(52),
        })
    }
}

/// The maps of a shard.
#[derive(Debug)]
struct Maps {
    tokens: Mmap,
    index: Mmap,
    fields: Mmap,
}

/// A corpus opened for reading: what was there when it was opened, also while it grows. Clones share the memory maps.
#[derive(Debug, Clone)]
pub struct Corpus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    manifest: Manifest,
    digest: Digest,
    summary: CorpusSummary,
    /// Number of documents before each shard, and in all.
    starts: Vec<u64>,
    maps: Vec<OnceLock<Maps>>,
    /// Bytes made resident since pages were last given back.
    resident: AtomicU64,
    checked: Checked,
}

impl Corpus {
    /// Opens the corpus in the directory `dir`: reads its manifest and compares the sizes of its files.
    ///
    /// # Errors
    /// When there is no corpus, none that was finished, or its files have other sizes.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let dir = dir.as_ref().to_owned();
        let Some((mut manifest, digest)) = Manifest::read(&dir)? else {
            return Err(StoreError::NotACorpus { path: dir, cause: format!("it has no `{MANIFEST}`") });
        };
        let documents = manifest.shards.iter().map(|shard| shard.summary.documents).sum();
        // An intake that is not finished is not part of the corpus yet.
        manifest.intakes.retain(|intake| intake.is_done);
        if manifest.intakes.is_empty() {
            return Err(StoreError::Unfinished { path: dir, documents });
        }
        let done: u64 = manifest.intakes.iter().map(|intake| intake.shards).sum();
        manifest.shards.truncate(usize::try_from(done).unwrap_or(usize::MAX));
        let mut summary = CorpusSummary::default();
        for intake in &manifest.intakes {
            summary.add(&intake.summary);
        }
        let mut starts = vec![0];
        for (number, shard) in manifest.shards.iter().enumerate() {
            let files = Files::of(&dir, number);
            let index_bytes = shard.summary.documents.saturating_mul(RECORD as u64);
            let sizes =
                [(files.tokens, shard.tokens_bytes), (files.index, index_bytes), (files.fields, shard.fields_bytes)];
            for (path, expected) in sizes {
                let found = std::fs::metadata(&path).map_err(files::FileError::at("read", &path))?.len();
                agree(path, "its size in bytes", found, expected)?;
            }
            starts.push(starts[number] + shard.summary.documents);
        }
        agree(dir.join(MANIFEST), "its number of documents", starts[starts.len() - 1], summary.documents)?;
        let maps = manifest.shards.iter().map(|_| OnceLock::new()).collect();
        let inner = Inner {
            dir,
            manifest,
            digest,
            summary,
            starts,
            maps,
            resident: AtomicU64::new(0),
            checked: Checked::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.inner.dir
    }

    /// A digest of everything in it: the manifest, which holds the checksums of the indices, which hold those of the
    /// sequences.
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }

    /// What it holds.
    pub fn summary(&self) -> CorpusSummary {
        self.inner.summary
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.inner.summary.documents as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Digest of the tokenizer it was made with.
    pub fn tokenizer(&self) -> Digest {
        self.inner.manifest.tokenizer
    }

    /// Size of the vocabulary it was made with.
    pub fn vocab_size(&self) -> u64 {
        self.inner.manifest.vocab_size
    }

    /// Names of the fields kept of each row.
    pub fn field_names(&self) -> &[String] {
        &self.inner.manifest.keep
    }

    /// Length of a sequence, in tokens.
    ///
    /// # Errors
    /// When there is no such sequence, or its record is damaged.
    pub fn length(&self, index: usize) -> Result<u32, StoreError> {
        Ok(self.record(index)?.1.tokens)
    }

    /// Lengths of all sequences, in tokens.
    ///
    /// # Errors
    /// When a record is damaged.
    pub fn lengths(&self) -> Result<Vec<u32>, StoreError> {
        (0..self.len()).map(|index| self.length(index)).collect()
    }

    /// Length in tokens and total weight of a sequence.
    ///
    /// # Errors
    /// When there is no such sequence, or its record is damaged.
    pub fn extent(&self, index: usize) -> Result<(u32, f64), StoreError> {
        let (_, record) = self.record(index)?;
        Ok((record.tokens, record.weight))
    }

    /// CRC-32C of a sequence as it is written: equal for equal sequences.
    ///
    /// # Errors
    /// When there is no such sequence, or its record is damaged.
    pub fn checksum(&self, index: usize) -> Result<u32, StoreError> {
        Ok(self.record(index)?.1.crc)
    }

    /// Where a sequence came from.
    ///
    /// # Errors
    /// When there is no such sequence, or its record is damaged.
    pub fn origin(&self, index: usize) -> Result<Origin<'_>, StoreError> {
        let (_, record) = self.record(index)?;
        let name = |number: u32| self.inner.manifest.names.get(number as usize).map_or("?", String::as_str);
        Ok(Origin { source: name(record.source), path: name(record.path), row: record.row })
    }

    /// The fields kept of a sequence's row, in the order of [`Corpus::field_names`]; null where the row had none.
    ///
    /// # Errors
    /// When there is no such sequence, or its fields are damaged.
    pub fn fields(&self, index: usize) -> Result<Vec<Value>, StoreError> {
        let (shard, record) = self.record(index)?;
        if record.fields_len == 0 {
            return Ok(vec![Value::Null; self.field_names().len()]);
        }
        let maps = self.maps(shard)?;
        let path = Files::of(&self.inner.dir, shard).fields;
        let (start, len) = (record.fields, u64::from(record.fields_len));
        let bytes = slice(&maps.fields, start, len + 4).ok_or_else(|| {
            damaged(path.clone(), format!("the end of document {index}"), start + len, maps.fields.len())
        })?;
        self.touched(len.max(AROUND));
        let (text, crc) = bytes.split_at(len as usize);
        let stated = u32::from_le_bytes(std::array::from_fn(|i| crc[i]));
        agree(path.clone(), &format!("the checksum of document {index}"), crc32c::crc32c(text), stated)?;
        serde_json::from_slice(text)
            .map_err(|error| damaged(path, format!("the fields of document {index}"), error, "JSON"))
    }

    /// One field of a sequence's row.
    ///
    /// # Errors
    /// When no such field was kept, or as [`Corpus::fields`].
    pub fn field(&self, index: usize, name: &str) -> Result<Value, StoreError> {
        let Some(place) = self.field_names().iter().position(|kept| kept == name) else {
            let cause = format!("no field `{name}` was kept; kept are {:?}", self.field_names());
            return Err(StoreError::NotACorpus { path: self.inner.dir.clone(), cause });
        };
        Ok(self.fields(index)?.into_iter().nth(place).unwrap_or(Value::Null))
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
    /// As [`Corpus::sequence`].
    pub fn part(&self, index: usize, part: Range<usize>) -> Result<Sequence, StoreError> {
        let (shard, record) = self.record(index)?;
        let maps = self.maps(shard)?;
        let path = || Files::of(&self.inner.dir, shard).tokens;
        let size = layout::size(record.layout, record.tokens)
            .ok_or_else(|| damaged(path(), format!("the layout of document {index}"), record.layout, "a known one"))?;
        let bytes = slice(&maps.tokens, record.offset, size).ok_or_else(|| {
            damaged(
                path(),
                format!("the end of document {index}"),
                record.offset.saturating_add(size),
                maps.tokens.len(),
            )
        })?;
        let n = record.tokens as usize;
        let part = part.start.min(n)..part.end.min(n);
        if self.inner.checked.is_known(index, bytes.len()) {
            self.touched((4 * part.len() as u64).max(AROUND));
        } else {
            self.touched(size.max(AROUND));
            let crc = crc32c::crc32c(bytes);
            if crc != record.crc {
                let what = format!("the checksum of document {index}");
                return Err(damaged(path(), what, format!("{crc:08x}"), format!("{:08x}", record.crc)));
            }
            self.inner.checked.remember(index, bytes.len());
        }
        Ok(layout::decode_part(bytes, n, record.layout, part))
    }

    /// Reads everything once.
    ///
    /// # Errors
    /// The first damage found.
    pub fn verify(&self) -> Result<(), StoreError> {
        for (number, shard) in self.inner.manifest.shards.iter().enumerate() {
            let (maps, files) = (self.maps(number)?, Files::of(&self.inner.dir, number));
            agree(files.index, "its checksum", crc32c::crc32c(&maps.index), shard.index_crc32c)?;
            agree(files.fields, "its checksum", crc32c::crc32c(&maps.fields), shard.fields_crc32c)?;
        }
        (0..self.len()).try_for_each(|index| self.sequence(index).map(drop))
    }

    /// The shard of a document, and its record.
    fn record(&self, index: usize) -> Result<(usize, Record), StoreError> {
        let Inner { dir, starts, .. } = &*self.inner;
        if index >= self.len() {
            return Err(StoreError::NoSuchSequence { path: dir.clone(), index, sequences: self.len() });
        }
        let shard = starts.partition_point(|&start| start <= index as u64) - 1;
        let number = index as u64 - starts[shard];
        let maps = self.maps(shard)?;
        let at = number as usize * RECORD;
        // Neighbouring records share pages, and are mostly read together.
        self.touched(RECORD as u64);
        maps.index
            .get(at..at + RECORD)
            .and_then(|bytes| Record::from_bytes(bytes, shard, number))
            .map(|record| (shard, record))
            .ok_or_else(|| damaged(Files::of(dir, shard).index, format!("record {number}"), "changed", "as written"))
    }

    fn maps(&self, shard: usize) -> Result<&Maps, StoreError> {
        let cell = &self.inner.maps[shard];
        if let Some(maps) = cell.get() {
            return Ok(maps);
        }
        let files = Files::of(&self.inner.dir, shard);
        let maps = Maps {
            tokens: Mmap::open(files.tokens)?,
            index: Mmap::open(files.index)?,
            fields: Mmap::open(files.fields)?,
        };
        Ok(cell.get_or_init(|| maps))
    }

    /// Counts what was made resident, and gives pages back when it is much.
    fn touched(&self, bytes: u64) {
        let resident = self.inner.resident.fetch_add(bytes, Ordering::Relaxed);
        if resident > RESIDENT {
            self.inner.resident.store(0, Ordering::Relaxed);
            for maps in self.inner.maps.iter().filter_map(OnceLock::get) {
                maps.tokens.release();
                maps.index.release();
                maps.fields.release();
            }
        }
    }
}

/// Bytes `start..start + len`, if they are there.
fn slice(bytes: &[u8], start: u64, len: u64) -> Option<&[u8]> {
    let (start, end) = (usize::try_from(start).ok()?, usize::try_from(start.checked_add(len)?).ok()?);
    bytes.get(start..end)
}

fn damaged(path: PathBuf, what: String, found: impl ToString, expected: impl ToString) -> StoreError {
    StoreError::Damaged { path, what, found: found.to_string(), expected: expected.to_string() }
}

fn agree<T: PartialEq + ToString>(path: PathBuf, what: &str, found: T, expected: T) -> Result<(), StoreError> {
    if found == expected { Ok(()) } else { Err(damaged(path, what.to_owned(), found, expected)) }
}

#[cfg(test)]
mod tests;
