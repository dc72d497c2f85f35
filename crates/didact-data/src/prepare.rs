//! Many rows to sequences on all threads, in the order of the rows.

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

/// How [`encode_in_order`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Every row went through.
    Finished {
        /// How many.
        rows: u64,
    },
    /// A stop was asked for; rows of whole chunks went through.
    Cancelled {
        /// How many.
        rows: u64,
    },
}

/// Encodes rows on all threads of rayon's current pool and hands each to `sink` with its sequences, in order and on the
/// calling thread. What comes out does not depend on the number of threads: neither the order, nor which error is seen
/// first (that of the first row at fault). Rows before the one at fault reach the sink.
///
/// # Errors
/// The first error of the rows, of the encoder or of the sink.
pub fn encode_in_order<E: From<DataError>>(
    encoder: &Encoder<'_>,
    rows: impl Iterator<Item = Result<SourcedExample, E>>,
    cancel: &Cancel,
    mut sink: impl FnMut(SourcedExample, Vec<Encoded>) -> Result<(), E>,
) -> Result<Encoding, E> {
    let mut rows = rows.fuse();
    let mut done = 0;
    loop {
        if cancel.is_cancelled() {
            return Ok(Encoding::Cancelled { rows: done });
        }
        let mut chunk = Vec::with_capacity(CHUNK_ROWS);
        let mut bytes = 0;
        let mut failed = None;
        while chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
            match rows.next() {
                None => break,
                Some(Ok(row)) => {
                    bytes += text_size(&row.example, str::len);
                    chunk.push(row);
                }
                Some(Err(error)) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if chunk.is_empty() && failed.is_none() {
            return Ok(Encoding::Finished { rows: done });
        }
        let encoded: Vec<Result<Vec<Encoded>, DataError>> = chunk.par_iter().map(|row| encoder.encode(row)).collect();
        for (row, encoded) in chunk.into_iter().zip(encoded) {
            sink(row, encoded?)?;
            done += 1;
        }
        if let Some(error) = failed {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests;
