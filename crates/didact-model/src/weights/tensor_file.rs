//! One safetensors file, mapped.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use didact_core::mmap::Mmap;
use safetensors::SafeTensors;

use super::dtype::Dtype;
use crate::error::ModelError;

/// A mapped safetensors file with its header read and checked.
#[derive(Debug, Clone)]
pub(crate) struct TensorFile {
    pub(crate) path: PathBuf,
    data: Mmap,
    pub(crate) tensors: BTreeMap<String, TensorEntry>,
}

/// Where one tensor is.
#[derive(Debug, Clone)]
pub(crate) struct TensorEntry {
    pub(crate) dtype: safetensors::Dtype,
    pub(crate) shape: Vec<usize>,
    range: Range<usize>,
}

impl TensorFile {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let data = Mmap::open(path)?;
        let damaged = |source| ModelError::Safetensors { path: path.to_owned(), size: data.len() as u64, source };
        let (header, metadata) = SafeTensors::read_metadata(&data).map_err(damaged)?;
        // Checks that the tensors' ranges cover the file exactly; the metadata alone does not know its size.
        SafeTensors::deserialize(&data).map_err(damaged)?;
        let start = header + 8;
        let mut tensors = BTreeMap::new();
        for name in metadata.offset_keys() {
            let info = metadata.info(&name).expect("the name is from this list");
            let (from, to) = info.data_offsets;
            let range = start + from..start + to;
            tensors.insert(name, TensorEntry { dtype: info.dtype, shape: info.shape.clone(), range });
        }
        Ok(Self { path: path.to_owned(), data, tensors })
    }

    /// A tensor's numbers; `None` if the file does not have it.
    pub(crate) fn read(&self, name: &str) -> Option<Result<Vec<f32>, ModelError>> {
        let entry = self.tensors.get(name)?;
        Some(match Dtype::from_safetensors(entry.dtype) {
            Some(dtype) => Ok(dtype.decode(&self.data[entry.range.clone()])),
            None => Err(self.wrong_dtype(name, entry)),
        })
    }

    pub(crate) fn wrong_dtype(&self, name: &str, entry: &TensorEntry) -> ModelError {
        ModelError::Dtype {
            path: self.path.clone(),
            tensor: name.to_owned(),
            found: format!("{:?}", entry.dtype),
            expected: Dtype::names(),
        }
    }
}
