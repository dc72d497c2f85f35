//! What can go wrong between a recipe and its report.

use crate::recipe::RecipeError;
use crate::reproduce::ReproduceError;
use crate::skills::SkillsError;
use crate::toolworld::WorldError;
use didact_core::fault::{Classify, Fault};
use didact_core::files::FileError;
use didact_core::generate::{GenerateError, RequestError};
use didact_core::run::RunError;
use didact_core::stage::StageError;
use didact_data::DataError;
use didact_data::cost::CostError;
use didact_data::curriculum::CurriculumError;
use didact_data::ledger::LedgerError;
use didact_data::reader::{ReadError, RowError};
use didact_data::store::StoreError;
use didact_infer::InferError;
use didact_model::{DeviceError, ModelError};
use didact_train::TrainError;
use std::path::PathBuf;

/// Why a recipe cannot be planned or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MethodError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The run directory.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A stage of the run.
    #[error("stage `{stage}`: {cause}")]
    Stage {
        /// Its name, as far as it is known.
        stage: String,
        /// What happened.
        cause: Box<dyn Classify>,
    },
    /// The user asked for a stop.
    #[error("stopped; everything is saved in `{}`", run_dir.display())]
    Stopped {
        /// The run directory.
        run_dir: PathBuf,
    },
    /// A model's name leads nowhere.
    #[error("cannot get the model `{name}`: {cause}")]
    Resolve {
        /// The name.
        name: String,
        /// Why.
        cause: Box<dyn Classify>,
    },
    /// There is too little memory.
    #[error("{what} needs about {} of memory, and {} are free", gigabytes(*needed), gigabytes(*free))]
    Memory {
        /// What needs it.
        what: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
        /// What would need less.
        advice: String,
    },
    /// Rows are longer than the model can read.
    #[error("`train.max_seq_len` is {found}, the context of `{model}` is {context} tokens")]
    Context {
        /// The model.
        model: String,
        /// What the recipe says.
        found: usize,
        /// What the model can read.
        context: usize,
    },
    /// A reproduction.
    #[error(transparent)]
    Reproduce(#[from] ReproduceError),
    /// The device to train on.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A model's files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tokenizer or template.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A data source.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A row.
    #[error(transparent)]
    Row(#[from] RowError),
    /// Tokenised sequences.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What would be trained is not what was meant.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The requests to teach.
    #[error(transparent)]
    World(#[from] WorldError),
    /// Training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// What is read next.
    #[error(transparent)]
    Curriculum(#[from] CurriculumError),
    /// What steps take.
    #[error(transparent)]
    Cost(#[from] CostError),
    /// A skills graph.
    #[error(transparent)]
    Skills(#[from] SkillsError),
    /// Decoding.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// A task.
    #[error(transparent)]
    Eval(#[from] didact_eval::EvalError),
    /// Decoding, half-way.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// One request of an evaluation.
    #[error("request {index} of `{set}`: {source}")]
    Request {
        /// The set.
        set: String,
        /// From 1.
        index: usize,
        /// Why.
        source: RequestError,
    },
    /// Rows cannot be split into training and held-out ones.
    #[error("{rows} usable rows in `{path}` are too few to hold any out")]
    TooFewRows {
        /// The first path.
        path: String,
        /// How many there are.
        rows: u64,
    },
    /// Too few documents of the length that is learned by heart.
    #[error(
        "{found} different documents of at least {tokens} tokens, expected {needed}; the longest has {longest} or more"
    )]
    TooFewSnippets {
        /// How many there are.
        found: usize,
        /// How many it takes: a batch, and some to measure on.
        needed: usize,
        /// Their length.
        tokens: usize,
        /// Tokens of the longest document, as far as it was looked at.
        longest: usize,
    },
    /// A task that cannot be used.
    #[error("{place}: {message}")]
    Task {
        /// Where it stands.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// Too few tasks to learn from some and measure on others.
    #[error(
        "the tasks of `{path}` are too few: {train} to learn from and {held_out} to measure on; two of each are needed"
    )]
    TooFewTasks {
        /// The file.
        path: String,
        /// To learn from.
        train: usize,
        /// To measure on.
        held_out: usize,
    },
    /// Tasks of VerilogEval.
    #[error(transparent)]
    Verilog(#[from] didact_verify::verilog::TaskError),
    /// Nothing can be run safely, or a program to run is missing.
    #[error(transparent)]
    Sandbox(#[from] didact_verify::sandbox::SandboxError),
    /// A verifier that is broken; never an answer that is wrong.
    #[error(transparent)]
    Verify(#[from] didact_core::verdict::VerifyError),
    /// Named sources that do not fit each other, the recipe or the model.
    #[error("{reason}")]
    Sources {
        /// What does not fit.
        reason: String,
    },
    /// Rows of a kind that the recipe does not train on.
    #[error("`{path}`, row {row}: a row of schema `{found}`; `{recipe}` trains on running text")]
    WrongSchema {
        /// The file.
        path: String,
        /// The row.
        row: u64,
        /// Its schema.
        found: &'static str,
        /// The recipe.
        recipe: &'static str,
    },
    /// A pair of answers where rows to imitate are expected.
    #[error("`{path}`, row {row}: a pair of answers (`chosen`, `rejected`), of which one is not to be imitated")]
    Pairs {
        /// The file.
        path: String,
        /// The row.
        row: u64,
    },
    /// An artifact that was written by an earlier stage is not what it was.
    #[error("`{}` is damaged: {reason}; run again with `--fresh`", path.display())]
    Artifact {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
}

pub(crate) fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

impl Classify for MethodError {
    fn fault(&self) -> Fault {
        match self {
            Self::Recipe(e) => e.fault(),
            Self::Run(e) => e.fault(),
            Self::Stage { cause, .. } | Self::Resolve { cause, .. } => cause.fault(),
            Self::Stopped { .. } => Fault::Stopped,
            Self::Reproduce(e) => e.fault(),
            Self::Device(e) => e.fault(),
            Self::Model(e) => e.fault(),
            Self::Data(e) => e.fault(),
            Self::Read(e) => e.fault(),
            Self::Row(e) => e.fault(),
            Self::Store(e) => e.fault(),
            Self::Ledger(e) => e.fault(),
            Self::World(e) => e.fault(),
            Self::Train(e) => e.fault(),
            Self::Curriculum(e) => e.fault(),
            Self::Cost(e) => e.fault(),
            Self::Skills(e) => e.fault(),
            Self::Infer(e) => e.fault(),
            Self::Eval(e) => e.fault(),
            Self::File(e) => e.fault(),
            Self::Verilog(e) => e.fault(),
            Self::Sandbox(e) => e.fault(),
            Self::Generate(_) | Self::Verify(_) | Self::Artifact { .. } => Fault::Running,
            Self::Context { .. }
            | Self::Memory { .. }
            | Self::Request { .. }
            | Self::TooFewRows { .. }
            | Self::TooFewSnippets { .. }
            | Self::Sources { .. }
            | Self::Task { .. }
            | Self::TooFewTasks { .. }
            | Self::WrongSchema { .. }
            | Self::Pairs { .. } => Fault::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Recipe(e) => e.hint(),
            Self::Run(e) => e.hint(),
            Self::Stage { cause, .. } | Self::Resolve { cause, .. } => cause.hint(),
            Self::Stopped { .. } => Some("the same command continues the run".into()),
            Self::Reproduce(e) => e.hint(),
            Self::Device(e) => e.hint(),
            Self::Model(e) => e.hint(),
            Self::Data(e) => e.hint(),
            Self::Read(e) => e.hint(),
            Self::Row(e) => e.hint(),
            Self::Store(e) => e.hint(),
            Self::Ledger(e) => e.hint(),
            Self::Train(e) => e.hint(),
            Self::Curriculum(e) => e.hint(),
            Self::Cost(e) => e.hint(),
            Self::Skills(e) => e.hint(),
            Self::Infer(e) => e.hint(),
            Self::Eval(e) => e.hint(),
            Self::File(e) => e.hint(),
            Self::Memory { advice, .. } => Some(format!("{advice}; or go on all the same with `--force`")),
            Self::TooFewRows { .. } => {
                Some("give more rows, name others with `data.held_out_path`, or set `data.held_out=0`".into())
            }
            Self::TooFewSnippets { .. } => {
                Some("give more documents, or lower `train.max_seq_len` or `train.batch_size`".into())
            }
            Self::WrongSchema { .. } => Some("use the recipe `sft` for chats and prompt/completion pairs".into()),
            Self::Pairs { .. } => Some("use the recipe `dpo` for pairs".into()),
            Self::Context { context, .. } => Some(format!("set `train.max_seq_len={context}` or less")),
            Self::Verilog(e) => e.hint(),
            Self::Sandbox(e) => e.hint(),
            Self::Task { .. } => Some("docs/rounds.md says what a task is".into()),
            Self::TooFewTasks { .. } => {
                Some("give more tasks, or others to measure on with `tasks.held_out_path`".into())
            }
            Self::World(_)
            | Self::Sources { .. }
            | Self::Verify(_)
            | Self::Generate(_)
            | Self::Request { .. }
            | Self::Artifact { .. } => None,
        }
    }
}

impl MethodError {
    /// The error as a stage returns it: a stop stays a stop.
    pub(crate) fn into_stage_error(self) -> StageError {
        match self {
            Self::Stopped { .. } => StageError::Cancelled,
            Self::Train(error) => error.into_stage_error(),
            other => other.into(),
        }
    }
}
