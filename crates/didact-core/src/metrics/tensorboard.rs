//! TensorBoard event files: TFRecord frames around hand-encoded `Event` protocol buffers.
//!
//! The few fields that scalars need are encoded here, since the crates that do it are unmaintained. Format: a frame is
//! `length: u64 LE, masked_crc32c(length): u32 LE, data, masked_crc32c(data): u32 LE`; `Event` has `wall_time` (1, double),
//! `step` (2, varint), `file_version` (3, string), `summary` (5, message), `session_log` (7, message).

use crate::files::{FailingAppend, FileError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug)]
pub(super) struct EventFile {
    file: FailingAppend,
    path: PathBuf,
}

impl EventFile {
    /// A new event file, of a session that begins at `first_step`: TensorBoard forgets what earlier files of the directory
    /// say about this step and later ones.
    pub(super) fn create(directory: &Path, first_step: u64) -> Result<Self, FileError> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let now = seconds();
        let path = directory.join(format!("events.out.tfevents.{}.{host}.{}", now as u64, std::process::id()));
        let mut events = Self { file: FailingAppend::open(&path)?, path };
        let mut version = Vec::new();
        field_bytes(&mut version, 3, b"brain.Event:2");
        events.event(0, &version)?;
        let mut start = Vec::new();
        field_varint(&mut start, 1, 1);
        let mut body = Vec::new();
        field_bytes(&mut body, 7, &start);
        events.event(first_step, &body)?;
        Ok(events)
    }

    pub(super) fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), FileError> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut scalar = Vec::new();
            field_bytes(&mut scalar, 1, tag.as_bytes());
            scalar.push(2 << 3 | 5);
            scalar.extend_from_slice(&(*value as f32).to_le_bytes());
            field_bytes(&mut summary, 1, &scalar);
        }
        let mut body = Vec::new();
        field_bytes(&mut body, 5, &summary);
        self.event(step, &body)
    }

    pub(super) fn sync(&self) -> Result<(), FileError> {
        self.file.sync()
    }

    fn event(&mut self, step: u64, body: &[u8]) -> Result<(), FileError> {
        let mut event = Vec::with_capacity(body.len() + 24);
        event.push(1 << 3 | 1);
        event.extend_from_slice(&seconds().to_le_bytes());
        field_varint(&mut event, 2, step);
        event.extend_from_slice(body);
        let length = (event.len() as u64).to_le_bytes();
        let mut frame = Vec::with_capacity(event.len() + 16);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&masked_crc(&length).to_le_bytes());
        frame.extend_from_slice(&event);
        frame.extend_from_slice(&masked_crc(&event).to_le_bytes());
        self.file.write_all(&frame).map_err(FileError::at("append to", &self.path))
    }
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

pub(super) fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn field_varint(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    varint(out, value);
}

fn field_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// One decoded protocol buffer: field number to its raw values.
    #[derive(Debug, Default)]
    struct Message(BTreeMap<u64, Vec<Field>>);

    #[derive(Debug)]
    enum Field {
        Varint(u64),
        Fixed64(u64),
        Fixed32(u32),
        Bytes(Vec<u8>),
    }

    /// A decoder of its own, from the protocol buffer specification, so that encoder and decoder cannot share a mistake.
    fn decode(mut bytes: &[u8]) -> Message {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    return value;
                }
            }
        }
        fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
            let (head, tail) = bytes.split_at(n);
            *bytes = tail;
            head
        }
        let mut message = Message::default();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let field = match tag & 7 {
                0 => Field::Varint(varint(&mut bytes)),
                1 => Field::Fixed64(u64::from_le_bytes(take(&mut bytes, 8).try_into().expect("8 bytes"))),
                2 => {
                    let n = varint(&mut bytes) as usize;
                    Field::Bytes(take(&mut bytes, n).to_vec())
                }
                5 => Field::Fixed32(u32::from_le_bytes(take(&mut bytes, 4).try_into().expect("4 bytes"))),
                other => panic!("wire type {other}"),
            };
            message.0.entry(tag >> 3).or_default().push(field);
        }
        message
    }

    /// CRC-32C bit by bit, independent of the crate that the writer uses.
    fn slow_masked_crc(bytes: &[u8]) -> u32 {
        let mut crc = !0_u32;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        let crc = !crc;
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }

    fn frames(mut bytes: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
            let crc = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
            assert_eq!(crc(8), slow_masked_crc(&bytes[..8]), "checksum of a length");
            assert_eq!(crc(12 + length), slow_masked_crc(&bytes[12..12 + length]), "checksum of an event");
            messages.push(decode(&bytes[12..12 + length]));
            bytes = &bytes[16 + length..];
        }
        messages
    }

    fn bytes(message: &Message, field: u64) -> Vec<&[u8]> {
        let fields = message.0.get(&field).map_or(&[][..], Vec::as_slice);
        fields.iter().map(|f| if let Field::Bytes(b) = f { b.as_slice() } else { panic!("not bytes: {f:?}") }).collect()
    }

    fn step(message: &Message) -> u64 {
        let Field::Varint(step) = message.0[&2][0] else { panic!("a step is a varint") };
        step
    }

    #[test]
    fn an_independent_reader_finds_version_session_and_scalars() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut events = EventFile::create(dir.path(), 301).expect("creates");
        events.scalars(301, &[("train/loss", 2.5), ("train/learning_rate", 1e-3)]).expect("writes");
        events.scalars(70_000, &[("eval/loss", f64::NAN)]).expect("writes");
        events.sync().expect("syncs");
        let path = events.path.clone();
        assert!(path.file_name().expect("a name").to_string_lossy().starts_with("events.out.tfevents."));
        let frames = frames(&std::fs::read(path).expect("reads"));
        assert_eq!(frames.len(), 4);
        for frame in &frames {
            let Field::Fixed64(time) = frame.0[&1][0] else { panic!("a time is a double") };
            assert!(f64::from_bits(time) > 1.7e9, "a wall time in seconds");
        }
        assert_eq!(bytes(&frames[0], 3), [b"brain.Event:2"]);
        let session = decode(bytes(&frames[1], 7)[0]);
        assert!(matches!(session.0[&1][0], Field::Varint(1)), "a session begins");
        assert_eq!(step(&frames[1]), 301);
        let scalars = |frame: &Message| -> Vec<(String, f32)> {
            let summary = decode(bytes(frame, 5)[0]);
            let values = bytes(&summary, 1).into_iter().map(|value| {
                let value = decode(value);
                let Field::Fixed32(bits) = value.0[&2][0] else { panic!("a simple_value is a float") };
                (String::from_utf8(bytes(&value, 1)[0].to_vec()).expect("text"), f32::from_bits(bits))
            });
            values.collect()
        };
        assert_eq!(scalars(&frames[2]), [("train/loss".to_owned(), 2.5), ("train/learning_rate".to_owned(), 1e-3)]);
        assert_eq!((step(&frames[2]), step(&frames[3])), (301, 70_000));
        assert!(scalars(&frames[3])[0].1.is_nan());
    }
}
