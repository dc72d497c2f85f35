//! Answers to tasks, and what a verifier says of them.

use std::collections::BTreeMap;

use didact_core::cancel::Cancel;
use didact_core::generate::{FinishReason, Generator, Request, Sampling};
use didact_core::verdict::{Item, Verdict, Verifier};
use didact_eval::metrics::pass_at_k::pass_at_k;
use serde::{Deserialize, Serialize};

use super::tasks::Task;
use crate::error::MethodError;

/// One answer to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The task's name.
    pub id: String,
    /// Which of the task's answers, from 1.
    pub number: usize,
    /// The answer.
    pub text: String,
    /// Its tokens, the end of the turn not counted.
    pub tokens: usize,
    /// Whether it ended by itself, and not at the limit of tokens.
    pub complete: bool,
}

/// An answer and what was said of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The answer.
    #[serde(flatten)]
    pub sample: Sample,
    /// What was said.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// `samples` answers to each task, in the order of tasks and numbers; `sampling` by the task's place and the answer's number
/// (from 1). Each is a request of its own, so that a stop or a kill costs no more than the answers that were being written.
/// `None` when cancelled; `heard` is told how many are there.
///
/// # Errors
/// When a task cannot be asked: `set` and its number stand in the message.
pub fn ask(
    generator: &dyn Generator,
    set: &str,
    tasks: &[&Task],
    samples: usize,
    sampling: impl Fn(usize, usize) -> Sampling,
    cancel: &Cancel,
    heard: &mut dyn FnMut(u64),
) -> Result<Option<Vec<Sample>>, MethodError> {
    let places: Vec<(usize, usize)> =
        (0..tasks.len()).flat_map(|task| (1..=samples).map(move |number| (task, number))).collect();
    let requests: Vec<Request> = places
        .iter()
        .map(|&(task, number)| Request { prompt: tasks[task].prompt.clone(), sampling: sampling(task, number) })
        .collect();
    let mut answers: Vec<Option<Sample>> = requests.iter().map(|_| None).collect();
    let (mut failed, mut done) = (None, 0);
    generator.generate(
        &requests,
        &mut |index, answer| {
            let (task, number) = places[index];
            match answer {
                Err(source) => {
                    failed.get_or_insert(MethodError::Request { set: set.to_owned(), index: task + 1, source });
                }
                Ok(completion) => {
                    let Some(answer) = completion.answers.into_iter().next() else { return };
                    // An answer that a stop cut short is none.
                    if answer.finish_reason == FinishReason::Cancelled {
                        return;
                    }
                    done += 1;
                    heard(done);
                    answers[index] = Some(Sample {
                        id: tasks[task].id.clone(),
                        number,
                        tokens: answer.ids.len(),
                        complete: answer.finish_reason == FinishReason::Stop,
                        text: answer.text,
                    });
                }
            }
        },
        cancel,
    )?;
    if let Some(error) = failed {
        return Err(error);
    }
    Ok(answers.into_iter().collect())
}

/// Verdicts by task and answer.
pub type Known = BTreeMap<(String, String), Verdict>;

/// Judges answers, those in `known` without asking. `None` when cancelled.
///
/// # Errors
/// When the verifier is broken, or an answer is to a task that is not there.
pub fn judge(
    verifier: &dyn Verifier,
    tasks: &[&Task],
    samples: Vec<Sample>,
    known: &Known,
    cancel: &Cancel,
    heard: &mut dyn FnMut(u64),
) -> Result<Option<Vec<Judged>>, MethodError> {
    let items: BTreeMap<&str, Item> = tasks.iter().map(|task| (task.id.as_str(), task.item())).collect();
    let mut verdicts: Vec<Option<Verdict>> =
        samples.iter().map(|sample| known.get(&(sample.id.clone(), sample.text.clone())).cloned()).collect();
    let open: Vec<usize> = (0..samples.len()).filter(|&i| verdicts[i].is_none()).collect();
    let mut asked = Vec::with_capacity(open.len());
    for &index in &open {
        let sample = &samples[index];
        let item = items.get(sample.id.as_str()).ok_or_else(|| MethodError::Task {
            place: format!("task `{}`", sample.id),
            message: "was answered and is not among the tasks".to_owned(),
        })?;
        asked.push((item, sample.text.as_str()));
    }
    let mut done = (samples.len() - open.len()) as u64;
    let mut sink = |place: usize, verdict| {
        done += 1;
        heard(done);
        verdicts[open[place]] = Some(verdict);
    };
    verifier.verify(&asked, &mut sink, cancel)?;
    let judged = samples.into_iter().zip(verdicts);
    Ok(judged.map(|(sample, verdict)| Some(Judged { sample, verdict: verdict? })).collect())
}

/// How well tasks are solved.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Solved {
    /// Of each task, in order: answers, and right ones.
    pub tasks: Vec<(usize, usize)>,
    /// Of each task, the mean score of its judged answers.
    pub scores: Vec<f64>,
    /// Answers by category, as shares.
    pub categories: BTreeMap<String, f64>,
    /// Answers without a score, as a share.
    pub unjudged: f64,
}

impl Solved {
    /// Counts the answers to tasks. Answers that could not be judged count neither as right nor as wrong; a task none of
    /// whose answers was judged is left out.
    pub fn of(tasks: &[&Task], judged: &[Judged]) -> Self {
        let mut by_task: BTreeMap<&str, Vec<&Verdict>> = BTreeMap::new();
        let mut solved = Self::default();
        let all = judged.len().max(1) as f64;
        for answer in judged {
            *solved.categories.entry(answer.verdict.category.clone()).or_default() += 1.0 / all;
            if answer.verdict.score.is_some() {
                by_task.entry(&answer.sample.id).or_default().push(&answer.verdict);
            } else {
                solved.unjudged += 1.0 / all;
            }
        }
        for verdicts in tasks.iter().filter_map(|task| by_task.get(task.id.as_str())) {
            let right = verdicts.iter().filter(|verdict| verdict.is_right()).count();
            solved.tasks.push((verdicts.len(), right));
            let sum: f64 = verdicts.iter().filter_map(|verdict| verdict.score).sum();
            solved.scores.push(sum / verdicts.len() as f64);
        }
        solved
    }

    /// The unbiased pass@k, the mean over the tasks with at least `k` answers; `None` when there is none.
    pub fn pass_at(&self, k: usize) -> Option<f64> {
        let values: Vec<f64> =
            self.tasks.iter().filter(|(n, _)| *n >= k && k > 0).map(|&(n, c)| pass_at_k(n, c, k)).collect();
        (!values.is_empty()).then(|| didact_eval::metrics::statistics::mean(&values))
    }

    /// Of each task, the share of right answers.
    pub fn shares(&self) -> Vec<f64> {
        self.tasks.iter().map(|&(n, c)| c as f64 / n as f64).collect()
    }

    /// The mean score over tasks.
    pub fn score(&self) -> f64 {
        didact_eval::metrics::statistics::mean(&self.scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use didact_core::generate::Prompt;
    use didact_verify::matching::{ExactMatch, Part};

    fn task(id: &str, reference: &str) -> Task {
        Task { id: id.into(), prompt: Prompt::Text(id.into()), reference: reference.into(), answer: None }
    }

    fn sample(id: &str, number: usize, text: &str) -> Sample {
        Sample { id: id.into(), number, text: text.into(), tokens: 1, complete: true }
    }

    #[test]
    fn answers_are_judged_by_their_own_task_and_known_verdicts_are_not_made_again() {
        let (a, b) = (task("a", "1"), task("b", "2"));
        let tasks = [&a, &b];
        let exact = ExactMatch { part: Part::Whole, ignore_case: false, loose: false };
        let samples = vec![sample("a", 1, "1"), sample("a", 2, "2"), sample("b", 1, "2"), sample("b", 2, "9")];
        let odd = Verdict { score: None, category: "odd".into(), reason: String::new() };
        let known = Known::from([(("b".to_owned(), "9".to_owned()), odd)]);
        let mut heard = 0;
        let judged = judge(&exact, &tasks, samples, &known, &Cancel::new(), &mut |n| heard = n)
            .expect("works")
            .expect("nobody stops it");
        assert_eq!(heard, 4);
        let solved = Solved::of(&tasks, &judged);
        assert_eq!(solved.tasks, [(2, 1), (1, 1)], "what was not judged is neither right nor wrong");
        assert_eq!((solved.shares(), solved.unjudged), (vec![0.5, 1.0], 0.25));
        assert_eq!((solved.pass_at(1), solved.pass_at(2), solved.pass_at(3)), (Some(0.75), Some(1.0), None));
        let lost = judge(&exact, &[&a], vec![sample("c", 1, "")], &known, &Cancel::new(), &mut |_| ());
        assert!(lost.expect_err("no such task").to_string().contains("`c`"));
    }
}
