//! How varied texts are, and how much of them was copied.

use super::bleu::{self, Smoothing};
use std::collections::{BTreeMap, BTreeSet};

/// Type-token ratio: different tokens as a share of all. 0 for no tokens.
///
/// It falls with length: compare lists of the same length only.
pub fn type_token_ratio<T: Ord>(tokens: &[T]) -> f64 {
    distinct(tokens, 1)
}

/// Different runs of `n` tokens as a share of all runs (Li et al., 2016, "distinct-n"). 0 if there are none.
///
/// # Panics
/// If `n` is 0.
pub fn distinct<T: Ord>(tokens: &[T], n: usize) -> f64 {
    let runs = tokens.windows(n);
    let all = runs.len();
    let different: BTreeSet<&[T]> = runs.collect();
    if all == 0 { 0.0 } else { different.len() as f64 / all as f64 }
}

/// Runs of `n` tokens that came before, as a share of all runs. 0 if there are none.
///
/// # Panics
/// If `n` is 0.
pub fn repetition<T: Ord>(tokens: &[T], n: usize) -> f64 {
    if tokens.len() < n { 0.0 } else { 1.0 - distinct(tokens, n) }
}

/// Self-BLEU: the mean BLEU-4 of each text against all others, from 0 to 100, with zero counts as 0.1. Lower is more
/// varied. 0 for less than two texts.
///
/// Its time grows with the square of the number of texts.
///
/// # Reference
/// Zhu et al., "Texygen", 2018.
pub fn self_bleu<T: Ord>(texts: &[Vec<T>]) -> f64 {
    if texts.len() < 2 {
        return 0.0;
    }
    let others = |i: usize| -> Vec<&[T]> { texts[..i].iter().chain(&texts[i + 1..]).map(Vec::as_slice).collect() };
    let scores = texts.iter().enumerate().map(|(i, text)| bleu::sentence(text, &others(i), Smoothing::Floor(0.1)));
    scores.sum::<f64>() / texts.len() as f64
}

/// An index of texts that finds the longest run of tokens that another text has in common with one of them: a suffix
/// automaton (Blumer et al., 1985). It takes memory for about two states per token.
#[derive(Debug, Clone)]
pub struct Overlap {
    states: Vec<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    next: BTreeMap<u32, usize>,
    link: Option<usize>,
    length: usize,
}

impl Overlap {
    /// Indexes texts. Runs do not reach from one into the next.
    pub fn new<S: AsRef<[u32]>>(texts: impl IntoIterator<Item = S>) -> Self {
        let mut index = Self { states: vec![State::default()] };
        for text in texts {
            // Every text begins at the root: a run over a border is in no text.
            let mut last = 0;
            for &token in text.as_ref() {
                last = index.extend(last, token);
            }
        }
        index
    }

    /// The state of the text so far and one more token (the generalised construction: what is known is not added again).
    fn extend(&mut self, last: usize, token: u32) -> usize {
        if let Some(&known) = self.states[last].next.get(&token) {
            if self.states[known].length == self.states[last].length + 1 {
                return known;
            }
            return self.split(last, token, known);
        }
        let new = self.states.len();
        self.states.push(State { length: self.states[last].length + 1, ..State::default() });
        let mut at = Some(last);
        while let Some(state) = at.filter(|&state| !self.states[state].next.contains_key(&token)) {
            self.states[state].next.insert(token, new);
            at = self.states[state].link;
        }
        self.states[new].link = Some(match at {
            None => 0,
            Some(state) => {
                let known = self.states[state].next[&token];
                if self.states[known].length == self.states[state].length + 1 {
                    known
                } else {
                    self.split(state, token, known)
                }
            }
        });
        new
    }

    /// A copy of `known` for the runs that end in `state` and `token`.
    fn split(&mut self, state: usize, token: u32, known: usize) -> usize {
        let copy = self.states.len();
        let length = self.states[state].length + 1;
        self.states.push(State { length, ..self.states[known].clone() });
        self.states[known].link = Some(copy);
        let mut at = Some(state);
        while let Some(state) = at.filter(|&state| self.states[state].next.get(&token) == Some(&known)) {
            self.states[state].next.insert(token, copy);
            at = self.states[state].link;
        }
        copy
    }

    /// Length of the longest run of tokens that one of the texts has, too.
    pub fn longest(&self, tokens: &[u32]) -> usize {
        let (mut state, mut length, mut longest) = (0, 0, 0);
        for token in tokens {
            loop {
                if let Some(&next) = self.states[state].next.get(token) {
                    (state, length) = (next, length + 1);
                    break;
                }
                let Some(link) = self.states[state].link else {
                    length = 0;
                    break;
                };
                (state, length) = (link, self.states[link].length);
            }
            longest = longest.max(length);
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ratios_count_tokens_and_runs() {
        let tokens = [1, 2, 1, 2, 3];
        assert_eq!(type_token_ratio(&tokens), 0.6);
        // 12, 21, 12, 23.
        assert_eq!((distinct(&tokens, 2), repetition(&tokens, 2)), (0.75, 0.25));
        assert_eq!((type_token_ratio::<u32>(&[]), repetition(&tokens, 6)), (0.0, 0.0));
    }

    #[test]
    fn texts_that_are_alike_have_a_high_self_bleu() {
        assert!((self_bleu(&vec![vec![1, 2, 3, 4, 5]; 3]) - 100.0).abs() < 1e-9);
        // 4, 3, 2 and 1 runs, of which nothing is found: 0.1 of each.
        let different = [vec![1, 2, 3, 4], vec![5, 6, 7, 8]];
        let expected = 100.0 * (0.1 / 4.0 * 0.1 / 3.0 * 0.1 / 2.0 * 0.1_f64).powf(0.25);
        assert!((self_bleu(&different) - expected).abs() < 1e-9);
        assert_eq!(self_bleu(&[vec![1]]), 0.0);
    }

    #[test]
    fn runs_do_not_reach_over_the_border_of_two_texts() {
        let index = Overlap::new([vec![1, 2, 3], vec![4, 5, 6]]);
        assert_eq!(index.longest(&[9, 2, 3, 4, 5, 9]), 2);
        assert_eq!(index.longest(&[4, 5, 6, 1, 2]), 3);
        assert_eq!((index.longest(&[7]), index.longest(&[])), (0, 0));
    }

    proptest! {
        #[test]
        fn the_longest_overlap_is_what_trying_all_runs_finds(
            texts in prop::collection::vec(prop::collection::vec(0u32..3, 0..12), 0..4),
            probe in prop::collection::vec(0u32..3, 0..12),
        ) {
            let is_there = |run: &[u32]| texts.iter().any(|text| text.windows(run.len()).any(|other| other == run));
            let longest = (1..=probe.len()).rev().find(|&n| probe.windows(n).any(is_there)).unwrap_or(0);
            prop_assert_eq!(Overlap::new(&texts).longest(&probe), longest);
        }
    }
}
