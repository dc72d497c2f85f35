//! Next-token loss over weighted tokens.

use burn::tensor::Tensor;

use crate::decoder::{Decoder, DecoderInput, ForwardMode, Order};
use crate::ops::{gather_rows, linear, linear_cross_entropy};

/// A batch's loss as a sum, so that micro-batches of uneven weight add up: divide by the weight of all of them.
#[derive(Debug)]
pub struct LossSum {
    /// `Σ weight · nll` in nats, `[1]`; gradients flow from it in training mode.
    pub loss_sum: Tensor<1>,
    /// `nll` of the tokens whose weight is not 0, in order, detached; empty if there are none.
    pub per_token: Vec<f32>,
    /// Where those tokens are in the batch, `0..B·T`.
    pub at: Vec<u32>,
    /// `Σ weight`, added in order.
    pub total_weight: f64,
}

impl LossSum {
    /// `Σ weight · nll` as a number.
    pub fn value(&self) -> f64 {
        f64::from(self.loss_sum.clone().into_scalar::<f32>())
    }
}

/// The weighted sum of `-log p(targets[i] | tokens up to i)` over a batch. Nothing is
/// computed for padding and for what follows a document's last weighted token; logits only where the weight is not 0,
/// some positions at a time.
///
/// # Shapes
/// - `targets`, `weights`: `[B·T]`; `targets[i]` is what follows `input.ids[i]`, whatever where the weight is 0
///
/// # Panics
/// If a length does not fit, an id or target is outside the vocabulary, or a position outside the context.
pub fn next_token(
    decoder: &Decoder,
    input: &DecoderInput<'_>,
    targets: &[u32],
    weights: &[f32],
    mode: &ForwardMode,
) -> LossSum {
    let tokens = input.rows * input.len;
    assert_eq!([targets.len(), weights.len()], [tokens; 2], "next_token: one target and one weight per token");
    let at: Vec<u32> = (0..tokens as u32).filter(|&i| weights[i as usize] != 0.0).collect();
    let targets: Vec<u32> = at.iter().map(|&i| targets[i as usize]).collect();
    let order = Order::for_weights(input, weights);
    let weights: Vec<f32> = at.iter().map(|&i| weights[i as usize]).collect();
    let total_weight = weights.iter().map(|&w| f64::from(w)).sum();
    let hidden = decoder.hidden_in_order(input, &order, mode);
    if at.is_empty() {
        // Still a function of the parameters, so that a backward pass finds every gradient: they are all 0.
        let loss_sum = hidden.slice([0..1, 0..1]).mul_scalar(0.0).reshape([1]);
        return LossSum { loss_sum, per_token: Vec::new(), at, total_weight };
    }
    let places = order.places();
    let at_places: Vec<u32> = at.iter().map(|&i| places[i as usize]).collect();
    let is_all = at_places.len() == hidden.dims()[0] && at_places.iter().enumerate().all(|(i, &p)| i == p as usize);
    let hidden = if is_all { hidden } else { gather_rows(hidden, &at_places) };
    let head = decoder.head(*mode != ForwardMode::Eval);
    let (loss_sum, per_token) = linear_cross_entropy(hidden, head, &targets, &weights, decoder.precision());
    let per_token = per_token.into_data().try_into_vec::<f32>().expect("losses of f32 logits are f32");
    LossSum { loss_sum, per_token, at, total_weight }
}

/// How a model rates given tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scores {
    /// `-log p` of the tokens whose weight is not 0, in nats, in order.
    pub per_token: Vec<f32>,
    /// Whether each of them is the likeliest one; of equally likely ones the first is.
    pub is_greedy: Vec<bool>,
    /// Where they are in the batch, `0..B·T`.
    pub at: Vec<u32>,
}

/// Logits at a time: 16 MiB of them.
const LOGITS: usize = 1 << 22;

/// The likelihood of each target with a weight, and whether greedy decoding would give it. Without gradients.
///
/// # Shapes
/// As [`next_token`].
///
/// # Panics
/// As [`next_token`].
pub fn scores(decoder: &Decoder, input: &DecoderInput<'_>, targets: &[u32], weights: &[f32]) -> Scores {
    let tokens = input.rows * input.len;
    assert_eq!([targets.len(), weights.len()], [tokens; 2], "scores: one target and one weight per token");
    let at: Vec<u32> = (0..tokens as u32).filter(|&i| weights[i as usize] != 0.0).collect();
    let mut scores = Scores { at, ..Scores::default() };
    if scores.at.is_empty() {
        return scores;
    }
    let order = Order::for_weights(input, weights);
    let hidden = decoder.hidden_in_order(input, &order, &ForwardMode::Eval);
    let places = order.places();
    let vocabulary = decoder.config().vocab_size;
    for chunk in scores.at.chunks((LOGITS / vocabulary).max(1)) {
        let rows: Vec<u32> = chunk.iter().map(|&i| places[i as usize]).collect();
        let logits = linear(gather_rows(hidden.clone(), &rows), decoder.head(false), None, decoder.precision());
        let logits = logits.into_data().try_into_vec::<f32>().expect("logits are f32");
        for (row, &i) in logits.chunks_exact(vocabulary).zip(chunk) {
            let target = targets[i as usize] as usize;
            let mut best = 0;
            for (token, &logit) in row.iter().enumerate() {
                if logit > row[best] {
                    best = token;
                }
            }
            let largest = f64::from(row[best]);
            let total: f64 = row.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
            scores.per_token.push((largest + total.ln() - f64::from(row[target])) as f32);
            scores.is_greedy.push(best == target);
        }
    }
    scores
}
