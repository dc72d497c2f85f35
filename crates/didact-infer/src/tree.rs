//! Tree search over a [`Generator`]: answers are written step by step, several continuations of the most promising
//! beginning at a time, each judged before it is continued.
//!
//! A [`TreeSearch`] is plain data: saved between two [`rounds`](TreeSearch::round) and loaded again, it goes on as if
//! nothing had happened. What it finds is a function of its settings, its seed, and the answers of generator and judge.
//!
//! # References
//! Kocsis and Szepesvári, "Bandit based Monte-Carlo Planning", ECML 2006 (UCT); Yao et al., "Tree of Thoughts", NeurIPS
//! 2023 (search over the steps of a text).

use crate::sampler::check;
use didact_core::cancel::Cancel;
use didact_core::generate::{FinishReason, GenerateError, Generator, Prompt, Request, RequestError, Sampling};
use didact_core::seed::Streams;
use didact_core::verdict::{Item, Verifier};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Which beginning is continued next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// The one with the best score of its own.
    BestFirst,
    /// Down from the root, at each node the child with the largest mean score of everything below it plus
    /// `exploration · √(ln parent's visits / own visits)`.
    Uct {
        /// How much is given to what was tried little; √2 is usual for scores from 0 to 1.
        exploration: f64,
    },
}

/// How to search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TreeSettings {
    /// How a step is sampled: `n` continuations of a node, ended by `stop` or `max_tokens`. Its seed is the search's.
    pub sampling: Sampling,
    /// Put behind a step that is continued, as `stop` is not part of it.
    pub separator: String,
    /// Which node is continued next.
    pub selection: Selection,
    /// Nodes that are continued together, in one batch of the generator.
    pub batch: usize,
    /// Most steps of an answer.
    pub max_depth: usize,
    /// Most nodes to continue.
    pub max_expansions: usize,
    /// Stop once this many tokens were generated.
    pub max_tokens: Option<usize>,
    /// A complete answer with this score ends the search.
    pub good_enough: f64,
}

impl Default for TreeSettings {
    fn default() -> Self {
        let sampling = Sampling { temperature: 1.0, n: 4, stop: vec!["\n".to_owned()], ..Sampling::default() };
        Self {
            sampling,
            separator: "\n".to_owned(),
            selection: Selection::Uct { exploration: std::f64::consts::SQRT_2 },
            batch: 1,
            max_depth: 16,
            max_expansions: 64,
            max_tokens: None,
            good_enough: 1.0,
        }
    }
}

impl TreeSettings {
    fn check(&self) -> Result<(), RequestError> {
        check(&self.sampling)?;
        let counts = [("batch", self.batch), ("max_depth", self.max_depth), ("max_expansions", self.max_expansions)];
        for (name, count) in counts {
            if count == 0 {
                return crate::sampler::refuse(name, 0, "expected a count from 1");
            }
        }
        match self.selection {
            Selection::Uct { exploration } if !(exploration >= 0.0 && exploration.is_finite()) => {
                crate::sampler::refuse("exploration", exploration, "expected a number from 0")
            }
            _ => Ok(()),
        }
    }
}

/// The text of a node, as a judge sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step<'a> {
    /// The answer so far, from the root on, without the prompt.
    pub answer: &'a str,
    /// Why its last step ended.
    pub finish_reason: FinishReason,
}

/// What a judge thinks of an answer so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// How promising or how good it is, usually from 0 to 1. `None` when it could not be judged: it is not continued, and
    /// says nothing about what comes before it.
    pub score: Option<f64>,
    /// Whether the answer is complete.
    pub is_complete: bool,
}

/// A beginning of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// The node it continues; the root has none.
    pub parent: Option<usize>,
    /// Nodes that continue it.
    pub children: Vec<usize>,
    /// Steps from the root.
    pub depth: usize,
    /// Its own step.
    pub text: String,
    /// Its own score.
    pub score: Option<f64>,
    /// Whether its answer is complete.
    pub is_complete: bool,
    /// Whether it, or a node below it, can be continued.
    pub is_open: bool,
    /// Nodes at and below it that were judged.
    pub visits: u64,
    /// Sum of their scores.
    pub total: f64,
    /// Why it could not be continued, if the generator refused to.
    pub error: Option<RequestError>,
}

/// Why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// An answer is good enough.
    Found,
    /// Everything within `max_depth` was looked at.
    Exhausted,
    /// `max_expansions` or `max_tokens` was reached.
    Spent,
    /// The caller cancelled; the search can go on.
    Cancelled,
}

/// Judges the answers of a round.
pub type Judge<'a> = dyn FnMut(&[Step<'_>]) -> Result<Vec<Judgement>, GenerateError> + 'a;

/// A search and how far it got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TreeSearch {
    prompt: String,
    settings: TreeSettings,
    nodes: Vec<Node>,
    expansions: usize,
    tokens: usize,
}

impl TreeSearch {
    /// A search for answers to `prompt`.
    ///
    /// # Errors
    /// [`RequestError::Setting`] naming a setting that is out of range.
    pub fn new(prompt: impl Into<String>, settings: TreeSettings) -> Result<Self, RequestError> {
        settings.check()?;
        let root = Node {
            parent: None,
            children: Vec::new(),
            depth: 0,
            text: String::new(),
            score: None,
            is_complete: false,
            is_open: true,
            visits: 0,
            total: 0.0,
            error: None,
        };
        Ok(Self { prompt: prompt.into(), settings, nodes: vec![root], expansions: 0, tokens: 0 })
    }

    /// All nodes, in the order in which they came; the first is the root.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Nodes that were continued.
    pub fn expansions(&self) -> usize {
        self.expansions
    }

    /// Tokens that were generated.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The answer from the root to a node.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn answer(&self, node: usize) -> String {
        let mut steps = Vec::new();
        let mut at = Some(node);
        while let Some(node) = at {
            steps.push(self.nodes[node].text.as_str());
            at = self.nodes[node].parent;
        }
        // The root has no text.
        steps.pop();
        steps.reverse();
        steps.join(&self.settings.separator)
    }

    /// The complete answer with the best score, the first of equal ones.
    pub fn best(&self) -> Option<usize> {
        let complete = (0..self.nodes.len()).filter(|&i| self.nodes[i].is_complete);
        complete.filter_map(|i| Some((i, self.nodes[i].score?))).reduce(first_of_larger).map(|(i, _)| i)
    }

    /// Rounds until the search ends.
    ///
    /// # Errors
    /// When generator or judge are broken. The search is as it was before the round.
    pub fn run(
        &mut self,
        generator: &dyn Generator,
        judge: &mut Judge<'_>,
        cancel: &Cancel,
    ) -> Result<Outcome, GenerateError> {
        loop {
            if let Some(outcome) = self.round(generator, judge, cancel)? {
                return Ok(outcome);
            }
        }
    }

    /// One round: selects nodes, continues them, has the continuations judged and their scores added to everything above
    /// them. The outcome if the search is at its end.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Panics
    /// If the judge gives fewer or more judgements than it was asked for.
    pub fn round(
        &mut self,
        generator: &dyn Generator,
        judge: &mut Judge<'_>,
        cancel: &Cancel,
    ) -> Result<Option<Outcome>, GenerateError> {
        let score = self.best().and_then(|best| self.nodes[best].score);
        if score.is_some_and(|score| score >= self.settings.good_enough) {
            return Ok(Some(Outcome::Found));
        }
        if self.expansions >= self.settings.max_expansions
            || self.settings.max_tokens.is_some_and(|most| self.tokens >= most)
        {
            return Ok(Some(Outcome::Spent));
        }
        let selected = self.select(self.settings.batch.min(self.settings.max_expansions - self.expansions));
        if selected.is_empty() {
            return Ok(Some(Outcome::Exhausted));
        }
        let seeds = Streams::new(self.settings.sampling.seed);
        let requests = selected.iter().map(|&node| {
            let begun = if node == 0 { String::new() } else { self.answer(node) + &self.settings.separator };
            let seed = seeds.key("tree", &[node as u64]);
            let sampling = Sampling { seed, ..self.settings.sampling.clone() };
            Request { prompt: Prompt::Text(format!("{}{begun}", self.prompt)), sampling }
        });
        let completions = generator.generate_all(&requests.collect::<Vec<_>>(), cancel)?;
        if cancel.is_cancelled() {
            return Ok(Some(Outcome::Cancelled));
        }

        let mut children: Vec<(usize, String, FinishReason)> = Vec::new();
        let mut refused = Vec::new();
        let mut tokens = 0;
        for (&node, completion) in selected.iter().zip(completions) {
            match completion {
                Some(Ok(completion)) => {
                    for answer in completion.answers {
                        tokens += answer.ids.len();
                        // Equal continuations are one.
                        if !children.iter().any(|(parent, text, _)| *parent == node && *text == answer.text) {
                            children.push((node, answer.text, answer.finish_reason));
                        }
                    }
                }
                Some(Err(error)) => refused.push((node, error)),
                None => return Ok(Some(Outcome::Cancelled)),
            }
        }
        let answers: Vec<String> = children
            .iter()
            .map(|(parent, text, _)| match parent {
                0 => text.clone(),
                parent => [self.answer(*parent).as_str(), text].join(&self.settings.separator),
            })
            .collect();
        let steps = answers.iter().zip(&children);
        let steps: Vec<Step<'_>> =
            steps.map(|(answer, (.., finish_reason))| Step { answer, finish_reason: *finish_reason }).collect();
        let judgements = judge(&steps)?;
        assert_eq!(judgements.len(), steps.len(), "a judge gives one judgement for each answer");

        // Nothing was changed until here: a round happens as a whole or not at all.
        self.tokens += tokens;
        self.expansions += selected.len();
        for (node, error) in refused {
            self.nodes[node].error = Some(error);
        }
        for ((parent, text, _), judgement) in children.into_iter().zip(judgements) {
            self.add(parent, text, judgement);
        }
        for node in selected {
            self.close_upwards(node);
        }
        Ok(None)
    }

    /// Up to `count` nodes to continue, the most promising first.
    fn select(&self, count: usize) -> Vec<usize> {
        match self.settings.selection {
            Selection::BestFirst => {
                let mut leaves: Vec<(usize, f64)> = (0..self.nodes.len())
                    .filter(|&i| self.nodes[i].is_open && self.nodes[i].children.is_empty())
                    .map(|i| (i, self.nodes[i].score.unwrap_or(f64::NEG_INFINITY)))
                    .collect();
                leaves.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0)));
                leaves.into_iter().take(count).map(|(i, _)| i).collect()
            }
            Selection::Uct { exploration } => {
                // A node that is selected counts as visited with a score of 0 for the selections after it.
                let mut extra = vec![0u64; self.nodes.len()];
                let mut selected = Vec::new();
                while selected.len() < count
                    && let Some(leaf) = self.descend(exploration, &extra, &selected)
                {
                    let mut at = Some(leaf);
                    while let Some(node) = at {
                        extra[node] += 1;
                        at = self.nodes[node].parent;
                    }
                    selected.push(leaf);
                }
                selected
            }
        }
    }

    /// The open leaf that UCT leads to, but for those `taken`.
    fn descend(&self, exploration: f64, extra: &[u64], taken: &[usize]) -> Option<usize> {
        let visits = |node: usize| (self.nodes[node].visits + extra[node]) as f64;
        let mut at = 0;
        if !self.has_open_leaf(at, taken) {
            return None;
        }
        while !self.nodes[at].children.is_empty() {
            let scale = visits(at).max(1.0).ln();
            let open = self.nodes[at].children.iter().filter(|&&child| self.has_open_leaf(child, taken));
            let bound = |&child: &usize| {
                let visits = visits(child).max(1.0);
                (child, self.nodes[child].total / visits + exploration * (scale / visits).sqrt())
            };
            at = open.map(bound).reduce(first_of_larger)?.0;
        }
        Some(at)
    }

    fn has_open_leaf(&self, node: usize, taken: &[usize]) -> bool {
        let Node { is_open, children, .. } = &self.nodes[node];
        let is_leaf = children.is_empty();
        *is_open
            && if is_leaf { !taken.contains(&node) } else { children.iter().any(|&c| self.has_open_leaf(c, taken)) }
    }

    fn add(&mut self, parent: usize, text: String, judgement: Judgement) {
        let Judgement { score, is_complete } = judgement;
        // A score that is no number compares with nothing.
        let score = score.filter(|score| !score.is_nan());
        let depth = self.nodes[parent].depth + 1;
        // A step without text would be repeated for ever.
        let is_open = score.is_some() && !is_complete && depth < self.settings.max_depth && !text.is_empty();
        let node = self.nodes.len();
        self.nodes[parent].children.push(node);
        let (children, visits, total) = (Vec::new(), 0, 0.0);
        let parent = Some(parent);
        self.nodes.push(Node {
            parent,
            children,
            depth,
            text,
            score,
            is_complete,
            is_open,
            visits,
            total,
            error: None,
        });
        let Some(score) = score else { return };
        let mut at = Some(node);
        while let Some(node) = at {
            let node = &mut self.nodes[node];
            node.visits += 1;
            node.total += score;
            at = node.parent;
        }
    }

    /// Closes an expanded node, and those above it, that have nothing open below.
    fn close_upwards(&mut self, node: usize) {
        let mut at = Some(node);
        while let Some(node) = at
            && !self.nodes[node].children.iter().any(|&child| self.nodes[child].is_open)
        {
            self.nodes[node].is_open = false;
            at = self.nodes[node].parent;
        }
    }
}

/// The one with the larger value, the first if none is.
fn first_of_larger(a: (usize, f64), b: (usize, f64)) -> (usize, f64) {
    if b.1 > a.1 { b } else { a }
}

/// A judge that asks a [`Verifier`]: its score is the answer's, for complete and incomplete ones alike. Which ones are
/// complete `is_complete` says.
pub fn verified<'a>(
    verifier: &'a dyn Verifier,
    item: &'a Item,
    is_complete: impl Fn(&Step<'_>) -> bool + 'a,
    cancel: &'a Cancel,
) -> impl FnMut(&[Step<'_>]) -> Result<Vec<Judgement>, GenerateError> + 'a {
    move |steps| {
        let items: Vec<(&Item, &str)> = steps.iter().map(|step| (item, step.answer)).collect();
        let mut judgements: Vec<Judgement> =
            steps.iter().map(|step| Judgement { score: None, is_complete: is_complete(step) }).collect();
        let mut sink = |index: usize, verdict: didact_core::verdict::Verdict| judgements[index].score = verdict.score;
        let broken =
            |error| GenerateError { message: "an answer cannot be judged".into(), source: Some(Box::new(error)) };
        verifier.verify(&items, &mut sink, cancel).map_err(broken)?;
        Ok(judgements)
    }
}

#[cfg(test)]
mod tests;
