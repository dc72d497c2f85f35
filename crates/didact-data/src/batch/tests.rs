use super::*;
use crate::store::tests::{sequences, stored};
use didact_core::sequence::Sequence;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn packings() -> impl Strategy<Value = Packing> {
    prop_oneof![Just(Packing::None), Just(Packing::BestFit), Just(Packing::Concat)]
}

/// What each input of a batch's row knows of its past: the ids of its own segment up to and including itself.
fn contexts(batch: &Batch, row: usize) -> Vec<Vec<u32>> {
    let at = row * batch.len;
    (0..batch.len)
        .map(|i| {
            (0..=i).filter(|&j| batch.segment[at + j] == batch.segment[at + i]).map(|j| batch.ids[at + j]).collect()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn every_token_is_a_target_once_an_epoch_with_its_weight_and_its_own_context(
        sequences in sequences(), row_len in 1usize..40, packing in packings(), batch_size in 1usize..7, seed in 0u64..1000,
        accumulation in 1usize..5, epoch in 0u64..3,
    ) {
        let (_dir, store) = stored(&sequences);
        let set = TrainingSet::new(store, row_len, packing, batch_size, Streams::new(seed));
        let mut delivered: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        let mut weight = 0.0;
        let mut rows = 0;
        for step in epoch * set.batches_per_epoch()..(epoch + 1) * set.batches_per_epoch() {
            let micro = set.micro_batches(step, accumulation).expect("readable");
            prop_assert!(micro.len() <= accumulation);
            prop_assert_eq!(micro.iter().map(|b| b.rows).sum::<usize>(), set.step_rows(step).len());
            for batch in &micro {
                rows += batch.rows;
                prop_assert!(batch.len <= row_len && batch.rows > 0);
                weight += batch.total_weight();
                for row in 0..batch.rows {
                    let contexts = contexts(batch, row);
                    let mut at = 0;
                    for piece in &batch.examples[row] {
                        let sequence = &sequences[piece.sequence as usize];
                        let (start, end) = (piece.start as usize, (piece.start + piece.len) as usize);
                        if at > 0 {
                            // What comes before the piece predicts nothing of it.
                            prop_assert_eq!(batch.weight[row * batch.len + at - 1], 0.0);
                        }
                        for token in start + 1..end {
                            let slot = row * batch.len + at + (token - start) - 1;
                            prop_assert_eq!(batch.targets[slot], sequence.ids[token]);
                            prop_assert_eq!(batch.weight[slot], sequence.weight[token]);
                            let segment = sequence.segment[token - 1];
                            let own: Vec<u32> = (start..token)
                                .filter(|&j| sequence.segment[j] == segment).map(|j| sequence.ids[j]).collect();
                            prop_assert_eq!(batch.position[slot] as usize, own.len() - 1);
                            prop_assert_eq!(&contexts[at + (token - start) - 1], &own);
                            *delivered.entry((piece.sequence, token as u32)).or_default() += 1;
                        }
                        at += end - start;
                    }
                    for slot in row * batch.len + at - 1..(row + 1) * batch.len {
                        prop_assert_eq!((batch.weight[slot], batch.targets[slot], batch.ids[slot]), (0.0, 0, 0));
                    }
                }
            }
        }
        prop_assert_eq!(rows, set.rows());
        prop_assert_eq!(set.partial_batch_rows(), set.rows() % batch_size);
        let account = set.weight_account();
        let mut left_out = 0;
        for (i, sequence) in sequences.iter().enumerate() {
            let has_nothing = sequence.total_weight() == 0.0;
            left_out += u64::from(has_nothing && sequence.len() >= 2);
            for token in 1..sequence.len() {
                let times = delivered.get(&(i as u32, token as u32)).copied().unwrap_or(0);
                prop_assert_eq!(times, u32::from(!has_nothing));
            }
        }
        prop_assert_eq!(account.nothing_trained, left_out);
        // Weights of the test are multiples of a quarter, whose sums are exact.
        prop_assert_eq!(weight, account.delivered);
        prop_assert_eq!(account.built, account.delivered + account.dropped);
    }

    #[test]
    fn a_batch_is_a_pure_function_of_seed_and_step(
        sequences in sequences(), packing in packings(), batch_size in 1usize..7, steps in prop::collection::vec(0u64..50, 1..8),
    ) {
        let (_dir, store) = stored(&sequences);
        let set = |store| TrainingSet::new(store, 16, packing, batch_size, Streams::new(7));
        let in_this_order = set(store.clone());
        if in_this_order.is_empty() {
            return Ok(());
        }
        for &step in &steps {
            prop_assert_eq!(in_this_order.batch(step).expect("readable"), set(store.clone()).batch(step).expect("readable"));
        }
    }
}

fn ten_sequences() -> Vec<Sequence> {
    (0..10)
        .map(|i| Sequence::single((0..=i + 3).map(|t| 100 * i + t + 1).collect(), vec![1.0; i as usize + 4]))
        .collect()
}

#[test]
fn epochs_are_shuffled_differently_and_the_last_batch_is_kept() {
    let (_dir, store) = stored(&ten_sequences());
    let set = TrainingSet::new(store, 64, Packing::None, 4, Streams::new(1));
    assert_eq!((set.batches_per_epoch(), set.partial_batch_rows()), (3, 2));
    let epoch = |n: u64| (3 * n..3 * n + 3).flat_map(|step| set.step_rows(step)).collect::<Vec<_>>();
    assert_ne!(epoch(0), epoch(1));
    let sorted = |mut rows: Vec<u32>| {
        rows.sort_unstable();
        rows
    };
    assert_eq!(sorted(epoch(0)), (0..10).collect::<Vec<_>>());
    assert_eq!(sorted(epoch(1)), (0..10).collect::<Vec<_>>());
    assert_eq!(set.batch(2).expect("readable").rows, 2);
}

#[test]
fn rows_are_as_wide_as_the_longest_of_the_batch_needs() {
    let (_dir, store) = stored(&ten_sequences());
    let set = TrainingSet::in_order(store.clone(), 64, Packing::None, 4);
    let widths: Vec<usize> = (0..3).map(|step| set.batch(step).expect("readable").len).collect();
    // Longest rows of 7, 11 and 13 tokens give 6, 10 and 12 targets.
    assert_eq!(widths, [8, 16, 16]);
    let narrow = TrainingSet::in_order(store, 5, Packing::None, 4);
    assert_eq!(narrow.batch(0).expect("readable").len, 5);
}

#[test]
fn order_never_changes_between_versions() {
    let (_dir, store) = stored(&ten_sequences());
    let set = TrainingSet::new(store, 64, Packing::None, 10, Streams::new(42));
    assert_eq!(set.step_rows(0), [9, 4, 1, 6, 7, 3, 5, 2, 0, 8]);
}

#[test]
fn a_row_names_the_rows_it_was_made_from() {
    let (_dir, store) = stored(&ten_sequences());
    let set = TrainingSet::in_order(store, 64, Packing::BestFit, 1);
    let batch = set.batch(0).expect("readable");
    let origins: Vec<String> = batch.examples[0].iter().map(|p| set.origin(p.sequence).to_string()).collect();
    assert_eq!(origins[0], "`b` row 10");
    assert!(origins.len() > 1);
}
