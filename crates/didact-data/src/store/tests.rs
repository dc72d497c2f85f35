use super::*;
use proptest::prelude::*;

/// Sequences with plain, masked and graded weights, of one or several segments.
pub(crate) fn sequences() -> impl Strategy<Value = Vec<Sequence>> {
    let weight = prop_oneof![Just(0.0_f32), Just(1.0), Just(0.5), Just(2.25)];
    let token = (0..1000_u32, weight, 0..8_u32);
    let tokens = (prop::collection::vec(token, 0..40), 0..3_u8);
    let sequence = tokens.prop_map(|(tokens, kind)| {
        let mut sequence = Sequence::default();
        for (id, weight, roll) in tokens {
            let segment = match sequence.segment.last() {
                None => 0,
                Some(&last) => last + u32::from(kind == 2 && roll == 0),
            };
            let starts = sequence.segment.last() != Some(&segment);
            let weight = match kind {
                0 => 1.0,
                1 => weight.floor().min(1.0),
                _ => weight,
            };
            sequence.ids.push(id);
            sequence.weight.push(if starts { 0.0 } else { weight });
            sequence.segment.push(segment);
        }
        sequence
    });
    prop::collection::vec(sequence, 0..30)
}

pub(crate) fn stored(sequences: &[Sequence]) -> (tempfile::TempDir, SequenceStore) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut writer = SequenceWriter::create(dir.path()).expect("a writer");
    for (i, sequence) in sequences.iter().enumerate() {
        let origin = Origin { source: "test", path: if i % 2 == 0 { "a" } else { "b" }, row: i as u64 + 1 };
        assert_eq!(writer.push(sequence, origin).expect("written"), i as u64);
    }
    writer.finish().expect("finished");
    let store = SequenceStore::open(dir.path()).expect("a store");
    (dir, store)
}

fn some() -> Vec<Sequence> {
    vec![
        Sequence::single(vec![1, 2, 3, 4], vec![1.0; 4]),
        Sequence::single(vec![5, 6, 7], vec![0.0, 0.0, 1.0]),
        Sequence::single(vec![8, 9], vec![0.0, 0.25]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_stored_comes_back_bit_for_bit(sequences in sequences()) {
        let (_dir, store) = stored(&sequences);
        prop_assert_eq!(store.len(), sequences.len());
        for (i, sequence) in sequences.iter().enumerate() {
            prop_assert_eq!(&store.sequence(i).expect("undamaged"), sequence);
            prop_assert_eq!(store.length(i) as usize, sequence.len());
            prop_assert_eq!(store.weight(i), sequence.total_weight());
            prop_assert_eq!(store.origin(i).row, i as u64 + 1);
            prop_assert_eq!(store.origin(i).path, if i % 2 == 0 { "a" } else { "b" });
        }
        let total: f64 = sequences.iter().map(Sequence::total_weight).sum();
        prop_assert_eq!(store.summary().weight, total);
    }
}

#[test]
fn running_text_takes_four_bytes_per_token() {
    let (dir, _) = stored(&[Sequence::single((0..1000).collect(), vec![1.0; 1000])]);
    assert_eq!(files::read(dir.path().join(TOKENS)).expect("readable").len(), 4000);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (dir, pristine) = stored(&some());
    for name in [TOKENS, INDEX] {
        let path = dir.path().join(name);
        let bytes = files::read(&path).expect("readable");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            files::write_atomic(&path, &damaged).expect("written");
            let result = SequenceStore::open(dir.path()).and_then(|store| store.verify());
            assert!(matches!(result, Err(StoreError::Damaged { .. })), "byte {at} of {name}: {result:?}");
        }
        files::write_atomic(&path, &bytes).expect("written");
    }
    let reopened = SequenceStore::open(dir.path()).expect("mended");
    reopened.verify().expect("mended");
    assert_eq!(reopened.digest(), pristine.digest());
}

#[test]
fn every_cut_is_noticed() {
    let (dir, _) = stored(&some());
    for name in [TOKENS, INDEX, HEADER] {
        let path = dir.path().join(name);
        let bytes = files::read(&path).expect("readable");
        // The header's last byte is a line break, without which it says the same.
        for len in 0..bytes.len() - usize::from(name == HEADER) {
            files::write_atomic(&path, &bytes[..len]).expect("written");
            let result = SequenceStore::open(dir.path()).and_then(|store| store.verify());
            assert!(result.is_err(), "{name} cut to {len} bytes");
        }
        files::write_atomic(&path, &bytes).expect("written");
    }
}

#[test]
fn an_unfinished_store_is_none() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut writer = SequenceWriter::create(dir.path()).expect("a writer");
    writer.push(&some()[0], Origin { source: "s", path: "p", row: 1 }).expect("written");
    drop(writer);
    let error = SequenceStore::open(dir.path()).expect_err("no store").to_string();
    assert!(error.ends_with("holds no sequence store: it has no `store.json`"), "{error}");
    assert_eq!(files::list_dir(dir.path()).expect("listed"), Vec::<PathBuf>::new());
}

#[test]
fn damage_says_which_sequence_and_what_to_do() {
    let (dir, _) = stored(&some());
    let path = dir.path().join(TOKENS);
    let mut bytes = files::read(&path).expect("readable");
    *bytes.last_mut().expect("not empty") ^= 1;
    files::write_atomic(&path, &bytes).expect("written");
    let store = SequenceStore::open(dir.path()).expect("the index is whole");
    store.sequence(0).expect("undamaged");
    let error = store.sequence(2).expect_err("damaged");
    let text = error.to_string();
    assert!(text.contains("tokens.bin` is damaged: the checksum of sequence 2 is "), "{text}");
    assert!(error.hint().expect("a hint").contains("run the same command again"));
    assert!(matches!(store.sequence(3), Err(StoreError::NoSuchSequence { index: 3, sequences: 3, .. })));
}

#[test]
fn a_store_of_another_version_is_refused_by_number() {
    let (dir, _) = stored(&some());
    let path = dir.path().join(HEADER);
    let text = files::read_to_string(&path).expect("readable").replace("\"version\": 1", "\"version\": 7");
    files::write_atomic(&path, text.as_bytes()).expect("written");
    assert!(matches!(SequenceStore::open(dir.path()), Err(StoreError::Version { found: 7, .. })));
}

#[test]
#[should_panic(expected = "the first token of a segment follows nothing")]
fn a_weighted_segment_start_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut writer = SequenceWriter::create(dir.path()).expect("a writer");
    let sequence = Sequence { ids: vec![1, 2], weight: vec![0.0, 1.0], segment: vec![0, 1] };
    let _ = writer.push(&sequence, Origin { source: "s", path: "p", row: 1 });
}

#[test]
fn pieces_of_short_and_of_long_sequences_are_what_they_are_of_the_whole() {
    let long: Vec<f32> = (0..100_000u32).map(|i| [0.0, 1.0, 0.5][i as usize % 3]).collect();
    let sequences = [
        Sequence::single((0..100_000).collect(), vec![1.0; 100_000]),
        Sequence::single((0..100_000).collect(), long),
        Sequence::single((0..50).collect(), (0..50u8).map(|i| f32::from(i % 2)).collect()),
        Sequence { ids: vec![7; 6], weight: vec![0.0, 1.0, 0.0, 1.0, 0.0, 1.0], segment: vec![0, 0, 1, 1, 2, 2] },
    ];
    let (_dir, store) = stored(&sequences);
    for (index, whole) in sequences.iter().enumerate() {
        for part in [0..3, 1..2, 2..6, 4..usize::MAX, 99_000..99_500] {
            let n = whole.len();
            let range = part.start.min(n)..part.end.min(n);
            let found = store.part(index, part.clone()).expect("undamaged");
            assert_eq!(found.ids, whole.ids[range.clone()], "{index}, {part:?}");
            assert_eq!(found.weight, whole.weight[range.clone()], "{index}, {part:?}");
            assert_eq!(found.segment, whole.segment[range], "{index}, {part:?}");
        }
    }
}
