//! How sequences are laid into rows of bounded length.
//!
//! A row gives at most `row_len` targets and therefore holds at most `row_len + 1` tokens: inputs are all but its last,
//! targets all but its first. A sequence that does not fit is cut into pieces that overlap by one token, the last of one
//! piece being the first, and context only, of the next; so a cut loses no target. Pieces keep to their own segment:
//! tokens of different sequences never attend to each other, and positions restart at each piece.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// How rows are filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// One sequence, or one piece of it, per row.
    None,
    /// Best-fit decreasing: each piece, longest first, goes where it leaves least room. Only sequences longer than a row
    /// are cut.
    #[default]
    BestFit,
    /// Sequences follow each other in order, cut wherever a row is full.
    Concat,
}

/// A run of tokens of one sequence, laid into one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Piece {
    /// Index of the sequence.
    pub sequence: u32,
    /// First token taken; context only.
    pub start: u32,
    /// Number of tokens taken, at least 2.
    pub len: u32,
}

/// What packing did, for the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PackStats {
    /// Sequences given.
    pub sequences: u64,
    /// Sequences of fewer than two tokens: they hold no target and are in no row.
    pub without_targets: u64,
    /// Tokens of those.
    pub without_targets_tokens: u64,
    /// Sequences cut into more than one piece.
    pub cut_sequences: u64,
    /// Cuts made; each repeats one token as context.
    pub cuts: u64,
    /// Rows.
    pub rows: u64,
    /// Targets over all rows.
    pub targets: u64,
    /// Tokens of the longest row.
    pub longest_row: u64,
}

/// Rows of pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackPlan {
    row_len: u32,
    packing: Packing,
    pieces: Vec<Piece>,
    /// Index into `pieces` behind each row's last.
    ends: Vec<u32>,
    stats: PackStats,
}

impl PackPlan {
    /// Targets that fit a row.
    pub fn row_len(&self) -> usize {
        self.row_len as usize
    }

    /// How rows were filled.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// The pieces of a row, in order.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[Piece] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        &self.pieces[start..self.ends[row] as usize]
    }

    /// What packing did.
    pub fn stats(&self) -> &PackStats {
        &self.stats
    }

    pub(crate) fn from_rows(
        row_len: u32,
        packing: Packing,
        rows: impl Iterator<Item = Vec<Piece>>,
        mut stats: PackStats,
    ) -> Self {
        let (mut pieces, mut ends) = (Vec::new(), Vec::new());
        for row in rows {
            let tokens: u64 = row.iter().map(|piece| u64::from(piece.len)).sum();
            stats.longest_row = stats.longest_row.max(tokens);
            stats.targets += tokens - row.len() as u64;
            pieces.extend(row);
            ends.push(pieces.len() as u32);
        }
        stats.rows = ends.len() as u64;
        Self { row_len, packing, pieces, ends, stats }
    }
}

/// Lays sequences of the given lengths (in tokens) into rows of at most `row_len` targets. Order within and of rows is a
/// function of the arguments alone.
///
/// # Panics
/// If `row_len` is 0, or there are more than `u32::MAX` sequences.
pub fn pack(lengths: &[u32], row_len: usize, packing: Packing) -> PackPlan {
    assert!(row_len > 0, "pack: a row holds at least one target");
    assert!(u32::try_from(lengths.len()).is_ok(), "pack: {} sequences are more than an index can name", lengths.len());
    let row_len = u32::try_from(row_len).unwrap_or(u32::MAX - 1).min(u32::MAX - 1);
    let mut stats = PackStats { sequences: lengths.len() as u64, ..PackStats::default() };
    for &len in lengths.iter().filter(|&&len| len < 2) {
        stats.without_targets += 1;
        stats.without_targets_tokens += u64::from(len);
    }
    if packing == Packing::Concat {
        let rows = concatenated(lengths, row_len + 1, &mut stats);
        return PackPlan::from_rows(row_len, packing, rows.into_iter(), stats);
    }
    let mut pieces = Vec::with_capacity(lengths.len());
    for (sequence, &len) in lengths.iter().enumerate() {
        let before = pieces.len();
        let mut start = 0;
        while start + 1 < len {
            let taken = (len - start).min(row_len + 1);
            pieces.push(Piece { sequence: sequence as u32, start, len: taken });
            start += taken - 1;
        }
        let cuts = (pieces.len() - before).saturating_sub(1) as u64;
        stats.cuts += cuts;
        stats.cut_sequences += u64::from(cuts > 0);
    }
    if packing == Packing::None {
        PackPlan::from_rows(row_len, packing, pieces.into_iter().map(|piece| vec![piece]), stats)
    } else {
        let rows = best_fit_decreasing(pieces, row_len + 1);
        PackPlan::from_rows(row_len, packing, rows.into_iter(), stats)
    }
}

fn concatenated(lengths: &[u32], capacity: u32, stats: &mut PackStats) -> Vec<Vec<Piece>> {
    let mut rows = Vec::new();
    let mut row = Vec::new();
    let mut room = capacity;
    for (sequence, &len) in lengths.iter().enumerate() {
        let mut start = 0;
        let mut is_cut = false;
        while start + 1 < len {
            // A single token at the end of a row would be context for nothing.
            if room < 2 {
                rows.push(std::mem::take(&mut row));
                room = capacity;
            }
            let taken = (len - start).min(room);
            row.push(Piece { sequence: sequence as u32, start, len: taken });
            room -= taken;
            if start + taken < len {
                stats.cuts += 1;
                is_cut = true;
            }
            start += taken - 1;
        }
        stats.cut_sequences += u64::from(is_cut);
    }
    if !row.is_empty() {
        rows.push(row);
    }
    rows
}

pub(crate) fn best_fit_decreasing(mut pieces: Vec<Piece>, capacity: u32) -> Vec<Vec<Piece>> {
    pieces.sort_by_key(|piece| (std::cmp::Reverse(piece.len), piece.sequence, piece.start));
    let mut rows: Vec<Vec<Piece>> = Vec::new();
    // Rows with room for at least the shortest piece there can be, by room and then by age.
    let mut open: BTreeSet<(u32, u32)> = BTreeSet::new();
    for piece in pieces {
        let fit = open.range((piece.len, 0)..).next().copied();
        let (room, row) = if let Some(found) = fit {
            open.remove(&found);
            found
        } else {
            rows.push(Vec::new());
            (capacity, (rows.len() - 1) as u32)
        };
        rows[row as usize].push(piece);
        if room - piece.len >= 2 {
            open.insert((room - piece.len, row));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packings() -> impl Strategy<Value = Packing> {
        prop_oneof![Just(Packing::None), Just(Packing::BestFit), Just(Packing::Concat)]
    }

    proptest! {
        #[test]
        fn every_token_but_a_sequences_first_is_a_target_exactly_once(
            lengths in prop::collection::vec(0u32..70, 0..60),
            row_len in 1usize..40,
            packing in packings(),
        ) {
            let plan = pack(&lengths, row_len, packing);
            let mut seen: Vec<Vec<u32>> = lengths.iter().map(|&n| vec![0; n as usize]).collect();
            for row in 0..plan.rows() {
                let pieces = plan.row(row);
                let tokens: u32 = pieces.iter().map(|p| p.len).sum();
                prop_assert!(!pieces.is_empty() && tokens as usize <= row_len + 1);
                prop_assert!(packing != Packing::None || pieces.len() == 1);
                for piece in pieces {
                    prop_assert!(piece.len >= 2);
                    for token in piece.start + 1..piece.start + piece.len {
                        seen[piece.sequence as usize][token as usize] += 1;
                    }
                }
            }
            for tokens in &seen {
                for (i, &times) in tokens.iter().enumerate() {
                    prop_assert_eq!(times, u32::from(i > 0));
                }
            }
            let stats = plan.stats();
            let targets: u64 = lengths.iter().map(|&n| u64::from(n.saturating_sub(1))).sum();
            prop_assert_eq!(stats.targets, targets);
            prop_assert_eq!(stats.without_targets, lengths.iter().filter(|&&n| n < 2).count() as u64);
            let pieces: usize = (0..plan.rows()).map(|row| plan.row(row).len()).sum();
            prop_assert_eq!(pieces as u64, stats.sequences - stats.without_targets + stats.cuts);
        }

        #[test]
        fn best_fit_cuts_only_what_no_row_can_hold(lengths in prop::collection::vec(0u32..70, 0..60), row_len in 1usize..40) {
            let plan = pack(&lengths, row_len, Packing::BestFit);
            let too_long = lengths.iter().filter(|&&n| n as usize > row_len + 1).count();
            prop_assert_eq!(plan.stats().cut_sequences, too_long as u64);
        }
    }

    #[test]
    fn best_fit_fills_rows_where_they_leave_least_room() {
        let plan = pack(&[6, 3, 4, 2, 5], 9, Packing::BestFit);
        let rows: Vec<Vec<u32>> = (0..plan.rows()).map(|r| plan.row(r).iter().map(|p| p.sequence).collect()).collect();
        assert_eq!(rows, [vec![0, 2], vec![4, 1, 3]]);
    }

    #[test]
    fn concatenation_repeats_the_last_token_of_a_full_row_as_context() {
        let plan = pack(&[4, 6], 5, Packing::Concat);
        assert_eq!(plan.row(0), [Piece { sequence: 0, start: 0, len: 4 }, Piece { sequence: 1, start: 0, len: 2 }]);
        assert_eq!(plan.row(1), [Piece { sequence: 1, start: 1, len: 5 }]);
        assert_eq!((plan.stats().cuts, plan.stats().cut_sequences), (1, 1));
    }
}
