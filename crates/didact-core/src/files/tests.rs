use super::*;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn map(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = list_dir(dir).expect("lists");
    entries.iter().map(|p| p.file_name().expect("a name").to_string_lossy().into_owned()).collect()
}

#[test]
fn an_atomic_file_is_invisible_until_committed_and_leaves_nothing_when_dropped() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.json");
    write_atomic(&path, b"old").expect("writes");
    let mut file = AtomicFile::create(&path).expect("creates");
    file.write_all(b"new").expect("writes");
    assert_eq!(read(&path).expect("reads"), b"old");
    drop(file);
    assert_eq!(names(dir.path()), ["a.json"]);
    let mut file = AtomicFile::create(&path).expect("creates");
    file.write_all(b"new").expect("writes");
    file.commit().expect("commits");
    assert_eq!(read_to_string(&path).expect("reads"), "new");
    assert_eq!(names(dir.path()), ["a.json"]);
}

#[test]
fn a_copy_has_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a directory");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    write_atomic(dir.path().join("a"), &bytes).expect("writes");
    copy_atomic(dir.path().join("a"), dir.path().join("b")).expect("copies");
    assert_eq!(read(dir.path().join("b")).expect("reads"), bytes);
}

#[test]
fn a_published_directory_appears_whole_under_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let work = dir.path().join("x.work");
    create_dir_all(work.join("inner/deep")).expect("creates");
    write_atomic(work.join("inner/deep/f"), b"1").expect("writes");
    publish_dir(&work, dir.path().join("x")).expect("publishes");
    assert_eq!(names(dir.path()), ["x"]);
    assert_eq!(read(dir.path().join("x/inner/deep/f")).expect("reads"), b"1");
}

#[test]
fn a_directory_is_not_published_over_a_full_one() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["work", "final"] {
        create_dir_all(dir.path().join(name)).expect("creates");
        write_atomic(dir.path().join(name).join("f"), name.as_bytes()).expect("writes");
    }
    publish_dir(dir.path().join("work"), dir.path().join("final")).expect_err("the name is taken");
    assert_eq!(read(dir.path().join("final/f")).expect("reads"), b"final");
    assert_eq!(read(dir.path().join("work/f")).expect("reads"), b"work");
}

#[test]
fn leftovers_of_killed_processes_are_swept_and_other_hidden_files_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    create_dir_all(dir.path().join("inner")).expect("creates");
    for name in [".a.json.17-0.didact-tmp", "inner/.b.17-1.didact-tmp", ".key", "inner/b"] {
        write_atomic(dir.path().join(name), b"").expect("writes");
    }
    sweep(dir.path()).expect("sweeps");
    assert_eq!(names(dir.path()), [".key", "inner"]);
    assert_eq!(names(&dir.path().join("inner")), ["b"]);
}

#[test]
fn discarding_and_removing_what_is_not_there_is_fine() {
    let dir = tempfile::tempdir().expect("a directory");
    discard_dir(dir.path().join("x")).expect("nothing to do");
    remove_file(dir.path().join("x")).expect("nothing to do");
    remove_dir_all(dir.path().join("x")).expect("nothing to do");
    create_dir_all(dir.path().join("x/y")).expect("creates");
    discard_dir(dir.path().join("x")).expect("discards");
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn errors_name_action_path_and_cause() {
    let error = read("/nowhere/at/all").expect_err("is not there");
    assert_eq!(error.to_string(), "cannot read `/nowhere/at/all`: No such file or directory (os error 2)");
    assert_eq!(error.fault(), Fault::Input);
    assert!(error.hint().is_some());
    let error = write_atomic("/nowhere/at/all", b"").expect_err("cannot be created");
    assert_eq!(error.fault(), Fault::Running);
}

#[test]
fn an_append_log_gives_back_its_records() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log.jsonl");
    let (mut log, found) = AppendLog::open(&path).expect("opens");
    assert_eq!(found, Recovered::default());
    let records =
        [map(json!({"step": 1, "loss": 0.1})), map(json!({})), map(json!({"text": "a\n\"crc\":\"", "x": null}))];
    for record in &records {
        log.append(record).expect("appends");
    }
    log.sync().expect("syncs");
    drop(log);
    let (_, found) = AppendLog::open(&path).expect("opens");
    assert_eq!(found, Recovered { records: records.to_vec(), torn_bytes: 0 });
}

#[test]
fn a_log_torn_at_any_byte_keeps_exactly_the_whole_records_and_can_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log.jsonl");
    let (mut log, _) = AppendLog::open(&path).expect("opens");
    let record = |step: u64| map(json!({"stage": "train", "step": step, "loss": 1.0 / step as f64}));
    for step in 1..=3 {
        log.append(&record(step)).expect("appends");
    }
    drop(log);
    let whole = read(&path).expect("reads");
    for length in 0..whole.len() {
        write_atomic(&path, &whole[..length]).expect("writes");
        let lines = whole[..length].split(|&b| b == b'\n').count() as u64 - 1;
        let (mut log, found) = AppendLog::open(&path).expect("opens");
        assert_eq!(found.records, (1..=lines).map(record).collect::<Vec<_>>(), "cut at {length}");
        for step in lines + 1..=3 {
            log.append(&record(step)).expect("appends");
        }
        assert_eq!(read(&path).expect("reads"), whole, "cut at {length}");
    }
}

#[test]
fn a_flipped_bit_ends_the_log_before_the_damaged_record() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log.jsonl");
    let (mut log, _) = AppendLog::open(&path).expect("opens");
    for step in 1..=3_u64 {
        log.append(&map(json!({"step": step}))).expect("appends");
    }
    drop(log);
    let whole = read(&path).expect("reads");
    let line = whole.len() / 3;
    for bit in line * 8..line * 16 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        write_atomic(&path, &damaged).expect("writes");
        let found = AppendLog::read(&path).expect("reads");
        assert_eq!(found.records.len(), 1, "bit {bit}");
        assert_eq!(found.torn_bytes as usize, whole.len() - line);
    }
}

#[test]
fn records_are_removed_by_what_they_say() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log.jsonl");
    let (mut log, _) = AppendLog::open(&path).expect("opens");
    for step in 1..=5_u64 {
        log.append(&map(json!({"step": step}))).expect("appends");
    }
    drop(log);
    let cut = AppendLog::remove_where(&path, |record| record["step"].as_u64() > Some(3)).expect("cuts");
    let steps: Vec<_> = AppendLog::read(&path).expect("reads").records.iter().map(|r| r["step"].as_u64()).collect();
    assert_eq!((cut, steps), (2, vec![Some(1), Some(2), Some(3)]));
    assert_eq!(AppendLog::remove_where(dir.path().join("none"), |_| true).expect("nothing to do"), 0);
}

proptest! {
    #[test]
    fn any_json_record_survives_the_log(text in ".*", number in any::<f64>(), integer in any::<i64>()) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log.jsonl");
        let record = map(json!({text.as_str(): number, "integer": integer, "list": [text, {"crc": 1}]}));
        prop_assume!(!record.contains_key("crc"));
        let (mut log, _) = AppendLog::open(&path).expect("opens");
        log.append(&record).expect("appends");
        prop_assert_eq!(AppendLog::read(&path).expect("reads").records, vec![record]);
    }
}
