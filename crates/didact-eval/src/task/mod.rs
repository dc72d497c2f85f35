//! Tasks: what is asked, how it becomes a prompt, and where the documents come from.
//!
//! A [`TaskFile`] declares; a [`Task`] has its documents and templates at hand. [`prompt`] assembles prompts with examples.

mod file;
mod load;
pub mod prompt;

pub use file::{
    Choices, DatasetArguments, FewShotConfig, FilterPipeline, FilterSpec, GenerationArguments, MetricSpec, OutputType,
    Paths, Sampler, TaskFile, Text,
};

use crate::error::EvalError;
use crate::filter::Filters;
use crate::measure::Measures;
use crate::python;
use didact_core::verdict::Verifier;
use didact_data::template::task::{Rendered, TaskTemplate, TaskTemplateError};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A row of a task's data.
pub type Document = Map<String, Value>;

/// A task with its documents.
#[derive(Clone)]
pub struct Task {
    /// What was declared.
    pub file: TaskFile,
    /// The documents that are asked.
    pub documents: Vec<Document>,
    /// The documents that examples come from.
    pub examples: Vec<Document>,
    /// Judges generated answers for the metric `verified`, by the document's prompt and target.
    pub verifier: Option<Arc<dyn Verifier + Send + Sync>>,
    /// What is measured.
    pub(crate) measures: Measures,
    /// What is done to answers first.
    pub(crate) filters: Filters,
    text: Source,
    target: Source,
    choice: Option<Source>,
    system: Source,
    description: Source,
    query: Option<Source>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, documents, examples, .. } = self;
        f.debug_struct("Task")
            .field("name", &file.task)
            .field("documents", &documents.len())
            .field("examples", &examples.len())
            .finish_non_exhaustive()
    }
}

/// Where a part of the prompt comes from.
#[derive(Debug, Clone)]
enum Source {
    Number(usize),
    List(Vec<String>),
    Field(String),
    Template(Box<TaskTemplate>),
}

impl Source {
    /// A template unless it is a field of the documents.
    fn new(text: &str, fields: &Document) -> Result<Self, TaskTemplateError> {
        if fields.contains_key(text) {
            Ok(Self::Field(text.to_owned()))
        } else {
            Ok(Self::Template(Box::new(TaskTemplate::new(text)?)))
        }
    }

    fn of_text(text: &Text, fields: &Document) -> Result<Self, TaskTemplateError> {
        match text {
            Text::Number(number) => Ok(Self::Number(*number)),
            Text::Template(template) => Self::new(template, fields),
        }
    }

    fn value(&self, document: &Document) -> Result<Value, String> {
        Ok(match self {
            Self::Number(number) => Value::from(*number),
            Self::List(items) => Value::from(items.clone()),
            Self::Field(name) => document.get(name).cloned().ok_or_else(|| format!("it has no field `{name}`"))?,
            Self::Template(template) => match template.render(document).map_err(|error| error.to_string())? {
                Rendered::Text(text) => Value::from(text),
                Rendered::List(items) => Value::from(items),
            },
        })
    }
}

/// What a document asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The prompt without examples; where choices are prompts, one for each.
    pub texts: Vec<String>,
    /// The choices, none where text is generated or one target scored.
    pub choices: Vec<String>,
    /// The right answer.
    pub target: Target,
}

/// A right answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// One of these choices.
    Choices(Vec<usize>),
    /// One of these texts.
    Texts(Vec<String>),
}

impl Question {
    /// Whether the choices stand in the prompt, and the target behind each.
    pub fn has_several_prompts(&self) -> bool {
        self.texts.len() > 1
    }

    /// The first right answer as text.
    pub fn answer(&self) -> &str {
        let text = match &self.target {
            Target::Choices(right) => right.first().and_then(|&i| self.choices.get(i)),
            Target::Texts(texts) => texts.first(),
        };
        text.map_or("", String::as_str)
    }
}

impl Task {
    /// A task over documents that are at hand.
    ///
    /// # Errors
    /// When there are no documents, or a template, metric or filter is none.
    pub fn new(file: TaskFile, documents: Vec<Document>, examples: Vec<Document>) -> Result<Self, EvalError> {
        let name = file.task.clone();
        let wrong = |message: String| EvalError::Task { task: name.clone(), message };
        let fields = documents.first().ok_or_else(|| wrong("it has no documents".into()))?;
        let in_key = |key: &'static str| {
            let wrong = &wrong;
            move |error: TaskTemplateError| wrong(format!("`{key}`: {error}"))
        };
        let choice = match &file.doc_to_choice {
            None => None,
            Some(Choices::Fixed(items)) => Some(Source::List(items.clone())),
            Some(Choices::Template(text)) => Some(Source::new(text, fields).map_err(in_key("doc_to_choice"))?),
        };
        let query = file.doc_to_decontamination_query.as_ref();
        let query =
            query.map(|text| Source::new(text, fields)).transpose().map_err(in_key("doc_to_decontamination_query"))?;
        let measures = Measures::new(&file).map_err(&wrong)?;
        let filters = Filters::new(&file).map_err(&wrong)?;
        if file.output_type == OutputType::MultipleChoice && choice.is_none() {
            return Err(wrong("`multiple_choice` needs `doc_to_choice`".into()));
        }
        if file.repeats == 0 {
            return Err(wrong("`repeats` begins at 1".into()));
        }
        Ok(Self {
            text: Source::of_text(&file.doc_to_text, fields).map_err(in_key("doc_to_text"))?,
            target: Source::of_text(&file.doc_to_target, fields).map_err(in_key("doc_to_target"))?,
            system: Source::new(&file.system, fields).map_err(in_key("system"))?,
            description: Source::new(&file.description, fields).map_err(in_key("description"))?,
            choice,
            query,
            measures,
            filters,
            documents,
            examples,
            verifier: None,
            file,
        })
    }

    /// With something that judges generated answers; `verified` is measured.
    #[must_use]
    pub fn with_verifier(mut self, verifier: Arc<dyn Verifier + Send + Sync>) -> Self {
        self.verifier = Some(verifier);
        self
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        &self.file.task
    }

    /// The error of a document of this task.
    pub(crate) fn at(&self, doc: usize, message: impl Into<String>) -> EvalError {
        EvalError::Document { task: self.file.task.clone(), doc, message: message.into() }
    }

    /// What the system says, and what stands at the head of a document's prompt.
    fn head(&self, document: &Document) -> Result<(String, String), String> {
        let system = text_of(self.system.value(document)?, "system")?;
        Ok((system, text_of(self.description.value(document)?, "description")?))
    }

    /// The text of a document that is looked for in training text.
    pub(crate) fn query(&self, document: &Document) -> Result<String, String> {
        if let Some(query) = &self.query {
            return text_of(query.value(document)?, "doc_to_decontamination_query");
        }
        let question = self.question(document)?;
        let text = question.texts.first().map_or("", String::as_str);
        Ok(format!("{text}{}{}", self.file.target_delimiter, question.answer()))
    }

    /// The target as the document has it, for the log.
    pub(crate) fn raw_target(&self, document: &Document) -> Result<Value, String> {
        let value = self.target.value(document)?;
        Ok(if self.choice.is_some() { as_number(value) } else { value })
    }

    /// What a document asks.
    ///
    /// # Errors
    /// What is wrong with it: a field that is not there, an answer that is no choice, an empty choice.
    pub fn question(&self, document: &Document) -> Result<Question, String> {
        let choices = match &self.choice {
            None => Vec::new(),
            Some(source) => match source.value(document)? {
                Value::Array(items) => items.iter().map(python::str).collect(),
                Value::Object(object) => object.values().map(python::str).collect(),
                other => return Err(format!("`doc_to_choice` gives {other}, expected a list: write {{{{ [a, b] }}}}")),
            },
        };
        if let Some(empty) = choices.iter().position(String::is_empty) {
            return Err(format!("choice {empty} is empty"));
        }
        let (text, target) = (self.text.value(document)?, self.target.value(document)?);
        if choices.is_empty() {
            let target = match target {
                Value::Array(items) => items.iter().map(python::str).collect(),
                other => vec![python::str(&other)],
            };
            let texts = vec![text_of(text, "doc_to_text")?];
            return Ok(Question { texts, choices, target: Target::Texts(target) });
        }
        if let (Value::Number(number), OutputType::MultipleChoice) = (as_number(text.clone()), self.file.output_type) {
            let right = index(&Value::Number(number), &choices)?;
            let target = text_of(target, "doc_to_target")?;
            if target.is_empty() {
                return Err("the text behind the choices is empty".into());
            }
            return Ok(Question { texts: choices, choices: vec![target], target: Target::Choices(vec![right]) });
        }
        let right = match as_number(target) {
            Value::Array(items) => items.iter().map(|item| index(item, &choices)).collect::<Result<_, _>>()?,
            other => vec![index(&other, &choices)?],
        };
        Ok(Question { texts: vec![text_of(text, "doc_to_text")?], choices, target: Target::Choices(right) })
    }
}

/// A number that a template has made a string of.
fn as_number(value: Value) -> Value {
    match &value {
        Value::String(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            text.parse::<u64>().map_or(value, Value::from)
        }
        _ => value,
    }
}

/// Which choice a target is: its number, or its text.
fn index(target: &Value, choices: &[String]) -> Result<usize, String> {
    let found = match target {
        Value::Number(number) => number.as_u64().map(|i| i as usize),
        Value::Bool(is_second) => Some(usize::from(*is_second)),
        other => choices.iter().position(|choice| *choice == python::str(other)),
    };
    let found = found.filter(|i| *i < choices.len());
    found.ok_or_else(|| format!("the right answer is {target}, which is none of the {} choices", choices.len()))
}

fn text_of(value: Value, key: &str) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("`{key}` gives {other}, expected text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn documents(values: &[Value]) -> Vec<Document> {
        values.iter().map(|value| value.as_object().expect("an object").clone()).collect()
    }

    fn question(toml: &str, document: &Value) -> Result<Question, String> {
        let documents = documents(std::slice::from_ref(document));
        let file = TaskFile::from_toml(&format!("task = \"t\"\n{toml}")).expect("a task");
        let task = Task::new(file, documents.clone(), Vec::new()).map_err(|error| error.to_string())?;
        task.question(&documents[0])
    }

    const CHOICE: &str = "output_type = \"multiple_choice\"\ndoc_to_text = \"q\"\ndoc_to_choice = \"{{[a, b]}}\"\n";

    #[test]
    fn the_right_choice_is_a_number_a_text_or_a_list() {
        let document = json!({"q": "?", "a": "yes", "b": "no", "gold": 1, "word": "no", "both": [0, 1]});
        for (target, right) in [
            ("\"gold\"", vec![1]),
            ("\"word\"", vec![1]),
            ("\"both\"", vec![0, 1]),
            ("0", vec![0]),
            ("\"{{gold}}\"", vec![1]),
        ] {
            let found = question(&format!("{CHOICE}doc_to_target = {target}"), &document).expect("it asks");
            assert_eq!(found.target, Target::Choices(right), "{target}");
            assert_eq!((found.texts, found.choices), (vec!["?".to_owned()], vec!["yes".to_owned(), "no".to_owned()]));
        }
    }

    #[test]
    fn choices_may_be_the_prompts() {
        let toml = "output_type = \"multiple_choice\"\ndoc_to_text = \"{{gold}}\"\ndoc_to_target = \"end\"\ndoc_to_choice = \"{{[a, b]}}\"";
        let found =
            question(toml, &json!({"gold": 1, "end": "fell.", "a": "The cat", "b": "The dog"})).expect("it asks");
        assert_eq!(found.texts, ["The cat", "The dog"]);
        assert_eq!((found.choices, found.target), (vec!["fell.".to_owned()], Target::Choices(vec![1])));
    }

    #[test]
    fn what_cannot_be_asked_says_why() {
        let wrong = |toml: &str, document: Value| question(toml, &document).expect_err("it cannot be asked");
        let text = wrong(&format!("{CHOICE}doc_to_target = 2"), json!({"q": "?", "a": "x", "b": "y"}));
        assert!(text.contains("none of the 2 choices"), "{text}");
        let text = wrong(&format!("{CHOICE}doc_to_target = 0"), json!({"q": "?", "a": "x", "b": ""}));
        assert_eq!(text, "choice 1 is empty");
        let text = wrong("doc_to_text = \"{{nothing}}\"", json!({"q": "?"}));
        assert!(text.contains("undefined"), "{text}");
        let text = wrong("output_type = \"multiple_choice\"", json!({"q": "?"}));
        assert!(text.contains("doc_to_choice"), "{text}");
        let text = wrong("doc_to_text = \"{{ q\"", json!({"q": "?"}));
        assert!(text.contains("doc_to_text"), "{text}");
    }
}
