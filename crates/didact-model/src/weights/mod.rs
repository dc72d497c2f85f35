//! Weights in: safetensors (one file, or shards with an index) and GGUF, from memory-mapped files, one tensor at a time.

mod checkpoint;
mod dequantize;
mod dtype;
mod gguf_names;
mod tensor_file;

pub use checkpoint::Checkpoint;
pub use dequantize::dequantize;
pub use dtype::Dtype;
pub(crate) use tensor_file::TensorFile;
