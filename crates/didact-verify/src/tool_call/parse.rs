//! From text to calls. The text comes from a model: any of it can be wrong, none of it may crash the program.

use didact_core::message::ToolCall;
use serde_json::{Map, Number, Value};

/// Deepest nesting of lists and tables in an argument.
const MAX_DEPTH: usize = 32;

/// Why a text is not a list of calls.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: expected {expected}, found {found}")]
pub struct ParseError {
    /// Offset in the trimmed text, in bytes.
    pub at: usize,
    /// What would have been right there.
    pub expected: &'static str,
    /// What is there.
    pub found: String,
}

/// Reads the calls an answer makes; `none` makes none.
///
/// # Errors
/// [`ParseError`] when the answer is not a list of calls and nothing else.
///
/// # Examples
/// ```
/// let calls = didact_verify::parse_calls("book_hotel(city=oslo, nights=3)")?;
/// assert_eq!(calls[0].name, "book_hotel");
/// assert_eq!(calls[0].arguments["nights"], 3);
/// assert_eq!(didact_verify::parse_calls(r#"[{"name": "book_hotel", "arguments": {"city": "oslo", "nights": 3}}]"#)?, calls);
/// # Ok::<(), didact_verify::tool_call::ParseError>(())
/// ```
pub fn parse_calls(text: &str) -> Result<Vec<ToolCall>, ParseError> {
    let text = text.trim();
    if text.contains("<tool_call>") {
        return tagged(text);
    }
    untagged(fenced(text))
}

/// The calls between tags; a last tag may be left open, since the end of the turn closes it.
fn tagged(text: &str) -> Result<Vec<ToolCall>, ParseError> {
    let mut calls = Vec::new();
    for part in text.split("<tool_call>").skip(1) {
        let inner = part.split("</tool_call>").next().unwrap_or(part);
        calls.extend(untagged(inner.trim())?);
    }
    Ok(calls)
}

/// The inside of a code fence, or the text itself.
fn fenced(text: &str) -> &str {
    let Some(inner) = text.strip_prefix("```").and_then(|t| t.strip_suffix("```")) else { return text };
    // The language after the opening fence is one word on its own line.
    let inner = match inner.split_once('\n') {
        Some((language, rest)) if language.chars().all(char::is_alphanumeric) => rest,
        _ => inner,
    };
    inner.trim()
}

fn untagged(text: &str) -> Result<Vec<ToolCall>, ParseError> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    let json_like = text.starts_with('{') || text.strip_prefix('[').is_some_and(|t| t.trim_start().starts_with('{'));
    if json_like || text == "[]" { from_json(text) } else { Reader { text, at: 0 }.calls() }
}

fn from_json(text: &str) -> Result<Vec<ToolCall>, ParseError> {
    let mut calls = Vec::new();
    // Several objects may follow each other, one per line.
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let value = value.map_err(|e| ParseError {
            at: byte_offset(text, e.line(), e.column()),
            expected: "a JSON object with `name` and `arguments`",
            found: e.to_string(),
        })?;
        match value {
            Value::Array(items) => {
                for item in items {
                    calls.push(call_from_json(item)?);
                }
            }
            other => calls.push(call_from_json(other)?),
        }
    }
    Ok(calls)
}

fn byte_offset(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (before + column.saturating_sub(1)).min(text.len())
}

/// One call of a JSON answer or reference.
pub(super) fn call_from_json(value: Value) -> Result<ToolCall, ParseError> {
    let wrong = |expected: &'static str, found: String| ParseError { at: 0, expected, found };
    let Value::Object(mut object) = value else {
        return Err(wrong("a JSON object with `name` and `arguments`", value.to_string()));
    };
    if let Some(Value::Object(function)) = object.get_mut("function") {
        object = std::mem::take(function);
    }
    let Some(Value::String(name)) = object.get("name").cloned() else {
        return Err(wrong("`name`, a string", Value::Object(object).to_string()));
    };
    // `parameters` is Llama's spelling.
    let arguments = match object.remove("arguments").or_else(|| object.remove("parameters")) {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Object(arguments)) => arguments,
            _ => return Err(wrong("`arguments`, an object or a string holding one", text)),
        },
        Some(other) => return Err(wrong("`arguments`, an object", other.to_string())),
    };
    Ok(ToolCall { id: None, name, arguments })
}

/// Writes a call as `name(a=1, b=word)`, strings bare where they can be, arguments in their own order.
pub fn render_call(call: &ToolCall) -> String {
    let arguments: Vec<String> =
        call.arguments.iter().map(|(name, value)| format!("{name}={}", render_value(value))).collect();
    format!("{}({})", call.name, arguments.join(", "))
}

fn render_value(value: &Value) -> String {
    match value {
        Value::String(s) if reads_back_bare(s) => s.clone(),
        other => other.to_string(),
    }
}

/// Whether a string without quotes would be read as itself.
fn reads_back_bare(s: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '_' | '-' | ':' | '/' | '.');
    !s.is_empty() && s.trim() == s && s.chars().all(plain) && bare_value(s) == Value::String(s.to_owned())
}

/// What an unquoted word means.
fn bare_value(word: &str) -> Value {
    match word {
        "true" | "True" => return Value::Bool(true),
        "false" | "False" => return Value::Bool(false),
        "null" | "None" => return Value::Null,
        _ => {}
    }
    match word.parse::<Number>() {
        Ok(number) => Value::Number(number),
        Err(_) => Value::String(word.to_owned()),
    }
}

/// Reads the notation `name(argument=value, …)`.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn error(&self, expected: &'static str) -> ParseError {
        let found = match self.rest().chars().next() {
            None => "the end".to_owned(),
            Some(_) => format!("`{}`", self.rest().chars().take(20).collect::<String>()),
        };
        ParseError { at: self.at, expected, found }
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Steps over `c`, and space before it.
    fn take(&mut self, c: char) -> bool {
        self.skip_space();
        let here = self.rest().starts_with(c);
        if here {
            self.at += c.len_utf8();
        }
        here
    }

    fn need(&mut self, c: char, expected: &'static str) -> Result<(), ParseError> {
        if self.take(c) { Ok(()) } else { Err(self.error(expected)) }
    }

    fn calls(mut self) -> Result<Vec<ToolCall>, ParseError> {
        let mut calls = Vec::new();
        let listed = self.take('[');
        loop {
            calls.push(self.call()?);
            if listed {
                if self.take(',') {
                    continue;
                }
                self.need(']', "`,` or `]` after a call")?;
                self.skip_space();
                break;
            }
            let end = self.at;
            self.skip_space();
            // Outside a list each call has its own line.
            if !self.text[end..self.at].contains('\n') {
                break;
            }
        }
        if self.rest().is_empty() { Ok(calls) } else { Err(self.error("nothing after the call")) }
    }

    fn word(&mut self, expected: &'static str) -> Result<&'a str, ParseError> {
        self.skip_space();
        let rest = self.rest();
        let starts = rest.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
        let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-'))).unwrap_or(rest.len());
        if !starts {
            return Err(self.error(expected));
        }
        self.at += end;
        Ok(&rest[..end])
    }

    fn call(&mut self) -> Result<ToolCall, ParseError> {
        let name = self.word("the name of a tool")?.to_owned();
        self.need('(', "`(` after the tool's name")?;
        let mut arguments = Map::new();
        if !self.take(')') {
            loop {
                let start = self.at;
                let argument = self.word("the name of an argument")?.to_owned();
                self.need('=', "`=` after the argument's name")?;
                let value = self.value(0)?;
                if arguments.insert(argument, value).is_some() {
                    self.at = start;
                    return Err(self.error("each argument once"));
                }
                if self.take(')') {
                    break;
                }
                self.need(',', "`,` or `)` after a value")?;
            }
        }
        Ok(ToolCall { id: None, name, arguments })
    }

    fn value(&mut self, depth: usize) -> Result<Value, ParseError> {
        if depth > MAX_DEPTH {
            return Err(self.error("fewer lists within lists"));
        }
        self.skip_space();
        match self.rest().chars().next() {
            Some('"' | '\'') => self.quoted().map(Value::String),
            Some('[') => {
                self.at += 1;
                let mut items = Vec::new();
                if self.take(']') {
                    return Ok(Value::Array(items));
                }
                loop {
                    items.push(self.value(depth + 1)?);
                    if self.take(']') {
                        return Ok(Value::Array(items));
                    }
                    self.need(',', "`,` or `]` after an item")?;
                }
            }
            Some('{') => {
                self.at += 1;
                let mut table = Map::new();
                if self.take('}') {
                    return Ok(Value::Object(table));
                }
                loop {
                    self.skip_space();
                    let key = if self.rest().starts_with(['"', '\'']) {
                        self.quoted()?
                    } else {
                        self.word("a key")?.to_owned()
                    };
                    self.need(':', "`:` after a key")?;
                    let value = self.value(depth + 1)?;
                    table.insert(key, value);
                    if self.take('}') {
                        return Ok(Value::Object(table));
                    }
                    self.need(',', "`,` or `}` after a value")?;
                }
            }
            _ => {
                let rest = self.rest();
                let end = rest.find([',', ')', ']', '}', '(', '[', '{', '=', '"', '\'', '\n']).unwrap_or(rest.len());
                let word = rest[..end].trim_end();
                if word.is_empty() {
                    return Err(self.error("a value"));
                }
                self.at += end;
                Ok(bare_value(word))
            }
        }
    }

    fn quoted(&mut self) -> Result<String, ParseError> {
        let mut chars = self.rest().char_indices();
        let Some((_, quote)) = chars.next() else { return Err(self.error("a quoted string")) };
        let mut text = String::new();
        while let Some((offset, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.at += offset + c.len_utf8();
                    return Ok(text);
                }
                '\\' => match chars.next().map(|(_, escaped)| escaped) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some('b') => text.push('\u{8}'),
                    Some('f') => text.push('\u{c}'),
                    Some('u') => text.push(escaped_unicode(&mut chars)),
                    Some(escaped) => text.push(escaped),
                    None => break,
                },
                c => text.push(c),
            }
        }
        Err(self.error("a closing quote for the string that starts here"))
    }
}

/// The character of `\uXXXX`, or of two of those that are a surrogate pair; what is neither becomes U+FFFD.
fn escaped_unicode(chars: &mut std::str::CharIndices<'_>) -> char {
    let digits: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
    let Ok(first) = u16::from_str_radix(&digits, 16) else { return char::REPLACEMENT_CHARACTER };
    let mut units = vec![first];
    if (0xd800..0xdc00).contains(&first)
        && let Some(rest) = chars.as_str().strip_prefix("\\u")
        && let Some(Ok(second)) = rest.get(..4).map(|digits| u16::from_str_radix(digits, 16))
    {
        units.push(second);
        chars.nth(5);
    }
    let decoded = char::decode_utf16(units).next().and_then(Result::ok);
    decoded.unwrap_or(char::REPLACEMENT_CHARACTER)
}
