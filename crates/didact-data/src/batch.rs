//! Batches: what a training step reads, as a pure function of the seed and the step.

use std::sync::{Arc, Mutex, PoisonError};

use didact_core::seed::Streams;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::packing::{PackPlan, PackStats, Packing, Piece, pack};
use crate::sequences::Sequences;
use crate::store::{Origin, SequenceStore, StoreError};

/// Rows are as wide as the longest one needs, rounded up to a multiple of this, so that shapes repeat.
const WIDTH_MULTIPLE: usize = 8;

/// Rows of inputs and targets, all `[B, T]` in row-major order.
///
/// Padding has weight 0 and a segment of its own, so that nothing attends to it or learns from it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// `B`, rows.
    pub rows: usize,
    /// `T`, inputs (and targets) per row.
    pub len: usize,
    /// Input token ids; 0 in the padding.
    pub ids: Vec<u32>,
    /// The token that follows each input; 0 in the padding.
    pub targets: Vec<u32>,
    /// Loss weight of each target.
    pub weight: Vec<f32>,
    /// Segment of each input: non-decreasing along a row, from 0.
    pub segment: Vec<u32>,
    /// Position of each input within its segment, from 0.
    pub position: Vec<u32>,
    /// Which sequences lie in each row, in order.
    pub examples: Vec<Vec<Piece>>,
}

impl Batch {
    /// Sum of the weights, in f64 and in order.
    pub fn total_weight(&self) -> f64 {
        self.weight.iter().map(|&w| f64::from(w)).sum()
    }

    /// Rows of pieces, of at most `row_len` targets each; `source` says where the sequences of the row of a number lie.
    ///
    /// # Errors
    /// When a sequence is damaged.
    pub fn of_rows<'s>(
        rows: &[&[Piece]],
        row_len: usize,
        source: impl Fn(usize) -> &'s Sequences,
    ) -> Result<Self, StoreError> {
        let tokens_of = |row: &&[Piece]| row.iter().map(|piece| piece.len as usize).sum::<usize>();
        let longest = rows.iter().map(tokens_of).max().unwrap_or(0).saturating_sub(1);
        let len = longest.next_multiple_of(WIDTH_MULTIPLE).min(row_len).max(longest);
        let size = rows.len() * len;
        let mut batch = Self {
            rows: rows.len(),
            len,
            ids: vec![0; size],
            targets: vec![0; size],
            weight: vec![0.0; size],
            segment: vec![0; size],
            position: vec![0; size],
            examples: rows.iter().map(|row| row.to_vec()).collect(),
        };
        for (i, pieces) in rows.iter().enumerate() {
            batch.fill(i, pieces, source(i))?;
        }
        Ok(batch)
    }

    /// Lays pieces into row `row`. Token `i` of the row is input `i` and target `i - 1`.
    fn fill(&mut self, row: usize, pieces: &[Piece], source: &Sequences) -> Result<(), StoreError> {
        let len = self.len;
        let place = row * len..(row + 1) * len;
        let (ids, targets) = (&mut self.ids[place.clone()], &mut self.targets[place.clone()]);
        let (weight, segment) = (&mut self.weight[place.clone()], &mut self.segment[place.clone()]);
        let position = &mut self.position[place];
        let mut at = 0;
        let mut number: u32 = 0;
        let mut place = 0;
        for piece in pieces {
            let (start, end) = (piece.start as usize, (piece.start + piece.len) as usize);
            let sequence = source.part(piece.sequence as usize, start..end)?;
            for token in 0..sequence.len() {
                let is_first_of_piece = token == 0;
                if is_first_of_piece || sequence.segment[token] != sequence.segment[token - 1] {
                    number += u32::from(at > 0);
                    place = 0;
                }
                if at < len {
                    ids[at] = sequence.ids[token];
                    segment[at] = number;
                    position[at] = place;
                }
                if at > 0 {
                    targets[at - 1] = sequence.ids[token];
                    // The first token of a piece is context only: it was, or never is, a target elsewhere.
                    weight[at - 1] = if is_first_of_piece { 0.0 } else { sequence.weight[token] };
                }
                at += 1;
                place += 1;
            }
        }
        // The row's last token is a target only; where the row is padded, the padding begins in its place as an input.
        let padding = at.saturating_sub(1);
        for (i, slot) in (padding..len).enumerate() {
            ids[slot] = 0;
            segment[slot] = number + 1;
            position[slot] = i as u32;
        }
        Ok(())
    }

    /// The same batch without borders between what lies in a row: everything attends to everything before it, and
    /// positions run through, as where documents are concatenated and cut. First tokens stay context only.
    #[must_use]
    pub fn without_borders(mut self) -> Self {
        for (row, pieces) in self.examples.iter().enumerate() {
            let inputs = pieces.iter().map(|piece| piece.len as usize).sum::<usize>().saturating_sub(1);
            for i in 0..self.len {
                let at = row * self.len + i;
                (self.segment[at], self.position[at]) =
                    if i < inputs { (0, i as u32) } else { (1, (i - inputs) as u32) };
            }
        }
        self
    }

    /// Tokens that are not padding.
    pub fn tokens(&self) -> u64 {
        self.examples.iter().flatten().map(|piece| u64::from(piece.len)).sum()
    }
}

/// Loss weight from the sequences as built to the batches as delivered.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct WeightAccount {
    /// Weight of all stored sequences.
    pub built: f64,
    /// Weight of the targets that one epoch delivers.
    pub delivered: f64,
    /// Weight of sequences that no row holds.
    pub dropped: f64,
    /// Sequences left out because every weight in them is 0.
    pub nothing_trained: u64,
    /// Tokens of those.
    pub nothing_trained_tokens: u64,
    /// Sequences left out because they have fewer than two tokens.
    pub without_targets: u64,
}

/// Lengths by which sequences are laid into rows (0 for those with nothing to train), and what becomes of their weight.
pub(crate) fn trainable(extents: &[(u32, f64)], built: f64) -> (Vec<u32>, WeightAccount) {
    let mut account = WeightAccount { built, ..WeightAccount::default() };
    let length = |&(length, weight): &(u32, f64)| {
        if length < 2 {
            account.without_targets += 1;
            account.dropped += weight;
        } else if weight == 0.0 {
            account.nothing_trained += 1;
            account.nothing_trained_tokens += u64::from(length);
            return 0;
        } else {
            account.delivered += weight;
        }
        length
    };
    let lengths = extents.iter().map(length).collect();
    (lengths, account)
}

#[derive(Debug, Clone, Copy)]
enum Order {
    Shuffled(Streams),
    Stored,
}

/// A store laid into rows and served in batches.
#[derive(Debug)]
pub struct TrainingSet {
    sequences: Sequences,
    plan: PackPlan,
    batch_size: usize,
    order: Order,
    account: WeightAccount,
    /// The order of rows in the epoch last asked for.
    epoch: Mutex<Option<(u64, Arc<[u32]>)>>,
}

impl TrainingSet {
    /// Rows of `store`, packed to `row_len` targets, in batches of `batch_size` rows, shuffled anew every epoch by the
    /// stream `shuffle`. Sequences with nothing to train are left out and counted.
    ///
    /// # Panics
    /// If `row_len` or `batch_size` is 0.
    pub fn new(store: SequenceStore, row_len: usize, packing: Packing, batch_size: usize, streams: Streams) -> Self {
        Self::build(store, row_len, packing, batch_size, Order::Shuffled(streams))
    }

    /// The same in the order of packing, for evaluation.
    ///
    /// # Panics
    /// If `row_len` or `batch_size` is 0.
    pub fn in_order(store: SequenceStore, row_len: usize, packing: Packing, batch_size: usize) -> Self {
        Self::build(store, row_len, packing, batch_size, Order::Stored)
    }

    /// The same rows of a corpus, or of a store, shuffled by a stream or (`None`) in the order of packing.
    ///
    /// # Errors
    /// When a record of the corpus is damaged.
    ///
    /// # Panics
    /// If `row_len` or `batch_size` is 0.
    pub fn of(
        sequences: impl Into<Sequences>,
        row_len: usize,
        packing: Packing,
        batch_size: usize,
        streams: Option<Streams>,
    ) -> Result<Self, StoreError> {
        let sequences = sequences.into();
        let extents = sequences.extents()?;
        let order = streams.map_or(Order::Stored, Order::Shuffled);
        Ok(Self::lay(sequences, &extents, row_len, packing, batch_size, order))
    }

    fn build(store: SequenceStore, row_len: usize, packing: Packing, batch_size: usize, order: Order) -> Self {
        let extents: Vec<_> = (0..store.len()).map(|i| (store.length(i), store.weight(i))).collect();
        Self::lay(store.into(), &extents, row_len, packing, batch_size, order)
    }

    fn lay(
        sequences: Sequences,
        extents: &[(u32, f64)],
        row_len: usize,
        packing: Packing,
        batch_size: usize,
        order: Order,
    ) -> Self {
        assert!(batch_size > 0, "a batch has at least one row");
        let (lengths, account) = trainable(extents, sequences.weight());
        let plan = pack(&lengths, row_len, packing);
        Self { sequences, plan, batch_size, order, account, epoch: Mutex::new(None) }
    }

    /// The sequences.
    pub fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// The rows.
    pub fn plan(&self) -> &PackPlan {
        &self.plan
    }

    /// What packing did.
    pub fn pack_stats(&self) -> &PackStats {
        self.plan.stats()
    }

    /// What became of the weight.
    pub fn weight_account(&self) -> WeightAccount {
        self.account
    }

    /// Rows per full batch.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.plan.rows()
    }

    /// Whether there is nothing to train on.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    /// Batches per epoch, the last of which may be smaller.
    pub fn batches_per_epoch(&self) -> u64 {
        self.rows().div_ceil(self.batch_size) as u64
    }

    /// Rows of the last batch of an epoch when it is smaller than the others, else 0.
    pub fn partial_batch_rows(&self) -> usize {
        self.rows() % self.batch_size
    }

    /// Where a sequence came from.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn origin(&self, sequence: u32) -> Origin<'_> {
        self.sequences.origin(sequence as usize)
    }

    /// The rows that step `step` (from 0, over all epochs) reads, as numbers within the plan.
    ///
    /// # Panics
    /// If the set is empty.
    pub fn step_rows(&self, step: u64) -> Vec<u32> {
        let per_epoch = self.batches_per_epoch();
        assert!(per_epoch > 0, "there are no rows to train on");
        let order = self.epoch_order(step / per_epoch);
        let start = (step % per_epoch) as usize * self.batch_size;
        order[start..(start + self.batch_size).min(order.len())].to_vec()
    }

    /// The batch of step `step`, from 0 and over all epochs.
    ///
    /// # Errors
    /// When the store is damaged.
    ///
    /// # Panics
    /// If the set is empty.
    pub fn batch(&self, step: u64) -> Result<Batch, StoreError> {
        self.batch_of(&self.step_rows(step))
    }

    /// The same rows in at most `accumulation` parts, as even as can be and each as narrow as it may be; together they hold
    /// exactly the targets of [`Self::batch`]. Fewer parts come back when there are fewer rows.
    ///
    /// # Errors
    /// When the store is damaged.
    ///
    /// # Panics
    /// If the set is empty or `accumulation` is 0.
    pub fn micro_batches(&self, step: u64, accumulation: usize) -> Result<Vec<Batch>, StoreError> {
        assert!(accumulation > 0, "a step has at least one micro-batch");
        let rows = self.step_rows(step);
        let parts = accumulation.min(rows.len());
        (0..parts).map(|i| self.batch_of(&rows[i * rows.len() / parts..(i + 1) * rows.len() / parts])).collect()
    }

    /// A batch of the given rows of the plan.
    ///
    /// # Errors
    /// When the store is damaged.
    ///
    /// # Panics
    /// If a row does not exist.
    pub fn batch_of(&self, rows: &[u32]) -> Result<Batch, StoreError> {
        let rows: Vec<&[Piece]> = rows.iter().map(|&row| self.plan.row(row as usize)).collect();
        Batch::of_rows(&rows, self.plan.row_len(), |_| &self.sequences)
    }

    fn epoch_order(&self, epoch: u64) -> Arc<[u32]> {
        let mut cached = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((of, order)) if *of == epoch => Arc::clone(order),
            _ => {
                let mut order: Vec<u32> = (0..self.rows() as u32).collect();
                if let Order::Shuffled(streams) = &self.order {
                    order.shuffle(&mut streams.rng("shuffle", &[epoch]));
                }
                let order: Arc<[u32]> = order.into();
                *cached = Some((epoch, Arc::clone(&order)));
                order
            }
        }
    }
}

#[cfg(test)]
mod tests;
