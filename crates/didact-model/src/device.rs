//! Where training computes, by the names that users type.
//!
//! The CPU is always there, with the hand-written operators of [`ops`](crate::ops). Every other device is a Cargo feature of
//! the same name, runs the composition of Burn's own operators in `f32`, and its parameters are updated in this
//! process's memory.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
use didact_core::fault::{Classify, Fault};

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceKind {
    /// This machine's processor.
    #[default]
    Cpu,
    /// NVIDIA's.
    Cuda,
    /// AMD's.
    Rocm,
    /// Apple's.
    Metal,
    /// Whatever speaks Vulkan, through SPIR-V.
    Vulkan,
    /// The best that is found through any graphics API.
    Wgpu,
}

/// A device as users name it: `cpu`, `cuda`, `cuda:1`, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DeviceName {
    /// Its kind.
    pub kind: DeviceKind,
    /// Which one of its kind, from 0.
    pub index: usize,
}

/// Why there is no such device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No such name.
    #[error("expected cpu, cuda[:i], rocm[:i], metal, vulkan[:i] or wgpu, found `{text}`")]
    Unknown {
        /// What was asked for.
        text: String,
    },
    /// A part after the colon that does not belong there.
    #[error("`{kind}` takes {}, found `{text}`", if kind.takes_index() { "a number after the colon" } else { "no index" })]
    Index {
        /// The kind before the colon.
        kind: DeviceKind,
        /// What was asked for.
        text: String,
    },
    /// The program was built without it.
    #[error("this build has no device `{kind}`")]
    NotBuilt {
        /// What was asked for.
        kind: DeviceKind,
    },
    /// This machine has none, or not that many.
    #[error("there is no device `{name}`: this machine has {found} of its kind")]
    Absent {
        /// What was asked for.
        name: DeviceName,
        /// How many there are.
        found: usize,
    },
    /// Products that only the CPU computes.
    #[error("`{name}` computes in f32 only, found precision `bf16`")]
    Precision {
        /// What was asked for.
        name: DeviceName,
    },
}

impl Classify for DeviceError {
    fn fault(&self) -> Fault {
        Fault::Input
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } | Self::Index { .. } => None,
            Self::NotBuilt { kind } => Some(format!(
                "build with `cargo build --release --bin didact --features {kind}`, or use `--device cpu`"
            )),
            Self::Absent { .. } => Some("see `didact doctor` for the devices there are, or use `--device cpu`".into()),
            Self::Precision { .. } => Some("use `--precision f32`, or `--device cpu`".into()),
        }
    }
}

impl DeviceKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Cpu, Self::Cuda, Self::Rocm, Self::Metal, Self::Vulkan, Self::Wgpu];

    /// The name, which is also that of the Cargo feature.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
            Self::Metal => "metal",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
        }
    }

    /// Whether one of several can be named.
    pub fn takes_index(self) -> bool {
        matches!(self, Self::Cuda | Self::Rocm | Self::Vulkan)
    }

    /// Whether the program was built with it.
    pub fn is_built(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Rocm => cfg!(feature = "rocm"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Wgpu => cfg!(feature = "wgpu"),
        }
    }

    /// The devices of this kind that this machine has, in order of their index; none when the program was built without.
    pub fn devices(self) -> Vec<Device> {
        match self {
            Self::Cpu => vec![Device::flex()],
            #[cfg(feature = "cuda")]
            Self::Cuda => Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec(),
            #[cfg(feature = "rocm")]
            Self::Rocm => Device::enumerate(burn::tensor::DeviceType::Rocm).into_vec(),
            #[cfg(feature = "metal")]
            Self::Metal => Device::enumerate(burn::tensor::DeviceType::Metal).into_vec(),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Device::enumerate(burn::tensor::DeviceType::Vulkan).into_vec(),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec(),
            #[cfg(not(all(
                feature = "cuda",
                feature = "rocm",
                feature = "metal",
                feature = "vulkan",
                feature = "wgpu"
            )))]
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl DeviceName {
    /// Whether it is this machine's processor.
    pub fn is_cpu(self) -> bool {
        self.kind == DeviceKind::Cpu
    }

    /// The device itself.
    ///
    /// # Errors
    /// [`DeviceError::NotBuilt`] or [`DeviceError::Absent`].
    pub fn open(self) -> Result<Device, DeviceError> {
        let Self { kind, index } = self;
        if !kind.is_built() {
            return Err(DeviceError::NotBuilt { kind });
        }
        let devices = kind.devices();
        let found = devices.len();
        devices.into_iter().nth(index).ok_or(DeviceError::Absent { name: self, found })
    }
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let (name, index) = text.split_once(':').map_or((text, None), |(name, index)| (name, Some(index)));
        let Some(kind) = DeviceKind::ALL.into_iter().find(|kind| kind.as_str() == name) else {
            return Err(DeviceError::Unknown { text: text.to_owned() });
        };
        let Some(index) = index else { return Ok(Self { kind, index: 0 }) };
        match index.parse::<u32>() {
            Ok(index) if kind.takes_index() => Ok(Self { kind, index: index as usize }),
            _ => Err(DeviceError::Index { kind, text: text.to_owned() }),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            0 => write!(f, "{}", self.kind),
            index => write!(f, "{}:{index}", self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DeviceName, DeviceError> {
        text.parse()
    }

    #[test]
    fn names_are_read_as_they_are_printed() {
        for text in ["cpu", "cuda", "cuda:1", "rocm:2", "metal", "vulkan:3", "wgpu"] {
            assert_eq!(parse(text).expect("a device's name").to_string(), text);
        }
        assert_eq!(parse("cuda:0"), parse("cuda"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_what_would_be() {
        let message = |text| parse(text).expect_err("is no device").to_string();
        assert_eq!(message("tpu"), "expected cpu, cuda[:i], rocm[:i], metal, vulkan[:i] or wgpu, found `tpu`");
        assert_eq!(message("cuda:x"), "`cuda` takes a number after the colon, found `cuda:x`");
        assert_eq!(message("cpu:0"), "`cpu` takes no index, found `cpu:0`");
    }

    #[test]
    fn a_device_that_is_not_built_names_its_feature() {
        for kind in DeviceKind::ALL.into_iter().filter(|kind| !kind.is_built()) {
            let error = DeviceName { kind, index: 0 }.open().expect_err("is not built");
            assert_eq!(error, DeviceError::NotBuilt { kind });
            assert!(error.hint().is_some_and(|hint| hint.contains(&format!("--features {kind}"))), "{error}");
            assert!(kind.devices().is_empty());
        }
    }

    #[test]
    fn there_is_one_cpu() {
        assert_eq!(DeviceName::default().open(), Ok(Device::flex()));
        let second = DeviceName { kind: DeviceKind::Cpu, index: 1 };
        assert_eq!(second.open(), Err(DeviceError::Absent { name: second, found: 1 }));
    }
}
