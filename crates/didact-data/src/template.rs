//! Chat templates: conversations as the text the model sees, the same text that Python's library renders.
//!
//! Templates are Jinja2 programs that come with a model. They are run by minijinja in an environment with Python's
//! manners; where the two differ is handled in the submodules and checked byte for byte against Jinja2 itself
//! (`golden/templates`). A template is not trusted: it has an allowance of work, and can fail but not crash or hang.

mod environment;
mod generation;
mod python;
pub mod task;

use std::error::Error as _;
use std::ops::Range;

use didact_core::message::{Message, Tool};
use jiff::civil::Date;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use crate::error::DataError;

/// Operations a template may spend on one conversation; 64 bytes of text cost one. A conversation of a thousand turns and
/// a megabyte takes about a quarter of it, spending all of it a fraction of a second.
const FUEL: u64 = 400_000;
/// Stack for templates that keep values in a namespace. Only these can nest values as deep as their fuel lasts, up to
/// about 200 000 levels, and dropping a nested value takes stack for every level. Pages are used when touched.
const DEEP_STACK: usize = 512 << 20;
/// The name of the only template in the environment.
const NAME: &str = "chat";

/// What a rendering depends on besides the conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderOptions {
    /// Whether the text ends with the opening of the assistant's next turn.
    pub add_generation_prompt: bool,
    /// The template's switch for reasoning; `None` leaves it undefined, as Python does when it is not named.
    pub enable_thinking: Option<bool>,
    /// The day that `strftime_now` tells. It stands still: text that depends on the clock could not be rendered again.
    pub date: Date,
    /// Further variables by name, for templates that read others.
    pub variables: Map<String, Json>,
}

impl Default for RenderOptions {
    /// No generation prompt, and the date that Llama 3.2's template itself falls back on.
    fn default() -> Self {
        Self {
            add_generation_prompt: false,
            enable_thinking: None,
            date: jiff::civil::date(2024, 7, 26),
            variables: Map::new(),
        }
    }
}

impl RenderOptions {
    /// These options, with the opening of the assistant's turn at the end.
    #[must_use]
    pub fn with_generation_prompt(mut self) -> Self {
        self.add_generation_prompt = true;
        self
    }
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    origin: String,
    special_tokens: Vec<(String, String)>,
    has_generation_tag: bool,
    may_nest: bool,
    environment: Environment<'static>,
    fuel: u64,
}

/// Rendered text and the spans of it that the template's `{% generation %}` tags mark, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedText {
    /// The text, the same as without marks.
    pub text: String,
    /// What the model writes, in order.
    pub spans: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Compiles a template. `origin` says in messages where it came from; `special_tokens` are the variables
    /// `bos_token`, `eos_token` and so on that the template may read.
    ///
    /// # Errors
    /// [`DataError::TemplateSyntax`], with the line.
    pub fn new(
        source: impl Into<String>,
        origin: impl Into<String>,
        special_tokens: Vec<(String, String)>,
    ) -> Result<Self, DataError> {
        let (source, origin) = (source.into(), origin.into());
        // Jinja2 reads every kind of line break as one.
        let unified = source.replace("\r\n", "\n").replace('\r', "\n");
        let (rewritten, has_generation_tag) = generation::rewrite(&unified);
        let mut environment = environment::build(FUEL);
        environment.add_template_owned(NAME, rewritten).map_err(|e| DataError::TemplateSyntax {
            origin: origin.clone(),
            line: e.line().unwrap_or(0),
            cause: cause(&e),
        })?;
        let may_nest = unified.contains("namespace");
        Ok(Self { source, origin, special_tokens, has_generation_tag, may_nest, environment, fuel: FUEL })
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where it came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Whether the template itself says, by `{% generation %}`, what the model writes.
    pub fn has_generation_tag(&self) -> bool {
        self.has_generation_tag
    }

    /// The conversation as text.
    ///
    /// # Errors
    /// [`DataError::TemplateRender`] if the template fails or refuses the conversation,
    /// [`DataError::TemplateRunaway`] if it does not come to an end.
    pub fn render(&self, messages: &[Message], tools: &[Tool], options: &RenderOptions) -> Result<String, DataError> {
        let messages: Vec<Value> = messages.iter().map(message_value).collect();
        self.render_values(&messages, &tools_value(tools), options)
    }

    /// The conversation as text, with the spans that `{% generation %}` marks (none if the template has no such tag).
    ///
    /// # Errors
    /// As [`render`](Self::render); also if the template makes the marks change its text, so that they mean nothing.
    pub fn render_marked(
        &self,
        messages: &[Message],
        tools: &[Tool],
        options: &RenderOptions,
    ) -> Result<MarkedText, DataError> {
        let messages: Vec<Value> = messages.iter().map(message_value).collect();
        self.render_marked_values(&messages, &tools_value(tools), options)
    }

    pub(crate) fn render_values(
        &self,
        messages: &[Value],
        tools: &Value,
        options: &RenderOptions,
    ) -> Result<String, DataError> {
        self.run(messages, tools, options, false)
    }

    pub(crate) fn render_marked_values(
        &self,
        messages: &[Value],
        tools: &Value,
        options: &RenderOptions,
    ) -> Result<MarkedText, DataError> {
        let text = self.run(messages, tools, options, false)?;
        if !self.has_generation_tag {
            return Ok(MarkedText { text, spans: Vec::new() });
        }
        let marked = self.run(messages, tools, options, true)?;
        match generation::take_marks(&marked) {
            Some((unmarked, spans)) if unmarked == text => Ok(MarkedText { text, spans }),
            _ => Err(DataError::TemplateRender {
                origin: self.origin.clone(),
                line: 0,
                cause: "the text inside {% generation %} is changed after it was generated, or contains U+FDD0 or \
                        U+FDD1, so what it marks cannot be told"
                    .into(),
            }),
        }
    }

    fn run(
        &self,
        messages: &[Value],
        tools: &Value,
        options: &RenderOptions,
        marks: bool,
    ) -> Result<String, DataError> {
        let mut context: Vec<(String, Value)> =
            self.special_tokens.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str()))).collect();
        context.extend(options.variables.iter().map(|(name, v)| (name.clone(), Value::from(Serde(v)))));
        if let Some(on) = options.enable_thinking {
            context.push(("enable_thinking".into(), Value::from(on)));
        }
        context.extend([
            ("messages".to_owned(), Value::from(messages.to_vec())),
            ("tools".to_owned(), tools.clone()),
            ("documents".to_owned(), Value::from(())),
            ("add_generation_prompt".to_owned(), Value::from(options.add_generation_prompt)),
            (environment::DATE.to_owned(), Value::from(options.date.to_string())),
            (generation::MARKS.to_owned(), Value::from(marks)),
        ]);
        let render = || {
            let template = self.environment.get_template(NAME).expect("compiled by `new`");
            template.render(Value::from_pairs(context)).map_err(|e| self.failed(&e))
        };
        if !self.may_nest {
            return render();
        }
        let builder = std::thread::Builder::new().name("chat template".into()).stack_size(DEEP_STACK);
        std::thread::scope(|scope| match builder.spawn_scoped(scope, render) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(e) => Err(DataError::TemplateRender {
                origin: self.origin.clone(),
                line: 0,
                cause: format!("no thread can be started for it: {e}"),
            }),
        })
    }

    fn failed(&self, error: &minijinja::Error) -> DataError {
        let origin = self.origin.clone();
        // An error inside a macro or a call block is the source of the one outside.
        let mut innermost = error;
        while let Some(inner) = innermost.source().and_then(|e| e.downcast_ref::<minijinja::Error>()) {
            innermost = inner;
        }
        if innermost.kind() == ErrorKind::OutOfFuel || error.kind() == ErrorKind::OutOfFuel {
            return DataError::TemplateRunaway { origin, fuel: self.fuel };
        }
        let line = innermost.line().or(error.line()).unwrap_or(0);
        DataError::TemplateRender { origin, line, cause: cause(innermost) }
    }
}

fn cause(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}

/// A message as templates expect it: the fields it has, calls in the form of the OpenAI API, and reasoning under the
/// older name as well.
pub(crate) fn message_value(message: &Message) -> Value {
    let mut map = Map::new();
    map.insert("role".into(), message.role.as_str().into());
    map.insert("content".into(), message.content.as_str().into());
    if let Some(name) = &message.name {
        map.insert("name".into(), name.as_str().into());
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let mut entry = Map::new();
            if let Some(id) = &call.id {
                entry.insert("id".into(), id.as_str().into());
            }
            entry.insert("type".into(), "function".into());
            entry.insert("function".into(), serde_json::json!({"name": call.name, "arguments": call.arguments}));
            Json::Object(entry)
        });
        map.insert("tool_calls".into(), calls.collect());
    }
    if let Some(id) = &message.tool_call_id {
        map.insert("tool_call_id".into(), id.as_str().into());
    }
    if let Some(reasoning) = &message.reasoning_content {
        map.insert("thinking".into(), reasoning.as_str().into());
        map.insert("reasoning_content".into(), reasoning.as_str().into());
    }
    Value::from(Serde(&Json::Object(map)))
}

/// The tools as templates expect them: a list, or none at all.
pub(crate) fn tools_value(tools: &[Tool]) -> Value {
    if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) }
}

#[cfg(test)]
mod tests;
