//! Several right-hand matrices packed as one: the weights of layers that read the same input, or whose gradients add up.

use super::pack::{Format, Panels, Plan, Words, pack_lines, pack_panel, pack_panels};
use super::{MatRef, PackedB};
use crate::level::{Level, Precision, level};
use rayon::prelude::*;

/// Memory of a packed matrix that is not needed any more, for the next one.
#[derive(Debug, Default)]
pub struct PackedMemory(Panels);

impl PackedMemory {
    /// Bytes of the matrix that it was.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

impl PackedB {
    /// Takes the matrix apart.
    pub fn into_memory(self) -> PackedMemory {
        PackedMemory(self.panels)
    }

    /// Packs matrices that stand side by side: each part is `k × n` and comes with its `n`, the whole is `k × Σ n`. Uses
    /// `memory` as far as it goes.
    ///
    /// # Panics
    /// If a part is too short for its shape.
    pub fn beside(memory: PackedMemory, parts: &[(MatRef, usize)], k: usize, precision: Precision) -> Self {
        Self::beside_at(level(), memory, parts, k, precision)
    }

    pub(crate) fn beside_at(
        level: Level,
        memory: PackedMemory,
        parts: &[(MatRef, usize)],
        k: usize,
        precision: Precision,
    ) -> Self {
        let plan = Plan::of(level, precision);
        let n = parts.iter().map(|(_, n)| n).sum();
        for (b, n) in parts {
            assert!(b.holds(k, *n), "gemm: B has {} floats, too few for {k} x {n} with its strides", b.data.len());
        }
        let all_but_last = &parts[..parts.len().saturating_sub(1)];
        if !all_but_last.iter().all(|(_, n)| n.is_multiple_of(plan.b_width)) {
            let mut joined = vec![0.0; k * n];
            let mut column = 0;
            for (b, width) in parts {
                for i in 0..k {
                    copy_row(&mut joined[i * n + column..][..*width], b, i);
                }
                column += width;
            }
            return Self::new_at(level, MatRef::rows(&joined, n), k, n, precision);
        }
        let mut panels = memory.0.resized(n.div_ceil(plan.b_width) * plan.b_width * plan.words(k));
        let mut rest = &mut panels[..];
        for (b, n) in parts {
            let (own, others) = rest.split_at_mut(n.div_ceil(plan.b_width) * plan.b_width * plan.words(k));
            pack_panels(&plan, own, plan.b_width, words(b), *n, k);
            rest = others;
        }
        Self { plan, k, n, panels }
    }

    /// Packs matrices that lie one below the other: each part is `k × n` and comes with its `k`, the whole is `Σ k × n`.
    /// Uses `memory` as far as it goes.
    ///
    /// # Panics
    /// If a part is too short for its shape.
    pub fn above(memory: PackedMemory, parts: &[(MatRef, usize)], n: usize, precision: Precision) -> Self {
        Self::above_at(level(), memory, parts, n, precision)
    }

    pub(crate) fn above_at(
        level: Level,
        memory: PackedMemory,
        parts: &[(MatRef, usize)],
        n: usize,
        precision: Precision,
    ) -> Self {
        let plan = Plan::of(level, precision);
        let k = parts.iter().map(|(_, k)| k).sum();
        for (b, k) in parts {
            assert!(b.holds(*k, n), "gemm: B has {} floats, too few for {k} x {n} with its strides", b.data.len());
        }
        let all_but_last = &parts[..parts.len().saturating_sub(1)];
        if plan.format == Format::Bf16Pair && all_but_last.iter().any(|(_, k)| !k.is_multiple_of(2)) {
            let mut joined = vec![0.0; k * n];
            let mut lines = joined.chunks_exact_mut(n.max(1));
            for (b, k) in parts {
                for (i, line) in (0..*k).zip(&mut lines) {
                    copy_row(line, b, i);
                }
            }
            return Self::new_at(level, MatRef::rows(&joined, n), k, n, precision);
        }
        let width = plan.b_width;
        let panel_len = width * plan.words(k);
        let mut panels = memory.0.resized(n.div_ceil(width) * panel_len);
        if panel_len > 0 {
            let mut word = 0;
            for (b, k) in parts {
                let source = words(b);
                if source.lane_stride == 1 {
                    pack_lines(&plan, &mut panels, panel_len, word, width, source, n, *k, true);
                } else {
                    panels.par_chunks_exact_mut(panel_len).enumerate().for_each(|(index, panel)| {
                        let own = &mut panel[word * width..][..plan.words(*k) * width];
                        let lane = index * width;
                        pack_panel(&plan, own, width, source.at(lane, 0), width.min(n - lane), *k);
                    });
                }
                word += plan.words(*k);
            }
        }
        Self { plan, k, n, panels }
    }
}

fn words<'a>(b: &MatRef<'a>) -> Words<'a> {
    Words { data: b.data, lane_stride: b.col_stride, k_stride: b.row_stride }
}

fn copy_row(to: &mut [f32], b: &MatRef, row: usize) {
    for (j, to) in to.iter_mut().enumerate() {
        *to = b.data[row * b.row_stride + j * b.col_stride];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::gemm_packed;
    use crate::random::fill_uniform;

    fn numbers(key: u64, len: usize) -> Vec<f32> {
        let mut out = vec![0.0; len];
        fill_uniform(key, -1.0, 1.0, &mut out);
        out
    }

    /// Parts that are whole panels and parts that are not, each as its rows and as its columns: the same bits as with one
    /// matrix packed from a copy.
    #[test]
    fn parts_multiply_as_the_matrix_they_make() {
        for level in Level::available() {
            for precision in [Precision::F32, Precision::Bf16] {
                for sizes in [&[64usize, 32, 32][..], &[5, 7, 3], &[32, 6], &[9]] {
                    for transposed in [false, true] {
                        check(level, precision, sizes, transposed);
                    }
                }
            }
        }
    }

    /// Memory with something in it.
    fn used() -> PackedMemory {
        let mut panels = Panels::zeroed(1000);
        panels.fill(f32::NAN);
        PackedMemory(panels)
    }

    fn check(level: Level, precision: Precision, sizes: &[usize], transposed: bool) {
        let (m, other) = (7, 21);
        let total: usize = sizes.iter().sum();
        let same = |name: &str, packed: &PackedB, whole: &PackedB, k: usize, n: usize| {
            let a = numbers(9, m * k);
            let mut results = [vec![0.0; m * n], vec![0.0; m * n]];
            for (c, b) in results.iter_mut().zip([packed, whole]) {
                gemm_packed(c, n, m, MatRef::rows(&a, k), b, false);
            }
            let [actual, expected] = results;
            assert_eq!(actual, expected, "{name} {level} {precision:?} {sizes:?} transposed {transposed}");
        };
        let data: Vec<Vec<f32>> = sizes.iter().zip(1..).map(|(size, key)| numbers(key, size * other)).collect();
        let element = |part: usize, inner: usize, outer: usize| {
            // `inner` counts along the part's own size, `outer` along the common one.
            data[part][if transposed { inner * other + outer } else { outer * sizes[part] + inner }]
        };
        let place: Vec<(usize, usize)> =
            (0..sizes.len()).flat_map(|part| (0..sizes[part]).map(move |inner| (part, inner))).collect();

        let parts: Vec<(MatRef, usize)> = data
            .iter()
            .zip(sizes)
            .map(|(d, &n)| (if transposed { MatRef::transposed(d, other) } else { MatRef::rows(d, n) }, n))
            .collect();
        let copy: Vec<f32> = (0..other)
            .flat_map(|o| place.iter().map(move |&(p, i)| (p, i, o)))
            .map(|(p, i, o)| element(p, i, o))
            .collect();
        let whole = PackedB::new_at(level, MatRef::rows(&copy, total), other, total, precision);
        same("beside", &PackedB::beside_at(level, used(), &parts, other, precision), &whole, other, total);

        let parts: Vec<(MatRef, usize)> = data
            .iter()
            .zip(sizes)
            .map(|(d, &k)| (if transposed { MatRef::rows(d, other) } else { MatRef::transposed(d, k) }, k))
            .collect();
        let copy: Vec<f32> = place
            .iter()
            .flat_map(|&(p, i)| (0..other).map(move |o| (p, i, o)))
            .map(|(p, i, o)| element(p, i, o))
            .collect();
        let whole = PackedB::new_at(level, MatRef::rows(&copy, other), total, other, precision);
        same("above", &PackedB::above_at(level, used(), &parts, other, precision), &whole, total, other);
    }
}
