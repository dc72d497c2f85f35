use super::*;
use didact_core::files::{create_dir_all, write_atomic};
use didact_core::message::{Message, Role};
use std::io::Write as _;
use std::path::{Path, PathBuf};

mod malformed;
mod tables;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn file(dir: &tempfile::TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    create_dir_all(path.parent().expect("a parent")).expect("created");
    write_atomic(&path, bytes.as_ref()).expect("written");
    path
}

fn source(path: &Path) -> SourceConfig {
    SourceConfig::new(path.to_str().expect("a UTF-8 path"))
}

fn read(config: &SourceConfig) -> Result<Vec<SourcedExample>, RowError> {
    open(config).expect("found").collect()
}

fn texts(config: &SourceConfig) -> Vec<String> {
    let text = |row: SourcedExample| match row.example {
        Example::Text { text } => text,
        other => panic!("not text: {other:?}"),
    };
    read(config).expect("good rows").into_iter().map(text).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

fn zstandard(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("in memory")
}

const TWO_ROWS: &[u8] = b"{\"text\": \"one\"}\n{\"text\": \"two\"}\n";

#[test]
fn jsonl_is_read_plain_and_compressed_whatever_its_name_says_of_it() {
    let dir = folder();
    for (name, bytes) in [
        ("a.jsonl", TWO_ROWS.to_vec()),
        ("a.ndjson", TWO_ROWS.to_vec()),
        ("a.jsonl.gz", gzip(TWO_ROWS)),
        ("a.jsonl.zst", zstandard(TWO_ROWS)),
        ("unnamed", TWO_ROWS.to_vec()),
        ("unnamed-gzip", gzip(TWO_ROWS)),
        ("secretly-zstd.jsonl", zstandard(TWO_ROWS)),
        ("array.json", b" [ {\"text\": \"one\"} ,\n {\"text\": \"two\"}\n ]\n".to_vec()),
        ("array.json.gz", gzip(b"[{\"text\":\"one\"},{\"text\":\"two\"}]")),
    ] {
        assert_eq!(texts(&source(&file(&dir, name, bytes))), ["one", "two"], "{name}");
    }
}

#[test]
fn compressed_files_made_of_several_pieces_are_read_to_the_end() {
    let dir = folder();
    let (one, two) = TWO_ROWS.split_at(16);
    assert_eq!(texts(&source(&file(&dir, "a.jsonl.gz", [gzip(one), gzip(two)].concat()))), ["one", "two"]);
    assert_eq!(texts(&source(&file(&dir, "a.jsonl.zst", [zstandard(one), zstandard(two)].concat()))), ["one", "two"]);
}

#[test]
fn marks_line_ends_and_blank_lines_are_no_content() {
    let dir = folder();
    let path = file(&dir, "a.jsonl", b"\xef\xbb\xbf{\"text\": \"one\"}\r\n\r\n   \n{\"text\": \"two\"}");
    let rows = read(&source(&path)).expect("good rows");
    assert_eq!(rows.iter().map(|row| row.row).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(texts(&source(&path)), ["one", "two"]);
}

#[test]
fn array_items_may_hold_brackets_and_quotes_in_strings() {
    let dir = folder();
    let text = r#"[{"text": "a ] b \" , {"}, {"text": "[\\"}]"#;
    assert_eq!(texts(&source(&file(&dir, "a.json", text))), ["a ] b \" , {", "[\\"]);
}

#[test]
fn text_files_are_cut_as_asked() {
    let dir = folder();
    let path = file(&dir, "a.txt", "one\r\nmore\n\n \ntwo\n");
    let mut config = source(&path);
    assert_eq!(texts(&config), ["one\nmore\n\n \ntwo\n"]);
    config.text_unit = TextUnit::Paragraph;
    assert_eq!(texts(&config), ["one\nmore", "two"]);
    config.text_unit = TextUnit::Line;
    assert_eq!(texts(&config), ["one", "more", "two"]);
}

#[test]
fn folders_and_globs_are_sorted_and_each_file_is_read_once() {
    let dir = folder();
    for name in ["b.txt", "a.txt", "deep/c.txt", ".hidden.txt", "notes.pdf", "deep/.git/d.txt"] {
        file(&dir, name, name);
    }
    let root = dir.path().to_str().expect("UTF-8");
    assert_eq!(texts(&SourceConfig::new(root)), ["a.txt", "b.txt", "deep/c.txt"]);
    assert_eq!(texts(&SourceConfig::new(format!("{root}/*.txt"))), ["a.txt", "b.txt"]);
    let mut both = SourceConfig::new(format!("{root}/b.txt"));
    both.path.push(format!("{root}/**/*.txt"));
    assert_eq!(texts(&both), ["b.txt", "a.txt", "deep/c.txt"]);
}

#[test]
fn paths_that_lead_nowhere_are_refused_by_name() {
    let dir = folder();
    let root = dir.path().to_str().expect("UTF-8");
    file(&dir, "picture.png", b"\x89PNG\r\n");
    create_dir_all(dir.path().join("empty")).expect("created");
    file(&dir, "a.txt", "x");
    let fails = |path: String| open(&SourceConfig::new(path)).expect_err("nothing to read").to_string();
    assert_eq!(fails(format!("{root}/no.jsonl")), format!("`{root}/no.jsonl` does not exist"));
    assert_eq!(fails(format!("{root}/*.csv")), format!("no file matches `{root}/*.csv`"));
    assert!(fails(format!("{root}/[")).starts_with(&format!("`{root}/[` is not a valid pattern: ")));
    assert!(fails(format!("{root}/empty")).starts_with(&format!("folder `{root}/empty` holds no data file")));
    assert!(
        fails(format!("{root}/picture.png")).starts_with(&format!("cannot tell how `{root}/picture.png` is written"))
    );
    let named = SourceConfig { schema: Some(Schema::PromptCompletion), ..SourceConfig::new(format!("{root}/a.txt")) };
    assert_eq!(
        open(&named).expect_err("no keys").to_string(),
        format!(
            "`{root}/a.txt` is plain text, which has no keys; schema `prompt_completion` needs `prompt` and `completion`"
        )
    );
    let none = SourceConfig { path: Vec::new(), ..SourceConfig::new("") };
    assert_eq!(open(&none).expect_err("no path").to_string(), "the data source names no path");
}

#[test]
fn bad_rows_stop_the_stream_or_are_counted_and_listed() {
    let dir = folder();
    let path = file(&dir, "a.jsonl", "{\"text\": \"one\"}\n{\"text\": 2}\nnot json\n{\"text\": \"four\"}\n");
    let mut config = source(&path);
    let mut stream = open(&config).expect("found");
    assert!(stream.next().expect("a row").is_ok());
    assert_eq!(stream.next().expect("a row").expect_err("bad").row, 2);
    assert!(stream.next().is_none(), "the first bad row ends the stream");
    config.on_bad_row = OnBadRow::Skip;
    let mut stream = open(&config).expect("found");
    let good: Vec<u64> = stream.by_ref().map(|row| row.expect("skipped").row).collect();
    assert_eq!(good, [1, 4]);
    assert_eq!((stream.rows(), stream.bad_rows().count), (4, 2));
    assert_eq!(stream.bad_rows().listed[0].key.as_deref(), Some("text"));
    assert_eq!(stream.bad_rows().listed[0].message, "is a number, expected a string");
    assert_eq!(stream.bad_rows().table().rows.len(), 2);
}

#[test]
fn damage_of_a_whole_file_is_never_skipped() {
    let dir = folder();
    let mut bytes = gzip(&TWO_ROWS.repeat(5000));
    bytes.truncate(bytes.len() / 2);
    let mut config = source(&file(&dir, "a.jsonl.gz", bytes));
    config.on_bad_row = OnBadRow::Skip;
    let last = open(&config).expect("found").last().expect("an item").expect_err("cut off");
    assert!(matches!(last.cause, RowCause::Unreadable(_)), "{last}");
}

#[test]
fn the_listing_of_bad_rows_is_bounded() {
    let dir = folder();
    let mut config = source(&file(&dir, "a.jsonl", "[1]\n".repeat(3) + &"{}\n".repeat(500)));
    config.format = Some(Format::Jsonl);
    config.on_bad_row = OnBadRow::Skip;
    config.path = vec![file(&dir, "b.jsonl", "{}\n".repeat(500)).to_str().expect("UTF-8").to_owned()];
    let mut stream = open(&config).expect("found");
    assert!(stream.by_ref().next().is_none());
    assert_eq!((stream.bad_rows().count, stream.bad_rows().listed.len()), (500, LISTED_BAD_ROWS));
}

#[test]
fn long_lines_are_passed_over_without_being_held() {
    let dir = folder();
    let long = format!("{{\"text\": \"{}\"}}", "x".repeat(1000));
    let mut config =
        source(&file(&dir, "a.jsonl", format!("{{\"text\": \"one\"}}\n{long}\n{{\"text\": \"three\"}}\n")));
    config.max_row_bytes = 100;
    config.on_bad_row = OnBadRow::Skip;
    let mut stream = open(&config).expect("found");
    let good: Vec<u64> = stream.by_ref().map(|row| row.expect("skipped").row).collect();
    assert_eq!(good, [1, 3]);
    assert_eq!(stream.bad_rows().listed[0].message, "is longer than 100 bytes");
    config.path =
        vec![file(&dir, "b.json", format!("[{long}, {{\"text\": \"two\"}}]")).to_str().expect("UTF-8").to_owned()];
    let mut stream = open(&config).expect("found");
    assert_eq!(stream.by_ref().map(|row| row.expect("skipped").row).collect::<Vec<_>>(), [2]);
}

#[test]
fn detection_says_what_it_chose_and_from_which_keys() {
    let dir = folder();
    file(&dir, "a.jsonl", r#"{"messages": [{"role": "user", "content": "hi", "mood": "good"}], "id": 7}"#);
    file(&dir, "b.jsonl", r#"{"messages": [{"role": "user", "content": "hi", "mood": "good"}], "id": 8}"#);
    file(&dir, "c.jsonl", r#"{"instruction": "do", "output": "done"}"#);
    let mut stream = open(&source(dir.path())).expect("found");
    assert_eq!(stream.by_ref().flatten().count(), 3);
    let said: Vec<String> = stream.detections().iter().map(ToString::to_string).collect();
    let root = dir.path().display();
    assert_eq!(
        said,
        [
            format!(
                "schema `messages`, recognised, from `messages` of `{root}/a.jsonl` and 1 more like it; not read: `id` and `messages[].mood`"
            ),
            format!("schema `alpaca`, recognised, from `instruction` and `output` of `{root}/c.jsonl`"),
        ]
    );
}

#[test]
fn keys_may_have_other_names() {
    let dir = folder();
    let mut config = source(&file(&dir, "a.jsonl", r#"{"question": "q", "answer": "a"}"#));
    config.fields.prompt = Some("question".to_owned());
    config.fields.completion = Some("answer".to_owned());
    let rows = read(&config).expect("good rows");
    assert_eq!(rows[0].example, Example::Completion { prompt: "q".to_owned(), completion: "a".to_owned() });
    assert_eq!(rows[0].source, "a.jsonl");
}

#[test]
fn a_named_schema_is_kept_to() {
    let dir = folder();
    let mut config = source(&file(&dir, "a.jsonl", r#"{"text": "t", "prompt": "p", "completion": "c"}"#));
    assert!(matches!(read(&config).expect("good")[0].example, Example::Completion { .. }));
    config.schema = Some(Schema::Text);
    assert_eq!(texts(&config), ["t"]);
}

#[test]
fn a_source_is_written_in_a_recipe_as_a_path_or_several() {
    let one: SourceConfig =
        serde_json::from_str(r#"{"path": "a.jsonl", "on_bad_row": "skip", "schema": "sharegpt"}"#).expect("valid");
    assert_eq!((one.path.len(), one.on_bad_row, one.schema), (1, OnBadRow::Skip, Some(Schema::ShareGpt)));
    let two: SourceConfig = serde_json::from_str(r#"{"path": ["a", "b"]}"#).expect("valid");
    assert_eq!(two.path, ["a", "b"]);
    assert!(serde_json::from_str::<SourceConfig>(r#"{"path": "a", "on_bad_rows": "skip"}"#).is_err());
}

fn chat(config: &SourceConfig) -> Vec<Message> {
    match read(config).expect("good rows").remove(0).example {
        Example::Chat { messages, .. } => messages,
        other => panic!("not a chat: {other:?}"),
    }
}

#[test]
fn memory_does_not_grow_with_the_number_of_rows() {
    let dir = folder();
    let path = file(&dir, "a.jsonl.zst", zstandard(&TWO_ROWS.repeat(100_000)));
    let mut stream = open(&source(&path)).expect("found");
    assert_eq!(stream.by_ref().map(|row| row.expect("good").row).last(), Some(200_000));
    assert_eq!((stream.detections().len(), stream.files()), (1, 1));
    let first = chat(&source(&file(&dir, "c.jsonl", r#"{"messages": [{"role": "user", "content": "x"}]}"#)));
    assert_eq!(first[0].role, Role::User);
}
