//! Requests that join, leave and fail between steps.

mod common;

use common::{drawn, golden, greedy, local_model, request, tokenizer, weights};
use didact_core::generate::{Answer, Completion, FinishReason, Prompt, Request, RequestError, Sampling};
use didact_infer::{Event, LocalModel, Options, RequestId, Scheduler};
use didact_kernels::Precision;
use didact_model::Checkpoint;
use didact_model::peft::Adapter;
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

/// Prompts of many lengths that begin alike, several answers each.
fn few_shot(count: u64) -> Vec<Request> {
    let beginning = "two and two are four; three and two"; // 35 tokens: two pages and a bit
    (0..count)
        .map(|i| {
            let sampling = Sampling { n: 1 + i as usize % 3, ..drawn(i, 3 + i as usize % 7) };
            request(&format!("{beginning}{}", &"?!abcdefgh"[..=i as usize % 10]), sampling)
        })
        .collect()
}

#[test]
fn a_common_beginning_is_read_once_and_its_answers_are_the_same() {
    let requests = few_shot(12);
    let mut scheduler = scheduler(Options::default());
    let ids: Vec<_> = requests.iter().map(|r| scheduler.submit(r.clone()).expect("fine")).collect();
    let finished = finished(&run(&mut scheduler));
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(finished[id], alone(request.clone()));
    }
    // Two pages of the beginning are read by the first, the rest of the prompts and all but each answer's last token by
    // each.
    let own: usize = ids.iter().map(|id| finished[id].prompt_tokens - 32).sum();
    let unread = |answer: &Answer| usize::from(answer.finish_reason == FinishReason::Length);
    let answers = ids.iter().flat_map(|id| &finished[id].answers);
    let answered = answers.map(|answer| answer.ids.len() - unread(answer)).sum::<usize>();
    assert_eq!(scheduler.model().engine().tokens_read(), (32 + own + answered) as u64);
    // They are known for later requests as well.
    let before = scheduler.model().engine().tokens_read();
    scheduler.submit(request("two and two are four; three and two are five", greedy(1))).expect("fine");
    run(&mut scheduler);
    assert_eq!(scheduler.model().engine().tokens_read() - before, 44 - 32);
}

#[test]
fn what_texts_have_in_common_is_read_once_and_their_scores_are_the_same() {
    let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let alone = |text: &[u32], alternatives| {
        scheduler(Options::default()).read(text, alternatives, None).expect("the text is fine")
    };
    // 40 tokens in common, of which two pages are shared.
    let texts: Vec<_> = (0..6).map(|i| ids(&format!("two and two are four; three and two are: {i}!"))).collect();
    let mut scheduler = scheduler(Options::default());
    let mut last = 0;
    let mut read = |scheduler: &mut Scheduler, text: &[u32], alternatives| {
        assert_eq!(scheduler.read(text, alternatives, None).expect("the text is fine"), alone(text, alternatives));
        let all = scheduler.model().engine().tokens_read();
        all - std::mem::replace(&mut last, all)
    };
    // Of 43 tokens the last is not read; of known pages the last token is, again, for what it predicts.
    assert_eq!(read(&mut scheduler, &texts[0], 2), 42);
    for text in &texts[1..] {
        assert_eq!(read(&mut scheduler, text, 2), 42 - 31);
    }
    // Fewer alternatives are known, more are not; a text may end within a known page or with it.
    assert_eq!(read(&mut scheduler, &texts[0], 0), 42 - 31);
    assert_eq!(read(&mut scheduler, &texts[0], 1), 42 - 31);
    assert_eq!(read(&mut scheduler, &texts[0], 3), 42);
    assert_eq!(read(&mut scheduler, &texts[1], 3), 42 - 31);
    assert_eq!(read(&mut scheduler, &texts[1][..33], 3), 32 - 31);
    assert_eq!(read(&mut scheduler, &texts[1][..32], 3), 31 - 15);
    assert_eq!(read(&mut scheduler, &texts[1][..1], 3), 0);
    assert_eq!(read(&mut scheduler, &[], 3), 0);
    // Answers go on from what was read for its scores; what was read for answers has none yet.
    scheduler.submit(request("two and two are four; three and two are?", greedy(1))).expect("fine");
    run(&mut scheduler);
    let prompt = "another prompt of more than two whole pages";
    let id = scheduler.submit(request(prompt, greedy(1))).expect("fine");
    assert_eq!(finished(&run(&mut scheduler))[&id], alone_answer(prompt));
    assert_eq!(scheduler.model().engine().tokens_read() - last, 40 - 32 + prompt.len() as u64);
    last = scheduler.model().engine().tokens_read();
    let mut again = |scheduler: &mut Scheduler| {
        scheduler.read(&ids(prompt), 1, None).expect("the text is fine");
        let all = scheduler.model().engine().tokens_read();
        all - std::mem::replace(&mut last, all)
    };
    assert_eq!((again(&mut scheduler), again(&mut scheduler)), (prompt.len() as u64 - 1, prompt.len() as u64 - 1 - 31));
    let unknown = scheduler.read(&ids(prompt), 1, Some("other")).expect_err("there is no such adapter");
    assert!(unknown.to_string().contains("adapter"), "{unknown}");
}

fn alone_answer(prompt: &str) -> Completion {
    alone(request(prompt, greedy(1)))
}

#[test]
fn texts_are_read_beside_requests_that_have_all_the_memory() {
    let config = local_model("llama").engine().config().clone();
    let (d, slots) = (config.head_dim, config.num_hidden_layers * config.num_key_value_heads);
    let page = 16 * (d + d.next_multiple_of(16)) * slots * size_of::<f32>();
    let options = Options { max_cache_bytes: 5 * page, ..Options::default() };
    let text: Vec<u32> = "a text that is as long as some of the others are".bytes().map(u32::from).collect();
    let wanted = scheduler(Options::default()).read(&text, 1, None).expect("the text is fine");
    let mut scheduler = scheduler(options);
    let long = request("two and two are", drawn(3, 40));
    let ids = [(); 3].map(|()| scheduler.submit(long.clone()).expect("fine"));
    let mut events = Vec::new();
    for _ in 0..3 {
        scheduler.step(&mut events).expect("it generates");
        assert_eq!(scheduler.read(&text, 1, None).expect("the text is fine"), wanted);
        assert!(scheduler.cache_bytes() <= options.max_cache_bytes);
    }
    events.extend(run(&mut scheduler));
    let finished = finished(&events);
    for id in ids {
        assert_eq!(finished[&id], alone(long.clone()));
    }
    // With nobody else there is room, and a quarter of the memory for what is known.
    assert_eq!(scheduler.read(&text, 1, None).expect("the text is fine"), wanted);
    assert!(scheduler.cache_bytes() <= options.max_cache_bytes / 4);
}

#[test]
fn little_memory_makes_requests_wait_and_changes_nothing() {
    let requests = few_shot(12);
    let wanted: Vec<_> = requests.iter().map(|r| alone(r.clone())).collect();
    // Pages of 16 tokens of all layers; values in whole vectors.
    let config = local_model("llama").engine().config().clone();
    let (d, slots) = (config.head_dim, config.num_hidden_layers * config.num_key_value_heads);
    let page = 16 * (d + d.next_multiple_of(16)) * slots * size_of::<f32>();
    for pages in [5, 6, 9, 30] {
        for max_batch_tokens in [2048, 5] {
            let max_cache_bytes = pages * page;
            let mut scheduler = scheduler(Options { max_cache_bytes, max_batch_tokens, ..Options::default() });
            let ids: Vec<_> = requests.iter().map(|r| scheduler.submit(r.clone()).expect("fine")).collect();
            let mut events = Vec::new();
            let mut most = 0;
            loop {
                let goes_on = scheduler.step(&mut events).expect("it generates");
                assert!(scheduler.cache_bytes() <= max_cache_bytes, "{} bytes", scheduler.cache_bytes());
                most = most.max(scheduler.running());
                if !goes_on {
                    break;
                }
            }
            let finished = finished(&events);
            for (id, wanted) in ids.iter().zip(&wanted) {
                assert_eq!(&finished[id], wanted, "{pages} pages");
            }
            assert!(if pages == 5 { most <= 3 } else { most > 1 }, "{most} at a time in {pages} pages");
            assert!(scheduler.cache_bytes() <= max_cache_bytes / 4);
        }
    }
    // What can never fit is refused; what outgrows the memory ends there.
    let mut scheduler = scheduler(Options { max_cache_bytes: 3 * page, ..Options::default() });
    let error = scheduler.submit(request(&"x".repeat(32), greedy(1))).expect_err("no room");
    assert_eq!(error, RequestError::PromptTooLong { tokens: 32, context: 32 });
    let id = scheduler.submit(request("hello", drawn(1, 60))).expect("fine");
    let got = finished(&run(&mut scheduler)).remove(&id).expect("it finishes").answers.remove(0);
    let whole = alone(request("hello", drawn(1, 60))).answers.remove(0);
    assert_eq!((got.ids.len(), got.finish_reason), (27, FinishReason::Length));
    assert_eq!(got.ids, whole.ids[..27]);
    let options = Options { max_cache_bytes: page, ..Options::default() };
    let error = Scheduler::new(local_model("llama"), options).expect_err("too little");
    assert!(error.to_string().contains("`max_cache_bytes`"), "{error}");
}

#[test]
fn adapters_of_one_batch_answer_as_their_merged_models_do() {
    let base = Checkpoint::open(golden("llama")).expect("it opens");
    let adapter = Adapter::read(&golden("peft/llama"), base.config()).expect("the golden adapter opens");
    let mut model = LocalModel::new(weights("llama"), tokenizer(257), Precision::F32).expect("they fit");
    model.add_adapter("golden", &adapter).expect("it fits");
    let mut stronger = adapter.clone();
    stronger.pairs.iter_mut().for_each(|pair| pair.scale *= 3.0);
    model.add_adapter("strong", &stronger).expect("it fits");
    assert_eq!(model.adapters().collect::<Vec<_>>(), ["golden", "strong"]);
    let mut scheduler = Scheduler::new(Arc::new(model), Options::default()).expect("fine");
    let adapters = [None, Some("strong"), Some("golden"), None, Some("golden"), Some("strong")];
    let requests: Vec<_> = adapters
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let sampling = Sampling { adapter: name.map(str::to_owned), n: 2, ..drawn(i as u64 / 2, 8) };
            request("a prompt that they all share, and more of it", sampling)
        })
        .collect();
    let ids: Vec<_> = requests.iter().map(|r| scheduler.submit(r.clone()).expect("fine")).collect();
    let together = finished(&run(&mut scheduler));
    for ((id, name), asked) in ids.iter().zip(adapters).zip(&requests) {
        let mut weights = weights("llama");
        if let Some(name) = name {
            let adapter = if name == "golden" { &adapter } else { &stronger };
            for (name, _, values) in adapter.merged_into(&base).map(|tensor| tensor.expect("it merges")) {
                weights.tensor_mut(&name).expect("the model has it").copy_from_slice(&values);
            }
        }
        let merged = LocalModel::new(weights, tokenizer(257), Precision::F32).expect("they fit");
        let mut scheduler = Scheduler::new(Arc::new(merged), Options::default()).expect("fine");
        let sampling = Sampling { adapter: None, ..asked.sampling.clone() };
        let alone = scheduler.submit(Request { sampling, ..asked.clone() }).expect("fine");
        let merged = finished(&run(&mut scheduler)).remove(&alone).expect("it finishes");
        for (got, want) in together[id].answers.iter().zip(&merged.answers) {
            // The branch is summed apart from the layer: the last bits of f32 differ, which draws rarely notice.
            assert_eq!(got.ids, want.ids, "{name:?}");
            for (got, want) in got.log_probs.iter().zip(&want.log_probs) {
                assert!((got - want).abs() < 1e-4, "{name:?}: {got} for {want}");
            }
        }
    }
    assert_ne!(together[&ids[0]].answers, together[&ids[1]].answers);
    assert_ne!(together[&ids[2]].answers, together[&ids[3]].answers);
    let sampling = Sampling { adapter: Some("other".into()), ..greedy(1) };
    let error = scheduler.submit(request("x", sampling)).expect_err("there is none");
    assert_eq!(error.to_string(), "`adapter` is `other`: expected one of golden, strong");
}
