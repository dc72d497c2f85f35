//! Requests that join, leave and fail between steps.

mod common;

use common::{drawn, greedy, local_model, request, tokenizer, weights};
use didact_core::generate::{Answer, Completion, FinishReason, Prompt, Request, RequestError, Sampling};
use didact_infer::{Event, LocalModel, Options, RequestId, Scheduler};
use didact_kernels::Precision;
use std::collections::BTreeMap;
use std::sync::Arc;

fn scheduler(options: Options) -> Scheduler {
    Scheduler::new(local_model("llama"), options).expect("the options are fine")
}

/// All events until nothing is left to do.
fn run(scheduler: &mut Scheduler) -> Vec<Event> {
    let mut events = Vec::new();
    while scheduler.step(&mut events).expect("it generates") {}
    events
}

fn finished(events: &[Event]) -> BTreeMap<RequestId, Completion> {
    let finished = events.iter().filter_map(|event| match event {
        Event::Finished { id, completion } => Some((*id, completion.clone())),
        _ => None,
    });
    finished.collect()
}

fn alone(request: Request) -> Completion {
    let mut scheduler = scheduler(Options::default());
    let id = scheduler.submit(request).expect("the request is fine");
    finished(&run(&mut scheduler)).remove(&id).expect("it finishes")
}

#[test]
fn requests_that_join_and_leave_are_answered_as_if_they_were_alone() {
    let requests = [
        request("hello", greedy(12)),
        request("a prompt that is read in pieces", drawn(1, 9)),
        request("x", Sampling { n: 3, ..drawn(2, 5) }),
        request("yes", drawn(3, 1)),
    ];
    let mut scheduler = scheduler(Options { max_batch_tokens: 6, max_streams: 3, ..Options::default() });
    let (mut events, mut ids) = (Vec::new(), Vec::new());
    // One more request every second step.
    for request in &requests {
        ids.push(scheduler.submit(request.clone()).expect("the request is fine"));
        for _ in 0..2 {
            assert!(scheduler.step(&mut events).expect("it generates"));
            assert!(scheduler.running() <= 3);
        }
    }
    events.extend(run(&mut scheduler));
    assert!(!scheduler.step(&mut Vec::new()).expect("nothing to do"));
    let finished = finished(&events);
    for (id, request) in ids.iter().zip(requests) {
        assert_eq!(finished[id], alone(request));
    }
}

#[test]
fn the_pieces_of_a_text_are_the_answer() {
    let mut scheduler = scheduler(Options::default());
    let stop = vec!["never there".to_owned()];
    for seed in 0..4 {
        let sampling = Sampling { n: 2, stop: stop.clone(), ..drawn(seed, 15) };
        scheduler.submit(request("hello", sampling)).expect("the request is fine");
    }
    let mut pieces: BTreeMap<(RequestId, usize), (String, usize)> = BTreeMap::new();
    let mut answers: BTreeMap<(RequestId, usize), Answer> = BTreeMap::new();
    let mut ended = 0;
    for event in run(&mut scheduler) {
        match event {
            Event::Text { id, answer, text, tokens } => {
                assert!(!answers.contains_key(&(id, answer)), "text after the end");
                let (whole, behind) = pieces.entry((id, answer)).or_default();
                assert_eq!(tokens.start, *behind);
                *behind = tokens.end;
                whole.push_str(&text);
            }
            Event::Answer { id, answer, value } => {
                answers.insert((id, answer), value);
            }
            Event::Finished { id, completion } => {
                ended += 1;
                for (i, answer) in completion.answers.iter().enumerate() {
                    assert_eq!(&answers[&(id, i)], answer);
                }
            }
            Event::Failed { error, .. } => panic!("{error}"),
        }
    }
    assert_eq!((ended, answers.len()), (4, 8));
    let tokenizer = tokenizer(257);
    for (key, answer) in &answers {
        assert_eq!(pieces[key], (answer.text.clone(), answer.ids.len()));
        assert_eq!(answer.text, tokenizer.decode(&answer.ids, true).expect("it decodes"));
    }
}

#[test]
fn what_is_shown_never_runs_into_a_stop_string() {
    let whole = alone(request("hello", drawn(5, 30))).answers.remove(0);
    // Two characters of the text, so that a token's worth must be held back.
    let characters: Vec<char> = whole.text.chars().collect();
    let stop: String = characters[6..8].iter().collect();
    let mut scheduler = scheduler(Options::default());
    let sampling = Sampling { stop: vec![stop.clone()], ..drawn(5, 30) };
    scheduler.submit(request("hello", sampling)).expect("the request is fine");
    let (mut shown, mut text) = (String::new(), None);
    for event in run(&mut scheduler) {
        match event {
            Event::Text { text, .. } => shown.push_str(&text),
            Event::Answer { value, .. } => text = Some(value.text),
            _ => {}
        }
    }
    let wanted = &whole.text[..whole.text.find(&stop).expect("it is there")];
    assert_eq!(shown, wanted);
    assert_eq!(text.as_deref(), Some(wanted));
}

#[test]
fn a_cancelled_request_frees_its_places_at_once() {
    let mut scheduler = scheduler(Options { max_streams: 2, ..Options::default() });
    let long = scheduler.submit(request("hello", Sampling { n: 2, ..drawn(1, 40) })).expect("fine");
    let next = scheduler.submit(request("yes", drawn(2, 3))).expect("fine");
    let mut events = Vec::new();
    for _ in 0..5 {
        scheduler.step(&mut events).expect("it generates");
    }
    assert_eq!((scheduler.running(), scheduler.waiting()), (2, 1));
    let got = scheduler.cancel(long).expect("it was begun");
    assert_eq!(scheduler.running(), 0);
    assert!(got.answers.iter().all(|a| a.finish_reason == FinishReason::Cancelled && a.ids.len() == 5));
    let whole = alone(request("hello", Sampling { n: 2, ..drawn(1, 40) }));
    for (cut, whole) in got.answers.iter().zip(&whole.answers) {
        assert!(whole.ids.starts_with(&cut.ids) && whole.log_probs.starts_with(&cut.log_probs));
    }
    events.clear();
    events.extend(run(&mut scheduler));
    assert_eq!(finished(&events), BTreeMap::from([(next, alone(request("yes", drawn(2, 3))))]));
    // Nobody is waiting for these.
    assert_eq!(scheduler.cancel(long), None);
    let unread = scheduler.submit(request("hello", greedy(3))).expect("fine");
    assert_eq!(scheduler.cancel(unread), None);
    assert!(!scheduler.step(&mut events).expect("nothing to do"));
}

#[test]
fn one_answer_of_several_can_be_cancelled() {
    let mut scheduler = scheduler(Options::default());
    let sampling = Sampling { n: 3, ..drawn(1, 10) };
    let id = scheduler.submit(request("hello", sampling.clone())).expect("fine");
    let mut events = Vec::new();
    for _ in 0..4 {
        scheduler.step(&mut events).expect("it generates");
    }
    scheduler.cancel_answer(id, 1, &mut events);
    assert_eq!(scheduler.running(), 2);
    events.extend(run(&mut scheduler));
    let (got, whole) = (finished(&events).remove(&id).expect("it finishes"), alone(request("hello", sampling)));
    assert_eq!(got.answers[0], whole.answers[0]);
    assert_eq!(got.answers[2], whole.answers[2]);
    assert_eq!((got.answers[1].ids.len(), got.answers[1].finish_reason), (4, FinishReason::Cancelled));
}

/// A model whose embedding of `Z` is damaged: whoever reads one gets no numbers.
fn damaged_model() -> Arc<LocalModel> {
    let mut weights = weights("qwen2");
    let width = weights.config().hidden_size;
    let embedding = weights.tensor_mut("model.embed_tokens.weight").expect("the model has one");
    embedding[usize::from(b'Z') * width] = f32::NAN;
    Arc::new(LocalModel::new(weights, tokenizer(257), Precision::F32).expect("they fit"))
}

#[test]
fn scores_that_are_no_numbers_fail_their_request_and_no_other() {
    let mut scheduler = Scheduler::new(damaged_model(), Options::default()).expect("the options are fine");
    let good = Sampling { n: 2, ..drawn(7, 6) };
    let first = scheduler.submit(request("hello", good.clone())).expect("fine");
    let bad = scheduler.submit(request("see Z", Sampling { n: 3, ..drawn(1, 6) })).expect("fine");
    // It answers `Z` and reads it: damage in the middle of an answer, beside an answer that has none yet.
    let ids: Vec<u32> = b"he".iter().map(|&b| u32::from(b)).collect();
    let late = (0..4000).find(|&seed| {
        let mut probe = Scheduler::new(local_model("qwen2"), Options::default()).expect("fine");
        let sampling = drawn(seed, 2);
        probe.submit(Request { prompt: Prompt::Ids(ids.clone()), sampling }).expect("fine");
        finished(&run(&mut probe)).into_values().next().expect("one").answers[0].ids.first() == Some(&u32::from(b'Z'))
    });
    let seed = late.expect("some seed draws a Z first");
    let late = scheduler.submit(Request { prompt: Prompt::Ids(ids), sampling: drawn(seed, 5) }).expect("fine");
    let second = scheduler.submit(request("hello", good.clone())).expect("fine");
    let events = run(&mut scheduler);
    let failed: BTreeMap<_, _> = events
        .iter()
        .filter_map(|event| match event {
            Event::Failed { id, error } => Some((*id, error.clone())),
            _ => None,
        })
        .collect();
    let not_finite = |tokens| RequestError::NotFinite { tokens };
    assert_eq!(failed, BTreeMap::from([(bad, not_finite(5)), (late, not_finite(3))]));
    let finished = finished(&events);
    assert_eq!(finished.keys().copied().collect::<Vec<_>>(), [first, second]);
    assert_eq!(finished[&first], finished[&second]);
}

#[test]
fn a_bad_request_is_refused_when_it_is_submitted() {
    let mut scheduler = scheduler(Options::default());
    let error = scheduler.submit(request("", greedy(2))).expect_err("no prompt");
    assert_eq!(error, RequestError::EmptyPrompt);
    let error = scheduler.submit(request("x", Sampling { n: 0, ..greedy(2) })).expect_err("no answers");
    assert!(error.to_string().starts_with("`n` is 0"));
    assert!(!scheduler.step(&mut Vec::new()).expect("nothing to do"));
}
