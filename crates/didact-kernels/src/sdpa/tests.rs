use super::*;
use crate::random::{fill_normal, fill_uniform};
use proptest::prelude::*;

fn normal(key: u64, len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    if cfg!(miri) {
        // `libm` has assembly, which Miri cannot run.
        fill_uniform(key, -2.0, 2.0, &mut x);
    } else {
        fill_normal(key, 1.0, &mut x);
    }
    x
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Values against a reference; errors are measured against the largest value, as they arise from sums of many terms of
/// about that size: 2e-5 in f32 (a hundred ulp; measured 4e-6) and 3e-2 with operands of 8 bits (measured 1.2e-2).
fn close(what: &str, got: &[f32], want: &[f64], precision: Precision) {
    assert_eq!(got.len(), want.len(), "{what}");
    let share = if precision == Precision::F32 { 2e-5 } else { 3e-2 };
    let largest = want.iter().filter(|w| w.is_finite()).fold(0.0f64, |a, w| a.max(w.abs())).max(1e-3);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let same = f64::from(*got) == *want;
        assert!(
            same || (f64::from(*got) - want).abs() <= share * largest,
            "{what}: element {i} is {got}, expected {want} (largest {largest})"
        );
    }
}

struct Case {
    segments: Vec<Segment>,
    heads: usize,
    kv_heads: usize,
    d: usize,
    causal: bool,
    window: Option<usize>,
    rotary: bool,
}

impl Case {
    fn rows(&self) -> (usize, usize) {
        let end = |of: fn(&Segment) -> usize| self.segments.iter().map(of).max().unwrap_or(0);
        (end(|s| s.queries.end), end(|s| s.keys.end))
    }

    fn check(&self, level: Level, precision: Precision) {
        let Self { heads, kv_heads, d, causal, window, .. } = *self;
        let (n, s) = self.rows();
        let angles: Vec<f32> = (0..n.max(s) * (d / 2)).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let rotary = self.rotary.then_some(Rotary { cos: &cos, sin: &sin });
        let scale = 1.0 / (d as f32).sqrt();
        let a = Attention {
            segments: &self.segments,
            heads,
            kv_heads,
            head_dim: d,
            scale,
            causal,
            window,
            rotary,
            precision,
        };
        let what = format!(
            "{level} {precision} {:?} heads {heads}/{kv_heads} of {d} causal {causal} window {window:?} rotary {}",
            self.segments, self.rotary
        );
        // Three floats between rows, which must not be touched.
        let (stride, kv_stride) = (heads * d + 3, kv_heads * d + 3);
        let (q, k, v) = (normal(1, n * stride), normal(2, s * kv_stride), normal(3, s * kv_stride));
        let heads_of = |data, stride| Heads { data, stride };
        let inputs = [heads_of(&q[..], stride), heads_of(&k[..], kv_stride), heads_of(&v[..], kv_stride)];
        let mut out = vec![7.0; n * stride];
        let mut log_sums = vec![0.0; heads * n];
        let target = HeadsMut { data: &mut out, stride };
        forward_at(level, &a, inputs[0], inputs[1], inputs[2], target, &mut log_sums);

        let (q64, k64, v64) = (wide(&q), wide(&k), wide(&v));
        let inputs64 = [
            Heads { data: &q64[..], stride },
            Heads { data: &k64, stride: kv_stride },
            Heads { data: &v64, stride: kv_stride },
        ];
        let (want, want_log_sums) = reference::forward(&a, n, inputs64);
        let in_a_query = |row: usize| self.segments.iter().any(|s| s.queries.contains(&row));
        let in_a_key = |row: usize| self.segments.iter().any(|s| s.keys.contains(&row));
        // The reference in the layout of the result, with what must not be written.
        let spread = |want: &[f64], width: usize, stride: usize, inside: &dyn Fn(usize) -> bool| -> Vec<f64> {
            want.chunks(width)
                .enumerate()
                .flat_map(|(row, w)| {
                    let inside = inside(row);
                    (0..stride).map(move |i| if inside && i < width { w[i] } else { 7.0 })
                })
                .collect()
        };
        let width = heads * d;
        close(&format!("out {what}"), &out, &spread(&want, width, stride, &in_a_query), precision);
        close(&format!("log sums {what}"), &log_sums, &want_log_sums, precision);

        let d_out = normal(4, n * width);
        let d_out_heads = heads_of(&d_out[..], width);
        let (mut d_q, mut d_k, mut d_v) = (vec![7.0; n * stride], vec![7.0; s * kv_stride], vec![7.0; s * kv_stride]);
        let targets = [
            block::Target::new(HeadsMut { data: &mut d_q, stride }),
            block::Target::new(HeadsMut { data: &mut d_k, stride: kv_stride }),
            block::Target::new(HeadsMut { data: &mut d_v, stride: kv_stride }),
        ];
        backward_at(level, &a, inputs, heads_of(&out[..], stride), &log_sums, d_out_heads, targets);
        let (want_q, want_k, want_v) = reference::backward(&a, n, s, inputs64, &wide(&d_out));
        let kv_width = kv_heads * d;
        close(&format!("d_q {what}"), &d_q, &spread(&want_q, width, stride, &in_a_query), precision);
        close(&format!("d_k {what}"), &d_k, &spread(&want_k, kv_width, kv_stride, &in_a_key), precision);
        close(&format!("d_v {what}"), &d_v, &spread(&want_v, kv_width, kv_stride, &in_a_key), precision);
    }
}

fn whole(lengths: &[usize]) -> Vec<Segment> {
    let mut start = 0;
    lengths
        .iter()
        .map(|len| {
            start += len;
            Segment::whole(start - len..start)
        })
        .collect()
}

#[test]
fn both_passes_agree_with_the_formula_at_every_level() {
    let case = |segments, heads, kv_heads, d, causal, window, rotary| Case {
        segments,
        heads,
        kv_heads,
        d,
        causal,
        window,
        rotary,
    };
    let cases = [
        case(vec![], 1, 1, 1, true, None, false),
        case(whole(&[1]), 1, 1, 1, true, None, false),
        case(whole(&[0, 1, 0, 2]), 2, 1, 2, true, None, true),
        case(whole(&[7, 33, 70]), 6, 2, 20, true, None, true),
        case(whole(&[150]), 2, 1, 64, true, None, true),
        case(whole(&[31, 97]), 3, 3, 33, false, None, false),
        case(whole(&[100, 20]), 2, 1, 16, true, Some(13), false),
        case(whole(&[45]), 2, 2, 8, false, Some(5), true),
        case(whole(&[260]), 1, 1, 80, true, Some(100), false),
        // Padding: rows 5..8 are nobody's keys, and 8..9 nobody's at all.
        case(
            vec![Segment { queries: 0..8, keys: 0..5, first: 0 }, Segment::whole(9..40)],
            2,
            1,
            12,
            false,
            None,
            false,
        ),
        // Cross-attention, also to nothing.
        case(vec![Segment::cross(0..40, 3..70), Segment::cross(41..43, 70..70)], 4, 2, 24, false, None, false),
        // The end of a longer sequence.
        case(vec![Segment { queries: 0..37, keys: 0..90, first: 53 }], 2, 1, 16, true, None, false),
        // Queries before every key.
        case(vec![Segment { queries: 0..40, keys: 0..9, first: 20 }], 1, 1, 16, true, Some(4), false),
    ];
    for level in Level::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            for case in &cases {
                case.check(level, precision);
            }
        }
    }
}

/// Few and small, for an interpreter that checks every access.
#[test]
fn portable_attention_for_miri() {
    let case = Case { segments: whole(&[3]), heads: 1, kv_heads: 1, d: 2, causal: true, window: None, rotary: true };
    case.check(Level::Portable, Precision::F32);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn any_shape_agrees_with_the_formula(
        lengths in prop::collection::vec(0usize..90, 0..4), group in 1usize..4, kv_heads in 1usize..3, d in 1usize..40,
        causal in any::<bool>(), window in prop::option::of(1usize..60), rotary in any::<bool>(), bf16 in any::<bool>(),
        level in 0usize..4,
    ) {
        let levels: Vec<_> = Level::available().collect();
        let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
        let d = if rotary { 2 * d } else { d };
        let case = Case { segments: whole(&lengths), heads: group * kv_heads, kv_heads, d, causal, window, rotary };
        case.check(levels[level % levels.len()], precision);
    }
}

/// A self-attention plan and its input.
fn packed(segments: &[Segment], precision: Precision) -> (Attention<'_>, Vec<f32>) {
    let rows = segments.last().map_or(0, |s| s.queries.end);
    let a = Attention {
        segments,
        heads: 4,
        kv_heads: 2,
        head_dim: 24,
        scale: 0.2,
        causal: true,
        window: None,
        rotary: None,
        precision,
    };
    (a, normal(9, rows * 8 * 24))
}

#[test]
fn one_matrix_of_queries_keys_and_values_gives_the_same_bits_and_threads_do_not_show() {
    let segments = whole(&[50, 3, 130]);
    for precision in [Precision::F32, Precision::Bf16] {
        let (a, qkv) = packed(&segments, precision);
        let (n, stride, width) = (183, 8 * 24, 4 * 24);
        let d_out = normal(5, n * width);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| {
                let (mut out, mut log_sums, mut d_qkv) =
                    (vec![0.0; n * width], vec![0.0; 4 * n], vec![0.0; n * stride]);
                forward_packed(&a, &qkv, &mut out, &mut log_sums);
                backward_packed(&a, &qkv, &out, &log_sums, &d_out, &mut d_qkv);
                (out, log_sums, d_qkv)
            })
        };
        let one = run(1);
        assert!(one == run(3));
        // In three matrices.
        let part = |first: usize, count: usize| -> Vec<f32> {
            qkv.chunks(stride).flat_map(|row| row[first * 24..(first + count) * 24].to_vec()).collect()
        };
        let (q, k, v) = (part(0, 4), part(4, 2), part(6, 2));
        let [q, k, v] = [(&q, width), (&k, 48), (&v, 48)].map(|(x, stride)| Heads { data: &x[..], stride });
        let (mut out, mut log_sums) = (vec![0.0; n * width], vec![0.0; 4 * n]);
        forward(&a, q, k, v, HeadsMut { data: &mut out, stride: width }, &mut log_sums);
        assert!(out == one.0 && log_sums == one.1);
        let (mut d_q, mut d_k, mut d_v) = (vec![0.0; n * width], vec![0.0; n * 48], vec![0.0; n * 48]);
        let targets = [(&mut d_q, width), (&mut d_k, 48), (&mut d_v, 48)]
            .map(|(data, stride)| HeadsMut { data: &mut data[..], stride });
        let rows = |data| Heads { data, stride: width };
        backward(&a, [q, k, v], rows(&out), &log_sums, rows(&d_out), targets);
        for (row, all) in one.2.chunks(stride).enumerate() {
            assert_eq!(all[..width], d_q[row * width..][..width]);
            assert_eq!(all[width..width + 48], d_k[row * 48..][..48]);
            assert_eq!(all[width + 48..], d_v[row * 48..][..48]);
        }
    }
}

#[test]
fn a_query_has_the_same_bits_whatever_its_place_in_a_block() {
    for level in Level::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let segments = whole(&[100]);
            let (a, qkv) = packed(&segments, precision);
            let [q, k, v] = split(&a, &qkv);
            let width = 4 * 24;
            let mut all = vec![0.0; 100 * width];
            let target = HeadsMut { data: &mut all, stride: width };
            forward_at(level, &a, q, k, v, target, &mut vec![0.0; 400]);
            // Queries from 37 on, alone.
            let later = [Segment { queries: 37..90, keys: 0..100, first: 37 }];
            let part = Attention { segments: &later, ..a };
            let mut some = vec![0.0; 90 * width];
            let target = HeadsMut { data: &mut some, stride: width };
            forward_at(level, &part, q, k, v, target, &mut vec![0.0; 400]);
            assert!(some[37 * width..] == all[37 * width..90 * width], "{level} {precision}");
        }
    }
}

#[test]
fn not_a_number_stays_in_its_sequence() {
    let segments = whole(&[40, 40]);
    for precision in [Precision::F32, Precision::Bf16] {
        let (a, mut qkv) = packed(&segments, precision);
        // In a key of the first sequence.
        qkv[39 * 8 * 24 + 4 * 24] = f32::NAN;
        let width = 4 * 24;
        let (mut out, mut log_sums, mut d_qkv) = (vec![0.0; 80 * width], vec![0.0; 320], vec![0.0; 80 * 8 * 24]);
        forward_packed(&a, &qkv, &mut out, &mut log_sums);
        backward_packed(&a, &qkv, &out, &log_sums, &normal(1, 80 * width), &mut d_qkv);
        assert!(out[39 * width..40 * width].iter().any(|x| x.is_nan()));
        assert!(out[40 * width..].iter().chain(&d_qkv[40 * 8 * 24..]).all(|x| x.is_finite()));
        assert!(d_qkv[..40 * 8 * 24].iter().any(|x| x.is_nan()));
    }
}

#[test]
#[should_panic(expected = "attention: keys 0..5 and 4..9 overlap")]
fn overlapping_segments_are_refused() {
    let segments = [Segment::cross(0..5, 0..5), Segment::cross(5..9, 4..9)];
    let (a, qkv) = packed(&segments, Precision::F32);
    forward_packed(&a, &qkv, &mut vec![0.0; 9 * 96], &mut [0.0; 36]);
}
