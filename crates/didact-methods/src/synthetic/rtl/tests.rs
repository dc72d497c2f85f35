use super::*;
use didact_core::seed::Streams;
use didact_verify::verilog::VerilogVerdict;
use std::collections::BTreeSet;

fn tasks(count: usize) -> Vec<RtlTask> {
    World::new(&Streams::new(1), 0.3).tasks("tests", count, &mut BTreeSet::new())
}

fn expression(width: u8, golden: &str) -> RtlTask {
    let range = if width == 4 { "[3:0]" } else { "" };
    RtlTask {
        prompt: String::new(),
        header: format!("module TopModule ( input {range} a , b , c , d , input s , output {range} y ) ;"),
        clocked: false,
        width,
        golden: golden.to_owned(),
        answer: String::new(),
    }
}

#[test]
fn golden_bodies_pass_and_about_as_many_answers_fail_as_are_noisy() {
    let all = tasks(600);
    let mut wrong = 0;
    let mut kinds = BTreeSet::new();
    for task in &all {
        assert_eq!(simulate(task, &task.golden), VerilogVerdict::Pass, "{}\n{}", task.prompt, task.golden);
        assert_eq!(text(&ids(&task.golden)), task.golden, "everything is words");
        assert!(ids(&task.prompt).len() <= 80 && ids(&task.golden).len() <= 60, "{} {}", task.prompt, task.golden);
        let verdict = simulate(task, &task.answer);
        wrong += usize::from(verdict != VerilogVerdict::Pass);
        kinds.insert(verdict.into_verdict().category);
    }
    let share = wrong as f64 / all.len() as f64;
    assert!((0.22..0.33).contains(&share), "{share}: a mistake may change nothing");
    assert!(["pass", "mismatch", "syntax_error", "elab_error"].iter().all(|kind| kinds.contains(*kind)), "{kinds:?}");
}

#[test]
fn verdicts_say_what_is_wrong() {
    let task = expression(4, "assign y = ( a & b ) ; endmodule");
    let category = |body: &str| simulate(&task, body).into_verdict().category;
    assert_eq!(category("assign y = b & a ; endmodule"), "pass");
    assert_eq!(category("wire [3:0] t ; assign t = a ; assign y = t & b ; endmodule and more"), "pass");
    assert_eq!(category("assign y = a | b ; endmodule"), "mismatch");
    assert_eq!(category("endmodule"), "mismatch", "nothing drives it");
    assert_eq!(category("assign y = a & ; endmodule"), "syntax_error");
    assert_eq!(category("assign y = a & b ;"), "syntax_error");
    assert_eq!(category("assign y = a & t ; endmodule"), "elab_error");
    assert_eq!(category("helper u ( a ) ; assign y = a & b ; endmodule"), "elab_error");
    assert_eq!(category("assign a = 4'd0 ; assign y = a & b ; endmodule"), "rejected");
    assert_eq!(category("assign y = y ^ a ; endmodule"), "mismatch", "it feeds itself");
    let deep = format!("assign y = {} a {} ; endmodule", "( ".repeat(500), ") ".repeat(500));
    assert_eq!(category(&deep), "syntax_error");
}

#[test]
fn widths_follow_the_context() {
    // In a comparison sums are as wide as its operands; beside a wider one, `~` fills with ones.
    let task = expression(4, "assign y = { ( a + b ) < c , ( a == b ) , 1'd0 , 1'd1 } ; endmodule");
    let same = "assign y = ( ( ( ( a + b ) < c ) ? 4'd8 : 4'd0 ) | ( ( a == b ) ? 4'd4 : 4'd0 ) ) | 4'd1 ; endmodule";
    assert_eq!(simulate(&task, same), VerilogVerdict::Pass);
    let task = expression(4, "assign y = ~ s ; endmodule");
    assert_eq!(simulate(&task, "assign y = s ? 4'd14 : 4'd15 ; endmodule"), VerilogVerdict::Pass);
    assert_ne!(simulate(&task, "assign y = s ? 4'd0 : 4'd1 ; endmodule"), VerilogVerdict::Pass);
}

#[test]
fn resets_and_clocks_matter() {
    let clocked = |body: &str| RtlTask { clocked: true, golden: body.to_owned(), ..expression(4, "") };
    let body = |edge: &str, level: &str, next: &str| {
        format!(
            "reg [3:0] q ; always @ ( posedge clk {edge} ) if ( {level} ) q <= 4'd0 ; else if ( en ) q <= {next} ; assign y \
             = q ; endmodule"
        )
    };
    let task = clocked(&body("or posedge rst", "rst", "( q + 4'd1 )"));
    let errors = |body: &str| match simulate(&task, body) {
        VerilogVerdict::Pass => 0,
        VerilogVerdict::Mismatch { errors, samples } => {
            assert_eq!(samples, 120);
            errors
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(errors(&task.golden), 0);
    assert!(errors(&body("", "rst", "( q + 4'd1 )")) > 0, "a synchronous reset comes later");
    assert!(errors(&body("or negedge rst", "~ rst", "( q + 4'd1 )")) > 60, "the other level");
    assert!(
        errors("reg [3:0] q ; always @ ( posedge clk ) q <= ( q + 4'd1 ) ; assign y = q ; endmodule") > 60,
        "never known"
    );
}
