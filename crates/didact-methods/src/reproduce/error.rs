//! What can go wrong with a reproduction beyond the work of its arms.

use didact_core::fault::{Classify, Fault};
use std::path::PathBuf;

/// Why a reproduction cannot be run or shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReproduceError {
    /// There is no such method.
    #[error("there is no method `{name}`")]
    NoSuchMethod {
        /// What was asked for.
        name: String,
        /// The method with the nearest name.
        nearest: Option<&'static str>,
    },
    /// Seeds that make no sense.
    #[error("the seeds are {found}, expected different numbers, at least one")]
    Seeds {
        /// What was given.
        found: String,
    },
    /// An arm measured something that is no number.
    #[error("arm `{arm}`, seed {seed}: `{metric}` is {value}, no number that can be compared")]
    NotANumber {
        /// The arm.
        arm: String,
        /// The seed.
        seed: u64,
        /// What was measured.
        metric: String,
        /// What came out.
        value: f64,
    },
    /// An arm did not measure what the claim is about.
    #[error("arm `{arm}`, seed {seed} has not measured `{metric}`")]
    NotMeasured {
        /// The arm.
        arm: String,
        /// The seed.
        seed: u64,
        /// What the claim is about.
        metric: String,
    },
    /// A recorded result does not parse.
    #[error("`{}` is no recorded result: {reason}", path.display())]
    NotARecord {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The plot could not be drawn.
    #[error("cannot draw the plot: {0}")]
    Plot(String),
}

impl Classify for ReproduceError {
    fn fault(&self) -> Fault {
        match self {
            Self::NoSuchMethod { .. } | Self::Seeds { .. } | Self::NotARecord { .. } => Fault::Input,
            Self::NotANumber { .. } | Self::NotMeasured { .. } | Self::Plot(_) => Fault::Running,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchMethod { nearest: Some(name), .. } => {
                Some(format!("did you mean `{name}`? `didact methods` lists all"))
            }
            Self::NoSuchMethod { nearest: None, .. } => Some("`didact methods` lists all".into()),
            Self::Seeds { .. } => Some("write them as `--seeds 1,2,3`".into()),
            Self::NotARecord { .. } => Some("results are written by `didact reproduce METHOD --record DIR`".into()),
            _ => None,
        }
    }
}
