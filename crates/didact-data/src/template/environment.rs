//! The minijinja environment that behaves as the Jinja2 environment of Hugging Face's library.

use jiff::civil::Date;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use super::generation;
use super::python::{self, JsonStyle};

/// The variable that holds the frozen date.
pub(super) const DATE: &str = "__didact_date";
/// Deepest nesting of macros and call blocks; safe on the stack of a worker thread.
const RECURSION_LIMIT: usize = 64;
/// Widest indentation. Wider ones are a way to fill the memory.
const MAX_INDENT: i64 = 256;

/// An environment with every function, filter and test that chat templates use, and `fuel` operations to spend.
pub(super) fn build(fuel: u64) -> Environment<'static> {
    let mut env = common(fuel);
    env.set_syntax(syntax());
    env.add_function("raise_exception", |state: &State, message: &Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, python::string(state, message)?))
    });
    env.add_function("strftime_now", strftime_now);
    env.add_function(generation::FUNCTION, generated);
    env
}

/// An environment that prints, indents and calls methods as Jinja2 does, and `fuel` operations to spend.
pub(super) fn common(fuel: u64) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(fuel));
    env.set_recursion_limit(RECURSION_LIMIT);
    env.set_unknown_method_callback(method);
    env.set_formatter(|out, state, value| {
        if python::prints_differently(value) {
            let text = python::string(state, value)?;
            out.write_str(&text).map_err(Error::from)
        } else {
            minijinja::escape_formatter(out, state, value)
        }
    });
    env.add_filter("tojson", tojson);
    env.add_filter("string", |state: &State, value: &Value| -> Result<Value, Error> {
        python::string(state, value).map(Value::from)
    });
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("indent", indent);
    // In Python a mapping and a string have a length and items, which is all that Jinja2 asks of a sequence.
    env.add_test("sequence", |value: &Value| {
        let is_sum_of_lists = value.kind() == ValueKind::Iterable && value.len().is_some();
        is_sum_of_lists
            || matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
    env.add_test("iterable", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined | ValueKind::Iterable
        )
    });
    env
}

fn syntax() -> minijinja::syntax::SyntaxConfig {
    minijinja::syntax::SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .expect("the default delimiters are valid")
}

fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// `default(value, default_value='', boolean=false)`, with its arguments by name as well.
fn default(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other: Option<Value> = kwargs.get("default_value")?;
    let boolean: Option<bool> = kwargs.get("boolean")?;
    kwargs.assert_all_used()?;
    let is_strict = positional.get(1).is_some_and(Value::is_true) || boolean.unwrap_or(false);
    if value.is_undefined() || (is_strict && !value.is_true()) {
        Ok(positional.first().cloned().or(other).unwrap_or_else(|| Value::from("")))
    } else {
        Ok(value.clone())
    }
}

/// `indent(text, width=4, first=false, blank=false)`, with its arguments by name as well.
fn indent(state: &State, value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let text = python::string(state, value)?;
    let argument = |i: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(positional.get(i).cloned().or(named))
    };
    let indention = match argument(0, "width")? {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(i64::try_from(width)?.clamp(0, MAX_INDENT)).unwrap_or(0)),
        },
    };
    let first = argument(1, "first")?.is_some_and(|v| v.is_true());
    let blank = argument(2, "blank")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    state.consume_fuel(((text.lines().count() + 1) * indention.len() / 64) as u64)?;
    let mut out = String::with_capacity(text.len());
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn tojson(state: &State, value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > NAMES.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let argument = |i: usize| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(NAMES[i])?;
        Ok(positional.get(i).cloned().or(named).filter(|v| !v.is_none()))
    };
    let ensure_ascii = argument(0)?.is_some_and(|v| v.is_true());
    let indent = match argument(1)? {
        None => None,
        Some(v) if v.kind() == ValueKind::String => v.as_str().map(str::to_owned),
        // `True` counts as 1 in Python.
        Some(v) if v.kind() == ValueKind::Bool => Some(" ".repeat(usize::from(v.is_true()))),
        Some(v) => Some(" ".repeat(usize::try_from(i64::try_from(v)?.clamp(0, MAX_INDENT)).unwrap_or(0))),
    };
    let (item_separator, key_separator) = match argument(2)? {
        Some(pair) => {
            let part = |i: usize| -> Result<String, Error> {
                let value = pair.get_item_by_index(i)?;
                value.as_str().map(str::to_owned).ok_or_else(|| {
                    Error::new(ErrorKind::InvalidOperation, "tojson: separators must be a pair of strings")
                })
            };
            (part(0)?, part(1)?)
        }
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let sort_keys = argument(3)?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let style = JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    python::json(state, value, &style).map(Value::from)
}

/// `strftime_now(format)`, with the day taken from the render options: midnight of a date that does not move.
fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let date = state.lookup(DATE).unwrap_or_default();
    let invalid = |what: String| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {what}"));
    let date: Date = date.as_str().unwrap_or_default().parse().map_err(|e| invalid(format!("{e}")))?;
    jiff::fmt::strtime::format(format, date.at(0, 0, 0, 0)).map_err(|e| invalid(format!("{e}")))
}

/// The body of a `{% generation %}` block, between marks when they are asked for.
fn generated(state: &mut State, kwargs: Kwargs) -> Result<Value, Error> {
    let caller: Value = kwargs.get("caller")?;
    let text = caller.call(state, &[])?;
    let wants_marks = state.lookup(generation::MARKS).is_some_and(|v| v.is_true());
    if wants_marks { Ok(Value::from(format!("{}{text}{}", generation::OPEN, generation::CLOSE))) } else { Ok(text) }
}
