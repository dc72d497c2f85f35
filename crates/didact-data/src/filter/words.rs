//! Words of a text as numbers, and runs of them.

/// Spreads the bits of a number (the finaliser of SplitMix64).
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number for a string (FNV-1a, mixed).
pub(super) fn number(text: &str) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    mix(text.bytes().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// The words of a text in lower case, without anything that is neither letter nor digit: what is left when formatting and
/// punctuation change.
pub fn normalised(text: &str) -> Vec<u64> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let mut lower = String::new();
    words
        .map(|word| {
            lower.clear();
            lower.extend(word.chars().flat_map(char::to_lowercase));
            number(&lower)
        })
        .collect()
}

/// A number for each run of `n` words, in order.
pub fn runs(words: &[u64], n: usize) -> impl Iterator<Item = u64> {
    /// Odd, so that no word is ever multiplied away.
    const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
    let push = |hash: u64, word: u64| hash.wrapping_mul(BASE).wrapping_add(word);
    let highest = (1..n).fold(1u64, |power, _| power.wrapping_mul(BASE));
    let mut hash = words.iter().take(n.saturating_sub(1)).fold(0, |hash, word| push(hash, *word));
    (n.saturating_sub(1)..words.len()).map(move |last| {
        hash = push(hash, words[last]);
        let found = mix(hash);
        hash = hash.wrapping_sub(words[last + 1 - n].wrapping_mul(highest));
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_apart_by_their_words_and_order() {
        let words: Vec<u64> = "a b c a b c b a".split(' ').map(number).collect();
        let found: Vec<u64> = runs(&words, 3).collect();
        assert_eq!(found.len(), 6);
        assert_eq!(found[0], found[3]);
        let distinct: std::collections::BTreeSet<_> = found.iter().collect();
        assert_eq!(distinct.len(), 5, "abc bca cab abc bcb cba");
        assert_eq!(runs(&words, 9).count(), 0);
        assert_eq!(runs(&words, 1).collect::<Vec<_>>(), words.iter().map(|w| mix(*w)).collect::<Vec<_>>());
    }

    #[test]
    fn formatting_and_case_do_not_change_words() {
        assert_eq!(normalised("The *quick*  FOX, 42!"), normalised("the quick fox\n42"));
        assert_ne!(normalised("the quick fox"), normalised("the quickfox"));
    }
}
