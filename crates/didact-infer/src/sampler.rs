//! Choosing the next token from the model's scores.

use didact_core::generate::{RequestError, Sampling};
use didact_core::seed::Streams;
use didact_kernels::{random, softmax};
use std::cmp::Ordering;

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its id.
    pub id: u32,
    /// Its log-probability in nats, under the model before temperature and cut-offs.
    pub log_prob: f32,
}

/// How one answer of a request chooses its tokens. What it draws is a pure function of the request's seed, the answer's
/// number and the token's number.
#[derive(Debug, Clone)]
pub struct Sampler {
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f64>,
    key: u64,
}

/// Checks a request's settings.
///
/// # Errors
/// Naming the setting that is out of range.
pub fn check(sampling: &Sampling) -> Result<(), RequestError> {
    let refuse = |name: &str, value: String, expected: &str| {
        Err(RequestError::Setting { name: name.into(), value, expected: expected.into() })
    };
    let t = sampling.temperature;
    if !(t.is_finite() && t >= 0.0) {
        return refuse("temperature", t.to_string(), "expected a number from 0");
    }
    if let Some(p) = sampling.top_p.filter(|&p| !(p > 0.0 && p <= 1.0)) {
        return refuse("top_p", p.to_string(), "expected a number above 0 and at most 1");
    }
    if sampling.top_k == Some(0) {
        return refuse("top_k", "0".into(), "expected a count from 1; leave it out to keep all tokens");
    }
    if sampling.max_tokens == 0 {
        return refuse("max_tokens", "0".into(), "expected a count from 1");
    }
    if sampling.n == 0 {
        return refuse("n", "0".into(), "expected a count from 1");
    }
    if sampling.stop.iter().any(String::is_empty) {
        return refuse("stop", "\"\"".into(), "expected strings of at least one character");
    }
    Ok(())
}

impl Sampler {
    /// The sampler of answer number `answer` of a request with these settings.
    pub fn new(sampling: &Sampling, answer: usize) -> Self {
        Self {
            temperature: sampling.temperature,
            top_k: sampling.top_k.map(|k| k as usize),
            top_p: sampling.top_p.filter(|&p| p < 1.0).map(f64::from),
            key: Streams::new(sampling.seed).key("sample", &[answer as u64]),
        }
    }

    /// Chooses token number `index` of the answer. `None` if the scores are not finite.
    ///
    /// Temperature comes first, then top-k, then top-p over what top-k left. Between equal scores the smaller id wins.
    pub fn choose(&self, scores: &[f32], index: usize) -> Option<Choice> {
        let total = softmax::log_sum_exp(scores);
        if !total.is_finite() {
            return None;
        }
        let id = if self.temperature == 0.0 { largest(scores)? } else { self.draw(scores, index) };
        Some(Choice { id: id as u32, log_prob: (f64::from(scores[id]) - total) as f32 })
    }

    fn draw(&self, scores: &[f32], index: usize) -> usize {
        let best = f64::from(scores[largest(scores).expect("finite scores have a largest")]);
        let temperature = f64::from(self.temperature);
        let weight = |id: usize| ((f64::from(scores[id]) - best) / temperature).exp();
        let u = random::uniform(self.key, index as u64);
        if self.top_k.is_none() && self.top_p.is_none() {
            return pick(u, (0..scores.len()).map(|id| (id, weight(id))));
        }
        let kept = self.top_k.unwrap_or(scores.len()).min(scores.len());
        let Some(top_p) = self.top_p else {
            return pick(u, most_likely(scores, kept).into_iter().map(|id| (id, weight(id))));
        };
        // The nucleus is usually small: look for it among ever more of the most likely tokens.
        let total: f64 = if kept == scores.len() {
            (0..scores.len()).map(weight).sum()
        } else {
            most_likely(scores, kept).into_iter().map(weight).sum()
        };
        let mut looked_at = kept.min(64);
        loop {
            let ids = most_likely(scores, looked_at);
            let mut mass = 0.0;
            let end = ids.iter().position(|&id| {
                mass += weight(id);
                mass >= top_p * total
            });
            match end {
                Some(end) => return pick(u, ids[..=end].iter().map(|&id| (id, weight(id)))),
                None if looked_at == kept => return pick(u, ids.iter().map(|&id| (id, weight(id)))),
                None => looked_at = kept.min(8 * looked_at),
            }
        }
    }
}

/// Index of the largest score, the first of equal ones; `None` if there is none above -∞.
pub(crate) fn largest(scores: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (id, &score) in scores.iter().enumerate() {
        if score > best.map_or(f32::NEG_INFINITY, |b| scores[b]) {
            best = Some(id);
        }
    }
    best
}

/// The ids of the `count` largest scores, largest first, smaller ids first among equals.
fn most_likely(scores: &[f32], count: usize) -> Vec<usize> {
    let order = |&a: &usize, &b: &usize| -> Ordering { scores[b].total_cmp(&scores[a]).then(a.cmp(&b)) };
    let mut ids: Vec<usize> = (0..scores.len()).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// The item at share `u` of the total weight.
fn pick(u: f64, items: impl Iterator<Item = (usize, f64)> + Clone) -> usize {
    let total: f64 = items.clone().map(|(_, w)| w).sum();
    let mut left = u * total;
    let mut last = 0;
    for (id, weight) in items {
        if weight > 0.0 {
            last = id;
            if left < weight {
                return id;
            }
            left -= weight;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_k: Option<u32>, top_p: Option<f32>, seed: u64) -> Sampling {
        Sampling { temperature, top_k, top_p, seed, ..Sampling::default() }
    }

    /// Shares of 20 000 draws.
    fn shares(sampling: &Sampling, scores: &[f32]) -> Vec<f64> {
        let sampler = Sampler::new(sampling, 0);
        let mut counts = vec![0u32; scores.len()];
        for i in 0..20_000 {
            counts[sampler.choose(scores, i).expect("finite scores").id as usize] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / 20_000.0).collect()
    }

    fn close(got: &[f64], want: &[f64]) {
        for (g, w) in got.iter().zip(want) {
            // Four and a half standard deviations of a share.
            assert!((g - w).abs() <= 4.5 * (w * (1.0 - w) / 20_000.0).sqrt(), "{got:?} for {want:?}");
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let sampler = Sampler::new(&sampling(0.0, None, None, 0), 0);
        let choice = sampler.choose(&[0.0, 2.0, 2.0, 1.0], 0).expect("finite scores");
        assert_eq!(choice.id, 1);
        let total: f64 = [0f64, 2.0, 2.0, 1.0].iter().map(|x| x.exp()).sum();
        assert!((f64::from(choice.log_prob) - (2.0 - total.ln())).abs() < 1e-6);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let scores = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        close(&shares(&sampling(1.0, None, None, 3), &scores), &[0.1, 0.2, 0.3, 0.4]);
        // At temperature 1/2 probabilities are squared.
        close(&shares(&sampling(0.5, None, None, 3), &scores), &[1.0, 4.0, 9.0, 16.0].map(|x| x / 30.0));
    }

    #[test]
    fn cut_offs_keep_the_most_likely_tokens() {
        let scores = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        close(&shares(&sampling(1.0, Some(2), None, 3), &scores), &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        close(&shares(&sampling(1.0, None, Some(0.65), 3), &scores), &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        close(&shares(&sampling(1.0, None, Some(0.75), 3), &scores), &[0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]);
        // Top-p counts shares of what top-k left: 4/7 alone is enough.
        close(&shares(&sampling(1.0, Some(2), Some(0.5), 3), &scores), &[0.0, 0.0, 0.0, 1.0]);
        close(&shares(&sampling(1.0, Some(99), Some(1.0), 3), &scores), &[0.1, 0.2, 0.3, 0.4]);
    }

    #[test]
    fn a_wide_nucleus_is_found_too() {
        // 1000 equally likely tokens of which top-p 0.5 keeps the first 500.
        let sampler = Sampler::new(&sampling(1.0, None, Some(0.5), 1), 0);
        let ids: Vec<u32> = (0..2000).map(|i| sampler.choose(&[1.5; 1000], i).expect("finite scores").id).collect();
        assert!(ids.iter().all(|&id| id < 500), "{:?}", ids.iter().max());
        assert!(ids.iter().any(|&id| id > 400));
    }

    #[test]
    fn draws_differ_by_seed_and_answer_and_repeat_otherwise() {
        let ids = |seed, answer| -> Vec<u32> {
            let sampler = Sampler::new(&sampling(1.0, None, None, seed), answer);
            (0..20).map(|i| sampler.choose(&[0.0; 100], i).expect("finite scores").id).collect()
        };
        assert_eq!(ids(1, 0), ids(1, 0));
        assert_ne!(ids(1, 0), ids(1, 1));
        assert_ne!(ids(1, 0), ids(2, 0));
    }

    #[test]
    fn scores_that_are_not_finite_are_refused() {
        let sampler = Sampler::new(&sampling(0.0, None, None, 0), 0);
        assert_eq!(sampler.choose(&[1.0, f32::NAN], 0), None);
        assert_eq!(sampler.choose(&[1.0, f32::INFINITY], 0), None);
        // A token that is ruled out is no damage.
        assert_eq!(sampler.choose(&[1.0, f32::NEG_INFINITY], 0).map(|c| c.id), Some(0));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let text = |s: Sampling| check(&s).expect_err("out of range").to_string();
        assert_eq!(text(sampling(-1.0, None, None, 0)), "`temperature` is -1: expected a number from 0");
        assert_eq!(text(sampling(f32::NAN, None, None, 0)), "`temperature` is NaN: expected a number from 0");
        assert!(text(sampling(1.0, Some(0), None, 0)).starts_with("`top_k` is 0"));
        assert!(text(sampling(1.0, None, Some(0.0), 0)).starts_with("`top_p` is 0"));
        assert!(text(Sampling { n: 0, ..Sampling::default() }).starts_with("`n` is 0"));
        assert!(text(Sampling { max_tokens: 0, ..Sampling::default() }).starts_with("`max_tokens` is 0"));
        assert!(text(Sampling { stop: vec![String::new()], ..Sampling::default() }).starts_with("`stop` is \"\""));
        assert_eq!(check(&Sampling::default()), Ok(()));
    }
}
