//! How long attention takes at shapes of real models: the Rust side of `bench/attention.py`.
//!
//! For each line `sequences tokens heads kv_heads head_size causal precision seconds` of its input it answers with the
//! seconds that a forward and a backward pass took, on average over so many seconds each.
#![expect(clippy::print_stdout, reason = "a program for scripts")]

use didact_kernels::sdpa::{Attention, Segment, backward_packed, forward_packed};
use didact_kernels::{Precision, level, random};
use std::io::BufRead;
use std::time::Instant;

fn repeat(seconds: f64, mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut times) = (Instant::now(), 0.0);
    while start.elapsed().as_secs_f64() < seconds {
        f();
        times += 1.0;
    }
    start.elapsed().as_secs_f64() / times
}

fn measure(line: &str) -> Option<(f64, f64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [sequences, tokens, heads, kv_heads, head_dim, causal, precision, seconds] = words[..] else { return None };
    let number = |s: &str| s.parse::<usize>().ok();
    let (sequences, tokens, heads) = (number(sequences)?, number(tokens)?, number(heads)?);
    let (kv_heads, head_dim, seconds) = (number(kv_heads)?, number(head_dim)?, seconds.parse::<f64>().ok()?);
    let segments: Vec<_> = (0..sequences).map(|i| Segment::whole(i * tokens..(i + 1) * tokens)).collect();
    let a = Attention {
        segments: &segments,
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        causal: causal == "causal",
        window: None,
        rotary: None,
        precision: if precision == "bf16" { Precision::Bf16 } else { Precision::F32 },
    };
    let n = sequences * tokens;
    let normal = |key, len| {
        let mut x = vec![0.0; len];
        random::fill_normal(key, 1.0, &mut x);
        x
    };
    let qkv = normal(1, n * (heads + 2 * kv_heads) * head_dim);
    let d_out = normal(2, n * heads * head_dim);
    let (mut out, mut log_sums, mut d_qkv) = (d_out.clone(), vec![0.0; heads * n], qkv.clone());
    let forward = repeat(seconds, || forward_packed(&a, &qkv, &mut out, &mut log_sums));
    let backward = repeat(seconds, || backward_packed(&a, &qkv, &out, &log_sums, &d_out, &mut d_qkv));
    Some((forward, backward))
}

fn main() {
    println!("level {} threads {}", level(), rayon::current_num_threads());
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match measure(&line) {
            Some((forward, backward)) => println!("{forward:e} {backward:e}"),
            None => println!("what is `{line}`?"),
        }
    }
}
