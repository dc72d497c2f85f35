//! Bodies of modules, read: the subset of Verilog that RTLWorld's answers are written in.

/// An expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expr {
    /// A name.
    Name(String),
    /// The lower bits of a name.
    Slice(String, u8),
    /// A constant and its width.
    Constant(u32, u8),
    /// `~`, `-`, `+`, or a reduction by `&`, `|`, `^`.
    Unary(char, Box<Expr>),
    /// An operator between two.
    Binary(&'static str, Box<Expr>, Box<Expr>),
    /// `condition ? this : that`.
    Choice(Box<Expr>, Box<Expr>, Box<Expr>),
    /// `{ high , low }`.
    Concat(Vec<Expr>),
}

/// What a clock edge, or a reset's, does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    /// Several in a row.
    Block(Vec<Statement>),
    /// One or the other.
    If(Expr, Box<Statement>, Option<Box<Statement>>),
    /// `name <= value`, after everything of this moment was read.
    Assign(String, Expr),
}

/// A part of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// A wire or register, and its width.
    Declared { name: String, width: u8, is_register: bool },
    /// `assign name = value`, or a wire's own.
    Assign(String, Expr),
    /// What happens at edges: names, and whether they rise.
    Always(Vec<(String, bool)>, Statement),
    /// A module inside.
    Instance,
}

/// A body that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable(pub(super) String);

/// Reads a body up to its `endmodule`; whatever follows does not count.
pub(super) fn read(text: &str) -> Result<Vec<Item>, Unreadable> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut reader = Reader { words, at: 0 };
    let mut items = Vec::new();
    loop {
        match reader.peek() {
            "endmodule" => return Ok(items),
            "" => return Err(Unreadable("there is no endmodule".to_owned())),
            _ => reader.item(&mut items)?,
        }
    }
}

/// How deep expressions and statements may be nested: a model writes what it likes.
const DEEPEST: usize = 40;

struct Reader<'t> {
    words: Vec<&'t str>,
    at: usize,
}

/// Operators between two, the weakest first.
const STRENGTHS: [&[&str]; 6] = [&["|"], &["^"], &["&"], &["=="], &["<"], &["+", "-"]];

fn is_name(word: &str) -> bool {
    const KEYWORDS: [&str; 23] = [
        "module",
        "endmodule",
        "input",
        "output",
        "assign",
        "wire",
        "reg",
        "always",
        "posedge",
        "negedge",
        "or",
        "if",
        "else",
        "begin",
        "end",
        "and",
        "nand",
        "nor",
        "xor",
        "edge",
        "with",
        "bit",
        "logic",
    ];
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.chars().all(|c| c.is_ascii_alphanumeric())
        && !KEYWORDS.contains(&word)
}

impl<'t> Reader<'t> {
    fn peek(&self) -> &'t str {
        self.words.get(self.at).copied().unwrap_or("")
    }

    fn next(&mut self) -> &'t str {
        let word = self.peek();
        self.at += 1;
        word
    }

    fn takes(&mut self, word: &str) -> bool {
        let is_it = self.peek() == word;
        self.at += usize::from(is_it);
        is_it
    }

    fn needs(&mut self, word: &str) -> Result<(), Unreadable> {
        if self.takes(word) { Ok(()) } else { Err(self.unexpected(word)) }
    }

    fn unexpected(&self, expected: &str) -> Unreadable {
        Unreadable(format!("`{}` where {expected} is expected (word {})", self.peek(), self.at + 1))
    }

    fn name(&mut self) -> Result<String, Unreadable> {
        if is_name(self.peek()) { Ok(self.next().to_owned()) } else { Err(self.unexpected("a name")) }
    }

    fn width(&mut self) -> u8 {
        if self.takes("[3:0]") {
            4
        } else if self.takes("[2:0]") {
            3
        } else {
            1
        }
    }

    fn item(&mut self, items: &mut Vec<Item>) -> Result<(), Unreadable> {
        match self.peek() {
            word @ ("wire" | "reg") => {
                self.at += 1;
                let width = self.width();
                let name = self.name()?;
                items.push(Item::Declared { name: name.clone(), width, is_register: word == "reg" });
                if word == "wire" && self.takes("=") {
                    let value = self.expression(0)?;
                    items.push(Item::Assign(name, value));
                }
                self.needs(";")
            }
            "assign" => {
                self.at += 1;
                let name = self.name()?;
                self.needs("=")?;
                let value = self.expression(0)?;
                items.push(Item::Assign(name, value));
                self.needs(";")
            }
            "always" => {
                self.at += 1;
                self.needs("@")?;
                self.needs("(")?;
                let mut edges = Vec::new();
                loop {
                    let rises = match self.next() {
                        "posedge" => true,
                        "negedge" => false,
                        _ => return Err(self.unexpected("an edge")),
                    };
                    edges.push((self.name()?, rises));
                    if !self.takes("or") {
                        break;
                    }
                }
                self.needs(")")?;
                let statement = self.statement(0)?;
                items.push(Item::Always(edges, statement));
                Ok(())
            }
            _ => {
                // `name name ( names ) ;`
                self.name()?;
                self.name()?;
                self.needs("(")?;
                loop {
                    self.expression(0)?;
                    if !self.takes(",") {
                        break;
                    }
                }
                self.needs(")")?;
                self.needs(";")?;
                items.push(Item::Instance);
                Ok(())
            }
        }
    }

    fn statement(&mut self, depth: usize) -> Result<Statement, Unreadable> {
        if depth > DEEPEST {
            return Err(self.unexpected("less nesting"));
        }
        if self.takes("begin") {
            let mut all = Vec::new();
            while !self.takes("end") {
                all.push(self.statement(depth + 1)?);
            }
            return Ok(Statement::Block(all));
        }
        if self.takes("if") {
            self.needs("(")?;
            let condition = self.expression(0)?;
            self.needs(")")?;
            let this = Box::new(self.statement(depth + 1)?);
            let that = if self.takes("else") { Some(Box::new(self.statement(depth + 1)?)) } else { None };
            return Ok(Statement::If(condition, this, that));
        }
        let name = self.name()?;
        self.needs("<=")?;
        let value = self.expression(0)?;
        self.needs(";")?;
        Ok(Statement::Assign(name, value))
    }

    fn expression(&mut self, depth: usize) -> Result<Expr, Unreadable> {
        if depth > DEEPEST {
            return Err(self.unexpected("less nesting"));
        }
        let condition = self.between(0, depth)?;
        if !self.takes("?") {
            return Ok(condition);
        }
        let this = self.expression(depth + 1)?;
        self.needs(":")?;
        let that = self.expression(depth + 1)?;
        Ok(Expr::Choice(Box::new(condition), Box::new(this), Box::new(that)))
    }

    fn between(&mut self, strength: usize, depth: usize) -> Result<Expr, Unreadable> {
        let Some(operators) = STRENGTHS.get(strength) else { return self.unary(depth) };
        let mut left = self.between(strength + 1, depth)?;
        while let Some(operator) = operators.iter().find(|operator| self.peek() == **operator) {
            self.at += 1;
            let right = self.between(strength + 1, depth)?;
            left = Expr::Binary(operator, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    /// An operator with one operand stands before a primary: two in a row are no Verilog.
    fn unary(&mut self, depth: usize) -> Result<Expr, Unreadable> {
        let operator = match self.peek() {
            "~" => '~',
            "&" => '&',
            "|" => '|',
            "^" => '^',
            "-" => '-',
            "+" => '+',
            _ => return self.primary(depth),
        };
        self.at += 1;
        Ok(Expr::Unary(operator, Box::new(self.primary(depth + 1)?)))
    }

    fn primary(&mut self, depth: usize) -> Result<Expr, Unreadable> {
        if self.takes("(") {
            let inner = self.expression(depth + 1)?;
            self.needs(")")?;
            return Ok(inner);
        }
        if self.takes("{") {
            let mut parts = vec![self.expression(depth + 1)?];
            while self.takes(",") {
                parts.push(self.expression(depth + 1)?);
            }
            self.needs("}")?;
            return Ok(Expr::Concat(parts));
        }
        if let Some((width, value)) = self.peek().split_once("'d")
            && let (Ok(width), Ok(value)) = (width.parse(), value.parse())
        {
            self.at += 1;
            return Ok(Expr::Constant(value, width));
        }
        let name = self.name()?;
        match self.peek() {
            "[3:0]" => {
                self.at += 1;
                Ok(Expr::Slice(name, 4))
            }
            "[2:0]" => {
                self.at += 1;
                Ok(Expr::Slice(name, 3))
            }
            _ => Ok(Expr::Name(name)),
        }
    }
}
