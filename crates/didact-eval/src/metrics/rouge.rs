//! ROUGE-L: the longest common subsequence of two texts' words.
//!
//! # Reference
//! Lin, "ROUGE", 2004; words as Google's `rouge_score` splits them, without its stemmer.

/// The F-measure of the longest common subsequence against the best of the references, from 0 to 1.
pub fn rouge_l<S: AsRef<str>>(answer: &str, references: &[S]) -> f64 {
    let answer = words(answer);
    references.iter().map(|reference| f_measure(&answer, &words(reference.as_ref()))).fold(0.0, f64::max)
}

/// Lower case, runs of `a-z0-9`.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn f_measure(answer: &[String], reference: &[String]) -> f64 {
    if answer.is_empty() || reference.is_empty() {
        return 0.0;
    }
    2.0 * longest_common_subsequence(answer, reference) as f64 / (answer.len() + reference.len()) as f64
}

/// Length of the longest sequence that both lists hold in order, with gaps.
pub fn longest_common_subsequence<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_common_subsequence_may_have_gaps() {
        // police the gunman: 3 of 4 and 4 words.
        assert!((rouge_l("police kill the gunman", &["police killed the gunman"]) - 0.75).abs() < 1e-12);
        assert!((rouge_l("the gunman kill police", &["police killed the gunman"]) - 0.5).abs() < 1e-12);
        assert_eq!(rouge_l("", &["a"]), 0.0);
        assert_eq!(longest_common_subsequence(&[1, 2, 3, 4, 1], &[3, 4, 1, 2, 1, 3]), 3);
    }
}
