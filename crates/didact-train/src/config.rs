//! The `[train]` table of a recipe: what a user may say about training, and what holds when nothing is said.
//!
//! Keys carry the names that other trainers made familiar; their further spellings are in [`ALIASES`].

use didact_data::packing::Packing;
use didact_model::gradients::GradientDtype;
use didact_model::lora::{LoraConfig, TargetModules};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::ConfigError;
use crate::schedule::LearningRate;

/// Values of keys that a recipe does not give, each with where it comes from.
pub mod defaults {
    /// TRL's value for full fine-tuning; adapters bear ten times as much and more, and recipes for them say so.
    pub const LEARNING_RATE: f64 = 2e-5;
    /// Short: Adam's second moment is an average of a few gradients at first. The usual value of instruction tuning
    /// (Stanford Alpaca and its descendants).
    pub const WARMUP_RATIO: f64 = 0.03;
    /// Sequences per step: what TRL and the Hugging Face Trainer do on one device.
    pub const BATCH_SIZE: usize = 8;
    /// TRL's `max_length`.
    pub const MAX_SEQ_LEN: usize = 1024;
    /// Once through the data; more is a choice.
    pub const EPOCHS: f64 = 1.0;
    /// PyTorch's AdamW.
    pub const WEIGHT_DECAY: f64 = 0.01;
    /// Kingma and Ba, 2015, and PyTorch.
    pub const ADAM_BETA1: f64 = 0.9;
    /// Kingma and Ba, 2015, and PyTorch.
    pub const ADAM_BETA2: f64 = 0.999;
    /// Kingma and Ba, 2015, and PyTorch.
    pub const ADAM_EPSILON: f64 = 1e-8;
    /// The Hugging Face Trainer's.
    pub const MAX_GRAD_NORM: f64 = 1.0;
    /// Often enough that a killed run loses minutes, seldom enough that saving costs little.
    pub const SAVE_STEPS: u64 = 100;
    /// The best and the last.
    pub const SAVE_TOTAL_LIMIT: usize = 2;
    /// PEFT examples and the QLoRA paper use 8 to 64.
    pub const LORA_RANK: usize = 16;
    /// Final decay of `wsd` (Hu et al., MiniCPM, 2024).
    pub const WSD_DECAY_RATIO: f64 = 0.1;
    /// Cooldown, plateau and final decay of the infinite schedules (Ibrahim et al., TMLR 2024: 1 % warm-up, 60 % cooldown from
    /// 3e-4 to 1.65e-4, 25 % constant, the rest decay).
    pub const COOLDOWN_RATIO: f64 = 0.6;
    /// See [`COOLDOWN_RATIO`].
    pub const CONSTANT_LR_RATIO: f64 = 0.55;
    /// See [`COOLDOWN_RATIO`].
    pub const ANNEAL_RATIO: f64 = 0.14;
    /// Timescale of `inverse_sqrt` without a warm-up, as in the Hugging Face Trainer.
    pub const TIMESCALE: u64 = 10_000;
}

/// Spellings of other trainers and the key of `[train]` they stand for, as a dotted path below `train`.
pub const ALIASES: &[(&str, &str)] = &[
    ("lr", "learning_rate"),
    ("max_length", "max_seq_len"),
    ("sequence_len", "max_seq_len"),
    ("cutoff_len", "max_seq_len"),
    ("num_epochs", "epochs"),
    ("num_train_epochs", "epochs"),
    ("steps", "max_steps"),
    ("lr_scheduler_type", "lr_scheduler"),
    ("num_warmup_steps", "warmup_steps"),
    ("num_decay_steps", "decay_steps"),
    ("anneal_steps", "decay_steps"),
    ("anneal_ratio", "decay_ratio"),
    ("timescale", "lr_timescale"),
    ("clip_grad_norm", "max_grad_norm"),
    ("sample_packing", "packing"),
    ("packing_strategy", "packing"),
    ("global_batch_size", "batch_size"),
    ("load_best_model_at_end", "load_best"),
    ("gradient_checkpointing", "activation_checkpointing"),
    ("grad_dtype", "gradient_dtype"),
    ("lora_r", "lora.rank"),
    ("lora_rank", "lora.rank"),
    ("lora_alpha", "lora.alpha"),
    ("lora_dropout", "lora.dropout"),
    ("lora_target_modules", "lora.target_modules"),
    ("lora_target", "lora.target_modules"),
    ("lora.r", "lora.rank"),
    ("lora.lora_r", "lora.rank"),
    ("lora.lora_rank", "lora.rank"),
    ("lora.lora_alpha", "lora.alpha"),
    ("lora.lora_dropout", "lora.dropout"),
    ("lora.lora_target_modules", "lora.target_modules"),
    ("lora.lora_target", "lora.target_modules"),
];

/// Keys whose meaning depends on how many devices another trainer counts: never guessed at, and what to write instead.
pub const AMBIGUOUS: &[(&str, &str)] = &[
    ("per_device_train_batch_size", "`batch_size`, the sequences per optimiser step all told"),
    ("micro_batch_size", "`batch_size`, the sequences per optimiser step all told, and `gradient_accumulation_steps`"),
    ("max_steps_per_epoch", "`max_steps`, the optimiser steps all told"),
];

/// How a model is trained: the `[train]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Highest learning rate, reached at the end of the warm-up. Above 0.
    pub learning_rate: f64,
    /// Shape of the learning rate after the warm-up.
    pub lr_scheduler: Scheduler,
    /// Learning rate that the schedule falls to, as a share of `learning_rate`, from 0 to 1.
    pub min_lr_ratio: f64,
    /// Warm-up as a share of all steps, from 0 to 1. 0.03 when neither this nor `warmup_steps` is given.
    pub warmup_ratio: Option<f64>,
    /// Warm-up in steps. Not together with `warmup_ratio`.
    pub warmup_steps: Option<u64>,
    /// Learning rate at which the warm-up begins; 0 when not given. The rate that the checkpoint ended with makes a re-warm-up
    /// of it.
    pub warmup_start_lr: Option<f64>,
    /// Final decay of `wsd` and the infinite schedules as a share of all steps; 0.1 and 0.14 when neither this nor
    /// `decay_steps` is given. The weights before it are kept beside the finished ones, as `trunk`, to go on from.
    pub decay_ratio: Option<f64>,
    /// The same in steps. Not together with `decay_ratio`.
    pub decay_steps: Option<u64>,
    /// Shape of that decay; `"1-sqrt"` for `wsd` and `"exponential"` for the infinite schedules when not given.
    pub decay_type: Option<DecayType>,
    /// Cooldown of the infinite schedules as a share of all steps; 0.6 when neither this nor `cooldown_steps` is given. What
    /// warm-up, cooldown and decay leave is the constant phase.
    pub cooldown_ratio: Option<f64>,
    /// The same in steps. Not together with `cooldown_ratio`.
    pub cooldown_steps: Option<u64>,
    /// Learning rate of the constant phase of the infinite schedules, as a share of `learning_rate`; 0.55 when not given.
    pub constant_lr_ratio: Option<f64>,
    /// Where in an infinite schedule (or `wsd`) this training begins: `"constant"` goes on from a `trunk` with new data, and
    /// changes nothing at the border.
    pub schedule_start: ScheduleStart,
    /// Steps after which `inverse_sqrt` has fallen to 1/√2; the length of the warm-up when not given.
    pub lr_timescale: Option<u64>,
    /// Rows per optimiser step, all told. With packing a row holds several examples.
    pub batch_size: usize,
    /// Parts that a step's rows are worked through in, to save memory; divides `batch_size`. Does not change the result
    /// beyond the rounding of sums.
    pub gradient_accumulation_steps: usize,
    /// Tokens per row at most.
    pub max_seq_len: usize,
    /// Whether and how examples share rows: `"none"` or `false` for one per row, `"best_fit"` or `true` for whole ones
    /// where they fit best, `"concat"` for one after the other, cut where a row ends. Examples in one row never see each
    /// other.
    #[serde(deserialize_with = "packing")]
    #[schemars(with = "PackingWritten")]
    pub packing: Packing,
    /// Passes over the data, 0.5 being half of it. Not used when `max_steps` is given.
    pub epochs: f64,
    /// Optimiser steps, whatever the size of the data.
    pub max_steps: Option<u64>,
    /// Ends the training early, once the mean loss of the last 20 steps is at most this, in nats per token. Above 0.
    pub target_loss: Option<f64>,
    /// Decoupled weight decay of matrices; norms and biases never decay. 0 or more.
    pub weight_decay: f64,
    /// Decay of AdamW's first moment, from 0 to below 1.
    pub adam_beta1: f64,
    /// Decay of AdamW's second moment, from 0 to below 1.
    pub adam_beta2: f64,
    /// What AdamW adds to the root of the second moment. Above 0.
    pub adam_epsilon: f64,
    /// The gradient is scaled down to this L2 norm over all parameters when it is longer. `false` switches that off.
    #[serde(deserialize_with = "number_or_off")]
    #[schemars(with = "Option<NumberOrOff>")]
    pub max_grad_norm: Option<f64>,
    /// Steps between evaluations on held-out data; one is always made at the end. When not given, only that one.
    pub eval_steps: Option<u64>,
    /// Evaluate before the first step too.
    pub eval_on_start: bool,
    /// Steps between checkpoints; one is always made at the end.
    pub save_steps: u64,
    /// Checkpoints kept: the best one and the last ones. `false` keeps all.
    #[serde(deserialize_with = "count_or_off")]
    #[schemars(with = "Option<CountOrOff>")]
    pub save_total_limit: Option<usize>,
    /// End with the weights of the best evaluation instead of the last ones.
    pub load_best: bool,
    /// Keep only the inputs of transformer blocks and compute them again for the gradients: the same result, for less
    /// memory and about a third more time.
    pub activation_checkpointing: bool,
    /// Number type in which gradients are summed: `"f32"`, or `"bf16"` for half the memory and 8 bits of precision.
    pub gradient_dtype: GradientType,
    /// Train a low-rank adapter instead of all parameters.
    pub lora: Option<LoraTable>,
}

/// Number type in which gradients are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum GradientType {
    /// 32 bits.
    #[default]
    #[serde(rename = "f32", alias = "fp32", alias = "float32")]
    F32,
    /// 16 bits.
    #[serde(rename = "bf16", alias = "bfloat16")]
    Bf16,
}

impl GradientType {
    /// As the model takes it.
    pub fn to_model(self) -> GradientDtype {
        match self {
            Self::F32 => GradientDtype::F32,
            Self::Bf16 => GradientDtype::Bf16,
        }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            learning_rate: defaults::LEARNING_RATE,
            lr_scheduler: Scheduler::default(),
            min_lr_ratio: 0.0,
            warmup_ratio: None,
            warmup_steps: None,
            warmup_start_lr: None,
            decay_ratio: None,
            decay_steps: None,
            decay_type: None,
            cooldown_ratio: None,
            cooldown_steps: None,
            constant_lr_ratio: None,
            schedule_start: ScheduleStart::Warmup,
            lr_timescale: None,
            batch_size: defaults::BATCH_SIZE,
            gradient_accumulation_steps: 1,
            max_seq_len: defaults::MAX_SEQ_LEN,
            packing: Packing::default(),
            epochs: defaults::EPOCHS,
            max_steps: None,
            target_loss: None,
            weight_decay: defaults::WEIGHT_DECAY,
            adam_beta1: defaults::ADAM_BETA1,
            adam_beta2: defaults::ADAM_BETA2,
            adam_epsilon: defaults::ADAM_EPSILON,
            max_grad_norm: Some(defaults::MAX_GRAD_NORM),
            eval_steps: None,
            eval_on_start: false,
            save_steps: defaults::SAVE_STEPS,
            save_total_limit: Some(defaults::SAVE_TOTAL_LIMIT),
            load_best: false,
            activation_checkpointing: false,
            gradient_dtype: GradientType::F32,
            lora: None,
        }
    }
}

/// Shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Half a cosine down to the lowest rate.
    #[default]
    #[serde(alias = "cosine_with_min_lr")]
    Cosine,
    /// A straight line down to the lowest rate.
    Linear,
    /// No change.
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// One over the square root of the steps done, towards the lowest rate.
    InverseSqrt,
    /// Warm-up, stable, decay: no change, then a short decay to the lowest rate.
    #[serde(alias = "warmup_stable_decay")]
    Wsd,
    /// A cooldown along half a cosine to a plateau that can go on for as long as there is data, then a short decay.
    InfiniteCosine,
    /// The same with a cooldown like one over a square root.
    #[serde(alias = "infinite_inv_sqrt")]
    InfiniteInverseSqrt,
}

impl Scheduler {
    /// Whether it has a cooldown to a plateau.
    pub fn is_infinite(self) -> bool {
        matches!(self, Self::InfiniteCosine | Self::InfiniteInverseSqrt)
    }

    /// Whether it ends with a decay of its own, before which weights are kept to go on from.
    pub fn has_decay(self) -> bool {
        self == Self::Wsd || self.is_infinite()
    }
}

/// Shape of the final decay of `wsd` and the infinite schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DecayType {
    /// A straight line.
    #[serde(rename = "linear")]
    Linear,
    /// Half a cosine.
    #[serde(rename = "cosine")]
    Cosine,
    /// One minus the square root of the way done: steep first.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
    /// By the same factor in every step; needs a `min_lr_ratio` above 0.
    #[serde(rename = "exponential")]
    Exponential,
}

/// Where in a schedule with phases a training begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleStart {
    /// At its beginning.
    #[default]
    Warmup,
    /// In the constant phase: no warm-up and no cooldown.
    Constant,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum PackingName {
    None,
    /// `bfd` is TRL's name for it.
    #[serde(alias = "bfd")]
    BestFit,
    /// `wrapped` is TRL's name for it.
    #[serde(alias = "wrapped")]
    Concat,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected true, false, \"none\", \"best_fit\" or \"concat\"")]
enum PackingWritten {
    Switch(bool),
    Name(PackingName),
}

fn packing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Packing, D::Error> {
    Ok(match PackingWritten::deserialize(deserializer)? {
        PackingWritten::Switch(false) | PackingWritten::Name(PackingName::None) => Packing::None,
        PackingWritten::Switch(true) | PackingWritten::Name(PackingName::BestFit) => Packing::BestFit,
        PackingWritten::Name(PackingName::Concat) => Packing::Concat,
    })
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number, or false for none")]
enum NumberOrOff {
    Number(f64),
    Off(bool),
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a whole number, or false for none")]
enum CountOrOff {
    Count(usize),
    Off(bool),
}

fn number_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    match Option::<NumberOrOff>::deserialize(deserializer)? {
        None | Some(NumberOrOff::Off(false)) => Ok(None),
        Some(NumberOrOff::Number(number)) => Ok(Some(number)),
        Some(NumberOrOff::Off(true)) => Err(serde::de::Error::custom("expected a number, or false for none")),
    }
}

fn count_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    match Option::<CountOrOff>::deserialize(deserializer)? {
        None | Some(CountOrOff::Off(false)) => Ok(None),
        Some(CountOrOff::Count(count)) => Ok(Some(count)),
        Some(CountOrOff::Off(true)) => Err(serde::de::Error::custom("expected a whole number, or false for none")),
    }
}

/// A low-rank adapter: the `[train.lora]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraTable {
    /// Rank of the branch.
    pub rank: usize,
    /// Numerator of the branch's scale `alpha / rank`; twice the rank when not given.
    pub alpha: Option<f64>,
    /// Probability that an element of the branch's input is dropped while training, from 0 to below 1.
    pub dropout: f64,
    /// `"all-linear"`, or names of linear layers such as `["q_proj", "v_proj"]`.
    pub target_modules: ModuleNames,
    /// Scale by `alpha / √rank` instead.
    pub use_rslora: bool,
}

/// One name or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected \"all-linear\" or a list of names of linear layers")]
pub enum ModuleNames {
    /// `"all-linear"`, or the name of one kind of layer.
    One(String),
    /// Names of layers.
    Many(Vec<String>),
}

impl Default for LoraTable {
    fn default() -> Self {
        Self {
            rank: defaults::LORA_RANK,
            alpha: None,
            dropout: 0.0,
            target_modules: ModuleNames::One(ALL_LINEAR.to_owned()),
            use_rslora: false,
        }
    }
}

const ALL_LINEAR: &str = "all-linear";
/// LLaMA-Factory's word for it.
const ALL: &str = "all";

impl LoraTable {
    /// The settings as the model takes them.
    pub fn to_model(&self) -> LoraConfig {
        let names = match &self.target_modules {
            ModuleNames::One(name) => std::slice::from_ref(name),
            ModuleNames::Many(names) => names,
        };
        let is_all = names.iter().any(|name| name == ALL_LINEAR || name == ALL);
        LoraConfig {
            rank: self.rank,
            alpha: self.alpha.unwrap_or(2.0 * self.rank as f64),
            dropout: self.dropout,
            target_modules: if is_all { TargetModules::AllLinear } else { TargetModules::Named(names.to_vec()) },
            use_rslora: self.use_rslora,
        }
    }
}

impl TrainConfig {
    /// Reads the table with any of the spellings in [`ALIASES`], and checks it.
    ///
    /// # Errors
    /// When a key is unknown, has a wrong type or range, or is given in two spellings.
    ///
    /// # Examples
    /// ```
    /// use didact_train::TrainConfig;
    /// let config = TrainConfig::from_value(serde_json::json!({"lr": 1e-3, "lora_r": 8})).unwrap();
    /// assert_eq!(config.learning_rate, 1e-3);
    /// let error = TrainConfig::from_value(serde_json::json!({"lr": 1e-3, "learning_rate": 1e-3})).unwrap_err();
    /// assert_eq!(error.to_string(), "`train.lr` and `train.learning_rate` mean the same, and both are given");
    /// ```
    pub fn from_value(value: Value) -> Result<Self, ConfigError> {
        let Value::Object(table) = value else {
            return Err(ConfigError::Shape { message: format!("expected a table, found {value}") });
        };
        let config: Self = serde_json::from_value(Value::Object(canonical(table)?))
            .map_err(|error| ConfigError::Shape { message: error.to_string() })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks ranges and rules between keys; opens nothing.
    ///
    /// # Errors
    /// The first rule that does not hold, naming its keys.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let number = |key: &'static str, found: f64, is_fine: bool, expected: &'static str| {
            if is_fine && found.is_finite() {
                Ok(())
            } else {
                Err(ConfigError::Range { key: key.to_owned(), found: found.to_string(), expected: expected.to_owned() })
            }
        };
        let count = |key: &'static str, found: Option<u64>| match found {
            Some(0) => Err(ConfigError::Range {
                key: key.to_owned(),
                found: "0".to_owned(),
                expected: "a whole number from 1".to_owned(),
            }),
            _ => Ok(()),
        };
        let unit = 0.0..=1.0;
        let below_one = 0.0..1.0;
        number("learning_rate", self.learning_rate, self.learning_rate > 0.0, "a number above 0")?;
        number("min_lr_ratio", self.min_lr_ratio, unit.contains(&self.min_lr_ratio), "a number from 0 to 1")?;
        if let Some(ratio) = self.warmup_ratio {
            number("warmup_ratio", ratio, unit.contains(&ratio), "a number from 0 to 1")?;
        }
        number("epochs", self.epochs, self.epochs > 0.0, "a number above 0")?;
        if let Some(loss) = self.target_loss {
            number("target_loss", loss, loss > 0.0, "a number above 0")?;
        }
        number("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "a number from 0")?;
        number("adam_beta1", self.adam_beta1, below_one.contains(&self.adam_beta1), "a number from 0 to below 1")?;
        number("adam_beta2", self.adam_beta2, below_one.contains(&self.adam_beta2), "a number from 0 to below 1")?;
        number("adam_epsilon", self.adam_epsilon, self.adam_epsilon > 0.0, "a number above 0")?;
        if let Some(norm) = self.max_grad_norm {
            number("max_grad_norm", norm, norm > 0.0, "a number above 0, or false for none")?;
        }
        count("batch_size", Some(self.batch_size as u64))?;
        count("gradient_accumulation_steps", Some(self.gradient_accumulation_steps as u64))?;
        count("max_seq_len", Some(self.max_seq_len as u64))?;
        count("max_steps", self.max_steps)?;
        count("eval_steps", self.eval_steps)?;
        count("save_steps", Some(self.save_steps))?;
        count("save_total_limit", self.save_total_limit.map(|n| n as u64))?;
        if self.warmup_ratio.is_some() && self.warmup_steps.is_some() {
            return Err(ConfigError::Exclusive { first: "warmup_ratio".to_owned(), second: "warmup_steps".to_owned() });
        }
        self.validate_schedule(&number)?;
        if let Some(steps) = self.max_steps {
            LearningRate::new(self, steps)?;
        }
        if !self.batch_size.is_multiple_of(self.gradient_accumulation_steps) {
            return Err(ConfigError::Indivisible {
                batch_size: self.batch_size,
                accumulation: self.gradient_accumulation_steps,
            });
        }
        if let Some(lora) = &self.lora {
            lora.to_model().validate().map_err(|error| ConfigError::Lora { source: error })?;
        }
        Ok(())
    }

    /// Rules about the keys of the schedule.
    fn validate_schedule(
        &self,
        number: &impl Fn(&'static str, f64, bool, &'static str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        let exclusive = |first: &str, second: &str| {
            Err(ConfigError::Exclusive { first: first.to_owned(), second: second.to_owned() })
        };
        let range = |key: &str, found: String, expected: &str| {
            Err(ConfigError::Range { key: key.to_owned(), found, expected: expected.to_owned() })
        };
        for (key, ratio) in [
            ("decay_ratio", self.decay_ratio),
            ("cooldown_ratio", self.cooldown_ratio),
            ("constant_lr_ratio", self.constant_lr_ratio),
        ] {
            if let Some(ratio) = ratio {
                number(key, ratio, (0.0..=1.0).contains(&ratio), "a number from 0 to 1")?;
            }
        }
        if self.decay_ratio.is_some() && self.decay_steps.is_some() {
            return exclusive("decay_ratio", "decay_steps");
        }
        if self.cooldown_ratio.is_some() && self.cooldown_steps.is_some() {
            return exclusive("cooldown_ratio", "cooldown_steps");
        }
        if let Some(start) = self.warmup_start_lr {
            let is_fine = (0.0..=self.learning_rate).contains(&start);
            number("warmup_start_lr", start, is_fine, "a number from 0 to `train.learning_rate`")?;
        }
        if self.lr_timescale == Some(0) {
            return range("lr_timescale", "0".to_owned(), "a whole number from 1");
        }
        let scheduler = self.lr_scheduler;
        let written = |value: Value| value.as_str().unwrap_or_default().to_owned();
        let name = || serde_json::to_value(scheduler).map(written).unwrap_or_default();
        let belongs = |key: &'static str, is_given: bool, is_fine: bool, to: &'static str| {
            if is_given && !is_fine {
                return range("lr_scheduler", name(), &format!("{to}, because `train.{key}` is given"));
            }
            Ok(())
        };
        const WITH_DECAY: &str = "\"wsd\", \"infinite_cosine\" or \"infinite_inverse_sqrt\"";
        const INFINITE: &str = "\"infinite_cosine\" or \"infinite_inverse_sqrt\"";
        for (key, is_given) in [
            ("decay_ratio", self.decay_ratio.is_some()),
            ("decay_steps", self.decay_steps.is_some()),
            ("decay_type", self.decay_type.is_some()),
            ("schedule_start", self.schedule_start == ScheduleStart::Constant),
        ] {
            belongs(key, is_given, scheduler.has_decay(), WITH_DECAY)?;
        }
        for (key, is_given) in [
            ("cooldown_ratio", self.cooldown_ratio.is_some()),
            ("cooldown_steps", self.cooldown_steps.is_some()),
            ("constant_lr_ratio", self.constant_lr_ratio.is_some()),
        ] {
            belongs(key, is_given, scheduler.is_infinite(), INFINITE)?;
        }
        belongs("lr_timescale", self.lr_timescale.is_some(), scheduler == Scheduler::InverseSqrt, "\"inverse_sqrt\"")?;
        if self.schedule_start == ScheduleStart::Constant {
            for (key, is_given) in [
                ("warmup_ratio", self.warmup_ratio.is_some()),
                ("warmup_steps", self.warmup_steps.is_some()),
                ("warmup_start_lr", self.warmup_start_lr.is_some()),
                ("cooldown_ratio", self.cooldown_ratio.is_some()),
                ("cooldown_steps", self.cooldown_steps.is_some()),
            ] {
                if is_given {
                    return exclusive("schedule_start", key);
                }
            }
        }
        let is_exponential = match self.decay_type {
            None => scheduler.is_infinite(),
            Some(decay) => decay == DecayType::Exponential,
        };
        if is_exponential && self.min_lr_ratio == 0.0 {
            return range("min_lr_ratio", "0".to_owned(), "a number above 0: an exponential decay never gets to 0");
        }
        if let (true, Some(ratio)) = (scheduler.is_infinite(), self.constant_lr_ratio)
            && ratio < self.min_lr_ratio
        {
            return range("constant_lr_ratio", ratio.to_string(), "at least `train.min_lr_ratio`");
        }
        Ok(())
    }

    /// Whether memory was asked to be saved at the cost of time.
    pub fn saves_memory(&self) -> bool {
        self.activation_checkpointing || self.gradient_dtype == GradientType::Bf16
    }

    /// Optimiser steps in all, for data that gives `batches_per_epoch` steps per pass; at least 1.
    pub fn total_steps(&self, batches_per_epoch: u64) -> u64 {
        let by_epochs = (self.epochs * batches_per_epoch as f64).round() as u64;
        self.max_steps.unwrap_or(by_epochs).max(1)
    }

    /// Optimiser steps in all over a curriculum, of which one pass has `per_epoch` steps where it knows.
    ///
    /// # Errors
    /// When neither the curriculum nor `max_steps` says how long to go on.
    pub fn total_steps_of(&self, per_epoch: Option<u64>) -> Result<u64, ConfigError> {
        match (per_epoch, self.max_steps) {
            (Some(per_epoch), _) => Ok(self.total_steps(per_epoch)),
            (None, Some(steps)) => Ok(steps),
            (None, None) => Err(ConfigError::Missing {
                key: "max_steps".to_owned(),
                reason: "a curriculum that reads without end".to_owned(),
            }),
        }
    }

    /// Warm-up in steps, out of `total_steps`.
    pub fn resolved_warmup_steps(&self, total_steps: u64) -> u64 {
        let by_ratio = || {
            let ratio = self.warmup_ratio.unwrap_or(defaults::WARMUP_RATIO);
            (ratio * total_steps as f64).ceil() as u64
        };
        self.warmup_steps.unwrap_or_else(by_ratio).min(total_steps)
    }
}

/// The table with every key under our name.
fn canonical(table: Map<String, Value>) -> Result<Map<String, Value>, ConfigError> {
    for (key, instead) in AMBIGUOUS {
        if table.contains_key(*key) {
            return Err(ConfigError::Ambiguous { key: (*key).to_owned(), instead: (*instead).to_owned() });
        }
    }
    // Every leaf with the path it was written under, so that two spellings of one key meet.
    let mut written = Vec::new();
    for (key, value) in table {
        match value {
            Value::Object(inner) if key == "lora" => {
                written.push((key.clone(), None));
                written.extend(inner.into_iter().map(|(name, value)| (format!("lora.{name}"), Some(value))));
            }
            value => written.push((key, Some(value))),
        }
    }
    let mut spelled: Vec<(String, String)> = Vec::new();
    let mut out = Map::new();
    for (path, value) in written {
        let name = ALIASES.iter().find(|(alias, _)| *alias == path).map_or(path.as_str(), |(_, name)| name).to_owned();
        let Some(value) = value else {
            out.entry(name).or_insert_with(|| Value::Object(Map::new()));
            continue;
        };
        if let Some((_, first)) = spelled.iter().find(|(other, _)| *other == name) {
            return Err(ConfigError::TwoSpellings { first: first.clone(), second: path });
        }
        spelled.push((name.clone(), path));
        match name.strip_prefix("lora.") {
            Some(inner) => {
                let lora = out.entry("lora").or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(lora) = lora {
                    lora.insert(inner.to_owned(), value);
                }
            }
            None => {
                out.insert(name, value);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
