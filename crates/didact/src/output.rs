//! Where everything the user reads is printed: results to stdout, the rest to stderr.
#![expect(clippy::print_stderr, reason = "this module does the printing")]

use crate::cli::Global;
use crate::hub::{Progress, PullError};
use crate::signals;
use didact_core::fault::{Classify, Fault};
use didact_core::progress::Table;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How a command ended when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Done.
    Done,
    /// The thing asked for was checked and is not so.
    NotSo,
    /// Some of many things failed; the rest is printed.
    Partly,
    /// The user asked for a stop; what there is is printed.
    Stopped,
}

impl Status {
    pub(crate) fn exit_code(self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::NotSo => ExitCode::from(3),
            Self::Partly => ExitCode::FAILURE,
            Self::Stopped => ExitCode::from(signals::exit_code()),
        }
    }
}

/// Wrong usage that only shows after parsing.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct UsageError {
    message: String,
    hint: String,
}

impl Classify for UsageError {
    fn fault(&self) -> Fault {
        Fault::Input
    }

    fn hint(&self) -> Option<String> {
        Some(self.hint.clone())
    }
}

/// An error of the user's making, with the way out.
pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    UsageError { message: message.into(), hint: hint.into() }.into()
}

/// How to print.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    is_json: bool,
    is_quiet: bool,
    is_colored: bool,
    is_terminal: bool,
}

/// An error for scripts.
#[derive(Serialize)]
struct ErrorDocument {
    error: String,
    causes: Vec<String>,
    hint: Option<String>,
    exit_code: u8,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        let is_colored = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            is_json: global.json,
            is_quiet: global.quiet,
            is_colored: is_colored && !is_dumb && std::io::stdout().is_terminal(),
            is_terminal: std::io::stderr().is_terminal() && !is_dumb,
        }
    }

    /// Whether results are one JSON document.
    pub(crate) fn is_json(&self) -> bool {
        self.is_json
    }

    /// Whether progress is to be shown.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.is_quiet
    }

    /// Whether somebody looks at stderr, so that a bar can move.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Whether results may carry colours.
    pub(crate) fn is_colored(&self) -> bool {
        self.is_colored
    }

    /// Prints a result: the document with `--json`, else the text.
    pub(crate) fn result(&self, document: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = if self.is_json { serde_json::to_string_pretty(document)? } else { text() };
        line(&text)
    }

    /// Prints a piece of a result for people, before the rest of it is there. Nothing with `--json`.
    pub(crate) fn piece(&self, text: &str) {
        if !self.is_json {
            // A closed pipe shows again when the result itself is printed.
            let _ = line(text);
        }
    }

    /// Prints text that goes on on the same line. Nothing with `--json`.
    pub(crate) fn inline(&self, text: &str) {
        if !self.is_json {
            let mut stdout = std::io::stdout().lock();
            // A closed pipe shows again when the next line is printed.
            let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        }
    }

    /// A line of progress.
    pub(crate) fn note(&self, text: &str) {
        if self.shows_progress() {
            eprintln!("{text}");
        }
    }

    /// Something the user should know although the work goes on.
    pub(crate) fn warn(&self, text: &str) {
        let (on, off) = if self.is_terminal && self.is_colored { ("\x1b[33m", "\x1b[0m") } else { ("", "") };
        eprintln!("{on}warning:{off} {text}");
    }

    /// A table as text, as wide as the terminal or `COLUMNS` at most.
    pub(crate) fn table(&self, table: &Table) -> String {
        render(table, width(), self.is_colored)
    }

    /// Prints what went wrong and gives the exit code.
    pub(crate) fn failure(&self, error: &anyhow::Error) -> ExitCode {
        let classified = classify(error);
        let fault = classified.map_or(Fault::Running, Classify::fault);
        let code = match fault {
            Fault::Input => 2,
            Fault::Running => 1,
            Fault::NotSo => 3,
            Fault::Stopped => signals::exit_code(),
        };
        let document = ErrorDocument {
            error: error.to_string(),
            causes: causes(error),
            hint: classified.and_then(Classify::hint),
            exit_code: code,
        };
        if self.is_json
            && let Ok(text) = serde_json::to_string_pretty(&document)
        {
            let _ = line(&text);
        }
        // "stopped" is what the user wanted, and no error.
        eprintln!("{}{}", if fault == Fault::Stopped { "" } else { "error: " }, document.error);
        for cause in &document.causes {
            eprintln!("  caused by: {cause}");
        }
        if let Some(hint) = &document.hint {
            eprintln!("hint: {hint}");
        }
        ExitCode::from(code)
    }

    /// Shows a download.
    pub(crate) fn pull_progress(&self) -> impl Fn(Progress<'_>) + use<> {
        let output = self.clone();
        let state: RefCell<Option<(String, ProgressBar, Instant)>> = RefCell::new(None);
        move |progress| {
            if !output.shows_progress() {
                return;
            }
            let mut state = state.borrow_mut();
            match progress {
                Progress::Message(text) => match &*state {
                    Some((_, bar, _)) if output.is_terminal => bar.suspend(|| eprintln!("{text}")),
                    _ => eprintln!("{text}"),
                },
                Progress::Bytes { file, done, total } => {
                    if state.as_ref().is_none_or(|(name, ..)| name != file) {
                        let bar = if output.is_terminal { byte_bar(total) } else { ProgressBar::hidden() };
                        bar.set_message(file.to_owned());
                        *state = Some((file.to_owned(), bar, Instant::now()));
                    }
                    let Some((_, bar, last)) = &mut *state else { return };
                    bar.set_position(done);
                    let is_done = total == Some(done);
                    if !output.is_terminal && (is_done || last.elapsed() > LINE_INTERVAL) {
                        *last = Instant::now();
                        eprintln!("{file}: {}", amount(done, total));
                    }
                    if is_done {
                        bar.finish_and_clear();
                    }
                }
            }
        }
    }
}

/// Time between lines of progress where no bar can move.
pub(crate) const LINE_INTERVAL: Duration = Duration::from_secs(10);

fn byte_bar(total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(ProgressStyle::with_template(template).expect("the template is correct"))
}

fn amount(done: u64, total: Option<u64>) -> String {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    match total {
        Some(total) => format!("{:.1} of {:.1} MB", mb(done), mb(total)),
        None => format!("{:.1} MB", mb(done)),
    }
}

/// Prints one text and a line feed to stdout. Whoever closed the pipe wants no more: that is no error.
fn line(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Ends after clap found the command line wrong, or printed help or the version.
pub(crate) fn usage_exit(error: &clap::Error, is_json: bool) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let _ = error.print();
    if is_json {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        let document = ErrorDocument {
            error: first.strip_prefix("error: ").unwrap_or(first).to_owned(),
            causes: Vec::new(),
            hint: Some("see --help".to_owned()),
            exit_code: 2,
        };
        if let Ok(text) = serde_json::to_string_pretty(&document) {
            let _ = line(&text);
        }
    }
    ExitCode::from(2)
}

/// The causes that say more than the messages above them.
fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut seen = vec![error.to_string()];
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        if !seen.iter().any(|message| message.contains(&text)) {
            seen.push(text);
        }
    }
    seen.split_off(1)
}

/// The first error of the chain that knows whose move it is.
fn classify(error: &anyhow::Error) -> Option<&dyn Classify> {
    macro_rules! first_of {
        ($cause:expr, $($kind:ty),+ $(,)?) => {
            $(if let Some(found) = $cause.downcast_ref::<$kind>() { return Some(found); })+
        };
    }
    for cause in error.chain() {
        first_of!(
            cause,
            UsageError,
            crate::commands::run::Stopped,
            PullError,
            didact_eval::EvalError,
            didact_methods::MethodError,
            didact_methods::RecipeError,
            didact_methods::reproduce::ReproduceError,
            didact_model::ModelError,
            didact_data::DataError,
            didact_data::reader::ReadError,
            didact_data::reader::RowError,
            didact_data::store::StoreError,
            didact_infer::InferError,
            didact_infer::remote::RemoteError,
            didact_infer::transcript::TranscriptError,
            didact_train::TrainError,
            didact_verify::sandbox::SandboxError,
            didact_verify::verilog::TaskError,
            didact_core::run::RunError,
            didact_core::gguf::GgufError,
            didact_core::files::FileError,
        );
    }
    None
}

/// Columns to print in: `COLUMNS`, else the terminal's; nothing when printing into a pipe.
fn width() -> Option<usize> {
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).filter(|&n| n > 0);
    columns.or_else(|| {
        let stdout = std::io::stdout();
        rustix::termios::tcgetwinsize(stdout).ok().map(|size| size.ws_col.into()).filter(|&n| n > 0)
    })
}

/// Least width that a wrapped column is left with.
const LEAST_WIDTH: usize = 16;

fn render(table: &Table, width: Option<usize>, is_colored: bool) -> String {
    let length = |text: &str| text.chars().count();
    let count = table.columns.len();
    let mut widths: Vec<usize> = table.columns.iter().map(|name| length(name)).collect();
    for row in &table.rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.lines().map(length).max().unwrap_or(0));
        }
    }
    let is_right: Vec<bool> = (0..count).map(|i| is_numeric(table, i)).collect();
    if let Some(limit) = width {
        // The widest column of text gives way, line by line, until the table fits or nothing more can give.
        while widths.iter().sum::<usize>() + 2 * count > limit {
            let widest = (0..count).filter(|&i| !is_right[i]).max_by_key(|&i| widths[i]);
            match widest {
                Some(i) if widths[i] > LEAST_WIDTH => widths[i] -= 1,
                _ => break,
            }
        }
    }
    let mut text = String::new();
    if !table.title.is_empty() {
        let (on, off) = if is_colored { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let _ = writeln!(text, "{on}{}{off}", table.title);
    }
    let mut add = |cells: &[Vec<String>]| {
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        for i in 0..height {
            let mut line = String::new();
            for (column, lines) in cells.iter().enumerate() {
                let cell = lines.get(i).map_or("", String::as_str);
                let padding = " ".repeat(widths[column].saturating_sub(length(cell)));
                line.push_str("  ");
                if is_right[column] {
                    line.push_str(&padding);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&padding);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
    };
    add(&table.columns.iter().map(|name| vec![name.clone()]).collect::<Vec<_>>());
    add(&widths.iter().map(|&width| vec!["─".repeat(width)]).collect::<Vec<_>>());
    for row in &table.rows {
        add(&row.iter().zip(&widths).map(|(cell, &width)| wrap(cell, width)).collect::<Vec<_>>());
    }
    text.truncate(text.trim_end().len());
    text
}

/// Whether a column holds numbers, with units or signs, and so aligns to the right.
fn is_numeric(table: &Table, column: usize) -> bool {
    let mut cells =
        table.rows.iter().filter_map(|row| row.get(column)).filter(|c| !c.is_empty() && *c != "-").peekable();
    cells.peek().is_some()
        && cells.all(|cell| {
            let body = cell.trim_start_matches(['+', '-', '~', '<', '>', ' ', '≈', '±']);
            body.starts_with(|c: char| c.is_ascii_digit()) && cell.chars().count() <= 24
        })
}

/// A cell's lines, broken at spaces where it can be.
fn wrap(cell: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in cell.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let mut word: Vec<char> = word.chars().collect();
            let room = width.saturating_sub(line.chars().count() + usize::from(!line.is_empty()));
            if word.len() > room && !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            while word.len() > width && width > 0 {
                lines.push(word.drain(..width).collect());
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.extend(word);
        }
        lines.push(line);
    }
    if lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            title: "loss ledger".to_owned(),
            columns: ["source", "tokens"].map(str::to_owned).to_vec(),
            rows: vec![
                ["a rather long name of a file.jsonl", "12"].map(str::to_owned).to_vec(),
                ["b", "1 234"].map(str::to_owned).to_vec(),
            ],
        }
    }

    #[test]
    fn tables_align_words_left_and_numbers_right() {
        let expected = "\
loss ledger
  source                              tokens
  ──────────────────────────────────  ──────
  a rather long name of a file.jsonl      12
  b                                    1 234";
        assert_eq!(render(&table(), None, false), expected);
    }

    #[test]
    fn tables_wrap_text_to_the_width_given() {
        let expected = "\
loss ledger
  source            tokens
  ────────────────  ──────
  a rather long         12
  name of a
  file.jsonl
  b                  1 234";
        assert_eq!(render(&table(), Some(26), false), expected);
    }

    #[test]
    fn causes_that_repeat_their_parent_are_left_out() {
        let error = didact_core::files::read("/nowhere/at/all").expect_err("is not there");
        let error = anyhow::Error::from(error).context("looking at the model");
        assert_eq!(causes(&error), ["cannot read `/nowhere/at/all`: No such file or directory (os error 2)"]);
        assert_eq!(classify(&error).map(Classify::fault), Some(Fault::Input));
    }
}
