//! Many rows to sequences on all threads, in the order of the rows.

use std::cell::Cell;

use didact_core::cancel::Cancel;
use didact_core::example::SourcedExample;
use rayon::prelude::*;

use crate::check::text_size;
use crate::encode::{Encoded, Encoder};
use crate::error::DataError;

/// Rows encoded at a time: enough to keep every thread busy, few enough that they and their tokens stay small in memory.
const CHUNK_ROWS: usize = 256;
/// Bytes of text at which a chunk is closed before it has that many rows: documents can be long.
const CHUNK_BYTES: usize = 8 << 20;

/// Gathers rows, encodes them on all threads of rayon's current pool a chunk at a time, and hands each to a sink with its
/// sequences, in order and on the calling thread.
///
/// What comes out does not depend on the number of threads: neither the order, nor which error is seen first (that of the
/// first row at fault). Rows before the one at fault reach the sink. `T` is a tag that travels with the row.
#[derive(Debug)]
pub struct EncodeQueue<'e, 't, T> {
    encoder: &'e Encoder<'t>,
    waiting: Vec<(T, SourcedExample)>,
    bytes: usize,
}

impl<'e, 't, T: Sync> EncodeQueue<'e, 't, T> {
    /// An empty queue.
    pub fn new(encoder: &'e Encoder<'t>) -> Self {
        encoder.tokenizer().prepare_for_much();
        Self { encoder, waiting: Vec::with_capacity(CHUNK_ROWS), bytes: 0 }
    }

    /// Adds a row; when that fills a chunk, the chunk goes to `sink`.
    ///
    /// # Errors
    /// The first error of the encoder or of the sink.
    pub fn push<E: From<DataError>>(
        &mut self,
        tag: T,
        row: SourcedExample,
        sink: impl FnMut(T, SourcedExample, Vec<Encoded>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.bytes += text_size(&row.example, str::len);
        self.waiting.push((tag, row));
        if self.waiting.len() >= CHUNK_ROWS || self.bytes >= CHUNK_BYTES { self.flush(sink) } else { Ok(()) }
    }

    /// Hands over the rows that wait. To be called at the end.
    ///
    /// # Errors
    /// The first error of the encoder or of the sink.
    pub fn flush<E: From<DataError>>(
        &mut self,
        mut sink: impl FnMut(T, SourcedExample, Vec<Encoded>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.bytes = 0;
        let encoder = self.encoder;
        let encoded: Vec<_> = self.waiting.par_iter().map(|(_, row)| encoder.encode(row)).collect();
        for ((tag, row), encoded) in self.waiting.drain(..).zip(encoded) {
            sink(tag, row, encoded?)?;
        }
        Ok(())
    }
}

/// How [`encode_in_order`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Every row went through.
    Finished {
        /// How many.
        rows: u64,
    },
    /// A stop was asked for; these first rows went through.
    Cancelled {
        /// How many.
        rows: u64,
    },
}

/// Encodes all rows by an [`EncodeQueue`], looking at `cancel` before each.
///
/// # Errors
/// The first error of the rows, of the encoder or of the sink.
pub fn encode_in_order<E: From<DataError>>(
    encoder: &Encoder<'_>,
    rows: impl Iterator<Item = Result<SourcedExample, E>>,
    cancel: &Cancel,
    mut sink: impl FnMut(SourcedExample, Vec<Encoded>) -> Result<(), E>,
) -> Result<Encoding, E> {
    let mut queue = EncodeQueue::new(encoder);
    let done = Cell::new(0);
    let mut counting = |(), row, encoded| -> Result<(), E> {
        sink(row, encoded)?;
        done.set(done.get() + 1);
        Ok(())
    };
    for row in rows {
        if cancel.is_cancelled() {
            return Ok(Encoding::Cancelled { rows: done.get() });
        }
        match row {
            Ok(row) => queue.push((), row, &mut counting)?,
            Err(error) => {
                queue.flush(&mut counting)?;
                return Err(error);
            }
        }
    }
    queue.flush(&mut counting)?;
    Ok(Encoding::Finished { rows: done.get() })
}

#[cfg(test)]
mod tests;
