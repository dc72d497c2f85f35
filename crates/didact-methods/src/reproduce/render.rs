//! `RESULTS.md`, from recorded results.

use super::record::{ArmRecord, Record, mean_and_spread, number};
use crate::error::MethodError;
use didact_core::files;
use didact_core::progress::{Table, duration};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The page, which stands beside the directory of results.
pub const RESULTS: &str = "RESULTS.md";

/// The files that `record` writes for a result: the document and the plot.
fn file_names(record: &Record) -> (String, String) {
    let stem = format!("{}-{}", record.method, record.size.as_str());
    (format!("{stem}.json"), format!("{stem}.svg"))
}

/// Keeps a result in `dir`, in place of an older one of the same method and size.
///
/// # Errors
/// When it cannot be written.
pub fn keep(record: &Record, dir: &Path) -> Result<PathBuf, MethodError> {
    files::create_dir_all(dir)?;
    draw(record, dir)?;
    let path = dir.join(file_names(record).0);
    files::write_atomic(&path, record.to_json().as_bytes())?;
    Ok(path)
}

fn draw(record: &Record, dir: &Path) -> Result<(), MethodError> {
    let path = dir.join(file_names(record).1);
    Ok(files::write_atomic(path, super::plot::svg(record)?.as_bytes())?)
}

/// All results that were kept in `dir`, by method and size.
///
/// # Errors
/// When one cannot be read.
pub fn kept(dir: &Path) -> Result<Vec<Record>, MethodError> {
    let mut records = Vec::new();
    for path in files::list_dir(dir)? {
        if path.extension().is_some_and(|end| end == "json") {
            records.push(Record::read(&path)?);
        }
    }
    records.sort_by(|a, b| (&a.method, a.size).cmp(&(&b.method, b.size)));
    Ok(records)
}

/// Writes [`RESULTS`] beside the directory `dir` of results, and draws their plots anew.
///
/// # Errors
/// When a result cannot be read or the page not be written.
pub fn write_page(dir: &Path) -> Result<PathBuf, MethodError> {
    let records = kept(dir)?;
    for record in &records {
        draw(record, dir)?;
    }
    let path = dir.parent().unwrap_or(Path::new("")).join(RESULTS);
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    files::write_atomic(&path, page(&records, &name).as_bytes())?;
    Ok(path)
}

/// The page of these results, which are kept in the directory `dir` beside it.
pub fn page(records: &[Record], dir: &str) -> String {
    let mut text = format!(
        "<!-- Made by `didact reproduce --render {dir}` from the files there. Do not edit. -->\n\
         # Results\n\n\
         What published claims come to at the scale of a laptop, as it came out. How a verdict is made, and what a check is:\n\
         [docs/reproductions.md](docs/reproductions.md). Each result says what it is a result of: the command, version, machine\n\
         and date; every number is in the JSON file named with it. Small models on made-up data: a claim that does not show\n\
         here is not refuted, one that does is not proven at scale.\n"
    );
    let row = |record: &Record| {
        let passed = record.checks.iter().filter(|check| check.ok).count();
        vec![
            format!("[{}](#{})", record.method, anchor(record)),
            record.size.as_str().to_owned(),
            record.claim.clone(),
            number(record.effect),
            record.interval(),
            format!("**{}**", record.verdict.as_str()),
            format!("{passed} of {}", record.checks.len()),
            record.seeds.len().to_string(),
            duration(record.wall_s),
        ]
    };
    let columns = ["method", "size", "claim", "effect", "95 % interval", "verdict", "checks ok", "seeds", "time"];
    markdown(
        &mut text,
        &Table {
            title: String::new(),
            columns: columns.map(str::to_owned).to_vec(),
            rows: records.iter().map(row).collect(),
        },
    );
    for record in records {
        section(&mut text, record, dir);
    }
    text
}

fn heading(record: &Record) -> String {
    format!("{}, size {}", record.method, record.size.as_str())
}

/// As GitHub makes it from [`heading`].
fn anchor(record: &Record) -> String {
    heading(record).replace(',', "").replace(' ', "-")
}

fn section(text: &mut String, record: &Record, dir: &str) {
    let (json, svg) = file_names(record);
    let paper = &record.paper;
    let _ = write!(
        text,
        "\n## {}\n\n{}, \"{}\", {}, arXiv [{}](https://arxiv.org/abs/{}).\n\n\
         **{}**: {}. Of {} (better is {}), {} gains {} over {}; 95 % interval {}.\n",
        heading(record),
        paper.authors,
        paper.title,
        paper.year,
        paper.arxiv,
        paper.arxiv,
        record.verdict.as_str(),
        record.claim,
        code(&record.metric),
        if record.higher_is_better { "more" } else { "less" },
        code(&record.compared.method),
        number(record.effect),
        code(&record.compared.baseline),
        record.interval(),
    );
    if let Some([low, high]) = record.bootstrap95 {
        let _ = writeln!(text, "Resampled test items (decides nothing): {} to {}.", number(low), number(high));
    }
    let effects: Vec<String> = record.effects.iter().map(|effect| number(*effect)).collect();
    let seeds: Vec<String> = record.seeds.iter().map(u64::to_string).collect();
    let _ = writeln!(text, "Seeds {}: effects {}.", seeds.join(", "), effects.join(", "));

    let metrics = record.shown_metrics();
    let mut columns = vec!["arm".to_owned(), "role".to_owned(), "what".to_owned()];
    columns.extend(metrics.iter().map(|name| (*name).to_owned()));
    columns.push("tokens per seed".to_owned());
    let row = |arm: &ArmRecord| {
        let mut row = vec![arm.name.clone(), arm.role.as_str().to_owned(), arm.what.clone()];
        row.extend(metrics.iter().map(|name| arm.metrics.get(*name).map_or("-".to_owned(), |v| mean_and_spread(v))));
        row.push(arm.tokens.first().map_or("-".to_owned(), u64::to_string));
        row
    };
    let arms = Table { title: String::new(), columns, rows: record.shown_arms().map(row).collect() };
    text.push_str("\nArms, mean ± standard deviation over seeds:\n");
    markdown(text, &arms);
    if !record.checks.is_empty() {
        text.push_str("\nChecks, no part of the verdict:\n");
        markdown(text, &record.check_table());
    }
    let _ = write!(
        text,
        "\n![{}]({dir}/{svg})\n\nMade by `{}` with didact {} (method version {}) on {}, {}: {}, {} tokens trained on.\n\
         [{json}]({dir}/{json})\n",
        heading(record),
        record.command,
        record.version,
        record.method_version,
        record.machine,
        record.date,
        duration(record.wall_s),
        record.tokens,
    );
}

fn code(name: &str) -> String {
    format!("`{name}`")
}

fn markdown(text: &mut String, table: &Table) {
    let cells = |row: &[String]| row.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>().join(" | ");
    let rule = table.columns.iter().map(|_| "---").collect::<Vec<_>>().join("|");
    let _ = writeln!(text, "\n| {} |\n|{rule}|", cells(&table.columns));
    for row in &table.rows {
        let _ = writeln!(text, "| {} |", cells(row));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_page_is_what_its_files_make_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let records = kept(&root.join("results")).expect("results are kept");
        let page = page(&records, "results");
        let there = files::read_to_string(root.join(RESULTS)).expect("the page is there");
        assert!(there == page, "RESULTS.md is not what results/*.json make it: run `make results`");
        for record in &records {
            let (json, svg) = file_names(record);
            let path = root.join("results").join(json);
            assert_eq!(Record::read(&path).expect("reads"), *record);
            assert_eq!(files::read_to_string(&path).expect("reads"), record.to_json(), "`{}`", path.display());
            let there = files::read_to_string(root.join("results").join(&svg)).expect("the plot is there");
            assert!(there == crate::reproduce::plot::svg(record).expect("draws"), "`{svg}` is old: run `make results`");
        }
    }
}
