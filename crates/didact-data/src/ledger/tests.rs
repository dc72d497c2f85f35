use didact_core::sequence::Sequence;

use super::*;

fn encoded(source: &str, kind: ExampleKind, roles: &[(TokenRole, f32)]) -> Encoded {
    let weight: Vec<f32> = roles.iter().map(|r| r.1).collect();
    Encoded {
        sequence: Sequence::single(vec![1; roles.len()], weight),
        role: roles.iter().map(|r| r.0).collect(),
        kind,
        source: source.into(),
        path: "p".into(),
        row: 1,
        part: (0, 1),
        truncated_tokens: 0,
        truncated_weight: 0.0,
        truncated_answers: 0,
        empty_answers: 0,
        end_of_turn_trained: None,
        double_bos: false,
        straddling: 0,
    }
}

fn chat(source: &str) -> Encoded {
    use TokenRole::{Assistant, Template, User};
    let roles = [(Template, 0.0), (User, 0.0), (Template, 0.0), (Assistant, 1.0), (Assistant, 2.0)];
    Encoded { end_of_turn_trained: Some(true), ..encoded(source, ExampleKind::Chat, &roles) }
}

#[test]
fn counts_are_kept_by_source_and_role() {
    let mut ledger = LossLedger::new(TrainOn::Assistant);
    assert!(ledger.add(&chat("b")));
    assert!(ledger.add(&chat("b")));
    let text = encoded("a", ExampleKind::Text, &[(TokenRole::Text, 1.0), (TokenRole::Text, 1.0)]);
    assert!(ledger.add(&text));
    let mut dropped = encoded("b", ExampleKind::Chat, &[(TokenRole::User, 0.0)]);
    (dropped.truncated_tokens, dropped.truncated_weight, dropped.truncated_answers) = (9, 4.0, 1);
    assert!(!ledger.add(&dropped));
    ledger.check().expect("trains something, not everything");
    assert_eq!((ledger.tokens(), ledger.trained_tokens(), ledger.weight()), (12, 5, 7.0));
    let rows: Vec<String> = ledger.table().rows.iter().map(|r| r.join(" | ")).collect();
    assert_eq!(
        rows,
        [
            "a | text | 1 | 2 | 1 | 50.0 % | 1.0",
            "a | all | 1 | 2 | 1 | 50.0 % | 1.0",
            "b | user | 2 | 2 | 0 | 0.0 % | 0.0",
            "b | assistant | 2 | 4 | 4 | 100.0 % | 6.0",
            "b | template | 2 | 4 | 0 | 0.0 % | 0.0",
            "b | all | 2 | 10 | 4 | 40.0 % | 6.0",
        ]
    );
    let rows: Vec<String> = ledger.exceptions_table().rows.iter().map(|r| r.join(" | ")).collect();
    assert_eq!(
        rows,
        ["a | 1 | 1 | 0 | 0 | 0 | 0.0 | 0 | 0 / 0 / 1 | 0", "b | 3 | 2 | 1 | 1 | 9 | 4.0 | 0 | 2 / 0 / 0 | 0"]
    );
    assert_eq!(
        ledger.warnings(),
        [
            "source `b`: 1 sequences are left out because nothing in them is trained",
            "source `b`: 1 answers are cut at `train.max_seq_len`; their ends are not trained",
        ]
    );
    let json = serde_json::to_string(&ledger).expect("serialises");
    assert_eq!(serde_json::from_str::<LossLedger>(&json).expect("parses"), ledger);
}

#[test]
fn training_nothing_is_refused() {
    let mut ledger = LossLedger::new(TrainOn::Assistant);
    assert_eq!(ledger.check(), Err(LedgerError::NoExamples));
    assert!(ledger.add(&chat("good")));
    let mut cut = encoded("bad", ExampleKind::Chat, &[(TokenRole::User, 0.0); 3]);
    cut.truncated_answers = 1;
    assert!(!ledger.add(&cut));
    let error = ledger.check().expect_err("one source trains nothing");
    assert_eq!(
        error.to_string(),
        "source `bad` would train nothing: none of the tokens of its 1 examples has a loss weight \
         (1 answers were cut off, 0 are empty)"
    );
    assert!(error.hint().is_some_and(|h| h.contains("train.max_seq_len")));
}

#[test]
fn training_everything_is_refused_unless_asked_for() {
    let all = encoded("s", ExampleKind::Chat, &[(TokenRole::User, 1.0), (TokenRole::Assistant, 1.0)]);
    let mut ledger = LossLedger::new(TrainOn::Assistant);
    assert!(ledger.add(&all));
    assert!(matches!(ledger.check(), Err(LedgerError::EverythingTrained { chats: 1, .. })));
    let mut asked = LossLedger::new(TrainOn::All);
    assert!(asked.add(&all));
    asked.check().expect("asked for");
    let mut text = LossLedger::new(TrainOn::Assistant);
    assert!(text.add(&encoded("s", ExampleKind::Text, &[(TokenRole::Text, 1.0); 4])));
    text.check().expect("running text is trained in full");
}

#[test]
fn an_example_in_parts_is_counted_once() {
    let mut ledger = LossLedger::new(TrainOn::Assistant);
    for i in 0..3 {
        assert!(ledger.add(&Encoded { part: (i, 3), ..chat("s") }));
    }
    let counts = &ledger.sources["s"];
    assert_eq!((counts.examples, counts.sequences, counts.split_examples), (1, 3, 1));
}
