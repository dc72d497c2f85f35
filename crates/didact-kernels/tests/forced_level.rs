//! `DIDACT_CPU` decides what runs, in a process of its own.
use didact_kernels::gemm::{MatRef, gemm};
use didact_kernels::sdpa::{Attention, Segment, backward_packed, forward_packed};
use didact_kernels::{Level, Precision, VARIABLE, activation, embedding, level, norm, random, rope};
use std::collections::BTreeMap;
use std::process::Command;

fn normal(key: u64, len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    random::fill_normal(key, 1.0, &mut x);
    x
}

/// FNV-1a over the bits.
fn digest(x: &[f32]) -> u64 {
    x.iter().fold(0xcbf2_9ce4_8422_2325, |hash, x| (hash ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3))
}

fn product(precision: Precision) -> Vec<f32> {
    let (m, n, k) = (13, 35, 101);
    let (a, b, mut c) = (normal(1, m * k), normal(2, n * k), vec![0.0; m * n]);
    gemm(&mut c, n, m, n, k, MatRef::rows(&a, k), MatRef::transposed(&b, k), false, precision);
    c
}

fn attention(precision: Precision) -> Vec<f32> {
    let a = Attention {
        segments: &[Segment::whole(0..45)],
        heads: 2,
        kv_heads: 1,
        head_dim: 20,
        scale: 0.2,
        causal: true,
        window: None,
        rotary: None,
        precision,
    };
    let (qkv, d_out) = (normal(3, 45 * 80), normal(4, 45 * 40));
    let (mut out, mut log_sums, mut d_qkv) = (d_out.clone(), vec![0.0; 90], qkv.clone());
    forward_packed(&a, &qkv, &mut out, &mut log_sums);
    backward_packed(&a, &qkv, &out, &log_sums, &d_out, &mut d_qkv);
    [out, d_qkv].concat()
}

fn rows() -> Vec<f32> {
    let (x, gain) = (normal(5, 7 * 66), normal(6, 66));
    let (mut y, mut z) = (x.clone(), vec![0.0; x.len() / 2]);
    norm::rms_norm(&mut y, &x, &gain, 1e-5);
    activation::gated(activation::Activation::Silu, &mut z, &y, 33);
    [y, z].concat()
}

/// What is plain loops, in which nothing is fused: the same at every level.
fn plain() -> Vec<f32> {
    let (mut x, table) = (normal(7, 30 * 12), normal(8, 5 * 3));
    let (mut y, mut rows) = (vec![0.0; x.len()], vec![0.0; 4 * 12]);
    rope::apply(&mut x, 12, 2, 6, &table, &table, &[2; 30]);
    random::dropout(&mut y, &x, 9, 3, 0.7, false);
    embedding::scatter_add(&mut rows, &[3, 0, 3], &y[..36], 12);
    [x, y, rows].concat()
}

/// Run by the other tests in a process with the variable set; says what ran, and digests of results.
#[test]
#[ignore = "run by the other tests in a process of its own"]
#[expect(clippy::print_stdout, reason = "the other process reads it")]
fn say() {
    println!("ran {}", level());
    println!("digest product-f32 {:x}", digest(&product(Precision::F32)));
    println!("digest product-bf16 {:x}", digest(&product(Precision::Bf16)));
    println!("digest attention-f32 {:x}", digest(&attention(Precision::F32)));
    println!("digest attention-bf16 {:x}", digest(&attention(Precision::Bf16)));
    println!("digest rows {:x}", digest(&rows()));
    println!("digest plain {:x}", digest(&plain()));
}

fn run_with(value: &str) -> (bool, String) {
    let output = Command::new(std::env::current_exe().expect("this test's own program"))
        .args(["say", "--exact", "--ignored", "--nocapture"])
        .env(VARIABLE, value)
        .output()
        .expect("this test's own program runs");
    let text = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
    (output.status.success(), text)
}

/// The digests by name.
fn digests(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (name, value) = line.strip_prefix("digest ")?.split_once(' ')?;
        Some((name.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

#[test]
fn each_level_that_this_machine_has_can_be_forced() {
    for level in Level::available() {
        let (ok, text) = run_with(level.as_str());
        assert!(ok && text.contains(&format!("ran {level}\n")), "{text}");
    }
}

/// The bits tell which instructions ran: a fused multiply-add rounds once, plain code twice, and the bf16 dot product
/// takes two steps of the sum at a time.
#[test]
fn a_forced_level_runs_its_own_instructions() {
    let of = |level: Level| digests(&run_with(level.as_str()).1);
    let portable = of(Level::Portable);
    assert_eq!(portable.len(), 6, "{portable:?}");
    let mut fused: Option<BTreeMap<String, String>> = None;
    for level in Level::available().filter(|&level| level != Level::Portable) {
        let digests = of(level);
        assert_eq!(digests["plain"], portable["plain"], "{level}");
        let names = ["product-f32", "attention-f32", "rows"];
        for name in names {
            assert_ne!(digests[name], portable[name], "{level} {name}");
            if let Some(fused) = &fused {
                assert_eq!(digests[name], fused[name], "{level} {name}");
            }
        }
        for name in ["product-bf16", "attention-bf16"] {
            if let Some(fused) = &fused {
                assert_eq!(digests[name] != fused[name], level == Level::Avx512Bf16, "{level} {name}");
            }
        }
        fused.get_or_insert(digests);
    }
}

#[test]
fn a_level_that_does_not_exist_stops_the_program() {
    let (ok, text) = run_with("sse9");
    assert!(!ok && text.contains("DIDACT_CPU is `sse9`, expected one of"), "{text}");
}
