//! The generator over a tiny model with random weights and a tokenizer whose tokens are bytes.

mod common;

use common::{CONTEXT, drawn, greedy, request, tokenizer, weights};
use didact_core::cancel::Cancel;
use didact_core::generate::{Answer, Completion, FinishReason, Generator, Prompt, Request, RequestError, Sampling};
use didact_core::message::{Message, Role, Tool};
use didact_data::tokenizer::Tokenizer;
use didact_infer::{LocalGenerator, Options, Span};
use serde_json::json;
use std::sync::Arc;

fn generator_with(model: &str, eos: u32, options: Options) -> LocalGenerator {
    LocalGenerator::new(weights(model), tokenizer(eos), options).expect("model and tokenizer fit")
}

fn generator() -> LocalGenerator {
    generator_with("llama", 257, Options::default())
}

fn all(generator: &LocalGenerator, requests: &[Request]) -> Vec<Result<Completion, RequestError>> {
    let answers = generator.generate_all(requests, &Cancel::new()).expect("the generator works");
    answers.into_iter().map(|a| a.expect("nothing was cancelled")).collect()
}

fn one(generator: &LocalGenerator, request: Request) -> Answer {
    let mut completion = all(generator, &[request]).remove(0).expect("the request is fine");
    assert_eq!(completion.answers.len(), 1);
    completion.answers.remove(0)
}

/// Requests of every kind.
fn mixed_requests() -> Vec<Request> {
    vec![
        request("hello", greedy(9)),
        request("a much longer prompt, read in pieces", drawn(1, 12)),
        request("x", Sampling { n: 3, ..drawn(2, 5) }),
        request("hello", Sampling { temperature: 0.7, top_k: Some(20), top_p: Some(0.9), ..drawn(3, 20) }),
        request("yes", Sampling { n: 5, ..drawn(4, 1) }),
        Request { prompt: Prompt::Ids(vec![104, 105]), sampling: greedy(30) },
        request("hello", drawn(1, 12)),
    ]
}

#[test]
fn greedy_answers_follow_the_largest_logit() {
    for model in ["llama", "qwen2", "qwen3", "gpt2"] {
        let generator = generator_with(model, 257, Options::default());
        let answer = one(&generator, request("hello", greedy(10)));
        let engine = generator.engine();
        let (mut cache, mut next) = (engine.cache(), b"hello".map(u32::from).to_vec());
        for (id, log_prob) in answer.ids.iter().zip(&answer.log_probs) {
            let mut scores = Vec::new();
            let logits_from = next.len() - 1;
            engine.forward(&mut [Span { cache: &mut cache, ids: &next, logits_from }], |_, s| scores = s.to_vec());
            let best = scores.iter().copied().fold(f32::MIN, f32::max);
            assert_eq!(scores[*id as usize], best, "{model}");
            let total: f64 = scores.iter().map(|&s| f64::from(s).exp()).sum();
            assert!((f64::from(*log_prob) - (f64::from(best) - total.ln())).abs() < 1e-5, "{model}");
            next = vec![*id];
        }
        assert!(answer.ids.len() == 10 || answer.finish_reason == FinishReason::Stop);
        assert_eq!(answer.ids.len(), answer.log_probs.len());
    }
}

#[test]
fn an_answer_does_not_depend_on_batch_mates_or_batch_size() {
    let requests = mixed_requests();
    let alone: Vec<_> = requests.iter().map(|r| all(&generator(), std::slice::from_ref(r)).remove(0)).collect();
    for (max_batch_tokens, max_streams) in [(2048, 64), (7, 3), (1, 1), (3, 8)] {
        let options = Options { max_batch_tokens, max_streams, ..Options::default() };
        let together = all(&generator_with("llama", 257, options), &requests);
        assert_eq!(together, alone, "{max_batch_tokens} tokens, {max_streams} streams");
    }
    let reversed: Vec<Request> = requests.into_iter().rev().collect();
    let mut together = all(&generator(), &reversed);
    together.reverse();
    assert_eq!(together, alone);
}

#[test]
fn sixty_four_requests_are_answered_as_one_by_one() {
    let beginnings = ["once upon a time there was ", "", "q: 1+1? a: 2. q: 2+2? a: 4. q: "];
    let requests: Vec<Request> = (0..64u64)
        .map(|i| {
            let text = format!("{}{}", beginnings[i as usize % 3], &"the quick brown fox"[..=i as usize * 7 % 19]);
            let temperature = [0.0, 0.7, 1.3][i as usize % 3];
            let stop = if i % 5 == 0 { vec!["e".into()] } else { Vec::new() };
            let top_k = (i % 4 == 1).then_some(30);
            let sampling = Sampling { temperature, stop, top_k, ..drawn(i, 1 + i as usize * 5 % 17) };
            request(&text, sampling)
        })
        .collect();
    let together = all(&generator(), &requests);
    let few = generator();
    for (request, together) in requests.iter().zip(together) {
        assert_eq!(all(&few, std::slice::from_ref(request)).remove(0), together);
    }
}

#[test]
fn an_answer_does_not_depend_on_threads() {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| all(&generator(), &mixed_requests()))
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn several_answers_share_one_reading_of_the_prompt_and_differ() {
    let generator = generator();
    let sampling = Sampling { n: 6, ..drawn(9, 4) };
    let completion =
        all(&generator, &[request("a prompt of 23 characters", sampling.clone())]).remove(0).expect("fine");
    assert_eq!(completion.prompt_tokens, 25);
    let written: usize = completion.answers.iter().map(|a| a.ids.len()).sum();
    assert_eq!(written, 24);
    // Each answer's first token comes from the prompt's pass, its last one is never read.
    assert_eq!(generator.engine().tokens_read(), 25 + 6 * 3);
    let ids: std::collections::BTreeSet<_> = completion.answers.iter().map(|a| &a.ids).collect();
    assert!(ids.len() > 3);
    // The first of several is the one that would be given alone.
    let alone = one(&generator, request("a prompt of 23 characters", Sampling { n: 1, ..sampling }));
    assert_eq!(completion.answers[0], alone);
}

#[test]
fn a_stop_string_ends_the_answer_across_token_borders() {
    let generator = generator();
    // An answer with two letters side by side, each a token of its own.
    let (seed, whole, at) = (0..200)
        .find_map(|seed| {
            let whole = one(&generator, request("hello", drawn(seed, 30)));
            let ids: Vec<u8> = whole.ids.iter().map(|&id| u8::try_from(id).unwrap_or(0)).collect();
            // What comes before is a whole character too, so that no text waits for the letters.
            let at = ids.windows(3).position(|w| w[0].is_ascii() && w[1..].iter().all(u8::is_ascii_alphanumeric))?;
            Some((seed, whole, at + 1))
        })
        .expect("some seed gives two letters");
    let stop: String = whole.ids[at..at + 2].iter().map(|&id| char::from(id as u8)).collect();
    let sampling = Sampling { stop: vec!["never there".into(), stop.clone()], ..drawn(seed, 30) };
    let answer = one(&generator, request("hello", sampling));
    assert_eq!(answer.finish_reason, FinishReason::Stop);
    assert_eq!(answer.text, whole.text[..whole.text.find(&stop).expect("it is there")]);
    assert!(!answer.text.contains(&stop));
    assert_eq!(answer.ids, whole.ids[..at]);
    assert_eq!(answer.log_probs, whole.log_probs[..at]);
}

#[test]
fn an_end_of_turn_token_ends_the_answer_and_is_left_out() {
    let whole = one(&generator(), request("hello", drawn(5, 20)));
    let eos = whole.ids[6];
    let first = whole.ids.iter().position(|&id| id == eos).expect("it is there");
    let answer = one(&generator_with("llama", eos, Options::default()), request("hello", drawn(5, 20)));
    assert_eq!(answer.finish_reason, FinishReason::Stop);
    assert_eq!(answer.ids, whole.ids[..first]);
}

#[test]
fn the_context_limits_prompts_and_answers() {
    let generator = generator();
    let answer = one(&generator, request(&"x".repeat(CONTEXT - 4), drawn(1, 100)));
    assert_eq!((answer.ids.len(), answer.finish_reason), (4, FinishReason::Length));
    let error = all(&generator, &[request(&"x".repeat(CONTEXT), greedy(1))]).remove(0).expect_err("no room");
    assert_eq!(error.to_string(), "the prompt has 64 tokens, the model's context is 64");
    let answer = one(&generator, request("x", drawn(1, 3)));
    assert_eq!((answer.ids.len(), answer.finish_reason), (3, FinishReason::Length));
}

#[test]
fn a_bad_request_does_not_stop_the_others() {
    let requests = [
        request("", greedy(2)),
        request("good", greedy(2)),
        request("x", Sampling { temperature: -1.0, ..greedy(2) }),
        Request { prompt: Prompt::Ids(vec![5, 260]), sampling: greedy(2) },
        request("good", greedy(2)),
    ];
    let answers = all(&generator(), &requests);
    assert_eq!(answers[0], Err(RequestError::EmptyPrompt));
    assert!(answers[1].is_ok() && answers[1] == answers[4]);
    assert!(answers[2].as_ref().is_err_and(|e| e.to_string().starts_with("`temperature` is -1")));
    let error = answers[3].as_ref().expect_err("there is no such token").to_string();
    assert_eq!(error, "`prompt` is token 260: expected ids below 260, the model's vocabulary");
}

#[test]
fn cancelling_keeps_what_was_begun_and_leaves_out_the_rest() {
    let generator = generator_with("llama", 257, Options { max_streams: 2, ..Options::default() });
    let requests: Vec<Request> = (0..6).map(|i| request("hello", drawn(i, if i == 0 { 3 } else { 30 }))).collect();
    let cancel = Cancel::new();
    let mut answers = vec![None; requests.len()];
    let mut sink = |index: usize, answer: Result<Completion, RequestError>| {
        cancel.cancel();
        answers[index] = Some(answer.expect("the requests are fine"));
    };
    generator.generate(&requests, &mut sink, &cancel).expect("the generator works");
    let reason = |i: usize| answers[i].as_ref().map(|c| c.answers[0].finish_reason);
    assert_eq!(reason(0), Some(FinishReason::Length));
    assert_eq!(reason(1), Some(FinishReason::Cancelled));
    let whole = one(&generator, requests[1].clone());
    let cut = &answers[1].as_ref().expect("it was begun").answers[0];
    assert!(cut.ids.len() < whole.ids.len() && whole.ids.starts_with(&cut.ids));
    assert_eq!(reason(5), None);
}

#[test]
fn scores_are_the_log_probabilities_that_generation_reports() {
    for model in ["llama", "gpt2"] {
        let generator = generator_with(model, 257, Options { max_batch_tokens: 20, ..Options::default() });
        let prompt = Prompt::Ids(b"hello".map(u32::from).to_vec());
        let greedy = one(&generator, Request { prompt: prompt.clone(), sampling: greedy(8) });
        let drawn = one(&generator, Request { prompt: prompt.clone(), sampling: drawn(1, 8) });
        let pairs = [
            (prompt.clone(), Prompt::Ids(greedy.ids.clone())),
            (Prompt::Ids(vec![]), Prompt::Ids(vec![1])),
            (prompt.clone(), Prompt::Ids(drawn.ids.clone())),
            (prompt.clone(), Prompt::Ids(vec![])),
            (Prompt::Text("hel".into()), Prompt::Text("lo".into())),
        ];
        let mut scored = vec![None; pairs.len()];
        generator
            .score(&pairs, &mut |index, result| scored[index] = Some(result), &Cancel::new())
            .expect("the generator works");
        let scored: Vec<_> = scored.into_iter().map(|s| s.expect("nothing was cancelled")).collect();
        let first = scored[0].as_ref().expect("the pair is fine");
        assert!(first.is_greedy);
        assert_eq!((&first.ids, &first.log_probs), (&greedy.ids, &greedy.log_probs), "{model}");
        assert_eq!(scored[1], Err(RequestError::EmptyPrompt));
        let third = scored[2].as_ref().expect("the pair is fine");
        assert!(!third.is_greedy);
        assert_eq!(third.log_probs, drawn.log_probs, "{model}");
        let fourth = scored[3].as_ref().expect("nothing to score is fine");
        assert!(fourth.is_greedy && fourth.ids.is_empty());
        assert_eq!(scored[4].as_ref().expect("the pair is fine").ids, [u32::from(b'l'), u32::from(b'o')]);
    }
}

#[test]
fn what_scored_pairs_have_in_common_is_read_once_and_changes_no_score() {
    let score = |generator: &LocalGenerator, pairs: &[(Prompt, Prompt)]| {
        let mut scored = vec![None; pairs.len()];
        let mut sink = |index: usize, result| scored[index] = Some(result);
        generator.score(pairs, &mut sink, &Cancel::new()).expect("the generator works");
        scored.into_iter().map(|s| s.expect("nothing was cancelled")).collect::<Vec<_>>()
    };
    // 40 tokens in common: two pages and a bit; another question, and one that is the beginning alone.
    let beginning = "two and two are four; three and two are:";
    let ids = |text: &str| Prompt::Ids(text.bytes().map(u32::from).collect());
    let mut pairs: Vec<_> = (0..20).map(|i| (ids(beginning), ids(&format!(" {i}!")))).collect();
    pairs.push((ids("one"), ids(" and")));
    pairs.push((ids(&beginning[..32]), ids("x")));
    pairs.push((ids(&beginning[..33]), ids("xy")));
    let wanted: Vec<_> = pairs.iter().map(|pair| score(&generator(), std::slice::from_ref(pair)).remove(0)).collect();
    let config = generator().engine().config().clone();
    let (d, slots) = (config.head_dim, config.num_hidden_layers * config.num_key_value_heads);
    let page = 16 * (d + d.next_multiple_of(16)) * slots * size_of::<f32>();
    for (max_streams, max_batch_tokens, pages) in [(64, 2048, 1000), (3, 2048, 1000), (64, 10, 1000), (64, 2048, 4)] {
        let options = Options { max_streams, max_batch_tokens, max_cache_bytes: pages * page, ..Options::default() };
        let generator = generator_with("llama", 257, options);
        assert_eq!(score(&generator, &pairs), wanted, "{options:?}");
        // Each pair's own tokens, from the 33rd on, but for its last; the first one's beginning, the unlike pair, and the
        // two pages less one token that are all of a beginning (its last token's scores are needed).
        let own: usize = (0..20).map(|i| 8 + 1 + format!("{i}!").len() - 1).sum();
        let read = 32 + own + (3 + 4 - 1) + 16 + (1 + 1);
        assert_eq!(generator.engine().tokens_read(), read as u64, "{options:?}");
    }
    // What the memory cannot hold is refused, and the others are scored.
    let generator = generator_with("llama", 257, Options { max_cache_bytes: 2 * page, ..Options::default() });
    let scored = score(&generator, &pairs);
    assert_eq!(scored[0], Err(RequestError::PromptTooLong { tokens: 42, context: 32 }));
    assert_eq!(scored[20..22], wanted[20..22]);
}

#[test]
fn an_option_of_zero_is_refused() {
    let options = Options { max_streams: 0, ..Options::default() };
    let error = LocalGenerator::new(weights("llama"), tokenizer(257), options).expect_err("no streams");
    assert_eq!(error.to_string(), "`max_streams` is 0, expected a count from 1");
}

#[test]
fn a_conversation_is_answered_as_its_rendered_text_is() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if tools %}{{ tools | length }} tools\n{% endif %}{% if add_generation_prompt %}a: {% endif %}";
    let tokenizer = Tokenizer::clone(&tokenizer(257)).with_template(template, "the test").expect("it compiles");
    let generator = LocalGenerator::new(weights("llama"), Arc::new(tokenizer), Options::default()).expect("they fit");
    let messages = vec![Message::new(Role::User, "hi")];
    let chat = Prompt::Messages { messages: messages.clone(), tools: vec![Tool(json!({"name": "f"}))] };
    let text = Prompt::Text("user: hi\n1 tools\na: ".into());
    let ask = |prompt: &Prompt| Request { prompt: prompt.clone(), sampling: greedy(5) };
    let answers = generator.generate_all(&[ask(&chat), ask(&text)], &Cancel::new()).expect("generates");
    assert!(matches!(answers[0], Some(Ok(_))), "{answers:?}");
    assert_eq!(answers[0], answers[1]);
    let pairs = [chat, text].map(|prompt| (prompt, Prompt::Text("yes".into())));
    let mut scores = vec![None; 2];
    generator.score(&pairs, &mut |i, score| scores[i] = Some(score), &Cancel::new()).expect("scores");
    assert!(matches!(scores[0], Some(Ok(_))), "{scores:?}");
    assert_eq!(scores[0], scores[1]);
    // A model without a template cannot be talked to; the others of the batch are.
    let mut without = Vec::new();
    let bare = self::generator();
    let requests = [ask(&pairs[0].0), ask(&pairs[1].0)];
    bare.generate(&requests, &mut |i, answer| without.push((i, answer.is_ok())), &Cancel::new()).expect("generates");
    without.sort_unstable();
    assert_eq!(without, [(0, false), (1, true)]);
}
