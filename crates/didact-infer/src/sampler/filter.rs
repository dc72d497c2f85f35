//! Which of many scores: the largest ones, and one drawn by their probabilities.

use didact_core::generate::Sampling;
use didact_kernels::softmax;
use std::cmp::Ordering;

/// Scores that are scanned at a time.
const BLOCK: usize = 1024;

/// Scores of which only the largest is compared at first when many are to be selected.
const GROUP: usize = 32;

/// Index of the largest score, the first of equal ones; `None` if a score is NaN or +∞, or none is above -∞.
pub(crate) fn largest(scores: &[f32]) -> Option<usize> {
    let mut best = (f32::NEG_INFINITY, 0);
    for (number, block) in scores.chunks(BLOCK).enumerate() {
        let largest = largest_value(block)?;
        if largest > best.0 {
            let at = block.iter().position(|&x| x == largest).expect("the largest is one of them");
            best = (largest, number * BLOCK + at);
        }
    }
    (best.0.is_finite()).then_some(best.1)
}

/// The largest score, -∞ for none; `None` if one is NaN.
fn largest_value(scores: &[f32]) -> Option<f32> {
    // Written for the compiler to make vectors of.
    const LANES: usize = 16;
    let (lines, rest) = scores.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut is_nan = [0u32; LANES];
    for line in lines {
        for i in 0..LANES {
            largest[i] = if line[i] > largest[i] { line[i] } else { largest[i] };
            is_nan[i] |= u32::from(line[i].is_nan());
        }
    }
    let all = largest.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max);
    let has_nan = is_nan.contains(&1) || rest.iter().any(|x| x.is_nan());
    (!has_nan).then_some(all)
}

/// Larger first. There are no NaNs.
fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

/// Larger scores first, smaller ids first among equals.
fn by_score(scores: &[f32]) -> impl Fn(&usize, &usize) -> Ordering + Copy + '_ {
    |&a, &b| descending(scores[a], scores[b]).then(a.cmp(&b))
}

/// The ids of the `count` largest scores, largest first, smaller ids first among equals. There are no NaNs.
pub(crate) fn most_likely(scores: &[f32], count: usize) -> Vec<usize> {
    let mut ids = candidates(scores, count);
    if count < ids.len() {
        ids.select_nth_unstable_by(count, by_score(scores));
        ids.truncate(count);
    }
    ids.sort_unstable_by(by_score(scores));
    ids
}

/// Ids among which the `count` largest scores are, hopefully few.
fn candidates(scores: &[f32], count: usize) -> Vec<usize> {
    let groups = scores.len().div_ceil(GROUP);
    if count == 0 || count > groups / 2 {
        return (0..scores.len()).collect();
    }
    // The `count`-th largest of the groups' largest scores: at least `count` scores are not below it.
    let maxima: Vec<f32> = scores.chunks(GROUP).map(|group| largest_value(group).unwrap_or(f32::NAN)).collect();
    let mut sorted = maxima.clone();
    let floor = *sorted.select_nth_unstable_by(count - 1, |&a, &b| descending(a, b)).1;
    let mut ids = Vec::with_capacity(2 * count);
    for (group, _) in maxima.iter().enumerate().filter(|(_, largest)| **largest >= floor) {
        let begin = group * GROUP;
        let end = scores.len().min(begin + GROUP);
        ids.extend((begin..end).filter(|&id| scores[id] >= floor));
    }
    ids
}

/// The token at share `u` of what temperature, top-k, top-p and min-p leave of the scores, the largest of which is
/// number `best`.
pub(super) fn draw(sampling: &Sampling, scores: &[f32], best: usize, u: f64) -> usize {
    let largest = f64::from(scores[best]);
    let temperature = f64::from(sampling.temperature);
    // The likeliest token weighs 1.
    let weight = |id: usize| ((f64::from(scores[id]) - largest) / temperature).exp();
    let weighted = |ids: &[usize]| -> Vec<(usize, f64)> { ids.iter().map(|&id| (id, weight(id))).collect() };
    let top_k = sampling.top_k.map(|k| k as usize).filter(|&k| k < scores.len());
    let top_p = sampling.top_p.map(f64::from).filter(|&p| p < 1.0);
    let min_p = sampling.min_p.map(f64::from).filter(|&p| p > 0.0);

    let mut kept = match (top_k, top_p) {
        (None, None) => match min_p {
            None => return draw_from_all(scores, best, temperature, u),
            Some(p) => {
                // A little lower than exact: what is left is weighed below.
                let floor = (largest + temperature * p.ln() - 1e-4 * (1.0 + largest.abs())) as f32;
                let ids: Vec<usize> = (0..scores.len()).filter(|&id| scores[id] >= floor).collect();
                weighted(&ids)
            }
        },
        (Some(k), None) => weighted(&most_likely(scores, k)),
        (Some(k), Some(p)) => {
            let mut kept = weighted(&most_likely(scores, k));
            let total: f64 = kept.iter().map(|(_, w)| w).sum();
            kept.truncate(nucleus(&kept, p * total).unwrap_or(kept.len()));
            kept
        }
        (None, Some(p)) => {
            let total: f64 = blocks(scores, best, temperature).iter().sum();
            // The nucleus is usually small: look for it among ever more of the most likely tokens.
            let mut looked_at = scores.len().min(64);
            loop {
                let mut kept = weighted(&most_likely(scores, looked_at));
                match nucleus(&kept, p * total) {
                    Some(size) => kept.truncate(size),
                    None if looked_at < scores.len() => {
                        looked_at = scores.len().min(8 * looked_at);
                        continue;
                    }
                    None => {}
                }
                break kept;
            }
        }
    };
    if let Some(p) = min_p {
        kept.retain(|(_, weight)| *weight >= p);
    }
    pick(u, &kept)
}

/// How many of these tokens, likeliest first, weigh at least `mass`.
fn nucleus(tokens: &[(usize, f64)], mass: f64) -> Option<usize> {
    let mut sum = 0.0;
    let last = tokens.iter().position(|(_, weight)| {
        sum += weight;
        sum >= mass
    })?;
    Some(last + 1)
}

/// What each block of scores weighs together, if the largest one weighs 1.
fn blocks(scores: &[f32], best: usize, temperature: f64) -> Vec<f64> {
    // Bounded, so that the largest one times it is 0.
    let (largest, scale) = (scores[best], (1.0 / temperature as f32).min(f32::MAX));
    let mut scaled = [0.0f32; BLOCK];
    let of_block = |block: &[f32]| {
        let scaled = &mut scaled[..block.len()];
        for (scaled, score) in scaled.iter_mut().zip(block) {
            *scaled = (score - largest) * scale;
        }
        softmax::log_sum_exp(scaled).exp()
    };
    scores.chunks(BLOCK).map(of_block).collect()
}

/// One of all tokens: first the block, then the token in it.
fn draw_from_all(scores: &[f32], best: usize, temperature: f64, u: f64) -> usize {
    let blocks: Vec<(usize, f64)> = blocks(scores, best, temperature).into_iter().enumerate().collect();
    let total: f64 = blocks.iter().map(|(_, weight)| weight).sum();
    let block = pick(u, &blocks);
    let before: f64 = blocks[..block].iter().map(|(_, weight)| weight).sum();
    let within = ((u * total - before) / blocks[block].1).clamp(0.0, 1.0);
    let begin = block * BLOCK;
    let largest = f64::from(scores[best]);
    let weight = |score: f32| ((f64::from(score) - largest) / temperature).exp();
    let end = scores.len().min(begin + BLOCK);
    let tokens: Vec<(usize, f64)> = (begin..end).map(|id| (id, weight(scores[id]))).collect();
    pick(within, &tokens)
}

/// The item at share `u` of the total weight.
fn pick(u: f64, items: &[(usize, f64)]) -> usize {
    let total: f64 = items.iter().map(|(_, w)| w).sum();
    let mut left = u * total;
    let mut last = items.first().map_or(0, |(item, _)| *item);
    for &(item, weight) in items {
        if weight > 0.0 {
            last = item;
            if left < weight {
                return item;
            }
            left -= weight;
        }
    }
    last
}
