//! Memory for what is large: the system's allocator, with large pages where the system gives them on request.
//!
//! A matrix of some megabytes lies on thousands of ordinary pages, whose addresses the processor cannot all remember;
//! packing a transposed operand meets another page with every line it reads. Linux hands out pages of 2 MB, but by default
//! only where it is asked to (`madvise`, see `/sys/kernel/mm/transparent_hugepage/enabled`).

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, which asks for large pages behind large blocks. Elsewhere than on Linux it is the system's.
///
/// A program uses it by a `#[global_allocator]` of this type.
#[derive(Debug, Clone, Copy, Default)]
pub struct LargePages;

/// Bytes from which a block can hold a large page.
const LARGE: usize = 2 << 20;

// SAFETY: every block is the system allocator's, handed on under the same layouts; advice about pages changes neither a
// block's place nor its bytes.
unsafe impl GlobalAlloc for LargePages {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised to this function.
        let block = unsafe { System.alloc(layout) };
        advise(block, layout.size());
        block
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised to this function.
        let block = unsafe { System.alloc_zeroed(layout) };
        advise(block, layout.size());
        block
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as promised to this function.
        let block = unsafe { System.realloc(block, layout, size) };
        advise(block, size);
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as promised to this function.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Asks for large pages behind the whole pages of a large block.
#[inline]
fn advise(block: *mut u8, size: usize) {
    if size >= LARGE && !block.is_null() {
        ask(block, size);
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
#[cold]
fn ask(block: *mut u8, size: usize) {
    // No machine has larger ordinary pages.
    const PAGE: usize = 64 << 10;
    let first = block.align_offset(PAGE);
    let Some(len) = size.checked_sub(first).map(|len| len / PAGE * PAGE).filter(|&len| len > 0) else { return };
    // SAFETY: the pages lie inside a block that was just allocated; this advice leaves their contents alone. A system that
    // cannot follow it says so, which changes nothing.
    unsafe { libc::madvise(block.wrapping_add(first).cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn ask(_block: *mut u8, _size: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small and large blocks, aligned more or less: zeros where promised, bytes kept when a block grows or shrinks.
    #[test]
    fn blocks_are_zeroed_kept_and_given_back() {
        for (size, other) in [(100, 7000), (LARGE - 1, 3 * LARGE), (LARGE, 5), (5 * LARGE + 77, 2 * LARGE)] {
            for align in [1, 64, 4096] {
                let layout = Layout::from_size_align(size, align).expect("a layout");
                let last = size.min(other) - 1;
                // SAFETY: the layouts are not empty; the block is read and written inside its size, and freed once with
                // the layout it has then.
                unsafe {
                    let block = LargePages.alloc_zeroed(layout);
                    assert!(!block.is_null() && block.align_offset(align) == 0);
                    assert!([0, size / 2, size - 1].iter().all(|&at| *block.add(at) == 0));
                    block.write(3);
                    block.add(last).write(5);
                    let block = LargePages.realloc(block, layout, other);
                    assert!(!block.is_null() && block.align_offset(align) == 0);
                    assert_eq!((*block, *block.add(last)), (if last == 0 { 5 } else { 3 }, 5));
                    block.add(other - 1).write(7);
                    LargePages.dealloc(block, Layout::from_size_align(other, align).expect("a layout"));
                    let block = LargePages.alloc(layout);
                    assert!(!block.is_null() && block.align_offset(align) == 0);
                    block.add(size - 1).write(1);
                    LargePages.dealloc(block, layout);
                }
            }
        }
    }
}
