//! The table of the recipe `hyperfitting`. Defaults are here and nowhere else.

use didact_train::TrainConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::settings::{
    DataSettings, EvalSettings, ExportSettings, GenerateSettings, ModelSource, PrecisionChoice, default_seed,
    recipe_settings,
};
use super::{RecipeError, Refuse};

/// What is learned by heart, and how the model's text is compared before and after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HyperfitTable {
    /// Documents to learn by heart at most, drawn from the data, each cut to `train.max_seq_len` learned tokens; shorter ones
    /// are left out.
    pub snippets: usize,
    /// Documents to measure on at most, of the same length; a fifth of the documents if there are not so many.
    pub held_out: usize,
    /// How many of those are continued.
    pub prompts: usize,
    /// Tokens of each that are given.
    pub prompt_tokens: usize,
    /// Tokens that are written after them.
    pub continuation_tokens: usize,
    /// Top-p of the original model's samples.
    pub top_p: f32,
    /// Their temperature.
    pub temperature: f32,
    /// Repetition penalty of the original model's greedy text.
    pub repetition_penalty: f32,
    /// Also continue without ever citing more than so many tokens of a snippet in a row; 0 leaves that out.
    pub block_citations: usize,
}

impl Default for HyperfitTable {
    fn default() -> Self {
        Self {
            snippets: 2000,
            held_out: 128,
            prompts: 32,
            prompt_tokens: 32,
            continuation_tokens: 96,
            top_p: 0.9,
            temperature: 1.0,
            repetition_penalty: 1.2,
            block_citations: 5,
        }
    }
}

recipe_settings! {
    /// The recipe `hyperfitting`.
    HyperfittingSettings {
        /// Documents.
        data: DataSettings,
        /// What is learned of them, and what is compared.
        hyperfit: HyperfitTable,
    }
}

/// Ranges and rules between keys; opens nothing.
pub(super) fn check(settings: &HyperfittingSettings, refuse: &Refuse<'_>) -> Result<(), RecipeError> {
    if settings.data.path.as_ref().is_none_or(|paths| paths.list().is_empty()) {
        return Err(refuse("data.path", "missing; name the documents to learn by heart".into()));
    }
    if settings.data.held_out_path.is_some() {
        return Err(refuse("data.held_out_path", "is not read by this recipe; see `hyperfit.held_out`".into()));
    }
    let (table, train) = (&settings.hyperfit, &settings.train);
    for (key, value) in [
        ("snippets", table.snippets),
        ("held_out", table.held_out),
        ("prompts", table.prompts),
        ("prompt_tokens", table.prompt_tokens),
        ("continuation_tokens", table.continuation_tokens),
    ] {
        if value == 0 {
            return Err(refuse(&format!("hyperfit.{key}"), "is 0, expected at least 1".into()));
        }
    }
    if table.prompt_tokens > train.max_seq_len {
        let message =
            format!("is {}, more than `train.max_seq_len`, which is {}", table.prompt_tokens, train.max_seq_len);
        return Err(refuse("hyperfit.prompt_tokens", message));
    }
    if table.snippets < train.batch_size {
        let message = format!("is {}, less than `train.batch_size`, which is {}", table.snippets, train.batch_size);
        return Err(refuse("hyperfit.snippets", message));
    }
    let sampled = didact_core::generate::Sampling {
        top_p: Some(table.top_p),
        temperature: table.temperature,
        repetition_penalty: table.repetition_penalty,
        ..didact_core::generate::Sampling::default()
    };
    if let Err(didact_core::generate::RequestError::Setting { name, value, expected }) = didact_infer::check(&sampled) {
        return Err(refuse(&format!("hyperfit.{name}"), format!("is {value}: {expected}")));
    }
    if table.temperature == 0.0 {
        return Err(refuse(
            "hyperfit.temperature",
            "is 0, expected a number above 0: the samples would be greedy".into(),
        ));
    }
    Ok(())
}
