//! Rules over scores: tokens that may not come next, whatever the model says.
//!
//! A rule belongs to a model ([`LocalModel::with_rule`](crate::LocalModel::with_rule)) and holds for everything that is
//! drawn or chosen greedily from it. Where it would leave nothing, it is dropped for that token.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fmt::Debug;

/// A rule over the scores of the next token.
pub trait ScoreRule: Debug + Send + Sync {
    /// Sets the scores of tokens that may not follow `answer`, which follows `prompt`, to negative infinity.
    fn rule_out(&self, prompt: &[u32], answer: &[u32], scores: &mut [f32]);
}

/// Keeps answers from citing given texts: no `k + 1` tokens of an answer in a row are ever those of a text, unless every
/// token was ruled out.
///
/// # Reference
/// The citation blocking of Carlsson et al., "The Hyperfitting Phenomenon", 2024, with `k` = 5.
#[derive(Debug, Clone)]
pub struct Citations {
    k: usize,
    /// `k` tokens of a text to the tokens that follow them somewhere.
    next: HashMap<Box<[u32]>, Vec<u32>>,
}

impl Citations {
    /// The rule for these texts. With `k` = 0 no token of them may be written.
    pub fn new<'t>(k: usize, texts: impl IntoIterator<Item = &'t [u32]>) -> Self {
        let mut next: HashMap<Box<[u32]>, Vec<u32>> = HashMap::new();
        for window in texts.into_iter().flat_map(|text| text.windows(k + 1)) {
            let (known, following) = window.split_at(k);
            let followers = next.entry(known.into()).or_default();
            if !followers.contains(&following[0]) {
                followers.push(following[0]);
            }
        }
        Self { k, next }
    }
}

impl ScoreRule for Citations {
    fn rule_out(&self, _prompt: &[u32], answer: &[u32], scores: &mut [f32]) {
        let Some(from) = answer.len().checked_sub(self.k) else { return };
        for &id in self.next.get(&answer[from..]).into_iter().flatten() {
            if let Some(score) = scores.get_mut(id as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// No `n` tokens in a row come twice in prompt and answer (`no_repeat_ngram_size` of `transformers`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRepeat {
    n: usize,
}

impl NoRepeat {
    /// The rule for runs of `n` tokens.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn new(n: usize) -> Self {
        assert!(n > 0, "runs of no tokens");
        Self { n }
    }
}

impl ScoreRule for NoRepeat {
    fn rule_out(&self, prompt: &[u32], answer: &[u32], scores: &mut [f32]) {
        let text: Vec<u32> = [prompt, answer].concat();
        let Some(from) = (text.len() + 1).checked_sub(self.n) else { return };
        let last = &text[from..];
        let repeated: BTreeSet<u32> =
            text.windows(self.n).filter(|run| run.starts_with(last)).map(|run| run[self.n - 1]).collect();
        for id in repeated {
            if let Some(score) = scores.get_mut(id as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruled_out(rule: &impl ScoreRule, prompt: &[u32], answer: &[u32]) -> Vec<usize> {
        let mut scores = vec![0.0; 10];
        rule.rule_out(prompt, answer, &mut scores);
        scores.iter().enumerate().filter(|(_, score)| **score == f32::NEG_INFINITY).map(|(id, _)| id).collect()
    }

    #[test]
    fn what_followed_in_a_text_may_not_follow_again_and_the_prompt_does_not_count() {
        let texts: [&[u32]; 2] = [&[1, 2, 3, 4], &[2, 3, 5, 99]];
        let rule = Citations::new(2, texts);
        assert_eq!(ruled_out(&rule, &[], &[7, 2, 3]), [4, 5]);
        assert_eq!(ruled_out(&rule, &[2, 3], &[]), [0; 0]);
        assert_eq!(ruled_out(&rule, &[2], &[3]), [0; 0]);
        assert_eq!(ruled_out(&rule, &[], &[3, 5]), [0; 0], "a token that the model does not have");
        assert_eq!(ruled_out(&rule, &[], &[3, 4]), [0; 0], "no text goes on there");
        assert_eq!(ruled_out(&Citations::new(2, [&[1u32][..]]), &[], &[1, 2]), [0; 0], "a text too short to cite");
    }

    #[test]
    fn runs_of_prompt_and_answer_come_once() {
        let rule = NoRepeat::new(3);
        assert_eq!(ruled_out(&rule, &[1, 2, 3, 1], &[2]), [3]);
        assert_eq!(ruled_out(&rule, &[1, 2, 3], &[1, 2, 4, 1, 2]), [3, 4]);
        assert_eq!(ruled_out(&rule, &[1], &[]), [0; 0]);
        assert_eq!(ruled_out(&NoRepeat::new(1), &[1], &[5]), [1, 5]);
    }
}
