//! Against plain references: the whole vocabulary sorted, probabilities in f64.

use super::*;
use didact_core::generate::Constraint;
use proptest::prelude::*;

fn sampler(sampling: &Sampling) -> Sampler {
    check(sampling).expect("the settings are fine");
    Sampler::new(sampling, &[], None, None)
}

fn drawn(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::default() }
}

fn choose(sampler: &mut Sampler, scores: &[f32], answer: &[u32]) -> u32 {
    sampler.choose(scores, &[], answer).expect("finite scores").id
}

/// What is left of the scores and how likely each token is then: everything sorted, nothing clever.
fn reference(sampling: &Sampling, scores: &[f32]) -> Vec<f64> {
    let scaled: Vec<f64> = scores.iter().map(|&s| f64::from(s) / f64::from(sampling.temperature)).collect();
    let largest = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = scaled.iter().map(|s| (s - largest).exp()).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).expect("numbers").then(a.cmp(&b)));
    for &id in order.iter().skip(sampling.top_k.map_or(usize::MAX, |k| k as usize)) {
        weights[id] = 0.0;
    }
    if let Some(p) = sampling.top_p {
        let total: f64 = weights.iter().sum();
        let mut before = 0.0;
        for &id in &order {
            let weight = weights[id];
            if before >= f64::from(p) * total {
                weights[id] = 0.0;
            }
            before += weight;
        }
    }
    if let Some(p) = sampling.min_p {
        weights.iter_mut().filter(|w| **w < f64::from(p)).for_each(|w| *w = 0.0);
    }
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

/// Whether a cut-off falls so near to a token's border that rounding decides which side it is on.
fn is_borderline(sampling: &Sampling, scores: &[f32]) -> bool {
    let without = |sampling: Sampling| reference(&sampling, scores);
    let near = |a: f64, b: f32| (a - f64::from(b)).abs() < 1e-5;
    let top_p = sampling.top_p.is_some_and(|p| {
        let mut left = without(Sampling { top_p: None, min_p: None, ..sampling.clone() });
        left.sort_by(|a, b| b.total_cmp(a));
        let mut sum = 0.0;
        left.iter().any(|share| {
            sum += share;
            near(sum, p)
        })
    });
    let min_p = sampling.min_p.is_some_and(|p| {
        let left = without(Sampling { top_k: None, top_p: None, min_p: None, ..sampling.clone() });
        let largest = left.iter().copied().fold(0.0, f64::max);
        left.iter().any(|share| near(share / largest, p))
    });
    top_p || min_p
}

/// Few different values, so that there are ties; many, so that blocks are filled.
fn scores() -> impl Strategy<Value = Vec<f32>> {
    let few = prop::collection::vec((-4i8..4).prop_map(|x| f32::from(x) / 2.0), 1..80);
    let many = prop::collection::vec(-6.0f32..6.0, 1000..3000);
    prop_oneof![3 => few, 1 => many]
}

fn settings() -> impl Strategy<Value = Sampling> {
    let top_k = prop::option::of(prop_oneof![1u32..10, 1u32..4000]);
    let (top_p, min_p) = (prop::option::of(0.01f32..=1.0), prop::option::of(0.0f32..=1.0));
    (0.05f32..3.0, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
        ..Sampling::default()
    })
}

proptest! {
    #[test]
    fn the_largest_is_the_first_of_the_largest(scores in scores()) {
        let mut want = 0;
        for (id, &score) in scores.iter().enumerate() {
            if score > scores[want] {
                want = id;
            }
        }
        prop_assert_eq!(largest(&scores), Some(want));
    }

    #[test]
    fn a_number_that_is_none_is_found_wherever_it_is(scores in scores(), at: prop::sample::Index) {
        let at = at.index(scores.len());
        for (bad, is_bad) in [(f32::NAN, true), (f32::INFINITY, true), (f32::NEG_INFINITY, scores.len() == 1)] {
            let mut scores = scores.clone();
            scores[at] = bad;
            prop_assert_eq!(largest(&scores).is_none(), is_bad);
        }
    }

    #[test]
    fn the_most_likely_are_the_first_of_all_sorted(scores in scores(), count in prop_oneof![0usize..70, 0usize..4000]) {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).expect("numbers").then(a.cmp(&b)));
        order.truncate(count);
        prop_assert_eq!(filter::most_likely(&scores, count), order);
    }

    #[test]
    fn draws_have_the_reference_s_probabilities(scores in scores(), sampling in settings()) {
        prop_assume!(!is_borderline(&sampling, &scores));
        // Each token owns one stretch of the shares (of its block's stretch): a token with probability p is met by
        // N·p of N evenly spaced shares, give or take one, and a little for rounding.
        const N: usize = 400;
        let best = largest(&scores).expect("finite");
        let mut counts = vec![0usize; scores.len()];
        for i in 0..N {
            counts[filter::draw(&sampling, &scores, best, (i as f64 + 0.5) / N as f64)] += 1;
        }
        for (id, (&count, want)) in counts.iter().zip(reference(&sampling, &scores)).enumerate() {
            prop_assert!((count as f64 - want * N as f64).abs() <= 1.01, "token {}: {} for {}", id, count, want * N as f64);
            prop_assert!(want > 0.0 || count == 0, "token {} was left out", id);
        }
    }

    #[test]
    fn changed_scores_follow_the_definitions(
        scores in prop::collection::vec(-5.0f32..5.0, 20),
        prompt in prop::collection::vec(0u32..20, 0..8),
        answer in prop::collection::vec(0u32..20, 0..12),
        (repetition, presence, frequency) in (0.5f32..2.0, -2.0f32..2.0, -2.0f32..2.0),
        bias in prop::collection::btree_map(0u32..20, -50.0f32..50.0, 0..4),
    ) {
        let sampling = Sampling {
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            logit_bias: bias.clone(),
            ..Sampling::default()
        };
        let want: Vec<f32> = (0u32..20).map(|id| {
            let mut score = scores[id as usize] + bias.get(&id).copied().unwrap_or(0.0);
            // transformers' RepetitionPenaltyLogitsProcessor.
            if prompt.contains(&id) || answer.contains(&id) {
                score = if score < 0.0 { score * repetition } else { score / repetition };
            }
            // mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, of OpenAI's documentation.
            let count = answer.iter().filter(|&&t| t == id).count();
            score - count as f32 * frequency - f32::from(u8::from(count > 0)) * presence
        }).collect();
        // Step by step, as generation does it, and all at once.
        let mut step_by_step = sampler(&sampling);
        let mut row = Vec::new();
        for length in 0..=answer.len() {
            step_by_step.change(&mut row, &scores, &prompt, &answer[..length]).expect("no constraint");
        }
        let mut at_once = Vec::new();
        sampler(&sampling).change(&mut at_once, &scores, &prompt, &answer).expect("no constraint");
        prop_assert_eq!(&row, &at_once);
        for (got, want) in row.iter().zip(&want) {
            // A few roundings of numbers up to some tens.
            prop_assert!((got - want).abs() < 1e-4, "{:?} for {:?}", row, want);
        }
    }
}

/// Shares of 20 000 draws.
fn shares(sampling: &Sampling, scores: &[f32]) -> Vec<f64> {
    let mut counts = vec![0u32; scores.len()];
    let mut sampler = sampler(sampling);
    let answer = vec![0; 20_000];
    for i in 0..20_000 {
        counts[choose(&mut sampler, scores, &answer[..i]) as usize] += 1;
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
fn draws_follow_the_probabilities() {
    let scores = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
    close(&shares(&drawn(3), &scores), &[0.1, 0.2, 0.3, 0.4]);
    // At temperature 1/2 probabilities are squared.
    close(&shares(&Sampling { temperature: 0.5, ..drawn(3) }, &scores), &[1.0, 4.0, 9.0, 16.0].map(|x| x / 30.0));
    let top_k = |k, p| Sampling { top_k: Some(k), top_p: p, ..drawn(3) };
    close(&shares(&top_k(2, None), &scores), &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
    // Top-p counts shares of what top-k left: 4/7 alone is enough.
    close(&shares(&top_k(2, Some(0.5)), &scores), &[0.0, 0.0, 0.0, 1.0]);
    close(&shares(&Sampling { top_p: Some(0.75), ..drawn(3) }, &scores), &[0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]);
    close(&shares(&Sampling { min_p: Some(0.6), ..drawn(3) }, &scores), &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
}

#[test]
fn a_wide_nucleus_is_found_too() {
    // 1000 equally likely tokens of which top-p 0.5 keeps the first 500.
    let mut sampler = sampler(&Sampling { top_p: Some(0.5), ..drawn(1) });
    let answer = [0; 2000];
    let ids: Vec<u32> = (0..2000).map(|i| choose(&mut sampler, &[1.5; 1000], &answer[..i])).collect();
    assert!(ids.iter().all(|&id| id < 500), "{:?}", ids.iter().max());
    assert!(ids.iter().any(|&id| id > 400));
}

#[test]
fn extreme_temperatures_are_harmless() {
    for temperature in [1e-42, 1e-30, 1e-6, 1e30] {
        let mut sampler = sampler(&Sampling { temperature, ..drawn(1) });
        let id = choose(&mut sampler, &[1.0, 2.0, f32::NEG_INFINITY, 1.999], &[]);
        assert!(if temperature < 1.0 { id == 1 } else { id != 2 }, "{temperature}: {id}");
    }
}

#[test]
fn draws_differ_by_seed_and_answer_and_repeat_otherwise() {
    let ids = |seed, answer| -> Vec<u32> {
        let mut sampler = sampler(&drawn(seed)).for_answer(answer);
        (0..20).map(|i| choose(&mut sampler, &[0.0; 100], &vec![0; i])).collect()
    };
    assert_eq!(ids(1, 0), ids(1, 0));
    assert_ne!(ids(1, 0), ids(1, 1));
    assert_ne!(ids(1, 0), ids(2, 0));
    // `prepare` gives the first answer's.
    let mut first = sampler(&drawn(1));
    assert_eq!(ids(1, 0), (0..20).map(|i| choose(&mut first, &[0.0; 100], &vec![0; i])).collect::<Vec<_>>());
}

#[test]
fn log_probabilities_are_the_model_s_own() {
    let scores = [0.0f32, 2.0, 1.0, 2.0];
    let total = scores.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
    let of = |id: usize| (f64::from(scores[id]) - total) as f32;
    let bias = BTreeMap::from([(0, 50.0)]);
    let sampling = Sampling { temperature: 0.3, logit_bias: bias, top_log_probs: 3, ..drawn(0) };
    let choice = sampler(&sampling).choose(&scores, &[], &[]).expect("finite scores");
    assert_eq!(choice.id, 0);
    let close = |a: f32, b: f32| (a - b).abs() < 1e-6;
    assert!(choice.log_prob.is_some_and(|p| close(p, of(0))), "{choice:?}");
    assert_eq!(choice.top.iter().map(|t| t.id).collect::<Vec<_>>(), [1, 3, 2]);
    assert!(choice.top.iter().all(|t| close(t.log_prob, of(t.id as usize))), "{choice:?}");
    let without = Sampling { log_probs: false, top_log_probs: 0, ..sampling };
    let choice = sampler(&without).choose(&scores, &[], &[]).expect("finite scores");
    assert_eq!((choice.id, choice.log_prob, choice.top), (0, None, vec![]));
}

#[test]
fn answers_end_at_end_of_turn_and_stop_tokens_but_not_too_early() {
    let scores = [0.0f32, 1.0, 3.0, 2.0];
    let choose = |sampling: &Sampling, answer: &[u32]| {
        let choice = Sampler::new(sampling, &[2], None, None).choose(&scores, &[], answer).expect("finite scores");
        (choice.id, choice.end)
    };
    let greedy = Sampling::default();
    assert_eq!(choose(&greedy, &[]), (2, Some(End::Before)));
    assert_eq!(choose(&Sampling { ignore_eos: true, ..greedy.clone() }, &[]), (2, None));
    let late = Sampling { min_tokens: 2, ..greedy.clone() };
    assert_eq!(choose(&late, &[0]), (3, None));
    assert_eq!(choose(&late, &[0, 0]), (2, Some(End::Before)));
    let stop = Sampling { stop_token_ids: vec![3], ..late };
    assert_eq!(choose(&stop, &[0]), (1, None));
    assert_eq!(choose(&Sampling { ignore_eos: true, ..stop }, &[0]), (2, None));
    let only_stop = Sampling { stop_token_ids: vec![2], ignore_eos: true, ..greedy };
    assert_eq!(choose(&only_stop, &[]), (2, Some(End::Before)));
}

#[test]
fn scores_that_are_not_finite_are_refused() {
    for sampling in [Sampling::default(), drawn(1), Sampling { log_probs: false, ..Sampling::default() }] {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = sampler(&sampling).choose(&[1.0, bad], &[0; 3], &[0; 2]).expect_err("not finite");
            assert_eq!(error, RequestError::NotFinite { tokens: 5 });
        }
        // A token that is ruled out is no damage.
        assert_eq!(choose(&mut sampler(&sampling), &[1.0, f32::NEG_INFINITY], &[]), 0);
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let text = |s: Sampling| check(&s).expect_err("out of range").to_string();
    let d = Sampling::default;
    assert_eq!(text(Sampling { temperature: -1.0, ..d() }), "`temperature` is -1: expected a number from 0");
    assert_eq!(text(Sampling { temperature: f32::NAN, ..d() }), "`temperature` is NaN: expected a number from 0");
    let several = text(Sampling { n: 3, ..d() });
    assert_eq!(
        several,
        "`n` is 3: expected 1 at temperature 0, where all answers would be the same; give a temperature"
    );
    for (name, value, sampling) in [
        ("top_k", "0", Sampling { top_k: Some(0), ..d() }),
        ("top_p", "0", Sampling { top_p: Some(0.0), ..d() }),
        ("top_p", "NaN", Sampling { top_p: Some(f32::NAN), ..d() }),
        ("min_p", "1.5", Sampling { min_p: Some(1.5), ..d() }),
        ("repetition_penalty", "0", Sampling { repetition_penalty: 0.0, ..d() }),
        ("presence_penalty", "3", Sampling { presence_penalty: 3.0, ..d() }),
        ("frequency_penalty", "NaN", Sampling { frequency_penalty: f32::NAN, ..d() }),
        ("logit_bias", "inf for token 7", Sampling { logit_bias: BTreeMap::from([(7, f32::INFINITY)]), ..d() }),
        ("n", "0", Sampling { n: 0, ..d() }),
        ("max_tokens", "0", Sampling { max_tokens: 0, ..d() }),
        ("min_tokens", "200", Sampling { min_tokens: 200, ..d() }),
        ("stop", "\"\"", Sampling { stop: vec![String::new()], ..d() }),
        ("ignore_eos", "true", Sampling { ignore_eos: true, constraint: Some(Constraint::Json), ..d() }),
    ] {
        assert!(text(sampling).starts_with(&format!("`{name}` is {value}: expected")), "{name}");
    }
    assert_eq!(check(&d()), Ok(()));
    let text = |s: Sampling| check_tokens(&s, 50).expect_err("no such token").to_string();
    let known = "expected ids below 50, the model's vocabulary";
    let stop = Sampling { stop_token_ids: vec![3, 50], ..d() };
    assert_eq!(text(stop), format!("`stop_token_ids` is token 50: {known}"));
    let bias = Sampling { logit_bias: BTreeMap::from([(3, 1.0), (51, 1.0)]), ..d() };
    assert_eq!(text(bias), format!("`logit_bias` is token 51: {known}"));
    assert!(text(Sampling { top_log_probs: 51, ..d() }).starts_with("`top_log_probs` is 51"));
}

#[test]
fn a_rule_comes_before_penalties_and_is_dropped_where_it_leaves_nothing() {
    use crate::rule::Citations;
    let rule: Arc<dyn ScoreRule> = Arc::new(Citations::new(1, [&[0u32, 1][..], &[0, 2]]));
    let with_rule = |sampling: &Sampling| Sampler::new(sampling, &[], None, Some(Arc::clone(&rule)));
    let greedy = Sampling::default();
    assert_eq!(choose(&mut with_rule(&greedy), &[0.0, 3.0, 2.0, 1.0], &[0]), 3, "1 and 2 would be citations");
    assert_eq!(choose(&mut with_rule(&greedy), &[0.0, 3.0, 2.0, 1.0], &[3]), 1);
    let nothing_else = [f32::NEG_INFINITY, 3.0, 2.0, f32::NEG_INFINITY];
    assert_eq!(choose(&mut with_rule(&greedy), &nothing_else, &[0]), 1, "or else there would be nothing");
    let penalised = Sampling { repetition_penalty: 100.0, ..Sampling::default() };
    assert_eq!(choose(&mut with_rule(&penalised), &[1.0, 3.0, 2.0, 0.5], &[3, 0]), 0, "the penalty frees no citation");
}
