//! Panels: the operands in the order in which the micro-kernel reads them, converted on the way.
//!
//! A panel holds `width` rows of A, or columns of B ("lanes"), word by word: `panel[word * width + lane]`. A word is one
//! step of k as f32, or two steps as a pair of bf16 (the earlier one in the low half) carried in the bits of an f32.
//! Lanes and steps that do not exist are 0.

use crate::level::{Level, Precision};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use rayon::prelude::*;

/// What a word of a panel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One f32.
    F32,
    /// One f32, rounded to what bf16 can hold.
    F32RoundedToBf16,
    /// Two bf16.
    Bf16Pair,
}

/// How a level multiplies at a precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// With which instructions.
    pub(super) level: Level,
    /// What a word is.
    pub(super) format: Format,
    /// Rows of A in a panel: the tile's height.
    pub(super) a_width: usize,
    /// Columns of B in a panel: the tile's width.
    pub(super) b_width: usize,
}

impl Plan {
    /// The plan of a level for a precision.
    pub(super) fn of(level: Level, precision: Precision) -> Self {
        let format = match (precision, level) {
            (Precision::F32, _) => Format::F32,
            (Precision::Bf16, Level::Avx512Bf16) => Format::Bf16Pair,
            (Precision::Bf16, _) => Format::F32RoundedToBf16,
        };
        let (a_width, b_width) = match level {
            Level::Portable => (4, 16),
            Level::Avx2 => (6, 16),
            Level::Avx512 | Level::Avx512Bf16 => (12, 32),
        };
        Self { level, format, a_width, b_width }
    }

    /// The plan of a weight for `gemm_rows`. Where level `Avx512` runs on a machine that can round to bf16, pairs are kept,
    /// in half the memory, and widened to f32 where they are multiplied: the chain of the level, with the one difference
    /// that subnormal operands count as 0.
    pub(super) fn for_rows(level: Level, precision: Precision) -> Self {
        let mut plan = Self::of(level, precision);
        if level == Level::Avx512 && precision == Precision::Bf16 && Level::Avx512Bf16.is_available() {
            plan.format = Format::Bf16Pair;
        }
        plan
    }

    /// Whether only `gemm_rows` knows it.
    pub(super) fn is_for_rows_only(&self) -> bool {
        self.level == Level::Avx512 && self.format == Format::Bf16Pair
    }

    /// Words that `k` steps take.
    pub(super) fn words(&self, k: usize) -> usize {
        if self.format == Format::Bf16Pair { k.div_ceil(2) } else { k }
    }

    /// The step of k at which a word begins.
    pub(super) fn step(&self, word: usize) -> usize {
        if self.format == Format::Bf16Pair { 2 * word } else { word }
    }
}

/// How many lanes to pack at a time so that about `floats` are packed: whole panels, at least one.
pub(super) fn pieces(floats: usize, words: usize, width: usize) -> usize {
    (floats / words.max(1) / width).max(1) * width
}

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

// SAFETY: a line is 16 floats without padding, and 0.0 is all zero bits.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: a line is 16 floats without padding, and any bits are floats.
unsafe impl bytemuck::Pod for Line {}

/// Floats that begin at a cache line.
#[derive(Debug, Clone, Default)]
pub(super) struct Panels {
    lines: Vec<Line>,
    len: usize,
}

impl Panels {
    /// `len` zeros.
    pub(super) fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0.0; LANES]); len.div_ceil(LANES)], len }
    }

    /// The same memory, if it is large enough, with another length and any values.
    pub(super) fn resized(mut self, len: usize) -> Self {
        let lines = len.div_ceil(LANES);
        if self.lines.capacity() < lines {
            return Self::zeroed(len);
        }
        self.lines.resize(lines, Line([0.0; LANES]));
        Self { lines: self.lines, len }
    }
}

impl std::ops::Deref for Panels {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let floats: &[f32] = bytemuck::cast_slice(&self.lines);
        &floats[..self.len]
    }
}

impl std::ops::DerefMut for Panels {
    fn deref_mut(&mut self) -> &mut [f32] {
        let floats: &mut [f32] = bytemuck::cast_slice_mut(&mut self.lines);
        &mut floats[..self.len]
    }
}

/// An operand seen from its panels: element `(lane, k)` is `data[lane * lane_stride + k * k_stride]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    pub(super) data: &'a [f32],
    pub(super) lane_stride: usize,
    pub(super) k_stride: usize,
}

impl Words<'_> {
    /// The same operand from another lane and step on.
    pub(super) fn at(self, lane: usize, k: usize) -> Self {
        // Nothing lies past the end of an operand that is used only up to it.
        let start = (lane * self.lane_stride + k * self.k_stride).min(self.data.len());
        Self { data: &self.data[start..], ..self }
    }
}

/// Fewest words for which packing is worth a second thread.
const PARALLEL_WORDS: usize = 16 << 10;

/// Fills `panels` with `lanes × k` elements of `source`, `width` lanes to a panel.
pub(super) fn pack_panels(plan: &Plan, panels: &mut [f32], width: usize, source: Words, lanes: usize, k: usize) {
    let panel_len = width * plan.words(k);
    debug_assert_eq!(panels.len(), lanes.div_ceil(width) * panel_len);
    if panel_len == 0 {
        return;
    }
    let parallel = panels.len() >= PARALLEL_WORDS;
    if source.lane_stride == 1 && source.k_stride != 1 {
        pack_lines(plan, panels, panel_len, 0, width, source, lanes, k, parallel);
        return;
    }
    let pack = |(index, panel): (usize, &mut [f32])| {
        let lane = index * width;
        pack_panel(plan, panel, width, source.at(lane, 0), width.min(lanes - lane), k);
    };
    if parallel {
        panels.par_chunks_exact_mut(panel_len).enumerate().for_each(pack);
    } else {
        panels.chunks_exact_mut(panel_len).enumerate().for_each(pack);
    }
}

/// [`pack_panels`] on this thread alone.
pub(super) fn pack_panels_here(plan: &Plan, panels: &mut [f32], width: usize, source: Words, lanes: usize, k: usize) {
    let panel_len = width * plan.words(k);
    if source.lane_stride == 1 && source.k_stride != 1 {
        pack_lines(plan, panels, panel_len, 0, width, source, lanes, k, false);
        return;
    }
    for (index, panel) in panels.chunks_exact_mut(panel_len).enumerate() {
        let lane = index * width;
        pack_panel(plan, panel, width, source.at(lane, 0), width.min(lanes - lane), k);
    }
}

/// Lanes of a stretch of a source whose lanes stand side by side.
const STRETCH_LANES: usize = 512;
/// Steps of a stretch. Even, for pairs.
const STRETCH_STEPS: usize = 256;

/// A stretch of the source with the words it fills, panel by panel.
struct Stretch<'a> {
    lane: usize,
    step: usize,
    panels: Vec<&'a mut [f32]>,
}

/// Fills words `first..` of panels that are `panel_len` apart from a source whose lanes stand side by side: lines of it are
/// read from end to end, as memory likes it, and spread over the panels.
pub(super) fn pack_lines(
    plan: &Plan,
    panels: &mut [f32],
    panel_len: usize,
    first: usize,
    width: usize,
    source: Words,
    lanes: usize,
    k: usize,
    parallel: bool,
) {
    assert!(
        source.lane_stride == 1 && panel_len > 0 && (first + plan.words(k)) * width <= panel_len,
        "gemm: {k} steps at word {first} of panels of {panel_len} floats"
    );
    let together = (STRETCH_LANES / width).max(1);
    let mut stretches = Vec::new();
    for (group, panels) in panels.chunks_mut(together * panel_len).enumerate() {
        let from = stretches.len();
        stretches.extend((0..k).step_by(STRETCH_STEPS).map(|step| Stretch {
            lane: group * together * width,
            step,
            panels: Vec::with_capacity(together),
        }));
        for panel in panels.chunks_exact_mut(panel_len) {
            let words = &mut panel[first * width..][..plan.words(k) * width];
            let parts = words.chunks_mut(plan.words(STRETCH_STEPS) * width);
            for (stretch, part) in stretches[from..].iter_mut().zip(parts) {
                stretch.panels.push(part);
            }
        }
    }
    let pack = |stretch: Stretch| {
        let Stretch { lane, step, mut panels } = stretch;
        let lanes = (lanes - lane).min(panels.len() * width);
        let (source, steps) = (source.at(lane, step), STRETCH_STEPS.min(k - step));
        if plan.format == Format::Bf16Pair {
            #[cfg(target_arch = "x86_64")]
            pairs::pack_lines(&mut panels, width, source, lanes, steps);
            return;
        }
        macro_rules! copy {
            ($($width:literal)*) => {
                match width {
                    $($width => {
                        dispatch(plan.level, CopyLines::<$width> { panels: &mut panels, source, lanes, steps });
                    })*
                    _ => unreachable!("panels of {width} lanes"),
                }
            };
        }
        copy!(4 6 12 16 32);
        if plan.format == Format::F32RoundedToBf16 {
            for panel in panels {
                dispatch(plan.level, RoundToBf16(panel));
            }
        }
    };
    if parallel {
        stretches.into_par_iter().for_each(pack);
    } else {
        stretches.into_iter().for_each(pack);
    }
}

/// Words that a panel gets before the next one has its turn: whole cache lines, since panels are often so far apart that
/// their lines push each other out of the cache.
const TURN: usize = 8;

/// A stretch in f32, in panels of `W` lanes.
struct CopyLines<'a, 'b, const W: usize> {
    panels: &'a mut [&'b mut [f32]],
    source: Words<'a>,
    lanes: usize,
    steps: usize,
}

impl<const W: usize> Kernel for CopyLines<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { panels, source, lanes, steps } = self;
        for first in (0..steps).step_by(TURN) {
            for (index, panel) in panels.iter_mut().enumerate() {
                let lane = index * W;
                let there = W.min(lanes - lane);
                for step in first..steps.min(first + TURN) {
                    let from = &source.data[step * source.k_stride + lane..][..there];
                    let to = &mut panel[step * W..][..W];
                    if let Some(from) = from.first_chunk::<W>() {
                        to.copy_from_slice(from);
                        continue;
                    }
                    // The last panel's lanes, and zeros for those that do not exist.
                    to[..there].copy_from_slice(from);
                    to[there..].fill(0.0);
                }
            }
        }
    }
}

/// Fills one panel.
pub(super) fn pack_panel(plan: &Plan, panel: &mut [f32], width: usize, source: Words, lanes: usize, k: usize) {
    if plan.format == Format::Bf16Pair {
        #[cfg(target_arch = "x86_64")]
        pairs::pack(panel, width, source, lanes, k);
        return;
    }
    if source.k_stride == 1 && lanes > 1 {
        dispatch(plan.level, PackTransposed { panel, width, source, lanes, k });
    } else if source.lane_stride == 1 {
        for (k, line) in panel.chunks_exact_mut(width).enumerate() {
            let from = &source.data[k * source.k_stride..][..lanes];
            line[..lanes].copy_from_slice(from);
            line[lanes..].fill(0.0);
        }
    } else {
        for (k, line) in panel.chunks_exact_mut(width).enumerate() {
            for (lane, word) in line.iter_mut().enumerate() {
                let at = lane * source.lane_stride + k * source.k_stride;
                *word = if lane < lanes { source.data[at] } else { 0.0 };
            }
        }
    }
    if plan.format == Format::F32RoundedToBf16 {
        dispatch(plan.level, RoundToBf16(panel));
    }
}

/// Packs an f32 panel whose lanes are contiguous in k: 16 × 16 blocks, transposed in registers.
struct PackTransposed<'a> {
    panel: &'a mut [f32],
    width: usize,
    source: Words<'a>,
    lanes: usize,
    k: usize,
}

impl Kernel for PackTransposed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { panel, width, source, lanes, k } = self;
        let zero = simd.splat(0.0);
        for lane0 in (0..width).step_by(LANES) {
            let stored = LANES.min(width - lane0);
            for k0 in (0..k).step_by(LANES) {
                let steps = LANES.min(k - k0);
                let mut rows = [zero; LANES];
                for (i, row) in rows.iter_mut().enumerate().take(lanes.saturating_sub(lane0)) {
                    let from = &source.data[(lane0 + i) * source.lane_stride + k0..][..steps];
                    *row = match from.first_chunk() {
                        Some(from) => simd.load(from),
                        None => simd.load_or(from, 0.0),
                    };
                }
                for (i, column) in simd.transpose(rows).into_iter().enumerate().take(steps) {
                    let to = &mut panel[(k0 + i) * width + lane0..][..stored];
                    match to.first_chunk_mut() {
                        Some(to) => simd.store(to, column),
                        None => simd.store_first(to, column),
                    }
                }
            }
        }
    }
}

/// Rounds to what bf16 can hold, nearest, ties to even; NaN stays NaN.
struct RoundToBf16<'a>(&'a mut [f32]);

impl Kernel for RoundToBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for x in self.0 {
            *x = round_to_bf16(*x);
        }
    }
}

/// The nearest number that bf16 can hold, ties to even; NaN stays NaN. Without branches, for loops of it.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    let quiet = (bits | 0x0040_0000) & 0xffff_0000;
    f32::from_bits(if x.is_nan() { quiet } else { rounded })
}

#[cfg(target_arch = "x86_64")]
mod pairs {
    //! Panels of bf16 pairs, with AVX-512 and its bf16 conversions.

    use super::{LANES, TURN, Words};
    use crate::level::Level;
    use crate::simd::x86::{first_lanes, interleave, transpose};
    use std::arch::x86_64::{
        __m512, __m512bh, __mmask16, _mm512_cvtne2ps_pbh, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
        _mm512_setzero_ps,
    };

    /// Packs one panel.
    pub(super) fn pack(panel: &mut [f32], width: usize, source: Words, lanes: usize, k: usize) {
        assert!(Level::Avx512Bf16.is_available(), "this machine has no bf16 instructions");
        for lane0 in (0..width).step_by(LANES) {
            let there = lanes.saturating_sub(lane0).min(LANES);
            let stored = LANES.min(width - lane0);
            if source.k_stride == 1 && lanes > 1 {
                // SAFETY: the features were just found.
                unsafe { transposed(panel, width, lane0, stored, source.at(lane0, 0), there, k) };
            } else if source.lane_stride == 1 {
                // SAFETY: the features were just found.
                unsafe { interleaved(panel, width, lane0, stored, source.at(lane0, 0), there, k) };
            } else {
                // SAFETY: the features were just found.
                unsafe { gathered(panel, width, lane0, stored, source.at(lane0, 0), there, k) };
            }
        }
    }

    /// Packs a stretch: lines of `lanes` lanes into panels of `width`.
    pub(super) fn pack_lines(panels: &mut [&mut [f32]], width: usize, source: Words, lanes: usize, steps: usize) {
        assert!(Level::Avx512Bf16.is_available(), "this machine has no bf16 instructions");
        assert!(
            lanes == 0 || steps == 0 || source.data.len() >= (steps - 1) * source.k_stride + lanes,
            "gemm: {} floats hold no {steps} steps of {lanes} lanes",
            source.data.len()
        );
        let words = steps.div_ceil(2) * width;
        assert!(panels.iter().all(|panel| panel.len() >= words), "gemm: panels are too short for {words} words");
        // SAFETY: the features were just found, the lengths checked.
        unsafe { lines(panels, width, source, lanes, steps) };
    }

    /// # Safety
    /// Besides the features: `source` must hold `steps` steps of `lanes` lanes, and each panel their words.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn lines(panels: &mut [&mut [f32]], width: usize, source: Words, lanes: usize, steps: usize) {
        let words = steps.div_ceil(2);
        for first in (0..words).step_by(TURN) {
            let last = words.min(first + TURN);
            // The last word of an odd number of steps has no later step: no lane of it is there.
            let whole = last.min(steps / 2);
            for (index, panel) in panels.iter_mut().enumerate() {
                for lane0 in (0..width).step_by(LANES) {
                    let lane = index * width + lane0;
                    let lanes_stored = LANES.min(width - lane0);
                    let stored = first_lanes(lanes_stored);
                    let there = first_lanes(lanes.saturating_sub(lane).min(lanes_stored));
                    let from = source.data.as_ptr().wrapping_add(lane);
                    let to = panel.as_mut_ptr().wrapping_add(lane0);
                    let put = |word: usize, later: __mmask16| {
                        let earlier = from.wrapping_add(2 * word * source.k_stride);
                        // SAFETY: the masks admit only lanes and words that exist, as promised.
                        unsafe {
                            let near = _mm512_maskz_loadu_ps(there, earlier);
                            let far = _mm512_maskz_loadu_ps(later, earlier.wrapping_add(source.k_stride));
                            _mm512_mask_storeu_ps(to.wrapping_add(word * width), stored, interleave(near, far));
                        }
                    };
                    for word in first..whole {
                        put(word, there);
                    }
                    if whole < last {
                        put(whole, 0);
                    }
                }
            }
        }
    }

    /// The source is contiguous over lanes: two steps side by side.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn interleaved(
        panel: &mut [f32],
        width: usize,
        lane0: usize,
        stored: usize,
        source: Words,
        lanes: usize,
        k: usize,
    ) {
        let mask = first_lanes(lanes);
        let line = |k: usize| {
            let from = if lanes == 0 { &[][..] } else { &source.data[k * source.k_stride..][..lanes] };
            // SAFETY: the mask admits only lanes that `from` has.
            unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }
        };
        for word in 0..k.div_ceil(2) {
            let later = if 2 * word + 1 < k { line(2 * word + 1) } else { _mm512_setzero_ps() };
            let to = &mut panel[word * width + lane0..][..stored];
            // SAFETY: the mask admits only lanes that `to` has.
            unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first_lanes(stored), interleave(line(2 * word), later)) };
        }
    }

    /// The source is contiguous over k: 16 words of 16 lanes, transposed in registers.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn transposed(panel: &mut [f32], width: usize, lane0: usize, stored: usize, source: Words, lanes: usize, k: usize) {
        let words = k.div_ceil(2);
        for word0 in (0..words).step_by(LANES) {
            let k0 = 2 * word0;
            let steps = (2 * LANES).min(k - k0);
            let (first, second) = (first_lanes(steps.min(LANES)), first_lanes(steps.saturating_sub(LANES)));
            let mut rows = [_mm512_setzero_ps(); LANES];
            for (i, row) in rows.iter_mut().enumerate().take(lanes) {
                let from = &source.data[i * source.lane_stride + k0..][..steps];
                let (near, far) = from.split_at(steps.min(LANES));
                // SAFETY: the masks admit only what `near` and `far` have; both formats are 64 bytes of plain bits.
                *row = unsafe {
                    let near = _mm512_maskz_loadu_ps(first, near.as_ptr());
                    let far = _mm512_maskz_loadu_ps(second, far.as_ptr());
                    std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(far, near))
                };
            }
            for (i, column) in transpose(&rows).into_iter().enumerate().take(words - word0) {
                let to = &mut panel[(word0 + i) * width + lane0..][..stored];
                // SAFETY: the mask admits only lanes that `to` has.
                unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first_lanes(stored), column) };
            }
        }
    }

    /// Any strides: one element at a time.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn gathered(panel: &mut [f32], width: usize, lane0: usize, stored: usize, source: Words, lanes: usize, k: usize) {
        let line = |k: usize| {
            let mut line = [0.0f32; LANES];
            for (lane, x) in line.iter_mut().enumerate().take(lanes) {
                *x = source.data[lane * source.lane_stride + k * source.k_stride];
            }
            // SAFETY: both are 64 bytes of plain bits.
            unsafe { std::mem::transmute::<[f32; LANES], __m512>(line) }
        };
        for word in 0..k.div_ceil(2) {
            let later = if 2 * word + 1 < k { line(2 * word + 1) } else { _mm512_setzero_ps() };
            let to = &mut panel[word * width + lane0..][..stored];
            // SAFETY: the mask admits only lanes that `to` has.
            unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first_lanes(stored), interleave(line(2 * word), later)) };
        }
    }
}
