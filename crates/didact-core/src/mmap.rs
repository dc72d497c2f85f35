//! Read-only memory maps: the only `unsafe` outside the kernels crate.
#![expect(unsafe_code, reason = "mapping a file is unsafe by nature; this module is its one wrapper")]

use crate::files::FileError;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// A file's bytes, read by the operating system when they are touched. Clones share the map.
#[derive(Debug, Clone)]
pub struct Mmap(Option<Arc<memmap2::Mmap>>);

impl Mmap {
    /// Maps a file. An empty one gives an empty slice.
    ///
    /// # Errors
    /// When the file cannot be opened or mapped.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let file = std::fs::File::open(path).map_err(FileError::at("open", path))?;
        let metadata = file.metadata().map_err(FileError::at("read", path))?;
        if metadata.is_dir() {
            return Err(FileError::at("open", path)(std::io::ErrorKind::IsADirectory.into()));
        }
        if metadata.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the map is read-only and private to this value. Didact's own files are replaced by renames, never cut or
        // rewritten in place, so the bytes behind a map do not change under it; a foreign program that truncates a model
        // file while it is being read can end this process (SIGBUS), as with every program that maps files.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(FileError::at("map", path))?;
        Ok(Self(Some(Arc::new(map))))
    }

    /// Gives the pages read so far back to the system, which has them in its cache or on disk: they are read again when
    /// they are next touched. For readers of files larger than the memory they should take.
    pub fn release(&self) {
        if let Some(map) = &self.0 {
            // SAFETY: the map is of a file and read-only, so that dropping its pages loses nothing: the next access finds
            // the same bytes in the file.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

impl Deref for Mmap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |map| map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_given_back_are_read_again() {
        let path = std::env::temp_dir().join(format!("didact-mmap-{}", std::process::id()));
        let bytes: Vec<u8> = (0..1_000_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        crate::files::write_atomic(&path, &bytes).expect("written");
        let map = Mmap::open(&path).expect("mapped");
        for _ in 0..2 {
            assert!(*map == *bytes);
            map.release();
        }
        crate::files::remove_file(&path).expect("removed");
        crate::files::write_atomic(&path, &[]).expect("written");
        Mmap::open(&path).expect("mapped").release();
        crate::files::remove_file(&path).expect("removed");
    }
}
