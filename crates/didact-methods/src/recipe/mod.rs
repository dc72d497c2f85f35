//! Recipes: TOML files that apply a method to somebody's model and data.
//!
//! Reading has three steps: the text becomes a tree in which every key knows its place, with the spellings of other
//! trainers renamed and unknown keys refused; overrides are applied; the tree becomes typed
//! settings, which are checked and, with all defaults filled in, written down again as the run's identity.

mod document;
mod error;
mod hyperfit;
mod mixed;
mod rounds;
mod settings;

pub use error::{Place, RecipeError};
pub use hyperfit::{HyperfitTable, HyperfittingSettings};
pub use mixed::{
    AggregateTable, ContinualData, ContinualSettings, ContinualTable, CurriculumTable, DecompositionSettings,
    DecompositionTable, EtaName, EtaTable, GraphMode, GraphTable, LengthMixture, LengthMixtureName, LengthOrder,
    MixtureRecipeSettings, OverLongTable, PaceShape, PathPoint, PathShape, Shares, Shift, SkillItSettings,
    SkillsSetting, SkillsTable, SourceTable, SourcesTable, TailTable, WindowTable, WindowUnitTable,
};
pub use rounds::{
    CheckerKind, ItertlSettings, ItertlTable, Lesson, PROMPT, RoundsTable, SelectRule, Start, Target, TaskFormat,
    TasksTable, ToolaceSettings, ToolaceTable, VerifyTable,
};
pub use settings::{
    DataRecipeSettings, DataSettings, EvalSettings, ExportDtype, ExportSettings, GenerateSettings, ModelSource,
    OnBadRow, Paths, PrecisionChoice, PreferenceRecipeSettings, QuickstartSettings, ToolworldSettings, TrainOn,
};

use crate::registry::{Method, NamedRecipe, named_recipe, recipes};
use didact_train::TrainConfig;
use document::{Document, nearest};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;

/// A recipe, read and checked.
#[derive(Debug, Clone)]
pub struct Recipe {
    named: &'static NamedRecipe,
    origin: String,
    name: String,
    settings: Settings,
    resolved: Value,
}

/// The typed settings of a recipe.
#[derive(Debug, Clone, PartialEq)]
pub enum Settings {
    /// `quickstart`.
    Quickstart(Box<QuickstartSettings>),
    /// `sft`.
    Sft(Box<DataRecipeSettings>),
    /// `dpo`.
    Dpo(Box<PreferenceRecipeSettings>),
    /// `continue-pretraining-text`.
    ContinuePretrainingText(Box<DataRecipeSettings>),
    /// `continual-pretraining`.
    Continual(Box<ContinualSettings>),
    /// `dataset-decomposition`.
    Decomposition(Box<DecompositionSettings>),
    /// `skill-it`.
    SkillIt(Box<SkillItSettings>),
    /// `hyperfitting`.
    Hyperfitting(Box<HyperfittingSettings>),
    /// `few-shot-evaluation`.
    FewShot(Box<DataRecipeSettings>),
    /// `mixture`.
    Mixture(Box<MixtureRecipeSettings>),
    /// `itertl`.
    Itertl(Box<ItertlSettings>),
    /// `toolace-r`.
    Toolace(Box<ToolaceSettings>),
}

/// The tables that every recipe has.
#[derive(Debug, Clone, Copy)]
pub struct Common<'a> {
    /// Root of all randomness.
    pub seed: u64,
    /// Arithmetic of matrix products.
    pub precision: PrecisionChoice,
    /// The model.
    pub model: &'a ModelSource,
    /// How to train.
    pub train: &'a TrainConfig,
    /// Answers.
    pub generate: &'a GenerateSettings,
    /// Measurements.
    pub eval: &'a EvalSettings,
    /// What to write.
    pub export: &'a ExportSettings,
}

macro_rules! common {
    ($settings:expr) => {
        Common {
            seed: $settings.seed,
            precision: $settings.precision,
            model: &$settings.model,
            train: &$settings.train,
            generate: &$settings.generate,
            eval: &$settings.eval,
            export: &$settings.export,
        }
    };
}

impl Settings {
    /// The tables that every recipe has.
    pub fn common(&self) -> Common<'_> {
        match self {
            Self::Quickstart(s) => common!(s),
            Self::Sft(s) | Self::ContinuePretrainingText(s) | Self::FewShot(s) => common!(s),
            Self::Dpo(s) => common!(s),
            Self::Continual(s) => common!(s),
            Self::Decomposition(s) => common!(s),
            Self::SkillIt(s) => common!(s),
            Self::Hyperfitting(s) => common!(s),
            Self::Mixture(s) => common!(s),
            Self::Itertl(s) => common!(s),
            Self::Toolace(s) => common!(s),
        }
    }
}

impl Recipe {
    /// The method's name, such as `sft`.
    pub fn method(&self) -> &'static str {
        self.named.name
    }

    /// The name of its runs: the recipe's own `name`, or the method's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file it was read from, or the named recipe.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Every setting with its value, defaults filled in.
    pub fn settings(&self) -> &Value {
        &self.resolved
    }

    /// The settings, typed.
    pub fn typed(&self) -> &Settings {
        &self.settings
    }

    /// Root of all randomness.
    pub fn seed(&self) -> u64 {
        self.settings.common().seed
    }
}

/// Reads a recipe: a file (it exists, or its name ends in `.toml`) or a named recipe. `overrides` are key paths and values as
/// given with `--set`, later ones winning; a value that is not TOML is taken as a string, and `false` or `none` removes
/// a table such as `train.lora`.
///
/// # Errors
/// [`RecipeError`], naming file, line and column or the override, the key, and what is wrong.
pub fn load_recipe(path_or_name: &str, overrides: &[(String, String)]) -> Result<Recipe, RecipeError> {
    let path = Path::new(path_or_name);
    let is_file = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml")) || path.is_file();
    if is_file {
        let text =
            std::fs::read_to_string(path).map_err(|source| RecipeError::Read { path: path.to_owned(), source })?;
        return read(&text, path_or_name, overrides);
    }
    match named_recipe(path_or_name) {
        Some(named) => read(named.text, named.name, overrides),
        None => Err(RecipeError::UnknownRecipe {
            name: path_or_name.to_owned(),
            nearest: nearest(path_or_name, names()),
            known: names(),
        }),
    }
}

fn names() -> Vec<String> {
    recipes().iter().map(|r| r.name.to_owned()).collect()
}

/// The JSON schema of a method's recipes, for editors and documents.
pub fn json_schema(method: Method) -> Value {
    match method {
        Method::Quickstart => schema_of::<QuickstartSettings>(),
        Method::Sft | Method::ContinuePretrainingText | Method::FewShot => schema_of::<DataRecipeSettings>(),
        Method::Dpo => schema_of::<PreferenceRecipeSettings>(),
        Method::Continual => schema_of::<ContinualSettings>(),
        Method::Decomposition => schema_of::<DecompositionSettings>(),
        Method::SkillIt => schema_of::<SkillItSettings>(),
        Method::Hyperfitting => schema_of::<HyperfittingSettings>(),
        Method::Mixture => schema_of::<MixtureRecipeSettings>(),
        Method::Itertl => schema_of::<ItertlSettings>(),
        Method::Toolace => schema_of::<ToolaceSettings>(),
    }
}

fn schema_of<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// Reads a recipe from its text.
///
/// # Errors
/// As [`load_recipe`].
pub fn read(text: &str, origin: &str, overrides: &[(String, String)]) -> Result<Recipe, RecipeError> {
    let named = method_of(text, origin)?;
    let schema = json_schema(named.method);
    let mut document = Document::parse(text, origin, &schema)?;
    for (key, value) in overrides {
        document.set(key, value, &schema)?;
    }
    let settings = match named.method {
        Method::Quickstart => Settings::Quickstart(Box::new(typed(&document)?)),
        Method::Sft => Settings::Sft(Box::new(typed(&document)?)),
        Method::Dpo => Settings::Dpo(Box::new(typed(&document)?)),
        Method::ContinuePretrainingText => Settings::ContinuePretrainingText(Box::new(typed(&document)?)),
        Method::FewShot => Settings::FewShot(Box::new(typed(&document)?)),
        Method::Continual => Settings::Continual(Box::new(typed(&document)?)),
        Method::Decomposition => Settings::Decomposition(Box::new(typed(&document)?)),
        Method::SkillIt => Settings::SkillIt(Box::new(typed(&document)?)),
        Method::Hyperfitting => Settings::Hyperfitting(Box::new(typed(&document)?)),
        Method::Mixture => Settings::Mixture(Box::new(typed(&document)?)),
        Method::Itertl => Settings::Itertl(Box::new(typed(&document)?)),
        Method::Toolace => Settings::Toolace(Box::new(typed(&document)?)),
    };
    check(&settings, &document)?;
    let (name, resolved) = match &settings {
        Settings::Quickstart(s) => (s.name.clone(), resolved(s.as_ref())),
        Settings::Sft(s) | Settings::ContinuePretrainingText(s) | Settings::FewShot(s) => {
            (s.name.clone(), resolved(s.as_ref()))
        }
        Settings::Dpo(s) => (s.name.clone(), resolved(s.as_ref())),
        Settings::Continual(s) => (s.name.clone(), resolved(s.as_ref())),
        Settings::Decomposition(s) => (s.name.clone(), resolved(s.as_ref())),
        Settings::SkillIt(s) => (s.name.clone(), resolved(s.as_ref())),
        Settings::Hyperfitting(s) => (s.name.clone(), resolved(s.as_ref())),
        Settings::Mixture(s) => (s.name.clone(), resolved(s.as_ref())),
        Settings::Itertl(s) => (s.name.clone(), resolved(s.as_ref())),
        Settings::Toolace(s) => (s.name.clone(), resolved(s.as_ref())),
    };
    let name = name.unwrap_or_else(|| named.name.to_owned());
    Ok(Recipe { named, origin: origin.to_owned(), name, settings, resolved })
}

/// The method that a text names, found before its keys can be checked.
fn method_of(text: &str, origin: &str) -> Result<&'static NamedRecipe, RecipeError> {
    let (name, place) = document::method_name(text, origin)?;
    let known = names();
    let Some(name) = name else { return Err(RecipeError::NoRecipe { place, known }) };
    named_recipe(&name).ok_or_else(|| RecipeError::Value {
        place,
        key: "recipe".into(),
        message: match nearest(&name, known.clone()) {
            Some(nearest) => format!("there is no method `{name}`; did you mean `{nearest}`?"),
            None => format!("there is no method `{name}`; methods are {}", known.join(", ")),
        },
    })
}

fn typed<T: DeserializeOwned>(document: &Document) -> Result<T, RecipeError> {
    let settings = Value::Object(document.settings.clone());
    serde_path_to_error::deserialize(settings).map_err(|error| {
        let key = error.path().to_string();
        RecipeError::Value { place: document.place(&key), message: error.inner().to_string(), key }
    })
}

fn resolved(settings: &impl Serialize) -> Value {
    serde_json::to_value(settings).expect("settings are plain data")
}

/// Checks ranges and rules between keys; opens nothing.
fn check(settings: &Settings, document: &Document) -> Result<(), RecipeError> {
    let refuse =
        |key: &str, message: String| RecipeError::Value { place: document.place(key), key: key.to_owned(), message };
    let common = settings.common();
    common.train.validate().map_err(|error| RecipeError::Setting {
        place: document.place(&key_in(&error.to_string()).unwrap_or_else(|| "train".to_owned())),
        message: error.to_string(),
    })?;
    let model = common.model;
    match (&model.path, &model.config, &model.tokenizer) {
        (Some(_), None, None) | (None, Some(_), Some(_)) => {}
        (None, None, _) => {
            let message = "missing; name a directory, a GGUF file, or a model that `didact model pull` knows";
            return Err(refuse("model.path", message.into()));
        }
        (Some(_), Some(_), _) => {
            return Err(refuse("model.config", "makes a model from scratch; remove it or `model.path`".into()));
        }
        (Some(_), None, Some(_)) => {
            return Err(refuse(
                "model.tokenizer",
                "belongs to `model.config`; a model at `model.path` has its own".into(),
            ));
        }
        (None, Some(_), None) => {
            return Err(refuse("model.tokenizer", "missing; a model from scratch needs one".into()));
        }
    }
    if model.config.is_some() && common.train.lora.is_some() {
        return Err(refuse("train.lora", "an adapter on random weights learns nothing useful; remove it".into()));
    }
    if common.generate.max_tokens == 0 {
        return Err(refuse("generate.max_tokens", "is 0, expected at least 1".into()));
    }
    if common.eval.batch_size == 0 {
        return Err(refuse("eval.batch_size", "is 0, expected at least 1".into()));
    }
    let eval = common.eval;
    if eval.tasks.is_empty() && (!eval.shots.is_empty() || eval.limit.is_some() || eval.chat) {
        return Err(refuse(
            "eval.tasks",
            "missing; `eval.shots`, `eval.limit` and `eval.chat` say how tasks are asked".into(),
        ));
    }
    if eval.limit == Some(0) {
        return Err(refuse("eval.limit", "is 0, expected at least 1".into()));
    }
    match settings {
        Settings::Quickstart(s) => {
            if s.toolworld.train_examples == 0 {
                return Err(refuse("toolworld.train_examples", "is 0, expected at least 1".into()));
            }
            if s.toolworld.test_examples == 0 {
                return Err(refuse("toolworld.test_examples", "is 0, expected at least 1".into()));
            }
            crate::toolworld::World::new(&s.toolworld.world(), &didact_core::seed::Streams::new(s.seed)).map_err(
                |error| {
                    let message = error.to_string();
                    RecipeError::Setting {
                        place: document.place(&key_in(&message).unwrap_or_else(|| "toolworld".to_owned())),
                        message,
                    }
                },
            )?;
        }
        Settings::Sft(s) | Settings::ContinuePretrainingText(s) => {
            check_data("data", &s.data, &refuse)?;
        }
        Settings::FewShot(s) => {
            check_data("data", &s.data, &refuse)?;
            if eval.tasks.is_empty() {
                return Err(refuse("eval.tasks", "missing; name what is asked before and after training".into()));
            }
        }
        Settings::Dpo(s) => {
            check_data("data", &s.data, &refuse)?;
            check_preference(s, &refuse)?;
        }
        Settings::Hyperfitting(s) => hyperfit::check(s, &refuse)?,
        Settings::Itertl(s) => rounds::check_itertl(s, &refuse)?,
        Settings::Toolace(s) => rounds::check_toolace(s, &refuse)?,
        _ => mixed::check(settings, &refuse)?,
    }
    Ok(())
}

/// Rules about learning from pairs.
fn check_preference(s: &PreferenceRecipeSettings, refuse: &Refuse<'_>) -> Result<(), RecipeError> {
    if let Err(error) = s.preference.validate() {
        let message = format!("is {}, expected {}", error.found, error.expected);
        return Err(refuse(&format!("preference.{}", error.key), message));
    }
    if s.data.schema.is_some_and(|schema| schema != didact_data::schema::Schema::Preference) {
        return Err(refuse("data.schema", "must be `preference`: rows with `chosen` and `rejected`".into()));
    }
    if s.data.train_on != TrainOn::Assistant {
        return Err(refuse("data.train_on", "has no meaning here: of a pair the answers are learned".into()));
    }
    if s.train.packing == didact_data::packing::Packing::Concat {
        return Err(refuse("train.packing", "`concat` would tear pairs apart; take `best_fit` or `none`".into()));
    }
    if s.train.eval_steps.is_some() || s.train.load_best {
        return Err(refuse("train.eval_steps", "pairs are measured before and after training only; remove it".into()));
    }
    Ok(())
}

type Refuse<'a> = dyn Fn(&str, String) -> RecipeError + 'a;

/// Rules about one source, whose table stands at `key`.
fn check_data(key: &str, data: &DataSettings, refuse: &Refuse<'_>) -> Result<(), RecipeError> {
    if data.path.as_ref().is_none_or(|p| p.list().is_empty()) {
        return Err(refuse(&format!("{key}.path"), "missing; name the files to train on".into()));
    }
    if !(0.0..=0.5).contains(&data.held_out) {
        let message = format!("is {}, expected a share from 0 to 0.5", data.held_out);
        return Err(refuse(&format!("{key}.held_out"), message));
    }
    if data.held_out > 0.0 && data.held_out_rows == 0 {
        let message = format!("is 0; to hold out nothing, set `{key}.held_out` to 0");
        return Err(refuse(&format!("{key}.held_out_rows"), message));
    }
    Ok(())
}

/// The first key path in backticks of a message.
fn key_in(message: &str) -> Option<String> {
    message.split('`').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests;
