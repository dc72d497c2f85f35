use super::*;
use didact_core::message::{Message, Role};
use serde_json::json;

fn read(row: Value) -> (Schema, Example) {
    let Value::Object(row) = row else { panic!("a row is an object") };
    let names = FieldNames::default();
    let schema = detect(&row, &names).expect("a schema");
    (schema, convert(schema, &row, &names).expect("a good row"))
}

fn messages(row: Value) -> Vec<Message> {
    match read(row).1 {
        Example::Chat { messages, .. } => messages,
        other => panic!("not a chat: {other:?}"),
    }
}

#[test]
fn each_schema_is_recognised_from_its_keys() {
    let turn = json!([{"role": "user", "content": "q"}]);
    for (row, schema) in [
        (json!({"text": "t"}), Schema::Text),
        (json!({"prompt": "p", "completion": "c"}), Schema::PromptCompletion),
        (json!({"prompt": "p", "completion": "c", "text": "t"}), Schema::PromptCompletion),
        (json!({"messages": turn, "text": "rendered"}), Schema::Messages),
        (json!({"conversations": turn}), Schema::Messages),
        (json!({"conversations": [{"from": "human", "value": "q"}]}), Schema::ShareGpt),
        (json!({"prompt": "p", "chosen": "c", "rejected": "r"}), Schema::Preference),
        (json!({"prompt": "p", "completion": "c", "chosen": "c", "rejected": "r"}), Schema::Preference),
        (json!({"instruction": "i", "input": "", "output": "o", "text": "t"}), Schema::Alpaca),
    ] {
        assert_eq!(read(row.clone()).0, schema, "{row}");
    }
}

#[test]
fn tool_calls_have_one_form_however_they_are_written() {
    let nested = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1, "a": [2]}}});
    let as_text =
        json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1, \"a\": [2]}"}});
    let flat = json!({"id": "c1", "name": "f", "arguments": {"x": 1, "a": [2]}});
    let mut read = Vec::new();
    for call in [nested, as_text, flat] {
        let row = json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [call]}]});
        read.push(messages(row).remove(0).tool_calls.remove(0));
    }
    assert!(read.iter().all(|call| *call == read[0]));
    assert_eq!((read[0].id.as_deref(), read[0].name.as_str()), (Some("c1"), "f"));
    assert_eq!(read[0].arguments.keys().collect::<Vec<_>>(), ["x", "a"], "key order is kept");
    let old = json!({"messages": [{"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}}]});
    assert_eq!(messages(old)[0].tool_calls[0].name, "f");
}

#[test]
fn tools_may_be_a_list_or_a_string_that_holds_one() {
    let list = json!([{"type": "function", "function": {"name": "f"}}, {"name": "g"}]);
    let turns = json!([{"role": "user", "content": "q"}]);
    let read = |tools: Value| match read(json!({"messages": turns, "tools": tools})).1 {
        Example::Chat { tools, .. } => tools,
        other => panic!("not a chat: {other:?}"),
    };
    assert_eq!(read(list.clone()).len(), 2);
    assert_eq!(read(list.clone()), read(Value::String(list.to_string())));
    for none in [Value::Null, json!(""), json!("null"), json!([])] {
        assert!(read(none).is_empty());
    }
}

#[test]
fn messages_carry_their_own_weights_under_any_of_three_names() {
    let turn = |key: &str, value: Value| {
        let mut turn = json!({"role": "assistant", "content": "a"});
        turn[key] = value;
        messages(json!({"messages": [turn]})).remove(0).weight
    };
    assert_eq!(turn("train", json!(false)), Some(0.0));
    assert_eq!(turn("train", json!(true)), Some(1.0));
    assert_eq!(turn("weight", json!(0.5)), Some(0.5));
    assert_eq!(turn("loss_mask", json!(0)), Some(0.0));
    assert_eq!(turn("loss_mask", json!(true)), Some(1.0));
    assert_eq!(turn("weight", Value::Null), None);
}

#[test]
fn content_and_reasoning_have_one_form() {
    let row = json!({"messages": [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "assistant", "content": "a", "thinking": "hm"},
        {"role": "function", "content": "42", "name": "f", "tool_call_id": "c1"},
    ]});
    let messages = messages(row);
    assert_eq!((messages[0].role, messages[0].content.as_str()), (Role::System, "be brief"));
    assert_eq!(messages[1].reasoning_content.as_deref(), Some("hm"));
    let tool = &messages[2];
    assert_eq!((tool.role, tool.name.as_deref(), tool.tool_call_id.as_deref()), (Role::Tool, Some("f"), Some("c1")));
}

#[test]
fn a_conversational_prompt_is_context_whatever_the_rule() {
    let row = json!({
        "prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "draft"}, {"role": "user", "content": "again"}],
        "completion": [{"role": "assistant", "content": "a"}],
    });
    let weights: Vec<_> = messages(row).iter().map(|message| message.weight).collect();
    assert_eq!(weights, [Some(0.0), Some(0.0), Some(0.0), None]);
}

#[test]
fn alpaca_rows_become_conversations() {
    let row = json!({"instruction": "add", "input": "1 2", "output": "3", "system": "s", "history": [["q", "a"]]});
    let read: Vec<_> = messages(row).into_iter().map(|m| (m.role, m.content)).collect();
    let expected = [
        (Role::System, "s"),
        (Role::User, "q"),
        (Role::Assistant, "a"),
        (Role::User, "add\n1 2"),
        (Role::Assistant, "3"),
    ];
    assert_eq!(read, expected.map(|(role, text)| (role, text.to_owned())));
}

#[test]
fn sharegpt_rows_become_conversations() {
    let row = json!({
        "system": "s",
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
            {"from": "observation", "value": "42"},
            {"from": "gpt", "value": "a", "train": false},
        ],
        "tools": "[{\"name\": \"f\"}]",
    });
    let messages = messages(row);
    let roles: Vec<_> = messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::Tool, Role::Assistant]);
    assert_eq!(messages[2].tool_calls[0].arguments["x"], 1);
    assert_eq!(messages[4].weight, Some(0.0));
}

#[test]
fn pairs_are_read_in_each_of_their_forms() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let sides = |row: Value| match read(row).1 {
        Example::Preference { chosen, rejected } => (*chosen, *rejected),
        other => panic!("not a pair: {other:?}"),
    };
    let completion = |text: &str| Example::Completion { prompt: "p".into(), completion: text.into() };
    let strings = sides(json!({"prompt": "p", "chosen": "c", "rejected": "r"}));
    assert_eq!(strings, (completion("c"), completion("r")));
    let chat = |answer: &str| {
        let mut asked = Message::new(Role::User, "q");
        asked.weight = Some(0.0);
        Example::Chat { messages: vec![asked, Message::new(Role::Assistant, answer)], tools: Vec::new() }
    };
    let expected = (chat("c"), chat("r"));
    let (q, c, r) = (turn("user", "q"), turn("assistant", "c"), turn("assistant", "r"));
    for row in [
        json!({"prompt": [q], "chosen": [c], "rejected": [r]}),
        json!({"prompt": [q], "chosen": "c", "rejected": "r"}),
        json!({"prompt": "q", "chosen": [c], "rejected": [r]}),
        json!({"chosen": [q, c], "rejected": [q, r]}),
    ] {
        assert_eq!(sides(row.clone()), expected, "{row}");
    }
    // Answers that are the same stay answers.
    let (chosen, rejected) = sides(json!({"chosen": [q, c], "rejected": [q, c]}));
    assert_eq!((chosen, rejected), (chat("c"), chat("c")));
    let names = FieldNames::default();
    for (row, key) in [
        (json!({"chosen": "c", "rejected": "r"}), "prompt"),
        (json!({"prompt": "p", "chosen": "c", "rejected": 1}), "rejected"),
        (json!({"prompt": 1, "chosen": "c", "rejected": "r"}), "prompt"),
        (json!({"prompt": "p", "chosen": [], "rejected": []}), "chosen"),
    ] {
        let Value::Object(row) = row else { panic!("a row is an object") };
        let misfit = convert(Schema::Preference, &row, &names).expect_err("no pair");
        assert_eq!(misfit.key.as_deref(), Some(key), "{row:?}");
    }
}
