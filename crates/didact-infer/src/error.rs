//! What can go wrong.

use didact_core::fault::{Classify, Fault};
use didact_core::files::FileError;
use didact_core::generate::GenerateError;
use didact_model::ModelError;
use std::path::PathBuf;

/// Why an engine cannot be built or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// The model's files cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer knows tokens that the model does not.
    #[error("the tokenizer has {tokenizer} tokens, the model's vocabulary {model}: they do not belong together")]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokenizer: usize,
        /// Rows of the model's embedding.
        model: usize,
    },
    /// An adapter does not fit the model.
    #[error("the adapter has a branch for `{module}`, which the model does not have or has in another size")]
    Adapter {
        /// The layer it is for.
        module: String,
    },
    /// An option is out of range.
    #[error("`{name}` is {value}, expected {expected}")]
    Option {
        /// Which.
        name: &'static str,
        /// What was given.
        value: usize,
        /// What would do.
        expected: &'static str,
    },
    /// A file that should hold answers cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that should hold answers holds something else.
    #[error("`{}` is no file of answers", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
    },
}

impl Classify for InferError {
    fn fault(&self) -> Fault {
        match self {
            Self::Model(error) => error.fault(),
            Self::File(error) => error.fault(),
            Self::Vocabulary { .. } | Self::Adapter { .. } | Self::Option { .. } | Self::Cache { .. } => Fault::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Model(error) => error.hint(),
            Self::Vocabulary { .. } => Some("use the tokenizer that came with the model".into()),
            Self::Adapter { .. } => Some("use the model that the adapter was trained on".into()),
            Self::File(error) => error.hint(),
            Self::Cache { .. } => Some("remove it: what it should hold can be asked again".into()),
            Self::Option { .. } => None,
        }
    }
}

impl From<InferError> for GenerateError {
    fn from(error: InferError) -> Self {
        Self { message: error.to_string(), source: Some(Box::new(error)) }
    }
}
