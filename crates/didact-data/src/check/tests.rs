use super::*;
use didact_core::files::write_atomic;

fn checked(rows: &str) -> CheckReport {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("a.jsonl");
    write_atomic(&path, rows.as_bytes()).expect("written");
    check(&SourceConfig::new(path.to_str().expect("UTF-8"))).expect("found")
}

#[test]
fn a_check_finds_every_problem_and_goes_on_behind_it() {
    let report = checked(concat!(
        "{\"prompt\": \"p\", \"completion\": \"four\"}\n",
        "{\"prompt\": 1, \"completion\": \"c\"}\n",
        "not json\n",
        "{\"prompt\": \"pp\", \"completion\": \" \"}\n",
        "{\"completion\": \"four\", \"prompt\": \"p\"}\n",
    ));
    assert_eq!((report.files, report.rows, report.problem_count), (1, 5, 2));
    assert_eq!(
        report.problems.iter().map(|p| (p.row, p.key.as_deref())).collect::<Vec<_>>(),
        [(2, Some("prompt")), (3, None)]
    );
    assert_eq!(report.empty_targets.iter().map(|place| place.row).collect::<Vec<_>>(), [4]);
    assert_eq!(report.duplicate_count, 1);
    assert_eq!((report.duplicates[0].row, report.duplicates[0].first.row), (5, 1));
    assert_eq!((report.characters.min, report.characters.max, report.characters.count), (3, 5, 3));
    assert_eq!(report.schema.len(), 1);
    assert!(!report.is_clean());
}

#[test]
fn a_conversation_without_a_trained_answer_is_an_empty_target() {
    let report = checked(concat!(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n",
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\", \"train\": false}]}\n",
        "{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"name\": \"f\"}]}]}\n",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\", \"weight\": 1}]}\n",
    ));
    assert_eq!(report.empty_targets.iter().map(|place| place.row).collect::<Vec<_>>(), [1, 2]);
    assert!(report.is_clean());
}

#[test]
fn quantiles_are_values_that_occur() {
    let d = Distribution::of((1..=10).rev().collect());
    assert_eq!((d.min, d.p50, d.p90, d.p99, d.max, d.sum), (1, 5, 9, 10, 10, 55));
    assert_eq!(d.mean, 5.5);
    assert_eq!(Distribution::of(Vec::new()), Distribution::default());
}
