//! Chains of Hindsight (Liu et al., arXiv 2302.02676): several answers in one sequence, each after words that say how good
//! it is, trained on the answers alone.

use didact_core::sequence::Sequence;

/// An answer of a chain, tokenised by itself, so that its borders are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link<'a> {
    /// What says how good the answer is; context.
    pub marker: &'a [u32],
    /// The answer.
    pub answer: &'a [u32],
}

/// Which answers of a chain are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LossOn {
    /// All of them, as the paper's code does.
    #[default]
    All,
    /// The last one, as its text says.
    Last,
}

/// How a chain's tokens count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Count {
    /// Each trained token has weight 1.
    #[default]
    Tokens,
    /// The trained tokens of a chain have the total weight 1, so that the loss is a mean over chains of means over tokens.
    Chains,
}

/// `[prompt marker₁] answer₁ e [marker₂] answer₂ e …`, with loss on the answers and the end tokens `e` after them. A chain
/// of which nothing is trained has weight 0 everywhere.
pub fn hindsight(prompt: &[u32], links: &[Link<'_>], end: u32, loss_on: LossOn, count: Count) -> Sequence {
    let (mut ids, mut weight) = (prompt.to_vec(), vec![0.0; prompt.len()]);
    for (number, link) in links.iter().enumerate() {
        ids.extend(link.marker);
        weight.resize(ids.len(), 0.0);
        ids.extend(link.answer);
        ids.push(end);
        let is_trained = loss_on == LossOn::All || number + 1 == links.len();
        weight.resize(ids.len(), if is_trained { 1.0 } else { 0.0 });
    }
    let mut sequence = Sequence::single(ids, weight);
    let total = sequence.total_weight();
    if count == Count::Chains && total > 0.0 {
        for weight in &mut sequence.weight {
            *weight = (f64::from(*weight) / total) as f32;
        }
    }
    sequence
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: [u32; 5] = [1, 2, 3, 4, 5];
    const BAD: Link<'static> = Link { marker: &[10, 11], answer: &[20, 21, 22] };
    const GOOD: Link<'static> = Link { marker: &[12, 13], answer: &[30, 31, 32, 33] };
    const END: u32 = 9;

    /// `Σ w · nll`, token by token.
    fn loss(sequence: &Sequence, nll: &[f64]) -> f64 {
        sequence.weight.iter().zip(nll).map(|(w, nll)| f64::from(*w) * nll).sum()
    }

    #[test]
    fn a_chain_is_laid_out_as_the_specification_counts_it() {
        let chain = hindsight(&PROMPT, &[BAD, GOOD], END, LossOn::All, Count::Tokens);
        assert_eq!(chain.ids, [1, 2, 3, 4, 5, 10, 11, 20, 21, 22, 9, 12, 13, 30, 31, 32, 33, 9]);
        assert_eq!((chain.len(), chain.total_weight()), (18, 9.0));
        let context: Vec<usize> = (0..18).filter(|&i| chain.weight[i] == 0.0).collect();
        assert_eq!(context, [0, 1, 2, 3, 4, 5, 6, 11, 12]);
        let last = hindsight(&PROMPT, &[BAD, GOOD], END, LossOn::Last, Count::Tokens);
        assert_eq!((last.ids, last.weight.iter().sum::<f32>()), (chain.ids, 5.0));
        let single = hindsight(&PROMPT, &[GOOD], END, LossOn::All, Count::Tokens);
        assert_eq!((single.len(), single.total_weight()), (12, 5.0));
    }

    #[test]
    fn a_chain_counts_as_the_mean_over_its_tokens() {
        // Log-probabilities −1, −2, −3 with the mask 1, 0, 1 are 2.0: an answer that is empty, a marker, and its end.
        let links = [Link { marker: &[], answer: &[] }, Link { marker: &[10], answer: &[] }];
        let chain = hindsight(&[1], &links, END, LossOn::All, Count::Chains);
        assert_eq!(chain.weight, [0.0, 0.5, 0.0, 0.5]);
        assert_eq!(loss(&chain, &[0.0, 1.0, 2.0, 3.0]), 2.0);
        // Two chains of losses 2.0 and 0.5 are 1.25 in the mean, whatever their lengths.
        let long = hindsight(&PROMPT, &[BAD, GOOD], END, LossOn::All, Count::Chains);
        let total = chain.total_weight() + long.total_weight();
        let mean = (loss(&chain, &[0.0, 1.0, 2.0, 3.0]) + loss(&long, &[0.5; 18])) / total;
        assert!((mean - 1.25).abs() < 1e-6, "{mean}");
        let nothing = hindsight(&PROMPT, &[], END, LossOn::All, Count::Chains);
        assert_eq!(nothing.weight, [0.0; 5]);
    }
}
