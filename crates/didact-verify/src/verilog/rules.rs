//! What a candidate may contain: everything that describes hardware, nothing that reaches out of its module.

use super::lexer::{Malformed, Token, read};
use std::collections::BTreeMap;

/// The only system functions that a candidate may call: they compute.
const FUNCTIONS: [&str; 7] = ["signed", "unsigned", "clog2", "bits", "countones", "onehot", "isunknown"];
const DIRECTIVES: [&str; 2] = ["timescale", "default_nettype"];
/// Words of constructs that reach into other scopes or declare other things than one module.
const FORBIDDEN: [&str; 22] = [
    "force",
    "release",
    "bind",
    "defparam",
    "package",
    "program",
    "interface",
    "class",
    "primitive",
    "config",
    "checker",
    "library",
    "import",
    "export",
    "include",
    "macromodule",
    "covergroup",
    "clocking",
    "modport",
    "extern",
    "virtual",
    "specify",
];

/// The direction of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Input,
    Output,
    Inout,
}

/// The ports of a module by their names.
pub(super) type Ports = BTreeMap<String, Direction>;

/// Why a candidate is not even compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    /// A short name.
    pub(super) rule: &'static str,
    /// What was found.
    pub(super) found: String,
}

fn broken(rule: &'static str, found: impl Into<String>) -> Broken {
    Broken { rule, found: found.into() }
}

/// A candidate that keeps the rules: its text without comments, and its ports.
pub(super) struct Checked {
    pub(super) code: String,
    pub(super) ports: Ports,
}

/// Checks a candidate against all rules that can be seen in its text.
pub(super) fn check(code: &str, module: &str) -> Result<Checked, Broken> {
    let (code, tokens) = read(code).map_err(|Malformed(what)| broken("text", what))?;
    let mut names = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).map(|i| &tokens[i]);
        match token {
            Token::System(name) if !FUNCTIONS.contains(&name.as_str()) => {
                return Err(broken("system_task", format!("`${name}`")));
            }
            Token::Directive(name) if !DIRECTIVES.contains(&name.as_str()) => {
                return Err(broken("directive", format!("`` `{name} ``")));
            }
            Token::Word(word) if FORBIDDEN.contains(&word.as_str()) => {
                return Err(broken("construct", format!("`{word}`")));
            }
            Token::Word(word) if word == "module" => match tokens.get(at + 1) {
                Some(Token::Word(name)) => names.push(name.clone()),
                _ => return Err(broken("module", "a module without a name")),
            },
            // `.name(…)`, `.name` and `.*` in a list of connections; anywhere else a dot goes into another scope.
            Token::Mark('.') if !matches!(before, Some(Token::Mark('(' | ','))) => {
                return Err(broken("dotted_name", "a dot that is no connection of a port"));
            }
            Token::Mark(':') if matches!(before, Some(Token::Mark(':'))) => {
                return Err(broken("dotted_name", "`::`"));
            }
            _ => {}
        }
    }
    if names != [module] {
        let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(broken("module", format!("one module, `{module}`, was asked for; found {found}")));
    }
    let ports = ports(&tokens, module).ok_or_else(|| broken("ports", "a header that cannot be read"))?;
    Ok(Checked { code, ports })
}

/// The ports of one of a text's modules; `None` when there is no such module, or its header cannot be read.
pub(super) fn ports_of(code: &str, module: &str) -> Option<Ports> {
    ports(&read(code).ok()?.1, module)
}

fn direction(token: &Token) -> Option<Direction> {
    match token {
        Token::Word(word) => match word.as_str() {
            "input" => Some(Direction::Input),
            "output" => Some(Direction::Output),
            "inout" | "ref" => Some(Direction::Inout),
            _ => None,
        },
        _ => None,
    }
}

/// The tokens between the bracket at `open` and its partner, and the place after it.
fn group(tokens: &[Token], open: usize) -> Option<(&[Token], usize)> {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some((&tokens[open + 1..at], at + 1));
                }
            }
            _ => {}
        }
    }
    None
}

/// Pieces between commas outside of brackets, without what is in brackets or follows `=`.
fn pieces(tokens: &[Token]) -> Vec<Vec<&Token>> {
    let (mut all, mut depth, mut is_value) = (vec![Vec::new()], 0_usize, false);
    for token in tokens {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth = depth.saturating_sub(1),
            Token::Mark(',') if depth == 0 => {
                all.push(Vec::new());
                is_value = false;
            }
            Token::Mark('=') if depth == 0 => is_value = true,
            token if depth == 0 && !is_value => {
                if let Some(last) = all.last_mut() {
                    last.push(token);
                }
            }
            _ => {}
        }
    }
    all.retain(|piece| !piece.is_empty());
    all
}

fn last_word(piece: &[&Token]) -> Option<String> {
    match piece.last()? {
        Token::Word(word) => Some(word.clone()),
        _ => None,
    }
}

fn ports(tokens: &[Token], module: &str) -> Option<Ports> {
    let is_word = |token: Option<&Token>, word: &str| matches!(token, Some(Token::Word(w)) if w == word);
    let mut at =
        (0..tokens.len()).find(|&i| is_word(tokens.get(i), "module") && is_word(tokens.get(i + 1), module))? + 2;
    if tokens.get(at) == Some(&Token::Mark('#')) {
        at = group(tokens, at + 1)?.1;
    }
    let mut found = Ports::new();
    let mut insert = |name: String, direction| found.insert(name, direction).is_none().then_some(());
    if tokens.get(at) == Some(&Token::Mark(';')) {
        return Some(found);
    }
    if tokens.get(at) != Some(&Token::Mark('(')) {
        return None;
    }
    let (header, body) = group(tokens, at)?;
    if header.iter().any(|token| direction(token).is_some()) {
        let mut current = None;
        for piece in pieces(header) {
            current = piece.iter().find_map(|token| direction(token)).or(current);
            insert(last_word(&piece)?, current?)?;
        }
        return Some(found);
    }
    // The older form: names in the header, directions in the body, but not those of functions and tasks.
    let mut at = body;
    while at < tokens.len() && !is_word(tokens.get(at), "endmodule") {
        for (open, close) in [("function", "endfunction"), ("task", "endtask")] {
            if is_word(tokens.get(at), open) {
                at = (at..tokens.len()).find(|&i| is_word(tokens.get(i), close))?;
            }
        }
        if let Some(direction) = direction(&tokens[at]) {
            let end = (at..tokens.len()).find(|&i| tokens[i] == Token::Mark(';'))?;
            for piece in pieces(&tokens[at + 1..end]) {
                insert(last_word(&piece)?, direction)?;
            }
            at = end;
        }
        at += 1;
    }
    Some(found)
}

/// The module of an answer: from `module NAME` to its `endmodule`, whatever stands around it; a code fence is not needed.
/// An answer that only goes on after `header` is joined to it. `None` when there is no such module.
pub(super) fn extract(answer: &str, module: &str, header: Option<&str>) -> Option<String> {
    if let Some(start) = module_start(answer, module) {
        let rest = &answer[start..];
        return Some(rest[..module_end(rest)?].to_owned());
    }
    let header = header?;
    let body = answer.trim_start().strip_prefix("```").map_or(answer, |t| t.split_once('\n').map_or("", |(_, t)| t));
    let end = module_end(body)?;
    Some(format!("{header}\n{}", &body[..end]))
}

fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$');
    text.split(move |c| !is_part(c))
        .filter(|w| !w.is_empty())
        .map(|w| (w.as_ptr() as usize - text.as_ptr() as usize, w))
}

fn module_start(text: &str, module: &str) -> Option<usize> {
    let all: Vec<(usize, &str)> = words(text).collect();
    all.windows(2)
        .find(|w| w[0].1 == "module" && w[1].1 == module && text[w[0].0 + 6..w[1].0].trim().is_empty())
        .map(|w| w[0].0)
}

/// The end of the first `endmodule` outside of comments and strings.
fn module_end(text: &str) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("//") {
            at += rest.find('\n')?;
        } else if rest.starts_with("/*") {
            at += rest.find("*/")? + 2;
        } else {
            let c = rest.chars().next()?;
            if c.is_ascii_alphanumeric() || c == '_' {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                if &rest[..end] == "endmodule" {
                    return Some(at + end);
                }
                at += end;
            } else {
                at += c.len_utf8();
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(body: &str) -> &'static str {
        match check(&format!("module TopModule(input a, output b);\n{body}\nendmodule"), "TopModule") {
            Ok(_) => "",
            Err(broken) => broken.rule,
        }
    }

    #[test]
    fn what_reaches_out_of_the_module_is_refused() {
        for (body, expected) in [
            ("assign b = tb.good1.b;", "dotted_name"),
            ("assign b = good1.b;", "dotted_name"),
            ("assign b = good1 . b;", "dotted_name"),
            ("assign b = good1/* */./* */b;", "dotted_name"),
            ("assign b = \\tb.good1.b ;", "text"),
            ("assign b = $root.tb.good1.b;", "system_task"),
            ("assign b = pkg::x;", "dotted_name"),
            ("initial force tb.tb_match = 1;", "construct"),
            ("initial $display(\"Mismatches: 0 in 100 samples\");", "system_task"),
            ("initial $finish;", "system_task"),
            ("initial $ finish;", "system_task"),
            ("`include \"secret\"", "directive"),
            ("`define x 1", "directive"),
            ("initial begin end // \" \n $stop;", "system_task"),
            ("parameter s = \" // \"; initial $stop;", "system_task"),
            ("/* \n */ initial $fopen(\"x\");", "system_task"),
            ("bind tb x y();", "construct"),
            ("defparam tb.x = 1;", "construct"),
            ("endmodule module tb;", "module"),
            ("endmodule\nmodule RefModule(input a, output b); assign b = a;", "module"),
            ("// é\n initial é;", "text"),
            ("wire \u{0};", "text"),
            ("/* open", "text"),
            ("parameter s = \"open\n\";", "text"),
        ] {
            assert_eq!(rule(body), expected, "{body}");
        }
    }

    #[test]
    fn hardware_is_allowed() {
        for body in [
            "assign b = ~a;",
            "wire [$clog2(8)-1:0] w; assign b = $signed(a) > 0; // é $display",
            "sub u(.x(a), .y(b));",
            "sub u(.x, .*);",
            "localparam real R = 1.5e3; assign b = a;",
            "`default_nettype none\n assign b = (a ? 1'b1 : 1'b0);",
            "reg r; always @(posedge a) begin : block r <= #1 ~r; end assign b = r;",
        ] {
            assert_eq!(rule(body), "", "{body}");
        }
    }

    #[test]
    fn ports_are_read_in_both_forms() {
        use Direction::{Inout, Input, Output};
        let read = |text: &str| ports_of(text, "m").map(|p| p.into_iter().collect::<Vec<_>>());
        let port = |name: &str, direction| (name.to_owned(), direction);
        let expected = Some(vec![port("a", Input), port("b", Input), port("c", Output)]);
        for text in [
            "module m(input [3:0] a, b, output reg [$clog2(4):0] c); endmodule",
            "module m #(parameter W = (1+2), X = 3) (input logic signed a, input wire b [0:1], output c = 1'b0);",
            "module m(a, b, c); function f; input z; f = z; endfunction input [1:0] a; input b; output reg c; endmodule",
            "// module m(x);\nmodule other(input q); endmodule module m(input a, b, output c);",
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        assert_eq!(read("module m(inout a);"), Some(vec![port("a", Inout)]));
        assert_eq!(read("module m; endmodule"), Some(Vec::new()));
        for text in
            ["module m(", "module n(input a);", "module m(input a, input a);", "module m)(", "module m(input 3);"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn modules_are_found_in_what_models_say() {
        let module = "module TopModule (input a);\n// endmodule\nendmodule";
        for answer in [
            module.to_owned(),
            format!("Sure!\n```verilog\n{module}\n```\nIt works."),
            format!("{module}\nmodule tb; endmodule"),
            format!("The module TopModule2 is no module, but:\n{module}"),
        ] {
            assert_eq!(extract(&answer, "TopModule", None).as_deref(), Some(module), "{answer}");
        }
        assert_eq!(extract("module TopModule(", "TopModule", None), None);
        assert_eq!(extract("assign b = a;", "TopModule", None), None);
        let joined = extract(" assign b = a;\nendmodule\nmore", "TopModule", Some("module TopModule(a, b);"));
        assert_eq!(joined.as_deref(), Some("module TopModule(a, b);\n assign b = a;\nendmodule"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_crashes_the_rules(text in ".*") {
            let _ = check(&text, "m");
            let _ = extract(&text, "m", Some("module m;"));
        }

        #[test]
        fn no_near_module_crashes_the_rules(text in "(module |m|\\(|\\)|\\[|;|,|=|input |endmodule|\"|/\\*|//|\\n|`|\\$|é|1\\.)*") {
            let _ = check(&text, "m");
            let _ = ports_of(&text, "m");
            let _ = extract(&text, "m", None);
        }
    }
}
