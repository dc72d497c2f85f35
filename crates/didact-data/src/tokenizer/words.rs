//! How byte-level tokenizers cut text into words before merging: hand-written forms of the patterns in use, which find the
//! same borders as the regular expressions do, several times faster.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// What a character counts as in the patterns: `\p{L}`, `\p{N}`, `\s`, or none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Other,
    Letter,
    Number,
    Space,
}

/// Kinds of all characters, from the tables of the regular expression engine that the patterns are otherwise run by.
struct Kinds {
    /// Characters below U+10000, one entry each.
    basic: Vec<Kind>,
    /// Ranges of the others, sorted.
    higher: Vec<(u32, u32, Kind)>,
}

static KINDS: LazyLock<Kinds> = LazyLock::new(|| {
    let mut kinds = Kinds { basic: vec![Kind::Other; 0x1_0000], higher: Vec::new() };
    for (pattern, kind) in [(r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"\s", Kind::Space)] {
        let hir = regex_syntax::parse(pattern).expect("a class of the engine's own");
        let HirKind::Class(Class::Unicode(class)) = hir.kind() else { unreachable!("{pattern} is a class") };
        for range in class.ranges() {
            let (start, end) = (u32::from(range.start()), u32::from(range.end()));
            for code in start..=end.min(0xffff) {
                kinds.basic[code as usize] = kind;
            }
            if end > 0xffff {
                kinds.higher.push((start.max(0x1_0000), end, kind));
            }
        }
    }
    kinds.higher.sort_unstable_by_key(|range| range.0);
    kinds
});

impl Kinds {
    #[inline]
    fn of(&self, c: char) -> Kind {
        let code = u32::from(c);
        if let Some(&kind) = self.basic.get(code as usize) {
            return kind;
        }
        let behind = self.higher.partition_point(|range| range.0 <= code);
        match behind.checked_sub(1).map(|i| self.higher[i]) {
            Some((_, end, kind)) if code <= end => kind,
            _ => Kind::Other,
        }
    }
}

/// What is done about digits before the words are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digits {
    /// Nothing.
    Kept,
    /// Each stands alone.
    Each,
    /// Runs of them stand alone.
    Runs,
}

/// The pattern of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// GPT-2's.
    Gpt2,
    /// Qwen2's and Llama 3's, with at most this many digits together.
    Modern {
        /// 1 or 3.
        digits: usize,
    },
}

/// A pre-tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Splitter {
    pub(super) digits: Digits,
    pub(super) pattern: Pattern,
}

impl Splitter {
    /// Calls `word` with every word of the text, in order; together they are the text.
    pub(super) fn split<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) {
        let kinds = &*KINDS;
        match self.digits {
            Digits::Kept => self.words(kinds, text, &mut word),
            Digits::Each | Digits::Runs => {
                let mut rest = text;
                while !rest.is_empty() {
                    let end = rest.find(char::is_numeric).unwrap_or(rest.len());
                    if end > 0 {
                        self.words(kinds, &rest[..end], &mut word);
                        rest = &rest[end..];
                        continue;
                    }
                    let digit = match self.digits {
                        Digits::Each => rest.chars().next().map_or(0, char::len_utf8),
                        _ => rest.find(|c: char| !c.is_numeric()).unwrap_or(rest.len()),
                    };
                    self.words(kinds, &rest[..digit], &mut word);
                    rest = &rest[digit..];
                }
            }
        }
    }

    fn words<'t>(&self, kinds: &Kinds, mut rest: &'t str, word: &mut impl FnMut(&'t str)) {
        while !rest.is_empty() {
            let end = match self.pattern {
                Pattern::Gpt2 => gpt2(kinds, rest),
                Pattern::Modern { digits } => modern(kinds, rest, digits),
            };
            let (found, behind) = rest.split_at(end);
            word(found);
            rest = behind;
        }
    }
}

/// Bytes of the longest run of one kind at the beginning.
#[inline]
fn run(kinds: &Kinds, text: &str, kind: Kind) -> usize {
    text.char_indices().find(|&(_, c)| kinds.of(c) != kind).map_or(text.len(), |(at, _)| at)
}

/// `\s+(?!\S)|\s+` at white space of `len` bytes: the last character is left to what follows, unless it is the only one
/// or nothing follows.
fn white(text: &str, len: usize) -> usize {
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == text.len() || last == len { len } else { len - last }
}

/// `'s|'t|'re|'ve|'m|'ll|'d` behind the apostrophe; with `any_case` also in capitals and with the long s.
fn contraction(text: &str, any_case: bool) -> Option<usize> {
    let mut chars = text.chars();
    if chars.next() != Some('\'') {
        return None;
    }
    let mut letter = || {
        chars.next().map(|c| match c {
            'ſ' if any_case => ('s', 2),
            'A'..='Z' if any_case => (c.to_ascii_lowercase(), 1),
            _ => (c, c.len_utf8()),
        })
    };
    let (first, bytes) = letter()?;
    match first {
        's' | 't' | 'm' | 'd' => Some(1 + bytes),
        'r' | 'v' => letter().filter(|&(c, _)| c == 'e').map(|_| 3),
        'l' => letter().filter(|&(c, _)| c == 'l').map(|_| 3),
        _ => None,
    }
}

/// Bytes of the first word of a text that is not empty:
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
fn gpt2(kinds: &Kinds, text: &str) -> usize {
    if let Some(end) = contraction(text, false) {
        return end;
    }
    let space = usize::from(text.starts_with(' '));
    match text[space..].chars().next().map(|c| kinds.of(c)) {
        Some(kind) if kind != Kind::Space => space + run(kinds, &text[space..], kind),
        _ => white(text, run(kinds, text, Kind::Space)),
    }
}

/// The same for
/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
fn modern(kinds: &Kinds, text: &str, digits: usize) -> usize {
    if let Some(end) = contraction(text, true) {
        return end;
    }
    let first = text.chars().next().unwrap_or_default();
    let behind = &text[first.len_utf8()..];
    let kind = kinds.of(first);
    let next = behind.chars().next().map(|c| kinds.of(c));
    match kind {
        Kind::Letter => return run(kinds, text, Kind::Letter),
        Kind::Number => {
            return text.chars().take(digits).take_while(|&c| kinds.of(c) == Kind::Number).map(char::len_utf8).sum();
        }
        _ if next == Some(Kind::Letter) && !matches!(first, '\r' | '\n') => {
            return first.len_utf8() + run(kinds, behind, Kind::Letter);
        }
        _ => {}
    }
    let space = usize::from(first == ' ');
    if kind == Kind::Other || space == 1 && next == Some(Kind::Other) {
        let end = space + run(kinds, &text[space..], Kind::Other);
        let breaks = text[end..].bytes().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        return end + breaks;
    }
    let len = run(kinds, text, Kind::Space);
    match text[..len].rfind(['\r', '\n']) {
        Some(last) => last + 1,
        None => white(text, len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    /// Texts in which every branch of the patterns is taken: what they name, and characters from everywhere.
    fn texts() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            3 => prop::sample::select(vec![
                "'s", "'T", "'re", "'VE", "'ll", "'lL", "'ſ", "'", "a", "Zoë", "ǆ", "漢字", "𝒳", "1", "42", "٣", "½", "Ⅷ", "²",
                " ", "  ", "\t", "\n", "\r\n", "\u{a0}", "\u{2003}", "\u{85}", "\u{1c}", "-", "...", "—", "🙂", "e\u{301}",
                "\u{345}", "ⓐ", "<|", "_",
            ]).prop_map(str::to_owned),
            1 => any::<char>().prop_map(|c| c.to_string()),
        ];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    fn by_regex(pattern: &str, text: &str) -> Vec<String> {
        let regex = fancy_regex::Regex::new(pattern).expect("valid");
        regex.find_iter(text).map(|found| found.expect("matches").as_str().to_owned()).collect()
    }

    fn by_hand(pattern: Pattern, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        Splitter { digits: Digits::Kept, pattern }.split(text, |word| words.push(word.to_owned()));
        words
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]
        #[test]
        fn words_are_those_of_the_regular_expressions(text in texts()) {
            prop_assert_eq!(by_hand(Pattern::Gpt2, &text), by_regex(GPT2, &text));
            prop_assert_eq!(by_hand(Pattern::Modern { digits: 1 }, &text), by_regex(super::super::gguf::QWEN2, &text));
            prop_assert_eq!(by_hand(Pattern::Modern { digits: 3 }, &text), by_regex(super::super::gguf::LLAMA3, &text));
        }
    }
}
