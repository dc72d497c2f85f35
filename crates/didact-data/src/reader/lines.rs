//! Lines of bounded length, with their numbers and byte offsets.

use std::io::BufRead;

use super::RowCause;

/// Reads lines. A byte order mark at the start and the `\r` of Windows line ends are taken away.
pub(super) struct Lines {
    reader: Box<dyn BufRead + Send>,
    limit: usize,
    buffer: Vec<u8>,
    /// Lines read.
    count: u64,
    /// Offset of the next byte.
    offset: u64,
    is_broken: bool,
    /// Whether the line last read had a line break behind it.
    is_ended: bool,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("count", &self.count).field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Lines {
    pub(super) fn new(mut reader: Box<dyn BufRead + Send>, limit: usize) -> Result<Self, RowCause> {
        let head = reader.fill_buf().map_err(unreadable)?;
        if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
            return Err(RowCause::Utf16);
        }
        let mark = if head.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        reader.consume(mark);
        Ok(Self { reader, limit, buffer: Vec::new(), count: 0, offset: mark as u64, is_broken: false, is_ended: false })
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether the line last read had a line break behind it.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// The next byte, and its offset, without taking it.
    pub(super) fn peek(&mut self) -> Result<Option<(u8, u64)>, RowCause> {
        let offset = self.offset;
        Ok(self.reader.fill_buf().map_err(unreadable)?.first().map(|&byte| (byte, offset)))
    }

    pub(super) fn take(&mut self) {
        self.reader.consume(1);
        self.offset += 1;
    }

    /// The bytes at hand and where they begin; empty at the end.
    pub(super) fn chunk(&mut self) -> Result<(&[u8], u64), RowCause> {
        let offset = self.offset;
        Ok((self.reader.fill_buf().map_err(unreadable)?, offset))
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.offset += bytes as u64;
    }

    /// Whether the first byte that is not white space is `wanted`; takes the white space only when it is.
    pub(super) fn begins_with(&mut self, wanted: u8) -> Result<bool, RowCause> {
        let (head, _) = self.chunk()?;
        let blank = head.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let begins = head.get(blank) == Some(&wanted);
        if begins {
            self.consume(blank);
        }
        Ok(begins)
    }

    /// The next line, without its end, and its number from 1. A line that is too long or not UTF-8 is passed over.
    pub(super) fn next_line(&mut self) -> Option<(u64, Result<&str, RowCause>)> {
        if self.is_broken {
            return None;
        }
        self.buffer.clear();
        let start = self.offset;
        let mut is_too_long = false;
        let mut read_any = false;
        loop {
            let bytes = match self.reader.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.is_broken = true;
                    return Some((self.count + 1, Err(unreadable(error))));
                }
            };
            if bytes.is_empty() {
                break;
            }
            read_any = true;
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let taken = end.unwrap_or(bytes.len());
            // Two bytes of slack for the line's end.
            if self.buffer.len() + taken > self.limit.saturating_add(2) {
                is_too_long = true;
                self.buffer.clear();
            }
            if !is_too_long {
                self.buffer.extend_from_slice(&bytes[..taken]);
            }
            let consumed = taken + usize::from(end.is_some());
            self.reader.consume(consumed);
            self.offset += consumed as u64;
            self.is_ended = end.is_some();
            if self.is_ended {
                break;
            }
        }
        if !read_any {
            return None;
        }
        self.count += 1;
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        if is_too_long || self.buffer.len() > self.limit {
            return Some((self.count, Err(RowCause::TooLong { limit: self.limit })));
        }
        let line = std::str::from_utf8(&self.buffer)
            .map_err(|error| RowCause::Utf8 { offset: start + error.valid_up_to() as u64 });
        Some((self.count, line))
    }
}

pub(super) fn unreadable(error: std::io::Error) -> RowCause {
    let what = match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "it ends too early and may be cut off".to_owned(),
        _ => error.to_string(),
    };
    RowCause::Unreadable(what)
}
