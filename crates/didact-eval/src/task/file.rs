//! Task files: TOML, or the lm-evaluation-harness's YAML, with the same keys.

use crate::error::EvalError;
use didact_core::files;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// How a model is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputType {
    /// The log-likelihood of one target.
    Loglikelihood,
    /// The log-likelihood of a whole text, in windows of the context.
    LoglikelihoodRolling,
    /// The log-likelihoods of several choices.
    MultipleChoice,
    /// Text, until a stop string.
    #[default]
    GenerateUntil,
}

/// A task, declared. Keys and meanings are the lm-evaluation-harness's, but for those marked *ours*.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFile {
    /// The task's name.
    pub task: String,
    /// Its name in tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_alias: Option<String>,
    /// Sets that it belongs to; each can be asked for by its name.
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub tag: Vec<String>,
    /// `json` or `parquet`, in the harness's files; what the files are is told from themselves here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_path: Option<String>,
    /// The harness's `data_files`, if it is not given beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_kwargs: Option<DatasetArguments>,
    /// *Ours*: the files of each split: JSONL or Parquet, relative to the task file, or with `${VARIABLE}` of the
    /// environment; `zip://member::archive.zip` is a file within an archive.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data_files: BTreeMap<String, Paths>,
    /// The split that examples come from unless `fewshot_split` says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_split: Option<String>,
    /// The split that is asked if there is no `test_split`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_split: Option<String>,
    /// The split that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_split: Option<String>,
    /// The split that examples come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fewshot_split: Option<String>,
    /// The prompt: a field's name, or a Jinja template. With choices it may be the number of the right one; the choices
    /// then are prompts, and the target is what follows each.
    #[serde(default)]
    pub doc_to_text: Text,
    /// The answer: a field's name, a template or a number; with choices, the right one's number or text.
    #[serde(default)]
    pub doc_to_target: Text,
    /// The choices: texts, a field that holds them, or a template that is one expression, `{{ [a, b] }}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doc_to_choice: Option<Choices>,
    /// *Ours*: what the system says: a field's name or a template. It begins the prompt, with `fewshot_delimiter` behind
    /// it, and is a turn of its own where the model's chat template renders prompts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub system: String,
    /// What stands at the head of every prompt; a template.
    #[serde(default)]
    pub description: String,
    /// Between prompt and answer.
    #[serde(default = "space")]
    pub target_delimiter: String,
    /// Behind each example.
    #[serde(default = "blank_line")]
    pub fewshot_delimiter: String,
    /// How examples are chosen.
    #[serde(default)]
    pub fewshot_config: FewShotConfig,
    /// Examples before each question, where the command does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_fewshot: Option<usize>,
    /// How the model is asked.
    #[serde(default)]
    pub output_type: OutputType,
    /// How text is generated.
    #[serde(default)]
    pub generation_kwargs: GenerationArguments,
    /// Answers to each question.
    #[serde(default = "one")]
    pub repeats: usize,
    /// What is measured; the usual metrics of the output type if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metric_list: Vec<MetricSpec>,
    /// What is done to answers before they are measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filter_list: Vec<FilterPipeline>,
    /// *Ours*: what stands before a choice alone for the metric `acc_answer_context`, such as `Answer:`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_context: Option<String>,
    /// Only told; contamination is looked for when the command names training text.
    #[serde(default)]
    pub should_decontaminate: bool,
    /// The text of a document that is looked for in training text; prompt and answer if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doc_to_decontamination_query: Option<String>,
    /// *Ours*: least words of a run that is looked for in training text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contamination_least_words: Option<usize>,
    /// Anything; `version` is reported.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

fn space() -> String {
    " ".into()
}

fn blank_line() -> String {
    "\n\n".into()
}

fn one() -> usize {
    1
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Paths::deserialize(deserializer)?.into_vec())
}

/// One path or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum Paths {
    /// One.
    One(String),
    /// Several, read in this order.
    Many(Vec<String>),
}

impl Paths {
    /// As a list.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(path) => vec![path],
            Self::Many(paths) => paths,
        }
    }
}

/// `dataset_kwargs`, as far as it says where the data are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetArguments {
    /// The files of each split.
    pub data_files: BTreeMap<String, Paths>,
}

/// A field's name, a template, or a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a field's name, a template or a number")]
pub enum Text {
    /// The same number for every document.
    Number(usize),
    /// A field's name or a template.
    Template(String),
}

impl Default for Text {
    fn default() -> Self {
        Self::Template(String::new())
    }
}

/// Where choices come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a list of texts, a field's name or a template")]
pub enum Choices {
    /// The same for every document.
    Fixed(Vec<String>),
    /// A field's name or a template.
    Template(String),
}

/// How examples are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FewShotConfig {
    /// `default` draws them; `first_n` takes the first.
    pub sampler: Sampler,
    /// Where they come from, before `fewshot_split`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Which documents of the split may be examples, from 0; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fewshot_indices: Option<Vec<usize>>,
}

/// Which documents are examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// Drawn.
    #[default]
    Default,
    /// The first ones.
    FirstN,
}

/// How text is generated.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationArguments {
    /// Stop strings; `fewshot_delimiter` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Paths>,
    /// Most new tokens; 256 if absent.
    #[serde(skip_serializing_if = "Option::is_none", alias = "max_new_tokens", alias = "max_tokens")]
    pub max_gen_toks: Option<usize>,
    /// Whether tokens are drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub do_sample: Option<bool>,
    /// Temperature, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Top-p, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Top-k, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
}

/// A metric and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricSpec {
    /// Which; see [`crate::measure::METRICS`].
    pub metric: String,
    /// How documents' values become one; each metric knows, and another one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<String>,
    /// Each metric knows; told for the harness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub higher_is_better: Option<bool>,
    /// `exact_match`: letters are compared in lower case.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_case: bool,
    /// `exact_match`: punctuation does not count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_punctuation: bool,
    /// `exact_match`: digits do not count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_numbers: bool,
    /// `exact_match`: what these match is taken out first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regexes_to_ignore: Vec<String>,
    /// *Ours*, `pass_at_k`: of how many answers one must be right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub k: Vec<usize>,
}

/// A named list of filters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterPipeline {
    /// Its name, part of the metrics' keys.
    pub name: String,
    /// In this order.
    pub filter: Vec<FilterSpec>,
}

/// A filter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "function", rename_all = "snake_case", deny_unknown_fields)]
pub enum FilterSpec {
    /// The `group_select`-th match of a pattern (negative: from the last), its first group that is not empty, trimmed.
    Regex {
        /// The pattern.
        #[serde(default = "gsm8k_pattern")]
        regex_pattern: String,
        /// Which match.
        #[serde(default)]
        group_select: i64,
        /// What stands in where there is none.
        #[serde(default = "invalid")]
        fallback: String,
    },
    /// White space at both ends is taken off.
    RemoveWhitespace {},
    /// Lower case.
    Lowercase {},
    /// Upper case.
    Uppercase {},
    /// Values by their keys.
    Map {
        /// Keys and values.
        mapping_dict: BTreeMap<String, String>,
        /// What stands in for other keys.
        #[serde(default)]
        default_value: String,
    },
    /// The first answer.
    TakeFirst {},
    /// The first `k` answers.
    TakeFirstK {
        /// How many.
        k: usize,
    },
    /// The answer that comes most often; among equals the one that came first.
    MajorityVote {},
}

fn gsm8k_pattern() -> String {
    r"#### (\-?[0-9\.\,]+)".into()
}

fn invalid() -> String {
    "[invalid]".into()
}

impl TaskFile {
    /// Reads a file: `.toml`, `.yaml` or `.yml`.
    ///
    /// # Errors
    /// When it cannot be read, or is no task.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let text = files::read_to_string(path)?;
        let wrong = |message: String| EvalError::TaskFile { path: path.to_owned(), message };
        let is_yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if is_yaml { Self::from_yaml(&text) } else { Self::from_toml(&text) }.map_err(wrong)
    }

    /// From TOML.
    ///
    /// # Errors
    /// What is wrong, with the line.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
    }

    /// From the harness's YAML. Its `!function` needs Python, and is refused.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        let documents = Yaml::load_from_str(text).map_err(|error| error.to_string())?;
        let [document] = documents.as_slice() else {
            return Err(format!("expected one YAML document, found {}", documents.len()));
        };
        Self::deserialize(json(document, "the file")?).map_err(|error| error.to_string())
    }

    /// The split that is asked.
    pub fn asked_split(&self) -> Option<&str> {
        self.test_split.as_deref().or(self.validation_split.as_deref())
    }

    /// The split that examples come from.
    pub fn example_split(&self) -> Option<&str> {
        let own = self.fewshot_config.split.as_deref().or(self.fewshot_split.as_deref());
        own.or(self.training_split.as_deref()).or(self.validation_split.as_deref()).or(self.test_split.as_deref())
    }

    /// Whether a document is kept out of its own examples: when the harness is told of one split for both, or of none.
    pub fn excludes_itself(&self) -> bool {
        let own = self.fewshot_config.split.as_ref().or(self.fewshot_split.as_ref());
        own == self.test_split.as_ref()
    }

    /// The files of each split.
    pub fn files(&self) -> &BTreeMap<String, Paths> {
        match &self.dataset_kwargs {
            Some(arguments) if self.data_files.is_empty() => &arguments.data_files,
            _ => &self.data_files,
        }
    }
}

/// YAML's values as JSON's; `place` is where they stand.
fn json(node: &Yaml<'_>, place: &str) -> Result<Value, String> {
    Ok(match node {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => Value::from(*value),
        Yaml::Value(Scalar::Integer(value)) => Value::from(*value),
        Yaml::Value(Scalar::FloatingPoint(value)) => Value::from(value.into_inner()),
        Yaml::Value(Scalar::String(value)) => Value::from(value.as_ref()),
        Yaml::Sequence(items) => items.iter().map(|item| json(item, place)).collect::<Result<Vec<_>, _>>()?.into(),
        Yaml::Mapping(entries) => {
            let entry = |(key, value): (&Yaml<'_>, &Yaml<'_>)| {
                let key = match json(key, place)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                let value = json(value, &key)?;
                Ok::<_, String>((key, value))
            };
            Value::Object(entries.iter().map(entry).collect::<Result<_, _>>()?)
        }
        Yaml::Tagged(tag, _) if tag.suffix == "function" => {
            return Err(format!("`{place}`: `!function` calls Python; say it with a template or filter"));
        }
        _ => return Err(format!("`{place}`: tags and aliases of YAML are not understood")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_and_the_harness_yaml_say_the_same() {
        let toml = r#"
            task = "sums"
            dataset_path = "json"
            dataset_kwargs = { data_files = { test = "sums.jsonl" } }
            test_split = "test"
            output_type = "generate_until"
            doc_to_text = "Q: {{q}}\nA:"
            doc_to_target = "a"
            generation_kwargs = { until = ["\n"], max_gen_toks = 8 }
            metric_list = [{ metric = "exact_match", aggregation = "mean", ignore_case = true }]
            filter_list = [{ name = "number", filter = [{ function = "regex", regex_pattern = "(-?[0-9]+)", group_select = -1 }, { function = "take_first" }] }]
            metadata = { version = 1.0 }
        "#;
        let yaml = r#"
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: sums.jsonl
test_split: test
output_type: generate_until
doc_to_text: "Q: {{q}}\nA:"
doc_to_target: a
generation_kwargs:
  until:
    - "\n"
  max_gen_toks: 8
metric_list:
  - metric: exact_match
    aggregation: mean
    ignore_case: true
filter_list:
  - name: number
    filter:
      - function: regex
        regex_pattern: (-?[0-9]+)
        group_select: -1
      - function: take_first
metadata:
  version: 1.0
"#;
        let (toml, yaml) = (TaskFile::from_toml(toml).expect("it reads"), TaskFile::from_yaml(yaml).expect("it reads"));
        assert_eq!(toml, yaml);
        assert_eq!((toml.target_delimiter.as_str(), toml.fewshot_delimiter.as_str()), (" ", "\n\n"));
        assert!(!toml.excludes_itself(), "the harness compares the names of the splits, and one is unset");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = TaskFile::from_toml("task = \"a\"\ndoc_to_txt = \"q\"").expect_err("a key too many");
        assert!(error.contains("doc_to_txt") && error.contains('2'), "{error}");
        let error = TaskFile::from_yaml("task: a\nprocess_results: !function utils.f").expect_err("python");
        assert!(error.contains("`process_results`") && error.contains("!function"), "{error}");
        let error = TaskFile::from_yaml("task: a\nuse_prompt: x").expect_err("a key too many");
        assert!(error.contains("use_prompt"), "{error}");
        let error =
            TaskFile::from_toml("task = \"a\"\nfilter_list = [{name = \"x\", filter = [{function = \"magic\"}]}]");
        assert!(error.expect_err("no such filter").contains("magic"));
    }
}
