//! The GGUF container, versions 2 and 3: metadata, tensor directory and the tensors' raw bytes.
//!
//! This module knows the file format only. Turning quantised blocks into numbers and foreign tensor names into ours
//! is done where models are (`didact-model`); the tokenizer kept in the metadata is read where text is (`didact-data`).
//!
//! A file is not trusted: every count, length and offset is compared with the bytes that are really there before
//! anything is allocated for it, so a damaged file costs an error and no more memory than a few times its own size.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::fault::{Classify, Fault};
use crate::files::FileError;
use crate::mmap::Mmap;

/// Longest nesting of arrays within arrays that is read; real files nest at most once.
const MAX_ARRAY_DEPTH: usize = 4;
/// Alignment of the data section where `general.alignment` is absent.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Why a GGUF file cannot be used. Every variant names the file, most the byte offset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file cannot be opened or mapped.
    #[error(transparent)]
    File(#[from] FileError),
    /// The first four bytes are not `GGUF`.
    #[error("`{}` is not a GGUF file: it starts with {found:?}, expected \"GGUF\"", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// Its first bytes, at most four, as text.
        found: String,
    },
    /// A version that this reader does not know, or the other byte order.
    #[error("`{}`: GGUF version {version} cannot be read, versions 2 and 3 (little-endian) can", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version number found.
        version: u32,
    },
    /// The file ends before something that it announces.
    #[error(
        "`{}`: {what} at byte {offset} needs {needed} bytes, but the file has {available} there; \
         it is cut off or damaged", path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: String,
        /// Where it starts, in bytes from the start of the file.
        offset: u64,
        /// How many bytes it needs at least.
        needed: u64,
        /// How many bytes there are from `offset` to the end.
        available: u64,
    },
    /// Something readable that makes no sense.
    #[error("`{}`: {what} at byte {offset} is {found}, expected {expected}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: String,
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// What was found.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// A tensor stored in a way that this reader does not know.
    #[error("`{}`: tensor `{name}` is stored as {kind}, which cannot be read; readable: {}", path.display(), GgmlType::names())]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The storage type's name, or its number.
        kind: String,
    },
    /// A metadata key that is needed is absent.
    #[error("`{}`: metadata key `{key}` is missing", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A metadata key holds a value of another type.
    #[error("`{}`: metadata key `{key}` holds {found}, expected {expected}", path.display())]
    KeyType {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The kind of value found.
        found: &'static str,
        /// The kind of value wanted.
        expected: &'static str,
    },
}

impl Classify for GgufError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(e) => e.fault(),
            _ => Fault::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Truncated { .. } | Self::Invalid { .. } => {
                Some("compare the file's size and hash with its source, and download it again".into())
            }
            Self::TensorType { .. } => Some("convert the model to one of the readable types".into()),
            _ => None,
        }
    }
}

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(non_camel_case_types, reason = "the names of the format")]
pub enum GgmlType {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// Brain floats.
    BF16,
    /// Blocks of 32: one f16 scale, 4-bit values minus 8.
    Q4_0,
    /// Blocks of 32: f16 scale and minimum, 4-bit values.
    Q4_1,
    /// Blocks of 32: one f16 scale, 5-bit values minus 16.
    Q5_0,
    /// Blocks of 32: f16 scale and minimum, 5-bit values.
    Q5_1,
    /// Blocks of 32: one f16 scale, signed bytes.
    Q8_0,
    /// Super-blocks of 256: 4-bit values, eight 6-bit scales and minima.
    Q4_K,
    /// Super-blocks of 256: 5-bit values, eight 6-bit scales and minima.
    Q5_K,
    /// Super-blocks of 256: 6-bit values, sixteen signed 8-bit scales.
    Q6_K,
}

/// Number in the file, type, numbers per block, bytes per block.
const TYPES: [(u32, GgmlType, usize, usize); 11] = [
    (0, GgmlType::F32, 1, 4),
    (1, GgmlType::F16, 1, 2),
    (30, GgmlType::BF16, 1, 2),
    (2, GgmlType::Q4_0, 32, 18),
    (3, GgmlType::Q4_1, 32, 20),
    (6, GgmlType::Q5_0, 32, 22),
    (7, GgmlType::Q5_1, 32, 24),
    (8, GgmlType::Q8_0, 32, 34),
    (12, GgmlType::Q4_K, 256, 144),
    (13, GgmlType::Q5_K, 256, 176),
    (14, GgmlType::Q6_K, 256, 210),
];

/// Names of the types that are not read, for messages (numbers as in `ggml.h`).
const UNREADABLE: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
];

impl GgmlType {
    fn from_number(number: u32) -> Option<Self> {
        TYPES.iter().find(|t| t.0 == number).map(|t| t.1)
    }

    /// Numbers per block.
    pub fn block_len(self) -> usize {
        TYPES.iter().find(|t| t.1 == self).expect("every type is in the table").2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        TYPES.iter().find(|t| t.1 == self).expect("every type is in the table").3
    }

    /// The name the format gives it, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    fn names() -> String {
        TYPES.map(|t| t.1.name()).join(" ")
    }
}

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// A list.
    Array(GgufArray),
}

/// A metadata list, stored by element type so that a long one takes no more memory than in the file
/// (strings: about three times as much).
#[derive(Debug, Clone, PartialEq)]
pub enum GgufArray {
    /// Unsigned bytes.
    U8(Vec<u8>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// Unsigned 16-bit integers.
    U16(Vec<u16>),
    /// Signed 16-bit integers.
    I16(Vec<i16>),
    /// Unsigned 32-bit integers.
    U32(Vec<u32>),
    /// Signed 32-bit integers.
    I32(Vec<i32>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Texts.
    String(Vec<String>),
    /// Lists of lists.
    Array(Vec<GgufArray>),
    /// Unsigned 64-bit integers.
    U64(Vec<u64>),
    /// Signed 64-bit integers.
    I64(Vec<i64>),
    /// 64-bit floats.
    F64(Vec<f64>),
}

impl GgufArray {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::Array(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl GgufValue {
    /// What kind of value this is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::F32(_) | Self::F64(_) => "a float",
            Self::Bool(_) => "a truth value",
            Self::String(_) => "a string",
            Self::Array(GgufArray::String(_)) => "an array of strings",
            Self::Array(GgufArray::Array(_)) => "an array of arrays",
            Self::Array(GgufArray::F32(_) | GgufArray::F64(_)) => "an array of floats",
            Self::Array(GgufArray::Bool(_)) => "an array of truth values",
            Self::Array(_) => "an array of integers",
        }
    }
}

/// One entry of the tensor directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// The name in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Row-major: the outermost dimension first (the file itself lists the innermost first).
    pub shape: Vec<usize>,
    /// How the numbers are stored.
    pub kind: GgmlType,
    /// Where its bytes start, from the start of the file.
    pub offset: usize,
    /// How many bytes it takes.
    pub bytes: usize,
}

impl GgufTensor {
    /// How many numbers it holds.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An opened GGUF file. The tensors stay in the file and are paged in when they are read.
#[derive(Debug, Clone)]
pub struct GgufFile {
    path: PathBuf,
    data: Mmap,
    /// The metadata by key.
    pub metadata: BTreeMap<String, GgufValue>,
    /// The tensor directory in the order of the file.
    pub tensors: Vec<GgufTensor>,
}

impl GgufFile {
    /// Maps the file and reads its metadata and tensor directory.
    ///
    /// # Errors
    /// [`GgufError`] if the file cannot be opened, is damaged, or holds tensors of a type that cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let data = Mmap::open(path)?;
        let Directory { metadata, tensors } = parse(path, &data)?;
        Ok(Self { path: path.to_owned(), data, metadata, tensors })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file, as mapped.
    pub fn data(&self) -> &Mmap {
        &self.data
    }

    /// The raw bytes of a tensor of this file's directory; `kind` says how to read them.
    ///
    /// # Panics
    /// If the tensor is not from this file.
    pub fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        &self.data[tensor.offset..tensor.offset + tensor.bytes]
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| GgufError::KeyType {
            path: self.path.clone(),
            key: key.to_owned(),
            found: value.kind(),
            expected,
        })
    }

    /// The text under `key`; `None` if the key is absent.
    ///
    /// # Errors
    /// [`GgufError::KeyType`] if the key holds something else. The same goes for the other getters.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", |v| match v {
            GgufValue::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// The non-negative integer under `key`, of whatever width.
    ///
    /// # Errors
    /// As [`get_str`](Self::get_str).
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "a non-negative integer", |v| match v {
            GgufValue::Unsigned(n) => Some(*n),
            GgufValue::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// The number under `key`. A 32-bit float is widened through its shortest decimal text, so that `1e-5` stored in
    /// 32 bits comes out as the `1e-5` that was meant.
    ///
    /// # Errors
    /// As [`get_str`](Self::get_str).
    pub fn get_f64(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a number", |v| match v {
            GgufValue::F32(x) => Some(x.to_string().parse().unwrap_or(f64::from(*x))),
            GgufValue::F64(x) => Some(*x),
            GgufValue::Unsigned(n) => Some(*n as f64),
            GgufValue::Signed(n) => Some(*n as f64),
            _ => None,
        })
    }

    /// The truth value under `key`.
    ///
    /// # Errors
    /// As [`get_str`](Self::get_str).
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a truth value", |v| match v {
            GgufValue::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// The list of texts under `key`.
    ///
    /// # Errors
    /// As [`get_str`](Self::get_str).
    pub fn get_str_array(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.typed(key, "an array of strings", |v| match v {
            GgufValue::Array(GgufArray::String(a)) => Some(a.as_slice()),
            _ => None,
        })
    }

    /// The list of integers under `key`, of whatever width, as 32-bit.
    ///
    /// # Errors
    /// As [`get_str`](Self::get_str); also if an element does not fit.
    pub fn get_i32_array(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.typed(key, "an array of 32-bit integers", |v| match v {
            GgufValue::Array(GgufArray::I32(a)) => Some(a.clone()),
            GgufValue::Array(GgufArray::U32(a)) => a.iter().map(|&x| i32::try_from(x).ok()).collect(),
            GgufValue::Array(GgufArray::U8(a)) => Some(a.iter().map(|&x| i32::from(x)).collect()),
            GgufValue::Array(GgufArray::I8(a)) => Some(a.iter().map(|&x| i32::from(x)).collect()),
            GgufValue::Array(GgufArray::U16(a)) => Some(a.iter().map(|&x| i32::from(x)).collect()),
            GgufValue::Array(GgufArray::I16(a)) => Some(a.iter().map(|&x| i32::from(x)).collect()),
            GgufValue::Array(GgufArray::I64(a)) => a.iter().map(|&x| i32::try_from(x).ok()).collect(),
            GgufValue::Array(GgufArray::U64(a)) => a.iter().map(|&x| i32::try_from(x).ok()).collect(),
            _ => None,
        })
    }

    /// The list of 32-bit floats under `key`.
    ///
    /// # Errors
    /// As [`get_str`](Self::get_str).
    pub fn get_f32_array(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.typed(key, "an array of floats", |v| match v {
            GgufValue::Array(GgufArray::F32(a)) => Some(a.as_slice()),
            _ => None,
        })
    }

    /// The error for an absent key that a caller cannot do without.
    pub fn missing(&self, key: &str) -> GgufError {
        GgufError::MissingKey { path: self.path.clone(), key: key.to_owned() }
    }
}

struct Directory {
    metadata: BTreeMap<String, GgufValue>,
    tensors: Vec<GgufTensor>,
}

struct Reader<'a> {
    path: &'a Path,
    data: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn truncated(&self, what: impl Into<String>, needed: u64) -> GgufError {
        GgufError::Truncated {
            path: self.path.to_owned(),
            what: what.into(),
            offset: self.at as u64,
            needed,
            available: (self.data.len() - self.at.min(self.data.len())) as u64,
        }
    }

    fn invalid(
        &self,
        what: impl Into<String>,
        offset: usize,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> GgufError {
        GgufError::Invalid {
            path: self.path.to_owned(),
            what: what.into(),
            offset: offset as u64,
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    fn left(&self) -> usize {
        self.data.len() - self.at
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let Some(bytes) = self.data[self.at..].first_chunk::<N>() else {
            return Err(self.truncated(what, N as u64));
        };
        self.at += N;
        Ok(*bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.take(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.take(what).map(u64::from_le_bytes)
    }

    /// Reads a count of things that take at least `min_bytes` each and refuses one that cannot be true.
    fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize, GgufError> {
        let count = self.u64(what)?;
        let needed = count.saturating_mul(min_bytes as u64);
        if needed > self.left() as u64 {
            return Err(self.truncated(format!("{what} ({count})"), needed));
        }
        Ok(count as usize)
    }

    fn string(&mut self, what: &str) -> Result<String, GgufError> {
        let len = self.count(what, 1)?;
        let start = self.at;
        self.at += len;
        std::str::from_utf8(&self.data[start..self.at])
            .map(str::to_owned)
            .map_err(|e| self.invalid(what, start + e.valid_up_to(), "not UTF-8", "text"))
    }

    fn bool(&mut self, what: &str) -> Result<bool, GgufError> {
        let at = self.at;
        match self.take::<1>(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.invalid(what, at, other, "0 or 1")),
        }
    }

    fn value(&mut self, what: &str) -> Result<GgufValue, GgufError> {
        let at = self.at;
        Ok(match self.u32(what)? {
            0 => GgufValue::Unsigned(u64::from(u8::from_le_bytes(self.take(what)?))),
            1 => GgufValue::Signed(i64::from(i8::from_le_bytes(self.take(what)?))),
            2 => GgufValue::Unsigned(u64::from(u16::from_le_bytes(self.take(what)?))),
            3 => GgufValue::Signed(i64::from(i16::from_le_bytes(self.take(what)?))),
            4 => GgufValue::Unsigned(u64::from(self.u32(what)?)),
            5 => GgufValue::Signed(i64::from(i32::from_le_bytes(self.take(what)?))),
            6 => GgufValue::F32(f32::from_le_bytes(self.take(what)?)),
            7 => GgufValue::Bool(self.bool(what)?),
            8 => GgufValue::String(self.string(what)?),
            9 => GgufValue::Array(self.array(what, 1)?),
            10 => GgufValue::Unsigned(self.u64(what)?),
            11 => GgufValue::Signed(i64::from_le_bytes(self.take(what)?)),
            12 => GgufValue::F64(f64::from_le_bytes(self.take(what)?)),
            other => return Err(self.invalid(format!("type of {what}"), at, other, "a value type from 0 to 12")),
        })
    }

    fn list<T, const N: usize>(&mut self, what: &str, from: impl Fn([u8; N]) -> T) -> Result<Vec<T>, GgufError> {
        let count = self.count(&format!("length of {what}"), N)?;
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            out.push(from(self.take(what)?));
        }
        Ok(out)
    }

    fn array(&mut self, what: &str, depth: usize) -> Result<GgufArray, GgufError> {
        let at = self.at;
        let kind = self.u32(what)?;
        if depth > MAX_ARRAY_DEPTH {
            let expected = format!("at most {MAX_ARRAY_DEPTH} levels");
            return Err(self.invalid(what, at, "an array nested deeper", expected));
        }
        Ok(match kind {
            0 => GgufArray::U8(self.list(what, u8::from_le_bytes)?),
            1 => GgufArray::I8(self.list(what, i8::from_le_bytes)?),
            2 => GgufArray::U16(self.list(what, u16::from_le_bytes)?),
            3 => GgufArray::I16(self.list(what, i16::from_le_bytes)?),
            4 => GgufArray::U32(self.list(what, u32::from_le_bytes)?),
            5 => GgufArray::I32(self.list(what, i32::from_le_bytes)?),
            6 => GgufArray::F32(self.list(what, f32::from_le_bytes)?),
            7 => {
                let count = self.count(&format!("length of {what}"), 1)?;
                GgufArray::Bool((0..count).map(|_| self.bool(what)).collect::<Result<_, _>>()?)
            }
            8 => {
                let count = self.count(&format!("length of {what}"), 8)?;
                GgufArray::String((0..count).map(|_| self.string(what)).collect::<Result<_, _>>()?)
            }
            9 => {
                let count = self.count(&format!("length of {what}"), 12)?;
                GgufArray::Array((0..count).map(|_| self.array(what, depth + 1)).collect::<Result<_, _>>()?)
            }
            10 => GgufArray::U64(self.list(what, u64::from_le_bytes)?),
            11 => GgufArray::I64(self.list(what, i64::from_le_bytes)?),
            12 => GgufArray::F64(self.list(what, f64::from_le_bytes)?),
            other => {
                return Err(self.invalid(format!("element type of {what}"), at, other, "a value type from 0 to 12"));
            }
        })
    }
}

/// A tensor's directory entry before the start of the data section is known.
struct Entry {
    at: usize,
    name: String,
    shape: Vec<usize>,
    kind: GgmlType,
    relative: u64,
    bytes: usize,
}

fn parse_entry(r: &mut Reader<'_>, index: usize) -> Result<Entry, GgufError> {
    let at = r.at;
    let name = r.string(&format!("name of tensor {index}"))?;
    let what = format!("tensor `{name}`");
    let dims_at = r.at;
    let dims = r.u32(&format!("number of dimensions of {what}"))?;
    if !(1..=4).contains(&dims) {
        return Err(r.invalid(format!("number of dimensions of {what}"), dims_at, dims, "1 to 4"));
    }
    let mut shape = Vec::with_capacity(4);
    let mut elements = 1usize;
    for _ in 0..dims {
        let dim_at = r.at;
        let dim = r.u64(&format!("dimension of {what}"))?;
        let product = usize::try_from(dim).ok().and_then(|d| elements.checked_mul(d)).filter(|&p| p > 0);
        let Some(product) = product else {
            return Err(r.invalid(format!("dimension of {what}"), dim_at, dim, "a size that fits in memory"));
        };
        elements = product;
        shape.push(dim as usize);
    }
    let number = r.u32(&format!("type of {what}"))?;
    let Some(kind) = GgmlType::from_number(number) else {
        let kind = UNREADABLE.iter().find(|t| t.0 == number).map_or(format!("type {number}"), |t| t.1.to_owned());
        return Err(GgufError::TensorType { path: r.path.to_owned(), name, kind });
    };
    if shape[0] % kind.block_len() != 0 {
        let expected = format!("a multiple of the {} numbers in a block of {}", kind.block_len(), kind.name());
        return Err(r.invalid(format!("innermost dimension of {what}"), dims_at + 4, shape[0], expected));
    }
    let relative = r.u64(&format!("offset of {what}"))?;
    let Some(bytes) = (elements / kind.block_len()).checked_mul(kind.block_bytes()) else {
        return Err(r.invalid(format!("shape of {what}"), dims_at, format!("{shape:?}"), "a size that fits in memory"));
    };
    shape.reverse();
    Ok(Entry { at, name, shape, kind, relative, bytes })
}

fn parse(path: &Path, data: &[u8]) -> Result<Directory, GgufError> {
    let mut r = Reader { path, data, at: 0 };
    if !data.starts_with(b"GGUF") {
        let found = String::from_utf8_lossy(&data[..data.len().min(4)]).into_owned();
        return Err(GgufError::Magic { path: path.to_owned(), found });
    }
    r.at = 4;
    let version = r.u32("version")?;
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version { path: path.to_owned(), version });
    }
    // Smallest entries: name length 8 + dimensions 4 + one dimension 8 + type 4 + offset 8; key length 8 + type 4 + 1.
    let tensor_count = r.count("number of tensors", 32)?;
    let key_count = r.count("number of metadata keys", 13)?;

    let mut metadata = BTreeMap::new();
    for index in 0..key_count {
        let at = r.at;
        let key = r.string(&format!("metadata key {index}"))?;
        let value = r.value(&format!("metadata value `{key}`"))?;
        if metadata.contains_key(&key) {
            return Err(r.invalid("metadata key", at, format!("`{key}` for the second time"), "each key once"));
        }
        metadata.insert(key, value);
    }

    let mut entries = Vec::with_capacity(tensor_count);
    let mut seen = BTreeSet::new();
    for index in 0..tensor_count {
        let entry = parse_entry(&mut r, index)?;
        if !seen.insert(entry.name.clone()) {
            let found = format!("`{}` for the second time", entry.name);
            return Err(r.invalid("tensor name", entry.at, found, "each tensor once"));
        }
        entries.push(entry);
    }

    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(GgufValue::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n,
        Some(other) => {
            return Err(r.invalid("`general.alignment`", r.at, format!("{other:?}"), "a power of two up to 1048576"));
        }
    };
    let data_start = (r.at as u64).next_multiple_of(alignment);
    let size = data.len() as u64;
    let mut tensors = Vec::with_capacity(entries.len());
    for Entry { at, name, shape, kind, relative, bytes } in entries {
        let what = format!("data of tensor `{name}`");
        if relative % alignment != 0 {
            return Err(r.invalid(
                format!("offset of tensor `{name}`"),
                at,
                relative,
                format!("a multiple of {alignment}"),
            ));
        }
        let start = data_start.checked_add(relative);
        let end = start.and_then(|s| s.checked_add(bytes as u64));
        match (start, end) {
            (Some(start), Some(end)) if end <= size => {
                tensors.push(GgufTensor { name, shape, kind, offset: start as usize, bytes });
            }
            _ => {
                let offset = start.unwrap_or(u64::MAX);
                return Err(GgufError::Truncated {
                    path: path.to_owned(),
                    what,
                    offset,
                    needed: bytes as u64,
                    available: size.saturating_sub(offset),
                });
            }
        }
    }
    Ok(Directory { metadata, tensors })
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
