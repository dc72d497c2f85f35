//! Models: their files and their mathematics.
//!
//! - **files**: [`config`] (`config.json` and GGUF metadata), [`shapes`] (the list of parameters), [`weights`]
//!   (safetensors and GGUF in, lazily, from memory-mapped files), [`export`] (Hugging Face directories out), [`peft`]
//!   (LoRA adapters in and out), [`memory`] and [`work`] (what running and training will take);
//! - **mathematics**: [`parameters`] (one ordered list), [`decoder`] (every architecture from one block), [`ops`] (its
//!   operators with hand-written gradients), [`gradients`] (where they are summed), [`lora`], [`init`], [`loss`], [`verify`] (against reference outputs), and [`profile`]
//!   (where a step's time goes).
#![forbid(unsafe_code)]

pub mod config;
pub mod decoder;
pub mod device;
pub mod error;
pub mod export;
pub mod gradients;
pub mod init;
pub mod lora;
pub mod loss;
pub mod memory;
pub mod ops;
pub mod parameters;
pub mod peft;
pub mod profile;
pub mod rope;
pub mod rotary;
pub mod shapes;
pub mod verify;
pub mod weights;
pub mod work;

pub use config::{Activation, Architecture, ModelConfig, Rope, RopeScaling};
pub use decoder::{Decoder, DecoderInput, ForwardMode};
pub use device::{DeviceError, DeviceKind, DeviceName};
pub use error::ModelError;
pub use lora::{LoraConfig, LoraState, TargetModules};
pub use loss::LossSum;
pub use ops::release_spare_memory;
pub use parameters::{Parameter, ParameterId, ParameterSet, ParameterValue};
pub use shapes::{ParameterSpec, expected_parameters, parameter_count};
pub use weights::{Checkpoint, Dtype};
