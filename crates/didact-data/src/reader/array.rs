//! The items of one JSON array, one at a time.

use super::RowCause;
use super::file::{RawValue, parse};
use super::lines::Lines;

/// Reads a file that is one JSON array without holding more than one item.
#[derive(Debug)]
pub(super) struct ArrayItems {
    bytes: Lines,
    count: u64,
    is_over: bool,
}

impl ArrayItems {
    /// `bytes` stand at the opening bracket.
    pub(super) fn new(mut bytes: Lines) -> Self {
        bytes.take();
        Self { bytes, count: 0, is_over: false }
    }

    /// The next item's number, from 1, and what it holds.
    pub(super) fn next_item(&mut self) -> Option<(u64, Result<RawValue, RowCause>)> {
        if self.is_over {
            return None;
        }
        let result = self.item();
        if matches!(&result, Err(cause) if !cause.is_about_a_row()) {
            self.is_over = true;
        }
        let result = result.transpose()?;
        self.count += 1;
        Some((self.count, result))
    }

    fn item(&mut self) -> Result<Option<RawValue>, RowCause> {
        let (byte, offset) = self.next_visible()?;
        if byte == b']' && self.count == 0 {
            self.bytes.take();
            self.end()?;
            return Ok(None);
        }
        if byte == b',' || byte == b']' {
            return Err(RowCause::Array { what: "an item is missing", offset });
        }
        let (text, is_too_long) = self.item_text()?;
        let (separator, _) = self.next_visible()?;
        self.bytes.take();
        if separator == b']' {
            self.end()?;
        }
        if is_too_long {
            return Err(RowCause::TooLong { limit: self.bytes.limit() });
        }
        if let Err(error) = std::str::from_utf8(&text) {
            return Err(RowCause::Utf8 { offset: offset + error.valid_up_to() as u64 });
        }
        parse(&text).map(Some)
    }

    /// The bytes up to the comma or bracket behind the item, which is left to be taken; whether they were too many to keep.
    fn item_text(&mut self) -> Result<(Vec<u8>, bool), RowCause> {
        let limit = self.bytes.limit();
        let (mut text, mut is_too_long) = (Vec::new(), false);
        let (mut depth, mut in_string, mut is_escaped) = (0_u64, false, false);
        loop {
            let (chunk, offset) = self.bytes.chunk()?;
            if chunk.is_empty() {
                return Err(RowCause::Array { what: "the file ends inside an item", offset });
            }
            let mut end = None;
            for (i, &byte) in chunk.iter().enumerate() {
                if in_string {
                    match byte {
                        _ if is_escaped => is_escaped = false,
                        b'\\' => is_escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b',' | b']' if depth == 0 => {
                        end = Some(i);
                        break;
                    }
                    b'}' | b']' => {
                        depth = depth.checked_sub(1).ok_or(RowCause::Array {
                            what: "a bracket closes that was not opened",
                            offset: offset + i as u64,
                        })?;
                    }
                    _ => {}
                }
            }
            let taken = end.unwrap_or(chunk.len());
            is_too_long |= text.len() + taken > limit;
            if is_too_long {
                text.clear();
            } else {
                text.extend_from_slice(&chunk[..taken]);
            }
            self.bytes.consume(taken);
            if end.is_some() {
                return Ok((text, is_too_long));
            }
        }
    }

    /// The next byte that is not white space, not taken.
    fn next_visible(&mut self) -> Result<(u8, u64), RowCause> {
        loop {
            match self.bytes.peek()? {
                Some((byte, _)) if byte.is_ascii_whitespace() => self.bytes.take(),
                Some(found) => return Ok(found),
                None => {
                    let (_, offset) = self.bytes.chunk()?;
                    return Err(RowCause::Array { what: "the file ends before the array does", offset });
                }
            }
        }
    }

    /// Behind the closing bracket: only white space may follow.
    fn end(&mut self) -> Result<(), RowCause> {
        self.is_over = true;
        while let Some((byte, offset)) = self.bytes.peek()? {
            if !byte.is_ascii_whitespace() {
                return Err(RowCause::Array { what: "something follows its end", offset });
            }
            self.bytes.take();
        }
        Ok(())
    }
}
