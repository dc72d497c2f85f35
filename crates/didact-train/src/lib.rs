//! Training: from weighted tokens to better weights.
//!
//! - [`config`]: the `[train]` table; [`schedule`]: the learning rate as a function of the step;
//! - [`accumulate`]: a step's gradient from its micro-batches; [`optimizer`]: AdamW in place;
//! - [`trainer`]: the loop, start reading there; [`source`]: what it reads, a set or a curriculum; [`hook`]: what methods may do
//!   in it; [`evaluate`]: held-out loss; [`preference`] and [`ranking`]: what else than next tokens can be minimised;
//! - [`checkpoint`]: saving and resuming, exact to the bit; [`timing`]: predicted time.
//!
//! Two promises, each tested: a run that was stopped or killed and continued ends in the bits of one that was not, and so
//! does a run on another number of threads.
#![forbid(unsafe_code)]

pub mod accumulate;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod evaluate;
pub mod hook;
pub mod optimizer;
pub mod preference;
pub mod ranking;
pub mod schedule;
pub mod source;
pub mod timing;
pub mod trainer;

pub use checkpoint::{CheckpointStore, Evaluation, PoolTotals, State, Totals};
pub use config::{DecayType, LoraTable, ModuleNames, ScheduleStart, Scheduler, TrainConfig};
pub use error::{ConfigError, TrainError};
pub use evaluate::{EvalLoss, TokenScore, evaluate_loss, evaluate_tokens};
pub use hook::{Hook, HookResult, StepPlan, StepResult};
pub use preference::{Objective, PairLogProb, PreferenceLoss, PreferenceTable, pair_log_probs};
pub use ranking::{Combine, RankedGroup, Ranking};
pub use schedule::LearningRate;
pub use source::{Measured, Source};
pub use timing::{StepTime, measure_steps, time_batch};
pub use trainer::{Session, TrainOutcome, Trainer};
