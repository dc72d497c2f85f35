//! How good the model is after a round.

use didact_core::generate::Sampling;
use didact_core::progress::Level;
use didact_core::stage::StageContext;

use super::{ANSWER_LOG, DECISION, HELD_OUT, RoundStage, SOLVED, Step, VERDICT_LOG, newest};
use crate::error::MethodError;
use crate::rounds::ask::{Judged, Known, Solved};
use crate::rounds::progress::{Decision, Rule, decide};
use crate::rounds::tasks::{Task, dealt, words};
use crate::stages::evaluate::{ANSWERS, METRICS, Metrics, SAMPLES, Shown};
use crate::stages::{read_json, write_json, write_jsonl};

/// The `k` of pass@k that are reported, where there are as many answers.
const PASS_AT: [usize; 3] = [1, 5, 10];
/// What metrics of held-out tasks begin with.
const SET: &str = "held_out_tasks";

impl RoundStage {
    /// Asks and judges the held-out tasks, and decides whether to go on.
    pub(super) fn measure(&self, context: &StageContext<'_>, round: u64) -> Result<(), MethodError> {
        let logs = [ANSWER_LOG, VERDICT_LOG];
        // It is written last: what is left to do after it is to tidy up.
        if context.work_dir.join(DECISION).is_file() {
            return self.tidy(context, &logs);
        }
        let held_out = self.tasks(context, HELD_OUT)?;
        let asked: Vec<&Task> = held_out.iter().collect();
        let decoder = match newest(context, round) {
            Some(dir) => self.plan.model.trained(dir)?,
            None => self.plan.model.decoder()?,
        };
        let rounds = &self.plan.rounds;
        // The same in every round: what differs is the model.
        let seeds = self.plan.streams.child("held-out answers", &[]);
        let sampling = |task: usize, number: usize| Sampling {
            temperature: rounds.eval_temperature,
            top_p: Some(rounds.top_p),
            max_tokens: self.plan.generate.max_tokens,
            log_probs: false,
            seed: seeds.key("answer", &[task as u64, number as u64]),
            ..Sampling::default()
        };
        let samples = self.answers(context, &decoder, &asked, rounds.eval_samples, sampling)?;
        drop(decoder);
        let judged = self.verdicts(context, &asked, samples, &Known::new(), &context.cancel)?;
        let solved = Solved::of(&asked, &judged);
        let metrics = metrics(&solved, &judged);
        write_jsonl(&context.work_dir.join(ANSWERS), &judged)?;
        write_json(&context.work_dir.join(SOLVED), &solved)?;
        write_json(&context.work_dir.join(METRICS), &metrics)?;
        write_json(&context.work_dir.join(SAMPLES), &self.shown(&asked, &judged))?;
        let earlier: Vec<Decision> = (0..round)
            .map(|round| read_json(&self.input(context, Step::Evaluate(round)).join(DECISION)))
            .collect::<Result<_, _>>()?;
        let all = self.tasks(context, super::TRAIN)?.len();
        let asked_next = dealt(all, rounds.tasks, round + 1, &self.plan.streams).len();
        let rule = Rule {
            patience: rounds.patience,
            max_answers: rounds.max_answers,
            next_round: (asked_next * rounds.samples) as u64,
        };
        let decision = decide(&earlier, solved.shares(), self.spent(context, round)?, rule, &self.plan.streams);
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let mut text = format!("round {round}: {} of held-out answers are right", percent(decision.score));
        if let Some([gain, low, high]) = decision.gain {
            let base = decision.base.min(round.saturating_sub(1));
            text += &format!(
                ", {:+.1} points since round {base} ({:+.1} to {:+.1})",
                100.0 * gain,
                100.0 * low,
                100.0 * high
            );
        }
        if let Some(why) = &decision.stop {
            text += &format!("; no more rounds: {why}");
        }
        context.reporter.message(Level::Info, &text);
        write_json(&context.work_dir.join(DECISION), &decision)?;
        self.tidy(context, &logs)
    }

    /// The first answers to the first tasks.
    fn shown(&self, asked: &[&Task], judged: &[Judged]) -> Vec<Shown> {
        let first = judged.iter().filter(|answer| answer.sample.number == 1);
        first
            .zip(asked)
            .take(self.plan.generate.samples)
            .map(|(answer, task)| Shown {
                request: words(&task.prompt),
                expected: task.answer.clone().unwrap_or_else(|| task.reference.to_string()),
                answer: answer.sample.text.clone(),
            })
            .collect()
    }
}

fn metrics(solved: &Solved, judged: &[Judged]) -> Metrics {
    let mut metrics = Metrics::new();
    for k in PASS_AT {
        if let Some(value) = solved.pass_at(k) {
            metrics.insert(format!("{SET}/pass@{k}"), value);
        }
    }
    metrics.insert(format!("{SET}/score"), solved.score());
    metrics.insert(format!("{SET}/unjudged"), solved.unjudged);
    let all = judged.len().max(1) as f64;
    let cut = judged.iter().filter(|answer| !answer.sample.complete).count() as f64;
    metrics.insert(format!("{SET}/cut_short"), cut / all);
    metrics.extend(solved.categories.iter().map(|(category, share)| (format!("{SET}/is_{category}"), *share)));
    metrics
}
