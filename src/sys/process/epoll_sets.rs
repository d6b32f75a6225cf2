//! The epoll sets in which another process watches one of its descriptors.
//!
//! A set remembers the open file, not only the number. If another file is put at that number, the set still watches the
//! old one. Here the registration is moved to the new file.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::thread;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::sys::process::other_process::descriptor_of;

/// An epoll set that watches the descriptor, and how.
#[derive(Debug)]
pub struct Registration {
    set: OwnedFd,
    member: Member,
}

/// A descriptor in an epoll set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub fd: RawFd,
    /// The inode of the file that was behind the number when it was added.
    pub inode: u64,
    /// The events that the program waits for.
    events: u32,
    /// The word by which the program knows it.
    data: u64,
}

impl Member {
    /// Whether the program waits for something to read, or to accept.
    pub fn wants_to_read(&self) -> bool {
        self.events & (libc::EPOLLIN | libc::EPOLLRDNORM) as u32 != 0
    }
}

/// The members of an epoll set, from its `fdinfo`: a line `tfd: 5 events: 19 data: 5 pos:0 ino:1d5f sdev:8` for each.
pub fn members(info: &str) -> impl Iterator<Item = Member> {
    info.lines().filter_map(|line| {
        let fields: Vec<&str> = line.strip_prefix("tfd:")?.split_ascii_whitespace().collect();
        let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
        Some(Member {
            fd: fields.first()?.parse().ok()?,
            inode: hexadecimal(fields.iter().find_map(|field| field.strip_prefix("ino:"))?)?,
            events: hexadecimal(fields.get(2)?)? as u32,
            data: hexadecimal(fields.get(4)?)?,
        })
    })
}

/// The sets of `thread`'s process that watch the descriptor `number`, which leads to `inode`. Fails if one of them cannot be
/// copied.
pub fn registrations(thread: Pid, number: RawFd, inode: u64) -> io::Result<Vec<Registration>> {
    let sets = descriptors(thread).into_iter().filter(|set| {
        fs::read_link(format!("/proc/{thread}/fd/{set}"))
            .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]")
    });
    let watching = sets.filter_map(|set| {
        let info = fs::read_to_string(format!("/proc/{thread}/fdinfo/{set}")).ok()?;
        let member = members(&info).find(|member| member.fd == number && member.inode == inode)?;
        Some(descriptor_of(thread, set).map(|set| Registration { set, member }))
    });
    watching.collect()
}

/// Makes the sets watch `new` instead of `old`. The program knows both as `number`.
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
            control(set, libc::EPOLL_CTL_DEL, number, registration.member)?;
            put(new, number)?;
            control(set, libc::EPOLL_CTL_ADD, number, registration.member)?;
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

/// `fd`, or a copy of it if its number is `number`. The copy is open as long as this thread runs.
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

fn control(set: RawFd, operation: libc::c_int, number: RawFd, member: Member) -> io::Result<()> {
    let mut event = libc::epoll_event { events: member.events, u64: member.data };
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
    fn an_epoll_set_is_read() {
        let info = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\n\
                    tfd:        5 events:       19 data:        500000005  pos:0 ino:1d5f sdev:8\n\
                    tfd:       11 events: 8000001c data: ffffffff0000000b  pos:0 ino:a sdev:e\n\
                    tfd:\ntfd: x events: 1\n";
        let found: Vec<Member> = members(info).collect();
        let first = Member { fd: 5, inode: 0x1d5f, events: 0x19, data: 0x5_0000_0005 };
        let second = Member { fd: 11, inode: 0xa, events: 0x8000_001c, data: 0xffff_ffff_0000_000b };
        assert_eq!(found, [first, second]);
        assert!(first.wants_to_read() && !second.wants_to_read());
    }

    #[test]
    fn what_came_is_watched_in_the_place_of_what_went() {
        let set = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let (old, _old_writer) = pipe().unwrap();
        let (new, new_writer) = pipe().unwrap();
        set.add(&old, EpollEvent::new(EpollFlags::EPOLLIN, 77)).unwrap();
        let inode = nix::sys::stat::fstat(&old).unwrap().st_ino;
        let found = registrations(Pid::this(), old.as_raw_fd(), inode).unwrap();
        // The copy of the set may get a number that another test has just left, and is then found as well.
        assert!(!found.is_empty());
        hand_over(&found, old.as_raw_fd(), old.as_fd(), new.as_fd()).unwrap();
        write(&new_writer, b"x").unwrap();
        let mut events = [EpollEvent::empty()];
        assert_eq!(set.wait(&mut events, EpollTimeout::ZERO), Ok(1));
        assert_eq!(events[0].data(), 77);
        assert!(registrations(Pid::this(), old.as_raw_fd(), inode).unwrap().is_empty());
    }
}
