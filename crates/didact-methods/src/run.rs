//! Running a recipe.

use crate::env::RunOptions;
use crate::error::MethodError;
use crate::pipeline::{Pipeline, Preparation};
use crate::recipe::Recipe;
use crate::report::{RunReport, failing_stage};
use crate::stages::{prepare, sources, train};
use didact_core::progress::{Level, Reporter};
use didact_core::run::RunDir;
use didact_core::seed::Streams;
use didact_core::stage::{StageError, execute, preview};
use std::time::Instant;

/// Runs a recipe, or continues an interrupted run of it, or returns the report of a finished one. Everything shown goes to
/// the reporter; the result's tables are shown last.
///
/// # Errors
/// [`MethodError`]; after [`MethodError::Stopped`] the same call continues.
pub fn run(recipe: &Recipe, options: &RunOptions<'_>) -> Result<RunReport, MethodError> {
    let started = Instant::now();
    let RunOptions { env, reporter, cancel, .. } = options;
    let pipeline = Pipeline::build(recipe, env, options.force)?;
    let root = options.run_dir.clone().unwrap_or_else(|| pipeline.default_run_dir(recipe));
    let run = RunDir::open(&root, pipeline.identity(recipe, env), options.fresh)?;
    for change in &run.environment_changes {
        let text = format!("this run began elsewhere, its bits may differ from here on: {change}");
        reporter.message(Level::Warning, &text);
    }
    if let Some(report) = run.report()? {
        let path = root.join(didact_core::run::REPORT);
        let report: RunReport = serde_json::from_value(report)
            .map_err(|error| MethodError::Artifact { path, reason: error.to_string() })?;
        reporter.message(Level::Info, &format!("this run is finished; its result is in `{}`", root.display()));
        show(&report, *reporter);
        return Ok(report);
    }
    show_ledger_again(&run, &pipeline, *reporter)?;
    let result = execute(&run, &pipeline.stages, Streams::new(recipe.seed()), cancel, *reporter);
    pipeline.meter.peak((env.peak_memory)());
    let outcomes = match result {
        Ok(outcomes) => outcomes,
        Err(error) => {
            pipeline.meter.save(&root)?;
            let finished = preview(&run, &pipeline.stages)?.iter().take_while(|(_, is_there)| *is_there).count();
            return Err(match error {
                StageError::Cancelled => MethodError::Stopped { run_dir: root },
                StageError::Failed(cause) => MethodError::Stage { stage: failing_stage(&pipeline, finished), cause },
                other => MethodError::Artifact { path: root, reason: other.to_string() },
            });
        }
    };
    for outcome in outcomes.iter().filter(|o| !o.is_skipped) {
        pipeline.meter.stage(&outcome.record.name, outcome.seconds);
    }
    let readings = pipeline.meter.save(&root)?;
    let wall_s = started.elapsed().as_secs_f64();
    let report = match &pipeline.prepare {
        Preparation::Rounds(_) => RunReport::of_rounds(recipe, &root, &outcomes, readings, wall_s)?,
        Preparation::Rows(_) | Preparation::Sources(_) => {
            RunReport::collect(recipe, &root, &outcomes, readings, wall_s)?
        }
    };
    run.finish(&serde_json::to_value(&report).expect("a report is plain data"))?;
    show(&report, *reporter);
    Ok(report)
}

/// Shows the ledger before training goes on in a process that did not count it itself.
fn show_ledger_again(run: &RunDir, pipeline: &Pipeline, reporter: &dyn Reporter) -> Result<(), MethodError> {
    let stages = preview(run, &pipeline.stages)?;
    let is_there = |wanted: &str| stages.iter().position(|(name, is_there)| name == wanted && *is_there);
    if let Some(index) = is_there(prepare::NAME)
        && is_there(train::NAME).is_none()
    {
        let dir = run.stage_dir(index, prepare::NAME);
        match &pipeline.prepare {
            Preparation::Rows(_) => prepare::Prepared::read(&dir)?.show(reporter),
            Preparation::Sources(_) => sources::show_again(&dir, reporter)?,
            Preparation::Rounds(_) => {}
        }
    }
    Ok(())
}

fn show(report: &RunReport, reporter: &dyn Reporter) {
    for table in report.tables() {
        reporter.table(&table);
    }
}
