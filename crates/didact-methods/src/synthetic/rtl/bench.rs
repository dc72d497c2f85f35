//! What a task's bench gives to a module, and the same bench in Verilog.

use didact_core::seed::Streams;
use didact_verify::verilog::VerilogTask;
use rand::RngExt;
use std::fmt::Write as _;

use super::world::RtlTask;

/// Inputs of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Inputs {
    pub(super) data: [u32; 4],
    pub(super) s: u32,
    pub(super) clk: u32,
    pub(super) rst: u32,
    pub(super) en: u32,
}

/// Random inputs of a module without a clock whose inputs are too many to try all.
const RANDOM: usize = 200;
/// Clocks of a module that has one.
const CLOCKS: usize = 60;
/// When it is reset again.
const AGAIN: usize = 35;

/// All moments of a bench: every combination of inputs where there are few, random ones otherwise; with a clock, two
/// moments for each of its periods, the first before it rises. The same for every module of a task.
pub(super) fn inputs(task: &RtlTask) -> Vec<Inputs> {
    let mut rng = Streams::new(7).rng("bench", &[u64::from(task.clocked), u64::from(task.width)]);
    let most = (1u32 << task.width) - 1;
    if !task.clocked {
        if task.width == 1 {
            let bit = |n: u32, at: u32| n >> at & 1;
            return (0..32)
                .map(|n| Inputs {
                    data: [bit(n, 0), bit(n, 1), bit(n, 2), bit(n, 3)],
                    s: bit(n, 4),
                    ..Inputs::default()
                })
                .collect();
        }
        return (0..RANDOM)
            .map(|_| Inputs {
                data: std::array::from_fn(|_| rng.random_range(0..=most)),
                s: rng.random_range(0..2),
                ..Inputs::default()
            })
            .collect();
    }
    // Whether `rst` high resets: the header does not say, the golden body does.
    let active = u32::from(!task.golden.contains("if ( ~ rst )"));
    let mut moments = Vec::with_capacity(2 * CLOCKS);
    for clock in 0..CLOCKS {
        let resets = clock < 2 || clock == AGAIN;
        let now = Inputs {
            data: std::array::from_fn(|_| rng.random_range(0..=most)),
            s: rng.random_range(0..2),
            en: u32::from(rng.random_bool(0.7)),
            rst: if resets { active } else { 1 - active },
            clk: 0,
        };
        moments.extend([now, Inputs { clk: 1, ..now }]);
    }
    moments
}

/// The same bench for a real simulator.
pub fn bench(task: &RtlTask) -> VerilogTask {
    let moments = inputs(task);
    let range = if task.width == 4 { "[3:0] " } else { "" };
    let output = if task.header.contains("output [3:0] y") { "[3:0] " } else { "" };
    let clock = if task.clocked { ", .clk(clk), .rst(rst), .en(en)" } else { "" };
    let mut text = format!(
        "module tb();\n  reg {range}a, b, c, d; reg s, clk, rst, en;\n  wire {output}y1, y2;\n  integer errors = 0, samples \
         = 0;\n  RefModule good1(.a(a), .b(b), .c(c), .d(d), .s(s), .y(y1){clock});\n  TopModule top1(.a(a), .b(b), .c(c), \
         .d(d), .s(s), .y(y2){clock});\n  task check; begin #1 samples = samples + 1; if (y1 !== (y1 ^ y2 ^ y1)) errors = \
         errors + 1; #1; end endtask\n  initial begin\n"
    );
    for Inputs { data: [a, b, c, d], s, clk, rst, en } in moments {
        let _ = writeln!(
            text,
            "    a = {a}; b = {b}; c = {c}; d = {d}; s = {s}; en = {en}; rst = {rst}; clk = {clk}; check;"
        );
    }
    text += "    $finish;\n  end\n  final $display(\"Mismatches: %1d in %1d samples\", errors, samples);\nendmodule\n";
    let module = |name: &str, body: &str| format!("{} {body}", task.header.replace("TopModule", name));
    VerilogTask {
        module: "TopModule".to_owned(),
        bench: text,
        top: "tb".to_owned(),
        golden: module("RefModule", &task.golden),
        solution: None,
        header: Some(task.header.clone()),
    }
}
