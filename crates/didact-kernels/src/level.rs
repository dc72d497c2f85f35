//! Which instructions the kernels use: found once, at run time, and forced with `DIDACT_CPU`.

use std::fmt;
use std::sync::OnceLock;

/// The environment variable that forces a level.
pub const VARIABLE: &str = "DIDACT_CPU";

/// A set of CPU features that the kernels are written for, from least to most.
///
/// `Avx2`, `Avx512` and `Avx512Bf16` give the same bits as each other in f32; `Portable` has no fused multiply-add and
/// rounds differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust, every machine.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 and its bf16 dot product.
    Avx512Bf16,
}

impl Level {
    /// Every level, least first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The name that `DIDACT_CPU` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = || {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            match self {
                Self::Portable => true,
                Self::Avx2 => avx2(),
                Self::Avx512 => avx512(),
                Self::Avx512Bf16 => avx512() && is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// The highest level this machine can run.
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }

    /// The level that runs unless `DIDACT_CPU` says otherwise: the highest one, but for processors whose bf16 dot product
    /// multiplies no more per cycle than their fused multiply-add of f32. Intel's is such (a Sapphire Rapids did 163
    /// GFLOP/s with it and 281 without: `peak_gflops` of `didact bench train --model small --precision bf16 --json` with
    /// `DIDACT_CPU=avx512bf16` and `avx512`), AMD's does twice as much.
    pub fn preferred() -> Self {
        match Self::best() {
            Self::Avx512Bf16 if is_intel() => Self::Avx512,
            best => best,
        }
    }

    /// The levels this machine can run, least first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|level| level.is_available())
    }
}

/// Whether the processor calls itself one of Intel's.
fn is_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why `DIDACT_CPU` cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LevelError {
    /// No such level.
    Unknown {
        /// What the variable holds.
        value: String,
    },
    /// This machine lacks the instructions.
    Unavailable {
        /// What was asked for.
        level: Level,
        /// The best this machine has.
        best: Level,
    },
}

impl fmt::Display for LevelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { value } => {
                write!(f, "{VARIABLE} is `{value}`, expected one of portable, avx2, avx512, avx512bf16")
            }
            Self::Unavailable { level, best } => {
                write!(f, "{VARIABLE} asks for `{level}`, which this machine cannot run; its best level is `{best}`")
            }
        }
    }
}

impl std::error::Error for LevelError {}

/// Reads a level's name and checks that this machine can run it. `None` or an empty text is the preferred level.
///
/// # Errors
/// When there is no such level or the machine lacks it.
pub fn parse_level(value: Option<&str>) -> Result<Level, LevelError> {
    let Some(value) = value.filter(|v| !v.is_empty()) else { return Ok(Level::preferred()) };
    let level = Level::ALL
        .into_iter()
        .find(|level| level.as_str() == value)
        .ok_or_else(|| LevelError::Unknown { value: value.to_owned() })?;
    if level.is_available() { Ok(level) } else { Err(LevelError::Unavailable { level, best: Level::best() }) }
}

/// The level in force in this process, for a program to call first and report what is wrong with `DIDACT_CPU`.
///
/// # Errors
/// When `DIDACT_CPU` names no level or one that this machine cannot run.
pub fn init_level() -> Result<Level, LevelError> {
    static LEVEL: OnceLock<Result<Level, LevelError>> = OnceLock::new();
    LEVEL
        .get_or_init(|| parse_level(std::env::var_os(VARIABLE).map(|v| v.to_string_lossy().into_owned()).as_deref()))
        .clone()
}

/// The level in force in this process.
///
/// # Panics
/// If `DIDACT_CPU` cannot be obeyed; programs call [`init_level`] first.
pub fn level() -> Level {
    init_level().unwrap_or_else(|error| panic!("{error}"))
}

/// The number format in which matrices are multiplied. Sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// Operands rounded to bf16 (nearest, ties to even).
    Bf16,
}

impl Precision {
    /// `f32` or `bf16`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_can_be_named() {
        for level in Level::available() {
            assert_eq!(parse_level(Some(level.as_str())), Ok(level));
        }
        assert_eq!(parse_level(None), Ok(Level::preferred()));
        assert_eq!(parse_level(Some("")), Ok(Level::preferred()));
        assert!(Level::preferred().is_available());
    }

    #[test]
    fn an_unknown_level_lists_the_known_ones() {
        let error = parse_level(Some("sse9")).expect_err("there is no such level");
        assert_eq!(error.to_string(), "DIDACT_CPU is `sse9`, expected one of portable, avx2, avx512, avx512bf16");
    }

    #[test]
    fn an_unavailable_level_names_the_best_one() {
        let error = LevelError::Unavailable { level: Level::Avx512Bf16, best: Level::Avx2 };
        assert_eq!(
            error.to_string(),
            "DIDACT_CPU asks for `avx512bf16`, which this machine cannot run; its best level is `avx2`"
        );
    }
}
