//! Finding stop strings in text that grows token by token.

/// Decodes growing ids piece by piece and looks for stop strings, which may begin in one token and end in another.
///
/// A token's text can depend on the tokens before it (a space, half a character), so each step decodes a short window of
/// the last tokens twice, without and with the new one, and keeps the difference; text that ends in half a character
/// waits for the rest.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopSearch {
    text: String,
    /// Bytes of `text` once token `i` was added.
    ends: Vec<usize>,
    /// The window starts here, at a token whose text is settled.
    window: usize,
    /// Tokens whose text is in `text`.
    settled: usize,
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
    /// Adds the last of `ids`, and looks for the stop string that begins first.
    ///
    /// # Errors
    /// What `decode` fails with.
    pub(crate) fn push<E>(
        &mut self,
        ids: &[u32],
        stop: &[String],
        decode: impl Fn(&[u32]) -> Result<String, E>,
    ) -> Result<Option<Stopped>, E> {
        let before = decode(&ids[self.window..self.settled])?;
        let after = decode(&ids[self.window..])?;
        let old = self.text.len();
        if after.len() > before.len() && !after.ends_with('\u{fffd}') && after.is_char_boundary(before.len()) {
            self.text.push_str(&after[before.len()..]);
            self.window = self.settled;
            self.settled = ids.len();
        }
        // Tokens that wait get their text with the one that completes it.
        self.ends.push(self.text.len());
        let longest = stop.iter().map(String::len).max().unwrap_or(0);
        let mut from = old.saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        let found = stop.iter().filter_map(|s| self.text[from..].find(s.as_str())).min();
        Ok(found.map(|at| {
            let at = from + at;
            let begins = |i: usize| if i == 0 { 0 } else { self.ends[i - 1] };
            let tokens = (0..self.ends.len()).take_while(|&i| begins(i) < at).count();
            Stopped { text: self.text[..at].to_owned(), tokens }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [&[u8]; 8] = [b"a", b"b", b" stop", b"st", b"op!", b"\xc3", b"\xa9", b"x"];

    fn decode(ids: &[u32]) -> Result<String, ()> {
        let bytes: Vec<u8> = ids.iter().flat_map(|&i| WORDS[i as usize]).copied().collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn run(ids: &[u32], stop: &[&str]) -> Option<(Stopped, usize)> {
        let stop: Vec<String> = stop.iter().map(|&s| s.to_owned()).collect();
        let mut search = StopSearch::default();
        for n in 1..=ids.len() {
            if let Some(stopped) = search.push(&ids[..n], &stop, decode).expect("decoding does not fail") {
                return Some((stopped, n));
            }
        }
        None
    }

    #[test]
    fn a_stop_string_is_found_across_tokens() {
        let (stopped, after) = run(&[0, 1, 3, 4, 0], &["stop"]).expect("it is there");
        assert_eq!((stopped, after), (Stopped { text: "ab".into(), tokens: 2 }, 4));
        // It begins inside a token, which has a part in the text.
        let (stopped, _) = run(&[0, 2, 1], &["top"]).expect("it is there");
        assert_eq!(stopped, Stopped { text: "a s".into(), tokens: 2 });
        assert_eq!(run(&[0, 3, 1, 4], &["stop"]), None);
    }

    #[test]
    fn the_stop_string_that_begins_first_wins() {
        let (stopped, _) = run(&[3, 4], &["p!", "to"]).expect("both are there");
        assert_eq!(stopped.text, "s");
    }

    #[test]
    fn half_a_character_waits_for_the_rest() {
        let (stopped, after) = run(&[0, 5, 6, 7], &["é"]).expect("it is there");
        assert_eq!((stopped, after), (Stopped { text: "a".into(), tokens: 1 }, 3));
        let (stopped, _) = run(&[0, 5, 6, 7], &["x"]).expect("it is there");
        assert_eq!(stopped, Stopped { text: "aé".into(), tokens: 3 });
    }
}
