//! Finding stop strings in text that grows token by token.

/// Text that grows, and which tokens it came from. A stop string may begin in one token and end in another.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopSearch {
    text: String,
    /// Bytes of `text` once token `i` was added.
    ends: Vec<usize>,
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
    fn half_a_character_waits_for_the_rest() {
        // The middle token completes nothing; the next one brings the whole character.
        let (stopped, after) = run(&["a", "", "é", "x"], &["é"]).expect("it is there");
        assert_eq!((stopped, after), (Stopped { text: "a".into(), tokens: 1 }, 3));
        let (stopped, _) = run(&["a", "", "éé", "xé"], &["x"]).expect("it is there");
        assert_eq!(stopped, Stopped { text: "aéé".into(), tokens: 3 });
    }
}
