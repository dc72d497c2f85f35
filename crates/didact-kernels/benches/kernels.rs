//! Micro-benchmarks of every kernel at the sizes of the two benchmark models: `small` (4096 rows of 256, feed-forward 688,
//! vocabulary 4096) and `135m` (1024 rows of 576, feed-forward 1536, vocabulary 49152).
//!
//! `cargo bench -p didact-kernels [FILTER]`; `DIDACT_CPU` and `RAYON_NUM_THREADS` say with what.
#![expect(clippy::wildcard_imports, reason = "the modules are there to name groups of benchmarks")]

use didact_kernels::activation::{self, Activation};
use didact_kernels::adamw::{AdamWStep, AdamWTensor, Gradient, adamw_update_all};
use didact_kernels::cross_entropy::{Loss, OutputWeight, Results, linear_cross_entropy};
use didact_kernels::gemm::{MatRef, PackedA, PackedB, gemm, gemm_batched, gemm_both_packed, gemm_packed};
use didact_kernels::low_rank::{self, Rows};
use didact_kernels::sdpa::{Attention, Rotary, Segment, backward_packed, forward_packed};
use didact_kernels::{Precision, embedding, norm, random, reduce, rope, softmax, vector};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

fn main() {
    divan::main();
}

fn normal(key: u64, len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    random::fill_normal(key, 1.0, &mut x);
    x
}

/// Bytes of so many floats.
fn floats(count: usize) -> BytesCount {
    BytesCount::new(4 * count)
}

/// Rows and width of the two models' hidden values.
const HIDDEN: [(usize, usize); 2] = [(4096, 256), (1024, 576)];
/// Rows and width of the two models' feed-forward blocks.
const FFN: [(usize, usize); 2] = [(4096, 688), (1024, 1536)];

mod products {
    use super::*;

    /// m, n, k: a feed-forward block's first product in the two models, and a square.
    const SHAPES: [(usize, usize, usize); 3] = [(4096, 1376, 256), (1024, 3072, 576), (1024, 1024, 1024)];

    fn operands(&(m, n, k): &(usize, usize, usize)) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        (normal(1, m * k), normal(2, n * k), vec![0.0; m * n])
    }

    /// Items are floating-point operations.
    fn operations(&(m, n, k): &(usize, usize, usize)) -> ItemsCount {
        ItemsCount::new(2 * m * n * k)
    }

    #[divan::bench(args = SHAPES, consts = [false, true])]
    fn fresh<const BF16: bool>(bencher: Bencher, shape: &(usize, usize, usize)) {
        let (a, b, mut c) = operands(shape);
        let &(m, n, k) = shape;
        let (a, b) = (MatRef::rows(&a, k), MatRef::transposed(&b, k));
        bencher.counter(operations(shape)).bench_local(|| gemm(&mut c, n, m, n, k, a, b, false, precision(BF16)));
    }

    #[divan::bench(args = SHAPES, consts = [false, true])]
    fn packed_b<const BF16: bool>(bencher: Bencher, shape: &(usize, usize, usize)) {
        let (a, b, mut c) = operands(shape);
        let &(m, n, k) = shape;
        let b = PackedB::new(MatRef::transposed(&b, k), k, n, precision(BF16));
        let a = MatRef::rows(&a, k);
        bencher.counter(operations(shape)).bench_local(|| gemm_packed(&mut c, n, m, a, &b, false));
    }

    #[divan::bench(args = SHAPES, consts = [false, true])]
    fn both_packed<const BF16: bool>(bencher: Bencher, shape: &(usize, usize, usize)) {
        let (a, b, mut c) = operands(shape);
        let &(m, n, k) = shape;
        let b = PackedB::new(MatRef::transposed(&b, k), k, n, precision(BF16));
        let a = PackedA::new(MatRef::rows(&a, k), m, k, precision(BF16));
        bencher.counter(operations(shape)).bench_local(|| gemm_both_packed(&mut c, n, &a, &b, false));
    }

    #[divan::bench(args = SHAPES)]
    fn pack_weight(bencher: Bencher, &(_, n, k): &(usize, usize, usize)) {
        let b = normal(2, n * k);
        bencher.counter(floats(n * k)).bench_local(|| PackedB::new(MatRef::transposed(&b, k), k, n, Precision::Bf16));
    }

    /// 64 products of 64 × 256 by 256 × 64.
    #[divan::bench]
    fn batched(bencher: Bencher) {
        let (count, m, n, k) = (64, 64, 64, 256);
        let (a, b, mut c) = (normal(1, count * m * k), normal(2, count * n * k), vec![0.0; count * m * n]);
        let (a, b) = ((MatRef::rows(&a, k), m * k), (MatRef::transposed(&b, k), n * k));
        bencher
            .counter(ItemsCount::new(2 * count * m * n * k))
            .bench_local(|| gemm_batched(&mut c, m * n, n, count, [m, n, k], a, b, false, Precision::Bf16));
    }

    #[divan::bench(args = HIDDEN)]
    fn low_rank_project(bencher: Bencher, &(rows, width): &(usize, usize)) {
        let (x, m, mut out) = (normal(1, rows * width), normal(2, width * 16), vec![0.0; rows * 16]);
        let x = Rows { data: &x, count: rows, width, stride: width };
        bencher.counter(floats(rows * width)).bench_local(|| low_rank::project(&mut out, x, &m, 16));
    }

    #[divan::bench(args = HIDDEN)]
    fn low_rank_update(bencher: Bencher, &(rows, width): &(usize, usize)) {
        let (mut y, m, h) = (normal(1, rows * width), normal(2, width * 16), normal(3, rows * 16));
        bencher.counter(floats(2 * rows * width)).bench_local(|| low_rank::update(&mut y, width, width, &h, &m, 16));
    }

    #[divan::bench(args = HIDDEN)]
    fn low_rank_outer(bencher: Bencher, &(rows, width): &(usize, usize)) {
        let (x, h, mut out) = (normal(1, rows * width), normal(3, rows * 16), vec![0.0; width * 16]);
        let x = Rows { data: &x, count: rows, width, stride: width };
        bencher.counter(floats(rows * width)).bench_local(|| low_rank::outer(&mut out, x, &h, 16));
    }
}

fn precision(bf16: bool) -> Precision {
    if bf16 { Precision::Bf16 } else { Precision::F32 }
}

mod attention {
    use super::*;

    /// Sequences, tokens, query heads, key/value heads.
    const SHAPES: [(usize, usize, usize, usize); 3] = [(16, 256, 4, 4), (4, 256, 9, 3), (1, 2048, 9, 3)];
    const D: usize = 64;

    struct Case {
        segments: Vec<Segment>,
        cos: Vec<f32>,
        sin: Vec<f32>,
        qkv: Vec<f32>,
        out: Vec<f32>,
        log_sums: Vec<f32>,
    }

    fn case(&(sequences, tokens, heads, kv_heads): &(usize, usize, usize, usize)) -> Case {
        let n = sequences * tokens;
        let angles = normal(3, n * D / 2);
        Case {
            segments: (0..sequences).map(|i| Segment::whole(i * tokens..(i + 1) * tokens)).collect(),
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
            qkv: normal(1, n * (heads + 2 * kv_heads) * D),
            out: vec![0.0; n * heads * D],
            log_sums: vec![0.0; n * heads],
        }
    }

    fn plan(case: &Case, heads: usize, kv_heads: usize, bf16: bool) -> Attention<'_> {
        Attention {
            segments: &case.segments,
            heads,
            kv_heads,
            head_dim: D,
            scale: 0.125,
            causal: true,
            window: None,
            rotary: Some(Rotary { cos: &case.cos, sin: &case.sin }),
            precision: precision(bf16),
        }
    }

    #[divan::bench(args = SHAPES, consts = [false, true])]
    fn forward<const BF16: bool>(bencher: Bencher, shape: &(usize, usize, usize, usize)) {
        let c = case(shape);
        let (mut out, mut log_sums) = (c.out.clone(), c.log_sums.clone());
        let a = plan(&c, shape.2, shape.3, BF16);
        bencher.bench_local(|| forward_packed(&a, &c.qkv, &mut out, &mut log_sums));
    }

    #[divan::bench(args = SHAPES, consts = [false, true])]
    fn backward<const BF16: bool>(bencher: Bencher, shape: &(usize, usize, usize, usize)) {
        let c = case(shape);
        let (mut out, mut log_sums, mut d_qkv) = (c.out.clone(), c.log_sums.clone(), c.qkv.clone());
        let a = plan(&c, shape.2, shape.3, BF16);
        forward_packed(&a, &c.qkv, &mut out, &mut log_sums);
        let d_out = normal(2, out.len());
        bencher.bench_local(|| backward_packed(&a, &c.qkv, &out, &log_sums, &d_out, &mut d_qkv));
    }

    #[divan::bench(args = SHAPES)]
    fn rotary(bencher: Bencher, shape: &(usize, usize, usize, usize)) {
        let mut c = case(shape);
        let &(sequences, tokens, heads, kv_heads) = shape;
        let positions: Vec<u32> = (0..(sequences * tokens) as u32).collect();
        let stride = (heads + 2 * kv_heads) * D;
        bencher
            .counter(floats(2 * positions.len() * (heads + kv_heads) * D))
            .bench_local(|| rope::apply(&mut c.qkv, stride, heads + kv_heads, D, &c.cos, &c.sin, &positions));
    }
}

mod loss {
    use super::*;

    /// Positions, vocabulary, width.
    const SHAPES: [(usize, usize, usize); 2] = [(4096, 4096, 256), (1024, 49_152, 576)];

    #[divan::bench(args = SHAPES, consts = [false, true], sample_count = 5)]
    fn with_gradients<const BF16: bool>(bencher: Bencher, &(m, vocabulary, width): &(usize, usize, usize)) {
        let (hidden, weight) = (normal(1, m * width), normal(2, vocabulary * width));
        let targets: Vec<u32> = (0..m as u32).collect();
        let weights = vec![1.0; m];
        let (mut nll, mut d_hidden) = (vec![0.0; m], hidden.clone());
        let mut d_weight = vec![0.0; weight.len()];
        bencher.counter(ItemsCount::new(6 * m * vocabulary * width)).bench_local(|| {
            let packed = OutputWeight::new(&weight, width, precision(BF16), true);
            let results = Results {
                nll: &mut nll,
                d_hidden: Some(&mut d_hidden),
                d_weight: Some(&mut d_weight),
                accumulate: false,
            };
            linear_cross_entropy(&Loss::new(&targets, &weights), &hidden, &packed, results)
        });
    }

    #[divan::bench]
    fn log_softmax(bencher: Bencher) {
        let mut x = normal(1, 64 * 49_152);
        bencher.counter(floats(2 * x.len())).bench_local(|| softmax::log_softmax_rows(&mut x, 49_152));
    }
}

/// Rates are bytes that must move, once each.
mod rows {
    use super::*;

    #[divan::bench(args = HIDDEN)]
    fn rms_norm(bencher: Bencher, &(rows, width): &(usize, usize)) {
        let (x, gain, mut y) = (normal(1, rows * width), normal(2, width), vec![0.0; rows * width]);
        bencher.counter(floats(2 * x.len())).bench_local(|| norm::rms_norm(&mut y, &x, &gain, 1e-5));
    }

    #[divan::bench(args = HIDDEN)]
    fn add_rms_norm(bencher: Bencher, &(rows, width): &(usize, usize)) {
        let (mut x, r, gain) = (normal(1, rows * width), normal(3, rows * width), normal(2, width));
        let mut y = x.clone();
        bencher.counter(floats(4 * r.len())).bench_local(|| norm::add_rms_norm(&mut y, &mut x, &r, &gain, 1e-5));
    }

    #[divan::bench(args = HIDDEN)]
    fn rms_norm_backward(bencher: Bencher, &(rows, width): &(usize, usize)) {
        let (x, dy, gain) = (normal(1, rows * width), normal(3, rows * width), normal(2, width));
        let (mut dx, mut d_gain) = (x.clone(), gain.clone());
        bencher
            .counter(floats(4 * x.len()))
            .bench_local(|| norm::rms_norm_backward(&mut dx, &mut d_gain, &x, &dy, Some(&dy), &gain, 1e-5));
    }

    #[divan::bench(args = HIDDEN)]
    fn layer_norm(bencher: Bencher, &(rows, width): &(usize, usize)) {
        let (x, gain, mut y) = (normal(1, rows * width), normal(2, width), vec![0.0; rows * width]);
        bencher.counter(floats(2 * x.len())).bench_local(|| norm::layer_norm(&mut y, &x, &gain, &gain, 1e-5));
    }

    #[divan::bench(args = HIDDEN)]
    fn layer_norm_backward(bencher: Bencher, &(rows, width): &(usize, usize)) {
        let (x, dy, gain) = (normal(1, rows * width), normal(3, rows * width), normal(2, width));
        let (mut dx, mut d_gain, mut d_bias) = (x.clone(), gain.clone(), gain.clone());
        bencher.counter(floats(3 * x.len())).bench_local(|| {
            norm::layer_norm_backward(&mut dx, &mut d_gain, &mut d_bias, &x, &dy, None, &gain, 1e-5);
        });
    }

    const KINDS: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

    #[divan::bench(args = KINDS)]
    fn gated(bencher: Bencher, kind: Activation) {
        let (rows, width) = FFN[1];
        let (x, mut y) = (normal(1, rows * 2 * width), vec![0.0; rows * width]);
        bencher.counter(floats(3 * y.len())).bench_local(|| activation::gated(kind, &mut y, &x, width));
    }

    #[divan::bench(args = KINDS)]
    fn gated_backward(bencher: Bencher, kind: Activation) {
        let (rows, width) = FFN[1];
        let (x, dy, mut dx) = (normal(1, rows * 2 * width), normal(2, rows * width), vec![0.0; rows * 2 * width]);
        bencher.counter(floats(5 * dy.len())).bench_local(|| activation::gated_backward(kind, &mut dx, &x, &dy, width));
    }

    #[divan::bench(args = KINDS)]
    fn activate_backward(bencher: Bencher, kind: Activation) {
        let (rows, width) = FFN[0];
        let (x, dy, mut dx) = (normal(1, rows * width), normal(2, rows * width), vec![0.0; rows * width]);
        bencher.counter(floats(3 * x.len())).bench_local(|| activation::activate_backward(kind, &mut dx, &x, &dy));
    }

    #[divan::bench(args = HIDDEN)]
    fn dropout(bencher: Bencher, &(rows, width): &(usize, usize)) {
        let (x, mut y) = (normal(1, rows * width), vec![0.0; rows * width]);
        bencher.counter(floats(2 * x.len())).bench_local(|| random::dropout(&mut y, &x, 7, 0, 0.9, false));
    }

    #[divan::bench(args = HIDDEN)]
    fn add(bencher: Bencher, &(rows, width): &(usize, usize)) {
        let (x, mut y) = (normal(1, rows * width), vec![0.0; rows * width]);
        bencher.counter(floats(3 * x.len())).bench_local(|| vector::add(&mut y, &x));
    }
}

mod parameters {
    use super::*;

    /// 30 million parameters in tensors of one layer's sizes.
    fn sizes() -> Vec<usize> {
        (0..9).flat_map(|_| [576 * 576, 192 * 576, 576, 3 * 576 * 1536]).collect()
    }

    const STEP: AdamWStep = AdamWStep {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 10,
        grad_scale: 0.5,
    };

    #[divan::bench(sample_count = 10)]
    fn adamw(bencher: Bencher) {
        let tensor = |key| sizes().into_iter().map(move |n| normal(key, n)).collect::<Vec<_>>();
        let (mut param, grad, mut m, mut v) = (tensor(1), tensor(2), tensor(3), tensor(4));
        v.iter_mut().flatten().for_each(|v| *v = v.abs());
        bencher.counter(floats(7 * sizes().iter().sum::<usize>())).bench_local(|| {
            let mut tensors: Vec<_> = param
                .iter_mut()
                .zip(&grad)
                .zip(m.iter_mut().zip(&mut v))
                .map(|((param, grad), (m, v))| AdamWTensor { param, grad: Gradient::F32(grad), m, v, decays: true })
                .collect();
            adamw_update_all(&mut tensors, &STEP);
        });
    }

    #[divan::bench(sample_count = 10)]
    fn global_norm(bencher: Bencher) {
        let grad: Vec<_> = sizes().into_iter().map(|n| normal(2, n)).collect();
        let gradients: Vec<_> = grad.iter().map(|g| Gradient::F32(g)).collect();
        bencher.counter(floats(sizes().iter().sum())).bench_local(|| reduce::global_norm(&gradients));
    }

    #[divan::bench]
    fn embedding_gradient(bencher: Bencher) {
        let (rows, width) = HIDDEN[1];
        let ids: Vec<u32> = (0..rows as u32).map(|i| i * 7919 % 49_152).collect();
        let (mut table, dy) = (vec![0.0; 49_152 * width], normal(1, rows * width));
        bencher.counter(floats(3 * dy.len())).bench_local(|| embedding::scatter_add(&mut table, &ids, &dy, width));
    }

    #[divan::bench]
    fn embedding_lookup(bencher: Bencher) {
        let (rows, width) = HIDDEN[1];
        let ids: Vec<u32> = (0..rows as u32).map(|i| i * 7919 % 49_152).collect();
        let (table, mut out) = (normal(1, 49_152 * width), vec![0.0; rows * width]);
        bencher.counter(floats(2 * out.len())).bench_local(|| embedding::gather(&mut out, &table, &ids, width));
    }

    #[divan::bench]
    fn normal_deviates(bencher: Bencher) {
        let mut x = vec![0.0; 1 << 20];
        bencher.counter(floats(x.len())).bench_local(|| random::fill_normal(1, 1.0, &mut x));
    }
}
