//! A toy: words of three letters, of which only one is right, behind a beginning that looks worse than others and that
//! the generator likes less.

use super::*;
use didact_core::generate::{Answer, Completion, TokenLogProbs};
use didact_core::verdict::{Verdict, VerifyError};
use didact_kernels::random;
use std::cell::Cell;

/// Writes one letter: mostly `a`, sometimes `b`, rarely `c`.
#[derive(Default)]
struct Letters {
    asked: Cell<usize>,
    /// Refuses prompts that end so.
    refuses: Option<&'static str>,
    cancels: Option<Cancel>,
}

impl Generator for Letters {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        _: &Cancel,
    ) -> Result<(), GenerateError> {
        for (index, request) in requests.iter().enumerate() {
            self.asked.set(self.asked.get() + 1);
            let Prompt::Text(prompt) = &request.prompt else { panic!("the search gives texts") };
            if self.refuses.is_some_and(|end| prompt.ends_with(end)) {
                sink(index, Err(RequestError::PromptTooLong { tokens: 9, context: 9 }));
                continue;
            }
            let letter = |i: usize| match random::uniform(request.sampling.seed, i as u64) {
                _ if request.sampling.temperature == 0.0 => "a",
                u if u < 0.6 => "a",
                u if u < 0.9 => "b",
                _ => "c",
            };
            let answer = |i| Answer {
                text: letter(i).to_owned(),
                ids: vec![0],
                log_probs: vec![],
                top_log_probs: vec![],
                finish_reason: FinishReason::Length,
            };
            sink(index, Ok(Completion { answers: (0..request.sampling.n).map(answer).collect(), prompt_tokens: 1 }));
        }
        if let Some(cancel) = &self.cancels {
            cancel.cancel();
        }
        Ok(())
    }

    fn score(
        &self,
        _: &[(Prompt, Prompt)],
        _: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        _: &Cancel,
    ) -> Result<(), GenerateError> {
        unreachable!("a search scores nothing")
    }
}

/// `bca` is right. Beginnings with `a` look best.
fn score(word: &str) -> f64 {
    match word {
        "bca" => 1.0,
        "a" => 0.6,
        "aa" | "ab" => 0.55,
        "bc" => 0.5,
        "b" => 0.4,
        word if word.len() == 3 => 0.2,
        _ => 0.1,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a judge may fail")]
fn judge(steps: &[Step<'_>]) -> Result<Vec<Judgement>, GenerateError> {
    Ok(steps
        .iter()
        .map(|step| Judgement { score: Some(score(step.answer)), is_complete: step.answer.len() == 3 })
        .collect())
}

fn settings(selection: Selection) -> TreeSettings {
    let sampling = Sampling { temperature: 1.0, n: 24, seed: 5, ..Sampling::default() };
    TreeSettings { sampling, separator: String::new(), selection, ..TreeSettings::default() }
}

const UCT: Selection = Selection::Uct { exploration: std::f64::consts::SQRT_2 };

fn searched(settings: TreeSettings) -> (TreeSearch, Outcome) {
    let mut search = TreeSearch::new("word: ", settings).expect("the settings are fine");
    let outcome = search.run(&Letters::default(), &mut judge, &Cancel::new()).expect("nothing is broken");
    (search, outcome)
}

#[test]
fn both_selections_find_what_greedy_writing_misses() {
    for selection in [Selection::BestFirst, UCT] {
        let (search, outcome) = searched(settings(selection));
        assert_eq!(outcome, Outcome::Found, "{selection:?}");
        assert_eq!(search.answer(search.best().expect("it was found")), "bca");
        // Every node's visits and scores are those of the nodes below it and its own.
        for (i, node) in search.nodes().iter().enumerate() {
            let below = |f: &dyn Fn(&Node) -> f64| node.children.iter().map(|&c| f(&search.nodes()[c])).sum::<f64>();
            let own = node.score.unwrap_or(0.0);
            assert_eq!(node.visits as f64, below(&|n| n.visits as f64) + f64::from(u8::from(i > 0)));
            assert!((node.total - below(&|n| n.total) - own).abs() < 1e-9);
        }
    }
    let sampling = Sampling { temperature: 0.0, n: 1, ..Sampling::default() };
    let (search, outcome) = searched(TreeSettings { sampling, ..settings(Selection::BestFirst) });
    assert_eq!(
        (search.answer(search.best().expect("a word was written")), outcome),
        ("aaa".into(), Outcome::Exhausted)
    );
}

#[test]
fn a_search_that_was_saved_goes_on_as_if_nothing_had_happened() {
    for (selection, batch) in [(Selection::BestFirst, 1), (UCT, 1), (UCT, 3)] {
        let settings = TreeSettings { batch, ..settings(selection) };
        let (whole, _) = searched(settings.clone());
        let mut search = TreeSearch::new("word: ", settings).expect("the settings are fine");
        loop {
            let saved = serde_json::to_string(&search).expect("a search is plain data");
            search = serde_json::from_str(&saved).expect("what was saved loads");
            let end = search.round(&Letters::default(), &mut judge, &Cancel::new()).expect("nothing is broken");
            if end.is_some() {
                break;
            }
        }
        assert_eq!(search, whole);
    }
    let other = settings(UCT);
    let sampling = Sampling { seed: 6, ..other.sampling.clone() };
    assert_ne!(searched(TreeSettings { sampling, ..other.clone() }).0.nodes(), searched(other).0.nodes());
}

#[test]
fn the_budgets_hold_and_the_whole_tree_is_the_same_in_any_order() {
    let few = |max_expansions, batch| TreeSettings { max_expansions, batch, good_enough: 9.0, ..settings(UCT) };
    for (expansions, batch) in [(1, 1), (5, 1), (5, 3)] {
        let (search, outcome) = searched(few(expansions, batch));
        assert_eq!((search.expansions(), outcome), (expansions, Outcome::Spent));
        assert_eq!(search.tokens(), 24 * expansions);
    }
    let (search, outcome) = searched(TreeSettings { max_tokens: Some(50), good_enough: 9.0, ..settings(UCT) });
    assert_eq!((search.tokens(), outcome), (72, Outcome::Spent));
    let words = |selection, batch| {
        let (search, outcome) = searched(TreeSettings { selection, ..few(100, batch) });
        assert_eq!(outcome, Outcome::Exhausted);
        let mut words: Vec<String> = (0..search.nodes().len()).map(|i| search.answer(i)).collect();
        words.sort();
        words
    };
    // Ids differ with the order and seeds with ids, so not every letter is drawn everywhere; depths are the same.
    assert!(words(UCT, 1).iter().all(|word| word.len() <= 3));
    assert!(words(Selection::BestFirst, 4).contains(&"bca".to_owned()));
    let shallow = TreeSettings { max_depth: 2, good_enough: 9.0, ..settings(UCT) };
    assert!(searched(shallow).0.nodes().iter().all(|node| node.depth <= 2));
}

#[test]
fn steps_are_joined_by_the_separator() {
    let mut seen = Vec::new();
    let settings = TreeSettings { separator: "-".into(), max_expansions: 2, ..settings(Selection::BestFirst) };
    let mut search = TreeSearch::new("word: ", settings).expect("the settings are fine");
    let mut judge = |steps: &[Step<'_>]| {
        seen.extend(steps.iter().map(|step| step.answer.to_owned()));
        Ok(steps.iter().map(|_| Judgement { score: Some(0.5), is_complete: false }).collect())
    };
    let refusing = Letters { refuses: Some("-"), ..Letters::default() };
    let mut refused = search.clone();
    refused.run(&refusing, &mut judge, &Cancel::new()).expect("nothing is broken");
    // The first child was continued first; the generator was asked for what follows it and the separator, and refused.
    let node = &refused.nodes()[1];
    assert!(!node.is_open && node.children.is_empty() && refused.nodes()[0].is_open);
    assert_eq!(node.error, Some(RequestError::PromptTooLong { tokens: 9, context: 9 }));

    search.run(&Letters::default(), &mut judge, &Cancel::new()).expect("nothing is broken");
    let letters = search.nodes()[0].children.len();
    let of_second = seen.split_off(letters);
    assert_eq!(seen, of_second[..letters]);
    let first = &search.nodes()[1].text;
    let deeper: Vec<String> = search.nodes()[1].children.iter().map(|&child| search.answer(child)).collect();
    assert_eq!(of_second[letters..], deeper);
    assert!(deeper.iter().all(|answer| answer.starts_with(&format!("{first}-")) && answer.len() == 3), "{deeper:?}");
}

#[test]
fn a_round_that_is_cancelled_or_fails_changes_nothing() {
    let mut search = TreeSearch::new("word: ", settings(UCT)).expect("the settings are fine");
    search.round(&Letters::default(), &mut judge, &Cancel::new()).expect("nothing is broken");
    let before = search.clone();
    let cancel = Cancel::new();
    let cancelling = Letters { cancels: Some(cancel.clone()), ..Letters::default() };
    assert_eq!(search.round(&cancelling, &mut judge, &cancel).expect("nothing is broken"), Some(Outcome::Cancelled));
    assert_eq!((cancelling.asked.get(), &search), (1, &before));
    let mut broken = |_: &[Step<'_>]| Err(GenerateError { message: "no judge".into(), source: None });
    assert!(search.round(&Letters::default(), &mut broken, &Cancel::new()).is_err());
    assert_eq!(search, before);
}

struct Words;

impl Verifier for Words {
    fn verify(
        &self,
        items: &[(&Item, &str)],
        sink: &mut dyn FnMut(usize, Verdict),
        _: &Cancel,
    ) -> Result<(), VerifyError> {
        for (index, (item, answer)) in items.iter().enumerate() {
            // What begins with `c` cannot be judged.
            let score = if answer.starts_with('c') { None } else { Some(f64::from(item.reference == *answer)) };
            sink(index, Verdict { score, category: String::new(), reason: String::new() });
        }
        Ok(())
    }
}

#[test]
fn a_verifier_judges_and_what_it_cannot_judge_counts_for_nothing() {
    let item = Item { id: "1".into(), prompt: "word: ".into(), reference: "bb".into() };
    let cancel = Cancel::new();
    let mut search = TreeSearch::new("word: ", settings(UCT)).expect("the settings are fine");
    let mut judge = verified(&Words, &item, |step| step.answer.len() == 2, &cancel);
    assert_eq!(search.run(&Letters::default(), &mut judge, &cancel).expect("nothing is broken"), Outcome::Found);
    assert_eq!(search.answer(search.best().expect("it was found")), "bb");
    let unjudged = search.nodes().iter().find(|node| node.text == "c" && node.depth == 1).expect("it was written");
    assert_eq!((unjudged.score, unjudged.visits, unjudged.is_open), (None, 0, false));
}

#[test]
fn settings_out_of_range_are_named() {
    let text = |settings| TreeSearch::new("", settings).expect_err("out of range").to_string();
    assert!(text(TreeSettings { batch: 0, ..settings(UCT) }).starts_with("`batch` is 0"));
    assert!(text(TreeSettings { max_depth: 0, ..settings(UCT) }).starts_with("`max_depth` is 0"));
    assert!(text(settings(Selection::Uct { exploration: -1.0 })).starts_with("`exploration` is -1"));
    let sampling = Sampling { n: 2, ..Sampling::default() };
    assert!(text(TreeSettings { sampling, ..settings(UCT) }).starts_with("`n` is 2"));
}
