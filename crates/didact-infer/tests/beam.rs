//! Beam search against that of `transformers` over the same tiny models.

mod common;

use common::{golden, local_model, tokenizer, weights};
use didact_core::cancel::Cancel;
use didact_core::generate::{FinishReason, Generator, Prompt, Request, RequestError, Sampling};
use didact_infer::{Beam, BeamSearch, LocalGenerator, LocalModel, Options, beam_search};
use didact_kernels::Precision;
use serde_json::Value;

fn found(model: &LocalModel, prompt: &Prompt, search: &BeamSearch) -> Result<Vec<Beam>, RequestError> {
    beam_search(model, prompt, search, &Cancel::new()).expect("the model works")
}

#[test]
fn searches_equal_those_of_transformers() {
    let text = std::fs::read_to_string(golden("beam/golden.json")).expect("the golden is there");
    let golden: Value = serde_json::from_str(&text).expect("it is JSON");
    let of = |value: &Value, key: &str| value[key].clone();
    let ids = |value: Value| -> Vec<u32> { serde_json::from_value(value).expect("ids") };
    let prompt = Prompt::Ids(ids(of(&golden, "prompt")));
    let mut ended = [0, 0];
    for name in ["llama", "gpt2"] {
        let model = local_model(name);
        let cases = golden[name].as_array().expect("searches");
        assert!(cases.len() >= 7);
        for case in cases {
            let search = BeamSearch {
                beams: serde_json::from_value(of(case, "beams")).expect("a count"),
                n: serde_json::from_value(of(case, "n")).expect("a count"),
                max_tokens: serde_json::from_value(of(case, "max_tokens")).expect("a count"),
                length_penalty: serde_json::from_value(of(case, "length_penalty")).expect("a number"),
                early_stopping: serde_json::from_value(of(case, "early_stopping")).expect("a name"),
                stop_token_ids: ids(of(case, "eos")),
            };
            let beams = found(&model, &prompt, &search).expect("the search is fine");
            let want = case["results"].as_array().expect("results");
            assert_eq!(beams.len(), want.len(), "{name} {search:?}");
            for (beam, want) in beams.iter().zip(want) {
                assert_eq!(beam.answer.ids, ids(of(want, "ids")), "{name} {search:?}");
                let is_ended = beam.answer.finish_reason == FinishReason::Stop;
                assert_eq!(is_ended, want["is_ended"] == true, "{name} {search:?}");
                ended[usize::from(is_ended)] += 1;
                if let Some(score) = want["score"].as_f64() {
                    // Sums of up to twelve log-probabilities, each to about 1e-5 of the f32 logits of another library.
                    assert!((beam.score - score).abs() < 2e-4 * score.abs().max(1.0), "{} for {score}", beam.score);
                }
            }
        }
    }
    assert!(ended[0] > 5 && ended[1] > 5, "both ends were seen: {ended:?}");
}

#[test]
fn one_beam_is_greedy_and_threads_do_not_matter() {
    let generator = LocalGenerator::new(weights("llama"), tokenizer(257), Options::default()).expect("they fit");
    let prompt = Prompt::Text("hello".into());
    let search = BeamSearch { beams: 1, max_tokens: 9, ..BeamSearch::default() };
    let beam = found(generator.model(), &prompt, &search).expect("the search is fine").remove(0);
    let request = Request { prompt: prompt.clone(), sampling: Sampling { max_tokens: 9, ..Sampling::default() } };
    let greedy = generator.generate_all(&[request], &Cancel::new()).expect("it works").remove(0);
    assert_eq!(beam.answer, greedy.expect("not cancelled").expect("it is fine").answers[0]);

    let search = BeamSearch { beams: 6, n: 6, max_tokens: 9, ..BeamSearch::default() };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| found(generator.model(), &prompt, &search))
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn the_context_ends_a_search_and_bad_settings_are_named() {
    let model = local_model("llama");
    let long = Prompt::Text("x".repeat(common::CONTEXT - 3));
    let beams = found(&model, &long, &BeamSearch::default()).expect("the search is fine");
    assert_eq!((beams[0].answer.ids.len(), beams[0].answer.finish_reason), (3, FinishReason::Length));
    let hello = Prompt::Text("hello".into());
    let text = |search: BeamSearch| found(&model, &hello, &search).expect_err("out of range").to_string();
    let d = BeamSearch::default;
    assert!(text(BeamSearch { beams: 0, ..d() }).starts_with("`beams` is 0: expected a count from 1"));
    assert!(
        text(BeamSearch { n: 5, ..d() }).starts_with("`n` is 5: expected a count from 1 to the number of beams, 4")
    );
    assert!(text(BeamSearch { max_tokens: 0, ..d() }).starts_with("`max_tokens` is 0"));
    assert!(text(BeamSearch { length_penalty: f32::NAN, ..d() }).starts_with("`length_penalty` is NaN"));
    assert!(text(BeamSearch { stop_token_ids: vec![260], ..d() }).starts_with("`stop_token_ids` is token 260"));
    assert_eq!(found(&model, &Prompt::Text(String::new()), &d()), Err(RequestError::EmptyPrompt));
    let too_long = found(&model, &Prompt::Text("x".repeat(99)), &d());
    assert!(matches!(too_long, Err(RequestError::PromptTooLong { tokens: 99, .. })));
}

#[test]
fn a_cancelled_search_gives_what_it_has() {
    let model = LocalModel::new(weights("llama"), tokenizer(257), Precision::F32).expect("they fit");
    let cancel = Cancel::new();
    cancel.cancel();
    let beams = beam_search(&model, &Prompt::Text("hello".into()), &BeamSearch::default(), &cancel);
    let beams = beams.expect("the model works").expect("the search is fine");
    assert_eq!((beams.len(), beams[0].answer.finish_reason), (1, FinishReason::Cancelled));
}
