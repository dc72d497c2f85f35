//! Templates of evaluation tasks: fields of a document as a prompt, with the manners of the lm-evaluation-harness's
//! environment, which trims nothing and takes a field that is not there for a mistake.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use regex::Regex;
use serde_json::{Map, Value as Json};

use super::{environment, python};

/// Operations a template may spend on one document.
const FUEL: u64 = 400_000;

/// What a template gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Rendered {
    /// Text.
    Text(String),
    /// The template is one expression, `{{ [a, b] }}`, whose value is a list; its items as text, or as numbers.
    List(Vec<Json>),
}

/// A template that does not render, or is none.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct TaskTemplateError {
    /// What Jinja says, with the line.
    pub message: String,
}

impl From<Error> for TaskTemplateError {
    fn from(error: Error) -> Self {
        let line = error.line().map_or(String::new(), |line| format!(" (line {line} of the template)"));
        let detail = error.detail().map_or(String::new(), |detail| format!(": {detail}"));
        Self { message: format!("{}{detail}{line}", error.kind()) }
    }
}

/// A compiled template.
#[derive(Debug, Clone)]
pub struct TaskTemplate {
    environment: Environment<'static>,
    /// The expression, if the template is nothing else.
    expression: Option<String>,
    /// Whether it says the same of every document.
    constant: Option<String>,
}

/// The template's name in its environment.
const NAME: &str = "task";

impl TaskTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is not one.
    pub fn new(source: &str) -> Result<Self, TaskTemplateError> {
        let mut environment = environment::common(FUEL);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build()?;
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.add_filter("regex_replace", regex_replace);
        environment.add_template_owned(NAME, source.to_owned())?;
        let whole = source.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        let expression = whole.filter(|inner| !inner.contains("{{") && !inner.contains("}}") && !inner.contains("{%"));
        let expression = expression.map(|inner| inner.trim_matches('-').trim().to_owned());
        let is_constant = !source.contains("{{") && !source.contains("{%") && !source.contains("{#");
        Ok(Self { environment, expression, constant: is_constant.then(|| source.to_owned()) })
    }

    /// Fills in a document's fields.
    ///
    /// # Errors
    /// When a field is missing, or the template fails.
    pub fn render(&self, document: &Map<String, Json>) -> Result<Rendered, TaskTemplateError> {
        if let Some(text) = &self.constant {
            return Ok(Rendered::Text(text.clone()));
        }
        let context = Value::from(Serde(document));
        if let Some(expression) = &self.expression {
            let value = self.environment.compile_expression(expression)?.eval(&context)?;
            if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
                let items = value.try_iter()?.map(|item| serde_json::to_value(item).map_err(unserialisable));
                return Ok(Rendered::List(items.collect::<Result<_, _>>()?));
            }
        }
        Ok(Rendered::Text(self.environment.get_template(NAME)?.render(&context)?))
    }
}

fn unserialisable(error: serde_json::Error) -> TaskTemplateError {
    TaskTemplateError { message: format!("an item of the list has no value: {error}") }
}

/// Python's `re.sub(pattern, replacement, text)` for patterns without look-around; groups are `\1` or `\g<name>`.
fn regex_replace(state: &State, value: &Value, pattern: &str, replacement: &str) -> Result<String, Error> {
    let text = python::string(state, value)?;
    state.consume_fuel((text.len() / 64) as u64)?;
    let invalid = |error: regex::Error| Error::new(ErrorKind::InvalidOperation, format!("regex_replace: {error}"));
    let pattern = Regex::new(pattern).map_err(invalid)?;
    let groups = Regex::new(r"\\g<(\w+)>|\\(\d+)").map_err(invalid)?;
    let replacement = groups.replace_all(&replacement.replace('$', "$$"), "$${$1$2}").into_owned();
    Ok(pattern.replace_all(&text, replacement.as_str()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, document: &Json) -> Result<Rendered, TaskTemplateError> {
        TaskTemplate::new(source)?.render(document.as_object().expect("an object"))
    }

    #[test]
    fn white_space_stays_and_python_methods_work() {
        let document = json!({"q": " What? ", "n": 3, "ok": true});
        let text = |source: &str| match render(source, &document).expect("it renders") {
            Rendered::Text(text) => text,
            list @ Rendered::List(_) => panic!("{list:?}"),
        };
        assert_eq!(text("Q: {{q.strip()}}\nA:\n"), "Q: What?\nA:\n");
        assert_eq!(text("{% if ok %}\n  {{ n }}{% endif %}"), "\n  3");
        assert_eq!(text("{{ok}}"), "True", "as Python prints it");
        assert_eq!(text("{{q|regex_replace('(W)h', '\\\\1_$')}}"), " W_$at? ");
    }

    #[test]
    fn one_expression_may_give_a_list() {
        let document = json!({"a": "it's", "b": "x", "rows": ["1", 2]});
        assert_eq!(
            render("{{[a, b]}}", &document).expect("it renders"),
            Rendered::List(vec![json!("it's"), json!("x")])
        );
        assert_eq!(render("{{ rows }}", &document).expect("it renders"), Rendered::List(vec![json!("1"), json!(2)]));
        assert_eq!(render("{{a}} {{b}}", &document).expect("it renders"), Rendered::Text("it's x".into()));
    }

    #[test]
    fn a_missing_field_and_a_broken_template_are_errors() {
        let message = |source: &str| render(source, &json!({"a": 1})).expect_err("it fails").message;
        assert!(message("{{b}}").contains("undefined"), "{}", message("{{b}}"));
        assert!(message("{{a").contains("line 1"), "{}", message("{{a"));
        let endless = "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(message(endless).contains("fuel"), "{}", message(endless));
    }
}
