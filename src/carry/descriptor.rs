//! An open descriptor, written as its number. The next main is the same process, so the descriptor is still there.
//!
//! Descriptors can be written and read only within [`write`] and [`read`], which say what happens to them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::descriptors::{FIRST, set_inherited, take_over};
use crate::sys::errno::words;

/// What happens to the descriptors of a document that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Nothing: another process only reads the document.
    Unchanged,
    /// A program that is executed from now on gets them.
    Inherited,
    /// No program gets them any more.
    Closed,
}

/// What happens to the descriptors of a document that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// This process takes them over.
    TakenOver,
    /// They are in another process. /dev/null stands for each.
    StandIns,
}

#[derive(Debug)]
enum Scope {
    None,
    Writing(Written),
    /// With the numbers that have been read.
    Reading(Read, BTreeSet<RawFd>),
}

thread_local! {
    static SCOPE: RefCell<Scope> = const { RefCell::new(Scope::None) };
}

fn within<T>(scope: Scope, work: impl FnOnce() -> T) -> T {
    SCOPE.set(scope);
    let result = work();
    SCOPE.set(Scope::None);
    result
}

/// Writes a document.
pub fn write(document: &impl Serialize, descriptors: Written) -> serde_json::Result<Vec<u8>> {
    within(Scope::Writing(descriptors), || serde_json::to_vec(document))
}

/// Reads a document. Fails if a descriptor is in it twice, or is stdin, stdout or
/// stderr.
pub fn read<T: DeserializeOwned>(bytes: &[u8], descriptors: Read) -> serde_json::Result<T> {
    within(Scope::Reading(descriptors, BTreeSet::new()), || serde_json::from_slice(bytes))
}

/// For `serde(with)`.
pub fn serialize<S: Serializer>(fd: &impl AsFd, serializer: S) -> Result<S::Ok, S::Error> {
    let fd = fd.as_fd();
    let set = SCOPE.with_borrow(|scope| match scope {
        Scope::Writing(Written::Unchanged) => Ok(()),
        Scope::Writing(written) => set_inherited(fd, *written == Written::Inherited),
        Scope::None | Scope::Reading(..) => Err(io::Error::other("no document is being written")),
    });
    set.map_err(|error| S::Error::custom(format!("descriptor {}: {}", fd.as_raw_fd(), words(&error))))?;
    fd.as_raw_fd().serialize(serializer)
}

/// For `serde(with)`.
pub fn deserialize<'de, T: From<OwnedFd>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let number = RawFd::deserialize(deserializer)?;
    let fd = SCOPE.with_borrow_mut(|scope| {
        let Scope::Reading(how, seen) = scope else { return Err(io::Error::other("no document is being read")) };
        if number < FIRST || !seen.insert(number) {
            return Err(io::Error::other("it cannot be handed on twice, or at all"));
        }
        match how {
            Read::TakenOver => take_over(number),
            Read::StandIns => File::open("/dev/null").map(OwnedFd::from),
        }
    });
    fd.map(T::from).map_err(|error| D::Error::custom(format!("descriptor {number}: {}", words(&error))))
}

/// A descriptor that can be written and read by itself.
#[derive(Debug, Serialize, Deserialize)]
pub struct Descriptor(#[serde(with = "self")] OwnedFd);

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Descriptor {
        Descriptor(fd)
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    fn null() -> Descriptor {
        OwnedFd::from(File::open("/dev/null").unwrap()).into()
    }

    #[test]
    fn a_program_gets_what_is_written_for_it() {
        let fds = vec![null(), null()];
        let flags = || FdFlag::from_bits_retain(fcntl(&fds[1], FcntlArg::F_GETFD).unwrap());
        let numbers = |bytes: Vec<u8>| serde_json::from_slice::<Vec<RawFd>>(&bytes).unwrap();
        let ours: Vec<RawFd> = fds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
        for (written, flag) in [
            (Written::Unchanged, FdFlag::FD_CLOEXEC),
            (Written::Inherited, FdFlag::empty()),
            (Written::Unchanged, FdFlag::empty()),
            (Written::Closed, FdFlag::FD_CLOEXEC),
        ] {
            assert_eq!(numbers(write(&fds, written).unwrap()), ours);
            assert_eq!(flags(), flag, "{written:?}");
        }
        assert!(serde_json::to_vec(&fds).is_err(), "outside of a document");
    }

    #[test]
    fn each_descriptor_is_read_once_and_none_of_the_first_three() {
        let why = |bytes: &str, how| read::<Vec<Descriptor>>(bytes.as_bytes(), how).unwrap_err().to_string();
        assert!(why("[2]", Read::StandIns).contains("descriptor 2"));
        assert!(why("[70,70]", Read::StandIns).contains("descriptor 70: it cannot be handed on twice"));
        assert!(why("[1]", Read::TakenOver).contains("descriptor 1"));
        let fds: Vec<Descriptor> = read(b"[70,71]", Read::StandIns).unwrap();
        assert!(fds.iter().all(|fd| fd.as_fd().as_raw_fd() >= 3));
    }
}
