//! Documents handed from one process of ours to the next in a memfd, so that no path and no size limit of the
//! environment is involved.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// The largest document, in bytes.
const LIMIT: u64 = 16 << 20;

/// Writes `bytes` into a new memfd.
pub fn write(bytes: &[u8]) -> io::Result<OwnedFd> {
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::other(format!("{} bytes are more than the {LIMIT} allowed", bytes.len())));
    }
    let mut file = File::from(memfd_create(c"panzer-plan", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// Reads a document whole, wherever the shared file position stands.
pub fn read(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(fd);
    let size = file.metadata()?.len();
    if size > LIMIT {
        return Err(io::Error::other(format!("{size} bytes are more than the {LIMIT} allowed")));
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
