//! Pages of what was read, found again by the tokens they hold and all before them: a common beginning of several
//! prompts is read once.

use crate::cache::{KvCache, PAGE, Page};
use crate::reading::scores_of;
use didact_core::generate::TokenLogProb;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A page's tokens, after those of the node of that number.
type Key = (u64, [u32; PAGE]);

/// Numbers below it are roots, one for each adapter and one for none.
const FIRST_NODE: u64 = 1 << 32;

/// How much of a sequence is known: a node of the tree, and its depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    node: u64,
    pages: usize,
}

impl Place {
    /// The beginning of sequences that are read with adapter number `root - 1`, or with none for 0.
    pub(crate) fn root(root: usize) -> Self {
        Self { node: root as u64, pages: 0 }
    }

    /// The number of its node.
    pub(crate) fn number(self) -> u64 {
        self.node
    }
}

/// How likely a token of a text is, given those before it, and the likeliest tokens in its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scored {
    pub(crate) log_prob: f32,
    pub(crate) top: Vec<TokenLogProb>,
}

/// A tree of pages.
#[derive(Debug)]
pub(crate) struct Prefixes {
    nodes: BTreeMap<Key, Node>,
    /// Each node's key, by its number.
    keys: BTreeMap<u64, Key>,
    next: u64,
    clock: u64,
}

#[derive(Debug)]
struct Node {
    number: u64,
    page: Arc<Page>,
    children: usize,
    /// When it was last asked for.
    used: u64,
    /// The scores of the page's tokens, once somebody asked for them, and with how many alternatives.
    scores: Option<(usize, Vec<Scored>)>,
}

impl Node {
    /// Whether no sequence has the page.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.page) == 1
    }
}

impl Prefixes {
    pub(crate) fn new() -> Self {
        Self { nodes: BTreeMap::new(), keys: BTreeMap::new(), next: FIRST_NODE, clock: 0 }
    }

    /// Goes on with known pages as far as they hold the next of `tokens`, and gives how many tokens they brought.
    pub(crate) fn follow(&mut self, place: &mut Place, cache: &mut KvCache, tokens: &[u32]) -> usize {
        self.clock += 1;
        let before = cache.len();
        while cache.len() == place.pages * PAGE
            && let Some(next) = tokens[cache.len().min(tokens.len())..].first_chunk::<PAGE>()
            && let Some(node) = self.nodes.get_mut(&(place.node, *next))
        {
            node.used = self.clock;
            cache.share(&node.page);
            *place = Place { node: node.number, pages: place.pages + 1 };
        }
        cache.len() - before
    }

    /// Makes the whole pages of a sequence known. Where they were known already, the sequence goes on with the known ones.
    ///
    /// `tokens` are the sequence's from its beginning on; what is in the cache beyond them is left alone.
    pub(crate) fn register(&mut self, place: &mut Place, cache: &mut KvCache, tokens: &[u32]) {
        self.clock += 1;
        let known = cache.len().min(tokens.len()) / PAGE;
        while place.pages < known {
            let index = place.pages;
            let tokens = tokens[index * PAGE..].first_chunk::<PAGE>().expect("a whole page of tokens");
            let key: Key = (place.node, *tokens);
            let number = if let Some(node) = self.nodes.get_mut(&key) {
                node.used = self.clock;
                cache.replace(index, &node.page);
                node.number
            } else {
                let number = self.next;
                self.next += 1;
                let page = Arc::clone(&cache.whole_pages()[index]);
                self.nodes.insert(key, Node { number, page, children: 0, used: self.clock, scores: None });
                self.keys.insert(number, key);
                self.count_child(key.0, 1);
                number
            };
            *place = Place { node: number, pages: index + 1 };
        }
    }

    /// As [`follow`](Self::follow), as far as the scores of the pages' tokens are known with so many alternatives. Gives
    /// these scores: of all tokens of the pages but the very first.
    pub(crate) fn follow_scored(
        &mut self,
        place: &mut Place,
        cache: &mut KvCache,
        tokens: &[u32],
        alternatives: usize,
    ) -> Vec<Scored> {
        let mut found = Vec::new();
        while let Some(next) = tokens[cache.len()..].first_chunk::<PAGE>()
            && let Some((most, scores)) = self.nodes.get(&(place.node, *next)).and_then(|node| node.scores.as_ref())
            && *most >= alternatives
        {
            let fewer =
                |token: &Scored| Scored { top: token.top[..alternatives.min(token.top.len())].to_vec(), ..*token };
            found.extend(scores.iter().map(fewer));
            self.follow(place, cache, &tokens[..cache.len() + PAGE]);
        }
        found
    }

    /// As [`register`](Self::register), with the scores of all tokens but the first and so many alternatives to each.
    pub(crate) fn register_scored(
        &mut self,
        place: &mut Place,
        cache: &mut KvCache,
        tokens: &[u32],
        scores: &[Scored],
        alternatives: usize,
    ) {
        for page in place.pages..cache.len().min(tokens.len()) / PAGE {
            self.register(place, cache, &tokens[..(page + 1) * PAGE]);
            let key = self.keys.get(&place.node).expect("a page that was just made known");
            let node = self.nodes.get_mut(key).expect("a page that was just made known");
            node.scores = Some((alternatives, scores[scores_of(page)].to_vec()));
        }
    }

    /// Known pages that no sequence has.
    pub(crate) fn idle(&self) -> usize {
        self.nodes.values().filter(|node| node.is_idle()).count()
    }

    /// Forgets pages that no sequence has, those not asked for longest first, until `count` are gone or none is left.
    pub(crate) fn forget(&mut self, mut count: usize) {
        while count > 0 {
            // What comes after a page goes first.
            let leaves = self.nodes.iter().filter(|(_, node)| node.children == 0 && node.is_idle());
            let mut leaves: Vec<(u64, u64, Key)> = leaves.map(|(key, node)| (node.used, node.number, *key)).collect();
            if leaves.is_empty() {
                return;
            }
            leaves.sort_unstable();
            for (_, number, key) in leaves.into_iter().take(count) {
                self.nodes.remove(&key);
                self.keys.remove(&number);
                self.count_child(key.0, -1);
                count -= 1;
            }
        }
    }

    fn count_child(&mut self, parent: u64, change: isize) {
        if let Some(node) = self.keys.get(&parent).and_then(|key| self.nodes.get_mut(key)) {
            node.children = node.children.saturating_add_signed(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Pool;
    use didact_kernels::Precision;

    fn read(cache: &mut KvCache, tokens: usize) {
        cache.grow(tokens);
        cache.store(0, &vec![1.0; tokens * 3], 3, 1, 2);
        cache.advance(tokens);
    }

    #[test]
    fn common_beginnings_are_found_and_forgotten_from_their_ends() {
        let pool = Pool::new(1, 1, 1, Precision::F32);
        let tokens: Vec<u32> = (0..3 * PAGE as u32 + 5).collect();
        let mut prefixes = Prefixes::new();
        let (mut place, mut first) = (Place::root(0), pool.cache(None));
        assert_eq!(prefixes.follow(&mut place, &mut first, &tokens), 0);
        read(&mut first, tokens.len());
        prefixes.register(&mut place, &mut first, &tokens);
        assert_eq!((place.pages, prefixes.nodes.len(), prefixes.idle(), pool.live()), (3, 3, 0, 4));

        // Two pages in common, and the third not all there.
        let other = [&tokens[..2 * PAGE + 3], &[999; 20]].concat();
        let (mut place, mut second) = (Place::root(0), pool.cache(None));
        assert_eq!(prefixes.follow(&mut place, &mut second, &other), 2 * PAGE);
        read(&mut second, other.len() - 2 * PAGE);
        prefixes.register(&mut place, &mut second, &other);
        assert_eq!((prefixes.nodes.len(), pool.live()), (4, 4 + 2));
        // Another adapter's pages are others.
        let (mut place, mut third) = (Place::root(1), pool.cache(None));
        assert_eq!(prefixes.follow(&mut place, &mut third, &tokens), 0);

        // What two read at the same time is kept once.
        let (mut place, mut twin) = (Place::root(0), pool.cache(None));
        read(&mut twin, tokens.len());
        assert_eq!(pool.live(), 6 + 4);
        prefixes.register(&mut place, &mut twin, &tokens);
        assert_eq!((prefixes.nodes.len(), pool.live()), (4, 6 + 1));

        drop(twin);
        drop(first);
        assert_eq!((prefixes.idle(), pool.live()), (1, 5));
        prefixes.forget(9);
        assert_eq!((prefixes.idle(), prefixes.nodes.len(), pool.live()), (0, 3, 4));
        drop(second);
        assert_eq!(prefixes.idle(), 3);
        prefixes.forget(2);
        let (mut place, mut again) = (Place::root(0), pool.cache(None));
        assert_eq!(prefixes.follow(&mut place, &mut again, &tokens), PAGE);
        prefixes.forget(2);
        assert_eq!((prefixes.nodes.len(), pool.live()), (1, 1));
    }
}
