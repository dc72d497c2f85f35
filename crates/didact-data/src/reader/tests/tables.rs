//! Parquet files, written here with the writer of the reference implementation's Rust port.

use super::*;
use arrow::array::{
    ArrayRef, BinaryArray, BooleanBuilder, Date32Array, DictionaryArray, Float32Array, Int64Array, ListArray,
    ListBuilder, MapBuilder, RecordBatch, StringArray, StringBuilder, StringViewArray, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Int32Type};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;
use std::sync::Arc;

pub(super) fn parquet(columns: Vec<(&str, ArrayRef)>, compression: Compression) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let properties =
        WriterProperties::builder().set_compression(compression).set_max_row_group_row_count(Some(3)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).expect("in memory");
    writer.write(&batch).expect("in memory");
    writer.close().expect("in memory");
    bytes
}

fn strings(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

#[test]
fn parquet_is_read_in_every_compression_and_over_row_groups() {
    let dir = folder();
    let all: Vec<String> = (0..300).map(|i| format!("document {i}")).collect();
    let column: ArrayRef = Arc::new(StringArray::from(all.clone()));
    for (i, compression) in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4_RAW,
        Compression::BROTLI(BrotliLevel::default()),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = parquet(vec![("text", Arc::clone(&column))], compression);
        let path = file(&dir, &format!("{i}.parquet"), &bytes);
        assert_eq!(texts(&source(&path)), all, "{compression:?}");
        let rows = read(&source(&file(&dir, &format!("{i}.no-extension"), &bytes))).expect("good rows");
        assert_eq!(rows.iter().map(|row| row.row).collect::<Vec<_>>(), (1..=300).collect::<Vec<_>>());
    }
}

/// `messages` as a list of structs, in which a key that a message does not have is null.
fn conversations() -> ArrayRef {
    let roles: ArrayRef = strings(&["user", "assistant", "user", "assistant"]);
    let contents: ArrayRef = Arc::new(StringArray::from(vec![Some("weather?"), None, Some("hello"), Some("hi")]));
    let call_names: ArrayRef = strings(&["get_weather"]);
    let call_arguments: ArrayRef = strings(&["{\"city\": \"Oslo\"}"]);
    let function_fields =
        Fields::from(vec![Field::new("name", DataType::Utf8, true), Field::new("arguments", DataType::Utf8, true)]);
    let functions: ArrayRef =
        Arc::new(StructArray::new(function_fields.clone(), vec![call_names, call_arguments], None));
    let call_fields = Fields::from(vec![Field::new("function", DataType::Struct(function_fields), true)]);
    let calls = StructArray::new(call_fields.clone(), vec![functions], None);
    let call_lists: ArrayRef = Arc::new(ListArray::new(
        Arc::new(Field::new("item", DataType::Struct(call_fields), true)),
        OffsetBuffer::from_lengths([0, 1, 0, 0]),
        Arc::new(calls),
        Some(vec![false, true, false, false].into()),
    ));
    let turn_fields = Fields::from(vec![
        Field::new("role", DataType::Utf8, true),
        Field::new("content", DataType::Utf8, true),
        Field::new("tool_calls", call_lists.data_type().clone(), true),
    ]);
    let turns = StructArray::new(turn_fields.clone(), vec![roles, contents, call_lists], None);
    Arc::new(ListArray::new(
        Arc::new(Field::new("item", DataType::Struct(turn_fields), true)),
        OffsetBuffer::from_lengths([2, 2]),
        Arc::new(turns),
        None,
    ))
}

#[test]
fn conversations_in_parquet_are_lists_of_structs() {
    let dir = folder();
    let tools = strings(&[r#"[{"name": "get_weather", "parameters": {}}]"#, ""]);
    let bytes = parquet(vec![("messages", conversations()), ("tools", tools)], Compression::SNAPPY);
    let rows = read(&source(&file(&dir, "a.parquet", bytes))).expect("good rows");
    let Example::Chat { messages, tools } = &rows[0].example else { panic!("not a chat") };
    assert_eq!(messages[0], Message::new(Role::User, "weather?"));
    assert_eq!((messages[1].content.as_str(), messages[1].tool_calls[0].name.as_str()), ("", "get_weather"));
    assert_eq!(messages[1].tool_calls[0].arguments["city"], "Oslo");
    assert_eq!(tools.len(), 1);
    let Example::Chat { messages, tools } = &rows[1].example else { panic!("not a chat") };
    assert_eq!(messages[1], Message::new(Role::Assistant, "hi"));
    assert!(tools.is_empty());
}

#[test]
fn a_bad_parquet_row_is_named_by_number_and_key() {
    let dir = folder();
    let column: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c")]));
    let path = file(&dir, "a.parquet", parquet(vec![("text", column)], Compression::SNAPPY));
    let error = read(&source(&path)).expect_err("a null");
    assert_eq!(
        error.to_string(),
        format!("`{}` row 2: `text` is missing, which rows of schema `text` need", path.display())
    );
}

#[test]
fn a_damaged_parquet_file_is_an_error_wherever_it_is_cut_or_flipped() {
    let dir = folder();
    let good = parquet(vec![("text", strings(&["one", "two", "three", "four"]))], Compression::SNAPPY);
    let path = dir.path().join("a.parquet");
    for len in (1..good.len()).step_by(7) {
        write_atomic(&path, &good[..len]).expect("written");
        assert!(read(&source(&path)).is_err(), "cut to {len} bytes");
    }
    // A flipped bit may leave a valid file of another text; it must not crash or hang.
    for at in (0..good.len()).step_by(5) {
        let mut damaged = good.clone();
        damaged[at] ^= 0x10;
        write_atomic(&path, &damaged).expect("written");
        let _ = read(&source(&path));
    }
}

#[test]
fn columns_of_many_types_do_not_stand_in_the_way() {
    let dir = folder();
    let mut flags = BooleanBuilder::new();
    flags.append_value(true);
    let mut lists = ListBuilder::new(StringBuilder::new());
    lists.append_value([Some("x")]);
    let mut maps = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    maps.keys().append_value("k");
    maps.values().append_value("v");
    maps.append(true).expect("one entry");
    let dictionary: DictionaryArray<Int32Type> = ["completion text"].into_iter().collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("prompt", Arc::new(StringViewArray::from(vec!["prompt text"]))),
        ("completion", Arc::new(dictionary)),
        ("score", Arc::new(Float32Array::from(vec![f32::NAN]))),
        ("n", Arc::new(Int64Array::from(vec![3]))),
        ("flag", Arc::new(flags.finish())),
        ("tags", Arc::new(lists.finish())),
        ("more", Arc::new(maps.finish())),
        ("day", Arc::new(Date32Array::from(vec![19_000]))),
        ("image", Arc::new(BinaryArray::from(vec![&[0xff_u8, 0xfe][..]]))),
    ];
    let rows = read(&source(&file(&dir, "a.parquet", parquet(columns, Compression::SNAPPY)))).expect("good rows");
    let expected = Example::Completion { prompt: "prompt text".to_owned(), completion: "completion text".to_owned() };
    assert_eq!(rows[0].example, expected);
}

#[test]
fn long_rows_are_refused_in_parquet_too() {
    let dir = folder();
    let long = "x".repeat(200);
    let mut config =
        source(&file(&dir, "a.parquet", parquet(vec![("text", strings(&["a", &long, "c"]))], Compression::SNAPPY)));
    config.max_row_bytes = 100;
    config.on_bad_row = OnBadRow::Skip;
    let mut stream = open(&config).expect("found");
    assert_eq!(stream.by_ref().map(|row| row.expect("skipped").row).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(stream.bad_rows().listed[0].message, "is longer than 100 bytes");
}
