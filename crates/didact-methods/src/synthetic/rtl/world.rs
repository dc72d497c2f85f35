//! Tasks: descriptions, headers, golden and noisy bodies.

use didact_core::seed::Streams;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The token that begins a prompt and ends an answer.
pub const END: u32 = 0;

/// All words, the first being [`END`]'s.
const WORDS: [&str; 150] = [
    "<end>",
    "//",
    "y",
    "is",
    "the",
    "of",
    "and",
    "a",
    "b",
    "c",
    "d",
    "s",
    "clk",
    "rst",
    "en",
    "q",
    "p",
    "t",
    "u",
    "module",
    "TopModule",
    "(",
    ")",
    ";",
    ",",
    "input",
    "output",
    "[3:0]",
    "[2:0]",
    "endmodule",
    "assign",
    "=",
    "wire",
    "reg",
    "always",
    "@",
    "posedge",
    "negedge",
    "or",
    "if",
    "else",
    "begin",
    "end",
    "<=",
    "&",
    "|",
    "^",
    "~",
    "+",
    "-",
    "==",
    "<",
    "?",
    ":",
    "{",
    "}",
    "helper",
    "and-op",
    "conjunction",
    "or-op",
    "disjunction",
    "xor",
    "exclusive",
    "nand",
    "negated-and",
    "nor",
    "negated-or",
    "inverse",
    "complement",
    "sum",
    "total",
    "difference",
    "subtraction",
    "equality",
    "sameness",
    "less-than",
    "order",
    "choice",
    "selection",
    "all-ones",
    "every",
    "any-ones",
    "some",
    "parity",
    "oddness",
    "register",
    "holder",
    "up",
    "down",
    "counter",
    "modulo",
    "shift",
    "chain",
    "toggle",
    "flip",
    "rising",
    "edge",
    "detector",
    "with",
    "synchronous",
    "asynchronous",
    "reset",
    "active",
    "high",
    "low",
    "when",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "by",
    "wraps",
    "at",
    "bits",
    "bit",
    "one",
    "wide",
    "block",
    "1'd0",
    "1'd1",
    "4'd0",
    "4'd1",
    "4'd2",
    "4'd3",
    "4'd4",
    "4'd5",
    "4'd6",
    "4'd7",
    "4'd8",
    "4'd9",
    "4'd10",
    "4'd11",
    "4'd12",
    "4'd13",
    "4'd14",
    "4'd15",
    "x",
    "logic",
    "begins",
    "counts",
    "input-s",
];
/// How many words there are.
pub const VOCABULARY: usize = WORDS.len();

/// The numbers of a text's words.
///
/// # Panics
/// If there is a word that the language does not have: a mistake in the generator.
pub fn ids(text: &str) -> Vec<u32> {
    let number = |word: &str| {
        let place = WORDS.iter().position(|other| *other == word);
        place.unwrap_or_else(|| panic!("`{word}` is not in the vocabulary")) as u32
    };
    text.split_whitespace().map(number).collect()
}

/// The text of words; what is no word of the language is left out.
pub fn text(ids: &[u32]) -> String {
    let words: Vec<&str> = ids.iter().filter_map(|&id| WORDS.get(id as usize).copied()).collect();
    words.join(" ")
}

/// What a task asks for, and what answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtlTask {
    /// The description, and how wide the ports are: the header follows from both.
    pub prompt: String,
    /// The module's header.
    pub header: String,
    /// Whether there are a clock, a reset and an enable.
    pub clocked: bool,
    /// Bits of `a` to `d`.
    pub width: u8,
    /// A right body.
    pub golden: String,
    /// A body as the data has it, which may be wrong.
    pub answer: String,
}

/// Operators: words for it, and how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    And,
    Or,
    Xor,
    Nand,
    Nor,
    Add,
    Sub,
    Eq,
    Lt,
    Not,
    Mux,
    All,
    Any,
    Parity,
}

const SAME_TYPE: [Op; 9] = [Op::And, Op::Or, Op::Xor, Op::Nand, Op::Nor, Op::Add, Op::Sub, Op::Not, Op::Mux];
const TO_BIT: [Op; 5] = [Op::Eq, Op::Lt, Op::All, Op::Any, Op::Parity];

impl Op {
    fn words(self) -> [&'static str; 2] {
        match self {
            Self::And => ["and-op", "conjunction"],
            Self::Or => ["or-op", "disjunction"],
            Self::Xor => ["xor", "exclusive"],
            Self::Nand => ["nand", "negated-and"],
            Self::Nor => ["nor", "negated-or"],
            Self::Add => ["sum", "total"],
            Self::Sub => ["difference", "subtraction"],
            Self::Eq => ["equality", "sameness"],
            Self::Lt => ["less-than", "order"],
            Self::Not => ["inverse", "complement"],
            Self::Mux => ["choice", "selection"],
            Self::All => ["all-ones", "every"],
            Self::Any => ["any-ones", "some"],
            Self::Parity => ["parity", "oddness"],
        }
    }

    fn operands(self) -> usize {
        match self {
            Self::Not | Self::All | Self::Any | Self::Parity => 1,
            _ => 2,
        }
    }

    fn written(self, operands: &[String]) -> String {
        let (x, y) = (&operands[0], operands.get(1).map_or("", String::as_str));
        match self {
            Self::And => format!("( {x} & {y} )"),
            Self::Or => format!("( {x} | {y} )"),
            Self::Xor => format!("( {x} ^ {y} )"),
            Self::Nand => format!("( ~ ( {x} & {y} ) )"),
            Self::Nor => format!("( ~ ( {x} | {y} ) )"),
            Self::Add => format!("( {x} + {y} )"),
            Self::Sub => format!("( {x} - {y} )"),
            Self::Eq => format!("( {x} == {y} )"),
            Self::Lt => format!("( {x} < {y} )"),
            Self::Not => format!("( ~ {x} )"),
            Self::Mux => format!("( s ? {x} : {y} )"),
            Self::All => format!("( & {x} )"),
            Self::Any => format!("( | {x} )"),
            Self::Parity => format!("( ^ {x} )"),
        }
    }
}

/// An expression.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    Port(&'static str),
    Node(Op, Vec<Tree>),
}

impl Tree {
    fn draw(depth: usize, rng: &mut impl Rng) -> Self {
        if depth == 0 {
            return Self::Port(["a", "b", "c", "d"].choose(rng).copied().unwrap_or("a"));
        }
        let op = SAME_TYPE[rng.random_range(0..SAME_TYPE.len())];
        Self::with(op, depth, rng)
    }

    fn with(op: Op, depth: usize, rng: &mut impl Rng) -> Self {
        // One operand has the depth, the others may be shallower.
        let deep = rng.random_range(0..op.operands());
        let operand = |i: usize, rng: &mut _| {
            let depth = if i == deep { depth - 1 } else { depth.saturating_sub(1 + usize::from(depth > 1)) };
            Self::draw(depth, rng)
        };
        let mut operands: Vec<Self> = Vec::new();
        for i in 0..op.operands() {
            // Twice the same operand says nothing.
            let mut tree = operand(i, rng);
            while operands.contains(&tree) {
                tree = operand(i, rng);
            }
            operands.push(tree);
        }
        Self::Node(op, operands)
    }

    fn described(&self, rng: &mut impl Rng) -> String {
        match self {
            Self::Port(name) => (*name).to_owned(),
            Self::Node(op, operands) => {
                let word = op.words()[rng.random_range(0..2)];
                let operands: Vec<String> = operands.iter().map(|tree| tree.described(rng)).collect();
                format!("the {word} of {}", operands.join(" and "))
            }
        }
    }

    fn written(&self) -> String {
        match self {
            Self::Port(name) => (*name).to_owned(),
            Self::Node(op, operands) => op.written(&operands.iter().map(Self::written).collect::<Vec<_>>()),
        }
    }

    /// Somebody's mistake: another operator at the top, or operands the wrong way round.
    fn mistaken(&self, rng: &mut impl Rng) -> Self {
        let Self::Node(op, operands) = self else { return self.clone() };
        let order_matters = matches!(op, Op::Sub | Op::Lt | Op::Mux);
        if order_matters && rng.random_bool(0.5) {
            return Self::Node(*op, operands.iter().rev().cloned().collect());
        }
        let all = if TO_BIT.contains(op) { &TO_BIT[..] } else { &SAME_TYPE[..] };
        let others: Vec<Op> =
            all.iter().copied().filter(|other| other != op && other.operands() == op.operands()).collect();
        // Of the operators with one operand that keep the type there is one alone: leave it out.
        match others.choose(rng) {
            Some(other) => Self::Node(*other, operands.clone()),
            None => operands[0].clone(),
        }
    }
}

const NUMBERS: [&str; 13] = [
    "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen",
];

/// A reset.
#[derive(Debug, Clone, Copy)]
struct Reset {
    asynchronous: bool,
    active_high: bool,
}

impl Reset {
    fn described(self) -> String {
        let kind = if self.asynchronous { "asynchronous" } else { "synchronous" };
        let level = if self.active_high { "high" } else { "low" };
        format!("with {kind} reset active {level}")
    }

    /// A register with this reset: what it becomes when there is none.
    fn written(self, declared: &str, name: &str, zero: &str, next: &str) -> String {
        let edge = match (self.asynchronous, self.active_high) {
            (false, _) => "",
            (true, true) => "or posedge rst ",
            (true, false) => "or negedge rst ",
        };
        let is_reset = if self.active_high { "rst" } else { "~ rst" };
        format!("{declared} ; always @ ( posedge clk {edge}) if ( {is_reset} ) {name} <= {zero} ; else {next}")
    }
}

/// The language's tasks.
#[derive(Debug, Clone, Copy)]
pub struct World {
    streams: Streams,
    /// Probability of a mistake in an answer of the data.
    noise: f64,
}

/// Share of tasks without a clock.
const COMBINATIONAL: f64 = 0.7;

impl World {
    /// Tasks drawn from the streams, whose own answers are wrong with probability `noise`.
    pub fn new(streams: &Streams, noise: f64) -> Self {
        Self { streams: *streams, noise }
    }

    /// Tasks of a set without end, none of whose prompts is in `held_out`. Prompts may come again, with another answer.
    pub fn draws<'a>(&'a self, set: &'a str, held_out: &'a BTreeSet<String>) -> impl Iterator<Item = RtlTask> + 'a {
        let drawn = (0..).map(move |number| self.task(&mut self.streams.rng(set, &[number])));
        drawn.filter(move |task| !held_out.contains(&task.prompt))
    }

    /// `count` different tasks of a set; no prompt is in `seen`, and all are added to it.
    ///
    /// # Panics
    /// If the language has not so many.
    pub fn tasks(&self, set: &str, count: usize, seen: &mut BTreeSet<String>) -> Vec<RtlTask> {
        let mut tasks = Vec::with_capacity(count);
        for number in 0..100 * count as u64 {
            let task = self.task(&mut self.streams.rng(set, &[number]));
            if seen.insert(task.prompt.clone()) {
                tasks.push(task);
                if tasks.len() == count {
                    return tasks;
                }
            }
        }
        panic!("the language has fewer than {count} tasks that are new");
    }

    fn task(&self, rng: &mut impl Rng) -> RtlTask {
        let is_wrong = rng.random_bool(self.noise);
        if rng.random_bool(COMBINATIONAL) { Self::expression(is_wrong, rng) } else { Self::register(is_wrong, rng) }
    }

    fn expression(is_wrong: bool, rng: &mut impl Rng) -> RtlTask {
        let width = if rng.random_bool(0.5) { 4 } else { 1 };
        let depth = *[1, 1, 1, 2].choose(rng).unwrap_or(&1);
        let is_bit = rng.random_bool(0.3);
        let op = if is_bit {
            TO_BIT[rng.random_range(0..TO_BIT.len())]
        } else {
            SAME_TYPE[rng.random_range(0..SAME_TYPE.len())]
        };
        let tree = Tree::with(op, depth, rng);
        let (ports, result) = (range(width), if is_bit { "" } else { range(width) });
        let header =
            squeezed(&format!("module TopModule ( input {ports} a , b , c , d , input s , output {result} y ) ;"));
        let body = |tree: &Tree| format!("assign y = {} ; endmodule", tree.written());
        let golden = body(&tree);
        let answer = if is_wrong { body(&tree.mistaken(rng)) } else { golden.clone() };
        let answer = if is_wrong { Self::noisy(answer, &golden, rng) } else { answer };
        let bits = if width == 4 { "four bits" } else { "one bit" };
        let prompt = format!("y is {} {bits}", tree.described(rng));
        RtlTask { prompt, header, clocked: false, width, golden, answer }
    }

    fn register(is_wrong: bool, rng: &mut impl Rng) -> RtlTask {
        let reset = Reset { asynchronous: rng.random_bool(0.5), active_high: rng.random_bool(0.5) };
        let kind = rng.random_range(0..7);
        let width: u8 = match kind {
            0 if rng.random_bool(0.5) => 1,
            0..=4 => 4,
            _ => 1,
        };
        let most = rng.random_range(0..NUMBERS.len());
        let wording = rng.random_range(0..2);
        let zero = if width == 4 { "4'd0" } else { "1'd0" };
        let (description, next) = match kind {
            0 => (
                ["a register of a with en", "a holder of a when en"][wording].to_owned(),
                "if ( en ) q <= a ;".to_owned(),
            ),
            1 => (
                ["an up counter with en", "an counter up when en"][wording].to_owned(),
                "if ( en ) q <= ( q + 4'd1 ) ;".into(),
            ),
            2 => (
                ["a down counter with en", "a counter down when en"][wording].to_owned(),
                "if ( en ) q <= ( q - 4'd1 ) ;".into(),
            ),
            3 => (
                format!("{} {}", ["a modulo counter of", "a counter modulo"][wording], NUMBERS[most]),
                format!("if ( en ) q <= ( ( q == 4'd{} ) ? 4'd0 : ( q + 4'd1 ) ) ;", most + 2),
            ),
            4 => (
                ["a shift register of s with en", "a shift chain of s when en"][wording].to_owned(),
                "if ( en ) q <= { q [2:0] , s } ;".into(),
            ),
            5 => (["a toggle with en", "a flip when en"][wording].to_owned(), "if ( en ) q <= ( ~ q ) ;".into()),
            _ => (
                ["a rising edge detector of s", "the detector of rising edge s"][wording].to_owned(),
                "q <= s ;".into(),
            ),
        };
        let description = description.replace("an ", "a ");
        let ports = range(width);
        let header = squeezed(&format!(
            "module TopModule ( input clk , rst , en , s , input {ports} a , b , c , d , output {ports} y ) ;"
        ));
        let result = if kind == 6 { "( s & ( ~ q ) )" } else { "q" };
        let body = |reset: Reset, next: &str| {
            let register = reset.written(&squeezed(&format!("reg {ports} q")), "q", zero, next);
            format!("{register} assign y = {result} ; endmodule")
        };
        let golden = body(reset, &next);
        let mut answer = golden.clone();
        if is_wrong {
            let inverted = Reset { active_high: !reset.active_high, ..reset };
            let mistaken = match rng.random_range(0..2) {
                0 => body(inverted, &next),
                _ if next.contains("+ 4'd1") => body(reset, &next.replace("+ 4'd1", "- 4'd1")),
                _ => body(inverted, &next),
            };
            answer = Self::noisy(mistaken, &golden, rng);
        }
        let bits = if width == 4 { "four bits" } else { "one bit" };
        let prompt = format!("y is {description} {} {bits}", reset.described());
        RtlTask { prompt, header, clocked: true, width, golden, answer }
    }

    /// One mistake: in half of the cases that of meaning which was made already, else one of form in a golden body.
    fn noisy(mistaken: String, golden: &str, rng: &mut impl Rng) -> String {
        match rng.random_range(0..6) {
            0..3 => mistaken,
            // The last `;` is missing.
            3 => golden.replace(" ; endmodule", " endmodule"),
            // A name that nobody declared.
            4 => golden.replacen("y =", "y = t ^", 1),
            // Another module, which nobody wrote.
            _ => golden.replacen("assign", "helper u ( a , b ) ; assign", 1),
        }
    }
}

fn range(width: u8) -> &'static str {
    if width == 4 { "[3:0]" } else { "" }
}

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
