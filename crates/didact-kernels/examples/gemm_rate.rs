//! Rates of matrix products at shapes of real models, beside what the bare micro-kernel's instructions can reach.
//!
//! `cargo run -p didact-kernels --release --example gemm_rate [seconds per shape]` prints a table.
//!
//! With `serve` it is the Rust side of `bench/gemm.py`: for each line `m n k layout precision operands seconds` of its
//! input it runs that product for so long and answers with the seconds that each took. `layout` is `nn`, `nt`, `tn` or
//! `tt` (is A, is B stored transposed); `operands` is `fresh` (packed and converted anew every time), `b` (B packed
//! before) or `ab` (both).
#![expect(clippy::print_stdout, reason = "a program for people and scripts")]

use didact_kernels::gemm::{MatRef, PackedA, PackedB, gemm, gemm_both_packed, gemm_packed, register_rate};
use didact_kernels::{Precision, level, random};
use std::io::BufRead;
use std::time::Instant;

/// One product to measure.
struct Product {
    m: usize,
    n: usize,
    k: usize,
    a_transposed: bool,
    b_transposed: bool,
    precision: Precision,
    operands: Operands,
}

#[derive(Clone, Copy)]
enum Operands {
    Fresh,
    PackedB,
    BothPacked,
}

impl Product {
    fn parse(line: &str) -> Option<(Self, f64)> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [m, n, k, layout, precision, operands, seconds] = words[..] else { return None };
        let product = Self {
            m: m.parse().ok()?,
            n: n.parse().ok()?,
            k: k.parse().ok()?,
            a_transposed: layout.starts_with('t'),
            b_transposed: layout.ends_with('t'),
            precision: if precision == "bf16" { Precision::Bf16 } else { Precision::F32 },
            operands: match operands {
                "b" => Operands::PackedB,
                "ab" => Operands::BothPacked,
                _ => Operands::Fresh,
            },
        };
        Some((product, seconds.parse().ok()?))
    }

    fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }

    /// Seconds per product, on average over about `seconds`.
    fn time(&self, seconds: f64) -> f64 {
        let Self { m, n, k, precision, .. } = *self;
        let (mut a, mut b, mut c) = (vec![0.0; m * k], vec![0.0; k * n], vec![0.0; m * n]);
        random::fill_normal(1, 1.0, &mut a);
        random::fill_normal(2, 1.0, &mut b);
        let a = if self.a_transposed { MatRef::transposed(&a, m) } else { MatRef::rows(&a, k) };
        let b = if self.b_transposed { MatRef::transposed(&b, k) } else { MatRef::rows(&b, n) };
        match self.operands {
            Operands::Fresh => repeat(seconds, || gemm(&mut c, n, m, n, k, a, b, false, precision)),
            Operands::PackedB => {
                let b = PackedB::new(b, k, n, precision);
                repeat(seconds, || gemm_packed(&mut c, n, m, a, &b, false))
            }
            Operands::BothPacked => {
                let (a, b) = (PackedA::new(a, m, k, precision), PackedB::new(b, k, n, precision));
                repeat(seconds, || gemm_both_packed(&mut c, n, &a, &b, false))
            }
        }
    }
}

fn repeat(seconds: f64, mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut times) = (Instant::now(), 0.0);
    while start.elapsed().as_secs_f64() < seconds {
        f();
        times += 1.0;
    }
    start.elapsed().as_secs_f64() / times
}

fn serve() {
    println!("level {} threads {}", level(), rayon::current_num_threads());
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match Product::parse(&line) {
            Some((product, seconds)) => println!("{:e}", product.time(seconds)),
            None => println!("what is `{line}`?"),
        }
    }
}

fn main() {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("serve") {
        serve();
        return;
    }
    let seconds = argument.and_then(|s| s.parse().ok()).unwrap_or(0.2);
    println!("level {}, {} threads, GFLOP/s", level(), rayon::current_num_threads());
    for precision in ["f32", "bf16"] {
        let of = if precision == "bf16" { Precision::Bf16 } else { Precision::F32 };
        let ceiling = register_rate(of, 0.2) / 1e9;
        println!("{precision}: the instructions alone reach {ceiling:.0}");
        for shape in [
            "256 256 256 nt",
            "512 512 512 nt",
            "1024 1024 1024 nt",
            "2048 2048 2048 nt",
            "4096 256 256 nt",
            "4096 1376 256 nt",
            "4096 256 688 nt",
            "4096 256 1376 nn",
            "4096 688 256 nn",
            "688 256 4096 tn",
            "256 688 4096 tn",
            "4096 4096 256 nt",
            "4096 256 4096 nn",
            "4096 256 4096 tn",
            "1024 1536 576 nt",
            "1024 576 1536 nn",
            "1536 576 1024 tn",
            "160 49152 576 nt",
            "160 576 49152 nn",
            "49152 576 160 tn",
        ] {
            for operands in ["fresh", "b", "ab"] {
                let line = format!("{shape} {precision} {operands} {seconds}");
                let (product, seconds) = Product::parse(&line).expect("a line of the table");
                let reached = product.flops() / product.time(seconds) / 1e9;
                print!(
                    "{shape:>22} {precision:>4} {operands:>5} {reached:>7.1} {:>3.0} %  ",
                    100.0 * reached / ceiling
                );
            }
            println!();
        }
    }
}
