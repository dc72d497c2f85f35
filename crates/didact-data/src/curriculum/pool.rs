//! Rows of one source.

use std::sync::{Arc, Mutex, PoisonError};

use didact_core::seed::Streams;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::StepRows;
use crate::batch::{Batch, WeightAccount, trainable};
use crate::buckets::{BucketAccount, BucketSettings, Buckets};
use crate::packing::{PackPlan, Packing, Piece, pack};
use crate::sequences::Sequences;
use crate::store::StoreError;

/// A source, packed into rows on its own.
#[derive(Debug, Clone)]
pub struct Pool {
    name: String,
    sequences: Sequences,
    plan: Arc<PackPlan>,
    account: WeightAccount,
}

impl Pool {
    /// Packs a source into rows of at most `row_len` targets. Sequences with nothing to train are left out and counted.
    ///
    /// # Errors
    /// When a record of a corpus is damaged.
    ///
    /// # Panics
    /// If `row_len` is 0.
    pub fn new(
        name: impl Into<String>,
        sequences: impl Into<Sequences>,
        row_len: usize,
        packing: Packing,
    ) -> Result<Self, StoreError> {
        let sequences = sequences.into();
        let (lengths, account) = trainable(&sequences.extents()?, sequences.weight());
        let plan = Arc::new(pack(&lengths, row_len, packing));
        Ok(Self { name: name.into(), sequences, plan, account })
    }

    /// Cuts a source into length buckets, each a pool named by its targets per row, shortest first.
    ///
    /// # Errors
    /// When a record of a corpus is damaged.
    ///
    /// # Panics
    /// If the settings make no sense: see [`Buckets::new`].
    pub fn buckets(
        sequences: impl Into<Sequences>,
        settings: BucketSettings,
        streams: Streams,
    ) -> Result<(Vec<Self>, BucketAccount), StoreError> {
        let sequences = sequences.into();
        let (lengths, account) = trainable(&sequences.extents()?, sequences.weight());
        let buckets = Buckets::new(&lengths, settings, streams);
        let cut = buckets.account();
        let pool = |plan: PackPlan| Self {
            name: plan.row_len().to_string(),
            sequences: sequences.clone(),
            plan: Arc::new(plan),
            account,
        };
        Ok((buckets.into_plans().into_iter().map(pool).collect(), cut))
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its sequences.
    pub fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// Its rows.
    pub fn plan(&self) -> &PackPlan {
        &self.plan
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.plan.rows()
    }

    /// What became of the weight of its sequences before packing.
    pub fn weight_account(&self) -> WeightAccount {
        self.account
    }

    /// The mean of a score of the sequences in each row, by the tokens they have there.
    ///
    /// # Panics
    /// If there is not one score per sequence.
    pub fn row_scores(&self, of_sequences: &[f64]) -> Vec<f64> {
        assert_eq!(of_sequences.len(), self.sequences.len(), "one score per sequence");
        let mean = |row: usize| {
            let pieces = self.plan.row(row);
            let tokens: f64 = pieces.iter().map(|piece| f64::from(piece.len)).sum();
            let sum: f64 = pieces.iter().map(|p| of_sequences[p.sequence as usize] * f64::from(p.len)).sum();
            sum / tokens
        };
        (0..self.rows()).map(mean).collect()
    }
}

/// Reads rows of pools.
pub(super) fn read(pools: &[Pool], step: &StepRows) -> Result<Batch, StoreError> {
    let rows: Vec<&[Piece]> = step.rows.iter().map(|row| pools[row.pool as usize].plan.row(row.row as usize)).collect();
    Batch::of_rows(&rows, step.row_len, |i| &pools[step.rows[i].pool as usize].sequences)
}

/// In which order the rows of a pool are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadOrder {
    /// Shuffled, anew each time round.
    Shuffled,
    /// As they lie, from this row on, again and again.
    Stored {
        /// The first row read.
        offset: u64,
    },
}

/// Finds the n-th row read of each pool, a pure function of the seed.
#[derive(Debug)]
pub(super) struct Orders {
    streams: Streams,
    ways: Vec<ReadOrder>,
    /// The last shuffle of each pool.
    shuffles: Vec<Mutex<Option<(u64, Arc<[u32]>)>>>,
}

impl Orders {
    pub(super) fn new(streams: Streams, ways: Vec<ReadOrder>) -> Self {
        let shuffles = ways.iter().map(|_| Mutex::new(None)).collect();
        Self { streams, ways, shuffles }
    }

    /// The row of `pool`, which has `rows`, that is read after `taken` others.
    pub(super) fn row(&self, pool: usize, rows: usize, taken: u64) -> u32 {
        let n = rows as u64;
        match self.ways[pool] {
            ReadOrder::Stored { offset } => ((offset % n + taken % n) % n) as u32,
            ReadOrder::Shuffled => self.shuffle(pool, rows, taken / n)[(taken % n) as usize],
        }
    }

    fn shuffle(&self, pool: usize, rows: usize, round: u64) -> Arc<[u32]> {
        let mut cached = self.shuffles[pool].lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((of, order)) if *of == round => Arc::clone(order),
            _ => {
                let order: Arc<[u32]> = shuffled(rows, self.streams, "pool", &[pool as u64, round]).into();
                *cached = Some((round, Arc::clone(&order)));
                order
            }
        }
    }
}

/// The numbers below `n` in an order drawn from a stream.
pub(super) fn shuffled(n: usize, streams: Streams, name: &str, index: &[u64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.shuffle(&mut streams.rng(name, index));
    order
}
