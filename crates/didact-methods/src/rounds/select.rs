//! What is learned from a round's answers.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use didact_core::example::Example;
use didact_core::generate::Prompt;
use didact_core::message::{Message, Role};
use didact_core::progress::Table;
use didact_core::seed::Streams;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::ask::Judged;
use super::tasks::Task;
use crate::recipe::{ItertlTable, Lesson, Target};

/// The number of a task's own answer among its answers, which begin at 1.
pub const OWN: usize = 0;
/// Most that an answer is worth which ran into the limit of tokens (the specification of ITERTL has it so).
pub const CUT_SHORT: f64 = 0.1;
/// Categories of answers that are no code of their own: they need other modules or names, or break the checker's rules.
const NOT_SELF_CONTAINED: [&str; 2] = ["rejected", "elab_error"];
/// What the model wrote and cannot be read is worth ranking last; what the data has and cannot be read is worth nothing.
const UNREADABLE: &str = "syntax_error";

/// An answer with its prompt, and what it is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Prompt and answer.
    pub example: Example,
    /// From 0 to 1.
    pub score: f64,
    /// What the verifier called it.
    pub category: String,
}

/// Where a group comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// This round's answers.
    Round,
    /// An earlier round's.
    Replay,
    /// The user's rows.
    Data,
}

/// Answers to one prompt that are learned together, one of which is to become likelier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The task's name.
    pub id: String,
    /// The round whose answers these are.
    pub round: u64,
    /// Where it comes from.
    pub source: Source,
    /// The answers.
    pub answers: Vec<Scored>,
    /// The number of the answer to imitate.
    pub target: usize,
}

/// A prompt with an answer, as it is trained. `None` for a prompt of token ids, which has no text.
pub fn example(prompt: &Prompt, answer: &str) -> Option<Example> {
    match prompt {
        Prompt::Text(prompt) => Some(Example::Completion { prompt: prompt.clone(), completion: answer.to_owned() }),
        Prompt::Messages { messages, tools } => {
            let mut messages = messages.clone();
            messages.push(Message::new(Role::Assistant, answer));
            Some(Example::Chat { messages, tools: tools.clone() })
        }
        Prompt::Ids(_) => None,
    }
}

/// How often the model solves a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Band {
    /// In words.
    pub band: String,
    /// Tasks.
    pub tasks: usize,
    /// Answers to them.
    pub answers: usize,
    /// Tasks that something is learned from.
    pub kept: usize,
}

/// What came of a round's answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selection {
    /// Answers.
    pub sampled: usize,
    /// Answers with a score.
    pub judged: usize,
    /// Right answers.
    pub passed: usize,
    /// Answers that ran into the limit of tokens.
    pub cut_short: usize,
    /// Answers that had been given before to the same task in this round.
    pub repeated: usize,
    /// Answers that a rule left out.
    pub filtered: usize,
    /// Tasks that something is learned from.
    pub kept: usize,
    /// Groups of earlier rounds.
    pub replayed: usize,
    /// Rows of the user's.
    pub mixed: usize,
    /// Everything that is trained on.
    pub trained: usize,
    /// By how often the model solved the task.
    pub by_difficulty: Vec<Band>,
}

impl Selection {
    /// Counts a round's answers; `kept` are the tasks of which something is learned.
    pub fn of(judged: &[Judged], kept: &BTreeSet<&str>) -> Self {
        let mut selection = Self { kept: kept.len(), ..Self::default() };
        let mut by_task: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for answer in sampled(judged) {
            let (answers, right) = by_task.entry(&answer.sample.id).or_default();
            *answers += 1;
            *right += usize::from(answer.verdict.is_right());
            selection.sampled += 1;
            selection.judged += usize::from(answer.verdict.score.is_some());
            selection.passed += usize::from(answer.verdict.is_right());
            selection.cut_short += usize::from(!answer.sample.complete);
        }
        let bands: [(&str, fn(usize, usize) -> bool); 4] = [
            ("never solved", |_, c| c == 0),
            ("less than half the time", |n, c| c > 0 && 2 * c < n),
            ("half the time or more", |n, c| 2 * c >= n && c < n),
            ("always solved", |n, c| c == n),
        ];
        selection.by_difficulty = bands
            .into_iter()
            .map(|(band, holds)| {
                let of_band: Vec<_> = by_task.iter().filter(|(_, (n, c))| holds(*n, *c)).collect();
                Band {
                    band: band.to_owned(),
                    tasks: of_band.len(),
                    answers: of_band.iter().map(|(_, (n, _))| n).sum(),
                    kept: of_band.iter().filter(|(id, _)| kept.contains(**id)).count(),
                }
            })
            .collect();
        selection
    }

    /// The difficulties as a table.
    pub fn table(&self, round: u64) -> Table {
        let row = |band: &Band| {
            let share = if band.tasks == 0 {
                "-".to_owned()
            } else {
                format!("{:.0} %", 100.0 * band.kept as f64 / band.tasks as f64)
            };
            vec![band.band.clone(), band.tasks.to_string(), band.answers.to_string(), band.kept.to_string(), share]
        };
        Table {
            title: format!("round {round}: what is learned from, by how often the model solved it"),
            columns: ["tasks", "", "answers", "kept", ""].map(str::to_owned).to_vec(),
            rows: self.by_difficulty.iter().map(row).collect(),
        }
    }
}

/// The answers that the model gave: all but the tasks' own.
pub fn sampled(judged: &[Judged]) -> impl Iterator<Item = &Judged> {
    judged.iter().filter(|answer| answer.sample.number != OWN)
}

/// A candidate: its text and what it is worth.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate<'a> {
    /// The answer.
    pub text: &'a str,
    /// From 0 to 1.
    pub score: f64,
    /// What the verifier called it.
    pub category: &'a str,
}

/// A task's candidates as ITERTL has them: the model's answers, each once, and the task's own; with the number of the one
/// whose likelihood is trained. `None` where nothing can be learned. `left_out` counts answers that were given before, and
/// answers that the filter takes.
///
/// # Reference
/// ITERTL, arXiv 2407.12022: candidates of the round's own model and the reference, which has score 1; with
/// `target = "best"` the reference is judged like any other.
pub fn candidates<'a>(
    table: &ItertlTable,
    task: &'a Task,
    answers: &[&'a Judged],
    left_out: &mut (usize, usize),
) -> Option<(Vec<Candidate<'a>>, usize)> {
    let is_out = |category: &str| table.filter && NOT_SELF_CONTAINED.contains(&category);
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    let mut own = None;
    let judged_own = answers.iter().find(|answer| answer.sample.number == OWN);
    if let Some(text) = task.answer.as_deref().filter(|text| !text.trim().is_empty()) {
        let verdict = judged_own.map(|answer| &answer.verdict);
        let (score, category) = match (table.target, verdict) {
            (Target::Reference, _) | (Target::Best, None) => (1.0, "own"),
            (Target::Best, Some(verdict)) => (verdict.score.unwrap_or_default(), verdict.category.as_str()),
        };
        let is_unreadable = |category: &str| table.filter && category == UNREADABLE;
        if !verdict.is_some_and(|verdict| is_out(&verdict.category) || is_unreadable(&verdict.category)) {
            seen.insert(text.trim());
            own = Some(0);
            all.push(Candidate { text, score, category });
        }
    }
    for answer in answers.iter().filter(|answer| answer.sample.number != OWN) {
        let text = answer.sample.text.as_str();
        let Some(score) = answer.verdict.score else { continue };
        if text.trim().is_empty() {
            continue;
        }
        if is_out(&answer.verdict.category) {
            left_out.1 += 1;
        } else if !seen.insert(text.trim()) {
            left_out.0 += 1;
        } else {
            let score = if answer.sample.complete { score } else { score.min(CUT_SHORT) };
            all.push(Candidate { text, score, category: &answer.verdict.category });
        }
    }
    let best = best(&all);
    let is_right = |at: &usize| all[*at].score >= 1.0;
    match table.lesson {
        Lesson::Best => {
            let best = best.filter(is_right)?;
            Some((vec![all.swap_remove(best)], 0))
        }
        Lesson::Ranking => {
            let target = match table.target {
                Target::Reference => own.or_else(|| best.filter(is_right))?,
                // Better than nothing is not good enough to be imitated: what does not even run is no model.
                Target::Best => best.filter(|at| all[*at].score > CUT_SHORT)?,
            };
            Some((all, target))
        }
    }
}

/// The first of the candidates with the best score.
fn best(all: &[Candidate<'_>]) -> Option<usize> {
    (0..all.len()).reduce(|best, other| if all[other].score > all[best].score { other } else { best })
}

/// Chooses what ITERTL learns of a round's answers.
pub fn itertl(table: &ItertlTable, tasks: &[&Task], judged: &[Judged], round: u64) -> (Vec<Group>, Selection) {
    let mut by_task: BTreeMap<&str, Vec<&Judged>> = BTreeMap::new();
    for answer in judged {
        by_task.entry(&answer.sample.id).or_default().push(answer);
    }
    let mut left_out = (0, 0);
    let mut groups = Vec::new();
    for task in tasks {
        let Some(answers) = by_task.get(task.id.as_str()) else { continue };
        let Some((all, target)) = candidates(table, task, answers, &mut left_out) else { continue };
        let scored = all.iter().filter_map(|candidate| {
            let Candidate { text, score, category } = candidate;
            Some(Scored { example: example(&task.prompt, text)?, score: *score, category: (*category).to_owned() })
        });
        let answers = scored.collect();
        groups.push(Group { id: task.id.clone(), round, source: Source::Round, answers, target });
    }
    let kept: BTreeSet<&str> = groups.iter().map(|group| group.id.as_str()).collect();
    let mut selection = Selection::of(judged, &kept);
    (selection.repeated, selection.filtered) = left_out;
    (groups, selection)
}

/// What earlier rounds learned of a share of their tasks, drawn by the streams; of a task that several rounds learned from, the
/// newest. What this round learns from is left out.
pub fn replayed(earlier: Vec<Group>, now: &[Group], share: f64, streams: &Streams) -> Vec<Group> {
    let fresh: BTreeSet<&str> = now.iter().map(|group| group.id.as_str()).collect();
    let mut newest: BTreeMap<String, Vec<Group>> = BTreeMap::new();
    for group in earlier.into_iter().filter(|group| group.source == Source::Round) {
        if fresh.contains(group.id.as_str()) {
            continue;
        }
        let known = newest.entry(group.id.clone()).or_default();
        match known.first().map(|first| first.round.cmp(&group.round)) {
            Some(Ordering::Greater) => continue,
            Some(Ordering::Less) => known.clear(),
            Some(Ordering::Equal) | None => {}
        }
        known.push(Group { source: Source::Replay, ..group });
    }
    let mut all: Vec<Vec<Group>> = newest.into_values().collect();
    all.shuffle(&mut streams.rng("replay", &[]));
    let count = (share * all.len() as f64).round() as usize;
    all.truncate(count);
    all.into_iter().flatten().collect()
}

/// What became of a task in each round that asked it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The task's name.
    pub id: String,
    /// Of each round that asked it, in order.
    pub rounds: Vec<Attempt>,
}

/// What became of a task in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The round.
    pub round: u64,
    /// Answers.
    pub answers: usize,
    /// Right ones.
    pub passed: usize,
    /// Whether something was learned from it.
    pub kept: bool,
}

/// Adds a round to the tasks' histories.
pub fn remembered(earlier: Vec<History>, judged: &[Judged], groups: &[Group], round: u64) -> Vec<History> {
    let mut all: BTreeMap<String, Vec<Attempt>> =
        earlier.into_iter().map(|history| (history.id, history.rounds)).collect();
    let kept: BTreeSet<&str> =
        groups.iter().filter(|group| group.source == Source::Round).map(|group| group.id.as_str()).collect();
    let mut now: BTreeMap<&str, Attempt> = BTreeMap::new();
    for answer in sampled(judged) {
        let id = answer.sample.id.as_str();
        let attempt = now.entry(id).or_insert(Attempt { round, answers: 0, passed: 0, kept: kept.contains(id) });
        attempt.answers += 1;
        attempt.passed += usize::from(answer.verdict.is_right());
    }
    for (id, attempt) in now {
        all.entry(id.to_owned()).or_default().push(attempt);
    }
    all.into_iter().map(|(id, rounds)| History { id, rounds }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ask::Sample;
    use super::*;
    use didact_core::verdict::Verdict;

    fn task(answer: Option<&str>) -> Task {
        let prompt = Prompt::Text("p".into());
        Task { id: "t".into(), prompt, reference: "r".into(), answer: answer.map(str::to_owned) }
    }

    fn judged(number: usize, text: &str, score: f64, category: &str, complete: bool) -> Judged {
        Judged {
            sample: Sample { id: "t".into(), number, text: text.into(), tokens: 1, complete },
            verdict: Verdict { score: Some(score), category: category.into(), reason: String::new() },
        }
    }

    fn answers() -> Vec<Judged> {
        vec![
            judged(OWN, "own", 0.4, "mismatch", true),
            judged(1, "right", 1.0, "pass", true),
            judged(2, "own ", 0.4, "mismatch", true),
            judged(3, "cut", 0.6, "mismatch", false),
            judged(4, "other module", 0.0, "rejected", true),
            judged(5, " ", 0.0, "syntax_error", true),
        ]
    }

    fn chosen(table: &ItertlTable, task: &Task) -> Option<(Vec<(String, f64)>, usize, (usize, usize))> {
        let all = answers();
        let mut left_out = (0, 0);
        let (found, target) = candidates(table, task, &all.iter().collect::<Vec<_>>(), &mut left_out)?;
        Some((found.iter().map(|c| (c.text.to_owned(), c.score)).collect(), target, left_out))
    }

    #[test]
    fn the_tasks_own_answer_is_right_by_decree_or_judged_like_any_other() {
        let table = ItertlTable { filter: true, ..ItertlTable::default() };
        let (found, target, left_out) = chosen(&table, &task(Some("own"))).expect("something");
        let expected = [("own", 1.0), ("right", 1.0), ("cut", CUT_SHORT)].map(|(t, s)| (t.to_owned(), s));
        assert_eq!((found, target, left_out), (expected.to_vec(), 0, (1, 1)));
        let best = ItertlTable { target: Target::Best, ..table.clone() };
        let (found, target, _) = chosen(&best, &task(Some("own"))).expect("something");
        assert_eq!((found[0].1, target), (0.4, 1));
        // Without an answer of its own a task needs a right one.
        assert_eq!(chosen(&table, &task(None)).expect("one is right").1, 0);
        let unfiltered = ItertlTable { filter: false, ..table };
        assert_eq!(chosen(&unfiltered, &task(Some("own"))).expect("something").0.len(), 4);
    }

    #[test]
    fn imitation_takes_one_right_answer_or_nothing() {
        let table = ItertlTable { lesson: Lesson::Best, target: Target::Best, ..ItertlTable::default() };
        let (found, target, _) = chosen(&table, &task(Some("own"))).expect("one is right");
        assert_eq!((found, target), (vec![("right".to_owned(), 1.0)], 0));
        let wrong = [judged(1, "x", 0.7, "mismatch", true)];
        let own = task(None);
        assert_eq!(candidates(&table, &own, &[&wrong[0]], &mut (0, 0)), None);
    }

    #[test]
    fn selections_are_counted_by_difficulty_and_remembered() {
        let owner = task(Some("own"));
        let (groups, selection) = itertl(&ItertlTable::default(), &[&owner], &answers(), 1);
        assert_eq!((selection.sampled, selection.passed, selection.cut_short, selection.kept), (5, 1, 1, 1));
        assert_eq!(selection.by_difficulty[1].kept, 1, "one of five");
        assert_eq!(selection.by_difficulty.iter().map(|band| band.tasks).sum::<usize>(), 1);
        let first = remembered(Vec::new(), &answers(), &groups, 1);
        let second = remembered(first, &answers(), &[], 2);
        let rounds: Vec<_> = second[0].rounds.iter().map(|a| (a.round, a.answers, a.passed, a.kept)).collect();
        assert_eq!(rounds, [(1, 5, 1, true), (2, 5, 1, false)]);
        // What this round learned from does not come again as a replay; what it did not does.
        let streams = Streams::new(1);
        assert!(replayed(groups.clone(), &groups, 1.0, &streams).is_empty());
        assert_eq!(replayed(groups.clone(), &[], 1.0, &streams)[0].source, Source::Replay);
        assert!(replayed(groups, &[], 0.0, &streams).is_empty());
    }
}
