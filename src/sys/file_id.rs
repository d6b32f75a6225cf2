//! Which file it is, whatever its path: device and inode.

use std::fs::{self, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Stat, fstat};
use serde::{Deserialize, Serialize};

/// Device and inode of a file. The number of a file that is gone may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId(u64, u64);

impl FileId {
    /// The file at `path`; a symlink there is not followed.
    pub fn at(path: &Path) -> Option<FileId> {
        fs::symlink_metadata(path).ok().map(|meta| FileId::from(&meta))
    }

    /// The file that `path` leads to.
    pub fn behind(path: &Path) -> Option<FileId> {
        fs::metadata(path).ok().map(|meta| FileId::from(&meta))
    }

    /// The file that is open at `fd`.
    pub fn of(fd: impl AsFd) -> Option<FileId> {
        fstat(fd).ok().map(|stat| FileId::from(&stat))
    }

    /// The inode alone, as /proc shows it of sockets.
    pub fn inode(self) -> u64 {
        self.1
    }
}

impl From<&Metadata> for FileId {
    fn from(meta: &Metadata) -> FileId {
        FileId(meta.dev(), meta.ino())
    }
}

impl From<&Stat> for FileId {
    fn from(stat: &Stat) -> FileId {
        FileId(stat.st_dev, stat.st_ino)
    }
}

/// As the service manager writes it in JOURNAL_STREAM.
impl std::fmt::Display for FileId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

/// Removes the file at `path`, unless another one has taken its place.
pub fn remove_if_still(path: &Path, id: FileId) {
    if FileId::at(path) == Some(id) {
        // If somebody removed it in between, that is what was wanted.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_any_path_and_removed_only_if_it_is_still_there() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("file"), folder.path().join("link"));
        let file = fs::File::create(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let id = FileId::of(&file).unwrap();
        assert_eq!([FileId::at(&path), FileId::behind(&link)], [Some(id); 2]);
        assert_ne!(FileId::at(&link), Some(id));
        remove_if_still(&link, id);
        assert!(link.exists());
        remove_if_still(&path, id);
        assert!(!path.exists());
    }
}
