//! Writing a corpus, shard by shard.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use didact_core::files::{self, AtomicFile, FileError, fail};
use didact_core::hash::Digest;
use didact_core::sequence::Sequence;
use serde_json::{Map, Value};

use super::{CorpusSummary, FORMAT, Files, Intake, LOCK, Manifest, RECORD, Record, Shard, ShardSummary, VERSION};
use crate::store::{self, Origin, StoreError, layout};

/// What a corpus is made with; it never changes over its life.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Identity {
    pub(super) tokenizer: Digest,
    pub(super) vocab_size: u64,
    pub(super) keep: Vec<String>,
    pub(super) settings: Value,
}

/// Adds documents to a corpus. Nothing of a shard is visible before it is complete, and nothing of an intake before
/// [`CorpusWriter::finish`].
#[derive(Debug)]
pub(super) struct CorpusWriter {
    dir: PathBuf,
    manifest: Manifest,
    names: BTreeMap<String, u32>,
    shard_tokens: u64,
    shard: Option<OpenShard>,
    /// Of the intake, shards being written included.
    summary: CorpusSummary,
    buffer: Vec<u8>,
    _lock: File,
}

/// A shard being written.
#[derive(Debug)]
struct OpenShard {
    files: Files,
    tokens: AtomicFile,
    index: AtomicFile,
    fields: AtomicFile,
    shard: Shard,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.index.fmt(f)
    }
}

/// What is to be done with the files given.
pub(super) enum Begun {
    /// They were taken in before, whole.
    Done(CorpusSummary),
    /// They are to be read from this row on.
    From(Box<CorpusWriter>, u64),
}

impl CorpusWriter {
    /// Begins, or goes on with, taking `inputs` (files and their sizes) into the corpus at `dir`; `appends` allows it
    /// beside other files taken in before, `is_fresh` removes what is there.
    pub(super) fn begin(
        dir: &Path,
        identity: Identity,
        inputs: Vec<(String, u64)>,
        shard_tokens: u64,
        appends: bool,
        is_fresh: bool,
    ) -> Result<Begun, StoreError> {
        files::create_dir_all(dir)?;
        let lock = lock(dir)?;
        if is_fresh {
            clear(dir)?;
        }
        files::sweep(dir)?;
        let found = Manifest::read(dir)?.map(|(manifest, _)| manifest);
        let mut manifest = match found {
            Some(manifest) => {
                same(dir, &manifest, &identity)?;
                manifest
            }
            None => Manifest {
                format: FORMAT.to_owned(),
                version: VERSION,
                tokenizer: identity.tokenizer,
                vocab_size: identity.vocab_size,
                is_narrow: identity.vocab_size <= 1 << 16,
                keep: identity.keep,
                settings: identity.settings,
                names: Vec::new(),
                intakes: Vec::new(),
                shards: Vec::new(),
            },
        };
        let last = manifest.intakes.last();
        if let Some(intake) = manifest.intakes.iter().find(|intake| intake.files == inputs && intake.is_done) {
            return Ok(Begun::Done(intake.summary));
        }
        let goes_on = last.is_some_and(|intake| !intake.is_done);
        if let Some(intake) = last
            && (goes_on && intake.files != inputs || !goes_on && !appends)
        {
            let list = |files: &[(String, u64)]| {
                let shown: Vec<_> =
                    files.iter().take(3).map(|(path, size)| format!("`{path}` of {size} bytes")).collect();
                let more = files.len().saturating_sub(3);
                shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
            };
            return Err(StoreError::OtherCorpus {
                path: dir.to_owned(),
                what: if goes_on { "unfinished input" } else { "input (`--append` adds to it)" },
                found: list(&intake.files),
                expected: list(&inputs),
            });
        }
        if !goes_on {
            let summary = CorpusSummary::default();
            manifest.intakes.push(Intake { files: inputs, rows: 0, is_done: false, summary, shards: 0 });
        }
        let names = (0..).zip(&manifest.names).map(|(number, name)| (name.clone(), number)).collect();
        let intake = &manifest.intakes[manifest.intakes.len() - 1];
        let (summary, rows) = (intake.summary, intake.rows);
        let writer = Self {
            dir: dir.to_owned(),
            names,
            shard_tokens: shard_tokens.max(1),
            shard: None,
            summary,
            buffer: Vec::new(),
            manifest,
            _lock: lock,
        };
        Ok(Begun::From(Box::new(writer), rows))
    }

    /// Adds a document of running text: ids whose weights follow from the rule (0 for the first, 1 for every other).
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn push_text(
        &mut self,
        ids: &[u32],
        origin: Origin<'_>,
        fields: &Map<String, Value>,
    ) -> Result<(), StoreError> {
        let layout = layout::encode_text(ids, self.manifest.is_narrow, &mut self.buffer);
        self.add(ids.len(), ids.len().saturating_sub(1) as f64, layout, origin, fields)
    }

    /// Adds a sequence.
    ///
    /// # Errors
    /// When it cannot be written.
    ///
    /// # Panics
    /// If the sequence's ids, weights and segments differ in number, or the first token of a segment has a weight.
    pub(super) fn push(
        &mut self,
        sequence: &Sequence,
        origin: Origin<'_>,
        fields: &Map<String, Value>,
    ) -> Result<(), StoreError> {
        store::check(sequence);
        let layout = layout::encode(sequence, self.manifest.is_narrow, &mut self.buffer);
        self.add(sequence.len(), sequence.total_weight(), layout, origin, fields)
    }

    /// Counts text read, and rows that became nothing.
    pub(super) fn count(&mut self, text_bytes: u64, empty_rows: u64) {
        self.summary.text_bytes += text_bytes;
        self.summary.empty_rows += empty_rows;
    }

    /// What was taken in so far.
    pub(super) fn summary(&self) -> CorpusSummary {
        self.summary
    }

    /// Adds what lies in `self.buffer`.
    fn add(
        &mut self,
        n: usize,
        weight: f64,
        layout: u32,
        origin: Origin<'_>,
        fields: &Map<String, Value>,
    ) -> Result<(), StoreError> {
        let too_large =
            |what: &str| StoreError::TooLarge { path: self.dir.clone(), what: format!("{what} ({origin})") };
        let tokens = u32::try_from(n).map_err(|_| too_large("a document of more than 2^32 tokens"))?;
        let mut text = Vec::new();
        if !self.manifest.keep.is_empty() {
            let values: Vec<&Value> =
                self.manifest.keep.iter().map(|name| fields.get(name).unwrap_or(&Value::Null)).collect();
            text = serde_json::to_vec(&values).expect("values of JSON are JSON");
        }
        let fields_len = u32::try_from(text.len()).map_err(|_| too_large("fields of more than 2^32 bytes"))?;
        let (source, path) = (self.name(origin.source), self.name(origin.path));
        let number = self.manifest.shards.len();
        if self.shard.is_none() {
            let files = Files::of(&self.dir, number);
            self.shard = Some(OpenShard {
                tokens: AtomicFile::create(&files.tokens)?,
                index: AtomicFile::create(&files.index)?,
                fields: AtomicFile::create(&files.fields)?,
                files,
                shard: Shard {
                    summary: ShardSummary { documents: 0, tokens: 0 },
                    tokens_bytes: 0,
                    fields_bytes: 0,
                    index_crc32c: 0,
                    fields_crc32c: 0,
                },
            });
        }
        let open = self.shard.as_mut().expect("opened above");
        let record = Record {
            offset: open.shard.tokens_bytes,
            row: origin.row,
            weight,
            fields: open.shard.fields_bytes,
            tokens,
            crc: crc32c::crc32c(&self.buffer),
            source,
            path,
            layout,
            fields_len,
        };
        let bytes = record.to_bytes(number, open.shard.summary.documents);
        open.tokens.write_all(&self.buffer).map_err(FileError::at("write", &open.files.tokens))?;
        open.index.write_all(&bytes).map_err(FileError::at("write", &open.files.index))?;
        open.shard.index_crc32c = crc32c::crc32c_append(open.shard.index_crc32c, &bytes);
        if fields_len > 0 {
            let crc = crc32c::crc32c(&text).to_le_bytes();
            text.extend_from_slice(&crc);
            open.fields.write_all(&text).map_err(FileError::at("write", &open.files.fields))?;
            open.shard.fields_crc32c = crc32c::crc32c_append(open.shard.fields_crc32c, &text);
            open.shard.fields_bytes += text.len() as u64;
        }
        open.shard.tokens_bytes += self.buffer.len() as u64;
        open.shard.summary.documents += 1;
        open.shard.summary.tokens += u64::from(tokens);
        self.summary.documents += 1;
        self.summary.tokens += u64::from(tokens);
        self.summary.weight += weight;
        self.summary.longest = self.summary.longest.max(tokens);
        Ok(())
    }

    /// Says that everything of the first `rows` rows was added. This is where a shard may end, and where a killed process
    /// is continued.
    pub(super) fn reached(&mut self, rows: u64, bad_rows: u64) -> Result<(), StoreError> {
        if self.shard.as_ref().is_some_and(|open| open.shard.summary.tokens >= self.shard_tokens) {
            self.publish(rows, bad_rows, false)?;
        }
        Ok(())
    }

    /// Makes everything added durable and visible as part of the corpus.
    ///
    /// # Errors
    /// When a file cannot be completed.
    pub(super) fn finish(mut self, rows: u64, bad_rows: u64) -> Result<CorpusSummary, StoreError> {
        self.publish(rows, bad_rows, true)?;
        Ok(self.summary)
    }

    fn publish(&mut self, rows: u64, bad_rows: u64, is_done: bool) -> Result<(), StoreError> {
        let point = |name: &str| fail::point(name).map_err(FileError::at("publish", &self.dir));
        point("corpus.before_shard")?;
        let intake = self.manifest.intakes.last_mut().expect("an intake was begun");
        if let Some(open) = self.shard.take() {
            open.tokens.commit()?;
            open.fields.commit()?;
            open.index.commit()?;
            self.manifest.shards.push(open.shard);
            intake.shards += 1;
        }
        point("corpus.before_manifest")?;
        self.summary.bad_rows = bad_rows;
        (intake.rows, intake.is_done, intake.summary) = (rows, is_done, self.summary);
        self.manifest.write(&self.dir)?;
        point("corpus.after_manifest")?;
        Ok(())
    }

    fn name(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.names.get(name) {
            return number;
        }
        let number = self.names.len() as u32;
        self.names.insert(name.to_owned(), number);
        self.manifest.names.push(name.to_owned());
        number
    }
}

/// Takes the lock of a corpus.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK);
    let file = files::open_lock(&path)?;
    match fs4::FileExt::try_lock(&file) {
        Ok(()) => Ok(file),
        Err(fs4::TryLockError::WouldBlock) => Err(StoreError::Busy { path: dir.to_owned() }),
        Err(fs4::TryLockError::Error(source)) => Err(FileError::at("lock", &path)(source).into()),
    }
}

/// Removes a corpus. The manifest goes first: without it the rest is nothing.
fn clear(dir: &Path) -> Result<(), StoreError> {
    files::remove_file(dir.join(super::MANIFEST))?;
    for path in files::list_dir(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("shard-") {
            files::remove_file(&path)?;
        }
    }
    Ok(())
}

fn same(dir: &Path, manifest: &Manifest, identity: &Identity) -> Result<(), StoreError> {
    let differ = |what, found: String, expected: String| {
        if found == expected {
            Ok(())
        } else {
            Err(StoreError::OtherCorpus { path: dir.to_owned(), what, found, expected })
        }
    };
    differ("tokenizer", manifest.tokenizer.short(), identity.tokenizer.short())?;
    differ("list of fields to keep", format!("{:?}", manifest.keep), format!("{:?}", identity.keep))?;
    differ("way of reading rows", manifest.settings.to_string(), identity.settings.to_string())
}

/// A record is as long as the layout says.
const _: () = assert!(RECORD == 4 * 8 + 8 * 4);
