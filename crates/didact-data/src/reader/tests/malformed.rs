//! Fifty files that are wrong in one way each: each gives one error that names the path, the row, the key where there is
//! one, and the cause.

use super::*;
use didact_core::fault::{Classify, Fault};

/// Name, content, row, key, cause.
type Case = (&'static str, Vec<u8>, u64, Option<&'static str>, &'static str);

fn case(name: &'static str, bytes: impl AsRef<[u8]>, row: u64, key: &'static str, cause: &'static str) -> Case {
    (name, bytes.as_ref().to_vec(), row, (!key.is_empty()).then_some(key), cause)
}

/// A row of `messages` whose second turn is `turn`.
fn chat_row(turn: &str) -> String {
    format!(r#"{{"messages": [{{"role": "user", "content": "hi"}}, {turn}]}}"#)
}

/// A row of `messages` with one tool call.
fn call_row(call: &str) -> String {
    chat_row(&format!(r#"{{"role": "assistant", "tool_calls": [{call}]}}"#))
}

/// A good row, then a bad one.
fn second(bad: &str) -> String {
    format!("{{\"text\": \"good\"}}\n{bad}\n")
}

fn cases() -> Vec<Case> {
    let cut_gzip = gzip(TWO_ROWS)[..20].to_vec();
    let mut flipped_gzip = gzip(TWO_ROWS);
    *flipped_gzip.last_mut().expect("not empty") ^= 1;
    let cut_zstd = zstandard(TWO_ROWS)[..20].to_vec();
    vec![
        // Whole files.
        case("empty.jsonl", "", 0, "", "holds no rows"),
        case("blank.jsonl", "\n  \r\n\n", 0, "", "holds no rows"),
        case("empty.json", "[]", 0, "", "holds no rows"),
        case("empty.txt", "", 0, "", "holds no rows"),
        case("blank.txt", " \n\t\n", 0, "", "holds no rows"),
        case("empty.jsonl.gz", gzip(b""), 0, "", "holds no rows"),
        case("empty.jsonl.zst", zstandard(b""), 0, "", "holds no rows"),
        case("empty.parquet", "", 0, "", "holds no rows"),
        case("not.parquet", "this is not a Parquet file at all", 0, "", "cannot be read on"),
        case("not.jsonl.gz", TWO_ROWS, 0, "", "is named as a gzip file but does not begin as one"),
        case("not.jsonl.zst", TWO_ROWS, 0, "", "is named as a Zstandard file but does not begin as one"),
        case("cut.jsonl.gz", cut_gzip, 1, "", "cannot be read on"),
        case("flipped.jsonl.gz", flipped_gzip, 3, "", "cannot be read on"),
        case("cut.jsonl.zst", cut_zstd, 0, "", "cannot be read on"),
        case("utf16.jsonl", b"\xff\xfe{\0\"\0", 0, "", "is UTF-16 text; convert it to UTF-8"),
        // Bytes and JSON.
        case(
            "latin1.jsonl",
            b"{\"text\": \"ok\"}\n{\"text\": \"caf\xe9\"}\n",
            2,
            "",
            "is not valid UTF-8 at byte 28 of the file",
        ),
        case("latin1.txt", b"caf\xe9", 1, "", "is not valid UTF-8 at byte 3 of the file"),
        case("latin1.json", b"[{\"text\": \"caf\xe9\"}]", 1, "", "is not valid UTF-8 at byte 14 of the file"),
        case("cut.jsonl", second("{\"text\": \"cut o"), 2, "", "is not JSON: EOF while parsing a string"),
        case("prose.jsonl", second("hello"), 2, "", "is not JSON: expected value at column 1"),
        case("quotes.jsonl", second("{'text': 'x'}"), 2, "", "is not JSON: key must be a string at column 2"),
        case("comma.jsonl", second("{\"text\": \"x\",}"), 2, "", "is not JSON: trailing comma"),
        case("two.jsonl", second("{\"text\": \"x\"} {\"text\": \"y\"}"), 2, "", "is not JSON: trailing characters"),
        case("nan.jsonl", second("{\"text\": NaN}"), 2, "", "is not JSON: expected value"),
        case("pretty.json", "{\n  \"text\": \"x\"\n}\n", 1, "", "each line holds one JSON object"),
        case("deep.jsonl", second(&"[".repeat(100_000)), 2, "", "is not JSON: recursion limit exceeded"),
        case("number.jsonl", second("42"), 2, "", "is a number, expected an object"),
        case("list.jsonl", second("[\"text\"]"), 2, "", "is a list, expected an object"),
        case(
            "cut.json",
            "[{\"text\": \"a\"}, {\"text\": ",
            2,
            "",
            "breaks the JSON array at byte 25 of the file: the file ends inside an item",
        ),
        case("open.json", "[{\"text\": \"a\"}\n", 1, "", "the file ends"),
        case("after.json", "[{\"text\": \"a\"}] x", 1, "", "something follows its end"),
        case("gap.json", "[{\"text\": \"a\"},, {\"text\": \"b\"}]", 2, "", "an item is missing"),
        case("strings.json", "[\"a\", \"b\"]", 1, "", "is a string, expected an object"),
        // Schemas.
        case("alien.jsonl", r#"{"foo": 1, "bar": 2}"#, 1, "", "has the keys `foo` and `bar` and fits no schema"),
        case("misspelt.jsonl", r#"{"mesages": []}"#, 1, "", "nearest is `messages`, which also needs `messages`"),
        case(
            "half.jsonl",
            r#"{"prompt": "p", "answer": "a"}"#,
            1,
            "",
            "nearest is `prompt_completion`, which also needs `completion`",
        ),
        case("no-output.jsonl", r#"{"instruction": "do"}"#, 1, "", "nearest is `alpaca`, which also needs `output`"),
        case(
            "lacks.jsonl",
            second(r#"{"txt": "x"}"#),
            2,
            "text",
            "is missing, which rows of schema `text` need; did you mean `txt`?",
        ),
        case("null.jsonl", second(r#"{"text": null}"#), 2, "text", "is missing, which rows of schema `text` need"),
        case(
            "mixed.jsonl",
            second(r#"{"prompt": "p", "completion": "c"}"#),
            2,
            "text",
            "this row looks like `prompt_completion`",
        ),
        case("type.jsonl", second(r#"{"text": ["x"]}"#), 2, "text", "is a list, expected a string"),
        case(
            "prompt.jsonl",
            r#"{"prompt": 1, "completion": "c"}"#,
            1,
            "prompt",
            "is a number, expected a string or a list of messages",
        ),
        case(
            "pair.jsonl",
            r#"{"prompt": "p", "completion": ["c"]}"#,
            1,
            "completion",
            "is a list, expected a string, as the prompt is",
        ),
        // Conversations.
        case(
            "none.jsonl",
            r#"{"messages": []}"#,
            1,
            "messages",
            "is an empty list; a conversation has at least one message",
        ),
        case("string.jsonl", r#"{"messages": "hi"}"#, 1, "messages", "is a string, expected a list"),
        case("turn.jsonl", chat_row("\"hi\""), 1, "messages[1]", "is a string, expected an object"),
        case(
            "role.jsonl",
            chat_row(r#"{"role": "asistant", "content": "x"}"#),
            1,
            "messages[1].role",
            "is `asistant`, expected one of system, user, assistant, tool",
        ),
        case(
            "roleless.jsonl",
            chat_row(r#"{"content": "x"}"#),
            1,
            "messages[1].role",
            "is missing, which rows of schema `messages` need",
        ),
        case("silent.jsonl", chat_row(r#"{"role": "assistant"}"#), 1, "messages[1].content", "is missing"),
        case(
            "content.jsonl",
            chat_row(r#"{"role": "assistant", "content": 5}"#),
            1,
            "messages[1].content",
            "is a number, expected a string or a list of text parts",
        ),
        case(
            "image.jsonl",
            chat_row(r#"{"role": "assistant", "content": [{"type": "image_url"}]}"#),
            1,
            "messages[1].content[0].type",
            "parts of type `image_url` cannot be read; only text can",
        ),
        case(
            "name.jsonl",
            chat_row(r#"{"role": "assistant", "content": "x", "name": 1}"#),
            1,
            "messages[1].name",
            "is a number, expected a string",
        ),
        case(
            "train.jsonl",
            chat_row(r#"{"role": "assistant", "content": "x", "train": "yes"}"#),
            1,
            "messages[1].train",
            "is a string, expected true or false",
        ),
        case(
            "weight.jsonl",
            chat_row(r#"{"role": "assistant", "content": "x", "weight": -1}"#),
            1,
            "messages[1].weight",
            "a loss weight is a finite number not below 0, found -1",
        ),
        case(
            "mask.jsonl",
            chat_row(r#"{"role": "assistant", "content": "x", "loss_mask": 2}"#),
            1,
            "messages[1].loss_mask",
            "a loss mask is 0 or 1, found 2",
        ),
        case(
            "both.jsonl",
            chat_row(r#"{"role": "assistant", "content": "x", "weight": 1, "train": false}"#),
            1,
            "messages[1].train",
            "contradicts `weight` of the same message",
        ),
        // Tools.
        case(
            "user-call.jsonl",
            chat_row(r#"{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}"#),
            1,
            "messages[1].tool_calls",
            "only an assistant calls tools, not `user`",
        ),
        case(
            "nameless.jsonl",
            call_row(r#"{"function": {"arguments": {}}}"#),
            1,
            "messages[1].tool_calls[0].function.name",
            "is missing",
        ),
        case(
            "call-type.jsonl",
            call_row(r#"{"type": "code", "name": "f"}"#),
            1,
            "messages[1].tool_calls[0].type",
            "only calls of type `function` can be read, found `code`",
        ),
        case(
            "arguments.jsonl",
            call_row(r#"{"name": "f", "arguments": "{a: 1}"}"#),
            1,
            "messages[1].tool_calls[0].arguments",
            "should hold JSON: key must be a string",
        ),
        case(
            "positional.jsonl",
            call_row(r#"{"name": "f", "arguments": [1]}"#),
            1,
            "messages[1].tool_calls[0].arguments",
            "is a list, expected an object, or a string that holds one as JSON",
        ),
        case(
            "tools.jsonl",
            r#"{"messages": [{"role": "user", "content": "x"}], "tools": "[{]"}"#,
            1,
            "tools",
            "should hold JSON",
        ),
        case(
            "tool.jsonl",
            r#"{"messages": [{"role": "user", "content": "x"}], "tools": [{"description": "d"}]}"#,
            1,
            "tools[0].name",
            "is missing",
        ),
        // Other tools' layouts.
        case(
            "from.jsonl",
            r#"{"conversations": [{"from": "robot", "value": "x"}]}"#,
            1,
            "conversations[0].from",
            "is `robot`, expected one of system, human, gpt, function_call, observation",
        ),
        case(
            "value.jsonl",
            r#"{"conversations": [{"from": "human", "text": "x"}]}"#,
            1,
            "conversations[0].value",
            "is missing, which rows of schema `sharegpt` need",
        ),
        case(
            "function_call.jsonl",
            r#"{"conversations": [{"from": "function_call", "value": "f(1)"}]}"#,
            1,
            "conversations[0].value",
            "should hold JSON",
        ),
        case(
            "history.jsonl",
            r#"{"instruction": "i", "output": "o", "history": [["q"]]}"#,
            1,
            "history[0]",
            "expected a pair of strings",
        ),
    ]
}

/// What is not as it should be about the errors of one file.
fn shortcomings(path: &Path, (name, _, row, key, cause): &Case) -> Option<String> {
    let errors: Vec<RowError> = open(&source(path)).expect("the file is there").filter_map(Result::err).collect();
    let [error] = &errors[..] else { return Some(format!("{name}: {} errors: {errors:?}", errors.len())) };
    let text = error.to_string();
    let is_right = error.path == path.to_str().expect("UTF-8")
        && (error.row, error.key.as_deref()) == (*row, *key)
        && text.starts_with(&format!("`{}`", path.display()))
        && text.contains(cause)
        && text.len() < 400
        && error.fault() == Fault::Input;
    (!is_right).then(|| {
        format!("{name}: row {}, key {:?}: {text}\n    expected row {row}, key {key:?}: {cause}", error.row, error.key)
    })
}

#[test]
fn fifty_malformed_files_each_give_one_error_that_names_path_row_key_and_cause() {
    let dir = folder();
    let cases = cases();
    assert!(cases.len() >= 50, "{} cases", cases.len());
    let wrong: Vec<String> = cases.iter().filter_map(|case| shortcomings(&file(&dir, case.0, &case.1), case)).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn a_hostile_row_cannot_flood_a_message() {
    let dir = folder();
    let keys: Vec<String> = (0..1000).map(|i| format!("\"{}{i}\": 1", "k".repeat(1000))).collect();
    let path = file(&dir, "a.jsonl", format!("{{{}}}", keys.join(",")));
    let text = read(&source(&path)).expect_err("no schema").to_string();
    assert!(text.len() < 1500, "{} bytes", text.len());
}
