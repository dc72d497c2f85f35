//! A file that is being fetched and may be continued by a later process.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{FailingFile, FileError};

/// A growing file of raw bytes under a name of its own, for downloads that go on where they stopped. It is no finished
/// file: whoever completes it checks the content and only then gives it its final name.
#[derive(Debug)]
pub struct PartialFile {
    file: FailingFile,
    path: PathBuf,
    len: u64,
}

impl PartialFile {
    /// Opens the file, with whatever an earlier process left in it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref().to_owned();
        let mut file = FailingFile::append(&path).map_err(FileError::at("open", &path))?;
        let len = file.seek(SeekFrom::End(0)).map_err(FileError::at("read", &path))?;
        Ok(Self { file, path, len })
    }

    /// Bytes in it.
    #[expect(clippy::len_without_is_empty, reason = "a size in bytes, not a collection")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Empties it.
    ///
    /// # Errors
    /// When it cannot be cut.
    pub fn restart(&mut self) -> Result<(), FileError> {
        self.file.0.set_len(0).map_err(FileError::at("cut", &self.path))?;
        self.len = 0;
        Ok(())
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).map_err(FileError::at("write", &self.path))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// When that fails.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync().map_err(FileError::at("sync", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opening_goes_on_at_the_end() {
        let path = std::env::temp_dir().join(format!("didact-partial-{}", std::process::id()));
        let _ = crate::files::remove_file(&path);
        let mut first = PartialFile::open(&path).expect("opens");
        first.append(b"abc").expect("writes");
        drop(first);
        let mut second = PartialFile::open(&path).expect("opens");
        assert_eq!(second.len(), 3);
        second.append(b"de").expect("writes");
        assert_eq!(std::fs::read(&path).expect("reads"), b"abcde");
        second.restart().expect("cuts");
        second.append(b"x").expect("writes");
        assert_eq!((second.len(), std::fs::read(&path).expect("reads")), (1, b"x".to_vec()));
        crate::files::remove_file(&path).expect("removes");
    }
}
