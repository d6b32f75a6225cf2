//! Documents that one process of ours hands to the next in a memfd. A memfd needs no path, and the environment's size limit
//! does not apply.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The largest document, in bytes.
const MAX_DOCUMENT_BYTES: u64 = 16 << 20;

/// Writes `bytes` into a new memfd.
pub fn write(bytes: &[u8]) -> io::Result<OwnedFd> {
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(io::Error::other(format!("{} bytes are more than the {MAX_DOCUMENT_BYTES} allowed", bytes.len())));
    }
    let mut file = File::from(empty()?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// An empty memfd. A host may refuse memfds that could be executed (vm.memfd_noexec=2). Kernels before 6.3 do not know the
/// flag.
pub fn empty() -> nix::Result<OwnedFd> {
    let named = |flags| memfd_create(c"panzer-plan", MFdFlags::MFD_CLOEXEC | flags);
    match named(MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL)) {
        Err(Errno::EINVAL) => named(MFdFlags::empty()),
        made => made,
    }
}

/// Writes `bytes` into an empty memfd.
pub fn fill(fd: OwnedFd, bytes: &[u8]) -> io::Result<()> {
    File::from(fd).write_all(bytes)
}

/// Reads a whole document, whatever the shared file position is.
pub fn read(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(fd);
    let size = file.metadata()?.len();
    if size > MAX_DOCUMENT_BYTES {
        return Err(io::Error::other(format!("{size} bytes are more than the {MAX_DOCUMENT_BYTES} allowed")));
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
