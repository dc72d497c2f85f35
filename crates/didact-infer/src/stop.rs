//! Finding stop strings in text that grows token by token, and telling what of it can be shown.

use std::ops::Range;

/// Text that grows, and which tokens it came from. A stop string may begin in one token and end in another.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopSearch {
    text: String,
    /// Bytes of `text` once token `i` was added.
    ends: Vec<usize>,
    /// Bytes of `text`, and tokens, that were handed out by [`StopSearch::release`].
    shown: usize,
    shown_tokens: usize,
}

/// Where an answer stops.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stopped {
    /// The text before the stop string.
    pub(crate) text: String,
    /// Tokens that have a part in that text.
    pub(crate) tokens: usize,
}

impl StopSearch {
    /// Adds what became readable with the next token, perhaps nothing, and looks for the stop string that begins first.
    pub(crate) fn push(&mut self, added: &str, stop: &[String]) -> Option<Stopped> {
        // A stop string that is complete now has at least one byte in what was added.
        let longest = stop.iter().map(String::len).max().unwrap_or(0);
        let mut from = (self.text.len() + 1).saturating_sub(longest).min(self.text.len());
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(added);
        self.ends.push(self.text.len());
        let at = from + stop.iter().filter_map(|s| self.text[from..].find(s.as_str())).min()?;
        let begins = |i: usize| if i == 0 { 0 } else { self.ends[i - 1] };
        let tokens = (0..self.ends.len()).take_while(|&i| begins(i) < at).count();
        Some(Stopped { text: self.text[..at].to_owned(), tokens })
    }

    /// Text that can be shown since the last time, and the tokens that end in it: all but what may be the beginning of a
    /// stop string.
    pub(crate) fn release(&mut self, stop: &[String]) -> Option<(String, Range<usize>)> {
        let kept = stop.iter().map(|s| beginning_at_end(&self.text, s)).max().unwrap_or(0);
        let end = self.text.len() - kept;
        if end <= self.shown {
            return None;
        }
        let tokens = self.ends.partition_point(|&e| e <= end);
        Some(self.hand_out(end, tokens))
    }

    /// Forgets the text from byte `at` on, which was not handed out: a stop string begins there.
    pub(crate) fn cut(&mut self, at: usize) {
        self.text.truncate(at);
    }

    /// The rest of an answer that ends after `tokens` tokens, with `last` behind what was pushed.
    pub(crate) fn release_rest(&mut self, last: &str, tokens: usize) -> Option<(String, Range<usize>)> {
        self.text.push_str(last);
        let (text, tokens) = self.hand_out(self.text.len(), tokens);
        (!text.is_empty() || !tokens.is_empty()).then_some((text, tokens))
    }

    /// The text so far.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn hand_out(&mut self, end: usize, tokens: usize) -> (String, Range<usize>) {
        let from = self.shown.min(end);
        let range = self.shown_tokens.min(tokens)..tokens;
        (self.shown, self.shown_tokens) = (end, tokens);
        (self.text[from..end].to_owned(), range)
    }
}

/// Length of the longest end of `text` that `stop` begins with, short of all of it.
fn beginning_at_end(text: &str, stop: &str) -> usize {
    let lengths = stop.char_indices().map(|(at, _)| at).rev();
    lengths.filter(|&length| length > 0).find(|&length| text.ends_with(&stop[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found, and after how many tokens.
    fn run(tokens: &[&str], stop: &[&str]) -> Option<(Stopped, usize)> {
        let stop: Vec<String> = stop.iter().map(|&s| s.to_owned()).collect();
        let mut search = StopSearch::default();
        tokens.iter().enumerate().find_map(|(i, token)| Some((search.push(token, &stop)?, i + 1)))
    }

    #[test]
    fn a_stop_string_is_found_across_tokens() {
        let (stopped, after) = run(&["a", "b", "st", "op!", "a"], &["stop"]).expect("it is there");
        assert_eq!((stopped, after), (Stopped { text: "ab".into(), tokens: 2 }, 4));
        // It begins inside a token, which has a part in the text.
        let (stopped, _) = run(&["a", " stop", "b"], &["top"]).expect("it is there");
        assert_eq!(stopped, Stopped { text: "a s".into(), tokens: 2 });
        assert_eq!(run(&["a", "st", "b", "op!"], &["stop"]), None);
    }

    #[test]
    fn one_character_is_enough() {
        let (stopped, after) = run(&["ab", "\n", "c"], &["\n"]).expect("it is there");
        assert_eq!((stopped, after), (Stopped { text: "ab".into(), tokens: 1 }, 2));
        let (stopped, _) = run(&["\nab"], &["\n"]).expect("it is there");
        assert_eq!(stopped, Stopped { text: String::new(), tokens: 0 });
    }

    #[test]
    fn the_stop_string_that_begins_first_wins() {
        let (stopped, _) = run(&["st", "op!"], &["p!", "to"]).expect("both are there");
        assert_eq!(stopped.text, "s");
    }

    #[test]
    fn what_may_begin_a_stop_string_is_held_back() {
        let stop = ["stop!".to_owned(), "é.".to_owned()];
        let mut search = StopSearch::default();
        let mut shown = Vec::new();
        for token in ["a s", "to", "x st", "o", "é", "b", "", "."] {
            assert_eq!(search.push(token, &stop), None);
            shown.extend(search.release(&stop));
        }
        let of = |text: &str, tokens| (text.to_owned(), tokens);
        assert_eq!(shown, [of("a ", 0..0), of("stox ", 0..2), of("sto", 2..4), of("éb", 4..6), of(".", 6..8)]);
        assert_eq!(search.release(&stop), None);
        // The beginning comes out when nothing more comes.
        let mut search = StopSearch::default();
        assert_eq!((search.push("xs", &stop), search.release(&stop)), (None, Some(of("x", 0..0))));
        assert_eq!(search.release_rest("", 1), Some(of("s", 0..1)));
        assert_eq!(search.release_rest("", 1), None);
        assert_eq!(search.text(), "xs");
    }

    #[test]
    fn half_a_character_waits_for_the_rest() {
        // The middle token completes nothing; the next one brings the whole character.
        let (stopped, after) = run(&["a", "", "é", "x"], &["é"]).expect("it is there");
        assert_eq!((stopped, after), (Stopped { text: "a".into(), tokens: 1 }, 3));
        let (stopped, _) = run(&["a", "", "éé", "xé"], &["x"]).expect("it is there");
        assert_eq!(stopped, Stopped { text: "aéé".into(), tokens: 3 });
    }
}
