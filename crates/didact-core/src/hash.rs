//! Content hashes: what makes a cached stage trustworthy.

use crate::files::{self, FileError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::Path;

/// A BLAKE3 digest, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The first twelve digits, enough to tell runs apart in a file name.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl std::str::FromStr for Digest {
    type Err = blake3::HexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes()))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes named fields, each with its length, so that no two different lists of fields look alike.
#[derive(Debug, Clone, Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// A hasher of no fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field.
    pub fn field(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        for part in [name.as_bytes(), bytes] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The digest of all fields so far.
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

/// The digest of some bytes.
pub fn hash_bytes(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// The digest of a JSON value, whatever the order of its keys.
pub fn hash_json(value: &Value) -> Digest {
    hash_bytes(canonical(value).to_string().as_bytes())
}

/// The value with all keys sorted.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            Value::Object(entries.into_iter().map(|(key, value)| (key.clone(), canonical(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

/// The digest of a file's content.
///
/// # Errors
/// When the file cannot be read.
pub fn hash_file(path: impl AsRef<Path>) -> Result<Digest, FileError> {
    let path = path.as_ref();
    let mut file = std::fs::File::open(path).map_err(FileError::at("read", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = std::io::Read::read(&mut file, &mut buffer).map_err(FileError::at("read", path))?;
        if n == 0 {
            return Ok(Digest(*hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// The digest of a directory: relative paths in sorted order with their contents, without those `is_left_out` names.
///
/// # Errors
/// When something in it cannot be read.
pub fn hash_dir(root: impl AsRef<Path>, is_left_out: impl Fn(&Path) -> bool) -> Result<Digest, FileError> {
    let root = root.as_ref();
    let mut hasher = Hasher::new();
    let mut pending = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(dir) = pending.pop() {
        for entry in files::list_dir(&dir)? {
            if entry.is_dir() {
                pending.push(entry);
            } else {
                found.push(entry);
            }
        }
    }
    found.sort();
    for path in found {
        let relative = path.strip_prefix(root).unwrap_or(&path);
        if !is_left_out(relative) {
            hasher.field(&relative.to_string_lossy(), hash_file(&path)?.0.as_slice());
        }
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn key_order_does_not_change_a_hash_but_values_do() {
        assert_eq!(
            hash_json(&json!({"a": 1, "b": {"c": 2, "d": 3}})),
            hash_json(&json!({"b": {"d": 3, "c": 2}, "a": 1}))
        );
        assert_ne!(hash_json(&json!({"a": 1})), hash_json(&json!({"a": 2})));
    }

    #[test]
    fn fields_cannot_be_shifted_into_each_other() {
        let digest = |fields: &[(&str, &str)]| {
            let mut hasher = Hasher::new();
            for (name, bytes) in fields {
                hasher.field(name, bytes.as_bytes());
            }
            hasher.finish()
        };
        assert_ne!(digest(&[("a", "bc")]), digest(&[("ab", "c")]));
        assert_ne!(digest(&[("a", "b"), ("c", "d")]), digest(&[("a", "bcd")]));
    }

    #[test]
    fn digests_survive_json() {
        let digest = hash_bytes(b"x");
        let text = serde_json::to_string(&digest).expect("a string");
        assert_eq!(serde_json::from_str::<Digest>(&text).expect("a digest"), digest);
    }
}
