use std::fmt::Write as _;

use didact_core::message::Role;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;

/// `golden/templates/expected.json`, made by `make.py` beside it with Jinja2 3.1.6 and transformers 5.23.0.
#[derive(Deserialize)]
struct Golden {
    date: String,
    special_tokens: Map<String, Json>,
    conversations: std::collections::BTreeMap<String, Conversation>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Json>,
    #[serde(default)]
    tools: Vec<Tool>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    add_generation_prompt: bool,
    enable_thinking: Option<bool>,
    text: Option<String>,
    #[serde(default)]
    generated: Vec<String>,
    error: Option<String>,
}

fn golden_dir() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/templates")
}

fn message(value: &Json) -> Message {
    let mut value = value.clone();
    for call in value.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
        let function = call["function"].take();
        for (key, item) in function.as_object().expect("a call has a function") {
            call[key] = item.clone();
        }
    }
    serde_json::from_value(value).expect("a message")
}

#[test]
fn rendered_text_equals_python_byte_for_byte() {
    let text = didact_core::files::read_to_string(golden_dir().join("expected.json")).expect("golden file");
    let golden: Golden = serde_json::from_str(&text).expect("golden file parses");
    let special: Vec<_> =
        golden.special_tokens.iter().map(|(k, v)| (k.clone(), v.as_str().expect("text").to_owned())).collect();
    let mut wrong = String::new();
    let mut templates = std::collections::BTreeSet::new();
    for case in &golden.cases {
        templates.insert(case.template.clone());
        let path = golden_dir().join("templates").join(&case.template);
        let source = didact_core::files::read_to_string(path).expect("template");
        let template = match ChatTemplate::new(source, case.template.clone(), special.clone()) {
            Ok(template) => template,
            Err(e) => {
                let _ = writeln!(wrong, "{}: {e}", case.template);
                continue;
            }
        };
        let conversation = &golden.conversations[&case.conversation];
        let messages: Vec<Message> = conversation.messages.iter().map(message).collect();
        let options = RenderOptions {
            add_generation_prompt: case.add_generation_prompt,
            enable_thinking: case.enable_thinking,
            date: golden.date.parse().expect("a date"),
            variables: Map::new(),
        };
        let rendered = template.render_marked(&messages, &conversation.tools, &options);
        let name = format!("{} of {} {:?}", case.template, case.conversation, case.enable_thinking);
        match (rendered, &case.text) {
            (Ok(marked), Some(text)) => {
                if marked.text != *text {
                    let at = marked.text.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
                    let from = at.saturating_sub(30);
                    let part = |s: &str| {
                        String::from_utf8_lossy(&s.as_bytes()[from.min(s.len())..(at + 60).min(s.len())]).into_owned()
                    };
                    let _ = writeln!(wrong, "{name}\n  ours   {:?}\n  python {:?}", part(&marked.text), part(text));
                }
                let generated: Vec<&str> = marked.spans.iter().map(|s| &marked.text[s.clone()]).collect();
                if generated != case.generated {
                    let _ = writeln!(wrong, "{name}: generated {generated:?}, python {:?}", case.generated);
                }
            }
            (Err(_), None) => assert!(case.error.is_some()),
            (Ok(marked), None) => {
                let _ = writeln!(wrong, "{name}: {:?}, but Python refuses: {:?}", marked.text, case.error);
            }
            (Err(e), Some(_)) => {
                let _ = writeln!(wrong, "{name}: {e}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let on_disk = std::fs::read_dir(golden_dir().join("templates")).expect("templates").count();
    assert_eq!(templates.len(), on_disk, "every template in the directory has golden cases");
}

fn chat() -> Vec<Message> {
    vec![Message::new(Role::User, "Hi"), Message::new(Role::Assistant, "Hello")]
}

fn render(source: &str) -> Result<String, DataError> {
    ChatTemplate::new(source, "test", Vec::new())?.render(&chat(), &[], &RenderOptions::default())
}

#[test]
fn a_mistake_names_template_and_line() {
    let error = render("a\n{% if %}").expect_err("not a template").to_string();
    assert!(error.starts_with("chat template of `test`, line 2: "), "{error}");
    let error = render("\n\n{{ messages.foo.bar }}").expect_err("undefined").to_string();
    assert!(error.starts_with("chat template of `test`, line 3: "), "{error}");
}

#[test]
fn a_template_that_refuses_is_quoted() {
    let error = render("{{ raise_exception('Only one turn, please') }}").expect_err("refused").to_string();
    assert_eq!(error, "chat template of `test`, line 1: Only one turn, please");
    let inside = "{% macro m() %}{{ raise_exception('inside') }}{% endmacro %}{{ m() }}";
    assert_eq!(render(inside).expect_err("refused").to_string(), "chat template of `test`, line 1: inside");
    let generated = "{% generation %}{{ raise_exception('in a tag') }}{% endgeneration %}";
    assert_eq!(render(generated).expect_err("refused").to_string(), "chat template of `test`, line 1: in a tag");
}

#[test]
fn runaway_templates_are_stopped() {
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ 'abcdefgh' * 1000000000 }}",
        // Up to 32 additions a list shares its parts and costs nothing until it is printed.
        "{% set ns = namespace(x=[1]) %}{% for a in range(30) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for a in range(30) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x='ab') %}{% for a in range(20) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}\
         {% for a in range(9999) %}{{ ns.x | tojson }}{% endfor %}",
    ] {
        let error = render(source).expect_err(source);
        let is_stopped = matches!(error, DataError::TemplateRunaway { .. } | DataError::TemplateRender { .. });
        assert!(is_stopped, "{source}: {error}");
    }
}

#[test]
fn hostile_templates_fail_without_a_crash() {
    let deep = "{% set ns = namespace(x=[]) %}{% for a in range(50000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let nested_calls = "{% generation %}".repeat(100) + &"{% endgeneration %}".repeat(100);
    let parentheses = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    let lists = format!("{{{{ {}{} }}}}", "[".repeat(5000), "]".repeat(5000));
    let blocks = "{% if true %}".repeat(5000);
    for source in [
        format!("{deep}{{{{ ns.x }}}}"),
        format!("{deep}{{{{ ns.x | tojson }}}}"),
        format!("{deep}{{{{ ns.x | string }}}}"),
        format!("{deep}{{{{ 'a' ~ ns.x }}}}"),
        format!("{deep}{{{{ ns.x == ns.x }}}}"),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{% macro m(x) %}{% generation %}{{ m(x) }}{% endgeneration %}{% endmacro %}{{ m(1) }}".into(),
        "{{ 'a' | indent(99999999999) }}".into(),
        "{{ [1] | tojson(indent=99999999999) }}".into(),
        "{{ strftime_now('%Q %! %') }}".into(),
        "{{ __didact_generation() }}".into(),
        "{{ messages[0].content.split('') }}".into(),
        "{{ '%999999999d' | format(1) }}".into(),
        "{{ 'x'.format(1).replace('', 'y' * 10000) }}".into(),
        "{% include 'chat' %}".into(),
        "{% extends 'chat' %}".into(),
        "{% generation %}".into(),
        "{% endgeneration %}".into(),
        "{{ '\\".into(),
        "{%".into(),
        nested_calls,
        parentheses,
        lists,
        blocks,
    ] {
        // On the stack of a worker thread, which is smaller than the main thread's. What counts is that it comes back.
        let worker = std::thread::Builder::new().stack_size(2 << 20);
        let outcome = worker.spawn(move || render(&source).is_ok()).expect("a thread starts").join();
        assert!(outcome.is_ok());
    }
}

#[test]
fn marks_that_cannot_be_trusted_are_an_error() {
    let trimmed = "{% set x %}{% generation %} a {% endgeneration %}{% endset %}{{ x | trim }}";
    let template = ChatTemplate::new(trimmed, "test", Vec::new()).expect("compiles");
    let error = template.render_marked(&chat(), &[], &RenderOptions::default()).expect_err("changed by trim");
    assert!(error.to_string().contains("{% generation %}"), "{error}");
    assert_eq!(template.render(&chat(), &[], &RenderOptions::default()).expect("renders"), "a");
}

#[test]
fn the_date_stands_still() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}", "test", Vec::new()).expect("compiles");
    let options = RenderOptions { date: jiff::civil::date(2031, 2, 3), ..RenderOptions::default() };
    assert_eq!(template.render(&chat(), &[], &options).expect("renders"), "03 Feb 2031");
}

#[test]
fn further_variables_reach_the_template() {
    let mut options = RenderOptions::default();
    options.variables.insert("effort".into(), "high".into());
    let template = ChatTemplate::new("{{ effort }} {{ missing }}", "test", Vec::new()).expect("compiles");
    assert_eq!(template.render(&chat(), &[], &options).expect("renders"), "high ");
}

#[test]
fn floats_print_as_in_python() {
    for (value, text) in [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (0.1, "0.1"),
        (1e15, "1000000000000000.0"),
        (1e16, "1e+16"),
        (1.5e-7, "1.5e-07"),
        (1e-5, "1e-05"),
        (0.0001, "0.0001"),
        (1e300, "1e+300"),
        (123456789.125, "123456789.125"),
        (f64::INFINITY, "inf"),
        (f64::NAN, "nan"),
    ] {
        assert_eq!(python::float(value), text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Pieces of template syntax in any order: an error or a text, never a panic.
    #[test]
    fn random_templates_never_panic(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{%", "%}", "{#", "#}", "{%-", "-%}", " generation ", " endgeneration ", " raw ", " endraw ",
            " for m in messages ", " endfor ", " if m ", " else ", " endif ", " set x = m ", " m.content ", "[::-1]",
            " messages ", " | tojson", " | trim", "(", ")", "[", "]", "{", "}", "'", "\"", "\\", "\n", "é🦀", " ~ ",
            " macro f(a) ", " endmacro ", " f(1) ", " call f() ", " endcall ", " 1e999 ", " 99999999999999999999 ",
        ]), 0..24)
    ) {
        let source: String = pieces.concat();
        let _ = render(&source);
        if let Ok(template) = ChatTemplate::new(source, "test", Vec::new()) {
            let _ = template.render_marked(&chat(), &[], &RenderOptions::default());
        }
    }

    /// `json.dumps` text is JSON and means the same value.
    #[test]
    fn tojson_is_json(text in "\\PC{0,20}|[\\x00-\\x7f]{0,20}", number in any::<i64>(), float in -1e20f64..1e20) {
        let value = serde_json::json!({"t": text, "n": number, "f": float, "l": [text, null, true, {}]});
        for (ascii, indent) in [(false, None), (true, Some(" "))] {
            let style = python::JsonStyle {
                ensure_ascii: ascii,
                indent: indent.map(str::to_owned),
                item_separator: ", ".into(),
                key_separator: ": ".into(),
                sort_keys: false,
            };
            let environment = environment::build(FUEL);
            let printed = python::json(&environment.empty_state(), &Value::from(Serde(&value)), &style).expect("prints");
            prop_assert_eq!(&serde_json::from_str::<Json>(&printed).expect("parses"), &value);
            prop_assert!(!ascii || printed.is_ascii());
        }
    }
}
