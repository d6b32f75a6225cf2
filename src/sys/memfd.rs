//! Documents handed from one process of ours to the next in a memfd, so that no path and no size limit of the
//! environment is involved.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The largest document, in bytes.
const LIMIT: u64 = 16 << 20;

/// Writes `bytes` into a new memfd.
pub fn write(bytes: &[u8]) -> io::Result<OwnedFd> {
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::other(format!("{} bytes are more than the {LIMIT} allowed", bytes.len())));
    }
    let mut file = File::from(create()?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// A host may refuse every memfd that could be executed (vm.memfd_noexec=2); kernels before 6.3 know no flag that says so.
fn create() -> nix::Result<OwnedFd> {
    let named = |flags| memfd_create(c"panzer-plan", MFdFlags::MFD_CLOEXEC | flags);
    match named(MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL)) {
        Err(Errno::EINVAL) => named(MFdFlags::empty()),
        made => made,
    }
}

/// Writes `bytes` into an empty one.
pub fn fill(fd: OwnedFd, bytes: &[u8]) -> io::Result<()> {
    File::from(fd).write_all(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with vm.memfd_noexec=2 refuses any other.
    #[test]
    fn nobody_can_execute_a_document() {
        let document = write(b"text").unwrap();
        let mode = File::from(document.try_clone().unwrap()).metadata().unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o111, 0);
        assert_eq!(read(document).unwrap(), b"text");
    }
}
