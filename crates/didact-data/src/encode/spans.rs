//! Comparing renderings, and carrying spans of text over to tokens.

use std::ops::Range;

use crate::tokenizer::TokenSpan;

/// Length in bytes of what two texts begin with alike, up to a whole character.
pub(super) fn common_prefix(a: &str, b: &str) -> usize {
    let mut end = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    while !a.is_char_boundary(end) {
        end -= 1;
    }
    end
}

/// Length in bytes of what two texts end with alike, from a whole character.
pub(super) fn common_suffix(a: &str, b: &str) -> usize {
    let mut length = a.bytes().rev().zip(b.bytes().rev()).take_while(|(x, y)| x == y).count();
    while !a.is_char_boundary(a.len() - length) {
        length -= 1;
    }
    length
}

/// The tokens whose first byte lies in a span of the text.
pub(super) fn tokens_in(tokens: &[TokenSpan], span: &Range<usize>) -> Range<usize> {
    let start = tokens.partition_point(|t| t.start < span.start);
    let end = tokens.partition_point(|t| t.start < span.end);
    start..end.max(start)
}

/// How many tokens reach over the beginning or the end of a span.
pub(super) fn straddling(tokens: &[TokenSpan], span: &Range<usize>) -> u32 {
    let reaches_over = |at: usize| {
        let i = tokens.partition_point(|t| t.start < at);
        i > 0 && tokens[i - 1].end > at
    };
    u32::from(reaches_over(span.start)) + u32::from(reaches_over(span.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_parts_end_at_characters() {
        // é and è share their first byte, é and ĩ their last.
        assert_eq!(common_prefix("aé", "aè"), 1);
        assert_eq!(common_suffix("éb", "ĩb"), 1);
        assert_eq!(common_prefix("abc", "abc"), 3);
        assert_eq!(common_suffix("abc", "xabc"), 3);
    }

    #[test]
    fn a_token_belongs_where_its_first_byte_is() {
        let tokens: Vec<TokenSpan> =
            [(0, 3), (3, 6), (6, 6), (6, 9)].map(|(start, end)| TokenSpan { id: 0, start, end }).into();
        assert_eq!(tokens_in(&tokens, &(3..6)), 1..2);
        assert_eq!(tokens_in(&tokens, &(4..9)), 2..4);
        assert_eq!(straddling(&tokens, &(4..9)), 1);
        assert_eq!(straddling(&tokens, &(4..7)), 2);
        assert_eq!(straddling(&tokens, &(3..6)), 0);
    }
}
