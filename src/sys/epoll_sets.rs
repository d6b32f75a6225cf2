//! The epoll sets of another process, in which a descriptor of its is watched.
//!
//! A set remembers what a descriptor led to, not the number alone: where something else is put in its place, the set
//! watches what is gone. Here its registration is moved to what came.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::thread;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::other_process::descriptor_of;

/// That a set watches a descriptor.
#[derive(Debug)]
pub struct Registration {
    set: OwnedFd,
    wish: Wish,
}

/// What the program wants to know, and by which word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    events: u32,
    data: u64,
}

/// In which sets of `thread`'s process the descriptor `number`, which leads to `inode`, is watched. Fails where there is
/// one that cannot be had.
pub fn registrations(thread: Pid, number: RawFd, inode: u64) -> io::Result<Vec<Registration>> {
    let sets = descriptors(thread).into_iter().filter(|set| {
        fs::read_link(format!("/proc/{thread}/fd/{set}"))
            .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]")
    });
    let watching = sets.filter_map(|set| {
        let info = fs::read_to_string(format!("/proc/{thread}/fdinfo/{set}")).ok()?;
        let wish = info.lines().find_map(|line| wish(line, number, inode))?;
        Some(descriptor_of(thread, set).map(|set| Registration { set, wish }))
    });
    watching.collect()
}

/// Has the sets watch `new` in the place of `old`, both known to the program as `number`.
pub fn hand_over(
    registrations: &[Registration],
    number: RawFd,
    old: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
) -> io::Result<()> {
    if registrations.is_empty() {
        return Ok(());
    }
    // The kernel looks the number up in the caller's own table, and here it may well be something else.
    let with_own_table = || -> io::Result<()> {
        // SAFETY: from here on this thread has a table of descriptors of its own, which ends with it.
        Errno::result(unsafe { libc::unshare(libc::CLONE_FILES) })?;
        let (old, new) = (out_of_the_way(old, number)?, out_of_the_way(new, number)?);
        for registration in registrations {
            let set = out_of_the_way(registration.set.as_fd(), number)?;
            put(old, number)?;
            control(set, libc::EPOLL_CTL_DEL, number, registration.wish)?;
            put(new, number)?;
            control(set, libc::EPOLL_CTL_ADD, number, registration.wish)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, with_own_table)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

fn descriptors(thread: Pid) -> Vec<RawFd> {
    let entries = fs::read_dir(format!("/proc/{thread}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Reads "tfd: 5 events: 19 data: 500000005 pos:0 ino:4f6 sdev:8", where it is about this descriptor.
fn wish(line: &str, number: RawFd, inode: u64) -> Option<Wish> {
    let mut words = line.split_ascii_whitespace();
    let mut after = |name: &str| {
        let word = words.find_map(|word| word.strip_prefix(name))?;
        if word.is_empty() { words.next() } else { Some(word) }
    };
    let watched: RawFd = after("tfd:")?.parse().ok()?;
    let events = u32::from_str_radix(after("events:")?, 16).ok()?;
    let data = u64::from_str_radix(after("data:")?, 16).ok()?;
    let leads_to = u64::from_str_radix(after("ino:")?, 16).ok()?;
    (watched == number && leads_to == inode).then_some(Wish { events, data })
}

/// A copy of `fd` under another number than `number`, open for as long as this thread.
fn out_of_the_way(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<RawFd> {
    if fd.as_raw_fd() != number {
        return Ok(fd.as_raw_fd());
    }
    // SAFETY: makes a new descriptor in this thread's own table, which closes with it.
    Ok(Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) })?)
}

fn put(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: only in this thread's own table, where `out_of_the_way` left at that number nothing that is still needed.
    Errno::result(unsafe { libc::dup3(fd, number, libc::O_CLOEXEC) })?;
    Ok(())
}

fn control(set: RawFd, operation: libc::c_int, number: RawFd, wish: Wish) -> io::Result<()> {
    let mut event = libc::epoll_event { events: wish.events, u64: wish.data };
    // SAFETY: the set and the number are open in this thread's table; the event lives on this stack.
    match Errno::result(unsafe { libc::epoll_ctl(set, operation, number, &mut event) }) {
        // Another thread of the program has done it itself.
        Err(Errno::ENOENT | Errno::EEXIST) => Ok(()),
        other => other.map(drop).map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use nix::unistd::{pipe, write};

    #[test]
    fn a_registration_is_read() {
        let line = "tfd:        5 events:       19 data:        500000005  pos:0 ino:4f6 sdev:8";
        assert_eq!(wish(line, 5, 0x4f6), Some(Wish { events: 0x19, data: 0x5_0000_0005 }));
        assert_eq!(wish(line, 6, 0x4f6), None);
        assert_eq!(wish(line, 5, 0x4f7), None);
        assert_eq!(wish("flags:\t02000002", 5, 0x4f6), None);
    }

    #[test]
    fn what_came_is_watched_in_the_place_of_what_went() {
        let set = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let (old, _old_writer) = pipe().unwrap();
        let (new, new_writer) = pipe().unwrap();
        set.add(&old, EpollEvent::new(EpollFlags::EPOLLIN, 77)).unwrap();
        let inode = nix::sys::stat::fstat(&old).unwrap().st_ino;
        let found = registrations(Pid::this(), old.as_raw_fd(), inode).unwrap();
        assert_eq!(found.len(), 1);
        hand_over(&found, old.as_raw_fd(), old.as_fd(), new.as_fd()).unwrap();
        write(&new_writer, b"x").unwrap();
        let mut events = [EpollEvent::empty()];
        assert_eq!(set.wait(&mut events, EpollTimeout::ZERO), Ok(1));
        assert_eq!(events[0].data(), 77);
        assert!(registrations(Pid::this(), old.as_raw_fd(), inode).unwrap().is_empty());
    }
}
