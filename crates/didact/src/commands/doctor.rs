//! `didact doctor`: what this machine has, and what it costs that something is missing.

use super::model::bytes;
use crate::memory;
use crate::output::{Output, Status};
use didact_core::progress::Table;
use didact_kernels::Level;
use didact_model::DeviceKind;
use didact_verify::sandbox::{Mechanism, Sandbox};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Report {
    version: String,
    os: String,
    cpu: Cpu,
    memory: Memory,
    devices: Vec<Device>,
    sandbox: SandboxState,
    tools: Vec<Tool>,
    environment: Vec<Variable>,
}

#[derive(Serialize)]
struct Cpu {
    name: Option<String>,
    architecture: &'static str,
    cores: usize,
    /// Threads that this process uses.
    threads: usize,
    features: Vec<&'static str>,
    /// Kernels in force.
    level: &'static str,
    levels: Vec<&'static str>,
    /// Whether bf16 products run in hardware.
    bf16: bool,
}

#[derive(Serialize)]
struct Memory {
    total_bytes: Option<u64>,
    free_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Device {
    name: &'static str,
    available: bool,
    /// How many of them; `--device name:i` takes one where there can be several.
    count: usize,
    note: String,
}

#[derive(Serialize)]
struct SandboxState {
    available: bool,
    /// What would hold a program: `bubblewrap` or `landlock`.
    mechanism: Option<Mechanism>,
    note: String,
}

#[derive(Serialize)]
struct Tool {
    name: &'static str,
    path: Option<PathBuf>,
    /// What does not work without it.
    without_it: &'static str,
}

#[derive(Serialize)]
struct Variable {
    name: &'static str,
    value: String,
}

/// Programs that Didact calls, and what is lost without each.
const TOOLS: [(&str, &str); 5] = [
    ("python3", "`model pull` cannot turn to the package registry; the hub still works"),
    ("pip", "as python3, unless `python3 -m pip` works"),
    ("bwrap", "the sandbox is the weaker one of Landlock; install `bubblewrap`"),
    ("iverilog", "Verilog is not compiled, so not verified; install `iverilog`"),
    ("vvp", "Verilog is not simulated, so not verified; install `iverilog`"),
];

/// Variables that change what Didact does. Tokens are only said to be there.
const VARIABLES: [&str; 14] = [
    "DIDACT_CPU",
    "DIDACT_LOG",
    "DIDACT_FAIL",
    "DIDACT_PYTHON",
    "RAYON_NUM_THREADS",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "XDG_CACHE_HOME",
    "NO_COLOR",
    "COLUMNS",
];

pub(crate) fn run(threads: usize, output: &Output) -> anyhow::Result<Status> {
    let report = Report {
        version: super::version(),
        os: sysinfo::System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
        cpu: Cpu {
            name: cpu_name(),
            architecture: std::env::consts::ARCH,
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            threads,
            features: features(),
            level: didact_kernels::level().as_str(),
            levels: Level::available().map(Level::as_str).collect(),
            bf16: Level::Avx512Bf16.is_available(),
        },
        memory: Memory { total_bytes: memory::total(), free_bytes: memory::free() },
        devices: DeviceKind::ALL.into_iter().map(device).collect(),
        sandbox: sandbox(),
        tools: TOOLS.iter().map(|&(name, without_it)| Tool { name, path: on_path(name), without_it }).collect(),
        environment: VARIABLES.iter().filter_map(|name| variable(name)).collect(),
    };
    output.result(&report, || text(&report, output))?;
    Ok(Status::Done)
}

pub(super) fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        known.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

fn device(kind: DeviceKind) -> Device {
    let count = kind.devices().len();
    let note = match count {
        _ if !kind.is_built() => format!("not in this build; build with `--features {kind}` to train on it"),
        0 => "this machine has none".to_owned(),
        _ => String::new(),
    };
    Device { name: kind.as_str(), available: count > 0, count, note }
}

/// What would hold a program that a model wrote, found by running something in it.
fn sandbox() -> SandboxState {
    let found = std::env::current_exe().map_err(|e| e.to_string());
    match found.and_then(|helper| Sandbox::detect(&helper).map_err(|e| e.to_string())) {
        Ok(sandbox) => {
            let mechanism = sandbox.mechanism();
            SandboxState { available: true, mechanism: Some(mechanism), note: mechanism.describe().to_owned() }
        }
        Err(note) => SandboxState { available: false, mechanism: None, note },
    }
}

/// Where a program is on `PATH`.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn variable(name: &'static str) -> Option<Variable> {
    let value = std::env::var_os(name)?.to_string_lossy().into_owned();
    Some(Variable { name, value: if name.contains("TOKEN") { "(set)".to_owned() } else { value } })
}

fn text(report: &Report, output: &Output) -> String {
    let cpu = &report.cpu;
    let known = |amount: Option<u64>| amount.map_or("unknown".to_owned(), bytes);
    let (free, total) = (known(report.memory.free_bytes), known(report.memory.total_bytes));
    let bf16 = if cpu.bf16 { "in hardware" } else { "rounded and multiplied in f32: no faster than f32" };
    let mut rows = vec![
        ["version".to_owned(), report.version.clone()],
        ["system".to_owned(), format!("{} ({})", report.os, cpu.architecture)],
        ["processor".to_owned(), cpu.name.clone().unwrap_or_else(|| "unknown".to_owned())],
        ["cores".to_owned(), format!("{}, {} used", cpu.cores, cpu.threads)],
        ["features".to_owned(), cpu.features.join(" ")],
        ["kernels".to_owned(), format!("{} (this machine has {})", cpu.level, cpu.levels.join(", "))],
        ["bf16".to_owned(), bf16.to_owned()],
        ["memory".to_owned(), format!("{free} free of {total}")],
        ["sandbox".to_owned(), report.sandbox.note.clone()],
    ];
    for device in &report.devices {
        let note = match device.count {
            0 => device.note.clone(),
            1 => "available".to_owned(),
            count => format!("{count} available"),
        };
        rows.push([format!("device {}", device.name), note]);
    }
    for tool in &report.tools {
        let state = match &tool.path {
            Some(path) => path.display().to_string(),
            None => format!("missing: {}", tool.without_it),
        };
        rows.push([tool.name.to_owned(), state]);
    }
    for variable in &report.environment {
        rows.push([variable.name.to_owned(), variable.value.clone()]);
    }
    output.table(&Table {
        title: String::new(),
        columns: ["what", "found"].map(str::to_owned).to_vec(),
        rows: rows.into_iter().map(Vec::from).collect(),
    })
}
