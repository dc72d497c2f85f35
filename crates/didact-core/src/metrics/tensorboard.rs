//! TensorBoard event files: TFRecord frames around hand-encoded `Event` protocol buffers.
//!
//! The few fields that scalars need are encoded here, since the crates that do it are unmaintained. Format: a frame is
//! `length: u64 LE, masked_crc32c(length): u32 LE, data, masked_crc32c(data): u32 LE`; `Event` has `wall_time` (1, double),
//! `step` (2, varint), `file_version` (3, string), `summary` (5, message), `session_log` (7, message).

use crate::files::{FileError, FailingAppend};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug)]
pub(super) struct EventFile {
    file: FailingAppend,
    path: PathBuf,
}

impl EventFile {
    /// A new event file. When a run goes on after `resume_from_step`, TensorBoard is told to forget the steps after it.
    pub(super) fn create(directory: &Path, resume_from_step: Option<u64>) -> Result<Self, FileError> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let now = seconds();
        let path = directory.join(format!("events.out.tfevents.{}.{host}.{}", now as u64, std::process::id()));
        let mut events = Self { file: FailingAppend::open(&path)?, path };
        let mut version = Vec::new();
        field_bytes(&mut version, 3, b"brain.Event:2");
        events.event(0, &version)?;
        if let Some(step) = resume_from_step {
            let mut start = Vec::new();
            field_varint(&mut start, 1, 1);
            let mut body = Vec::new();
            field_bytes(&mut body, 7, &start);
            events.event(step + 1, &body)?;
        }
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
