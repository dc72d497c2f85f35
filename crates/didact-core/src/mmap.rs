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
}

impl Deref for Mmap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |map| map)
    }
}
