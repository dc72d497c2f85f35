//! Just enough of Verilog's lexical rules to say what a text may do, and to take its comments away.

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A name or keyword.
    Word(String),
    /// `$name`.
    System(String),
    /// `` `name ``.
    Directive(String),
    /// A number; a decimal point is part of it.
    Number,
    /// A string, with its quotes.
    Text,
    /// Anything else.
    Mark(char),
}

/// Where a text is none that any tool should see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$')
}

/// The text without comments, and its tokens. What is compiled is the text from here, so that nothing can be a comment
/// to us and code to the compiler.
pub(super) fn read(text: &str) -> Result<(String, Vec<Token>), Malformed> {
    let (mut clean, mut tokens) = (String::with_capacity(text.len()), Vec::new());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
            continue;
        }
        if let Some(inside) = rest.strip_prefix("/*") {
            let end = inside.find("*/").ok_or(Malformed("a comment that does not end"))?;
            rest = &inside[end + 2..];
            clean.push(' ');
            continue;
        }
        let take = |accept: fn(char) -> bool| rest.find(|c| !accept(c)).unwrap_or(rest.len());
        let length = match c {
            '"' => {
                let end = string_end(rest).ok_or(Malformed("a string that does not end on its line"))?;
                tokens.push(Token::Text);
                end
            }
            '\\' => return Err(Malformed("an escaped name")),
            '$' | '`' => {
                let end = 1 + rest[1..].find(|c| !is_word(c)).unwrap_or(rest.len() - 1);
                let name = rest[1..end].to_owned();
                tokens.push(if c == '$' { Token::System(name) } else { Token::Directive(name) });
                end
            }
            '0'..='9' => {
                let mut end = take(is_word);
                // A real number; `1.name` is none.
                if rest[end..].starts_with('.') && rest[end + 1..].starts_with(|c: char| c.is_ascii_digit()) {
                    end += 1 + rest[end + 1..].find(|c| !is_word(c)).unwrap_or(rest.len() - end - 1);
                }
                tokens.push(Token::Number);
                end
            }
            c if is_word(c) => {
                let end = take(is_word);
                tokens.push(Token::Word(rest[..end].to_owned()));
                end
            }
            ' ' | '\t' | '\n' | '\r' => 1,
            c if c.is_ascii_graphic() => {
                tokens.push(Token::Mark(c));
                1
            }
            _ => return Err(Malformed("a character outside ASCII, or a control character")),
        };
        clean.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    Ok((clean, tokens))
}

fn string_end(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '\n' | '\r' => return None,
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Replaces whole words, wherever they stand.
pub(super) fn replace_words(text: &str, with: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        out.push_str(&rest[..start]);
        let word = &rest[start..];
        let end = word.find(|c| !is_word(c)).unwrap_or(word.len());
        match with(&word[..end]) {
            Some(other) => out.push_str(&other),
            None => out.push_str(&word[..end]),
        }
        rest = &word[end..];
    }
    out.push_str(rest);
    out
}

/// The names of the modules that a text declares. The text is trusted; what cannot be read declares nothing.
pub(super) fn modules(text: &str) -> Vec<String> {
    let Ok((_, tokens)) = read(text) else { return Vec::new() };
    tokens
        .windows(2)
        .filter_map(|pair| match pair {
            [Token::Word(keyword), Token::Word(name)] if keyword == "module" || keyword == "macromodule" => {
                Some(name.clone())
            }
            _ => None,
        })
        .collect()
}
