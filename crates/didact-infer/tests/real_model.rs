//! The real model, where there is one: `DIDACT_TEST_MODEL` is the path of the pulled SmolLM2-135M-Instruct.

use didact_core::cancel::Cancel;
use didact_core::generate::{Generator, Prompt, Request, Sampling};
use didact_data::tokenizer::Tokenizer;
use didact_infer::{EngineWeights, LocalGenerator, Options};
use didact_model::Checkpoint;
use serde_json::Value;
use std::sync::Arc;

/// Logits against the reference implementation, on SmolLM2.
const MODEL_F32: f64 = 2e-3;
/// Mean log-probability against the reference implementation.
const LOSS_F32: f64 = 1e-5;

#[test]
#[ignore = "needs DIDACT_TEST_MODEL"]
fn real_model_text_and_log_probabilities_equal_the_reference() {
    let path = std::env::var("DIDACT_TEST_MODEL").expect("DIDACT_TEST_MODEL is the path of the pulled model");
    let weights = EngineWeights::from_checkpoint(&Checkpoint::open(&path).expect("it opens")).expect("it loads");
    let tokenizer = Arc::new(Tokenizer::open(&path).expect("the tokenizer opens"));
    let generator = LocalGenerator::new(weights, tokenizer, Options::default()).expect("they belong together");

    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden/smollm2.json");
    let golden: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(golden).expect("the golden is there")).expect("it is JSON");
    let entries: Vec<&Value> = golden.iter().filter(|entry| entry.get("prompt").is_some()).collect();
    assert!(entries.len() >= 4, "the golden has {} prompts", entries.len());
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).expect("ids") };
    let text = |value: &Value| value.as_str().expect("a text").to_owned();

    // All at once, so that they are batch-mates of different lengths.
    let requests: Vec<Request> = entries
        .iter()
        .map(|entry| Request {
            prompt: Prompt::Text(text(&entry["prompt"])),
            sampling: Sampling {
                max_tokens: ids(&entry["greedy_ids"]).len() - ids(&entry["ids"]).len(),
                ..Sampling::default()
            },
        })
        .collect();
    let answers = generator.generate_all(&requests, &Cancel::new()).expect("it generates");
    for (entry, answer) in entries.iter().zip(answers) {
        let completion = answer.expect("nothing was cancelled").expect("the request is fine");
        let answer = &completion.answers[0];
        let prompt = ids(&entry["ids"]);
        assert_eq!(completion.prompt_tokens, prompt.len());
        let whole = [prompt, answer.ids.clone()].concat();
        let wanted = ids(&entry["greedy_ids"]);
        // The reference does not stop at an end of turn.
        assert_eq!(whole, wanted[..whole.len()], "{}", entry["prompt"]);
        assert!(text(&entry["greedy_text"]).starts_with(&(text(&entry["prompt"]) + &answer.text)));
        // The first token's score, from the ten largest of the reference: differences of logits are those of
        // log-probabilities.
        let top = ids(&entry["top_ids"]);
        let logits: Vec<f64> = serde_json::from_value(entry["top_logits"].clone()).expect("logits");
        let prompt = Prompt::Ids(ids(&entry["ids"]));
        let pairs: Vec<_> = top.iter().map(|&id| (prompt.clone(), Prompt::Ids(vec![id]))).collect();
        let mut scores = vec![0.0; top.len()];
        let mut sink = |index: usize, scored: Result<didact_core::generate::TokenLogProbs, _>| {
            scores[index] = f64::from(scored.expect("the pair is fine").log_probs[0]);
        };
        generator.score(&pairs, &mut sink, &Cancel::new()).expect("it scores");
        for i in 1..top.len() {
            let (got, want) = (scores[0] - scores[i], logits[0] - logits[i]);
            assert!((got - want).abs() < 2.0 * MODEL_F32, "{}: token {}: {got} for {want}", entry["prompt"], top[i]);
        }
        // The prompt's own mean loss, all but its first token.
        let prompt = ids(&entry["ids"]);
        let pair = (Prompt::Ids(prompt[..1].to_vec()), Prompt::Ids(prompt[1..].to_vec()));
        let mut mean = f64::NAN;
        let mut sink = |_, scored: Result<didact_core::generate::TokenLogProbs, _>| {
            let log_probs = scored.expect("the pair is fine").log_probs;
            mean = -log_probs.iter().map(|&x| f64::from(x)).sum::<f64>() / log_probs.len() as f64;
        };
        generator.score(&[pair], &mut sink, &Cancel::new()).expect("it scores");
        let want = entry["mean_nll"].as_f64().expect("a number");
        assert!((mean - want).abs() < LOSS_F32 * want.max(1.0), "{}: {mean} for {want}", entry["prompt"]);
    }
}
