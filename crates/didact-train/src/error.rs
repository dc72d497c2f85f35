//! What can go wrong while configuring and while training.

use std::fmt;
use std::path::PathBuf;

use didact_core::fault::{Classify, Fault};
use didact_core::files::FileError;
use didact_core::stage::StageError;
use didact_data::curriculum::CurriculumError;
use didact_data::store::StoreError;
use didact_model::ModelError;

/// The `[train]` table says something that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key is unknown or of the wrong type.
    #[error("`[train]`: {message}")]
    Shape {
        /// What the reader of the table said.
        message: String,
    },
    /// A value outside its range.
    #[error("`train.{key}` is {found}, expected {expected}")]
    Range {
        /// The key, below `train`.
        key: String,
        /// Its value.
        found: String,
        /// What would be fine.
        expected: String,
    },
    /// A key that is needed.
    #[error("`train.{key}` is missing, and needed for {reason}")]
    Missing {
        /// The key, below `train`.
        key: String,
        /// What needs it.
        reason: String,
    },
    /// Two keys that exclude each other.
    #[error("`train.{first}` and `train.{second}` exclude each other, and both are given")]
    Exclusive {
        /// One key.
        first: String,
        /// The other.
        second: String,
    },
    /// One key in two spellings.
    #[error("`train.{first}` and `train.{second}` mean the same, and both are given")]
    TwoSpellings {
        /// One spelling.
        first: String,
        /// The other.
        second: String,
    },
    /// A key of another trainer that counts per device.
    #[error("`train.{key}` counts per device; write {instead}")]
    Ambiguous {
        /// The key.
        key: String,
        /// What to write.
        instead: String,
    },
    /// A step's rows cannot be split evenly.
    #[error(
        "`train.gradient_accumulation_steps` is {accumulation}, which does not divide `train.batch_size`, which is \
         {batch_size}"
    )]
    Indivisible {
        /// Rows per step.
        batch_size: usize,
        /// Parts asked for.
        accumulation: usize,
    },
    /// The adapter's settings are out of range.
    #[error("`train.lora`: {source}")]
    Lora {
        /// Which and how.
        source: ModelError,
    },
}

impl Classify for ConfigError {
    fn fault(&self) -> Fault {
        Fault::Input
    }
}

/// What was not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonFiniteWhat {
    /// The loss of a token.
    Loss,
    /// A gradient.
    Gradient,
}

impl fmt::Display for NonFiniteWhat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loss => "loss",
            Self::Gradient => "gradient",
        })
    }
}

/// Training ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A group of answers that cannot be ranked.
    #[error("group {sequence} (from 0): {source}")]
    Ranking {
        /// The number of its sequence.
        sequence: u32,
        /// Why.
        source: crate::ranking::RankingError,
    },
    /// A loss or gradient is NaN or infinite. Nothing was updated in that step.
    #[error(
        "the {what} is not finite in step {step}{}; rows: {}; {}",
        parameter.as_ref().map_or(String::new(), |name| format!(" (first in parameter `{name}`)")),
        rows.join(", "),
        checkpoint.map_or("no checkpoint was saved yet".to_owned(), |at| format!("the checkpoint of step {at} is intact"))
    )]
    NonFinite {
        /// Loss or gradient.
        what: NonFiniteWhat,
        /// The step, from 1.
        step: u64,
        /// File and row of the examples in question.
        rows: Vec<String>,
        /// The first parameter whose gradient (or, for a loss, whose value) is not finite.
        parameter: Option<String>,
        /// Step of the last checkpoint.
        checkpoint: Option<u64>,
    },
    /// The data has nothing to train on.
    #[error("the training data has no rows to train on")]
    NoData,
    /// The curriculum follows what is measured, and nothing is.
    #[error("the curriculum chooses by what is measured along the way, but there is nothing to measure on")]
    NoFeedback,
    /// The held-out data has nothing to measure.
    #[error("the held-out data has no token with a weight")]
    NothingToEvaluate,
    /// Weight was lost or made up between the data and the training loop.
    #[error(
        "epoch {epoch} trained a weight of {trained}, but the data holds {built}, of which {dropped} were reported as \
         dropped"
    )]
    WeightLost {
        /// The epoch, from 1.
        epoch: u64,
        /// Weight in the data.
        built: f64,
        /// Weight trained.
        trained: f64,
        /// Weight that packing reported as dropped.
        dropped: f64,
    },
    /// The model does not fit the data.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The best checkpoint was asked for and cannot be read.
    #[error("the best checkpoint cannot be used: {reason}")]
    BestCheckpoint {
        /// Why.
        reason: String,
    },
    /// A checkpoint could not be read.
    #[error("`{}`: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint or one of its files.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A hook failed.
    #[error("hook `{hook}`: {cause}")]
    Hook {
        /// Its name.
        hook: String,
        /// What it said.
        cause: Box<dyn Classify>,
    },
    /// A batch could not be made.
    #[error(transparent)]
    Data(#[from] StoreError),
    /// The curriculum failed.
    #[error(transparent)]
    Curriculum(#[from] CurriculumError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The user asked for a stop; everything up to this step is saved.
    #[error("stopped after step {step} of {total_steps}; everything is saved")]
    Cancelled {
        /// Steps done.
        step: u64,
        /// Steps in all.
        total_steps: u64,
    },
}

impl Classify for TrainError {
    fn fault(&self) -> Fault {
        match self {
            Self::Config(error) => error.fault(),
            Self::Model(error) => error.fault(),
            Self::File(error) => error.fault(),
            Self::Data(error) => error.fault(),
            Self::Curriculum(error) => error.fault(),
            Self::Hook { cause, .. } => cause.fault(),
            Self::NoData | Self::NoFeedback | Self::NothingToEvaluate => Fault::Input,
            Self::Cancelled { .. } => Fault::Stopped,
            _ => Fault::Running,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Curriculum(error) => error.hint(),
            Self::Hook { cause, .. } => cause.hint(),
            Self::NonFinite { .. } => Some(
                "look at those rows with `didact data inspect`; otherwise lower `train.learning_rate` or lengthen the \
                 warm-up"
                    .to_owned(),
            ),
            Self::Cancelled { .. } => Some("the same command continues the run".to_owned()),
            _ => None,
        }
    }
}

impl TrainError {
    /// The error as a stage returns it: a stop stays a stop.
    pub fn into_stage_error(self) -> StageError {
        match self {
            Self::Cancelled { .. } => StageError::Cancelled,
            other => other.into(),
        }
    }
}
