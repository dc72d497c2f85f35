//! Finding out whether the template renders what the data says.

use didact_core::example::SourcedExample;
use didact_core::message::{Message, Role, Tool};
use minijinja::Value;

use super::Encoder;
use super::chat::Conversation;
use crate::error::DataError;
use crate::template::{message_value, tools_value};

/// Changes each field in turn and sees whether the rendered text changes. A field without influence is an error: what
/// it says would be lost without a word.
pub(super) fn check_fields(
    chat: &Conversation<'_>,
    tools: &[Tool],
    full: &str,
    example: &SourcedExample,
) -> Result<(), DataError> {
    let unrendered = |field: &str, of: String| DataError::Unrendered {
        place: Encoder::place(example),
        origin: chat.template.origin().to_owned(),
        field: field.to_owned(),
        of,
    };
    if !tools.is_empty() {
        let probe = tools_value(&[probe_tool()]);
        // A template that refuses the probe has looked at it.
        if chat.template.render_values(&chat.values, &probe, &chat.options).is_ok_and(|text| text == full) {
            return Err(unrendered("tools", String::new()));
        }
    }
    for (i, message) in chat.messages.iter().enumerate() {
        let of = || format!(" of message {} ({})", i + 1, message.role.as_str());
        for (field, changed) in probes(message) {
            // As the last turn: a template may leave out old reasoning, but not the reasoning of the turn it writes.
            let before = if i + 1 == chat.messages.len() { Ok(full.to_owned()) } else { chat.render_to(i + 1) };
            let mut values = chat.values[..=i].to_vec();
            values[i] = message_value(&changed);
            let after = chat.template.render_values(&values, &chat.tools, &chat.options);
            if let (Ok(before), Ok(after)) = (before, after)
                && before == after
            {
                return Err(unrendered(&field, of()));
            }
        }
    }
    Ok(())
}

/// The message with one field at a time changed to something it does not say.
fn probes(message: &Message) -> Vec<(String, Message)> {
    let mut probes = Vec::new();
    if message.role == Role::Assistant && !message.content.trim().is_empty() {
        let mut changed = message.clone();
        differing(&message.content).clone_into(&mut changed.content);
        probes.push(("content".to_owned(), changed));
    }
    for i in 0..message.tool_calls.len() {
        let mut changed = message.clone();
        changed.tool_calls[i].name.push_str("_probe");
        let field = if message.tool_calls.len() == 1 { "tool_calls".into() } else { format!("tool_calls[{i}]") };
        probes.push((field, changed));
        if !message.tool_calls[i].arguments.is_empty() {
            let mut changed = message.clone();
            changed.tool_calls[i].arguments.insert("didact_probe".into(), Value::from(1).to_string().into());
            probes.push((format!("tool_calls[{i}].function.arguments"), changed));
        }
    }
    if message.reasoning_content.as_ref().is_some_and(|r| !r.trim().is_empty()) {
        let mut changed = message.clone();
        changed.reasoning_content.as_mut().expect("checked above").push_str(" probe.");
        probes.push(("reasoning_content".to_owned(), changed));
    }
    probes
}

/// A text that begins and ends otherwise than another one, in ASCII, so that it shares no byte of a longer character.
pub(super) fn differing(text: &str) -> &'static str {
    let text = text.trim();
    ["?", "!", "#"].into_iter().find(|p| !text.starts_with(p) && !text.ends_with(p)).expect("a text has two ends")
}

fn probe_tool() -> Tool {
    Tool(serde_json::json!({
        "type": "function",
        "function": {
            "name": "didact_probe",
            "description": "didact_probe",
            "parameters": {"type": "object", "properties": {"didact_probe": {"type": "string", "description": "x"}}},
        },
    }))
}
