//! What a sequence leaves behind for its later tokens: keys and values of every layer.

use didact_kernels::attention;

/// The keys and values of one sequence, in the layout of [`didact_kernels::attention`].
///
/// A clone is a sequence of its own that shares what came before: how several answers share one prompt.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<Vec<HeadCache>>,
    head_dim: usize,
    len: usize,
}

/// The part of one key/value head.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeadCache {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl KvCache {
    /// An empty cache for `layers` layers of `kv_heads` heads of `head_dim`.
    pub(crate) fn new(layers: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { layers: vec![vec![HeadCache::default(); kv_heads]; layers], head_dim, len: 0 }
    }

    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens after the first `len`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "a cache of {} tokens cannot keep {len}", self.len);
        self.len = len;
    }

    /// Memory taken by `tokens` tokens of one sequence.
    pub fn bytes(layers: usize, kv_heads: usize, head_dim: usize, tokens: usize) -> usize {
        let floats = attention::keys_len(tokens, head_dim) + attention::values_len(tokens, head_dim);
        layers * kv_heads * floats * size_of::<f32>()
    }

    /// Makes room for `tokens` more.
    pub(crate) fn grow(&mut self, tokens: usize) {
        let (keys, values) = (
            attention::keys_len(self.len + tokens, self.head_dim),
            attention::values_len(self.len + tokens, self.head_dim),
        );
        for head in self.layers.iter_mut().flatten() {
            if head.keys.len() < keys {
                head.keys.resize(keys, 0.0);
                head.values.resize(values, 0.0);
            }
        }
    }

    /// Writes one layer's keys and values of the tokens after those seen so far. Each row of `qkv`, `row` floats long,
    /// holds them from `keys_at` and `values_at` on, head by head.
    pub(crate) fn store(&mut self, layer: usize, qkv: &[f32], row: usize, keys_at: usize, values_at: usize) {
        let d = self.head_dim;
        for (h, head) in self.layers[layer].iter_mut().enumerate() {
            for (i, row) in qkv.chunks_exact(row).enumerate() {
                let (key, value) = (&row[keys_at + h * d..][..d], &row[values_at + h * d..][..d]);
                attention::store(&mut head.keys, &mut head.values, self.len + i, key, value);
            }
        }
    }

    /// One layer's heads.
    pub(crate) fn layer(&self, layer: usize) -> &[HeadCache] {
        &self.layers[layer]
    }

    /// Counts tokens whose keys and values were stored in every layer.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
