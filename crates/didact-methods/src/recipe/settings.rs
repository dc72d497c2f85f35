//! The tables of recipes, typed. Defaults are here and nowhere else.

use crate::toolworld::{Docs, LevelMix, WorldConfig};
use didact_data::reader::TextUnit;
use didact_data::schema::{FieldNames, Schema};
use didact_train::{PreferenceTable, TrainConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Arithmetic of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// `bf16` where the processor multiplies it in hardware, else `f32`.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// Operands rounded to bfloat16, sums in single precision.
    Bf16,
}

/// Where the model comes from: `path`, or `config` with `tokenizer`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSource {
    /// A directory in Hugging Face's layout, a GGUF file, or a name that `didact model pull` knows.
    pub path: Option<String>,
    /// A model from scratch: `config.json` as a table, with the same names.
    pub config: Option<Map<String, Value>>,
    /// Its tokenizer: a directory with `tokenizer.json`, or a GGUF file.
    pub tokenizer: Option<String>,
}

/// One path or several; each a file, a folder or a glob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a path or a list of paths")]
pub enum Paths {
    /// One.
    One(String),
    /// Several, in this order.
    Many(Vec<String>),
}

impl Paths {
    /// All of them.
    pub fn list(&self) -> Vec<String> {
        match self {
            Self::One(path) => vec![path.clone()],
            Self::Many(paths) => paths.clone(),
        }
    }
}

/// What to do about a row that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnBadRow {
    /// End the run with a message that names file, row and cause.
    #[default]
    Stop,
    /// Leave it out, count it, and list it.
    Skip,
}

/// Which tokens of a conversation are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// What the assistant says, the end of its turns included; of `prompt`/`completion` rows, the completion.
    #[default]
    Assistant,
    /// The assistant's last turn only.
    LastAssistant,
    /// Everything.
    All,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "stands in for another crate's type in the JSON schema")]
enum SchemaName {
    Text,
    PromptCompletion,
    Messages,
    Alpaca,
    #[serde(rename = "sharegpt")]
    ShareGpt,
    Preference,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "stands in for another crate's type in the JSON schema")]
enum TextUnitName {
    File,
    Paragraph,
    Line,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "stands in for another crate's type in the JSON schema")]
struct FieldNameKeys {
    text: Option<String>,
    prompt: Option<String>,
    completion: Option<String>,
    messages: Option<String>,
    tools: Option<String>,
}

/// The user's data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// Files, folders or globs of JSONL (plain, `.gz`, `.zst`), Parquet or plain text.
    pub path: Option<Paths>,
    /// The rows' schema; recognised from the first row's keys when not given.
    #[schemars(with = "Option<SchemaName>")]
    pub schema: Option<Schema>,
    /// Names of keys where they differ from the usual ones.
    #[schemars(with = "FieldNameKeys")]
    pub fields: FieldNames,
    /// What one document of a `.txt` file is.
    #[schemars(with = "TextUnitName")]
    pub text_unit: TextUnit,
    /// What to do about a row that cannot be used.
    pub on_bad_row: OnBadRow,
    /// Which tokens of conversations are learned.
    pub train_on: TrainOn,
    /// Rows to measure on and never to train on, from files of their own.
    pub held_out_path: Option<Paths>,
    /// Share of the rows to hold out when `held_out_path` is not given; 0 holds out none and measures nothing.
    pub held_out: f64,
    /// At most this many rows are held out.
    pub held_out_rows: usize,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            path: None,
            schema: None,
            fields: FieldNames::default(),
            text_unit: TextUnit::default(),
            on_bad_row: OnBadRow::default(),
            train_on: TrainOn::default(),
            held_out_path: None,
            held_out: 0.05,
            held_out_rows: 200,
        }
    }
}

/// Answers made while evaluating.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateSettings {
    /// Most tokens per answer. Decoding is greedy.
    pub max_tokens: usize,
    /// Answers shown in the report, before and after.
    pub samples: usize,
}

impl Default for GenerateSettings {
    fn default() -> Self {
        Self { max_tokens: 64, samples: 3 }
    }
}

/// How the model is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSettings {
    /// Rows worked on at a time.
    pub batch_size: usize,
    /// Also measure perplexity on the plain English that ships with Didact, so that what was forgotten shows.
    pub plain_text: bool,
    /// Tasks to ask before and after training, as `didact eval --tasks` takes them: names, sets, task files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// Solved examples before each question; the tasks are asked once for each number. Each task's own number if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shots: Vec<usize>,
    /// Questions of each task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Say the tasks' prompts as a user, in the model's chat template.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub chat: bool,
}

impl Default for EvalSettings {
    fn default() -> Self {
        Self { batch_size: 4, plain_text: true, tasks: Vec::new(), shots: Vec::new(), limit: None, chat: false }
    }
}

/// Number format of exported weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportDtype {
    /// Single precision.
    F32,
    /// bfloat16.
    #[default]
    Bf16,
    /// Half precision.
    F16,
}

/// What is written for use elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExportSettings {
    /// The whole model, an adapter folded in, as a directory that Python's `transformers` loads.
    pub model: bool,
    /// The adapter alone, as a directory that Python's `peft` loads, when an adapter was trained.
    pub adapter: bool,
    /// Number format of the whole model.
    pub dtype: ExportDtype,
}

impl Default for ExportSettings {
    fn default() -> Self {
        Self { model: true, adapter: true, dtype: ExportDtype::default() }
    }
}

/// The world of requests and tools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ToolworldSettings {
    /// Samples to train on.
    pub train_examples: usize,
    /// Requests to test on, for held-out tools and again for trained ones.
    pub test_examples: usize,
    /// Nouns that each of the eight verbs is combined with, from 2 to 12.
    pub nouns_per_verb: usize,
    /// How many of them appear in no training sample.
    pub held_out_per_verb: usize,
    /// Share of requests that fit no listed tool; the right answer is `none`.
    pub none_share: f64,
    /// Which tools a prompt lists beside the right one.
    pub docs: Docs,
    /// Shares of the levels.
    pub levels: LevelMix,
}

impl Default for ToolworldSettings {
    fn default() -> Self {
        Self {
            train_examples: 1056,
            test_examples: 100,
            nouns_per_verb: 12,
            held_out_per_verb: 3,
            none_share: 0.04,
            docs: Docs { distractors: 3, siblings: 2 },
            levels: LevelMix { easy: 0.7, medium: 0.3, hard: 0.0 },
        }
    }
}

impl ToolworldSettings {
    /// The world these settings describe.
    pub fn world(&self) -> WorldConfig {
        WorldConfig {
            nouns_per_verb: self.nouns_per_verb,
            held_out_per_verb: self.held_out_per_verb,
            none_share: self.none_share,
            docs: Some(self.docs.clone()),
            levels: self.levels.clone(),
        }
    }
}

pub(super) const fn default_seed() -> u64 {
    1
}

/// A recipe's settings: the tables that every recipe has, and its own.
macro_rules! recipe_settings {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// The method.
            pub recipe: String,
            /// Names the run directory.
            #[serde(default)]
            pub name: Option<String>,
            /// Root of all randomness.
            #[serde(default = "default_seed")]
            pub seed: u64,
            /// Arithmetic of matrix products.
            #[serde(default)]
            pub precision: PrecisionChoice,
            /// The model to train.
            #[serde(default)]
            pub model: ModelSource,
            $($(#[$field_doc])* #[serde(default)] pub $field: $type,)*
            /// How to train.
            #[serde(default)]
            pub train: TrainConfig,
            /// Answers.
            #[serde(default)]
            pub generate: GenerateSettings,
            /// Measurements.
            #[serde(default)]
            pub eval: EvalSettings,
            /// What to write.
            #[serde(default)]
            pub export: ExportSettings,
        }
    };
}

pub(super) use recipe_settings;

recipe_settings! {
    /// The recipe `quickstart`.
    QuickstartSettings {
        /// What to teach the model.
        toolworld: ToolworldSettings,
    }
}

recipe_settings! {
    /// The recipes `sft` and `continue-pretraining-text`.
    DataRecipeSettings {
        /// What to train the model on.
        data: DataSettings,
    }
}

recipe_settings! {
    /// The recipe `dpo`.
    PreferenceRecipeSettings {
        /// The pairs.
        data: DataSettings,
        /// The loss.
        preference: PreferenceTable,
    }
}
