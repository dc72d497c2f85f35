//! What ToolACE-R learns of a round's answers: requests that the model can just about answer, and its own attempts with the
//! request to look at them again.
//!
//! # Reference
//! Zeng et al., arXiv 2504.01400. pass@k of the round's own model is the difficulty of a request for it; requests that it never
//! answers as the data has it are beyond it for now, or wrong.

use std::collections::{BTreeMap, BTreeSet};

use didact_core::seed::Streams;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::ask::Judged;
use super::select::{Group, Scored, Selection, Source, example, sampled};
use super::tasks::Task;
use crate::recipe::{SelectRule, ToolaceTable};
use crate::refine::followed;

/// The category of an answer that holds no call that can be read.
const UNREADABLE: &str = "format";
/// With fewer readable answers than this, the model has to learn the form first.
const READABLE: f64 = 0.5;

/// One answer that is to be imitated.
fn lesson(task: &Task, round: u64, example: didact_core::example::Example, category: &str) -> Group {
    let answers = vec![Scored { example, score: 1.0, category: category.to_owned() }];
    Group { id: task.id.clone(), round, source: Source::Round, answers, target: 0 }
}

/// The wrong attempt that came most often, and the first right one.
fn attempts<'a>(answers: &[&'a Judged]) -> (Option<&'a str>, Option<&'a str>) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let judged =
        answers.iter().filter(|answer| answer.verdict.score.is_some() && !answer.sample.text.trim().is_empty());
    for answer in judged.filter(|answer| !answer.verdict.is_right()) {
        *counts.entry(&answer.sample.text).or_default() += 1;
    }
    let wrong = counts.iter().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0))).map(|(text, _)| *text);
    let right = answers.iter().find(|answer| answer.verdict.is_right()).map(|answer| answer.sample.text.as_str());
    (wrong, right)
}

/// Chooses what is learned of a round's answers. With a note where the round learned the form of answers only.
pub fn chosen(
    table: &ToolaceTable,
    tasks: &[&Task],
    judged: &[Judged],
    round: u64,
    streams: &Streams,
) -> (Vec<Group>, Selection, Option<String>) {
    let mut by_task: BTreeMap<&str, Vec<&Judged>> = BTreeMap::new();
    for answer in sampled(judged) {
        by_task.entry(&answer.sample.id).or_default().push(answer);
    }
    let answers_of = |task: &Task| by_task.get(task.id.as_str()).map_or(&[][..], Vec::as_slice);
    let with_answer: Vec<&Task> = tasks.iter().copied().filter(|task| task.answer.is_some()).collect();
    let own = |task: &Task| task.answer.as_deref().and_then(|answer| example(&task.prompt, answer));
    let all = sampled(judged).count().max(1) as f64;
    let readable = sampled(judged).filter(|answer| answer.verdict.category != UNREADABLE).count() as f64 / all;
    let mut groups = Vec::new();
    let mut note = None;
    if round == 1 && readable < READABLE && table.warmup > 0.0 {
        let mut some = with_answer;
        some.shuffle(&mut streams.rng("warm-up", &[]));
        let count = ((some.len() as f64 * table.warmup).round() as usize).max(1);
        groups.extend(some.into_iter().take(count).filter_map(|task| Some(lesson(task, round, own(task)?, "own"))));
        note = Some(format!(
            "only {:.0} % of the answers could be read: this round learns {} of the tasks as the data has them",
            100.0 * readable,
            groups.len()
        ));
    } else {
        let mut rng = streams.rng("right attempts", &[]);
        for task in with_answer {
            let answers = answers_of(task);
            let right = answers.iter().filter(|answer| answer.verdict.is_right()).count();
            let share = right as f64 / answers.len().max(1) as f64;
            let is_chosen = match table.select {
                SelectRule::Solvable => right > 0,
                SelectRule::Band => (table.band[0]..=table.band[1]).contains(&share),
                SelectRule::All => true,
            };
            // Drawn for every task, so that one task's fate does not move another's.
            let keeps_right = rng.random_bool(table.right_attempts);
            let (true, Some(answer)) = (is_chosen, own(task)) else { continue };
            groups.push(lesson(task, round, answer, "own"));
            if !table.attempts {
                continue;
            }
            let (wrong_attempt, right_attempt) = attempts(answers);
            let mut again = |attempt: &str, target: &str, category: &str| {
                let prompt = followed(&task.prompt, attempt, &table.instruction);
                groups.extend(example(&prompt, target).map(|example| lesson(task, round, example, category)));
            };
            if let (Some(attempt), Some(target)) = (wrong_attempt, task.answer.as_deref()) {
                again(attempt, target, "repair");
            }
            if let Some(attempt) = right_attempt.filter(|_| keeps_right) {
                again(attempt, attempt, "keep");
            }
        }
    }
    let kept: BTreeSet<&str> = groups.iter().map(|group| group.id.as_str()).collect();
    let selection = Selection::of(judged, &kept);
    (groups, selection, note)
}

#[cfg(test)]
mod tests {
    use super::super::ask::Sample;
    use super::*;
    use didact_core::generate::Prompt;
    use didact_core::verdict::Verdict;

    fn task(id: &str) -> Task {
        let prompt = Prompt::Text(format!("{id}?"));
        Task { id: id.into(), prompt, reference: "f(x=1)".into(), answer: Some("f(x=1)".into()) }
    }

    fn judged(id: &str, number: usize, text: &str, category: &str) -> Judged {
        let score = Some(f64::from(u8::from(category == "exact")));
        Judged {
            sample: Sample { id: id.into(), number, text: text.into(), tokens: 1, complete: true },
            verdict: Verdict { score, category: category.into(), reason: String::new() },
        }
    }

    fn lessons(table: &ToolaceTable, answers: &[Judged]) -> Vec<(String, String)> {
        let (a, b) = (task("a"), task("b"));
        let (groups, selection, _) = chosen(table, &[&a, &b], answers, 1, &Streams::new(1));
        let ids: BTreeSet<&str> = groups.iter().map(|group| group.id.as_str()).collect();
        assert_eq!(selection.kept, ids.len());
        groups.iter().map(|group| (group.id.clone(), group.answers[0].category.clone())).collect()
    }

    fn named(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(id, what)| ((*id).to_owned(), (*what).to_owned())).collect()
    }

    #[test]
    fn what_was_solved_once_is_learned_with_the_attempts_at_it() {
        let answers = [
            judged("a", 1, "f(x=1)", "exact"),
            judged("a", 2, "f(x=2)", "value"),
            judged("b", 1, "g(x=1)", "tool"),
            judged("b", 2, "f(x=2)", "value"),
        ];
        let table = ToolaceTable { right_attempts: 1.0, ..ToolaceTable::default() };
        assert_eq!(lessons(&table, &answers), named(&[("a", "own"), ("a", "repair"), ("a", "keep")]));
        let plain = ToolaceTable { attempts: false, ..table.clone() };
        assert_eq!(lessons(&plain, &answers), named(&[("a", "own")]));
        let all = ToolaceTable { select: SelectRule::All, ..plain };
        assert_eq!(lessons(&all, &answers), named(&[("a", "own"), ("b", "own")]));
        let never = ToolaceTable { select: SelectRule::Band, band: [0.6, 1.0], ..table };
        assert!(lessons(&never, &answers).is_empty());
    }

    #[test]
    fn a_model_that_does_not_know_the_form_learns_it_first() {
        let answers = [judged("a", 1, "hm", "format"), judged("b", 1, "f(x=1)", "format")];
        assert_eq!(lessons(&ToolaceTable::default(), &answers).len(), 1, "a fifth of two, at least one");
        assert!(lessons(&ToolaceTable { warmup: 0.0, ..ToolaceTable::default() }, &answers).is_empty());
    }
}
