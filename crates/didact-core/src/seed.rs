//! Named random streams from one root seed.
//!
//! Whoever needs randomness names what it is for and where it stands (`streams.rng("shuffle", &[epoch])`). A stream is a
//! pure function of the root seed, its name and its index, so that adding a consumer never shifts another one, and a
//! resumed run draws what the uninterrupted one would have drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The source of all randomness of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    root: u64,
}

impl Streams {
    /// Streams of the root seed `root`.
    pub fn new(root: u64) -> Self {
        Self { root }
    }

    /// The root seed.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// A generator for sequential draws.
    pub fn rng(&self, name: &str, index: &[u64]) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.seed(name, index))
    }

    /// A key for counter-based kernels, whose n-th draw is a pure function of (key, n).
    pub fn key(&self, name: &str, index: &[u64]) -> u64 {
        let seed = self.seed(name, index);
        u64::from_le_bytes(std::array::from_fn(|i| seed[i]))
    }

    /// Streams that are independent of these ones: those of a part that names its own streams.
    pub fn child(&self, name: &str, index: &[u64]) -> Self {
        Self { root: self.key(name, index) }
    }

    fn seed(self, name: &str, index: &[u64]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.root.to_le_bytes());
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        for i in index {
            hasher.update(&i.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::Rng;

    #[test]
    fn streams_are_pure_functions_of_seed_name_and_index() {
        let draw = |root, name, index: &[u64]| Streams::new(root).rng(name, index).next_u64();
        assert_eq!(draw(1, "shuffle", &[0]), draw(1, "shuffle", &[0]));
        let others =
            [draw(1, "shuffle", &[1]), draw(1, "dropout", &[0]), draw(2, "shuffle", &[0]), draw(1, "shuffle", &[])];
        for other in others {
            assert_ne!(draw(1, "shuffle", &[0]), other);
        }
    }

    #[test]
    fn stream_values_never_change_between_versions() {
        assert_eq!(Streams::new(42).key("shuffle", &[3]), 1_400_197_582_606_792_854);
    }
}
