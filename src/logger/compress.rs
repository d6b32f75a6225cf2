//! Compresses rotated files, in a thread of its own: it takes longer than the next rotation may wait.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::fcntl::OFlag;

use crate::control::log_file::older;
use crate::sys::errno::words;
use crate::sys::file_id::FileId;

/// Held while rotated files get other names; true while a thread compresses.
pub(super) type Names = Arc<Mutex<bool>>;

/// Compresses all rotated files that are not compressed yet, unless that is under way.
pub(super) fn begin(path: PathBuf, keep: u32, names: Names) {
    if std::mem::replace(&mut *names.lock().unwrap_or_else(PoisonError::into_inner), true) {
        return;
    }
    let within = names.clone();
    let started = thread::Builder::new().name("compressor".to_owned()).spawn(move || {
        loop {
            let mut busy = within.lock().unwrap_or_else(PoisonError::into_inner);
            // The oldest first: it goes first.
            let Some(number) = (1..=keep).rev().find(|number| older(&path, *number, false).is_file()) else {
                *busy = false;
                return;
            };
            drop(busy);
            if let Err(error) = compress(&path, number, keep, &within) {
                log::warn!("{} cannot be compressed: {}", older(&path, number, false).display(), words(&error));
                *within.lock().unwrap_or_else(PoisonError::into_inner) = false;
                return;
            }
        }
    });
    if started.is_err() {
        // The next rotation tries again.
        *names.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

fn compress(path: &Path, number: u32, keep: u32, names: &Names) -> io::Result<()> {
    let mut plain = File::options()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(older(path, number, false))?;
    let (id, metadata) = (FileId::of(&plain), plain.metadata()?);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".gz.tmp");
    let _ = fs::remove_file(&temporary);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let mut done = || -> io::Result<()> {
        let mut packed = GzEncoder::new(&file, Compression::default());
        io::copy(&mut plain, &mut packed)?;
        packed.finish()?;
        fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
        file.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o777))?;
        // It may have been given another number meanwhile, or be gone.
        let _names = names.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (number..=keep).find(|number| FileId::at(&older(path, *number, false)) == id);
        match now {
            Some(now) => {
                fs::rename(&temporary, older(path, now, true))?;
                fs::remove_file(older(path, now, false))
            }
            None => fs::remove_file(&temporary),
        }
    };
    let done = done();
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}
