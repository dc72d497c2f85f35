use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;

use didact_core::cancel::Cancel;
use didact_core::example::{Example, SourcedExample};
use didact_core::fault::Classify;
use didact_core::hash::hash_bytes;
use didact_core::progress::{Reporter, Silent};
use didact_core::seed::Streams;
use proptest::prelude::*;
use serde_json::{Map, json};

use super::write::{Begun, CorpusWriter, Identity};
use super::*;
use crate::batch::TrainingSet;
use crate::encode::{EncodeOptions, Encoder};
use crate::error::DataError;
use crate::packing::Packing;
use crate::reader::{OnBadRow, SourceConfig};
use crate::store::tests::{sequences, stored};
use crate::tokenizer::Tokenizer;

fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tokenizers/smollm.gguf");
    Tokenizer::open(path).expect("a golden tokenizer")
}

/// A folder with a data set of several files and formats: texts, a conversation without a template would fail, so
/// completions are the ones with weights of their own.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        let mut rows = String::new();
        for i in 0..3000 {
            let words = (0..=i % 17).map(|j| format!("word{} ", (i * 7 + j) % 101)).collect::<Vec<_>>().concat();
            rows.push_str(&json!({"text": words.trim(), "skill": format!("s{}", i % 3), "level": i}).to_string());
            rows.push('\n');
            if i % 500 == 3 {
                rows.push_str("\nnot json\n");
            }
        }
        world.write("in/a.jsonl", rows.as_bytes());
        let pairs: String = (0..1500)
            .map(|i| {
                json!({"prompt": format!("{i} plus one is"), "completion": format!(" {}", i + 1)}).to_string() + "\n"
            })
            .collect();
        world.write("in/b.jsonl.zst", &zstd::encode_all(pairs.as_bytes(), 3).expect("in memory"));
        world.write("in/c.txt", "A file of its own.\n\nWith two paragraphs.\n".as_bytes());
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        files::create_dir_all(path.parent().expect("a parent")).expect("created");
        files::write_atomic(&path, bytes).expect("written");
    }

    fn source(&self) -> SourceConfig {
        let mut source = SourceConfig::new(self.path("in").to_str().expect("UTF-8"));
        source.on_bad_row = OnBadRow::Skip;
        source
    }

    fn make(&self, to: &str, options: &CorpusOptions) -> Result<Tokenized, DataError> {
        tokenize(&self.source(), &tokenizer(), &self.path(to), options, &Cancel::new(), &Silent)
    }

    /// Every file of a corpus but the lock, by name.
    fn bytes(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let files = files::list_dir(self.path(name)).expect("listed");
        let name = |path: &PathBuf| path.file_name().expect("named").to_string_lossy().into_owned();
        files
            .iter()
            .filter(|path| name(path) != LOCK)
            .map(|path| (name(path), files::read(path).expect("read")))
            .collect()
    }
}

fn options() -> CorpusOptions {
    CorpusOptions { keep: vec!["skill".into(), "level".into()], shard_tokens: 6000, ..CorpusOptions::default() }
}

#[test]
fn a_corpus_holds_every_row_with_its_place_and_fields() {
    let world = World::new();
    let done = world.make("corpus", &options()).expect("made");
    let corpus = Corpus::open(world.path("corpus")).expect("opens");
    let tokenizer = tokenizer();
    let encoder = Encoder::new(&tokenizer, EncodeOptions::default()).expect("an encoder");
    let rows: Vec<SourcedExample> =
        crate::reader::open(&world.source()).expect("opens").map(|row| row.expect("skips bad rows")).collect();
    assert_eq!((corpus.len(), done.summary, done.summary.bad_rows), (rows.len(), corpus.summary(), 6));
    assert!(corpus.inner.manifest.shards.len() > 3, "several shards");
    assert!(corpus.inner.manifest.is_narrow);
    let (mut tokens, mut bytes) = (0, 0);
    for (i, row) in rows.iter().enumerate() {
        let expected = encoder.encode(row).expect("encodes").remove(0).sequence;
        let sequence = corpus.sequence(i).expect("reads");
        assert_eq!(sequence, expected);
        assert_eq!(corpus.extent(i).expect("reads"), (sequence.len() as u32, sequence.total_weight()));
        let origin = corpus.origin(i).expect("reads");
        assert_eq!((origin.source, origin.path, origin.row), (row.source.as_str(), row.path.as_str(), row.row));
        let (skill, level) = (corpus.field(i, "skill").expect("kept"), corpus.field(i, "level").expect("kept"));
        if let Example::Text { text } = &row.example {
            bytes += text.len();
            if i < 3000 {
                assert_eq!((skill, level), (json!(format!("s{}", i % 3)), json!(i)));
                continue;
            }
        } else {
            bytes += crate::check::text_size(&row.example, str::len);
        }
        assert_eq!((skill, level), (Value::Null, Value::Null), "rows without the fields");
        tokens += sequence.len();
    }
    assert!(tokens > 0);
    assert_eq!(corpus.summary().text_bytes, bytes as u64);
    assert_eq!(corpus.summary().tokens, corpus.lengths().expect("reads").iter().map(|&n| u64::from(n)).sum::<u64>());
    corpus.verify().expect("intact");
    let error = corpus.field(0, "depth").expect_err("not kept");
    assert!(error.to_string().contains("no field `depth` was kept"), "{error}");
}

/// Asks for a stop after so many reports of progress.
struct Stopper {
    after: AtomicU32,
    cancel: Cancel,
}

impl Reporter for Stopper {
    fn count(&self, _: &str, _: &str, _: u64, _: Option<u64>) {
        if self.after.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.cancel.cancel();
        }
    }
}

#[test]
fn interruptions_and_threads_do_not_show_in_the_bytes() {
    let world = World::new();
    world.make("whole", &options()).expect("made");
    let expected = world.bytes("whole");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    pool.install(|| world.make("single", &options())).expect("made");
    assert!(world.bytes("single") == expected, "one thread");
    let mut stops = 0;
    for after in [1, 1, 2, 1, 3, 100] {
        let cancel = Cancel::new();
        let stopper = Stopper { after: AtomicU32::new(after), cancel: cancel.clone() };
        let done = tokenize(&world.source(), &tokenizer(), &world.path("stopped"), &options(), &cancel, &stopper)
            .expect("runs");
        stops += u32::from(done.is_cancelled);
        if done.is_cancelled {
            let error = Corpus::open(world.path("stopped")).expect_err("not finished");
            assert!(matches!(error, StoreError::Unfinished { .. } | StoreError::NotACorpus { .. }), "{error}");
        }
    }
    assert!(stops >= 3, "only {stops} stops");
    assert!(world.bytes("stopped") == expected, "stopped and continued");
    let again = world.make("stopped", &options()).expect("done before");
    assert_eq!((again.new_tokens, again.summary), (0, Corpus::open(world.path("whole")).expect("opens").summary()));
}

#[test]
fn a_corpus_grows_while_others_read_it() {
    let world = World::new();
    world.make("corpus", &options()).expect("made");
    let reader = Corpus::open(world.path("corpus")).expect("opens");
    let last = reader.sequence(reader.len() - 1).expect("reads");
    world.write("more.jsonl", br#"{"text": "and one more", "skill": "s9"}"#);
    let source = SourceConfig { path: vec![world.path("more.jsonl").display().to_string()], ..world.source() };
    let tokenizer = tokenizer();
    let add = |options: &CorpusOptions| {
        tokenize(&source, &tokenizer, &world.path("corpus"), options, &Cancel::new(), &Silent)
    };
    let error = add(&options()).expect_err("other input");
    assert!(error.to_string().contains("another input (`--append` adds to it)"), "{error}");
    let done = add(&CorpusOptions { append: true, ..options() }).expect("added");
    assert_eq!(done.summary.documents, 1);
    let grown = Corpus::open(world.path("corpus")).expect("opens");
    assert_eq!((grown.len(), reader.sequence(reader.len() - 1).expect("reads")), (reader.len() + 1, last));
    assert_eq!(grown.field(grown.len() - 1, "skill").expect("kept"), "s9");
    assert_ne!(grown.digest(), reader.digest());
    grown.verify().expect("intact");
    let anew = add(&CorpusOptions { fresh: true, ..options() }).expect("made anew");
    assert_eq!((anew.summary.documents, Corpus::open(world.path("corpus")).expect("opens").len()), (1, 1));
}

#[test]
fn what_was_made_otherwise_is_refused_by_name() {
    let world = World::new();
    world.make("corpus", &options()).expect("made");
    for (changed, what) in [
        (CorpusOptions { keep: vec!["skill".into()], ..options() }, "list of fields to keep"),
        (CorpusOptions { add_eos: Some(false), ..options() }, "way of reading rows"),
    ] {
        let error = world.make("corpus", &changed).expect_err("other settings");
        assert!(error.to_string().contains(what), "{error}");
        assert!(error.hint().expect("a hint").contains("--fresh"));
    }
    for name in ["in", "nowhere"] {
        let error = Corpus::open(world.path(name)).expect_err("no corpus");
        assert!(error.to_string().contains("it has no `corpus.json`"), "{error}");
    }
}

#[test]
fn a_row_that_cannot_be_used_stops_and_the_rest_comes_once_it_is_mended() {
    let world = World::new();
    let source = SourceConfig { on_bad_row: OnBadRow::Stop, ..world.source() };
    let error = tokenize(&source, &tokenizer(), &world.path("corpus"), &options(), &Cancel::new(), &Silent);
    assert!(error.expect_err("a bad row").to_string().contains("a.jsonl` row 6: is not JSON"));
}

#[test]
fn every_flipped_bit_is_noticed_when_what_it_is_part_of_is_read() {
    let world = World::new();
    world.write("in/a.jsonl", br#"{"text": "one", "skill": "a"}"#);
    world.make("corpus", &options()).expect("made");
    let place = world.path("corpus");
    for file in ["shard-00000.tokens", "shard-00000.index", "shard-00000.fields"] {
        let intact = files::read(place.join(file)).expect("read");
        for byte in (0..intact.len()).step_by(intact.len() / 40 + 1) {
            let mut bytes = intact.clone();
            bytes[byte] ^= 1 << (byte % 8);
            files::write_atomic(place.join(file), &bytes).expect("written");
            let corpus = Corpus::open(&place).expect("opening checks sizes only");
            let reads = (0..corpus.len()).try_for_each(|i| {
                corpus.sequence(i)?;
                corpus.fields(i).map(drop)
            });
            assert!(matches!(reads, Err(StoreError::Damaged { .. })), "byte {byte} of {file}");
            assert!(corpus.verify().is_err());
        }
        files::write_atomic(place.join(file), &intact[..intact.len() - 1]).expect("written");
        assert!(matches!(Corpus::open(&place), Err(StoreError::Damaged { .. })), "{file} cut");
        files::write_atomic(place.join(file), &intact).expect("written");
    }
    Corpus::open(&place).expect("opens").verify().expect("intact");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn sequences_of_any_kind_come_back_as_they_were(
        sequences in sequences(), shard_tokens in 1u64..60, vocab_size in prop::sample::select(vec![1u64 << 16, 1 << 20]),
    ) {
        let sequences: Vec<Sequence> = sequences
            .into_iter()
            .map(|mut s| {
                s.ids.iter_mut().for_each(|id| *id %= vocab_size as u32);
                s
            })
            .collect();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let identity = Identity { tokenizer: hash_bytes(b""), vocab_size, keep: vec!["k".into()], settings: json!({}) };
        let begun = CorpusWriter::begin(dir.path(), identity, Vec::new(), shard_tokens, false, false).expect("begins");
        let Begun::From(mut writer, 0) = begun else { panic!("a new corpus") };
        for (i, sequence) in sequences.iter().enumerate() {
            let fields = Map::from_iter([("k".to_owned(), json!({"i": i}))]);
            writer.push(sequence, Origin { source: "s", path: "p", row: i as u64 }, &fields).expect("added");
            writer.reached(i as u64 + 1, 0).expect("published");
        }
        writer.finish(sequences.len() as u64, 0).expect("finished");
        let corpus = Corpus::open(dir.path()).expect("opens");
        prop_assert_eq!(corpus.len(), sequences.len());
        for (i, sequence) in sequences.iter().enumerate().rev() {
            prop_assert_eq!(&corpus.sequence(i).expect("reads"), sequence);
            prop_assert_eq!(corpus.field(i, "k").expect("kept"), json!({"i": i}));
        }
        // Batches do not tell whether sequences lie in a store or in a corpus.
        let (_dir, store) = stored(&sequences);
        let from = |sequences: crate::sequences::Sequences| {
            TrainingSet::of(sequences, 12, Packing::BestFit, 3, Some(Streams::new(5))).expect("readable")
        };
        let (store, corpus) = (from(store.into()), from(corpus.into()));
        prop_assert_eq!(store.weight_account(), corpus.weight_account());
        for step in 0..2 * store.batches_per_epoch() {
            prop_assert_eq!(store.batch(step).expect("readable"), corpus.batch(step).expect("readable"));
        }
    }
}
