//! Constrained answers always are what they must be, whoever draws the tokens.

mod common;

use common::{drawn, local_model, request, tokenizer};
use didact_core::cancel::Cancel;
use didact_core::generate::{Answer, Constraint, FinishReason, Generator, Request, RequestError, Sampling};
use didact_infer::{End, LocalGenerator, Options, Samplers};
use didact_kernels::random;
use regex::Regex;
use serde_json::{Value, json};

/// Scores per step: bytes, an unused token, an end of turn and two tokens that the tokenizer does not know.
const VOCAB: usize = 260;

fn samplers() -> Samplers {
    Samplers::new(tokenizer(257), vec![257], VOCAB)
}

/// Closing quotes and brackets are made likelier, or random documents would never end; and numbers get no exponents, which
/// would be beyond all range.
fn constrained(constraint: Constraint, seed: u64) -> Sampling {
    let likelier = b"\"}]),:".map(|byte| (u32::from(byte), 5.0));
    let unlikely = b"eE".map(|byte| (u32::from(byte), -100.0));
    let logit_bias = likelier.into_iter().chain(unlikely).collect();
    Sampling { constraint: Some(constraint), logit_bias, max_tokens: 6000, ..drawn(seed, 1) }
}

/// What random scores write, and whether it ended by itself.
fn write(samplers: &Samplers, sampling: &Sampling) -> (String, bool) {
    let mut sampler = samplers.prepare(sampling).expect("the constraint is fine");
    let (mut ids, mut scores) = (Vec::new(), vec![0.0; VOCAB]);
    let mut is_complete = false;
    while ids.len() < sampling.max_tokens && !is_complete {
        random::fill_normal(sampling.seed * 100_000 + ids.len() as u64, 2.0, &mut scores);
        let choice = sampler.choose(&scores, &[], &ids).expect("the constraint can be kept");
        is_complete = choice.end.is_some();
        if choice.end != Some(End::Before) {
            ids.push(choice.id);
        }
    }
    let bytes = ids.into_iter().map(|id| u8::try_from(id).expect("only bytes may be chosen")).collect();
    (String::from_utf8(bytes).expect("whole characters"), is_complete)
}

fn tree(value: &Value) -> bool {
    value.as_object().is_some_and(|o| o.len() == 1 && (o["left"].is_null() || tree(&o["left"])))
}

#[test]
fn random_documents_match_their_schema() {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["cat", "dog", 7, null]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": false,
    });
    let is_person = |v: &Value| {
        let o = v.as_object().expect("an object");
        let age = o["age"].as_f64().expect("a number");
        o.len() == 3
            && o["name"].as_str().is_some_and(|s| s.chars().count() <= 8)
            && age.fract() == 0.0
            && (0.0..=150.0).contains(&age)
            && [json!("cat"), json!("dog"), json!(7), json!(null)].contains(&o["kind"])
    };
    let numbers = json!({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 4});
    let are_numbers = |v: &Value| {
        let items = v.as_array().expect("an array");
        (2..=4).contains(&items.len()) && items.iter().all(Value::is_number)
    };
    let nested = json!({"$ref": "#/$defs/tree", "$defs": {"tree": {
        "type": "object",
        "properties": {"left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
        "required": ["left"], "additionalProperties": false}}});
    // Text that reads like a special token is text.
    let special = json!({"const": "<end>"});
    let cases: [(Constraint, &dyn Fn(&Value) -> bool); 6] = [
        (Constraint::JsonSchema(person), &is_person),
        (Constraint::JsonSchema(numbers), &are_numbers),
        (Constraint::JsonSchema(nested), &tree),
        (Constraint::JsonSchema(special), &|v| v == "<end>"),
        (Constraint::JsonSchema(json!(true)), &|_| true),
        (Constraint::Json, &Value::is_object),
    ];
    let samplers = samplers();
    for (constraint, is_right) in cases {
        let mut complete = 0;
        for seed in 0..20 {
            let (text, is_complete) = write(&samplers, &constrained(constraint.clone(), seed));
            if is_complete {
                complete += 1;
                let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                assert!(is_right(&value), "{text}");
            }
        }
        assert!(complete >= 15, "{complete} of 20 ended: {constraint:?}");
    }
}

#[test]
fn random_texts_match_their_expression_or_grammar() {
    let list = "start: item (\", \" item)?\nitem: WORD | \"(\" start \")\"\nWORD: /[a-z]{1,5}/\n";
    let cases = [
        (Constraint::Regex(r"[a-zé]{3}-\d{2,4}|no".into()), r"^([a-zé]{3}-\d{2,4}|no)$"),
        (Constraint::Grammar("start: \"a\" (\"b\" | \"c\")+ \"d\"".into()), "^a[bc]+d$"),
        (Constraint::Grammar(list.into()), r"^[a-z(), ]+$"),
    ];
    let samplers = samplers();
    for (constraint, pattern) in cases {
        let pattern = Regex::new(pattern).expect("a pattern");
        let texts: Vec<_> = (0..20).map(|seed| write(&samplers, &constrained(constraint.clone(), seed))).collect();
        assert!(texts.iter().all(|(text, is_complete)| *is_complete && pattern.is_match(text)), "{texts:?}");
        assert!(texts.iter().any(|text| *text != texts[0]));
    }
}

#[test]
fn a_fulfilled_constraint_ends_an_answer_whatever_else_is_asked() {
    let yes = Constraint::JsonSchema(json!({"const": "yes"}));
    // It has no token to end with, and it may not end so early.
    for samplers in [Samplers::new(tokenizer(257), vec![], VOCAB), samplers()] {
        let sampling = Sampling { min_tokens: 50, ..constrained(yes.clone(), 1) };
        assert_eq!(write(&samplers, &sampling), ("\"yes\"".into(), true));
        let anything = constrained(Constraint::Regex("(ab)*".into()), 1);
        let (text, _) = write(&samplers, &Sampling { max_tokens: 40, ..anything });
        assert!(text.as_bytes().chunks(2).all(|pair| pair == b"ab"), "{text}");
        assert_eq!(write(&samplers, &constrained(Constraint::Regex(String::new()), 1)), (String::new(), true));
    }
}

#[test]
fn constraints_that_are_none_are_refused_with_what_is_wrong() {
    let samplers = samplers();
    let text = |constraint: Constraint| {
        let error = samplers.prepare(&constrained(constraint, 0)).expect_err("it is no constraint");
        assert!(matches!(error, RequestError::Constraint { .. }));
        error.to_string()
    };
    let schema = |value: Value| text(Constraint::JsonSchema(value));
    for (text, kind, what) in [
        (schema(json!([1])), "json_schema", "a schema is an object or a boolean, this is `[1]`"),
        (schema(json!({"type": "strin"})), "json_schema", "strin"),
        (schema(json!({"type": "object", "properties": [1]})), "json_schema", "properties"),
        (schema(json!({"type": "array", "uniqueItems": true})), "json_schema", "uniqueItems"),
        (schema(json!({"type": "integer", "minimum": 5, "maximum": 3})), "json_schema", "nsatisfiable"),
        (schema(json!({"$ref": "#/$defs/missing"})), "json_schema", "$defs"),
        (schema(json!(false)), "json_schema", "nsatisfiable"),
        (text(Constraint::Regex("a(b".into())), "regex", "unclosed group"),
        (text(Constraint::Grammar("start: other".into())), "grammar", "other"),
        (text(Constraint::Grammar("start = 5".into())), "grammar", "1"),
    ] {
        assert!(text.starts_with(&format!("`constraint` ({kind}): ")) && text.contains(what), "{text}");
    }
}

fn answer(generator: &LocalGenerator, request: &Request) -> Answer {
    all(generator, std::slice::from_ref(request)).remove(0).expect("the request is fine")
}

fn all(generator: &LocalGenerator, requests: &[Request]) -> Vec<Result<Answer, RequestError>> {
    let completions = generator.generate_all(requests, &Cancel::new()).expect("the generator works");
    let first = |c: Option<Result<_, RequestError>>| {
        c.expect("not cancelled").map(|mut c: didact_core::generate::Completion| c.answers.remove(0))
    };
    completions.into_iter().map(first).collect()
}

#[test]
fn a_model_s_answers_keep_their_constraints_in_any_batch() {
    let generator = LocalGenerator::with_model(local_model("llama"), Options::default()).expect("options are fine");
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1, 2, 3]}, "b": {"type": "boolean"}},
                        "required": ["a", "b"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}});
    let with = |constraint: Constraint, sampling: Sampling| {
        request("hello", Sampling { constraint: Some(constraint), max_tokens: 50, ..sampling })
    };
    let requests = [
        with(Constraint::JsonSchema(schema.clone()), drawn(1, 50)),
        with(Constraint::Regex("[0-9]{4}".into()), Sampling::default()),
        request("hello", drawn(1, 12)),
        with(Constraint::JsonSchema(json!({"type": "nothing"})), drawn(1, 50)),
        with(Constraint::JsonSchema(schema), Sampling::default()),
        with(Constraint::Regex("a+".into()), Sampling { stop: vec!["aaa".into()], ..Sampling::default() }),
    ];
    let together = all(&generator, &requests);
    for (request, together) in requests.iter().zip(&together).filter(|(_, together)| together.is_ok()) {
        assert_eq!(together.as_ref().ok(), Some(&answer(&generator, request)));
    }
    for index in [0, 4] {
        let answer = together[index].as_ref().expect("the request is fine");
        let value: Value = serde_json::from_str(&answer.text).expect("a document");
        assert!([1, 2, 3].contains(&value["a"].as_u64().unwrap_or(0)) && value["b"].is_boolean(), "{}", answer.text);
        assert_eq!(answer.finish_reason, FinishReason::Stop);
        assert_eq!(answer.ids.len(), answer.log_probs.len());
    }
    let digits = &together[1].as_ref().expect("the request is fine").text;
    assert!(digits.len() == 4 && digits.parse::<u32>().is_ok(), "{digits}");
    assert!(together[2].is_ok());
    assert!(together[3].as_ref().is_err_and(|error| error.to_string().contains("nothing")));
    let stopped = together[5].as_ref().expect("the request is fine");
    assert!(stopped.text.is_empty() || "aa".starts_with(&stopped.text), "{}", stopped.text);
}
