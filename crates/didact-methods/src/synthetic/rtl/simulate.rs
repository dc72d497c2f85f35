//! Bodies, run: values of four states, as a simulator of Verilog has them, on the same inputs as the golden body.

use std::collections::BTreeMap;

use didact_core::cancel::Cancel;
use didact_core::verdict::{Item, Verdict, Verifier, VerifyError};
use didact_verify::verilog::VerilogVerdict;

use super::bench::{Inputs, inputs};
use super::body::{Expr, Item as Part, Statement, read};
use super::world::RtlTask;

/// Judges bodies without a simulator. An item's reference is an [`RtlTask`].
#[derive(Debug, Clone, Copy, Default)]
pub struct RtlVerifier;

impl Verifier for RtlVerifier {
    fn verify(
        &self,
        items: &[(&Item, &str)],
        sink: &mut dyn FnMut(usize, Verdict),
        cancel: &Cancel,
    ) -> Result<(), VerifyError> {
        for (index, (item, answer)) in items.iter().enumerate() {
            if cancel.is_cancelled() {
                break;
            }
            let verdict = match serde_json::from_value::<RtlTask>(item.reference.clone()) {
                Ok(task) => simulate(&task, answer).into_verdict(),
                Err(error) => Verdict { score: None, category: "bad_reference".into(), reason: error.to_string() },
            };
            sink(index, verdict);
        }
        Ok(())
    }
}

/// What a body does on the inputs of its task's bench, compared with the golden one.
pub fn simulate(task: &RtlTask, body: &str) -> VerilogVerdict {
    let candidate = match Module::read(task, body) {
        Ok(module) => module,
        Err(verdict) => return verdict,
    };
    let Ok(golden) = Module::read(task, &task.golden) else {
        return VerilogVerdict::RuntimeError("the golden body cannot be read".to_owned());
    };
    let (mut theirs, mut ours) = (candidate.begin(), golden.begin());
    let (mut errors, mut samples) = (0, 0);
    for inputs in inputs(task) {
        theirs.set(&inputs);
        ours.set(&inputs);
        samples += 1;
        // An unknown bit of the golden output matches anything, of the candidate's nothing else.
        let (found, expected) = (theirs.output(), ours.output());
        let differs = (found.bits ^ expected.bits | found.unknown) & !expected.unknown & mask(expected.width);
        errors += u64::from(differs != 0);
    }
    if errors == 0 { VerilogVerdict::Pass } else { VerilogVerdict::Mismatch { errors, samples } }
}

fn mask(width: u8) -> u32 {
    if width >= 32 { u32::MAX } else { (1 << width) - 1 }
}

/// Bits, of which some are unknown (and then 0 in `bits`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Value {
    bits: u32,
    unknown: u32,
    width: u8,
}

impl Value {
    fn known(bits: u32, width: u8) -> Self {
        Self { bits: bits & mask(width), unknown: 0, width }
    }

    fn unknown(width: u8) -> Self {
        Self { bits: 0, unknown: mask(width), width }
    }

    /// Unsigned: cut, or filled with zeros.
    fn resized(self, width: u8) -> Self {
        Self { bits: self.bits & mask(width), unknown: self.unknown & mask(width), width }
    }

    fn is_known(self) -> bool {
        self.unknown == 0
    }

    /// Whether it is true, if that can be told.
    fn truth(self) -> Option<bool> {
        if self.bits != 0 { Some(true) } else { self.is_known().then_some(false) }
    }

    fn zeros(self) -> u32 {
        !self.bits & !self.unknown & mask(self.width)
    }

    /// From the bits that are 1 for sure and those that are 0 for sure.
    fn of(ones: u32, zeros: u32, width: u8) -> Self {
        Self { bits: ones & mask(width), unknown: !(ones | zeros) & mask(width), width }
    }

    fn bit(truth: Option<bool>) -> Self {
        truth.map_or(Self::unknown(1), |truth| Self::known(u32::from(truth), 1))
    }
}

/// A body that holds together.
struct Module {
    width: u8,
    clocked: bool,
    widths: BTreeMap<String, u8>,
    registers: Vec<String>,
    assigns: Vec<(String, Expr)>,
    always: Vec<(Vec<(String, bool)>, Statement)>,
}

/// Most rounds in which the values of wires settle; more means that they feed themselves.
const SETTLES: usize = 12;
const DATA: [&str; 4] = ["a", "b", "c", "d"];

impl Module {
    /// Reads a body under its task's header.
    fn read(task: &RtlTask, body: &str) -> Result<Self, VerilogVerdict> {
        let elab = |message: String| VerilogVerdict::ElabError(message);
        let parts = read(body).map_err(|error| VerilogVerdict::SyntaxError(error.0))?;
        let output = if task.header.contains("output [3:0] y") { 4 } else { 1 };
        let mut inputs: Vec<(&str, u8)> = DATA.iter().map(|name| (*name, task.width)).collect();
        inputs.push(("s", 1));
        if task.clocked {
            inputs.extend([("clk", 1), ("rst", 1), ("en", 1)]);
        }
        let mut widths: BTreeMap<String, u8> =
            inputs.iter().map(|(name, width)| ((*name).to_owned(), *width)).collect();
        widths.insert("y".to_owned(), output);
        let mut registers = Vec::new();
        let (mut assigns, mut always) = (Vec::new(), Vec::new());
        for part in parts {
            match part {
                Part::Declared { name, width, is_register } => {
                    if widths.insert(name.clone(), width).is_some() {
                        return Err(elab(format!("`{name}` is declared twice")));
                    }
                    if is_register {
                        registers.push(name);
                    }
                }
                Part::Assign(name, value) => assigns.push((name, value)),
                Part::Always(edges, statement) => always.push((edges, statement)),
                Part::Instance => return Err(elab("an unknown module".to_owned())),
            }
        }
        let module = Self { width: task.width, clocked: task.clocked, widths, registers, assigns, always };
        module.check(&inputs)?;
        Ok(module)
    }

    fn check(&self, inputs: &[(&str, u8)]) -> Result<(), VerilogVerdict> {
        let elab = |message: String| Err(VerilogVerdict::ElabError(message));
        let is_input = |name: &str| inputs.iter().any(|(input, _)| *input == name);
        for (name, value) in &self.assigns {
            self.names(value)?;
            if !self.widths.contains_key(name) || self.registers.contains(name) {
                return elab(format!("`{name}` is no wire"));
            }
            if is_input(name) {
                return Err(VerilogVerdict::Rejected { rule: "drives_input", found: name.clone() });
            }
        }
        for (edges, statement) in &self.always {
            if let Some((name, _)) = edges.iter().find(|(name, _)| !self.widths.contains_key(name)) {
                return elab(format!("`{name}` is not declared"));
            }
            self.statement(statement)?;
        }
        Ok(())
    }

    fn statement(&self, statement: &Statement) -> Result<(), VerilogVerdict> {
        match statement {
            Statement::Block(all) => all.iter().try_for_each(|statement| self.statement(statement)),
            Statement::If(condition, this, that) => {
                self.names(condition)?;
                self.statement(this)?;
                that.as_ref().map_or(Ok(()), |that| self.statement(that))
            }
            Statement::Assign(name, value) => {
                self.names(value)?;
                if self.registers.contains(name) {
                    Ok(())
                } else {
                    Err(VerilogVerdict::ElabError(format!("`{name}` is no register")))
                }
            }
        }
    }

    fn names(&self, expr: &Expr) -> Result<(), VerilogVerdict> {
        let known = |name: &String| {
            let width = self.widths.get(name).copied();
            width.ok_or_else(|| VerilogVerdict::ElabError(format!("`{name}` is not declared")))
        };
        match expr {
            Expr::Name(name) => known(name).map(drop),
            Expr::Slice(name, _) => match known(name)? {
                1 => Err(VerilogVerdict::ElabError(format!("`{name}` has one bit"))),
                _ => Ok(()),
            },
            Expr::Constant(..) => Ok(()),
            Expr::Unary(_, operand) => self.names(operand),
            Expr::Binary(_, left, right) => self.names(left).and_then(|()| self.names(right)),
            Expr::Choice(condition, this, that) => {
                self.names(condition)?;
                self.names(this)?;
                self.names(that)
            }
            Expr::Concat(parts) => parts.iter().try_for_each(|part| self.names(part)),
        }
    }

    fn begin(&self) -> Running<'_> {
        let values = self.widths.iter().map(|(name, width)| (name.as_str(), Value::unknown(*width))).collect();
        let mut running = Running { module: self, values };
        running.settle();
        running
    }

    /// The width that an expression has by itself.
    fn width(&self, expr: &Expr) -> u8 {
        match expr {
            Expr::Name(name) => self.widths.get(name).copied().unwrap_or(1),
            Expr::Slice(_, width) | Expr::Constant(_, width) => *width,
            Expr::Unary('~' | '-' | '+', operand) => self.width(operand),
            Expr::Unary(..) | Expr::Binary("==" | "<", ..) => 1,
            Expr::Binary(_, left, right) => self.width(left).max(self.width(right)),
            Expr::Choice(_, this, that) => self.width(this).max(self.width(that)),
            Expr::Concat(parts) => parts.iter().map(|part| self.width(part)).fold(0, u8::saturating_add).min(32),
        }
    }
}

/// A module at work.
struct Running<'m> {
    module: &'m Module,
    values: BTreeMap<&'m str, Value>,
}

impl<'m> Running<'m> {
    /// Gives the module inputs and lets it come to rest.
    fn set(&mut self, inputs: &Inputs) {
        let before = self.values.clone();
        let width = self.module.width;
        let mut put = |name: &'static str, bits: u32, width: u8| {
            if let Some((name, _)) = self.module.widths.get_key_value(name) {
                self.values.insert(name, Value::known(bits, width));
            }
        };
        for (name, bits) in DATA.into_iter().zip(inputs.data) {
            put(name, bits, width);
        }
        put("s", inputs.s, 1);
        if self.module.clocked {
            put("clk", inputs.clk, 1);
            put("rst", inputs.rst, 1);
            put("en", inputs.en, 1);
        }
        self.settle();
        self.edges(&before);
    }

    /// What edges bring about, until nothing changes any more.
    fn edges(&mut self, before: &BTreeMap<&'m str, Value>) {
        let mut before = before.clone();
        for _ in 0..SETTLES {
            let mut next = Vec::new();
            for (edges, statement) in &self.module.always {
                let happens = |(name, rises): &(String, bool)| {
                    let bit =
                        |values: &BTreeMap<&str, Value>| values.get(name.as_str()).and_then(|v| v.resized(1).truth());
                    let (old, new) = (bit(&before), bit(&self.values));
                    // From 0 or unknown to 1, or from 0 to unknown.
                    if *rises {
                        old != new && old != Some(true) && (new == Some(true) || old == Some(false))
                    } else {
                        old != new && old != Some(false) && (new == Some(false) || old == Some(true))
                    }
                };
                if edges.iter().any(happens) {
                    self.run(statement, &mut next);
                }
            }
            if next.is_empty() {
                return;
            }
            before.clone_from(&self.values);
            for (name, value) in next {
                self.values.insert(name, value);
            }
            self.settle();
        }
    }

    fn run(&self, statement: &'m Statement, next: &mut Vec<(&'m str, Value)>) {
        match statement {
            Statement::Block(all) => all.iter().for_each(|statement| self.run(statement, next)),
            Statement::If(condition, this, that) => {
                // What is unknown is not true.
                let width = self.module.width(condition);
                if self.value(condition, width).truth() == Some(true) {
                    self.run(this, next);
                } else if let Some(that) = that {
                    self.run(that, next);
                }
            }
            Statement::Assign(name, value) => next.push((name, self.assigned(name, value))),
        }
    }

    fn assigned(&self, name: &str, value: &Expr) -> Value {
        let width = self.module.widths.get(name).copied().unwrap_or(1);
        self.value(value, width.max(self.module.width(value))).resized(width)
    }

    /// Lets wires follow what drives them.
    fn settle(&mut self) {
        for _ in 0..SETTLES {
            let mut next: BTreeMap<&str, Value> = BTreeMap::new();
            for (name, value) in &self.module.assigns {
                let value = self.assigned(name, value);
                next.entry(name)
                    .and_modify(|known| {
                        // Two drivers that disagree.
                        let agree = !(known.bits ^ value.bits) & !known.unknown & !value.unknown;
                        *known = Value { bits: known.bits & agree, unknown: !agree & mask(value.width), ..value };
                    })
                    .or_insert(value);
            }
            let mut changed = false;
            for (name, value) in next {
                changed |= self.values.insert(name, value) != Some(value);
            }
            if !changed {
                return;
            }
        }
        // They never come to rest: a simulator would not end.
        let wires: Vec<&str> = self.module.assigns.iter().map(|(name, _)| name.as_str()).collect();
        for name in wires {
            let width = self.module.widths.get(name).copied().unwrap_or(1);
            self.values.insert(name, Value::unknown(width));
        }
    }

    fn output(&self) -> Value {
        self.values.get("y").copied().unwrap_or(Value::unknown(1))
    }

    fn named(&self, name: &str) -> Value {
        self.values.get(name).copied().unwrap_or(Value::unknown(1))
    }

    /// The value of an expression where `width` bits are wanted (Verilog's context-determined width).
    fn value(&self, expr: &Expr, width: u8) -> Value {
        let alone = |expr: &Expr| self.value(expr, self.module.width(expr));
        match expr {
            Expr::Name(name) => self.named(name).resized(width),
            Expr::Slice(name, bits) => {
                let whole = self.named(name);
                // Bits beyond the name's are unknown.
                let beyond = mask(*bits) & !mask(whole.width);
                Value { bits: whole.bits & mask(*bits), unknown: whole.unknown & mask(*bits) | beyond, width: *bits }
                    .resized(width)
            }
            Expr::Constant(bits, own) => Value::known(*bits, *own).resized(width),
            Expr::Unary('~', operand) => {
                let value = self.value(operand, width);
                Value::of(value.zeros(), value.bits, width)
            }
            Expr::Unary('+', operand) => self.value(operand, width),
            Expr::Unary('-', operand) => {
                let value = self.value(operand, width);
                if value.is_known() { Value::known(value.bits.wrapping_neg(), width) } else { Value::unknown(width) }
            }
            Expr::Unary(operator, operand) => {
                let value = alone(operand);
                let all = mask(value.width);
                let truth = match operator {
                    '&' if value.zeros() != 0 => Some(false),
                    '&' => (value.bits == all).then_some(true),
                    '|' => value.truth(),
                    _ => value.is_known().then_some(value.bits.count_ones() % 2 == 1),
                };
                Value::bit(truth).resized(width)
            }
            Expr::Binary(operator @ ("==" | "<"), left, right) => {
                let wide = self.module.width(left).max(self.module.width(right));
                let (x, y) = (self.value(left, wide), self.value(right, wide));
                let both = !x.unknown & !y.unknown;
                let truth = if x.is_known() && y.is_known() {
                    Some(if *operator == "==" { x.bits == y.bits } else { x.bits < y.bits })
                } else if *operator == "==" && (x.bits ^ y.bits) & both != 0 {
                    Some(false)
                } else {
                    None
                };
                Value::bit(truth).resized(width)
            }
            Expr::Binary(operator, left, right) => {
                let (x, y) = (self.value(left, width), self.value(right, width));
                match *operator {
                    "&" => Value::of(x.bits & y.bits, x.zeros() | y.zeros(), width),
                    "|" => Value::of(x.bits | y.bits, x.zeros() & y.zeros(), width),
                    "^" => {
                        let known = !x.unknown & !y.unknown;
                        Value::of((x.bits ^ y.bits) & known, !(x.bits ^ y.bits) & known, width)
                    }
                    _ if !(x.is_known() && y.is_known()) => Value::unknown(width),
                    "+" => Value::known(x.bits.wrapping_add(y.bits), width),
                    _ => Value::known(x.bits.wrapping_sub(y.bits), width),
                }
            }
            Expr::Choice(condition, this, that) => {
                let (x, y) = (self.value(this, width), self.value(that, width));
                match alone(condition).truth() {
                    Some(true) => x,
                    Some(false) => y,
                    None => Value::of(x.bits & y.bits, x.zeros() & y.zeros(), width),
                }
            }
            Expr::Concat(parts) => {
                let mut all = Value::known(0, 0);
                for part in parts {
                    let value = alone(part);
                    let shift = u32::from(value.width);
                    let wide = all.width.saturating_add(value.width).min(32);
                    all = Value {
                        bits: (all.bits.checked_shl(shift).unwrap_or(0) | value.bits) & mask(wide),
                        unknown: (all.unknown.checked_shl(shift).unwrap_or(0) | value.unknown) & mask(wide),
                        width: wide,
                    };
                }
                all.resized(width)
            }
        }
    }
}
