//! From the JSON of a row to an [`Example`].

use serde_json::{Map, Value};

use super::{FieldNames, Misfit, Schema, shortened};
use crate::reader::RowCause;
use didact_core::example::Example;
use didact_core::message::{Message, Role, Tool, ToolCall};

/// What is read of a message.
pub(super) const MESSAGE_KEYS: &[&str] = &[
    "role",
    "content",
    "tool_calls",
    "function_call",
    "tool_call_id",
    "name",
    "reasoning_content",
    "thinking",
    "train",
    "weight",
    "loss_mask",
];

/// What is read of a ShareGPT turn.
pub(super) const SHAREGPT_KEYS: &[&str] = &["from", "value", "train", "weight", "loss_mask"];

type Row = Map<String, Value>;

pub(super) fn convert(schema: Schema, row: &Row, names: &FieldNames) -> Result<Example, Misfit> {
    let root = At::root(schema);
    match schema {
        Schema::Text => Ok(Example::Text { text: root.string(row, names.text())?.to_owned() }),
        Schema::PromptCompletion => prompt_completion(&root, row, names),
        Schema::Messages => {
            let key = if row.contains_key(names.messages()) || !row.contains_key("conversations") {
                names.messages()
            } else {
                "conversations"
            };
            let messages = messages(&root, row, key)?;
            Ok(Example::Chat { messages, tools: tools(&root, row, names.tools())? })
        }
        Schema::Alpaca => alpaca(&root, row),
        Schema::ShareGpt => sharegpt(&root, row, names),
        Schema::Preference => preference(&root, row, names),
    }
}

/// A place in the row, for messages.
struct At {
    schema: Schema,
    path: String,
}

impl At {
    fn root(schema: Schema) -> Self {
        Self { schema, path: String::new() }
    }

    fn item(&self, key: &str, index: usize) -> Self {
        Self { schema: self.schema, path: format!("{}[{index}]", self.join(key)) }
    }

    fn inside(&self, key: &str) -> Self {
        Self { schema: self.schema, path: self.join(key) }
    }

    fn join(&self, key: &str) -> String {
        let key = shortened(key, 60);
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }

    fn misfit(&self, key: &str, cause: RowCause) -> Misfit {
        Misfit { key: Some(self.join(key)), cause }
    }

    fn misfit_here(&self, cause: RowCause) -> Misfit {
        Misfit { key: Some(self.path.clone()), cause }
    }

    fn wrong(&self, key: &str, expected: &'static str, found: &Value) -> Misfit {
        self.misfit(key, RowCause::Type { expected, found: type_name(found) })
    }

    /// A key that must be there; null counts as absent.
    fn required<'a>(&self, row: &'a Row, key: &str) -> Result<&'a Value, Misfit> {
        present(row, key).ok_or_else(|| {
            let near = row.keys().find(|found| found.as_str() != key && strsim::jaro_winkler(found, key) > 0.85);
            let near = near.filter(|found| !row[found.as_str()].is_null()).map(|found| shortened(found, 40));
            self.misfit(key, RowCause::Missing { schema: self.schema, near, like: None })
        })
    }

    fn string<'a>(&self, row: &'a Row, key: &str) -> Result<&'a str, Misfit> {
        let value = self.required(row, key)?;
        value.as_str().ok_or_else(|| self.wrong(key, "a string", value))
    }

    fn optional_string<'a>(&self, row: &'a Row, key: &str) -> Result<Option<&'a str>, Misfit> {
        match present(row, key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    fn list<'a>(&self, row: &'a Row, key: &str) -> Result<&'a [Value], Misfit> {
        let value = self.required(row, key)?;
        value.as_array().map(Vec::as_slice).ok_or_else(|| self.wrong(key, "a list", value))
    }

    /// This place itself as an object.
    fn object<'a>(&self, value: &'a Value) -> Result<&'a Row, Misfit> {
        value
            .as_object()
            .ok_or_else(|| self.misfit_here(RowCause::Type { expected: "an object", found: type_name(value) }))
    }
}

fn present<'a>(row: &'a Row, key: &str) -> Option<&'a Value> {
    row.get(key).filter(|value| !value.is_null())
}

/// A JSON value's type with its article.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn prompt_completion(root: &At, row: &Row, names: &FieldNames) -> Result<Example, Misfit> {
    let (prompt, completion) = (root.required(row, names.prompt())?, root.required(row, names.completion())?);
    match (prompt, completion) {
        (Value::String(prompt), Value::String(completion)) => {
            Ok(Example::Completion { prompt: prompt.clone(), completion: completion.clone() })
        }
        (Value::Array(_), Value::Array(_)) => {
            let mut turns = messages(root, row, names.prompt())?;
            for turn in &mut turns {
                // Only the completion is learned: the prompt's turns are context whatever the recipe's rule.
                turn.weight = Some(0.0);
            }
            turns.extend(messages(root, row, names.completion())?);
            Ok(Example::Chat { messages: turns, tools: tools(root, row, names.tools())? })
        }
        (Value::String(_), other) => Err(root.wrong(names.completion(), "a string, as the prompt is", other)),
        (Value::Array(_), other) => Err(root.wrong(names.completion(), "a list of messages, as the prompt is", other)),
        (other, _) => Err(root.wrong(names.prompt(), "a string or a list of messages", other)),
    }
}

/// Two answers: strings after a prompt, or lists of messages after a prompt of messages, or beginning with the turns that
/// both have.
fn preference(root: &At, row: &Row, names: &FieldNames) -> Result<Example, Misfit> {
    let tools = tools(root, row, names.tools())?;
    let (chosen, rejected) = (root.required(row, "chosen")?, root.required(row, "rejected")?);
    let mut prompt = match present(row, names.prompt()) {
        None => Vec::new(),
        Some(Value::String(text)) => match (chosen, rejected) {
            (Value::String(chosen), Value::String(rejected)) => {
                let answer = |completion: &str| {
                    Box::new(Example::Completion { prompt: text.clone(), completion: completion.to_owned() })
                };
                return Ok(Example::Preference { chosen: answer(chosen), rejected: answer(rejected) });
            }
            _ => vec![Message::new(Role::User, text.as_str())],
        },
        Some(Value::Array(_)) => messages(root, row, names.prompt())?,
        Some(other) => return Err(root.wrong(names.prompt(), "a string or a list of messages", other)),
    };
    let answer = |key: &str, value: &Value| match value {
        Value::Array(_) => messages(root, row, key),
        // Without a prompt there is nothing that this would be an answer to.
        Value::String(text) if !prompt.is_empty() => Ok(vec![Message::new(Role::Assistant, text.as_str())]),
        Value::String(_) => Err(root
            .required(row, names.prompt())
            .err()
            .unwrap_or_else(|| root.wrong(names.prompt(), "a prompt that is not empty", &Value::Null))),
        other => Err(root.wrong(key, "a string or a list of messages", other)),
    };
    let (mut chosen, mut rejected) = (answer("chosen", chosen)?, answer("rejected", rejected)?);
    let most = chosen.len().min(rejected.len()).saturating_sub(1);
    let shared = chosen.iter().zip(&rejected).take(most).take_while(|(a, b)| a == b).count();
    prompt.extend(chosen.drain(..shared));
    rejected.drain(..shared);
    for turn in &mut prompt {
        turn.weight = Some(0.0);
    }
    let whole = |answer: Vec<Message>| {
        let messages = prompt.iter().cloned().chain(answer).collect();
        Box::new(Example::Chat { messages, tools: tools.clone() })
    };
    Ok(Example::Preference { chosen: whole(chosen), rejected: whole(rejected) })
}

fn messages(root: &At, row: &Row, key: &str) -> Result<Vec<Message>, Misfit> {
    let turns = root.list(row, key)?;
    if turns.is_empty() {
        return Err(root.misfit(key, RowCause::EmptyConversation));
    }
    turns.iter().enumerate().map(|(i, turn)| message(&root.item(key, i), turn)).collect()
}

fn message(at: &At, value: &Value) -> Result<Message, Misfit> {
    let turn = at.object(value)?;
    let role = match at.string(turn, "role")? {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => Role::Tool,
        other => {
            return Err(unknown_role(at, "role", other, "system, user, assistant, tool"));
        }
    };
    let mut message = Message::new(role, "");
    message.tool_calls = tool_calls(at, turn)?;
    if !message.tool_calls.is_empty() && role != Role::Assistant {
        return Err(
            at.misfit("tool_calls", RowCause::Value(format!("only an assistant calls tools, not `{}`", role.as_str())))
        );
    }
    message.reasoning_content = match at.optional_string(turn, "reasoning_content")? {
        Some(text) => Some(text.to_owned()),
        None => at.optional_string(turn, "thinking")?.map(str::to_owned),
    };
    message.content = match present(turn, "content") {
        // A turn that calls tools, or has reasoned only, need not say anything.
        None if !message.tool_calls.is_empty() || message.reasoning_content.is_some() => String::new(),
        None => {
            at.required(turn, "content")?;
            String::new()
        }
        Some(content) => content_text(at, content)?,
    };
    message.tool_call_id = at.optional_string(turn, "tool_call_id")?.map(str::to_owned);
    message.name = at.optional_string(turn, "name")?.map(str::to_owned);
    message.weight = turn_weight(at, turn)?;
    Ok(message)
}

fn unknown_role(at: &At, key: &str, found: &str, known: &'static str) -> Misfit {
    at.misfit(key, RowCause::Role { found: shortened(found, 40), known })
}

/// Text given as a string, or as parts that are all text.
fn content_text(at: &At, content: &Value) -> Result<String, Misfit> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let mut text = String::new();
            for (i, part) in parts.iter().enumerate() {
                let at = at.item("content", i);
                let part = at.object(part)?;
                match at.optional_string(part, "type")? {
                    None | Some("text") => text.push_str(at.string(part, "text")?),
                    Some(other) => {
                        let why = format!("parts of type `{}` cannot be read; only text can", shortened(other, 40));
                        return Err(at.misfit("type", RowCause::Value(why)));
                    }
                }
            }
            Ok(text)
        }
        other => Err(at.wrong("content", "a string or a list of text parts", other)),
    }
}

/// The turn's own loss weight: `weight`, `train` or `loss_mask`, whichever the data set uses.
fn turn_weight(at: &At, turn: &Row) -> Result<Option<f32>, Misfit> {
    let mut given: Option<(&str, f32)> = None;
    for key in ["weight", "train", "loss_mask"] {
        let Some(value) = present(turn, key) else { continue };
        let weight = match value {
            Value::Bool(is_trained) => f32::from(u8::from(*is_trained)),
            Value::Number(number) if key != "train" => {
                let weight = number.as_f64().unwrap_or(f64::NAN) as f32;
                if !weight.is_finite() || weight < 0.0 {
                    let why = format!("a loss weight is a finite number not below 0, found {number}");
                    return Err(at.misfit(key, RowCause::Value(why)));
                }
                if key == "loss_mask" && weight != 0.0 && weight != 1.0 {
                    return Err(at.misfit(key, RowCause::Value(format!("a loss mask is 0 or 1, found {number}"))));
                }
                weight
            }
            other if key == "train" => return Err(at.wrong(key, "true or false", other)),
            other => return Err(at.wrong(key, "a number", other)),
        };
        match given {
            Some((first, before)) if before != weight => {
                return Err(at.misfit(key, RowCause::Value(format!("contradicts `{first}` of the same message"))));
            }
            _ => given = Some((key, weight)),
        }
    }
    Ok(given.map(|(_, weight)| weight))
}

fn tool_calls(at: &At, turn: &Row) -> Result<Vec<ToolCall>, Misfit> {
    if present(turn, "tool_calls").is_some() {
        let calls = at.list(turn, "tool_calls")?;
        return calls.iter().enumerate().map(|(i, call)| tool_call(&at.item("tool_calls", i), call)).collect();
    }
    match present(turn, "function_call") {
        Some(call) => Ok(vec![tool_call(&at.inside("function_call"), call)?]),
        None => Ok(Vec::new()),
    }
}

/// A call as the OpenAI API writes it (`{"id", "type", "function": {"name", "arguments"}}`) or flat.
fn tool_call(at: &At, value: &Value) -> Result<ToolCall, Misfit> {
    let outer = at.object(value)?;
    let id = at.optional_string(outer, "id")?.map(str::to_owned);
    if let Some(kind) = at.optional_string(outer, "type")?
        && kind != "function"
    {
        let why = format!("only calls of type `function` can be read, found `{}`", shortened(kind, 40));
        return Err(at.misfit("type", RowCause::Value(why)));
    }
    let (at, call) = match present(outer, "function") {
        Some(function) => {
            let inner = at.inside("function");
            let function = inner.object(function)?;
            (inner, function)
        }
        None => (At { schema: at.schema, path: at.path.clone() }, outer),
    };
    let name = at.string(call, "name")?.to_owned();
    if name.is_empty() {
        return Err(at.misfit("name", RowCause::Value("is empty; a call names its tool".to_owned())));
    }
    let arguments = match present(call, "arguments") {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments.clone(),
        Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Object(arguments)) => arguments,
            Ok(other) => {
                return Err(at.misfit(
                    "arguments",
                    RowCause::Type {
                        expected: "an object, or a string that holds one as JSON",
                        found: type_name(&other),
                    },
                ));
            }
            Err(error) => return Err(at.misfit("arguments", RowCause::InnerJson(error.to_string()))),
        },
        Some(other) => return Err(at.wrong("arguments", "an object, or a string that holds one as JSON", other)),
    };
    Ok(ToolCall { id, name, arguments })
}

/// Tools as a list, or as a string that holds one as JSON.
fn tools(root: &At, row: &Row, key: &str) -> Result<Vec<Tool>, Misfit> {
    let parsed;
    let list = match present(row, key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(Vec::new()),
        Some(Value::String(text)) => {
            match serde_json::from_str(text) {
                Ok(Value::Array(list)) => parsed = list,
                Ok(Value::Null) => return Ok(Vec::new()),
                Ok(other) => {
                    let expected = "a list of tools, or a string that holds one as JSON";
                    return Err(root.misfit(key, RowCause::Type { expected, found: type_name(&other) }));
                }
                Err(error) => return Err(root.misfit(key, RowCause::InnerJson(error.to_string()))),
            }
            &parsed
        }
        Some(other) => return Err(root.wrong(key, "a list of tools, or a string that holds one as JSON", other)),
    };
    list.iter()
        .enumerate()
        .map(|(i, tool)| {
            let at = root.item(key, i);
            let object = at.object(tool)?;
            match present(object, "function") {
                Some(function) => {
                    let inner = at.inside("function");
                    inner.string(inner.object(function)?, "name")?;
                }
                None => {
                    at.string(object, "name")?;
                }
            }
            Ok(Tool(tool.clone()))
        })
        .collect()
}

fn alpaca(root: &At, row: &Row) -> Result<Example, Misfit> {
    let mut turns = Vec::new();
    if let Some(system) = root.optional_string(row, "system")?.filter(|text| !text.is_empty()) {
        turns.push(Message::new(Role::System, system));
    }
    if present(row, "history").is_some() {
        for (i, pair) in root.list(row, "history")?.iter().enumerate() {
            let at = root.item("history", i);
            let texts: Option<Vec<_>> = pair.as_array().map(|pair| pair.iter().filter_map(Value::as_str).collect());
            let (Some([question, answer]), Some(2)) = (texts.as_deref(), pair.as_array().map(Vec::len)) else {
                let expected = "a pair of strings (what was asked, what was answered)";
                return Err(at.misfit_here(RowCause::Type { expected, found: type_name(pair) }));
            };
            turns.push(Message::new(Role::User, *question));
            turns.push(Message::new(Role::Assistant, *answer));
        }
    }
    let instruction = root.string(row, "instruction")?;
    let question = match root.optional_string(row, "input")?.filter(|text| !text.is_empty()) {
        // One line break, as LLaMA-Factory joins them.
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction.to_owned(),
    };
    turns.push(Message::new(Role::User, question));
    turns.push(Message::new(Role::Assistant, root.string(row, "output")?));
    Ok(Example::Chat { messages: turns, tools: Vec::new() })
}

fn sharegpt(root: &At, row: &Row, names: &FieldNames) -> Result<Example, Misfit> {
    let turns = root.list(row, "conversations")?;
    if turns.is_empty() {
        return Err(root.misfit("conversations", RowCause::EmptyConversation));
    }
    let mut messages = Vec::with_capacity(turns.len() + 1);
    if let Some(system) = root.optional_string(row, "system")?.filter(|text| !text.is_empty()) {
        messages.push(Message::new(Role::System, system));
    }
    for (i, value) in turns.iter().enumerate() {
        let at = root.item("conversations", i);
        let turn = at.object(value)?;
        let text = at.string(turn, "value")?;
        let mut message = match at.string(turn, "from")? {
            "system" => Message::new(Role::System, text),
            "human" | "user" => Message::new(Role::User, text),
            "gpt" | "assistant" | "chatgpt" => Message::new(Role::Assistant, text),
            "observation" | "tool" | "function_response" => Message::new(Role::Tool, text),
            "function_call" => {
                let mut message = Message::new(Role::Assistant, "");
                message.tool_calls = match serde_json::from_str(text) {
                    Ok(Value::Array(calls)) => {
                        calls.iter().enumerate().map(|(j, call)| tool_call(&at.item("value", j), call)).collect()
                    }
                    Ok(call) => tool_call(&at.inside("value"), &call).map(|call| vec![call]),
                    Err(error) => Err(at.misfit("value", RowCause::InnerJson(error.to_string()))),
                }?;
                message
            }
            other => {
                return Err(unknown_role(&at, "from", other, "system, human, gpt, function_call, observation"));
            }
        };
        message.weight = turn_weight(&at, turn)?;
        messages.push(message);
    }
    Ok(Example::Chat { messages, tools: tools(root, row, names.tools())? })
}
