use super::*;
use didact_core::cancel::Cancel;
use didact_core::message::ToolCall;
use didact_core::verdict::{Item, Verifier};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn call(name: &str, arguments: Value) -> ToolCall {
    let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
    ToolCall { id: None, name: name.into(), arguments }
}

fn parse(text: &str) -> Vec<ToolCall> {
    parse_calls(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn category(right: &str, found: &str) -> &'static str {
    compare(&parse(right), &parse(found)).category.as_str()
}

#[test]
fn every_notation_gives_the_same_call() {
    let expected = vec![call("book_hotel", json!({"city": "oslo", "nights": 3, "late": true}))];
    for text in [
        "book_hotel(city=oslo, nights=3, late=true)",
        " book_hotel ( city = 'oslo' , nights = 3 , late = True ) ",
        "[book_hotel(city=\"oslo\", nights=3, late=true)]",
        r#"{"name": "book_hotel", "arguments": {"city": "oslo", "nights": 3, "late": true}}"#,
        r#"[{"name": "book_hotel", "parameters": {"city": "oslo", "nights": 3, "late": true}}]"#,
        r#"{"type": "function", "function": {"name": "book_hotel", "arguments": "{\"city\": \"oslo\", \"nights\": 3, \"late\": true}"}}"#,
        "I will book it.\n<tool_call>\n{\"name\": \"book_hotel\", \"arguments\": {\"city\": \"oslo\", \"nights\": 3, \"late\": true}}\n</tool_call>",
        "<tool_call>book_hotel(city=oslo, nights=3, late=true)",
        "```python\nbook_hotel(city=oslo, nights=3, late=true)\n```",
    ] {
        assert_eq!(parse(text), expected, "{text}");
    }
}

#[test]
fn none_and_an_empty_list_make_no_call() {
    for text in ["none", " None ", "[]", "<tool_call>none</tool_call>"] {
        assert_eq!(parse(text), [], "{text}");
    }
}

#[test]
fn several_calls_are_read_from_lists_and_lines() {
    let expected = vec![call("a", json!({})), call("b", json!({"x": 1.5}))];
    for text in ["[a(), b(x=1.5)]", "a()\nb(x=1.5)", "{\"name\":\"a\"}\n{\"name\":\"b\",\"arguments\":{\"x\":1.5}}"] {
        assert_eq!(parse(text), expected, "{text}");
    }
}

#[test]
fn values_keep_their_kinds() {
    let text = r#"f(a=new york, b="4", c=4, d=-2.5, e=null, g=[1, two, [x]], h={k: 'v', "w": 1}, i="say \"hi\"\n", j=007, l="\ud83d\ude00\u00e9\ud83dx")"#;
    let expected = json!({"a": "new york", "b": "4", "c": 4, "d": -2.5, "e": null, "g": [1, "two", ["x"]],
        "h": {"k": "v", "w": 1}, "i": "say \"hi\"\n", "j": "007", "l": "\u{1f600}\u{e9}\u{fffd}x"});
    assert_eq!(parse(text), [call("f", expected)]);
}

#[test]
fn what_is_not_a_call_says_where_and_why() {
    for (text, message) in [
        ("", "byte 0: expected the name of a tool, found the end"),
        ("get_weather", "byte 11: expected `(` after the tool's name, found the end"),
        ("get_weather(city=oslo", "byte 21: expected `,` or `)` after a value, found the end"),
        ("get_weather(oslo)", "byte 16: expected `=` after the argument's name, found `)`"),
        ("get_weather(city=)", "byte 17: expected a value, found `)`"),
        ("get_weather(city=a, city=b)", "byte 19: expected each argument once, found ` city=b)`"),
        ("get_weather(city=oslo) please", "byte 23: expected nothing after the call, found `please`"),
        ("Sure! get_weather(city=oslo)", "byte 4: expected `(` after the tool's name, found `! get_weather(city=o`"),
        ("f(a='x)", "byte 4: expected a closing quote for the string that starts here, found `'x)`"),
        (r#"{"arguments": {}}"#, r#"byte 0: expected `name`, a string, found {"arguments":{}}"#),
        (r#"{"name": "f", "arguments": [1]}"#, "byte 0: expected `arguments`, an object, found [1]"),
    ] {
        assert_eq!(parse_calls(text).expect_err(text).to_string(), message);
    }
    let deep = format!("f(a={})", "[".repeat(100_000));
    assert!(parse_calls(&deep).is_err());
    assert!(parse_calls(&format!("[{}", "{\"a\":".repeat(100_000))).is_err());
}

#[test]
fn each_kind_of_difference_has_its_category() {
    let right = "f(a=1, b=x)";
    for (found, expected) in [
        ("f(b=x, a=1.0)", "exact"),
        ("g(a=1, b=x)", "tool"),
        ("none", "tool"),
        ("[f(a=1, b=x), f(a=1, b=x)]", "tool"),
        ("f(a=1, c=x)", "argument_name"),
        ("f(a=1)", "missing"),
        ("f(a=1, b=x, c=2)", "extra"),
        ("f(a=2, b=x)", "value"),
        ("f(a=\"1\", b=x)", "value"),
        ("f(a=1, b=X)", "value"),
    ] {
        assert_eq!(category(right, found), expected, "{found}");
    }
    assert_eq!(category("none", "f(a=1)"), "tool");
    assert_eq!(category("none", "none"), "exact");
}

#[test]
fn kinds_may_be_loose_when_that_is_asked_for() {
    for (right, found, expected) in [
        ("f(a=1)", "f(a=\"1\")", "exact"),
        ("f(a=\"1\")", "f(a=1.0)", "exact"),
        ("f(a=true)", "f(a=\"True\")", "exact"),
        ("f(a=[1, 2])", "f(a=[\"1\", 2])", "exact"),
        ("f(a=1)", "f(a=\"2\")", "value"),
        ("f(a=x)", "f(a=X)", "value"),
        ("f(a=1)", "f(a=\"one\")", "value"),
        ("f(a=[1])", "f(a=\"[1]\")", "exact"),
    ] {
        let found = compare_types(&parse(right), &parse(found), Types::Loose);
        assert_eq!(found.category.as_str(), expected, "{right}: {}", found.reason);
    }
    let right = json!({"name": "f", "arguments": {"a": 1}});
    assert!(LooseToolCallVerifier.judge(&right, "f(a=\"1\")").is_right());
    assert!(!ToolCallVerifier.judge(&right, "f(a=\"1\")").is_right());
}

#[test]
fn calls_are_paired_so_that_equal_ones_meet() {
    assert_eq!(category("[f(a=1), f(a=2), g()]", "[g(), f(a=2), f(a=1)]"), "exact");
    assert_eq!(category("[f(a=1), f(a=2)]", "[f(a=2), f(a=3)]"), "value");
    assert_eq!(category("[f(a=1), f(a=2)]", "[f(a=3), f()]"), "missing");
}

#[test]
fn reasons_name_the_argument_and_both_values() {
    let reason = |found: &str| compare(&parse("f(a=1, b=x)"), &parse(found)).reason;
    assert_eq!(reason("f(a=2, b=x)"), "`a` is 2, expected 1");
    assert_eq!(reason("f(a=1, c=x)"), "found `c` instead of `b`");
    assert_eq!(reason("none"), "found no call, expected `f`");
}

#[test]
fn verifier_scores_and_tells_a_bad_reference_from_a_bad_answer() {
    let item = |reference: Value| Item { id: "1".into(), prompt: String::new(), reference };
    let items = [
        item(json!("f(a=1)")),
        item(json!({"name": "f", "arguments": {"a": 1}})),
        item(json!([])),
        item(json!([{"arguments": {}}])),
        item(json!("f(a=1)")),
    ];
    let answers = ["f(a=1)", "f(a=2)", "none", "f(a=1)", "well, f"];
    let pairs: Vec<(&Item, &str)> = items.iter().zip(answers).collect();
    let mut verdicts = vec![None; items.len()];
    ToolCallVerifier.verify(&pairs, &mut |i, v| verdicts[i] = Some(v), &Cancel::new()).expect("cannot break");
    let seen: Vec<_> = verdicts.into_iter().flatten().map(|v| (v.score, v.category)).collect();
    let expected = [
        (Some(1.0), "exact"),
        (Some(0.0), "value"),
        (Some(1.0), "exact"),
        (None, "bad_reference"),
        (Some(0.0), "format"),
    ];
    assert_eq!(seen, expected.map(|(s, c)| (s, c.to_owned())));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|n| json!(n)),
        (-1e9..1e9f64).prop_map(|n| json!(n)),
        ".*".prop_map(Value::String),
        "[a-z0-9. ]{0,8}".prop_map(Value::String),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((".{0,5}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #[test]
    fn a_rendered_call_reads_back_as_itself(
        name in "[a-z_][a-z0-9_.-]{0,10}",
        arguments in prop::collection::vec(("[a-z_][a-z0-9_]{0,6}", any_value()), 0..5),
    ) {
        let original = ToolCall { id: None, name, arguments: arguments.into_iter().collect() };
        let text = render_call(&original);
        let found = parse_calls(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        prop_assert_eq!(compare(std::slice::from_ref(&original), &found).category, Category::Exact, "{}", text);
    }

    #[test]
    fn no_text_crashes_the_parser(text in ".*") {
        let _ = parse_calls(&text);
    }

    #[test]
    fn no_near_call_crashes_the_parser(text in "[a(){}\\[\\]=,:'\"\\\\ un0é\n]{0,40}") {
        let _ = parse_calls(&text);
    }
}
