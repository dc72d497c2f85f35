//! Values as Python prints them: `str()`, `repr()` and `json.dumps()`.
//!
//! Chat templates are written against Jinja2, so what a template prints for a number, a list or a mapping is what
//! Python prints. Checked against Python by `golden/templates`.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting of a value that is printed. Real tool descriptions nest about ten deep; a template can build
/// values without end.
const MAX_DEPTH: usize = 96;

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value nested more than {MAX_DEPTH} deep cannot be printed"))
}

/// A float as Python's `repr` prints it: shortest digits that round-trip, exponent below 1e-4 and from 1e16.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        // Rust prints `1.5e-7`, Python `1.5e-07`.
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').expect("`{:e}` always prints an exponent");
        let (sign, power) = match exponent.strip_prefix('-') {
            Some(power) => ('-', power),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{power:0>2}");
    }
    let mut text = format!("{value}");
    if !text.contains('.') {
        text.push_str(".0");
    }
    text
}

/// Text under construction. What it costs is paid while it grows: a template can build lists that share their parts and
/// are far longer than what they were built from.
struct Printer<'s, 'e, 't> {
    out: String,
    state: &'s State<'e, 't>,
}

impl Printer<'_, '_, '_> {
    /// Pays for an entry and the text since `before`.
    fn pay(&self, before: usize) -> Result<(), Error> {
        self.state.consume_fuel(1 + (self.out.len().saturating_sub(before) / 64) as u64)
    }
}

/// `str(value)`.
pub(super) fn string(state: &State, value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    if value.is_undefined() {
        return Ok(String::new());
    }
    let mut printer = Printer { out: String::new(), state };
    repr_into(value, &mut printer, 0)?;
    Ok(printer.out)
}

/// Whether minijinja's own printing may differ from Python's.
pub(super) fn prints_differently(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Number => !value.is_integer(),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => true,
        _ => false,
    }
}

fn repr_into(value: &Value, printer: &mut Printer, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    let before = printer.out.len();
    let out = &mut printer.out;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => repr_str(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => out.push_str(&float(f64::try_from(value.clone())?)),
        // Lists that were added up are iterables to minijinja.
        ValueKind::Seq | ValueKind::Iterable => {
            let is_tuple = value.is_tuple();
            printer.out.push(if is_tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()? {
                if count > 0 {
                    printer.out.push_str(", ");
                }
                repr_into(&item, printer, depth + 1)?;
                count += 1;
            }
            if is_tuple && count == 1 {
                printer.out.push(',');
            }
            printer.out.push(if is_tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            printer.out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    printer.out.push_str(", ");
                }
                repr_into(&key, printer, depth + 1)?;
                printer.out.push_str(": ");
                repr_into(&value.get_item(&key)?, printer, depth + 1)?;
            }
            printer.out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
    printer.pay(before)
}

/// `repr` of a string: single quotes unless that means escaping, and printable characters as they are.
fn repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// How `json.dumps` is asked to print.
#[derive(Debug, Clone)]
pub(super) struct JsonStyle {
    /// Everything outside ASCII as `\uXXXX`.
    pub ensure_ascii: bool,
    /// One entry per line, this much deeper at each level.
    pub indent: Option<String>,
    /// Between entries.
    pub item_separator: String,
    /// Between key and value.
    pub key_separator: String,
    /// Keys in alphabetical order.
    pub sort_keys: bool,
}

/// `json.dumps(value, …)`.
pub(super) fn json(state: &State, value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut printer = Printer { out: String::new(), state };
    json_into(value, style, &mut printer, 0)?;
    Ok(printer.out)
}

fn json_into(value: &Value, style: &JsonStyle, printer: &mut Printer, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    let before = printer.out.len();
    let out = &mut printer.out;
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => {
            let _ = write!(out, "{value}");
        }
        ValueKind::Number => json_float(f64::try_from(value.clone())?, out),
        ValueKind::String => json_str(value.as_str().unwrap_or_default(), style.ensure_ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut count = 0;
            printer.out.push('[');
            for item in value.try_iter()? {
                open_entry(count, style, &mut printer.out, depth + 1);
                json_into(&item, style, printer, depth + 1)?;
                count += 1;
            }
            close_block(count, style, &mut printer.out, depth);
            printer.out.push(']');
        }
        ValueKind::Map => {
            let mut entries = Vec::new();
            for key in value.try_iter()? {
                entries.push((json_key(&key)?, value.get_item(&key)?));
            }
            if style.sort_keys {
                entries.sort_by(|a, b| a.0.cmp(&b.0));
            }
            printer.out.push('{');
            for (count, (key, item)) in entries.iter().enumerate() {
                open_entry(count, style, &mut printer.out, depth + 1);
                json_str(key, style.ensure_ascii, &mut printer.out);
                printer.out.push_str(&style.key_separator);
                json_into(item, style, printer, depth + 1)?;
            }
            close_block(entries.len(), style, &mut printer.out, depth);
            printer.out.push('}');
        }
        kind => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: a value of kind {kind} is not JSON serializable"),
            ));
        }
    }
    printer.pay(before)
}

fn open_entry(count: usize, style: &JsonStyle, out: &mut String, depth: usize) {
    if count > 0 {
        out.push_str(&style.item_separator);
    }
    new_line(style, out, depth);
}

fn close_block(count: usize, style: &JsonStyle, out: &mut String, depth: usize) {
    if count > 0 {
        new_line(style, out, depth);
    }
}

fn new_line(style: &JsonStyle, out: &mut String, depth: usize) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        for _ in 0..depth {
            out.push_str(indent);
        }
    }
}

fn json_float(value: f64, out: &mut String) {
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
    } else {
        out.push_str(&float(value));
    }
}

/// Keys that are not strings become what `json.dumps` makes of them.
fn json_key(key: &Value) -> Result<String, Error> {
    let text = match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".into(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number if key.is_integer() => key.to_string(),
        ValueKind::Number => float(f64::try_from(key.clone())?),
        kind => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: keys must be strings, numbers, truth values or none, not {kind}"),
            ));
        }
    };
    Ok(text)
}

fn json_str(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ensure_ascii && (c as u32) > 0x7e) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
