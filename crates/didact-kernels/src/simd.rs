//! Vectors of 16 floats at every level, and the one place where a level's instructions are entered.
//!
//! A kernel is a struct that holds its arguments and implements [`Kernel`]; its body is written once against [`Simd`],
//! and [`dispatch`] compiles it for each level. All levels have 16 logical lanes, so that sums over lanes have the same
//! order everywhere. A level's token can only be had from [`dispatch`], after its features were found, which is what
//! makes its methods sound.

use crate::level::Level;

/// Lanes of a vector, at every level.
pub(crate) const LANES: usize = 16;

/// One vector's worth of floats in memory.
pub(crate) type Lanes = [f32; LANES];

/// The operations of a level.
pub(crate) trait Simd: Copy + Send + Sync {
    /// A vector of 16 floats.
    type V: Copy;
    /// Whether a product may keep 8 rows of two vectors in registers; elsewhere it keeps 4 rows of one.
    const ROOMY: bool;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Lanes from memory.
    fn load(self, x: &Lanes) -> Self::V;
    /// Lanes to memory.
    fn store(self, x: &mut Lanes, v: Self::V);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` when either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` when either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the level has the instruction, twice at `Portable`.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The square root.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Lanes from the bits of bf16.
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::V {
        self.load(&x.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
    /// `2ⁿ` for integral `n` in `-126..=127`.
    fn pow2(self, n: Self::V) -> Self::V;

    /// Asks for the line of memory at `x`, to be written. Any address will do.
    #[inline(always)]
    fn fetch(self, _x: *const f32) {}

    /// Asks for the line of memory at `x`, to be read. Any address will do.
    #[inline(always)]
    fn fetch_to_read<T>(self, _x: *const T) {}

    /// Rows become columns. At levels without a quick way: lane by lane.
    #[inline(always)]
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut from = [[0.0f32; LANES]; LANES];
        for (line, row) in from.iter_mut().zip(rows) {
            self.store(line, row);
        }
        std::array::from_fn(|i| self.load(&std::array::from_fn(|j| from[j][i])))
    }

    /// Lanes from the start of a short slice; the others are `fill`.
    #[inline(always)]
    fn load_or(self, x: &[f32], fill: f32) -> Self::V {
        let mut lanes = [fill; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// The first lanes to a short slice.
    #[inline(always)]
    fn store_first(self, x: &mut [f32], v: Self::V) {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, v);
        let n = x.len();
        x.copy_from_slice(&lanes[..n]);
    }

    /// The sum of the lanes, as a fixed tree.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, v);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest lane; NaN lanes may be passed over.
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, v);
        lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if a > b { a } else { b })
    }

    /// `eˣ`, within 2 ulp; 0 below about -104, infinite above about 88.7, NaN of NaN.
    ///
    /// `x = n·ln 2 + r`, a polynomial of degree 7 in `r` (the coefficients of Cephes' `expf`), and `2ⁿ` in two halves so
    /// that subnormal results are rounded once.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // x stands second, so that NaN passes through both.
        let x = self.max(self.splat(-110.0), self.min(self.splat(90.0), x));
        // Adding 1.5·2²³ leaves the nearest integer in the low bits.
        let magic = self.splat(12_582_912.0);
        let n = self.sub(self.add(self.mul(x, self.splat(std::f32::consts::LOG2_E)), magic), magic);
        let r = self.mul_add(n, self.splat(-0.693_359_4), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.mul_add(p, r, self.splat(c));
        }
        let p = self.add(self.mul_add(p, self.mul(r, r), r), self.splat(1.0));
        let half = self.sub(self.add(self.mul(n, self.splat(0.5)), magic), magic);
        self.mul(self.mul(p, self.pow2(half)), self.pow2(self.sub(n, half)))
    }

    /// `eˣ` for `x` up to about 0, as the weights of a softmax need it: within 2 ulp for results that are normal numbers,
    /// 0 where they would not be, NaN of NaN.
    #[inline(always)]
    fn exp_weight(self, x: Self::V) -> Self::V {
        // At -88, n is -127, whose power comes out as 0.
        let x = self.max(self.splat(-88.0), x);
        let magic = self.splat(12_582_912.0);
        let n = self.sub(self.mul_add(x, self.splat(std::f32::consts::LOG2_E), magic), magic);
        let r = self.mul_add(n, self.splat(-0.693_359_4), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.mul_add(p, r, self.splat(c));
        }
        let p = self.add(self.mul_add(p, self.mul(r, r), r), self.splat(1.0));
        self.mul(p, self.pow2(n))
    }
}

/// A kernel with its arguments.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Runs it. Implementations are `#[inline(always)]`, so that the level's features reach the whole body.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs a kernel at a level.
///
/// # Panics
/// If this machine cannot run the level.
#[inline]
pub(crate) fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Output {
    match level {
        Level::Portable => kernel.run(Portable),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            assert!(level.is_available(), "this machine cannot run `{level}`");
            // SAFETY: the features `x86::avx2` is compiled for were just found.
            unsafe { x86::avx2(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 => {
            assert!(level.is_available(), "this machine cannot run `{level}`");
            // SAFETY: the features `x86::avx512` is compiled for were just found.
            unsafe { x86::avx512(kernel) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        _ => panic!("this machine cannot run `{level}`"),
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// Applies `f` lane by lane.
#[inline(always)]
fn lanewise(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = Lanes;
    const ROOMY: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &Lanes) -> Lanes {
        *x
    }
    #[inline(always)]
    fn store(self, x: &mut Lanes, v: Lanes) {
        *x = v;
    }
    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn sqrt(self, a: Lanes) -> Lanes {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn pow2(self, n: Lanes) -> Lanes {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    //! AVX2 and AVX-512.
    //!
    //! Vectors are loaded and stored by value: the load intrinsics are checked copies in builds with debug assertions,
    //! which cost more than the arithmetic.

    use super::{Kernel, LANES, Lanes, Simd};
    use crate::level::Level;
    use std::arch::x86_64::{
        __m256, __m256i, __m512, __m512bh, __m512i, __mmask16, _MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch,
        _mm256_add_epi32, _mm256_add_ps, _mm256_castsi256_ps, _mm256_cvtps_epi32, _mm256_div_ps, _mm256_fmadd_ps,
        _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi32,
        _mm256_sqrt_ps, _mm256_sub_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd,
        _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtps_epi32, _mm512_div_ps,
        _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_mask_loadu_ps, _mm512_mask_storeu_ps, _mm512_max_ps, _mm512_min_ps,
        _mm512_mul_ps, _mm512_permutexvar_epi16, _mm512_set_epi16, _mm512_set1_epi32, _mm512_set1_ps,
        _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_sqrt_ps, _mm512_sub_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
        _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };

    /// Proof that AVX2 and FMA were found.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    /// Proof that AVX-512 F, BW, DQ and VL were found.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(());

    /// Runs a kernel with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }

    /// Runs a kernel with AVX-512.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) fn avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }

    impl Simd for Avx2 {
        type V = [__m256; 2];
        const ROOMY: bool = false;

        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            // SAFETY: the token proves the features.
            let v = unsafe { _mm256_set1_ps(x) };
            [v, v]
        }
        #[inline(always)]
        fn load(self, x: &Lanes) -> Self::V {
            // SAFETY: both are 64 bytes of plain bits.
            unsafe { std::mem::transmute::<Lanes, Self::V>(*x) }
        }
        #[inline(always)]
        fn store(self, x: &mut Lanes, v: Self::V) {
            // SAFETY: both are 64 bytes of plain bits.
            *x = unsafe { std::mem::transmute::<Self::V, Lanes>(v) };
        }
        #[inline(always)]
        fn add(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the token proves the features.
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn sub(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the token proves the features.
            unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the token proves the features.
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn div(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the token proves the features.
            unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn max(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the token proves the features.
            unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn min(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the token proves the features.
            unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: the token proves the features.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        fn sqrt(self, a: Self::V) -> Self::V {
            // SAFETY: the token proves the features.
            unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
        }
        #[inline(always)]
        fn pow2(self, n: Self::V) -> Self::V {
            n.map(|n| {
                // SAFETY: the token proves the features.
                unsafe {
                    let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
                }
            })
        }
    }

    impl Simd for Avx512 {
        type V = __m512;
        const ROOMY: bool = true;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, x: &Lanes) -> __m512 {
            // SAFETY: both are 64 bytes of plain bits.
            unsafe { std::mem::transmute::<Lanes, Self::V>(*x) }
        }
        #[inline(always)]
        fn store(self, x: &mut Lanes, v: __m512) {
            // SAFETY: both are 64 bytes of plain bits.
            *x = unsafe { std::mem::transmute::<Self::V, Lanes>(v) };
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn sqrt(self, a: __m512) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { _mm512_sqrt_ps(a) }
        }
        #[inline(always)]
        fn pow2(self, n: __m512) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe {
                let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
            }
        }

        #[inline(always)]
        fn fetch(self, x: *const f32) {
            fetch(x);
        }

        #[inline(always)]
        fn fetch_to_read<T>(self, x: *const T) {
            // SAFETY: a prefetch reads nothing and cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(x.cast()) };
        }

        #[inline(always)]
        fn load_bf16(self, x: &[u16; LANES]) -> __m512 {
            // SAFETY: the token proves the features; both are 32 bytes of plain bits.
            unsafe {
                let bits = std::mem::transmute::<[u16; LANES], __m256i>(*x);
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
            }
        }

        #[inline(always)]
        fn transpose(self, rows: [__m512; LANES]) -> [__m512; LANES] {
            // SAFETY: the token proves the features.
            unsafe { transpose(&rows) }
        }
        #[inline(always)]
        fn load_or(self, x: &[f32], fill: f32) -> __m512 {
            let mask = first_lanes(x.len());
            // SAFETY: the token proves the features; the mask admits only lanes that `x` has.
            unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), mask, x.as_ptr()) }
        }
        #[inline(always)]
        fn store_first(self, x: &mut [f32], v: __m512) {
            let mask = first_lanes(x.len());
            // SAFETY: the token proves the features; the mask admits only lanes that `x` has.
            unsafe { _mm512_mask_storeu_ps(x.as_mut_ptr(), mask, v) }
        }
    }

    /// Proof that AVX-512 and its bf16 instructions were found.
    #[derive(Clone, Copy)]
    pub(crate) struct Bf16(Avx512);

    /// A kernel that multiplies pairs of bf16.
    pub(crate) trait Bf16Kernel {
        /// Runs it. Implementations are `#[inline(always)]`.
        fn run(self, bf16: Bf16);
    }

    /// Runs a kernel at level `Avx512Bf16`.
    ///
    /// # Panics
    /// If this machine cannot run the level.
    pub(crate) fn dispatch_bf16<K: Bf16Kernel>(kernel: K) {
        assert!(Level::Avx512Bf16.is_available(), "this machine cannot run `{}`", Level::Avx512Bf16);
        // SAFETY: the features `avx512bf16` is compiled for were just found.
        unsafe { avx512bf16(kernel) }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn avx512bf16<K: Bf16Kernel>(kernel: K) {
        kernel.run(Bf16(Avx512(())));
    }

    #[expect(clippy::unused_self, reason = "the token is the proof that the machine has the instructions")]
    impl Bf16 {
        /// The level's other operations.
        #[inline(always)]
        pub(crate) fn simd(self) -> Avx512 {
            self.0
        }

        /// `sums + a·b`, where `a`'s bits are a pair of bf16 and `b` holds a pair in each lane.
        #[inline(always)]
        pub(crate) fn dot(self, a: f32, b: __m512, sums: __m512) -> __m512 {
            // SAFETY: the token proves the features; all formats are 64 bytes of plain bits.
            unsafe {
                let a = std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(a));
                _mm512_dpbf16_ps(sums, a, std::mem::transmute::<__m512, __m512bh>(b))
            }
        }

        /// 32 floats rounded to bf16, in their order.
        #[inline(always)]
        pub(crate) fn round(self, low: __m512, high: __m512) -> __m512 {
            // SAFETY: the token proves the features; both formats are 64 bytes of plain bits.
            unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low)) }
        }

        /// Lane by lane, the pair of `earlier` and `later` rounded to bf16.
        #[inline(always)]
        pub(crate) fn interleave(self, earlier: __m512, later: __m512) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { interleave(earlier, later) }
        }
    }

    /// Pairs of one vector each of earlier and later steps, lane by lane, rounded to bf16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(crate) fn interleave(earlier: __m512, later: __m512) -> __m512 {
        // Words 0..16 are the earlier, 16..32 the later ones.
        #[rustfmt::skip]
        let order = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
            23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0,
        );
        // SAFETY: both are 64 bytes of plain bits.
        let both: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(later, earlier)) };
        _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both))
    }

    /// Asks for the line of memory at `x`, to be written.
    #[inline(always)]
    pub(crate) fn fetch(x: *const f32) {
        // SAFETY: a prefetch reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(x.cast()) };
    }

    /// The mask of the first `n` lanes.
    ///
    /// # Panics
    /// If there are fewer than `n` lanes.
    #[inline(always)]
    pub(crate) fn first_lanes(n: usize) -> __mmask16 {
        assert!(n <= LANES, "{n} lanes of {LANES}");
        ((1u32 << n) - 1) as __mmask16
    }

    /// Rows become columns: pairs of rows, then pairs of pairs within 128 bits, then the 128-bit quarters.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn transpose(r: &[__m512; LANES]) -> [__m512; LANES] {
        let mut t = *r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        // u[4g + c] holds, in each 128-bit quarter q, column 4q + c of rows 4g..4g+4.
        let mut u = t;
        for g in 0..4 {
            let d = |i: usize| _mm512_castps_pd(t[4 * g + i]);
            u[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(0), d(2)));
            u[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(0), d(2)));
            u[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(1), d(3)));
            u[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(1), d(3)));
        }
        let mut out = u;
        for c in 0..4 {
            let low = _mm512_shuffle_f32x4::<0x44>(u[c], u[4 + c]);
            let high = _mm512_shuffle_f32x4::<0xee>(u[c], u[4 + c]);
            let low2 = _mm512_shuffle_f32x4::<0x44>(u[8 + c], u[12 + c]);
            let high2 = _mm512_shuffle_f32x4::<0xee>(u[8 + c], u[12 + c]);
            // Quarters 0 and 2 of each are the even, 1 and 3 the odd ones.
            out[c] = _mm512_shuffle_f32x4::<0x88>(low, low2);
            out[4 + c] = _mm512_shuffle_f32x4::<0xdd>(low, low2);
            out[8 + c] = _mm512_shuffle_f32x4::<0x88>(high, high2);
            out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(high, high2);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a [f32], &'a mut [f32]);
    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for (x, y) in self.0.as_chunks::<LANES>().0.iter().zip(self.1.as_chunks_mut::<LANES>().0) {
                let v = simd.exp(simd.load(x));
                simd.store(y, v);
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulp_at_every_level() {
        let xs: Vec<f32> = (0..16 * 20_000).map(|i| -87.0 + i as f32 * (175.0 / 320_000.0)).collect();
        for level in Level::available() {
            let mut ys = vec![0.0; xs.len()];
            dispatch(level, Exp(&xs, &mut ys));
            for (x, y) in xs.iter().zip(&ys) {
                let want = f64::from(*x).exp();
                let ulp = f64::from(f32::EPSILON) * want;
                assert!((f64::from(*y) - want).abs() <= 2.0 * ulp, "{level}: exp({x}) = {y}, expected {want}");
            }
        }
    }

    #[test]
    fn exp_at_its_ends() {
        for level in Level::available() {
            let mut y = [0.0; LANES];
            let mut x = [0.0f32; LANES];
            x[..7].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 89.0, -200.0, 0.0, -100.0]);
            dispatch(level, Exp(&x, &mut y));
            assert!(y[0].is_nan(), "{level}");
            assert_eq!(y[1..6], [f32::INFINITY, 0.0, f32::INFINITY, 0.0, 1.0], "{level}");
            // Subnormal, where one step is 1.4e-45.
            assert!((f64::from(y[6]) - (-100f64).exp()).abs() < 3e-45, "{level}: {}", y[6]);
        }
    }

    struct ExpWeight<'a>(&'a [f32], &'a mut [f32]);
    impl Kernel for ExpWeight<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for (x, y) in self.0.as_chunks::<LANES>().0.iter().zip(self.1.as_chunks_mut::<LANES>().0) {
                let v = simd.exp_weight(simd.load(x));
                simd.store(y, v);
            }
        }
    }

    #[test]
    fn exp_weight_is_within_two_ulp_or_zero_at_every_level() {
        let xs: Vec<f32> = (0..16 * 10_000).map(|i| i as f32 * (-120.0 / 160_000.0)).collect();
        for level in Level::available() {
            let mut ys = vec![0.0; xs.len()];
            dispatch(level, ExpWeight(&xs, &mut ys));
            for (x, y) in xs.iter().zip(&ys) {
                let want = f64::from(*x).exp();
                if *x > -87.3 {
                    let ulp = f64::from(f32::EPSILON) * want;
                    assert!((f64::from(*y) - want).abs() <= 2.0 * ulp, "{level}: exp({x}) = {y}, expected {want}");
                } else {
                    // Below the smallest normal number, or it.
                    assert!(*y <= 1.3e-38 && *y >= 0.0, "{level}: exp({x}) = {y}");
                }
            }
            let mut ends = [0.0f32; LANES];
            let mut x = [0.0f32; LANES];
            x[..3].copy_from_slice(&[f32::NAN, f32::NEG_INFINITY, 0.0]);
            dispatch(level, ExpWeight(&x, &mut ends));
            assert!(ends[0].is_nan(), "{level}");
            assert_eq!(ends[1..3], [0.0, 1.0], "{level}");
        }
    }

    struct LoadBf16<'a>(&'a [[u16; LANES]], &'a mut [f32]);
    impl Kernel for LoadBf16<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for (x, y) in self.0.iter().zip(self.1.as_chunks_mut::<LANES>().0) {
                let v = simd.load_bf16(x);
                simd.store(y, v);
            }
        }
    }

    #[test]
    fn bf16_is_widened_exactly_at_every_level() {
        let x: Vec<[u16; LANES]> = (0..1 << 12).map(|i| std::array::from_fn(|j| (16 * i + j) as u16)).collect();
        for level in Level::available() {
            let mut y = vec![0.0; 1 << 16];
            dispatch(level, LoadBf16(&x, &mut y));
            for (bits, y) in y.iter().enumerate() {
                assert_eq!(y.to_bits(), (bits as u32) << 16, "{level}");
            }
        }
    }

    struct Transpose<'a>(&'a mut [Lanes; LANES]);
    impl Kernel for Transpose<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let rows = std::array::from_fn(|i| simd.load(&self.0[i]));
            for (line, row) in self.0.iter_mut().zip(simd.transpose(rows)) {
                simd.store(line, row);
            }
        }
    }

    #[test]
    fn transposing_swaps_rows_and_columns_at_every_level() {
        for level in Level::available() {
            let mut m: [Lanes; LANES] = std::array::from_fn(|i| std::array::from_fn(|j| (i * 100 + j) as f32));
            dispatch(level, Transpose(&mut m));
            for (i, row) in m.iter().enumerate() {
                for (j, x) in row.iter().enumerate() {
                    assert_eq!(*x, (j * 100 + i) as f32, "{level}: row {i} column {j}");
                }
            }
        }
    }
}
