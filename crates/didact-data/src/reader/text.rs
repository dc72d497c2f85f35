//! Documents of a plain-text file.

use super::lines::Lines;
use super::{RowCause, TextUnit};

/// Reads documents. Line ends come out as `\n`, whatever they were; documents without any visible character are passed
/// over.
#[derive(Debug)]
pub(super) struct Documents {
    lines: Lines,
    unit: TextUnit,
    count: u64,
}

impl Documents {
    pub(super) fn new(lines: Lines, unit: TextUnit) -> Self {
        Self { lines, unit, count: 0 }
    }

    /// The next document and its number, from 1.
    pub(super) fn next_document(&mut self) -> Option<(u64, Result<String, RowCause>)> {
        loop {
            let document = self.document()?;
            if matches!(&document, Ok(text) if text.trim().is_empty()) {
                continue;
            }
            self.count += 1;
            return Some((self.count, document));
        }
    }

    fn document(&mut self) -> Option<Result<String, RowCause>> {
        let limit = self.lines.limit();
        let mut text = String::new();
        let mut fault = None;
        let mut read_any = false;
        while let Some((_, line)) = self.lines.next_line() {
            read_any = true;
            let is_last = match line {
                Ok(line) => {
                    let is_blank = line.trim().is_empty();
                    if self.unit != TextUnit::Paragraph || !is_blank {
                        if fault.is_none() && text.len() + line.len() > limit {
                            fault = Some(RowCause::TooLong { limit });
                            text = String::new();
                        }
                        if fault.is_none() {
                            text.push_str(line);
                            text.push('\n');
                        }
                    }
                    self.unit == TextUnit::Line || self.unit == TextUnit::Paragraph && is_blank
                }
                Err(cause) => {
                    let is_fatal = !cause.is_about_a_row();
                    fault.get_or_insert(cause);
                    is_fatal || self.unit == TextUnit::Line
                }
            };
            if is_last {
                break;
            }
        }
        if !read_any {
            return None;
        }
        if let Some(cause) = fault {
            return Some(Err(cause));
        }
        // A unit within a file ends without the break that separates it from the next; a file ends as it ends.
        if self.unit != TextUnit::File || !self.lines.is_ended() {
            text.pop();
        }
        Some(Ok(text))
    }
}
