use super::*;
use didact_core::files;
use didact_core::progress::Silent;
use serde_json::json;
use std::path::PathBuf;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(rows: &[Value]) -> Self {
        let world = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        let lines = rows.iter().map(|row| format!("{row}\n")).collect::<Vec<_>>().concat();
        files::write_atomic(world.path("in.jsonl"), lines.as_bytes()).expect("written");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What stays, and what is left out by row and rule.
    fn run(&self, settings: FilterSettings) -> (Vec<Map<String, Value>>, Vec<(u64, Dropped)>, FilterReport) {
        let source = SourceConfig::new(self.path("in.jsonl").to_str().expect("UTF-8"));
        let mut rules = Filter::new(settings).expect("sound");
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        let done = filter::<DataError>(&source, &mut rules, &Cancel::new(), &Silent, |row, mut raw, decision| {
            match decision {
                Decision::Drop(why) => dropped.push((row.row, why)),
                Decision::Keep(edited) => {
                    if let Some(text) = edited {
                        raw.insert("text".to_owned(), text.into());
                    }
                    kept.push(raw);
                }
            }
            Ok(())
        });
        let report = done.expect("readable").report;
        let all: u64 = report.dropped.values().map(|count| count.rows).sum();
        assert_eq!(report.read.rows, report.kept.rows + all, "every row is kept or counted under a rule");
        (kept, dropped, report)
    }
}

fn rules(dropped: &[(u64, Dropped)]) -> Vec<(u64, &str)> {
    dropped.iter().map(|(row, why)| (*row, why.rule.as_str())).collect()
}

fn words(from: usize, n: usize) -> String {
    (from..from + n).map(|i| format!("word{}", i * 7919 % 10_007)).collect::<Vec<_>>().join(" ")
}

#[test]
fn lengths_are_limited_on_both_sides_and_rows_come_out_as_they_were() {
    let world = World::new(&[
        json!({"text": "short", "id": 1}),
        json!({"text": words(0, 10), "id": 2, "meta": {"b": 1, "a": [2]}}),
        json!({"text": words(0, 30), "id": 3}),
    ]);
    let settings = FilterSettings { min_chars: Some(10), max_words: Some(20), ..FilterSettings::default() };
    let (kept, dropped, report) = world.run(settings);
    assert_eq!(rules(&dropped), [(1, "min_chars"), (3, "max_words")]);
    assert_eq!(dropped[0].1.found, "5");
    assert_eq!(Value::Object(kept[0].clone()), json!({"text": words(0, 10), "id": 2, "meta": {"b": 1, "a": [2]}}));
    assert_eq!(report.dropped["max_words"], Count { rows: 1, chars: words(0, 30).len() as u64 });
    assert_eq!(report.table().rows.len(), 4);
}

#[test]
fn repetitions_name_the_row_they_repeat() {
    let long = words(0, 200);
    let edited = long.replacen("word7919", "changed", 1);
    assert_ne!(long, edited);
    let world = World::new(
        &[
            json!({"text": long}),
            json!({"prompt": "a", "completion": "b"}),
            json!({"text": words(1000, 200)}),
            json!({"text": edited}),
            json!({"text": long}),
            json!({"prompt": "a", "completion": "b"}),
        ]
        .map(|row| if row.get("text").is_some() { json!({"prompt": "", "completion": row["text"]}) } else { row }),
    );
    let exact = FilterSettings { exact: true, ..FilterSettings::default() };
    let (_, dropped, _) = world.run(exact.clone());
    assert_eq!(rules(&dropped), [(5, "exact_repetition"), (6, "exact_repetition")]);
    let place = |row| format!("`{}` row {row}", world.path("in.jsonl").display());
    assert_eq!(dropped.iter().map(|(_, why)| why.found.clone()).collect::<Vec<_>>(), [place(1), place(2)]);
    let both = FilterSettings { near: Some(NearSettings::default()), ..exact };
    let (_, dropped, _) = world.run(both);
    assert_eq!(rules(&dropped), [(4, "near_repetition"), (5, "exact_repetition"), (6, "exact_repetition")]);
    assert!(dropped[0].1.found.starts_with(&(place(1) + " (similarity about 0.9")), "{}", dropped[0].1.found);
}

#[test]
fn evaluation_data_are_found_whatever_their_formatting() {
    let secret = words(5000, 20);
    let world = World::new(&[
        json!({"text": words(0, 50)}),
        json!({"text": format!("{} {} {}", words(0, 30), secret.to_uppercase().replace(' ', ",\n"), words(100, 30))}),
        json!({"text": format!("{} {}", words(0, 30), words(5000, 12))}),
        json!({"text": format!("so {} indeed", words(7000, 9))}),
        json!({"text": format!("so {} indeed", words(8000, 5))}),
    ]);
    let tests = [
        json!({"prompt": secret, "completion": "yes"}),
        json!({"prompt": words(7000, 9), "completion": words(8000, 5)}),
    ];
    let lines = tests.iter().map(|row| format!("{row}\n")).collect::<Vec<_>>().concat();
    files::write_atomic(world.path("test.jsonl"), lines.as_bytes()).expect("written");
    let against = vec![world.path("test.jsonl").display().to_string()];
    let settings =
        FilterSettings { contamination: Some(ContaminationSettings::new(against)), ..FilterSettings::default() };
    let (_, dropped, _) = world.run(settings.clone());
    assert_eq!(rules(&dropped), [(2, "contamination"), (4, "contamination")], "13 words, or a whole text of 8 or more");
    assert!(dropped[1].1.found.ends_with("test.jsonl` row 2"), "{}", dropped[1].1.found);
    let rules = Filter::new(settings).expect("sound");
    let contamination = rules.contamination().expect("asked for");
    assert_eq!((contamination.rows, contamination.too_short), (2, 2));
}

#[test]
fn poor_lines_leave_and_the_rest_stays() {
    let good = "This is one good sentence. This is another good one. And here is the third.";
    let world = World::new(&[json!({"text": format!("Home | About\n{good}\n")}), json!({"text": "Home | About\n"})]);
    let (kept, dropped, report) =
        world.run(FilterSettings { quality: vec![QualitySet::C4], ..FilterSettings::default() });
    assert_eq!((kept.len(), kept[0]["text"].as_str()), (1, Some(format!("{good}\n").as_str())));
    assert_eq!(rules(&dropped), [(2, "c4_sentences")]);
    assert_eq!(report.edited, Count { rows: 2, chars: 26 });
}

#[test]
fn threads_do_not_show() {
    let rows: Vec<Value> = (0..3000).map(|i| json!({"text": words((i * i) % 700, 20 + i % 50)})).collect();
    let world = World::new(&rows);
    let settings = FilterSettings { exact: true, near: Some(NearSettings::default()), ..FilterSettings::default() };
    let expected = world.run(settings.clone());
    assert!(expected.1.len() > 100 && expected.0.len() > 100);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    let single = pool.install(|| world.run(settings));
    assert!(single == expected, "one thread");
}
