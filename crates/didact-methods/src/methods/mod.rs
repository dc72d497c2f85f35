//! The published methods that are implemented here, each with what it takes to apply it and to try its claim again.

pub mod continual_pretraining;
pub mod dataset_decomposition;
pub mod few_shot_evaluation;
pub mod hyperfitting;
pub mod itertl;
pub mod skill_it;

use crate::reproduce::{ReproduceError, Reproduction};
use serde::Serialize;

/// A published method.
#[derive(Clone, Copy, Serialize)]
pub struct Method {
    /// Its name on the command line.
    pub slug: &'static str,
    /// The paper's title.
    pub paper: &'static str,
    /// Its authors, shortened.
    pub authors: &'static str,
    /// When it appeared.
    pub year: u16,
    /// Its arXiv id.
    pub arxiv: &'static str,
    /// What a user brings to apply it.
    pub needs: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Its claim, to be tried again.
    #[serde(skip)]
    pub reproduction: &'static dyn Reproduction,
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Method").field("slug", &self.slug).field("arxiv", &self.arxiv).finish_non_exhaustive()
    }
}

const METHODS: [&Method; 6] = [
    &continual_pretraining::METHOD,
    &dataset_decomposition::METHOD,
    &few_shot_evaluation::METHOD,
    &hyperfitting::METHOD,
    &itertl::METHOD,
    &skill_it::METHOD,
];

/// All methods, in the order to show them.
pub fn methods() -> &'static [&'static Method] {
    &METHODS
}

/// The method of that name.
///
/// # Errors
/// When there is none, with the nearest name.
pub fn method(slug: &str) -> Result<&'static Method, ReproduceError> {
    if let Some(method) = METHODS.iter().find(|method| method.slug == slug) {
        return Ok(method);
    }
    let distance = |method: &&&Method| strsim::damerau_levenshtein(slug, method.slug);
    let nearest = METHODS.iter().filter(|m| distance(m) <= NEAR).min_by_key(distance).map(|m| m.slug);
    Err(ReproduceError::NoSuchMethod { name: slug.to_owned(), nearest })
}

/// Most edits between a name and the one that was meant.
const NEAR: usize = 4;

#[cfg(test)]
mod tests;
