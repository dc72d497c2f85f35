//! Shows how a run goes: a moving bar on a terminal, lines at intervals elsewhere, nothing with `-q`.
#![expect(clippy::print_stderr, reason = "this module shows progress")]

use crate::output::{LINE_INTERVAL, Output};
use didact_core::progress::{Level, Reporter, StepReport, Table, duration};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Shows progress on stderr and tables on stdout.
#[derive(Debug)]
pub(crate) struct Progress {
    output: Output,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What moves at the bottom of the terminal, and what it counts.
    bar: Option<(String, ProgressBar)>,
    /// What the last line was about, and when it was printed.
    last: Option<(String, Instant)>,
}

impl Progress {
    pub(crate) fn new(output: &Output) -> Self {
        Self { output: output.clone(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere is no reason to stop showing things.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints above the bar.
    fn print(&self, text: &str) {
        if self.output.shows_progress() {
            self.above_bar(|| eprintln!("{text}"));
        }
    }

    fn above_bar(&self, print: impl FnOnce()) {
        match &self.state().bar {
            Some((_, bar)) => bar.suspend(print),
            None => print(),
        }
    }

    /// Moves the bar of `what`, or prints a line when it is time for one.
    fn advance(&self, what: &str, done: u64, total: Option<u64>, is_worth_a_line: bool, text: impl FnOnce() -> String) {
        if !self.output.shows_progress() {
            return;
        }
        let mut state = self.state();
        if self.output.is_terminal() {
            if state.bar.as_ref().is_none_or(|(name, _)| name != what) {
                if let Some((_, bar)) = state.bar.take() {
                    bar.finish_and_clear();
                }
                state.bar = Some((what.to_owned(), bar(total)));
            }
            if let Some((_, bar)) = &state.bar {
                bar.set_position(done);
                bar.set_message(text());
            }
            return;
        }
        let is_first = state.last.as_ref().is_none_or(|(name, _)| name != what);
        let is_time = state.last.as_ref().is_none_or(|(_, at)| at.elapsed() >= LINE_INTERVAL);
        if is_first || is_time || is_worth_a_line || Some(done) == total {
            state.last = Some((what.to_owned(), Instant::now()));
            eprintln!("{}", text());
        }
    }

    fn clear(&self) {
        if let Some((_, bar)) = self.state().bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{bar:12.cyan} {wide_msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {wide_msg}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("the template is correct"))
}

impl Reporter for Progress {
    fn stage_started(&self, name: &str, index: usize, total: usize) {
        self.print(&format!("[{}/{total}] {name}", index + 1));
    }

    fn stage_skipped(&self, name: &str, why: &str) {
        self.print(&format!("{name}: already done ({why})"));
    }

    fn stage_finished(&self, name: &str, seconds: f64) {
        self.clear();
        self.print(&format!("{name}: done in {}", duration(seconds)));
    }

    fn step(&self, report: &StepReport) {
        let StepReport { stage, step, total_steps, .. } = report;
        self.advance(stage, *step, Some(*total_steps), report.note.is_some(), || {
            let note = report.note.as_ref().map_or(String::new(), |note| format!("  {note}"));
            let (loss, rate, speed) = (report.loss, report.learning_rate, report.tokens_per_s);
            let left = duration(report.eta_s);
            let share = report.share_of_peak.map_or(String::new(), |share| format!(" ({:.0} % of peak)", share * 100.0));
            // The bar leaves about 66 of 80 columns.
            if self.output.is_terminal() {
                format!("{stage} {step}/{total_steps} loss {loss:.3} lr {rate:.1e} {speed:.0} tokens/s{share} {left} left{note}")
            } else {
                format!(
                    "{stage} step {step}/{total_steps}  loss {loss:.4}  lr {rate:.2e}  {speed:.0} tokens/s{share}  {left} left{note}"
                )
            }
        });
    }

    fn count(&self, stage: &str, what: &str, done: u64, total: Option<u64>) {
        self.advance(&format!("{stage} {what}"), done, total, false, || match total {
            Some(total) => format!("{stage}: {done}/{total} {what}"),
            None => format!("{stage}: {done} {what}"),
        });
    }

    fn table(&self, table: &Table) {
        let text = self.output.table(table);
        if self.output.is_json() {
            self.print(&text);
        } else {
            self.above_bar(|| self.output.piece(&format!("{text}\n")));
        }
    }

    fn message(&self, level: Level, text: &str) {
        match level {
            Level::Info => self.print(text),
            Level::Warning => self.above_bar(|| self.output.warn(text)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
