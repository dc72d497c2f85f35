use super::*;
use std::path::Path;

use didact_core::example::Example;
use didact_core::message::{Message, Role};

use crate::encode::EncodeOptions;
use crate::tokenizer::Tokenizer;

fn tokenizer() -> Tokenizer {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tokenizers/smollm.gguf");
    Tokenizer::open(golden).expect("a golden tokenizer")
}

fn row(number: u64) -> SourcedExample {
    let example =
        Example::Text { text: format!("document number {number} says {}", "more ".repeat(number as usize % 17)) };
    SourcedExample { example, source: "s".into(), path: "rows.jsonl".into(), row: number }
}

/// A chat with a field that the template does not render.
fn refused(number: u64) -> SourcedExample {
    let mut message = Message::new(Role::Assistant, "x");
    message.reasoning_content = Some("unseen".into());
    SourcedExample { example: Example::Chat { messages: vec![message], tools: Vec::new() }, ..row(number) }
}

fn run(threads: usize, rows: Vec<SourcedExample>) -> (Vec<(u64, Vec<u32>)>, Result<Encoding, DataError>) {
    let tokenizer = tokenizer();
    let encoder = Encoder::new(&tokenizer, EncodeOptions::default()).expect("valid options");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let mut seen = Vec::new();
    let result = pool.install(|| {
        encode_in_order(&encoder, rows.into_iter().map(Ok), &Cancel::new(), |row, encoded| {
            seen.push((row.row, encoded.into_iter().flat_map(|e| e.sequence.ids).collect()));
            Ok(())
        })
    });
    (seen, result)
}

#[test]
fn sequences_come_in_the_order_of_rows_whatever_the_number_of_threads() {
    let rows: Vec<_> = (1..=700).map(row).collect();
    let (one, result) = run(1, rows.clone());
    assert_eq!(result.expect("good rows"), Encoding::Finished { rows: 700 });
    assert_eq!(one.iter().map(|(row, _)| *row).collect::<Vec<_>>(), (1..=700).collect::<Vec<_>>());
    assert_eq!(one, run(3, rows).0);
}

#[test]
fn the_first_row_at_fault_is_named_and_those_before_it_went_through() {
    let mut rows: Vec<_> = (1..=600).map(row).collect();
    for bad in [300, 301, 599] {
        rows[bad - 1] = refused(bad as u64);
    }
    for threads in [1, 3] {
        let (seen, result) = run(threads, rows.clone());
        assert_eq!(seen.len(), 299);
        let text = result.expect_err("a field that is lost").to_string();
        assert!(text.contains("row 300"), "{text}");
    }
}

#[test]
fn a_stop_ends_between_chunks() {
    let tokenizer = tokenizer();
    let encoder = Encoder::new(&tokenizer, EncodeOptions::default()).expect("valid options");
    let cancel = Cancel::new();
    let rows = (1..=10_000).map(|number| Ok::<_, DataError>(row(number)));
    let result = encode_in_order(&encoder, rows, &cancel, |_, _| {
        cancel.cancel();
        Ok(())
    });
    assert_eq!(result.expect("good rows"), Encoding::Cancelled { rows: CHUNK_ROWS as u64 });
}
