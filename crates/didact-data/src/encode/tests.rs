use std::path::Path;

use didact_core::message::{Message, Tool, ToolCall};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const CHATML: &str = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}\
                      {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}";

fn tokenizer(template: &str) -> Tokenizer {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let source = match template.strip_suffix(".jinja") {
        Some(_) => didact_core::files::read_to_string(golden.join("templates/templates").join(template)).expect("file"),
        None => template.to_owned(),
    };
    let tokenizer = Tokenizer::open(golden.join("tokenizers/smollm.gguf")).expect("a golden tokenizer");
    tokenizer.with_template(&source, template).expect("compiles")
}

fn sourced(example: Example) -> SourcedExample {
    SourcedExample { example, source: "s".into(), path: "rows.jsonl".into(), row: 7 }
}

fn user(text: &str) -> Message {
    Message::new(Role::User, text)
}

fn assistant(text: &str) -> Message {
    Message::new(Role::Assistant, text)
}

fn chat(messages: Vec<Message>) -> SourcedExample {
    sourced(Example::Chat { messages, tools: Vec::new() })
}

fn encode(template: &str, options: EncodeOptions, example: &SourcedExample) -> Result<Vec<Encoded>, DataError> {
    let tokenizer = tokenizer(template);
    Encoder::new(&tokenizer, options)?.encode(example)
}

/// The texts of a sequence: what is trained in brackets.
fn marked(template: &str, encoded: &Encoded) -> String {
    let tokenizer = tokenizer(template);
    let mut out = String::new();
    let mut is_open = false;
    for piece in encoded.pieces(&tokenizer).expect("decodes") {
        let is_trained = piece.weight != 0.0;
        if is_trained != is_open {
            out.push(if is_trained { '[' } else { ']' });
            is_open = is_trained;
        }
        out.push_str(&piece.text);
    }
    if is_open {
        out.push(']');
    }
    out
}

fn marks(template: &str, options: EncodeOptions, example: &SourcedExample) -> Vec<String> {
    let encoded = encode(template, options, example).expect("encodes");
    encoded.iter().map(|e| marked(template, e)).collect()
}

#[test]
fn answers_are_trained_with_the_end_of_their_turn_and_nothing_else() {
    let example = chat(vec![
        Message::new(Role::System, "Short."),
        user("Hi"),
        assistant("Hello there"),
        user("Bye"),
        assistant("See you"),
    ]);
    let encoded = encode(CHATML, EncodeOptions::default(), &example).expect("encodes");
    assert_eq!(encoded.len(), 1);
    assert_eq!(
        marked(CHATML, &encoded[0]),
        "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\
         [Hello there<|im_end|>]\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[See you<|im_end|>]\n"
    );
    assert_eq!(encoded[0].end_of_turn_trained, Some(true));
    assert_eq!((encoded[0].straddling, encoded[0].part), (0, (0, 1)));
    let roles: Vec<(TokenRole, String)> =
        encoded[0].pieces(&tokenizer(CHATML)).expect("decodes").into_iter().map(|p| (p.role, p.text)).collect();
    let of = |role| roles.iter().filter(|r| r.0 == role).map(|r| r.1.as_str()).collect::<Vec<_>>();
    assert_eq!(of(TokenRole::System), ["Short."]);
    assert_eq!(of(TokenRole::User), ["Hi", "Bye"]);
    assert_eq!(of(TokenRole::Assistant), ["Hello there<|im_end|>", "See you<|im_end|>"]);
    assert_eq!(of(TokenRole::Template)[0], "<|im_start|>system\n");
}

#[test]
fn an_answer_that_repeats_the_question_is_still_the_answer() {
    let example = chat(vec![user("assistant"), assistant("assistant"), user("<|im_end|>"), assistant("user")]);
    assert_eq!(
        marks(CHATML, EncodeOptions::default(), &example),
        ["<|im_start|>user\nassistant<|im_end|>\n<|im_start|>assistant\n[assistant<|im_end|>]\n\
          <|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n[user<|im_end|>]\n"]
    );
}

#[test]
fn the_real_templates_train_what_the_model_writes() {
    let two = chat(vec![user("Hi"), assistant("Hello"), user("Bye"), assistant("Ciao")]);
    for (template, expected) in [
        (
            "smollm2.jinja",
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
             <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Hello<|im_end|>]\n\
             <|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[Ciao<|im_end|>]\n",
        ),
        // Its tags leave the end of the turn inside.
        (
            "chatml_generation.jinja",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Hello<|im_end|>]\n\
             <|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[Ciao<|im_end|>]\n",
        ),
    ] {
        assert_eq!(marks(template, EncodeOptions::default(), &two), [expected], "{template}");
        let encoded = encode(template, EncodeOptions::default(), &two).expect("encodes");
        assert_eq!(encoded[0].end_of_turn_trained, Some(true), "{template}");
    }
}

/// The golden tokenizer with the special tokens of other families.
fn tokenizer_of_family(template: &str, special: &[&str]) -> Tokenizer {
    let base = tokenizer(template);
    let mut inner = base.inner().clone();
    let tokens = special.iter().map(|&t| tokenizers::AddedToken::from(t, true).normalized(false));
    inner.add_special_tokens(tokens).expect("tokens are added");
    let roles = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(role, text)| (role.to_owned(), text.to_owned()));
    let tokenizer = Tokenizer::from_parts(inner, roles.into()).expect("a tokenizer");
    tokenizer.with_template(base.template().expect("a template").source(), template).expect("compiles")
}

#[test]
fn every_family_trains_the_answer_and_the_token_that_ends_it() {
    let example = chat(vec![user("Hi"), assistant("Hello"), user("Bye"), assistant("Ciao")]);
    for (template, ends) in [
        ("chatml.jinja", "<|im_end|>"),
        ("smollm2.jinja", "<|im_end|>"),
        ("chatml_generation.jinja", "<|im_end|>"),
        ("qwen2_tools.jinja", "<|im_end|>"),
        ("llama32_tools.jinja", "<|eot_id|>"),
        ("mistral_tools.jinja", "</s>"),
        ("gemma.jinja", "<end_of_turn>"),
        ("phi3.jinja", "<|end|>"),
    ] {
        let special = ["<s>", "</s>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|assistant|>", "<|user|>"];
        let tokenizer = tokenizer_of_family(template, &special);
        let encoder = Encoder::new(&tokenizer, EncodeOptions::default()).expect("valid options");
        let encoded = encoder.encode(&example).expect("encodes");
        assert_eq!(encoded.len(), 1, "{template}");
        assert_eq!(encoded[0].end_of_turn_trained, Some(true), "{template}");
        assert_eq!(encoded[0].straddling, 0, "{template}");
        let pieces = encoded[0].pieces(&tokenizer).expect("decodes");
        let trained: Vec<String> =
            pieces.into_iter().filter(|p| p.weight != 0.0).map(|p| p.text.trim_start().to_owned()).collect();
        let mut expected = ["Hello", "Ciao"].map(|answer| format!("{answer}{ends}"));
        if template == "phi3.jinja" {
            // The conversation ends with the end-of-text token as well.
            expected[1].push_str("\n</s>");
        }
        assert_eq!(trained, expected, "{template}");
        let text: String = encoded[0].pieces(&tokenizer).expect("decodes").into_iter().map(|p| p.text).collect();
        let messages = [user("Hi"), assistant("Hello"), user("Bye"), assistant("Ciao")];
        let rendered = tokenizer.template().expect("a template").render(&messages, &[], &RenderOptions::default());
        assert_eq!(text, rendered.expect("renders"), "the tokens spell what the template prints");
    }
}

#[test]
fn a_template_that_closes_the_last_turn_with_more_is_followed() {
    // As Phi: the end-of-text token comes after the whole conversation only.
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}";
    let two = chat(vec![user("Hi"), assistant("Hello"), user("Bye"), assistant("Ciao")]);
    assert_eq!(
        marks(template, EncodeOptions::default(), &two),
        ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Hello<|im_end|>]\n\
          <|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[Ciao<|im_end|>\n<|endoftext|>]"]
    );
}

#[test]
fn old_reasoning_that_is_dropped_makes_one_sequence_per_turn() {
    let with_reasoning = |text: &str, reasoning: &str| {
        let mut message = assistant(text);
        message.reasoning_content = Some(reasoning.into());
        message
    };
    let example = chat(vec![user("1?"), with_reasoning("One.", "hm"), user("2?"), with_reasoning("Two.", "ah")]);
    let marks = marks("qwen3_thinking.jinja", EncodeOptions::default(), &example);
    assert_eq!(
        marks,
        [
            "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n[<think>\nhm\n</think>\n\nOne.<|im_end|>]\n",
            "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\nOne.<|im_end|>\n\
             <|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n[<think>\nah\n</think>\n\nTwo.<|im_end|>]\n",
        ]
    );
    let encoded = encode("qwen3_thinking.jinja", EncodeOptions::default(), &example).expect("encodes");
    assert_eq!(encoded.iter().map(|e| e.part).collect::<Vec<_>>(), [(0, 2), (1, 2)]);
    let last = EncodeOptions { train_on: TrainOn::LastAssistant, ..EncodeOptions::default() };
    let encoded = encode("qwen3_thinking.jinja", last, &example).expect("encodes");
    assert_eq!(encoded.len(), 1, "the last turn is in the whole conversation as it was written");
}

#[test]
fn tool_calls_are_answers_and_results_are_not() {
    let mut call = assistant("");
    let arguments = json!({"city": "Oslo"}).as_object().expect("an object").clone();
    call.tool_calls = vec![ToolCall { id: None, name: "weather".into(), arguments }];
    let messages = vec![user("Oslo?"), call, Message::new(Role::Tool, "snow"), assistant("It snows.")];
    let tools = vec![Tool(json!({"type": "function", "function": {"name": "weather", "description": "w"}}))];
    let example = sourced(Example::Chat { messages: messages.clone(), tools: tools.clone() });
    let marks = marks("qwen2_tools.jinja", EncodeOptions::default(), &example);
    assert_eq!(marks.len(), 1);
    let trained: Vec<&str> = marks[0].split('[').skip(1).filter_map(|s| s.split(']').next()).collect();
    assert_eq!(
        trained,
        [
            // The header ends with the line break only where text follows it.
            "\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call><|im_end|>",
            "It snows.<|im_end|>"
        ]
        .map(|s| s.trim_start_matches('\n'))
    );
    // SmolLM2's template knows neither tools nor calls.
    let error = encode("smollm2.jinja", EncodeOptions::default(), &example).expect_err("tools").to_string();
    assert_eq!(
        error,
        "`rows.jsonl` row 7: the chat template of `smollm2.jinja` does not render `tools`; what it says would be lost"
    );
    let example = sourced(Example::Chat { messages, tools: Vec::new() });
    let error = encode("smollm2.jinja", EncodeOptions::default(), &example).expect_err("calls").to_string();
    assert!(error.contains("does not render `tool_calls` of message 2 (assistant); what it says"), "{error}");
}

#[test]
fn every_field_that_a_template_drops_is_named() {
    let mut thinking = assistant("Yes");
    thinking.reasoning_content = Some("because".into());
    let error = |template: &str, messages: Vec<Message>| {
        encode(template, EncodeOptions::default(), &chat(messages)).expect_err("a field is dropped").to_string()
    };
    assert!(error(CHATML, vec![user("?"), thinking]).contains("`reasoning_content` of message 2 (assistant)"));
    let drops_system = "{% for m in messages %}{% if m.role != 'system' %}{{ m.role + ': ' + m.content + '\n' }}\
                        {% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let messages = vec![Message::new(Role::System, "Be kind"), user("?"), assistant("Yes")];
    assert!(error(drops_system, messages).contains("`content` of message 1 (system)"));
    let drops_second =
        "{{ messages[0].content + messages[1].content if messages | length > 1 else messages[0].content }}";
    let messages = vec![user("?"), assistant("Yes"), user("And?"), assistant("No")];
    assert!(error(drops_second, messages).contains("`content` of message"), "a dropped turn is an error");
    let first_call_only = "{% for m in messages %}{{ m.role + m.content }}{% if m.tool_calls %}\
                           {{ m.tool_calls[0] | tojson }}{% endif %}{% endfor %}";
    let mut calls = assistant("");
    let call = |name: &str| ToolCall { id: None, name: name.into(), arguments: serde_json::Map::new() };
    calls.tool_calls = vec![call("a"), call("b")];
    assert!(error(first_call_only, vec![user("?"), calls]).contains("`tool_calls[1]` of message 2 (assistant)"));
}

#[test]
fn weights_of_messages_are_respected() {
    let mut first = assistant("One");
    first.weight = Some(0.0);
    let mut question = user("Two?");
    question.weight = Some(0.5);
    let mut second = assistant("Two");
    second.weight = Some(2.0);
    let example = chat(vec![user("One?"), first, question, second]);
    let encoded = encode(CHATML, EncodeOptions::default(), &example).expect("encodes");
    let pieces = encoded[0].pieces(&tokenizer(CHATML)).expect("decodes");
    let weighted: Vec<(String, f32)> =
        pieces.into_iter().filter(|p| p.weight != 0.0).map(|p| (p.text, p.weight)).collect();
    assert_eq!(weighted, [("Two?".to_owned(), 0.5), ("Two<|im_end|>".to_owned(), 2.0)]);
    for weight in [-1.0, f32::NAN, f32::INFINITY] {
        let mut bad = assistant("x");
        bad.weight = Some(weight);
        let error = encode(CHATML, EncodeOptions::default(), &chat(vec![user("?"), bad])).expect_err("refused");
        assert!(error.to_string().starts_with("`rows.jsonl` row 7: `weight` of message 2 is "), "{error}");
    }
}

#[test]
fn the_rule_chooses_what_is_trained() {
    let example = chat(vec![user("1"), assistant("one"), user("2"), assistant("two")]);
    let marks_by = |train_on| marks(CHATML, EncodeOptions { train_on, ..EncodeOptions::default() }, &example);
    let last = marks_by(TrainOn::LastAssistant);
    assert_eq!(last[0].matches('[').count(), 1);
    assert!(last[0].ends_with("[two<|im_end|>]\n"));
    // The very first token is never a target.
    let all = marks_by(TrainOn::All);
    assert!(all[0].starts_with("<|im_start|>[user\n") && all[0].ends_with("\n]"), "{all:?}");
}

#[test]
fn what_is_cut_is_counted() {
    let example = chat(vec![user("Hi"), assistant("one two three four"), user("more"), assistant("five six")]);
    let whole = &encode(CHATML, EncodeOptions::default(), &example).expect("encodes")[0];
    let length = whole.sequence.len();
    for targets in 1..length + 2 {
        let options = EncodeOptions { max_seq_len: Some(targets), ..EncodeOptions::default() };
        let cut = &encode(CHATML, options, &example).expect("encodes")[0];
        assert!(cut.sequence.len() <= targets + 1);
        assert_eq!(cut.sequence.len() + cut.truncated_tokens as usize, length);
        assert_eq!(cut.sequence.total_weight() + cut.truncated_weight, whole.sequence.total_weight());
        let answers_kept = marked(CHATML, cut).matches("<|im_end|>]").count();
        assert_eq!(cut.truncated_answers as usize, 2 - answers_kept, "at {targets}");
        assert_eq!(cut.end_of_turn_trained, (answers_kept > 0).then_some(true), "at {targets}");
        assert_eq!(cut.has_targets(), cut.sequence.total_weight() > 0.0);
    }
}

#[test]
fn an_empty_answer_is_not_trained_but_counted() {
    let encoded = encode(CHATML, EncodeOptions::default(), &chat(vec![user("Hi"), assistant(" ")])).expect("encodes");
    assert!(!encoded[0].has_targets());
    assert_eq!((encoded[0].empty_answers, encoded[0].end_of_turn_trained), (1, None));
    let empty = sourced(Example::Completion { prompt: "p".into(), completion: String::new() });
    let encoded = encode(CHATML, EncodeOptions::default(), &empty).expect("encodes");
    assert!(!encoded[0].has_targets());
    assert_eq!(encoded[0].empty_answers, 1);
    let question = encode(CHATML, EncodeOptions::default(), &chat(vec![user("Hi")])).expect("encodes");
    assert!(!question[0].has_targets());
}

#[test]
fn tags_that_leave_out_the_end_of_turn_are_noticed() {
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}\
                    {% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}\
                    {{ '<|im_end|>\n' }}{% endfor %}";
    let encoded =
        encode(template, EncodeOptions::default(), &chat(vec![user("Hi"), assistant("Yo")])).expect("encodes");
    assert_eq!(
        marked(template, &encoded[0]),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Yo]<|im_end|>\n"
    );
    assert_eq!(encoded[0].end_of_turn_trained, Some(false));
}

#[test]
fn an_answer_whose_beginning_cannot_be_found_is_an_error() {
    // The opening it gives the model is not how the finished turn begins.
    let template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ 'answer: ' }}{% endif %}";
    let error = encode(template, EncodeOptions::default(), &chat(vec![user("Hi"), assistant("Yo")])).expect_err("lost");
    let text = error.to_string();
    assert!(text.starts_with("`rows.jsonl` row 7: cannot tell where the answer of message 2 begins: "), "{text}");
    let refuses_empty =
        "{{ raise_exception('empty') if not messages }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let error = encode(refuses_empty, EncodeOptions::default(), &chat(vec![assistant("Yo")])).expect_err("lost");
    assert!(error.to_string().contains("line 1: empty"), "{error}");
}

#[test]
fn errors_name_file_and_row() {
    let template = "{{ raise_exception('no') }}";
    let error =
        encode(template, EncodeOptions::default(), &chat(vec![user("Hi"), assistant("Yo")])).expect_err("refused");
    let expected = format!("`rows.jsonl` row 7: chat template of `{template}`, line 1: no");
    assert_eq!(error.to_string(), expected);
    let error = encode(CHATML, EncodeOptions::default(), &chat(Vec::new())).expect_err("refused").to_string();
    assert_eq!(error, "`rows.jsonl` row 7: `messages` is empty");
}

#[test]
fn completions_are_trained_after_their_prompt() {
    let example = sourced(Example::Completion { prompt: "2+2=".into(), completion: "4".into() });
    let encoded = encode(CHATML, EncodeOptions::default(), &example).expect("encodes");
    assert_eq!(marked(CHATML, &encoded[0]), "2+2=[4<|im_end|>]");
    assert_eq!(encoded[0].end_of_turn_trained, Some(true));
    let options = EncodeOptions { add_eos: Some(false), add_bos: Some(true), ..EncodeOptions::default() };
    let encoded = encode(CHATML, options, &example).expect("encodes");
    assert_eq!(marked(CHATML, &encoded[0]), "<|im_start|>2+2=[4]");
    assert_eq!(encoded[0].end_of_turn_trained, Some(false));
}

#[test]
fn two_bos_are_noticed() {
    let text = sourced(Example::Text { text: "<|im_start|><|im_start|>x".into() });
    assert!(encode(CHATML, EncodeOptions::default(), &text).expect("encodes")[0].double_bos);
    let once = sourced(Example::Text { text: "<|im_start|>x".into() });
    let options = EncodeOptions { add_bos: Some(true), ..EncodeOptions::default() };
    let encoded = encode(CHATML, options, &once).expect("encodes");
    assert!(!encoded[0].double_bos, "a text that begins with it gets no second one");
}

#[test]
fn long_text_is_split_without_losing_a_target() {
    let text = "The cat sat on the mat. ".repeat(9);
    let example = sourced(Example::Text { text: text.clone() });
    let whole = &encode(CHATML, EncodeOptions::default(), &example).expect("encodes")[0];
    for targets in [1, 2, 7, 50, 10_000] {
        let options = |long_text| EncodeOptions { max_seq_len: Some(targets), long_text, ..EncodeOptions::default() };
        let pieces = encode(CHATML, options(LongText::Split), &example).expect("encodes");
        assert!(pieces.iter().all(|p| p.sequence.len() <= targets + 1 && p.truncated_tokens == 0));
        let weight: f64 = pieces.iter().map(|p| p.sequence.total_weight()).sum();
        assert_eq!(weight, whole.sequence.total_weight(), "{targets} targets per sequence");
        let mut ids = vec![whole.sequence.ids[0]];
        for piece in &pieces {
            ids.extend(&piece.sequence.ids[1..]);
        }
        assert_eq!(ids, whole.sequence.ids);
        let cut = &encode(CHATML, options(LongText::Truncate), &example).expect("encodes")[0];
        assert_eq!(cut.sequence.len(), whole.sequence.len().min(targets + 1));
        assert_eq!(cut.sequence.total_weight() + cut.truncated_weight, whole.sequence.total_weight());
        assert_eq!(&encode(CHATML, options(LongText::Whole), &example).expect("encodes")[0], whole);
    }
    let empty = encode(CHATML, EncodeOptions::default(), &sourced(Example::Text { text: String::new() }));
    assert!(!empty.expect("encodes")[0].has_targets());
}

#[test]
fn settings_that_cannot_be_met_are_refused() {
    let tokenizer = tokenizer(CHATML);
    let error = Encoder::new(&tokenizer, EncodeOptions { max_seq_len: Some(0), ..EncodeOptions::default() });
    assert_eq!(error.expect_err("refused").to_string(), "`max_seq_len` is 0, expected at least 1");
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let text = prop::sample::select(vec![
        "",
        " ",
        "a",
        "Hello there",
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "\n\n",
        "é🦀",
        "?",
        "!",
        "</think>x",
        "{{ x }}",
        "{% generation %}",
        "\u{fdd0}",
        "<think>\na\n</think>\n\nb",
        "12345",
        "  x  ",
    ]);
    let role = prop::sample::select(vec![Role::System, Role::User, Role::Assistant, Role::Tool]);
    let weight = prop::option::weighted(0.2, prop::sample::select(vec![0.0f32, 0.5, 1.0, 3.0]));
    let reasoning = prop::option::weighted(0.2, prop::sample::select(vec!["", "hm", "\n\n"]));
    let message = (role, text, weight, reasoning).prop_map(|(role, text, weight, reasoning)| {
        let mut message = Message::new(role, text);
        message.weight = weight;
        message.reasoning_content = reasoning.map(str::to_owned);
        message
    });
    prop::collection::vec(message, 0..6)
}

const TEMPLATES: [&str; 7] = [
    "smollm2.jinja",
    "chatml_generation.jinja",
    "qwen2_tools.jinja",
    "qwen3_thinking.jinja",
    "llama32_tools.jinja",
    "mistral_tools.jinja",
    "phi3.jinja",
];

fn tokenizers() -> &'static [Tokenizer] {
    static ALL: std::sync::OnceLock<Vec<Tokenizer>> = std::sync::OnceLock::new();
    ALL.get_or_init(|| TEMPLATES.iter().map(|name| tokenizer(name)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any conversation in any template: an error or sequences that add up, never a panic.
    #[test]
    fn random_conversations_never_panic(
        messages in messages(),
        template in 0..TEMPLATES.len(),
        limit in prop::option::of(1usize..40),
        rule in prop::sample::select(vec![TrainOn::Assistant, TrainOn::LastAssistant, TrainOn::All]),
    ) {
        let options = EncodeOptions { train_on: rule, max_seq_len: limit, ..EncodeOptions::default() };
        let encoder = Encoder::new(&tokenizers()[template], options).expect("valid options");
        let no_limit = EncodeOptions { train_on: rule, ..EncodeOptions::default() };
        let whole = Encoder::new(&tokenizers()[template], no_limit).expect("valid options");
        let example = chat(messages);
        if let Ok(encoded) = encoder.encode(&example) {
            prop_assert!(!encoded.is_empty());
            let built: f64 = whole.encode(&example).expect("as before").iter().map(|e| e.sequence.total_weight()).sum();
            let kept: f64 = encoded.iter().map(|e| e.sequence.total_weight() + e.truncated_weight).sum();
            prop_assert_eq!(built, kept, "weight built is weight kept and weight cut");
            for e in &encoded {
                prop_assert_eq!(e.sequence.len(), e.role.len());
                prop_assert!(e.sequence.weight.iter().all(|w| w.is_finite() && *w >= 0.0));
                prop_assert!(e.sequence.weight.first().is_none_or(|&w| w == 0.0));
            }
        }
    }
}

#[test]
fn a_pair_is_one_sequence_of_two_segments_each_cut_at_half() {
    let side = |answer: &str| {
        let mut asked = user("why");
        asked.weight = Some(0.0);
        Box::new(Example::Chat { messages: vec![asked, assistant(answer)], tools: Vec::new() })
    };
    let pair = |a: &str, b: &str| sourced(Example::Preference { chosen: side(a), rejected: side(b) });
    let encoded = encode(CHATML, EncodeOptions::default(), &pair("yes", "no no")).expect("encodes").remove(0);
    assert_eq!((encoded.kind, encoded.part), (ExampleKind::Preference, (0, 1)));
    assert_eq!(
        marked(CHATML, &encoded),
        "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n[yes<|im_end|>]\n\
         <|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n[no no<|im_end|>]\n"
    );
    let sequence = &encoded.sequence;
    let border = sequence.segment.iter().position(|s| *s == 1).expect("two segments");
    assert_eq!(sequence.weight[border], 0.0, "a segment's first token is no target");
    assert_eq!((sequence.segment[border - 1], *sequence.segment.last().expect("tokens")), (0, 1));
    let alone = encode(CHATML, EncodeOptions::default(), &sourced(*side("yes"))).expect("encodes").remove(0);
    assert_eq!(sequence.ids[..border], alone.sequence.ids);
    assert_eq!(sequence.weight[..border], alone.sequence.weight);

    let limited = EncodeOptions { max_seq_len: Some(2 * border - 1), ..EncodeOptions::default() };
    let long = "no ".repeat(50);
    let cut = encode(CHATML, limited.clone(), &pair("yes", &long)).expect("encodes").remove(0);
    assert_eq!(cut.sequence.len(), 2 * border, "the worse answer is cut at half of the row");
    assert!(cut.has_targets() && cut.truncated_tokens > 0 && cut.truncated_answers == 1);
    // Nothing of one answer is left: the pair says nothing.
    let short = EncodeOptions { max_seq_len: Some(7), ..EncodeOptions::default() };
    assert!(!encode(CHATML, short, &pair("yes", "no")).expect("encodes").remove(0).has_targets());
    assert!(!encode(CHATML, limited, &pair("yes", " ")).expect("encodes").remove(0).has_targets());
}
