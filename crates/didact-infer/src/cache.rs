//! What a sequence leaves behind for its later tokens: keys and values of every layer, in pages that sequences share.

use crate::adapter::EngineAdapter;
use didact_kernels::Precision;
use didact_kernels::attention::{BLOCK, CacheBlock};
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Positions of a page.
pub(crate) const PAGE: usize = BLOCK;

/// Most pages that a pool keeps for the next who needs one.
const SPARE: usize = 512;

/// Where pages come from and go back to.
#[derive(Debug)]
pub(crate) struct Pool {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    precision: Precision,
    /// Pages that nobody uses, kept for the next who needs one.
    spare: Mutex<Vec<CacheBlock>>,
    /// Pages in use.
    live: AtomicUsize,
}

impl Pool {
    pub(crate) fn new(layers: usize, kv_heads: usize, head_dim: usize, precision: Precision) -> Arc<Self> {
        Arc::new(Self {
            layers,
            kv_heads,
            head_dim,
            precision,
            spare: Mutex::new(Vec::new()),
            live: AtomicUsize::new(0),
        })
    }

    /// An empty cache of a sequence that is read with an adapter, or without.
    pub(crate) fn cache(self: &Arc<Self>, adapter: Option<Arc<EngineAdapter>>) -> KvCache {
        KvCache { pool: Arc::clone(self), adapter, pages: Vec::new(), len: 0 }
    }

    /// Memory of a page.
    pub(crate) fn page_bytes(&self) -> usize {
        CacheBlock::bytes(self.layers * self.kv_heads, self.head_dim, self.precision)
    }

    /// Pages in use, each counted once however many share it.
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<CacheBlock>> {
        // A list of spare pages is as good after a panic as before.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(self: &Arc<Self>) -> Page {
        let spare = self.spare().pop();
        let block =
            spare.unwrap_or_else(|| CacheBlock::new(self.layers * self.kv_heads, self.head_dim, self.precision));
        self.live.fetch_add(1, Ordering::Relaxed);
        Page { block: Some(block), pool: Arc::clone(self) }
    }
}

/// Keys and values of [`PAGE`] positions, given back to its pool when the last who shares it is done.
#[derive(Debug)]
pub(crate) struct Page {
    /// There until the page is dropped.
    block: Option<CacheBlock>,
    pool: Arc<Pool>,
}

impl Page {
    pub(crate) fn block(&self) -> &CacheBlock {
        self.block.as_ref().expect("a page in use has its block")
    }

    fn block_mut(&mut self) -> &mut CacheBlock {
        self.block.as_mut().expect("a page in use has its block")
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let mut spare = self.pool.spare();
            if spare.len() < SPARE {
                spare.push(block);
            }
            drop(spare);
            self.pool.live.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The keys and values of one sequence.
///
/// A clone is a sequence of its own that shares what came before: how several answers share one prompt. What is shared
/// is copied page by page, when it is written to.
#[derive(Debug, Clone)]
pub struct KvCache {
    pool: Arc<Pool>,
    /// What the sequence is read with: its keys and values mean nothing to another adapter.
    adapter: Option<Arc<EngineAdapter>>,
    pages: Vec<Arc<Page>>,
    len: usize,
}

const OWN: &str = "pages that are written to were made the sequence's own";

impl KvCache {
    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The adapter that the sequence is read with.
    pub(crate) fn adapter(&self) -> Option<&Arc<EngineAdapter>> {
        self.adapter.as_ref()
    }

    /// Forgets all tokens after the first `len`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "a cache of {} tokens cannot keep {len}", self.len);
        self.pages.truncate(len.div_ceil(PAGE));
        self.len = len;
    }

    /// Pages that it takes to hold `tokens` tokens.
    pub(crate) fn pages_for(tokens: usize) -> usize {
        tokens.div_ceil(PAGE)
    }

    /// The whole pages, in order.
    pub(crate) fn whole_pages(&self) -> &[Arc<Page>] {
        &self.pages[..self.len / PAGE]
    }

    /// Pages that must be taken from the pool until `tokens` tokens are held, if nobody comes to share more.
    pub(crate) fn pages_to_come(&self, tokens: usize) -> usize {
        let copied = match self.pages.get(self.len / PAGE) {
            Some(page) if self.len < tokens => usize::from(Arc::strong_count(page) > 1),
            _ => 0,
        };
        Self::pages_for(tokens).saturating_sub(self.pages.len()) + copied
    }

    /// Goes on with a page that another sequence filled after the same tokens.
    pub(crate) fn share(&mut self, page: &Arc<Page>) {
        assert!(self.len == self.pages.len() * PAGE, "a page is shared at the end of a page");
        self.pages.push(Arc::clone(page));
        self.len += PAGE;
    }

    /// Takes a page that holds the same in place of its own.
    pub(crate) fn replace(&mut self, index: usize, page: &Arc<Page>) {
        self.pages[index] = Arc::clone(page);
    }

    /// Makes room for `tokens` more: pages of its own from the end on.
    pub(crate) fn grow(&mut self, tokens: usize) {
        if tokens == 0 {
            return;
        }
        if let Some(page) = self.pages.get_mut(self.len / PAGE)
            && Arc::get_mut(page).is_none()
        {
            let mut own = self.pool.page();
            own.block_mut().copy_from(page.block());
            *page = Arc::new(own);
        }
        while self.pages.len() < Self::pages_for(self.len + tokens) {
            self.pages.push(Arc::new(self.pool.page()));
        }
    }

    /// Writes one layer's keys and values of the tokens after those seen so far. Each row of `qkv`, `row` floats long,
    /// holds them from `keys_at` and `values_at` on, head by head.
    pub(crate) fn store(&mut self, layer: usize, qkv: &[f32], row: usize, keys_at: usize, values_at: usize) {
        let (d, heads) = (self.pool.head_dim, self.pool.kv_heads);
        let (begin, end) = (self.len, self.len + qkv.len() / row);
        let write = |(index, page): (usize, &mut Arc<Page>)| {
            let block = Arc::get_mut(page).expect(OWN).block_mut();
            let first = index * PAGE;
            for position in first.max(begin)..end.min(first + PAGE) {
                let row = &qkv[(position - begin) * row..][..row];
                for h in 0..heads {
                    let (key, value) = (&row[keys_at + h * d..][..d], &row[values_at + h * d..][..d]);
                    block.store(layer * heads + h, position - first, key, value);
                }
            }
        };
        let pages = begin / PAGE..Self::pages_for(end);
        let first = pages.start;
        let own = &mut self.pages[pages];
        if own.len() < 4 {
            own.iter_mut().enumerate().for_each(|(i, page)| write((first + i, page)));
        } else {
            own.par_iter_mut().enumerate().for_each(|(i, page)| write((first + i, page)));
        }
    }

    /// The blocks, in the order of their positions.
    pub(crate) fn blocks(&self) -> Vec<&CacheBlock> {
        self.pages.iter().map(|page| page.block()).collect()
    }

    /// Counts tokens whose keys and values were stored in every layer.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Arc<Pool> {
        Pool::new(2, 1, 4, Precision::F32)
    }

    fn read(cache: &mut KvCache, tokens: usize) {
        cache.grow(tokens);
        for layer in 0..2 {
            cache.store(layer, &vec![1.0; tokens * 12], 12, 4, 8);
        }
        cache.advance(tokens);
    }

    #[test]
    fn pages_are_shared_copied_when_written_to_and_used_again() {
        let pool = pool();
        let mut first = pool.cache(None);
        read(&mut first, PAGE + 3);
        assert_eq!(pool.live(), 2);
        let mut second = first.clone();
        let third = first.clone();
        assert_eq!(pool.live(), 2);
        assert_eq!(second.pages_to_come(PAGE + 3), 0);
        assert_eq!(second.pages_to_come(PAGE + 4), 1);
        assert_eq!(second.pages_to_come(2 * PAGE + 1), 2);
        read(&mut second, 1);
        assert_eq!(pool.live(), 3);
        assert_eq!(second.pages_to_come(2 * PAGE), 0);
        // The page that the others share is not the second's any more; once it is one's own it is not copied.
        drop(third);
        read(&mut first, 1);
        assert_eq!(pool.live(), 3);
        drop(first);
        assert_eq!(pool.live(), 2);
        second.truncate(PAGE);
        assert_eq!(pool.live(), 1);
        drop(second);
        assert_eq!((pool.live(), pool.spare().len()), (0, 3));
        read(&mut pool.cache(None), 5);
        assert_eq!(pool.spare().len(), 3);
    }

    #[test]
    fn a_page_that_another_sequence_filled_can_be_gone_on_with() {
        let pool = pool();
        let mut first = pool.cache(None);
        read(&mut first, 2 * PAGE + 1);
        let mut second = pool.cache(None);
        for page in first.whole_pages() {
            second.share(page);
        }
        assert_eq!((second.len(), pool.live()), (2 * PAGE, 3));
        read(&mut second, 1);
        assert_eq!(pool.live(), 4);
    }
}
