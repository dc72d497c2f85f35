//! Texts over a handful of words.

use didact_core::sequence::Sequence;

/// Words and their numbers. Punctuation is a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    words: &'static [&'static str],
}

impl Vocabulary {
    pub(super) const fn new(words: &'static [&'static str]) -> Self {
        Self { words }
    }

    /// How many words there are.
    pub const fn size(&self) -> usize {
        self.words.len()
    }

    /// The numbers of a text's words.
    ///
    /// # Panics
    /// If there is a word that the vocabulary does not have: a mistake in the generator.
    pub fn ids(&self, text: &str) -> Vec<u32> {
        let spaced = text.replace(',', " , ").replace('.', " . ").replace('?', " ? ");
        let number = |word: &str| {
            let place = self.words.iter().position(|other| *other == word);
            place.unwrap_or_else(|| panic!("`{word}` is not in the vocabulary")) as u32
        };
        spaced.split_whitespace().map(number).collect()
    }

    /// A text all of whose tokens are learned.
    pub fn lesson(&self, text: &str) -> Sequence {
        let ids = self.ids(text);
        let weight = vec![1.0; ids.len()];
        Sequence::single(ids, weight)
    }

    /// A text of which only the token `from_end` places before the last one is measured.
    ///
    /// # Panics
    /// If the text is not that long.
    pub fn question(&self, text: &str, from_end: usize) -> Sequence {
        let ids = self.ids(text);
        let mut weight = vec![0.0; ids.len()];
        let answer = ids.len() - 1 - from_end;
        weight[answer] = 1.0;
        Sequence::single(ids, weight)
    }
}
