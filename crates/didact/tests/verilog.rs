//! Verilog through the real simulator: right modules pass, wrong ones do not, and those that try to fool the test bench
//! are caught. `make test-verilog`; it needs Icarus Verilog (Debian: `apt-get install iverilog`) and a sandbox.

#![cfg(target_os = "linux")]

use didact_core::cancel::Cancel;
use didact_core::verdict::{Item, Verdict, Verifier};
use didact_verify::sandbox::Sandbox;
use didact_verify::verilog::{Icarus, VerilogOptions, VerilogVerifier, verilog_eval};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A bench as VerilogEval's are, whose inputs are nets.
const BENCH: &str = r#"`timescale 1 ps/1 ps
module stimulus_gen(input clk, output reg a, output reg b);
  initial begin
    repeat (100) @(posedge clk, negedge clk) {a, b} <= $random;
    #1 $finish;
  end
endmodule
module tb();
  typedef struct packed { int errors; int clocks; } stats;
  stats stats1;
  reg clk = 0;
  initial forever #5 clk = ~clk;
  initial begin
    $dumpfile("wave.vcd");
    $dumpvars(1, stim1.clk, tb_mismatch);
  end
  wire a, b, y_ref, y_dut, tb_match;
  wire tb_mismatch = ~tb_match;
  stimulus_gen stim1(.clk, .*, .a, .b);
  RefModule good1(.a, .b, .y(y_ref));
  TopModule top_module1(.a, .b, .y(y_dut));
  assign tb_match = ({y_ref} === ({y_ref} ^ {y_dut} ^ {y_ref}));
  final $display("Mismatches: %1d in %1d samples", stats1.errors, stats1.clocks);
  always @(posedge clk, negedge clk) begin
    stats1.clocks++;
    if (!tb_match) stats1.errors++;
  end
  initial begin #1000000 $display("TIMEOUT"); $finish(); end
endmodule
"#;
const GOLDEN: &str = "module RefModule(input a, input b, output y);\n  assign y = a & b;\nendmodule\n";

fn verifier(simulate: u64) -> VerilogVerifier {
    let sandbox = Sandbox::detect(Path::new(env!("CARGO_BIN_EXE_didact"))).expect("a sandbox");
    let mut options = VerilogOptions::default();
    for limits in [&mut options.compile, &mut options.simulate] {
        (limits.wall, limits.cpu_seconds) = (Duration::from_secs(simulate), simulate);
    }
    let icarus = Icarus::find(sandbox, options).expect("Icarus Verilog");
    VerilogVerifier::new(icarus, 2)
}

fn judge(verifier: &VerilogVerifier, reference: &Value, answers: &[&str]) -> Vec<Verdict> {
    let item = Item { id: "t".into(), prompt: String::new(), reference: reference.clone() };
    let pairs: Vec<(&Item, &str)> = answers.iter().map(|answer| (&item, *answer)).collect();
    let mut found = vec![None; pairs.len()];
    verifier.verify(&pairs, &mut |i, v| found[i] = Some(v), &Cancel::new()).expect("the simulator works");
    found.into_iter().map(|v| v.expect("each is judged")).collect()
}

fn module(body: &str) -> String {
    format!("module TopModule(input a, input b, output y);\n{body}\nendmodule\n")
}

fn task() -> Value {
    json!({"bench": BENCH, "golden": GOLDEN})
}

#[test]
#[ignore = "needs iverilog: make test-verilog"]
fn verilog_verdicts_say_what_is_wrong() {
    let verifier = verifier(5);
    let cases = [
        (module("assign y = a & b;"), "pass"),
        (format!("Here it is:\n```verilog\n{}```\nDone.", module("and g(y, a, b);")), "pass"),
        ("module TopModule(a, b, y); input a, b; output reg y; always @* y = a && b; endmodule".to_owned(), "pass"),
        (module("assign y = a | b;"), "mismatch"),
        (module("assign y = a &;"), "syntax_error"),
        (module("assign y = c & b;"), "elab_error"),
        (module("helper h(.a(a), .y(y));"), "elab_error"),
        ("I do not know.".to_owned(), "syntax_error"),
        (module("assign y = a & b;").replace("endmodule", ""), "syntax_error"),
        (module(""), "mismatch"),
    ];
    let answers: Vec<&str> = cases.iter().map(|(code, _)| code.as_str()).collect();
    for (verdict, (code, expected)) in judge(&verifier, &task(), &answers).iter().zip(&cases) {
        assert_eq!(verdict.category, *expected, "{code}: {}", verdict.reason);
        assert_eq!(verdict.is_right(), *expected == "pass", "{code}");
    }
}

/// RTLWorld's simulator says what the real one says: of golden bodies, noisy ones, and bodies in which words were exchanged.
#[test]
#[ignore = "needs iverilog: make test-verilog"]
fn verilog_in_process_agrees_with_the_simulator() {
    use didact_core::seed::Streams;
    use didact_methods::synthetic::rtl::{World, bench, simulate};
    let verifier = verifier(5);
    let tasks = World::new(&Streams::new(3), 0.5).tasks("agreement", 60, &mut std::collections::BTreeSet::new());
    let (mut compared, mut passed) = (0, 0);
    for (number, task) in tasks.iter().enumerate() {
        let reference = json!(bench(task));
        let words: Vec<&str> = task.golden.split(' ').collect();
        let mut bodies = vec![task.golden.clone(), task.answer.clone()];
        for k in 0..4 {
            let mut other = words.clone();
            let (i, j) = ((number * 7 + k * 5) % words.len(), (number * 3 + k * 11) % words.len());
            if k < 2 {
                other.swap(i, j);
            } else {
                other[i] = words[j];
            }
            bodies.push(other.join(" "));
        }
        let answers: Vec<String> = bodies.iter().map(|body| format!("{} {body}", task.header)).collect();
        let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
        for (verdict, body) in judge(&verifier, &reference, &answers).iter().zip(&bodies) {
            let ours = simulate(task, body).into_verdict();
            assert_eq!(
                verdict.is_right(),
                ours.is_right(),
                "{}\n{body}\nsimulator: {} {}\nhere: {} {}",
                task.prompt,
                verdict.category,
                verdict.reason,
                ours.category,
                ours.reason
            );
            compared += 1;
            passed += u32::from(ours.is_right());
        }
    }
    assert!(compared == 360 && passed > 60, "{passed} of {compared}");
}

#[test]
#[ignore = "needs iverilog: make test-verilog"]
fn verilog_cheats_do_not_pass() {
    let verifier = verifier(3);
    let half = "assign y = a | b;";
    let with = |code: &str| module(&format!("{half}\n{code}"));
    let cases: Vec<(String, &[&str])> = vec![
        // ITERTL's list.
        (module("assign y = tb.good1.y;"), &["rejected"]),
        (module("assign y = good1.y;"), &["rejected"]),
        (module("RefModule r(.a(a), .b(b), .y(y));"), &["elab_error"]),
        (with("initial force tb.tb_match = 1;"), &["rejected"]),
        (with("initial begin $display(\"Mismatches: 0 in 100 samples\"); $finish; end"), &["rejected"]),
        (with("initial $finish;"), &["rejected"]),
        (with("initial $stop;"), &["rejected"]),
        (with("initial forever begin end"), &["timeout"]),
        (with("reg r = 0; always r = ~r;"), &["timeout", "elab_error", "syntax_error"]),
        // Files.
        (with("integer f; initial f = $fopen(\"x\", \"w\");"), &["rejected"]),
        (with("reg [7:0] m [0:9]; initial $readmemh(\"/etc/passwd\", m);"), &["rejected"]),
        (with("`include \"/etc/passwd\""), &["rejected"]),
        // Inputs: an unknown input makes the golden output unknown, and that matches anything.
        (module("assign a = 1'bx; assign y = 0;"), &["rejected", "elab_error"]),
        (
            "module TopModule(inout a, inout b, output y); assign a = 1'bx; assign b = 1'bx; assign y = 0; endmodule"
                .into(),
            &["rejected"],
        ),
        (
            "module TopModule(output a, output b, output y); assign a = 1'bx; assign b = 1'bx; assign y = 0; endmodule"
                .into(),
            &["rejected"],
        ),
        (
            module("pullup(a); supply1 s; tran(a, s); assign y = 0;"),
            &["rejected", "elab_error", "syntax_error", "mismatch"],
        ),
        // Other scopes, other modules.
        (with("bind tb other o();"), &["rejected"]),
        (with("defparam tb.x = 1;"), &["rejected"]),
        (with("initial disable stim1;"), &["elab_error", "syntax_error", "mismatch", "runtime_error"]),
        (with("initial disable tb;"), &["elab_error", "syntax_error", "mismatch", "runtime_error"]),
        (with("assign y = \\tb.good1.y ;"), &["rejected"]),
        (with("initial $root.tb.stats1 = 0;"), &["rejected"]),
        (
            format!("{}\nmodule RefModule(input a, input b, output y); assign y = a | b; endmodule", module(half)),
            &["mismatch"],
        ),
        (
            format!("module RefModule(input a, input b, output y); assign y = a | b; endmodule\n{}", module(half)),
            &["mismatch"],
        ),
        (format!("`define RefModule TopModule\n{}", module(half)), &["mismatch"]),
        // Comments and strings that only look like such.
        (with("// \\\ninitial $finish;"), &["rejected"]),
        (with("localparam s = \"\\\"; initial $finish; // \";"), &["mismatch", "rejected", "syntax_error"]),
        // Too much.
        (
            with("reg [31:0] m [0:2000000000]; integer i; initial for (i = 0; i < 2000000000; i = i + 1) m[i] = i;"),
            &["limit", "timeout", "runtime_error", "elab_error"],
        ),
        (
            with("genvar i; generate for (i = 0; i < 100000000; i = i + 1) begin : g wire w; end endgenerate"),
            &["timeout", "limit", "elab_error"],
        ),
    ];
    let answers: Vec<&str> = cases.iter().map(|(code, _)| code.as_str()).collect();
    for (verdict, (code, expected)) in judge(&verifier, &task(), &answers).iter().zip(&cases) {
        assert!(expected.contains(&verdict.category.as_str()), "{code}\n{}: {}", verdict.category, verdict.reason);
        assert!(verdict.score.is_some_and(|score| score < 1.0), "{code}");
    }
}

#[test]
#[ignore = "needs iverilog: make test-verilog"]
fn verilog_tasks_whose_own_solution_fails_are_not_judged() {
    let wrong = json!({"bench": BENCH, "golden": GOLDEN, "solution": module("assign y = a;")});
    let silent = json!({"bench": "module tb; initial $display(\"no result\"); endmodule", "golden": GOLDEN});
    let right = module("assign y = a & b;");
    let verifier = verifier(5);
    for (reference, category) in [(wrong, "golden_fails"), (silent, "bad_reference"), (json!(1), "bad_reference")] {
        let verdict = &judge(&verifier, &reference, &[&right])[0];
        assert_eq!((verdict.score, verdict.category.as_str()), (None, category), "{}", verdict.reason);
    }
}

#[test]
#[ignore = "needs iverilog: make test-verilog"]
fn verilog_is_verified_from_the_command_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let rows = [module("assign y = a & b;"), module("assign y = a;"), module("assign y = a & b;")]
        .map(|answer| json!({"reference": task(), "answer": answer}).to_string())
        .join("\n");
    didact_core::files::write_atomic(dir.path().join("rows.jsonl"), rows.as_bytes()).expect("written");
    let run = || {
        let output = Command::new(env!("CARGO_BIN_EXE_didact"))
            .args(["verify", "verilog", "rows.jsonl", "--cache", "verdicts.jsonl", "--json"])
            .current_dir(dir.path())
            .output()
            .expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let first = run();
    assert_eq!((&first["right"], &first["judged"], &first["cached"]), (&json!(2), &json!(3), &json!(1)), "{first}");
    let second = run();
    assert_eq!(second["cached"], json!(3));
    assert_eq!(first["verdicts"], second["verdicts"]);
}

/// VerilogEval's problems, in `verilog-eval/dataset_spec-to-rtl` of the folder that `DIDACT_DATA` names.
#[test]
#[ignore = "needs iverilog and DIDACT_DATA: make test-verilog"]
#[expect(clippy::print_stderr, reason = "what is not tested is said")]
fn verilog_eval_goldens_pass_and_its_cheats_fail() {
    let Some(data) = std::env::var_os("DIDACT_DATA") else {
        eprintln!("SKIPPED: DIDACT_DATA does not say where VerilogEval is");
        return;
    };
    let items = verilog_eval(&PathBuf::from(data).join("verilog-eval/dataset_spec-to-rtl")).expect("VerilogEval");
    let verifier = verifier(30);
    // The golden model under the name that is asked for, and the same with a copy of the judge's own output.
    let mut pairs = Vec::new();
    for item in &items {
        let task: didact_verify::verilog::VerilogTask = serde_json::from_value(item.reference.clone()).expect("a task");
        let golden = task.solution().expect("one");
        let end = golden.rfind("endmodule").expect("a module");
        let cheat = format!("{}\ninitial force tb.tb_match = 1;\nendmodule", &golden[..end]);
        let header = &golden[..golden.find(';').expect("a header")];
        let empty = format!("{header};\nendmodule");
        pairs.extend([(item, golden), (item, cheat), (item, empty)]);
    }
    let asked: Vec<(&Item, &str)> = pairs.iter().map(|(item, code)| (*item, code.as_str())).collect();
    let mut found = vec![None; asked.len()];
    verifier.verify(&asked, &mut |i, v| found[i] = Some(v), &Cancel::new()).expect("the simulator works");
    let found: Vec<Verdict> = found.into_iter().map(|v| v.expect("each is judged")).collect();
    let (mut goldens, mut failures) = (0, Vec::new());
    for (item, verdicts) in items.iter().zip(found.chunks_exact(3)) {
        if verdicts[0].is_right() {
            goldens += 1;
            assert_eq!(verdicts[1].category, "rejected", "{}", item.id);
            assert!(!verdicts[2].is_right(), "an empty module passes {}: {:?}", item.id, verdicts[2]);
        } else {
            failures.push(format!("{} ({}: {})", item.id, verdicts[0].category, verdicts[0].reason));
        }
    }
    eprintln!("{goldens} of {} goldens pass; the others: {}", items.len(), failures.join(", "));
    assert!(items.len() == 156 && goldens >= 153, "{goldens} of {} goldens pass: {failures:?}", items.len());
}
