//! `{% generation %}`: the tag with which a template says what the model writes.
//!
//! Jinja2 has no such tag; Hugging Face's library adds it by an extension that behaves as a call block. minijinja cannot
//! be extended with tags, so the source is rewritten before parsing: `generation` becomes `call` of a function that
//! prints its body, between two marks when marks are asked for. Both are block tags, so white space is trimmed alike.

use std::ops::Range;

/// The function called in place of the tag.
pub(super) const FUNCTION: &str = "__didact_generation";
/// The variable that asks for marks.
pub(super) const MARKS: &str = "__didact_generation_marks";
/// Marks around generated text: two code points that Unicode reserves for use inside programs.
pub(super) const OPEN: char = '\u{fdd0}';
/// See [`OPEN`].
pub(super) const CLOSE: char = '\u{fdd1}';

/// The source with its `generation` tags rewritten, and whether there were any.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 64);
    let mut found = false;
    let mut rest = source;
    while let Some(start) = find_opening(rest) {
        out.push_str(&rest[..start]);
        let tag = &rest[start..];
        let Some(length) = tag_length(tag) else {
            // Unclosed: the parser says so better than we could.
            out.push_str(tag);
            return (out, found);
        };
        let (tag, after) = tag.split_at(length);
        let name = if tag.starts_with("{%") { tag_name(tag) } else { "" };
        match name {
            "generation" => {
                found = true;
                out.push_str(&tag.replacen("generation", &format!("call {FUNCTION}()"), 1));
            }
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endcall", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
        if name == "raw" {
            let end = end_of_raw(rest);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    (out, found)
}

fn find_opening(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    (0..bytes.len().saturating_sub(1)).find(|&i| bytes[i] == b'{' && matches!(bytes[i + 1], b'{' | b'%' | b'#'))
}

/// Length of the tag, comment or expression that `text` starts with, strings inside it skipped.
fn tag_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes[1] == b'#' {
        return text.find("#}").map(|end| end + 2);
    }
    let closing: &[u8] = if bytes[1] == b'%' { b"%}" } else { b"}}" };
    let mut i = 2;
    let mut braces = 0usize;
    while i < bytes.len() {
        match bytes[i] {
            quote @ (b'\'' | b'"') => {
                i += 1;
                while i < bytes.len() && bytes[i] != quote {
                    i += if bytes[i] == b'\\' { 2 } else { 1 };
                }
            }
            // A mapping may close with `}` right before the tag does.
            b'{' => braces += 1,
            b'}' if braces > 0 => braces -= 1,
            _ if bytes[i..].starts_with(closing) => return Some(i + 2),
            _ => {}
        }
        i += 1;
    }
    None
}

/// The first word of a block tag.
fn tag_name(tag: &str) -> &str {
    let inner = tag.trim_start_matches("{%").trim_start_matches(['-', '+']);
    let inner = inner.trim_end_matches("%}").trim_end_matches(['-', '+']).trim();
    inner.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default()
}

/// Where the text of a raw block ends: at its `{% endraw %}`.
fn end_of_raw(text: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find("{%") {
        let start = from + at;
        if tag_length(&text[start..]).is_some_and(|length| tag_name(&text[start..start + length]) == "endraw") {
            return start;
        }
        from = start + 2;
    }
    text.len()
}

/// Takes the marks out of rendered text; gives the text and the marked spans, in bytes of it.
/// `None` if the marks do not pair up.
pub(super) fn take_marks(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut open = None;
    for c in marked.chars() {
        match c {
            OPEN if open.is_none() => open = Some(text.len()),
            CLOSE => spans.push(open.take()?..text.len()),
            OPEN => return None,
            c => text.push(c),
        }
    }
    open.is_none().then_some((text, spans))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_become_calls_and_keep_their_white_space_control() {
        let (out, found) = rewrite("a {%- generation -%} b {% endgeneration +%} c");
        assert_eq!(out, "a {%- call __didact_generation() -%} b {% endcall +%} c");
        assert!(found);
    }

    #[test]
    fn the_word_elsewhere_is_left_alone() {
        for source in [
            "{{ '{% generation %}' }} generation",
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% if generation %}{% endif %}",
            "{{ {'a': {'b': 1}} }}",
            "{% set x = '%} {% generation %}' %}",
            "{{ unclosed",
        ] {
            assert_eq!(rewrite(source), (source.to_owned(), false), "{source}");
        }
    }

    #[test]
    fn marks_give_spans_in_bytes() {
        let (text, spans) = take_marks("é\u{fdd0}a\u{fdd1}b\u{fdd0}\u{fdd1}").expect("paired");
        assert_eq!(text, "éab");
        assert_eq!(spans, [2..3, 4..4]);
        assert_eq!(take_marks("\u{fdd0}\u{fdd0}"), None);
        assert_eq!(take_marks("\u{fdd1}"), None);
    }
}
