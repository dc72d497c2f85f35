//! Large buffers that are used again instead of being given back to the system, which would hand out fresh pages, each
//! a fault and a clearing, at every step.
//!
//! What is free here never exceeds an eighth of the most that was in use at one time.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use didact_kernels::Precision;
use didact_kernels::gemm::{PackedB, PackedMemory};
use half::bf16;

use super::real::Real;

/// Smaller buffers are left to the allocator.
const SMALLEST: usize = 1 << 14;

/// Buffers of one number type.
#[derive(Debug)]
pub(crate) struct Pool<E> {
    state: Mutex<State<E>>,
}

#[derive(Debug)]
struct State<E> {
    /// The longest unused first.
    free: Vec<Vec<E>>,
    /// Elements in `free`.
    kept: usize,
    /// Elements lent.
    lent: usize,
    /// The most that was lent at a time.
    most: usize,
}

impl<E: Real> Pool<E> {
    pub(crate) const fn new() -> Self {
        Self { state: Mutex::new(State { free: Vec::new(), kept: 0, lent: 0, most: 0 }) }
    }

    fn state(&self) -> MutexGuard<'_, State<E>> {
        // The bookkeeping is done before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A vector of at least `len` elements of any value.
    fn take(&self, len: usize) -> Vec<E> {
        let mut state = self.state();
        let fits = |v: &&Vec<E>| v.len() >= len && v.len() <= len + len / 2;
        let best = state.free.iter().filter(fits).map(Vec::len).min();
        let found = best.and_then(|best| state.free.iter().rposition(|v| v.len() == best));
        let vec = match found {
            Some(at) => {
                let vec = state.free.remove(at);
                state.kept -= vec.len();
                vec
            }
            None => vec![E::ZERO; len],
        };
        state.lent += vec.len();
        state.most = state.most.max(state.lent);
        let excess = state.drop_excess();
        drop(state);
        drop(excess);
        vec
    }

    fn give(&self, vec: Vec<E>) {
        let mut state = self.state();
        state.lent = state.lent.saturating_sub(vec.len());
        state.kept += vec.len();
        state.free.push(vec);
        let excess = state.drop_excess();
        drop(state);
        drop(excess);
    }
}

impl<E> State<E> {
    /// Takes out the longest unused buffers that are too many, for the caller to free without the lock.
    fn drop_excess(&mut self) -> Vec<Vec<E>> {
        let limit = self.most + self.most / 8;
        let mut excess = Vec::new();
        while self.kept > 0 && self.kept + self.lent > limit {
            let vec = self.free.remove(0);
            self.kept -= vec.len();
            excess.push(vec);
        }
        excess
    }
}

/// Memory of packed matrices that are not needed at the moment.
static SPARE: Mutex<Vec<PackedMemory>> = Mutex::new(Vec::new());
/// How many are kept: as many as a block uses at a time, and the two of the output projection.
const SPARES: usize = 8;

fn spare() -> MutexGuard<'static, Vec<PackedMemory>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A packed matrix whose memory is used again.
#[derive(Debug, Clone)]
pub(crate) struct Packed(Option<PackedB>);

impl Packed {
    /// What `pack` makes in the memory that it is given, which fits a matrix of so many elements best.
    pub(crate) fn new(elements: usize, precision: Precision, pack: impl FnOnce(PackedMemory) -> PackedB) -> Self {
        let needed = elements * if precision == Precision::Bf16 { 2 } else { 4 };
        let memory = {
            let mut spare = spare();
            let fits = |m: &&PackedMemory| m.bytes() >= needed && m.bytes() <= needed + needed / 2 + 4096;
            let best = spare.iter().filter(fits).map(PackedMemory::bytes).min();
            let at = best.and_then(|best| spare.iter().position(|m| m.bytes() == best));
            at.map(|at| spare.remove(at)).unwrap_or_default()
        };
        Self(Some(pack(memory)))
    }

    /// The matrix.
    pub(crate) fn get(&self) -> &PackedB {
        self.0.as_ref().expect("taken out only by value")
    }

    /// The matrix, whose memory is then its own.
    pub(crate) fn take(mut self) -> PackedB {
        self.0.take().expect("taken out only by value")
    }
}

impl From<PackedB> for Packed {
    fn from(packed: PackedB) -> Self {
        Self(Some(packed))
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        let Some(packed) = self.0.take() else { return };
        let memory = packed.into_memory();
        let mut spare = spare();
        spare.push(memory);
        let excess = (spare.len() > SPARES).then(|| spare.remove(0));
        drop(spare);
        drop(excess);
    }
}

/// Gives the system back what is kept here for the next training step.
pub fn release_spare_memory() {
    if let Some(pool) = f32::pool() {
        let mut state = pool.state();
        let free = std::mem::take(&mut state.free);
        (state.kept, state.most) = (0, state.lent);
        drop(state);
        drop(free);
    }
    let packed = std::mem::take(&mut *spare());
    drop(packed);
}

/// A slice whose memory goes back to the pool.
#[derive(Debug)]
pub(crate) struct Buffer<E: Real> {
    data: Vec<E>,
    len: usize,
}

impl<E: Real> Buffer<E> {
    /// `len` elements of any value.
    pub(crate) fn any(len: usize) -> Self {
        let data = match E::pool() {
            Some(pool) if len >= SMALLEST => pool.take(len),
            _ => vec![E::ZERO; len],
        };
        Self { data, len }
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut buffer = Self::any(len);
        buffer.fill(E::ZERO);
        buffer
    }
}

impl<E: Real> Clone for Buffer<E> {
    fn clone(&self) -> Self {
        let mut copy = Self::any(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<E: Real> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.data[..self.len]
    }
}

impl<E: Real> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.data[..self.len]
    }
}

impl<E: Real> Drop for Buffer<E> {
    fn drop(&mut self) {
        if let Some(pool) = E::pool()
            && self.data.len() >= SMALLEST
        {
            pool.give(std::mem::take(&mut self.data));
        }
    }
}

/// Rows of numbers that are kept from the forward for the backward pass, in `f32` or rounded to bf16.
#[derive(Debug, Clone)]
pub(crate) struct Kept<E: Real> {
    data: Buffer<E>,
    width: usize,
    is_half: bool,
}

impl<E: Real> Kept<E> {
    /// Room for `rows` rows of `width` numbers, rounded to bf16 if `is_half` and the number type has it.
    pub(crate) fn new(rows: usize, width: usize, is_half: bool) -> Self {
        let is_half = is_half && E::HAS_BF16;
        let len = if is_half { (rows * width).div_ceil(2) } else { rows * width };
        Self { data: Buffer::any(len), width, is_half }
    }

    /// Whether rows are rounded.
    pub(crate) fn is_half(&self) -> bool {
        self.is_half
    }

    /// Some rows in place, where they are not rounded.
    ///
    /// # Panics
    /// If they are.
    pub(crate) fn rows_mut(&mut self, first: usize, count: usize) -> &mut [E] {
        assert!(!self.is_half, "kept rows are rounded");
        &mut self.data[first * self.width..][..count * self.width]
    }

    /// Keeps rows that are rounded.
    pub(crate) fn store(&mut self, first: usize, rows: &[E]) {
        assert!(self.is_half, "kept rows are not rounded");
        let all: &mut [bf16] = bytemuck::cast_slice_mut(&mut self.data[..]);
        E::narrow(rows, &mut all[first * self.width..][..rows.len()]);
    }

    /// Copies rounded rows.
    pub(crate) fn load(&self, first: usize, rows: &mut [E]) {
        assert!(self.is_half, "kept rows are not rounded");
        let all: &[bf16] = bytemuck::cast_slice(&self.data[..]);
        E::widen(&all[first * self.width..][..rows.len()], rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_what_is_free_stays_bounded() {
        static POOL: Pool<f32> = Pool::new();
        let first = POOL.take(SMALLEST);
        let address = first.as_ptr();
        POOL.give(first);
        let again = POOL.take(SMALLEST - 5);
        assert_eq!(again.as_ptr(), address);
        POOL.give(again);
        // Much smaller ones do not take it, and then it is in the way of the limit.
        let sizes: Vec<usize> = (0..40).map(|i| SMALLEST + i * 3 * SMALLEST / 2).collect();
        for size in sizes {
            POOL.give(POOL.take(size));
            let state = POOL.state();
            assert!(state.kept <= state.most + state.most / 8);
            assert_eq!(state.lent, 0);
            assert_eq!(state.kept, state.free.iter().map(Vec::len).sum::<usize>());
        }
    }

    #[test]
    fn kept_rows_come_back_as_they_were_or_rounded() {
        let rows: Vec<f32> = (0..12).map(|i| 1.0 + i as f32 * 0.123_456).collect();
        let mut full = Kept::<f32>::new(4, 6, false);
        full.rows_mut(1, 2).copy_from_slice(&rows);
        assert_eq!(full.rows_mut(1, 2), rows);
        let mut half = Kept::<f32>::new(3, 6, true);
        half.store(1, &rows);
        let mut out = vec![0.0; 12];
        half.load(1, &mut out);
        assert_eq!(out, rows.iter().map(|&v| bf16::from_f32(v).to_f32()).collect::<Vec<_>>());
    }
}
