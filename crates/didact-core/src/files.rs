//! The one layer through which everything is written.
//!
//! A file Didact leaves behind is one of two kinds, and no third (invariant: *no partial file is ever visible*):
//!
//! - **atomic**: written under a temporary name in the same directory, synced, renamed over its final name, and the
//!   directory synced ([`write_atomic`], [`AtomicFile`], [`publish_dir`]). Whoever looks sees the old file or the new
//!   one, also after a power cut;
//! - **an append log** of checksummed records ([`AppendLog`]): a torn last record is dropped on opening.
//!
//! Every primitive passes through the named [`fail`] points, so that tests can kill the process, or make a write fail,
//! at each of them.

use crate::fault::{Classify, Fault};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

mod append;
pub mod fail;
mod partial;

pub use append::{AppendLog, Recovered};
pub use partial::PartialFile;

/// Opens (creating it when needed) a file that only carries a lock.
///
/// # Errors
/// When it cannot be opened.
#[expect(clippy::disallowed_methods, reason = "this is the file layer")]
pub fn open_lock(path: &Path) -> Result<std::fs::File, FileError> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(FileError::at("open", path))
}

/// A file of foreign format that only grows (TensorBoard's), with the layer's fail points.
#[derive(Debug)]
pub(crate) struct FailingAppend {
    file: FailingFile,
    path: PathBuf,
}

impl FailingAppend {
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let file = FailingFile::append(path).map_err(FileError::at("open", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    pub(crate) fn sync(&self) -> Result<(), FileError> {
        self.file.sync().map_err(FileError::at("sync", &self.path))
    }
}

impl Write for FailingAppend {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A file operation that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`: {source}", path.display())]
pub struct FileError {
    /// What was tried, as a verb: `read`, `create`, `rename`.
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Wraps an error of the operating system; for `map_err`.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

impl Classify for FileError {
    fn fault(&self) -> Fault {
        let is_users = matches!(self.action, "read" | "open" | "list")
            && matches!(
                self.source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidData
            );
        if is_users { Fault::Input } else { Fault::Running }
    }

    fn hint(&self) -> Option<String> {
        match self.source.kind() {
            io::ErrorKind::NotFound if self.action != "create" => Some("check the path; nothing is there".to_owned()),
            io::ErrorKind::StorageFull => {
                Some("free some space and run the same command again: it goes on where it was".to_owned())
            }
            io::ErrorKind::PermissionDenied => Some("check who may read and write there".to_owned()),
            _ => None,
        }
    }
}

/// Reads a whole file.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
    let path = path.as_ref();
    std::fs::read(path).map_err(FileError::at("read", path))
}

/// Reads a whole UTF-8 text file.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>) -> Result<String, FileError> {
    let path = path.as_ref();
    std::fs::read_to_string(path).map_err(FileError::at("read", path))
}

/// Replaces the file at `path` by `bytes`, atomically and durably.
///
/// # Errors
/// When any step fails; the old file is then still there, whole.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<(), FileError> {
    let path = path.as_ref();
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(FileError::at("write", path))?;
    file.commit()
}

/// Copies a file, atomically.
///
/// # Errors
/// When the source cannot be read or the copy not be written.
pub fn copy_atomic(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), FileError> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let mut source = std::fs::File::open(from).map_err(FileError::at("read", from))?;
    let mut file = AtomicFile::create(to)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = source.read(&mut buffer).map_err(FileError::at("read", from))?;
        if n == 0 {
            return file.commit();
        }
        file.write_all(&buffer[..n]).map_err(FileError::at("write", to))?;
    }
}

/// A file being written that appears under its name only on [`AtomicFile::commit`]. Dropped before, it leaves nothing.
#[derive(Debug)]
pub struct AtomicFile {
    file: io::BufWriter<FailingFile>,
    temporary: PathBuf,
    path: PathBuf,
    is_committed: bool,
}

impl AtomicFile {
    /// Begins a file that will be called `path`.
    ///
    /// # Errors
    /// When the temporary file beside it cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref().to_owned();
        let temporary = temporary_name(&path);
        let file = FailingFile::create(&temporary).map_err(FileError::at("create", &path))?;
        Ok(Self { file: io::BufWriter::with_capacity(1 << 16, file), temporary, path, is_committed: false })
    }

    /// Makes the file durable and visible.
    ///
    /// # Errors
    /// When any step fails; the old file, if there was one, is then still there.
    pub fn commit(mut self) -> Result<(), FileError> {
        let at = |action| FileError::at(action, &self.path);
        self.file.flush().map_err(at("write"))?;
        self.file.get_ref().sync().map_err(at("sync"))?;
        rename(&self.temporary, &self.path)?;
        self.is_committed = true;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl Drop for AtomicFile {
    #[expect(clippy::disallowed_methods, reason = "this is the file layer")]
    fn drop(&mut self) {
        if !self.is_committed {
            // Nothing better can be done with a failure here: the name marks the file as rubbish in any case.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// How names of unfinished files end.
const TEMPORARY: &str = ".didact-tmp";

/// A temporary name beside `path`, unique to this process and call.
fn temporary_name(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{}{TEMPORARY}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// An open file whose writes and syncs pass through the fail points.
#[derive(Debug)]
struct FailingFile(std::fs::File);

impl FailingFile {
    #[expect(clippy::disallowed_methods, reason = "this is the file layer")]
    fn create(path: &Path) -> io::Result<Self> {
        fail::point("create")?;
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path).map(Self)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the file layer")]
    fn append(path: &Path) -> io::Result<Self> {
        fail::point("create")?;
        std::fs::OpenOptions::new().read(true).append(true).create(true).open(path).map(Self)
    }

    fn sync(&self) -> io::Result<()> {
        fail::point("fsync")?;
        self.0.sync_all()
    }
}

impl Write for FailingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match fail::write_point("write")? {
            fail::WriteFault::None => self.0.write(bytes),
            fail::WriteFault::Short => {
                let half = bytes.len() / 2;
                self.0.write_all(&bytes[..half])?;
                Err(io::Error::new(io::ErrorKind::StorageFull, "only part of the data was written"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for FailingFile {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        self.0.seek(position)
    }
}

/// Creates a directory and those above it, durably.
///
/// # Errors
/// When one of them cannot be created.
#[expect(clippy::disallowed_methods, reason = "this is the file layer")]
pub fn create_dir_all(path: impl AsRef<Path>) -> Result<(), FileError> {
    let path = path.as_ref();
    // Outermost first; each new name must be durable in the directory above it.
    let missing: Vec<&Path> = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.is_dir()).collect();
    for directory in missing.into_iter().rev() {
        fail::point("create")
            .and_then(|()| match std::fs::create_dir(directory) {
                // Another process or thread was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
                result => result,
            })
            .map_err(FileError::at("create", directory))?;
        sync_parent(directory)?;
    }
    Ok(())
}

/// Renames a file or directory and makes that durable.
///
/// # Errors
/// When the rename or the sync of a directory fails.
#[expect(clippy::disallowed_methods, reason = "this is the file layer")]
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), FileError> {
    let (from, to) = (from.as_ref(), to.as_ref());
    fail::point("rename").and_then(|()| std::fs::rename(from, to)).map_err(FileError::at("rename", to))?;
    sync_parent(to)
}

/// Removes a file; one that is not there is fine.
///
/// # Errors
/// When it is there and cannot be removed.
#[expect(clippy::disallowed_methods, reason = "this is the file layer")]
pub fn remove_file(path: impl AsRef<Path>) -> Result<(), FileError> {
    let path = path.as_ref();
    match fail::point("remove").and_then(|()| std::fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory and what is in it; one that is not there is fine.
///
/// # Errors
/// When it is there and cannot be removed.
#[expect(clippy::disallowed_methods, reason = "this is the file layer")]
pub fn remove_dir_all(path: impl AsRef<Path>) -> Result<(), FileError> {
    let path = path.as_ref();
    match fail::point("remove").and_then(|()| std::fs::remove_dir_all(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory such that it is never seen half removed: it is renamed to a temporary name first. One that is not
/// there is fine.
///
/// # Errors
/// When it is there and cannot be renamed or removed.
pub fn discard_dir(path: impl AsRef<Path>) -> Result<(), FileError> {
    let path = path.as_ref();
    if !path.exists() {
        return Ok(());
    }
    let rubbish = temporary_name(path);
    rename(path, &rubbish)?;
    remove_dir_all(&rubbish)
}

/// Removes what killed processes left under temporary names in a directory and those below it. Only for a directory that
/// no other process writes to.
///
/// # Errors
/// When the directory cannot be listed or something in it not be removed.
pub fn sweep(path: impl AsRef<Path>) -> Result<(), FileError> {
    for entry in list_dir(path)? {
        if is_temporary(&entry) {
            if entry.is_dir() { remove_dir_all(&entry)? } else { remove_file(&entry)? }
        } else if entry.is_dir() && !entry.is_symlink() {
            sweep(&entry)?;
        }
    }
    Ok(())
}

/// Whether a name is one that this layer gives to unfinished files.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

/// Makes the finished directory `work` visible as `path`: syncs every file and directory in it, then renames.
///
/// # Errors
/// When any step fails; `path` then does not exist (or still holds what it held).
pub fn publish_dir(work: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), FileError> {
    let (work, path) = (work.as_ref(), path.as_ref());
    sync_tree(work)?;
    rename(work, path)
}

/// The entries of a directory, sorted by name.
///
/// # Errors
/// When the directory cannot be listed.
pub fn list_dir(path: impl AsRef<Path>) -> Result<Vec<PathBuf>, FileError> {
    let path = path.as_ref();
    let entries = std::fs::read_dir(path).map_err(FileError::at("list", path))?;
    let mut paths =
        entries.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>().map_err(FileError::at("list", path))?;
    paths.sort();
    Ok(paths)
}

fn sync_tree(path: &Path) -> Result<(), FileError> {
    for entry in list_dir(path)? {
        if entry.is_dir() {
            sync_tree(&entry)?;
        } else {
            let file = std::fs::File::open(&entry).map_err(FileError::at("open", &entry))?;
            fail::point("fsync").and_then(|()| file.sync_all()).map_err(FileError::at("sync", &entry))?;
        }
    }
    sync_dir(path)
}

fn sync_parent(path: &Path) -> Result<(), FileError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

fn sync_dir(path: &Path) -> Result<(), FileError> {
    fail::point("fsync_dir")
        .and_then(|()| std::fs::File::open(path))
        .and_then(|dir| dir.sync_all())
        .map_err(FileError::at("sync", path))
}

#[cfg(test)]
mod tests;
