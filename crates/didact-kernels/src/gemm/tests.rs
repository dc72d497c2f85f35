use super::*;
use crate::random::{fill_normal, fill_uniform};
use crate::tolerance::f32_sum;
use pack::Format;
use proptest::prelude::*;

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

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

/// A `rows × columns` matrix stored row- or column-major, with `gap` floats between its lines.
fn stored(key: u64, rows: usize, columns: usize, by_rows: bool, gap: usize) -> (Vec<f32>, usize, usize) {
    let (lines, line) = if by_rows { (rows, columns) } else { (columns, rows) };
    let data = normal(key, lines * (line + gap));
    if by_rows { (data, line + gap, 1) } else { (data, 1, line + gap) }
}

fn check(
    level: Level,
    m: usize,
    n: usize,
    k: usize,
    by_rows: (bool, bool),
    gap: usize,
    accumulate: bool,
    p: Precision,
) {
    let (a_data, row_stride, col_stride) = stored(1, m, k, by_rows.0, gap);
    let a = MatRef { data: &a_data, row_stride, col_stride };
    let (b_data, row_stride, col_stride) = stored(2, k, n, by_rows.1, gap);
    let b = MatRef { data: &b_data, row_stride, col_stride };
    let ldc = n + gap;
    let before = normal(3, m * ldc);
    let mut c = before.clone();
    gemm_at(level, &mut c, ldc, m, n, k, a, b, accumulate, p);
    let mut packed = before.clone();
    gemm_packed(&mut packed, ldc, m, a, &PackedB::new_at(level, b, k, n, p), accumulate);
    let what = format!("{level} {p} m={m} n={n} k={k} rows={by_rows:?} gap={gap} accumulate={accumulate}");
    assert!(c.iter().zip(&packed).all(|(x, y)| x.to_bits() == y.to_bits()), "packed differs: {what}");
    for i in 0..m {
        for j in 0..ldc {
            let (got, old) = (c[i * ldc + j], before[i * ldc + j]);
            if j >= n {
                assert_eq!(got, old, "wrote between rows: {what}");
                continue;
            }
            let (sum, size) = reference::element(a, b, i, j, k, p);
            let (want, size) =
                if accumulate { (sum + f64::from(old), size + f64::from(old.abs())) } else { (sum, size) };
            let error = (f64::from(got) - want).abs();
            assert!(error <= f32_sum(k + 1) * size, "({i}, {j}) is {got}, expected {want}: {what}");
        }
    }
}

#[test]
fn every_level_runs_with_its_own_instructions() {
    for level in Level::available() {
        for precision in PRECISIONS {
            let plan = Plan::of(level, precision);
            assert_eq!(plan.level, level);
            let pairs = precision == Precision::Bf16 && level == Level::Avx512Bf16;
            assert_eq!(plan.format == Format::Bf16Pair, pairs, "{level} {precision}");
        }
        struct Name;
        impl crate::simd::Kernel for Name {
            type Output = &'static str;
            #[inline(always)]
            fn run<S: crate::simd::Simd>(self, _: S) -> &'static str {
                std::any::type_name::<S>()
            }
        }
        let ran = crate::simd::dispatch(level, Name);
        let wanted = match level {
            Level::Portable => "Portable",
            Level::Avx2 => "Avx2",
            Level::Avx512 | Level::Avx512Bf16 => "Avx512",
        };
        assert!(ran.ends_with(wanted), "{level} ran {ran}");
    }
}

#[test]
fn products_agree_with_the_reference_at_every_level() {
    let shapes = [
        (0, 5, 3),
        (5, 0, 3),
        (5, 3, 0),
        (1, 1, 1),
        (1, 33, 7),
        (2, 31, 2),
        (3, 64, 17),
        (7, 1, 129),
        (12, 32, 16),
        (13, 33, 31),
        (25, 97, 33),
        (48, 64, 700),
        (131, 37, 65),
        (5, 300, 641),
    ];
    for level in Level::available() {
        for (m, n, k) in shapes {
            for by_rows in [(true, true), (true, false), (false, true), (false, false)] {
                for p in PRECISIONS {
                    check(level, m, n, k, by_rows, 0, false, p);
                    check(level, m, n, k, by_rows, 3, true, p);
                }
            }
        }
    }
}

/// Few and small, for an interpreter that checks every access.
#[test]
fn portable_products_for_miri() {
    for (m, n, k) in [(5, 17, 3), (4, 16, 2), (1, 1, 1)] {
        check(Level::Portable, m, n, k, (true, false), 1, true, Precision::F32);
        check(Level::Portable, m, n, k, (false, true), 0, false, Precision::Bf16);
    }
}

#[test]
fn batches_have_the_bits_of_single_products() {
    for (count, m, n, k) in [(0, 3, 3, 3), (1, 5, 7, 9), (5, 13, 33, 40), (3, 0, 4, 4), (3, 4, 4, 0)] {
        for p in PRECISIONS {
            let (ldc, c_stride) = (n + 2, m * (n + 2) + 5);
            let (a, b) = (normal(1, count * m * k + 1), normal(2, k * n));
            let before = normal(3, count * c_stride);
            let (mut got, mut want) = (before.clone(), before);
            let (a, b) = (MatRef::rows(&a, k), MatRef::transposed(&b, k));
            gemm_batched(&mut got, c_stride, ldc, count, [m, n, k], (a, m * k), (b, 0), true, p);
            for i in 0..count {
                let a = MatRef { data: &a.data[i * m * k..], ..a };
                gemm(&mut want[i * c_stride..], ldc, m, n, k, a, b, true, p);
            }
            assert!(got == want, "{p} {count} {m} {n} {k}");
        }
    }
}

#[test]
#[should_panic(expected = "gemm_batched: results of 8 floats are 7 apart")]
fn overlapping_results_are_refused() {
    let (a, b) = (MatRef::rows(&[0.0; 4], 2), MatRef::rows(&[0.0; 8], 4));
    gemm_batched(&mut [0.0; 16], 7, 4, 2, [2, 4, 2], (a, 0), (b, 0), false, Precision::F32);
}

#[test]
fn packed_operands_give_the_same_bits() {
    for (m, n, k) in [(0, 3, 2), (3, 0, 2), (3, 3, 0), (13, 37, 101), (150, 70, 333)] {
        for level in Level::available() {
            for p in PRECISIONS {
                for by_rows in [true, false] {
                    let (a, row_stride, col_stride) = stored(1, m, k, by_rows, 1);
                    let a = MatRef { data: &a, row_stride, col_stride };
                    let b = normal(2, n * k);
                    let b = MatRef::transposed(&b, k);
                    let before = normal(3, m * n);
                    let (mut want, mut got, mut grown) = (before.clone(), before.clone(), before);
                    gemm_at(level, &mut want, n, m, n, k, a, b, true, p);
                    let (packed_a, packed_b) = (PackedA::new_at(level, a, m, k, p), PackedB::new_at(level, b, k, n, p));
                    gemm_both_packed(&mut got, n, &packed_a, &packed_b, true);
                    let mut panels = vec![9.0; GrowingA::floats(level, p, m, k) + 3];
                    let mut growing = GrowingA::new(level, p, &mut panels, m, k);
                    for at in (0..k).step_by(36) {
                        let part = MatRef { data: a.data.get(at * col_stride..).unwrap_or(&[]), ..a };
                        growing.put(at, part, 36.min(k - at));
                    }
                    growing.multiply(&mut grown, n, &packed_b, true);
                    assert!(got == want && grown == want, "{level} {p} {m} {n} {k} rows {by_rows}");
                }
            }
        }
    }
}

#[test]
fn a_product_in_pieces_agrees_with_the_reference() {
    // Longer than one piece of k, more panels than one piece of either operand.
    check(level(), 14, 70, K_PIECE + 131, (true, false), 0, false, Precision::F32);
    check(level(), 14, 70, K_PIECE + 131, (true, false), 0, false, Precision::Bf16);
    check(level(), 1030, 3, 4096, (true, true), 0, true, Precision::F32);
    check(level(), 3, 1030, 4096, (true, true), 0, true, Precision::Bf16);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_shape_and_strides_agree_with_the_reference(
        m in 0usize..40, n in 0usize..80, k in 0usize..90, a in any::<bool>(), b in any::<bool>(), gap in 0usize..4,
        accumulate in any::<bool>(), bf16 in any::<bool>(), level in 0usize..4,
    ) {
        let levels: Vec<_> = Level::available().collect();
        let p = if bf16 { Precision::Bf16 } else { Precision::F32 };
        check(levels[level % levels.len()], m, n, k, (a, b), gap, accumulate, p);
    }
}

#[test]
fn both_strides_may_be_wider_than_one() {
    let (m, n, k) = (13, 35, 37);
    let (a, b) = (normal(1, m * k * 6), normal(2, k * n * 6));
    let a = MatRef { data: &a, row_stride: 2 * k, col_stride: 2 };
    let b = MatRef { data: &b, row_stride: 3, col_stride: 3 * k };
    for level in Level::available() {
        for p in PRECISIONS {
            let mut c = vec![0.0; m * n];
            gemm_at(level, &mut c, n, m, n, k, a, b, false, p);
            for i in 0..m {
                for j in 0..n {
                    let (want, size) = reference::element(a, b, i, j, k, p);
                    assert!((f64::from(c[i * n + j]) - want).abs() <= f32_sum(k) * size, "{level} {p} ({i}, {j})");
                }
            }
        }
    }
}

#[test]
fn an_element_has_the_same_bits_wherever_it_lies_and_on_any_threads() {
    let (m, n, k) = (150, 300, 777);
    let (a, b) = (normal(1, m * k), normal(2, n * k));
    let weight = MatRef::transposed(&b, k);
    for level in Level::available() {
        for p in PRECISIONS {
            let mut whole = vec![0.0; m * n];
            gemm_at(level, &mut whole, n, m, n, k, MatRef::rows(&a, k), weight, false, p);
            // Rows alone and in odd groups.
            for (first, rows) in [(0, 1), (1, 2), (5, 12), (17, 13), (149, 1), (60, 83)] {
                let mut part = vec![0.0; rows * n];
                let from = MatRef::rows(&a[first * k..], k);
                gemm_at(level, &mut part, n, rows, n, k, from, weight, false, p);
                assert!(part == whole[first * n..][..rows * n], "{level} {p}: {rows} rows from {first}");
            }
            // Columns alone and in odd groups.
            for (first, columns) in [(0, 1), (31, 2), (33, 65), (299, 1)] {
                let mut part = vec![0.0; m * columns];
                let from = MatRef::transposed(&b[first * k..], k);
                gemm_at(level, &mut part, columns, m, columns, k, MatRef::rows(&a, k), from, false, p);
                for i in 0..m {
                    assert!(
                        part[i * columns..][..columns] == whole[i * n + first..][..columns],
                        "{level} {p}: {columns} columns from {first}, row {i}"
                    );
                }
            }
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let mut again = vec![0.0; m * n];
                pool.install(|| gemm_at(level, &mut again, n, m, n, k, MatRef::rows(&a, k), weight, false, p));
                assert!(again == whole, "{level} {p}: {threads} threads");
            }
        }
    }
}

#[test]
fn levels_with_fused_multiply_add_agree_to_the_bit_in_f32() {
    let (m, n, k) = (30, 50, 200);
    let (a, b) = (normal(1, m * k), normal(2, n * k));
    let product = |level| {
        let mut c = vec![0.0; m * n];
        let (a, b) = (MatRef::rows(&a, k), MatRef::transposed(&b, k));
        gemm_at(level, &mut c, n, m, n, k, a, b, false, Precision::F32);
        c
    };
    let fused: Vec<_> = Level::available().filter(|&l| l != Level::Portable).map(product).collect();
    assert!(fused.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn not_a_number_and_infinity_reach_their_row_and_no_other() {
    let (m, n, k) = (14, 40, 21);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for level in Level::available() {
            for p in PRECISIONS {
                let (mut a, b) = (normal(1, m * k), normal(2, n * k));
                a[3 * k + 20] = bad;
                let mut c = vec![0.0; m * n];
                gemm_at(level, &mut c, n, m, n, k, MatRef::rows(&a, k), MatRef::transposed(&b, k), false, p);
                for (i, row) in c.chunks(n).enumerate() {
                    assert!(row.iter().all(|x| x.is_finite() == (i != 3)), "{level} {p} {bad} row {i}");
                    assert!(i != 3 || row.iter().all(|x| x.is_nan() == bad.is_nan()), "{level} {p} {bad}");
                }
                // And by way of B: a column.
                let (a, mut b) = (normal(1, m * k), normal(2, n * k));
                b[33 * k + 1] = bad;
                gemm_at(level, &mut c, n, m, n, k, MatRef::rows(&a, k), MatRef::transposed(&b, k), false, p);
                for (i, x) in c.iter().enumerate() {
                    assert_eq!(x.is_finite(), i % n != 33, "{level} {p} {bad} column {}", i % n);
                }
            }
        }
    }
}

#[test]
fn subnormals_are_kept_in_f32() {
    let tiny = f32::from_bits(3);
    for level in Level::available() {
        let mut c = [0.0];
        gemm_at(
            level,
            &mut c,
            1,
            1,
            1,
            2,
            MatRef::rows(&[tiny, tiny], 2),
            MatRef::rows(&[1.0, 2.0], 1),
            false,
            Precision::F32,
        );
        assert_eq!(c[0].to_bits(), 9, "{level}");
    }
}

#[test]
#[should_panic(expected = "gemm: B has 11 floats, too few for 4 x 3 with its strides")]
fn a_short_operand_is_refused() {
    let mut c = [0.0; 6];
    gemm(&mut c, 3, 2, 3, 4, MatRef::rows(&[0.0; 8], 4), MatRef::rows(&[0.0; 11], 3), false, Precision::F32);
}

#[test]
#[should_panic(expected = "gemm: C has 5 floats, too few for 2 x 3 with 3 between rows")]
fn a_short_result_is_refused() {
    let mut c = [0.0; 5];
    gemm(&mut c, 3, 2, 3, 4, MatRef::rows(&[0.0; 8], 4), MatRef::rows(&[0.0; 12], 3), false, Precision::F32);
}
