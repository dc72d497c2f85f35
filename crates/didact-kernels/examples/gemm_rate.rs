//! Rates of matrix products at shapes of real models, beside what the bare micro-kernel's instructions can reach.
//!
//! `cargo run -p didact-kernels --example gemm_rate [seconds per shape]`
//!
//! With `RAYON_NUM_THREADS=1` on Linux, time is the processor time of the one thread, which other programs hardly
//! disturb; otherwise it is the clock's.
#![expect(clippy::print_stdout, reason = "a program for people")]

use didact_kernels::gemm::{MatRef, PackedB, gemm, gemm_packed, register_rate};
use didact_kernels::{Precision, level, random};
use std::time::Instant;

/// Seconds since some moment: of this thread's processor time when it is the only one, else of the clock.
fn seconds_now(start: Instant) -> f64 {
    let mine = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    match mine() {
        Some(nanoseconds) if rayon::current_num_threads() == 1 => nanoseconds as f64 * 1e-9,
        _ => start.elapsed().as_secs_f64(),
    }
}

/// The best rate in GFLOP/s over rounds that fill `seconds`; a round is long enough for a coarse clock.
fn rate(seconds: f64, flops: f64, mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut best) = (Instant::now(), 0.0f64);
    while start.elapsed().as_secs_f64() < seconds {
        let (begin, round) = (seconds_now(start), Instant::now());
        let mut times = 0.0;
        while round.elapsed().as_secs_f64() < 0.04 {
            f();
            times += 1.0;
        }
        best = best.max(times * flops / (seconds_now(start) - begin) / 1e9);
    }
    best
}

fn main() {
    // Inside the pool, so that the one thread measured is the one that works.
    rayon::scope(|_| run());
}

fn run() {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0.15);
    let threads = rayon::current_num_threads();
    println!("level {}, {threads} threads, GFLOP/s (best of {seconds} s)", level());
    for precision in [Precision::F32, Precision::Bf16] {
        let ceiling = register_rate(precision, 0.2) / 1e9;
        println!("{precision}: the instructions alone reach {ceiling:.0}");
        for (m, n, k, what) in [
            (1200, 1536, 576, "x Wt"),
            (1200, 576, 1536, "x Wt"),
            (1200, 576, 576, "x Wt"),
            (1024, 1024, 1024, "x Wt"),
            (1200, 576, 1536, "g W"),
            (1536, 576, 1200, "gt x"),
            (256, 49152, 576, "x Wt"),
            (100, 1536, 576, "packed"),
            (8, 1536, 576, "packed"),
            (1, 1536, 576, "packed"),
        ] {
            let (mut a, mut b, mut c) = (vec![0.0; m * k], vec![0.0; k * n], vec![0.0; m * n]);
            random::fill_normal(1, 1.0, &mut a);
            random::fill_normal(2, 1.0, &mut b);
            let (x, w) = match what {
                "g W" => (MatRef::rows(&a, k), MatRef::rows(&b, n)),
                "gt x" => (MatRef::transposed(&a, m), MatRef::rows(&b, n)),
                _ => (MatRef::rows(&a, k), MatRef::transposed(&b, k)),
            };
            let flops = 2.0 * (m * n * k) as f64;
            let reached = if what == "packed" {
                let packed = PackedB::new(w, k, n, precision);
                rate(seconds, flops, || gemm_packed(&mut c, n, m, x, &packed, false))
            } else {
                rate(seconds, flops, || gemm(&mut c, n, m, n, k, x, w, false, precision))
            };
            let share = 100.0 * reached / ceiling;
            println!("{precision:>5} {what:>6}  m {m:>5} n {n:>5} k {k:>5}  {reached:>7.1}  {share:>3.0} %");
        }
    }
}
