//! The loss ledger: what will be trained, by source and role, and what will not and why. It is shown before step one,
//! and a run that would train nothing, or everything where a chat template says otherwise, is refused.

use std::collections::BTreeMap;

use didact_core::fault::{Classify, Fault};
use didact_core::progress::Table;
use serde::{Deserialize, Serialize};

use crate::encode::{Encoded, ExampleKind, TokenRole, TrainOn};

/// Counts for the tokens of one role in one source.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct RoleCounts {
    /// Sequences with such tokens.
    pub sequences: u64,
    /// Tokens.
    pub tokens: u64,
    /// Tokens with a weight.
    pub trained_tokens: u64,
    /// Sum of their weights.
    pub weight: f64,
}

/// Counts for one source.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SourceCounts {
    /// Counts by role, of the sequences that are kept.
    pub roles: BTreeMap<TokenRole, RoleCounts>,
    /// Examples read.
    pub examples: u64,
    /// Sequences kept. More than examples where examples become several.
    pub sequences: u64,
    /// Examples that became more than one sequence.
    pub split_examples: u64,
    /// Sequences left out because nothing in them is trained.
    pub nothing_trained: u64,
    /// Tokens of the sequences left out.
    pub nothing_trained_tokens: u64,
    /// Answers that lost trained tokens to the length limit.
    pub truncated_answers: u64,
    /// Tokens cut off.
    pub truncated_tokens: u64,
    /// Loss weight of the tokens cut off.
    pub truncated_weight: f64,
    /// Answers that say nothing and are not trained.
    pub empty_answers: u64,
    /// Sequences whose answers all end with a trained end-of-turn token.
    pub end_of_turn_trained: u64,
    /// Sequences with an answer that does not.
    pub end_of_turn_untrained: u64,
    /// Sequences to which that does not apply: running text, or every answer cut.
    pub end_of_turn_not_applicable: u64,
    /// Sequences that begin with two beginning-of-sequence tokens.
    pub double_bos: u64,
    /// Tokens that reach over the border of an answer.
    pub straddling: u64,
    /// Sequences of conversations kept.
    pub chats: u64,
    /// Those of them in which every token but the first is trained.
    pub chats_trained_in_full: u64,
}

impl SourceCounts {
    fn sum(&self) -> RoleCounts {
        self.roles.values().fold(RoleCounts::default(), |a, b| RoleCounts {
            sequences: self.sequences,
            tokens: a.tokens + b.tokens,
            trained_tokens: a.trained_tokens + b.trained_tokens,
            weight: a.weight + b.weight,
        })
    }
}

/// What will be trained and what will not.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LossLedger {
    /// The rule by which it was decided.
    pub train_on: TrainOn,
    /// Counts by source.
    pub sources: BTreeMap<String, SourceCounts>,
}

/// Why training on this ledger is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// No example came in at all.
    #[error("there is nothing to train on: no examples were read")]
    NoExamples,
    /// Not a single token of a source has a weight.
    #[error(
        "source `{source_name}` would train nothing: none of the tokens of its {examples} examples has a loss weight \
         ({truncated_answers} answers were cut off, {empty_answers} are empty)"
    )]
    NothingTrained {
        /// The source.
        source_name: String,
        /// Its examples.
        examples: u64,
        /// Answers lost to the length limit.
        truncated_answers: u64,
        /// Answers that say nothing.
        empty_answers: u64,
    },
    /// Every token of every conversation of a source is trained, what the user says included, without being asked for.
    #[error(
        "source `{source_name}` would train every token of its {chats} conversations, but the chat template separates \
         what the model writes from what it is given"
    )]
    EverythingTrained {
        /// The source.
        source_name: String,
        /// Its conversations.
        chats: u64,
    },
}

impl Classify for LedgerError {
    fn fault(&self) -> Fault {
        Fault::Input
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoExamples => "check `data.path`".into(),
            Self::NothingTrained { truncated_answers: 1.., .. } => {
                "raise `train.max_seq_len`, or shorten what comes before the answers".into()
            }
            Self::NothingTrained { .. } => {
                "see with `didact data inspect` which tokens have a weight; conversations need assistant turns".into()
            }
            Self::EverythingTrained { .. } => {
                "mend the template's {% generation %} tags, or say `data.train_on = \"all\"` if that is meant".into()
            }
        })
    }
}

impl LossLedger {
    /// An empty ledger for sequences made by the rule `train_on`.
    pub fn new(train_on: TrainOn) -> Self {
        Self { train_on, sources: BTreeMap::new() }
    }

    /// Counts a sequence. `false` if nothing in it is trained: it is counted as left out, and must be.
    #[must_use = "a sequence with nothing to train must be left out"]
    pub fn add(&mut self, encoded: &Encoded) -> bool {
        let counts = self.sources.entry(encoded.source.clone()).or_default();
        if encoded.part.0 == 0 {
            counts.examples += 1;
            counts.split_examples += u64::from(encoded.part.1 > 1);
        }
        counts.truncated_answers += u64::from(encoded.truncated_answers);
        counts.truncated_tokens += encoded.truncated_tokens;
        counts.truncated_weight += encoded.truncated_weight;
        counts.empty_answers += u64::from(encoded.empty_answers);
        if !encoded.has_targets() {
            counts.nothing_trained += 1;
            counts.nothing_trained_tokens += encoded.sequence.len() as u64;
            return false;
        }
        counts.sequences += 1;
        counts.straddling += u64::from(encoded.straddling);
        counts.double_bos += u64::from(encoded.double_bos);
        match encoded.end_of_turn_trained {
            Some(true) => counts.end_of_turn_trained += 1,
            Some(false) => counts.end_of_turn_untrained += 1,
            None => counts.end_of_turn_not_applicable += 1,
        }
        if encoded.kind == ExampleKind::Chat {
            counts.chats += 1;
            counts.chats_trained_in_full += u64::from(encoded.trained_tokens() + 1 == encoded.sequence.len());
        }
        let mut of_sequence: BTreeMap<TokenRole, RoleCounts> = BTreeMap::new();
        for (&role, &weight) in encoded.role.iter().zip(&encoded.sequence.weight) {
            let counts = of_sequence.entry(role).or_default();
            counts.tokens += 1;
            counts.trained_tokens += u64::from(weight != 0.0);
            counts.weight += f64::from(weight);
        }
        for (role, more) in of_sequence {
            let counts = counts.roles.entry(role).or_default();
            counts.sequences += 1;
            counts.tokens += more.tokens;
            counts.trained_tokens += more.trained_tokens;
            counts.weight += more.weight;
        }
        true
    }

    /// Tokens of the sequences kept.
    pub fn tokens(&self) -> u64 {
        self.sources.values().map(|s| s.sum().tokens).sum()
    }

    /// Trained tokens of the sequences kept.
    pub fn trained_tokens(&self) -> u64 {
        self.sources.values().map(|s| s.sum().trained_tokens).sum()
    }

    /// Sum of the weights of the sequences kept.
    pub fn weight(&self) -> f64 {
        self.sources.values().map(|s| s.sum().weight).sum()
    }

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// [`LedgerError`]: no examples; a source that trains nothing; a source whose conversations are trained in full
    /// although `train_on` is not `all`.
    pub fn check(&self) -> Result<(), LedgerError> {
        if self.sources.values().all(|s| s.examples == 0) {
            return Err(LedgerError::NoExamples);
        }
        for (name, counts) in &self.sources {
            if counts.sequences == 0 && counts.examples > 0 {
                return Err(LedgerError::NothingTrained {
                    source_name: name.clone(),
                    examples: counts.examples,
                    truncated_answers: counts.truncated_answers,
                    empty_answers: counts.empty_answers,
                });
            }
            if self.train_on != TrainOn::All && counts.chats > 0 && counts.chats_trained_in_full == counts.chats {
                return Err(LedgerError::EverythingTrained { source_name: name.clone(), chats: counts.chats });
            }
        }
        Ok(())
    }

    /// What the user should know beyond the numbers: one sentence per source and trouble.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (name, c) in &self.sources {
            let mut warn = |count: u64, text: &str| {
                if count > 0 {
                    warnings.push(format!("source `{name}`: {count} {text}"));
                }
            };
            warn(c.nothing_trained, "sequences are left out because nothing in them is trained");
            warn(c.truncated_answers, "answers are cut at `train.max_seq_len`; their ends are not trained");
            warn(
                c.end_of_turn_untrained,
                "sequences do not train the end of the turn; the model will not learn to stop",
            );
            warn(c.double_bos, "sequences begin with two beginning-of-sequence tokens");
            warn(c.empty_answers, "answers say nothing and are not trained");
            warn(c.straddling, "tokens reach over the border of an answer");
            warn(c.split_examples, "examples become several sequences, one per turn or piece");
        }
        warnings
    }

    /// Tokens and weights by source and role.
    pub fn table(&self) -> Table {
        let mut rows = Vec::new();
        let row = |source: &str, role: &str, c: RoleCounts| {
            let share = if c.tokens == 0 { 0.0 } else { 100.0 * c.trained_tokens as f64 / c.tokens as f64 };
            vec![
                source.to_owned(),
                role.to_owned(),
                c.sequences.to_string(),
                c.tokens.to_string(),
                c.trained_tokens.to_string(),
                format!("{share:.1} %"),
                format!("{:.1}", c.weight),
            ]
        };
        for (name, counts) in &self.sources {
            for (role, c) in &counts.roles {
                rows.push(row(name, role.as_str(), *c));
            }
            rows.push(row(name, "all", counts.sum()));
        }
        let columns = ["source", "role", "sequences", "tokens", "trained", "share", "weight"];
        Table { title: "loss ledger".into(), columns: columns.map(str::to_owned).into(), rows }
    }

    /// By source, what is not trained and what to look at.
    pub fn exceptions_table(&self) -> Table {
        let rows = self.sources.iter().map(|(name, c)| {
            vec![
                name.clone(),
                c.examples.to_string(),
                c.sequences.to_string(),
                c.nothing_trained.to_string(),
                c.truncated_answers.to_string(),
                c.truncated_tokens.to_string(),
                format!("{:.1}", c.truncated_weight),
                c.empty_answers.to_string(),
                format!("{} / {} / {}", c.end_of_turn_trained, c.end_of_turn_untrained, c.end_of_turn_not_applicable),
                c.double_bos.to_string(),
            ]
        });
        let columns = [
            "source",
            "examples",
            "sequences",
            "nothing trained",
            "answers cut",
            "tokens cut",
            "weight cut",
            "empty answers",
            "end of turn trained: yes / no / n.a.",
            "double BOS",
        ];
        Table {
            title: "what is left out, and what to look at".into(),
            columns: columns.map(str::to_owned).into(),
            rows: rows.collect(),
        }
    }
}

#[cfg(test)]
mod tests;
