//! `didact bench gemm`: rates of matrix products.
//!
//! Every number is the median of [`ROUNDS`] measurements; all variants of a product are measured in turn within a round,
//! so that a machine that slows down slows all of them.

use super::{BenchModel, Spread};
use crate::output::{Output, Status, usage};
use clap::Args;
use didact_core::progress::Table;
use didact_kernels::Precision;
use didact_kernels::gemm::{MatRef, PackedB, gemm, gemm_packed, register_rate};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::time::Instant;

/// Measurements per number.
const ROUNDS: usize = 5;

/// Edge of the square product that shares of a peak refer to.
pub(super) const PEAK_SIZE: usize = 2048;

#[derive(Debug, Args)]
pub(crate) struct GemmArgs {
    /// Edges of square products; the last one's rates are the ceilings reported
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values = ["256", "512", "1024", "2048"])]
    sizes: Vec<NonZeroUsize>,
    /// Squares only, without the shapes of the models
    #[arg(long)]
    squares: bool,
    /// Seconds per number
    #[arg(long, value_name = "S", default_value = "0.3")]
    seconds: f64,
}

/// GFLOP/s of each precision.
#[derive(Debug, Clone, Copy, Serialize)]
struct Both<T> {
    f32: T,
    bf16: T,
}

#[derive(Debug, Serialize)]
struct Report {
    /// The square product of the last size, the better of the operands packed for it and before.
    f32_gflops: f64,
    bf16_gflops: f64,
    /// Edge of that square.
    peak_size: usize,
    /// What the micro-kernel reaches with everything in registers and the nearest cache.
    register_gflops: Both<f64>,
    level: &'static str,
    threads: usize,
    products: Vec<ProductReport>,
}

#[derive(Debug, Serialize)]
struct ProductReport {
    #[serde(flatten)]
    product: Product,
    /// GFLOP/s from f32 operands, packing and conversion included.
    gflops: Both<Spread>,
    /// GFLOP/s with B packed before; nothing where B is not a weight.
    packed_gflops: Option<Both<Spread>>,
}

/// `C[m, n] = A[m, k] · B[k, n]`.
#[derive(Debug, Clone, Serialize)]
struct Product {
    name: String,
    m: usize,
    n: usize,
    k: usize,
    #[serde(skip)]
    kind: Kind,
}

/// Where the operands of a product come from, and so how they lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Two row-major matrices.
    Square,
    /// Activations by a weight `[n, k]`.
    Forward,
    /// Gradients of a layer's output by its weight `[k, n]`.
    InputGradient,
    /// Gradients of a layer's output `[k, m]`, transposed, by its input `[k, n]`.
    WeightGradient,
}

impl Product {
    fn new(name: String, m: usize, n: usize, k: usize, kind: Kind) -> Self {
        Self { name, m, n, k, kind }
    }

    fn square(size: usize) -> Self {
        Self::new(size.to_string(), size, size, size, Kind::Square)
    }

    fn a<'a>(&self, data: &'a [f32]) -> MatRef<'a> {
        match self.kind {
            Kind::WeightGradient => MatRef::transposed(data, self.m),
            _ => MatRef::rows(data, self.k),
        }
    }

    fn b<'a>(&self, data: &'a [f32]) -> MatRef<'a> {
        match self.kind {
            Kind::Forward => MatRef::transposed(data, self.k),
            _ => MatRef::rows(data, self.n),
        }
    }

    fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }

    /// Measures all variants in turn, each for `seconds` in all.
    fn measure(&self, seconds: f64) -> ProductReport {
        let (a, b) = (numbers(self.m * self.k), numbers(self.k * self.n));
        let (a, b) = (self.a(&a), self.b(&b));
        let mut c = vec![0.0; self.m * self.n];
        let precisions = [Precision::F32, Precision::Bf16];
        let packs = self.kind != Kind::WeightGradient;
        let packed = precisions.map(|precision| packs.then(|| PackedB::new(b, self.k, self.n, precision)));
        let (mut plain, mut ahead) = (precisions.map(|_| Vec::new()), precisions.map(|_| Vec::new()));
        // The first round fills the caches and touches the pages.
        for round in 0..=ROUNDS {
            let seconds = if round == 0 { 0.0 } else { seconds / ROUNDS as f64 };
            for (i, precision) in precisions.into_iter().enumerate() {
                let rate = self.rate(seconds, || {
                    gemm(&mut c, self.n, self.m, self.n, self.k, a, b, false, precision);
                });
                let packed = packed[i].as_ref();
                let packed = packed.map(|b| self.rate(seconds, || gemm_packed(&mut c, self.n, self.m, a, b, false)));
                if round > 0 {
                    plain[i].push(rate);
                    ahead[i].extend(packed);
                }
            }
        }
        let both = |[f32, bf16]: [Vec<f64>; 2]| Both { f32: Spread::of(f32), bf16: Spread::of(bf16) };
        ProductReport { product: self.clone(), gflops: both(plain), packed_gflops: packs.then(|| both(ahead)) }
    }

    /// GFLOP/s of `multiply`, called for `seconds` and at least once.
    fn rate(&self, seconds: f64, mut multiply: impl FnMut()) -> f64 {
        let start = Instant::now();
        let mut calls = 0.0;
        loop {
            multiply();
            calls += 1.0;
            let elapsed = start.elapsed().as_secs_f64();
            if elapsed >= seconds {
                return self.flops() * calls / elapsed / 1e9;
            }
        }
    }
}

/// Numbers of ordinary size, always the same ones.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 7 & 0xffff) as f32 / 65536.0 - 0.5).collect()
}

/// The products of one training step with a Llama-shaped model, forward and backward.
fn products(model: &BenchModel) -> Vec<Product> {
    let config = &model.config;
    let (e, f, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * d, config.num_key_value_heads * d);
    let tokens = model.batch * model.seq;
    [("qkv", e, q + 2 * kv), ("out", q, e), ("gate-up", e, 2 * f), ("down", f, e), ("head", e, config.vocab_size)]
        .into_iter()
        .flat_map(|(layer, inputs, outputs)| {
            let name = |pass: &str| format!("{} {layer}{pass}", model.name);
            [
                Product::new(name(""), tokens, outputs, inputs, Kind::Forward),
                Product::new(name(" dx"), tokens, inputs, outputs, Kind::InputGradient),
                Product::new(name(" dw"), outputs, inputs, tokens, Kind::WeightGradient),
            ]
        })
        .collect()
}

/// GFLOP/s of the product that shares of this machine's peak refer to: a square of [`PEAK_SIZE`], measured for
/// `seconds`.
pub(super) fn peak(precision: Precision, seconds: f64) -> f64 {
    let report = Product::square(PEAK_SIZE).measure(seconds);
    let best = best(&report);
    if precision == Precision::Bf16 { best.bf16 } else { best.f32 }
}

/// The better of both ways to multiply.
fn best(report: &ProductReport) -> Both<f64> {
    let packed = report.packed_gflops.unwrap_or(report.gflops);
    Both {
        f32: report.gflops.f32.median.max(packed.f32.median),
        bf16: report.gflops.bf16.median.max(packed.bf16.median),
    }
}

pub(super) fn run(args: &GemmArgs, threads: usize, output: &Output) -> anyhow::Result<Status> {
    if !(args.seconds > 0.0 && args.seconds <= 60.0) {
        return Err(usage(format!("`--seconds` is {}", args.seconds), "give a time above 0 and up to 60 seconds"));
    }
    let mut all: Vec<Product> = args.sizes.iter().map(|size| Product::square(size.get())).collect();
    if !args.squares {
        for name in ["small", "135m"] {
            all.extend(products(&BenchModel::built_in(name).expect("a built-in model")));
        }
    }
    let register_gflops = Both {
        f32: register_rate(Precision::F32, args.seconds) / 1e9,
        bf16: register_rate(Precision::Bf16, args.seconds) / 1e9,
    };
    let mut reports = Vec::new();
    for (done, product) in all.iter().enumerate() {
        output.note(&format!("{} of {}: {}", done + 1, all.len(), product.name));
        reports.push(product.measure(args.seconds));
    }
    let square = args.sizes.len() - 1;
    let peak = best(&reports[square]);
    let report = Report {
        f32_gflops: peak.f32,
        bf16_gflops: peak.bf16,
        peak_size: reports[square].product.n,
        register_gflops,
        level: didact_kernels::level().as_str(),
        threads,
        products: reports,
    };
    output.result(&report, || text(&report, output))?;
    Ok(Status::Done)
}

fn text(report: &Report, output: &Output) -> String {
    let cell = |spread: Option<Spread>| {
        spread.map_or("-".to_owned(), |s| format!("{:.0} ({:.0}-{:.0})", s.median, s.min, s.max))
    };
    let rows = report.products.iter().map(|row| {
        let Product { name, m, n, k, .. } = &row.product;
        let mut cells = vec![name.clone(), format!("{m} x {n} x {k}")];
        for (gflops, packed) in [
            (row.gflops.f32, row.packed_gflops.map(|both| both.f32)),
            (row.gflops.bf16, row.packed_gflops.map(|both| both.bf16)),
        ] {
            cells.extend([cell(Some(gflops)), cell(packed)]);
        }
        cells
    });
    let table = Table {
        title: "GFLOP/s: median (least-most)".to_owned(),
        columns: ["product", "m x n x k", "f32", "f32, B packed", "bf16", "bf16, B packed"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
    };
    format!(
        "{}\n\nin registers: f32 {:.0}, bf16 {:.0}; at {}: f32 {:.0}, bf16 {:.0} (kernels {}, {} threads)",
        output.table(&table),
        report.register_gflops.f32,
        report.register_gflops.bf16,
        report.peak_size,
        report.f32_gflops,
        report.bf16_gflops,
        report.level,
        report.threads
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A product's three passes multiply the same matrices: `y = x·wᵀ`, `dx = dy·w`, `dw = dyᵀ·x`.
    #[test]
    fn the_products_of_a_layer_have_its_shapes() {
        let model = BenchModel::built_in("small").expect("a built-in model");
        let all = products(&model);
        assert_eq!(all.len(), 15);
        let shape = |i: usize| (all[i].name.as_str(), all[i].m, all[i].n, all[i].k);
        assert_eq!(shape(0), ("small qkv", 4096, 768, 256));
        assert_eq!(shape(1), ("small qkv dx", 4096, 256, 768));
        assert_eq!(shape(2), ("small qkv dw", 768, 256, 4096));
        assert_eq!(all[0].flops(), all[1].flops());
        assert_eq!(all[1].flops(), all[2].flops());
    }

    #[test]
    fn every_variant_of_a_product_is_measured() {
        for kind in [Kind::Square, Kind::Forward, Kind::InputGradient, Kind::WeightGradient] {
            let report = Product::new("test".to_owned(), 5, 7, 3, kind).measure(1e-6);
            assert_eq!(report.packed_gflops.is_some(), kind != Kind::WeightGradient);
            assert_eq!(report.gflops.bf16.rounds, ROUNDS);
            assert!(report.gflops.f32.min > 0.0 && best(&report).f32 >= report.gflops.f32.median);
        }
    }
}
