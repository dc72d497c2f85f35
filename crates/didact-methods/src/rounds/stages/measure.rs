//! How good the model is after a round.

use didact_core::generate::{Answer, FinishReason, Generator, Request, Sampling};
use didact_core::progress::Level;
use didact_core::stage::StageContext;

use super::{
    ANSWER_LOG, DECISION, HELD_OUT, Lessons, RoundStage, SOLVED, Step, VERDICT_LOG, input, newest, spent, stopped,
    tasks_of, tidy,
};
use crate::error::MethodError;
use crate::recipe::ToolaceTable;
use crate::refine::{Refinement, canonical_calls, followed, refine};
use crate::rounds::ask::{Judged, Known, Sample, Solved};
use crate::rounds::progress::{Decision, Rule, decide};
use crate::rounds::tasks::{Task, dealt, words};
use crate::stages::evaluate::{ANSWERS, METRICS, Metrics, SAMPLES, Shown};
use crate::stages::{read_json, write_json, write_jsonl};

/// The `k` of pass@k that are reported, where there are as many answers.
const PASS_AT: [usize; 3] = [1, 5, 10];
/// Greedy answers before (number 1) and after (2) refinement, judged.
const REFINED: &str = "refined.jsonl";
/// What metrics of held-out tasks begin with.
const SET: &str = "held_out_tasks";

impl RoundStage {
    /// Asks and judges the held-out tasks, and decides whether to go on.
    pub(super) fn measure(&self, context: &StageContext<'_>, round: u64) -> Result<(), MethodError> {
        let logs = [ANSWER_LOG, VERDICT_LOG];
        // It is written last: what is left to do after it is to tidy up.
        if context.work_dir.join(DECISION).is_file() {
            return tidy(context, &logs);
        }
        let held_out = tasks_of(context, HELD_OUT)?;
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
        let generator = self.asking(context, &decoder)?;
        drop(decoder);
        let samples = self.answers(context, &generator, &asked, rounds.eval_samples, sampling)?;
        let judged = self.verdicts(context, &asked, samples, &Known::new(), &context.cancel)?;
        let solved = Solved::of(&asked, &judged);
        let mut metrics = metrics(&solved, &judged);
        if let Lessons::Toolace(table) = &self.plan.lessons
            && table.refine_steps > 0
        {
            self.refined(context, &generator, table, &asked, &mut metrics)?;
        }
        write_jsonl(&context.work_dir.join(ANSWERS), &judged)?;
        write_json(&context.work_dir.join(SOLVED), &solved)?;
        write_json(&context.work_dir.join(METRICS), &metrics)?;
        write_json(&context.work_dir.join(SAMPLES), &self.shown(&asked, &judged))?;
        let earlier: Vec<Decision> = (0..round)
            .map(|round| read_json(&input(context, Step::Evaluate(round)).join(DECISION)))
            .collect::<Result<_, _>>()?;
        let all = tasks_of(context, super::TRAIN)?.len();
        let asked_next = dealt(all, rounds.tasks, round + 1, &self.plan.streams).len();
        let rule = Rule {
            patience: rounds.patience,
            max_answers: rounds.max_answers,
            next_round: (asked_next * rounds.samples) as u64,
        };
        let decision = decide(&earlier, solved.shares(), spent(context, round)?, rule, &self.plan.streams);
        let gain = decision.gain.map_or_else(String::new, |[gain, low, high]| {
            let base = earlier.last().map_or(0, |before| before.base);
            let points = [gain, low, high].map(|share| format!("{:+.1}", 100.0 * share));
            format!(", {} points since round {base} ({} to {})", points[0], points[1], points[2])
        });
        let end = decision.stop.as_ref().map_or_else(String::new, |why| format!("; no more rounds: {why}"));
        let text = format!("round {round}: {:.1} % of held-out answers are right{gain}{end}", 100.0 * decision.score);
        context.reporter.message(Level::Info, &text);
        write_json(&context.work_dir.join(DECISION), &decision)?;
        tidy(context, &logs)
    }

    /// Measures greedy answers before and after the model looked at them again.
    fn refined(
        &self,
        context: &StageContext<'_>,
        generator: &dyn Generator,
        table: &ToolaceTable,
        asked: &[&Task],
        metrics: &mut Metrics,
    ) -> Result<(), MethodError> {
        let sampling = Sampling { max_tokens: self.plan.generate.max_tokens, log_probs: false, ..Sampling::default() };
        let request = |task: &&Task| Request { prompt: task.prompt.clone(), sampling: sampling.clone() };
        let requests: Vec<Request> = asked.iter().map(request).collect();
        let again = |at: usize, last: &Answer| followed(&asked[at].prompt, &last.text, &table.instruction);
        let canonical = |answer: &Answer| canonical_calls(&answer.text);
        let max_steps = table.refine_steps;
        let refinement = Refinement { max_steps, adaptive: true, again: &again, canonical: &canonical };
        let mut calls = 0;
        let mut samples = Vec::new();
        for (index, way) in refine(generator, &requests, &refinement, &context.cancel)?.into_iter().enumerate() {
            let Some(way) = way else { return Err(stopped(context)) };
            let way =
                way.map_err(|source| MethodError::Request { set: self.name.clone(), index: index + 1, source })?;
            calls += way.calls;
            for (number, answer) in [(1, way.first), (2, way.answer)] {
                let complete = answer.finish_reason == FinishReason::Stop;
                let (id, tokens) = (asked[index].id.clone(), answer.ids.len());
                samples.push(Sample { id, number, tokens, text: answer.text, complete });
            }
        }
        let judged = self.verdicts(context, asked, samples, &Known::new(), &context.cancel)?;
        write_jsonl(&context.work_dir.join(REFINED), &judged)?;
        let pairs: Vec<(bool, bool)> = judged
            .chunks_exact(2)
            .filter(|pair| pair.iter().all(|answer| answer.verdict.score.is_some()))
            .map(|pair| (pair[0].verdict.is_right(), pair[1].verdict.is_right()))
            .collect();
        let share = |of: &dyn Fn(&(bool, bool)) -> bool, among: &dyn Fn(&(bool, bool)) -> bool| {
            let all = pairs.iter().filter(|pair| among(pair)).count();
            pairs.iter().filter(|pair| among(pair) && of(pair)).count() as f64 / all.max(1) as f64
        };
        let values = [
            ("greedy", share(&|(first, _)| *first, &|_| true)),
            ("refined", share(&|(_, last)| *last, &|_| true)),
            ("refined_calls", calls as f64 / asked.len().max(1) as f64),
            ("repaired", share(&|(_, last)| *last, &|(first, _)| !first)),
            ("damaged", share(&|(_, last)| !last, &|(first, _)| *first)),
        ];
        metrics.extend(values.map(|(name, value)| (format!("{SET}/{name}"), value)));
        Ok(())
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
