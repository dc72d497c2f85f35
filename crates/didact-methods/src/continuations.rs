//! What a model writes when it goes on, and how sure it is: the measurements of hyperfitting, of its recipe and of its
//! reproduction.

use didact_core::cancel::Cancel;
use didact_core::generate::{Generator, Prompt, Request, Sampling};
use didact_eval::metrics::bleu::{self, Smoothing};
use didact_eval::metrics::diversity::{Overlap, distinct, repetition, self_bleu};
use didact_infer::{Engine, KvCache, LocalGenerator, Span};
use didact_kernels::softmax;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::MethodError;

/// Tokens in a row that a text shares with one that was trained on before it counts as copied (the paper's limit).
pub const COPIED: usize = 10;
/// What takes the place of an order of n-grams of which none was found, in BLEU.
const SMOOTHING: Smoothing = Smoothing::Floor(0.1);
/// Texts read at a time.
const BATCH: usize = 16;

/// How varied continuations are, and how much of them was copied. All over tokens; means over continuations.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Diversity {
    /// Different tokens as a share of all.
    pub ttr: f64,
    /// Pairs of tokens that came before, as a share of all pairs.
    pub rep2: f64,
    /// The same of three tokens.
    pub rep3: f64,
    /// BLEU-4 of each with the others as references: how alike they are.
    pub self_bleu: f64,
    /// BLEU-4 of each with the texts that were trained on as references, the mean.
    pub dataset_bleu: f64,
    /// The same, the largest.
    pub dataset_bleu_max: f64,
    /// Tokens in a row that also stand in a text that was trained on, the mean of the longest.
    pub overlap: f64,
    /// The same, the longest of all.
    pub overlap_max: f64,
    /// Continuations with more than [`COPIED`] of them, as a share.
    pub copied: f64,
    /// Tokens of a continuation.
    pub tokens: f64,
}

impl Diversity {
    /// Measures continuations of a model that was trained on `texts`.
    pub fn of(continuations: &[Vec<u32>], texts: &[Vec<u32>]) -> Self {
        let n = continuations.len().max(1) as f64;
        let mean = |of: &dyn Fn(&[u32]) -> f64| continuations.iter().map(|ids| of(ids)).sum::<f64>() / n;
        let index = Overlap::new(texts);
        let runs: Vec<usize> = continuations.iter().map(|ids| index.longest(ids)).collect();
        let bleu: Vec<f64> = continuations.par_iter().map(|ids| bleu::sentence(ids, texts, SMOOTHING)).collect();
        Self {
            ttr: mean(&|ids| distinct(ids, 1)),
            rep2: mean(&|ids| repetition(ids, 2)),
            rep3: mean(&|ids| repetition(ids, 3)),
            self_bleu: self_bleu(continuations),
            dataset_bleu: bleu.iter().sum::<f64>() / n,
            dataset_bleu_max: bleu.iter().copied().fold(0.0, f64::max),
            overlap: runs.iter().sum::<usize>() as f64 / n,
            overlap_max: runs.iter().copied().max().unwrap_or(0) as f64,
            copied: runs.iter().filter(|&&run| run > COPIED).count() as f64 / n,
            tokens: mean(&|ids| ids.len() as f64),
        }
    }
}

/// The tokens after each prompt; `sampling` by the prompt's number. `None` when cancelled.
///
/// # Errors
/// When a prompt cannot be continued; `set` names them in the message.
pub fn continued(
    generator: &LocalGenerator,
    set: &str,
    prompts: &[Vec<u32>],
    sampling: impl Fn(usize) -> Sampling,
    cancel: &Cancel,
) -> Result<Option<Vec<Vec<u32>>>, MethodError> {
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .map(|(number, ids)| Request { prompt: Prompt::Ids(ids.clone()), sampling: sampling(number) })
        .collect();
    let mut texts = Vec::with_capacity(requests.len());
    for (number, answer) in generator.generate_all(&requests, cancel)?.into_iter().enumerate() {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        let Some(answer) = answer else { return Ok(None) };
        let answer =
            answer.map_err(|source| MethodError::Request { set: set.to_owned(), index: number + 1, source })?;
        texts.push(answer.answers.into_iter().next().map(|answer| answer.ids).unwrap_or_default());
    }
    Ok(Some(texts))
}

/// Shows `see` the scores `[V]` after every token of every text but the last: the text's number, the token's, the scores.
///
/// # Panics
/// If a text has an id that the model does not know, or is longer than the context of a model that learns its positions.
pub fn each_prediction(engine: &Engine, texts: &[Vec<u32>], mut see: impl FnMut(usize, usize, &[f32])) {
    let vocab = engine.config().vocab_size;
    for (batch, texts) in texts.chunks(BATCH).enumerate() {
        let read: Vec<&[u32]> = texts.iter().map(|ids| &ids[..ids.len().saturating_sub(1)]).collect();
        let places: Vec<(usize, usize)> = read
            .iter()
            .enumerate()
            .flat_map(|(text, ids)| (0..ids.len()).map(move |token| (batch * BATCH + text, token)))
            .collect();
        let mut caches: Vec<KvCache> = read.iter().map(|_| engine.cache()).collect();
        let mut spans: Vec<Span<'_>> =
            caches.iter_mut().zip(&read).map(|(cache, ids)| Span { cache, ids, logits_from: 0 }).collect();
        engine.forward(&mut spans, |rows, scores| {
            for (&(text, token), scores) in places[rows].iter().zip(scores.chunks_exact(vocab)) {
                see(text, token, scores);
            }
        });
    }
}

/// How sure a model is of texts, and how right.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Sureness {
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
    /// Mean entropy of the prediction, in nats.
    pub entropy: f64,
}

impl Sureness {
    /// Of every token of the texts but each one's first.
    pub fn of(engine: &Engine, texts: &[Vec<u32>]) -> Self {
        let (mut nll, mut entropies, mut tokens) = (0.0, 0.0, 0u64);
        each_prediction(engine, texts, |text, token, scores| {
            let total = softmax::log_sum_exp(scores);
            nll += total - f64::from(scores[texts[text][token + 1] as usize]);
            entropies += entropy(scores, 1.0);
            tokens += 1;
        });
        let tokens = tokens.max(1) as f64;
        Self { nll: nll / tokens, entropy: entropies / tokens }
    }
}

/// The entropy of what the scores predict at a temperature, in nats.
///
/// # Equation
/// H = ln Σ e^z − Σ p z, with z = scores / T.
pub fn entropy(scores: &[f32], temperature: f64) -> f64 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut mean) = (0.0, 0.0);
    for &score in scores.iter().filter(|score| score.is_finite()) {
        let z = f64::from(score - largest) / temperature;
        let p = z.exp();
        sum += p;
        mean += p * z;
    }
    sum.ln() - mean / sum
}

/// The temperature at which the mean entropy of the predictions is `wanted`, between 0.01 and 2.
///
/// # Panics
/// If there is no prediction.
pub fn matching_temperature(predictions: &[Vec<f32>], wanted: f64) -> f64 {
    let at = |temperature: f64| {
        let sum: f64 = predictions.iter().map(|scores| entropy(scores, temperature)).sum();
        sum / predictions.len() as f64
    };
    let (mut low, mut high) = (0.01, 2.0);
    while high - low > 1e-4 {
        let middle = f64::midpoint(low, high);
        if at(middle) < wanted { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{self, Shape};
    use didact_core::seed::Streams;
    use didact_infer::EngineWeights;
    use didact_kernels::Precision;

    #[test]
    fn entropy_rises_with_the_temperature_and_finds_it_again() {
        assert!((entropy(&[1.0, 1.0, 1.0, 1.0], 1.0) - 4.0_f64.ln()).abs() < 1e-9);
        assert!(entropy(&[100.0, 0.0, f32::NEG_INFINITY], 1.0).abs() < 1e-9, "no NaN from what is impossible");
        let predictions = vec![vec![0.3, -1.0, 2.0], vec![1.5, 0.0, 0.2]];
        let wanted = predictions.iter().map(|scores| entropy(scores, 0.59)).sum::<f64>() / 2.0;
        assert!((matching_temperature(&predictions, wanted) - 0.59).abs() < 1e-3);
    }

    #[test]
    fn predictions_are_the_models_and_in_their_places() {
        let shape = Shape { vocab_size: 16, hidden_size: 8, layers: 1, heads: 2, ffn: 16, context: 16 };
        let decoder = shape.decoder(Streams::new(1)).expect("fits together");
        let engine = Engine::new(EngineWeights::from_decoder(&decoder), Precision::F32);
        // More than a batch, of different lengths.
        let texts: Vec<Vec<u32>> = (0..20).map(|i| (0..2 + i % 5).map(|j| (i + 3 * j) % 16).collect()).collect();
        let mut seen = Vec::new();
        each_prediction(&engine, &texts, |text, token, scores| seen.push((text, token, scores.to_vec())));
        let expected: Vec<(usize, usize)> =
            texts.iter().enumerate().flat_map(|(i, ids)| (0..ids.len() - 1).map(move |j| (i, j))).collect();
        assert_eq!(seen.iter().map(|(i, j, _)| (*i, *j)).collect::<Vec<_>>(), expected);
        let mut alone = Vec::new();
        each_prediction(&engine, &texts[19..], |_, _, scores| alone.push(scores.to_vec()));
        let of_last: Vec<Vec<f32>> =
            seen.iter().filter(|(i, ..)| *i == 19).map(|(.., scores)| scores.clone()).collect();
        assert_eq!(of_last, alone);
        let generator = lab::generator(EngineWeights::from_decoder(&decoder), None).expect("fits together");
        let pairs: Vec<(Prompt, Prompt)> =
            texts.iter().map(|ids| (Prompt::Ids(ids[..1].to_vec()), Prompt::Ids(ids[1..].to_vec()))).collect();
        let mut sum = 0.0;
        let mut add = |_, scored: Result<didact_core::generate::TokenLogProbs, _>| {
            sum -= scored.expect("fits").log_probs.iter().map(|&p| f64::from(p)).sum::<f64>();
        };
        generator.score(&pairs, &mut add, &Cancel::new()).expect("scores");
        let sureness = Sureness::of(&engine, &texts);
        assert!((sureness.nll - sum / expected.len() as f64).abs() < 1e-5, "as scoring has it");
        assert!(sureness.entropy > 0.0 && sureness.entropy <= 16.0_f64.ln() + 1e-9);
    }

    #[test]
    fn diversity_counts_by_hand() {
        let long: Vec<u32> = (0..12).collect();
        let found = Diversity::of(&[vec![1, 2, 1, 2], long.clone()], &[long]);
        assert!((found.ttr - 0.75).abs() < 1e-12, "1 2 1 2, and twelve different");
        assert!((found.rep2 - (1.0 / 3.0) / 2.0).abs() < 1e-12, "12 21 12");
        assert_eq!((found.overlap_max, found.copied, found.tokens), (12.0, 0.5, 8.0));
        assert!((found.overlap - 7.0).abs() < 1e-12, "1 2, and everything");
        assert!((found.dataset_bleu_max - 100.0).abs() < 1e-9);
    }
}
