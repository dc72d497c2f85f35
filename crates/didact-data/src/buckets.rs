//! Length buckets: documents cut, each on its own, into pieces of 2^k targets, pieces of equal length together.
//!
//! A row of bucket k gives exactly 2^k targets and holds 2^k + 1 tokens of one document, so that no row is padded, none
//! crosses a document, and a step of `b` tokens takes `b / 2^k` rows of one bucket. What cannot be a piece is counted by
//! its reason.
//!
//! # Reference
//! Pouransari et al., "Dataset Decomposition: Faster LLM Training with Variable Sequence Length Curriculum", NeurIPS 2024.

use didact_core::seed::Streams;
use serde::{Deserialize, Serialize};

use crate::curriculum::unit;
use crate::packing::{PackPlan, PackStats, Packing, Piece, best_fit_decreasing};

/// What happens to documents longer than the longest bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverLong {
    /// Pieces of the longest bucket are cut off as long as there are any.
    #[default]
    Cap,
    /// The bucket of each piece is drawn, k with odds of 2^-k: every bucket gets as many tokens from long documents.
    Spread,
}

/// How the pieces of a document follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Joint {
    /// The next piece begins behind the last token of the one before, as in the paper: its first token is context only
    /// and never a target.
    #[default]
    Apart,
    /// It begins with the last token of the one before, so that no target is lost.
    Overlap,
}

/// What happens to what is left of a document and too short for the shortest bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tail {
    /// It is left out, and counted.
    #[default]
    Drop,
    /// It becomes a row of the shortest bucket of its own, padded.
    Pad,
    /// Tails share rows of the shortest bucket, each in a segment of its own.
    Pack,
}

/// How documents are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketSettings {
    /// The shortest bucket has 2^this targets per row.
    pub shortest: u32,
    /// The longest bucket has 2^this targets per row.
    pub longest: u32,
    /// What happens to longer documents.
    #[serde(default)]
    pub over_long: OverLong,
    /// How pieces follow each other.
    #[serde(default)]
    pub joint: Joint,
    /// What happens to tails.
    #[serde(default)]
    pub tail: Tail,
}

/// What became of the targets: every token of a document but its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BucketAccount {
    /// Documents given.
    pub documents: u64,
    /// Those too short to hold a target.
    pub without_targets: u64,
    /// Targets of all documents.
    pub targets: u64,
    /// Targets in rows.
    pub kept: u64,
    /// First tokens of later pieces, which are context only.
    pub piece_starts: u64,
    /// Left out because they are too few for the shortest bucket.
    pub tails: u64,
}

impl BucketAccount {
    /// Share of the targets that is in no row.
    pub fn dropped_share(&self) -> f64 {
        if self.targets == 0 { 0.0 } else { (self.targets - self.kept) as f64 / self.targets as f64 }
    }
}

/// Documents in buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    settings: BucketSettings,
    plans: Vec<PackPlan>,
    account: BucketAccount,
}

impl Buckets {
    /// Cuts documents of these lengths, in tokens. Draws come from the stream `buckets`, by document and piece.
    ///
    /// # Panics
    /// If `shortest > longest`, or `longest` is above 30.
    pub fn new(lengths: &[u32], settings: BucketSettings, streams: Streams) -> Self {
        let BucketSettings { shortest, longest, over_long, joint, tail } = settings;
        assert!(shortest <= longest && longest <= 30, "buckets: 2^{shortest} to 2^{longest} targets make no sense");
        let mut account = BucketAccount { documents: lengths.len() as u64, ..BucketAccount::default() };
        let mut rows: Vec<Vec<Piece>> = vec![Vec::new(); (longest - shortest + 1) as usize];
        let mut tails = Vec::new();
        for (document, &length) in lengths.iter().enumerate() {
            if length < 2 {
                account.without_targets += 1;
                continue;
            }
            account.targets += u64::from(length - 1);
            let mut start = 0;
            let mut number: u64 = 0;
            while length - start >= 2 {
                let mut k = (length - start - 1).ilog2();
                if k < shortest {
                    break;
                }
                if k > longest {
                    k = match over_long {
                        OverLong::Cap => longest,
                        OverLong::Spread => {
                            draw(unit(streams, "buckets", &[document as u64, number]), shortest, longest)
                        }
                    };
                }
                let targets = 1 << k;
                rows[(k - shortest) as usize].push(Piece { sequence: document as u32, start, len: targets + 1 });
                account.kept += u64::from(targets);
                account.piece_starts += u64::from(start > 0 && joint == Joint::Apart);
                start += if joint == Joint::Apart { targets + 1 } else { targets };
                number += 1;
            }
            let left = length - start;
            // What a tail could give: its first token is context where nothing before it is repeated.
            let is_apart = start > 0 && joint == Joint::Apart;
            if left >= 2 && tail != Tail::Drop {
                tails.push(Piece { sequence: document as u32, start, len: left });
                account.kept += u64::from(left - 1);
                account.piece_starts += u64::from(is_apart);
            } else {
                account.tails += u64::from(left) - u64::from(left > 0 && !is_apart);
            }
        }
        let singles = |pieces: Vec<Piece>| pieces.into_iter().map(|piece| vec![piece]);
        let plans = (0u32..).zip(rows).map(|(i, pieces)| {
            let row_len = 1 << (shortest + i);
            let tails = match (i, tail) {
                (0, Tail::Pad) => singles(std::mem::take(&mut tails)).collect(),
                (0, Tail::Pack) => best_fit_decreasing(std::mem::take(&mut tails), row_len + 1),
                _ => Vec::new(),
            };
            let stats = PackStats { sequences: account.documents, ..PackStats::default() };
            PackPlan::from_rows(row_len, Packing::None, singles(pieces).chain(tails), stats)
        });
        let plans = plans.collect();
        Self { settings, plans, account }
    }

    /// How documents were cut.
    pub fn settings(&self) -> BucketSettings {
        self.settings
    }

    /// The rows of each bucket, shortest first.
    pub fn plans(&self) -> &[PackPlan] {
        &self.plans
    }

    /// The same, given away.
    pub fn into_plans(self) -> Vec<PackPlan> {
        self.plans
    }

    /// What became of the targets.
    pub fn account(&self) -> BucketAccount {
        self.account
    }

    /// Share of the targets in rows that each bucket has.
    pub fn shares(&self) -> Vec<f64> {
        let all: u64 = self.plans.iter().map(|plan| plan.stats().targets).sum();
        self.plans.iter().map(|plan| plan.stats().targets as f64 / (all.max(1)) as f64).collect()
    }

    /// Tokens of context that a target has in the mean, under causal attention.
    pub fn mean_context(&self) -> f64 {
        self.shares().iter().zip(&self.plans).map(|(share, plan)| share * plan.row_len() as f64 / 2.0).sum()
    }
}

/// k in `shortest..=longest` with probability proportional to 2^-k.
fn draw(u: f64, shortest: u32, longest: u32) -> u32 {
    let weight = |k: u32| 0.5_f64.powi((k - shortest) as i32);
    let mut left = u * (shortest..=longest).map(weight).sum::<f64>();
    for k in shortest..longest {
        left -= weight(k);
        if left < 0.0 {
            return k;
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(length: u32, settings: BucketSettings) -> (Vec<usize>, BucketAccount) {
        let buckets = Buckets::new(&[length], settings, Streams::new(1));
        let mut lens = Vec::new();
        for plan in buckets.plans() {
            lens.extend((0..plan.rows()).map(|_| plan.row_len().ilog2() as usize));
        }
        lens.reverse();
        (lens, buckets.account())
    }

    fn paper() -> BucketSettings {
        BucketSettings { shortest: 8, longest: 13, over_long: OverLong::Cap, joint: Joint::Apart, tail: Tail::Drop }
    }

    #[test]
    fn documents_are_cut_as_the_paper_cuts_them() {
        assert_eq!(cut(256, paper()).0, [0; 0]);
        assert_eq!(cut(257, paper()).0, [8]);
        let (lens, account) = cut(1000, paper());
        assert_eq!((lens, account.tails, account.piece_starts), (vec![9, 8], 230, 1));
        assert_eq!(cut(8193, paper()).0, [13]);
        assert_eq!(cut(16387, paper()).0, [13, 13]);
        assert_eq!(cut(20000, paper()).0, [13, 13, 11, 10, 9]);
    }

    #[test]
    fn long_documents_give_every_bucket_as_many_tokens_when_spread() {
        let settings = BucketSettings { shortest: 2, longest: 5, over_long: OverLong::Spread, ..paper() };
        let buckets = Buckets::new(&[2_000_000], settings, Streams::new(3));
        // 30,000 draws for each of the longest: a share of a quarter varies by less than 0.005 (three deviations).
        for share in buckets.shares() {
            assert!((share - 0.25).abs() < 0.01, "{share}");
        }
    }

    proptest! {
        #[test]
        fn every_target_is_in_one_row_or_counted_as_dropped(
            lengths in prop::collection::vec(0u32..300, 0..40), shortest in 0u32..5, more in 0u32..4, seed in 0u64..100,
            spread in any::<bool>(), overlap in any::<bool>(), tail in 0..3usize,
        ) {
            let settings = BucketSettings {
                shortest,
                longest: shortest + more,
                over_long: if spread { OverLong::Spread } else { OverLong::Cap },
                joint: if overlap { Joint::Overlap } else { Joint::Apart },
                tail: [Tail::Drop, Tail::Pad, Tail::Pack][tail],
            };
            let buckets = Buckets::new(&lengths, settings, Streams::new(seed));
            let mut seen: Vec<Vec<u32>> = lengths.iter().map(|&n| vec![0; n as usize]).collect();
            for (i, plan) in buckets.plans().iter().enumerate() {
                prop_assert_eq!(plan.row_len(), 1 << (shortest as usize + i));
                for row in 0..plan.rows() {
                    let pieces = plan.row(row);
                    let tokens: u32 = pieces.iter().map(|piece| piece.len).sum();
                    prop_assert!(tokens as usize <= plan.row_len() + 1);
                    let is_full = pieces.len() == 1 && tokens as usize == plan.row_len() + 1;
                    prop_assert!(is_full || i == 0 && settings.tail != Tail::Drop);
                    for piece in pieces {
                        for token in piece.start + 1..piece.start + piece.len {
                            seen[piece.sequence as usize][token as usize] += 1;
                        }
                    }
                }
            }
            let account = buckets.account();
            prop_assert!(seen.iter().flatten().all(|&times| times <= 1));
            prop_assert!(seen.iter().all(|tokens| tokens.first().is_none_or(|&times| times == 0)));
            let targets: u64 = lengths.iter().map(|&n| u64::from(n.saturating_sub(1))).sum();
            let kept = seen.iter().flatten().filter(|&&times| times == 1).count() as u64;
            prop_assert_eq!((account.targets, account.kept), (targets, kept));
            prop_assert_eq!(account.kept + account.piece_starts + account.tails, account.targets);
            if overlap && tail > 0 {
                prop_assert_eq!(account.kept, account.targets, "nothing is lost");
            }
        }
    }
}
