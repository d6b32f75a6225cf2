//! Packets with descriptors, both ways. Whatever comes along is owned at once, so that nothing stays open unseen.

use std::io::{IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// The kernel takes no more descriptors in one packet (SCM_MAX_FD).
const MAX_DESCRIPTORS: usize = 253;

/// A packet that has been looked at.
#[derive(Debug)]
pub struct Packet {
    /// Its whole length, even if the buffer was shorter. Zero at the end.
    pub length: usize,
    /// The descriptors in it.
    pub descriptors: Vec<OwnedFd>,
    /// Whether it has more descriptors than this process can take.
    pub lacks_descriptors: bool,
}

/// Sends a packet, without waiting.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::EINVAL);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags).map(drop).map_err(errno)
}

/// Looks at the next packet without waiting, and leaves it in the queue: descriptors that did not fit may fit later.
pub fn peek(socket: impl AsFd, bytes: &mut [u8]) -> Result<Packet, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC | RecvFlags::PEEK | RecvFlags::TRUNC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags).map_err(errno)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    Ok(Packet { length: got.bytes, descriptors, lacks_descriptors: got.flags.contains(ReturnFlags::CTRUNC) })
}

/// Removes the packet that was looked at. The kernel closes descriptors that are still in it.
pub fn discard(socket: impl AsFd) -> Result<(), Errno> {
    rustix::net::recv(socket, &mut [0; 0], RecvFlags::DONTWAIT).map(drop).map_err(errno)
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// The sender of a datagram, according to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// The process, which may have ended. 0 if it is in another pid namespace (`rustix` takes that for impossible).
    pub pid: Pid,
    /// Its user.
    pub user: u32,
}

/// A packet from an untrusted process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Its whole length, even if the buffer was shorter.
    pub length: usize,
    /// Its sender. Pid 0 at the end of a connection.
    pub sender: Sender,
    /// Number of descriptors in it. They are closed.
    pub descriptors: usize,
}

/// Receives a packet from an untrusted process, without waiting.
pub fn receive_from_stranger(socket: impl AsFd, bytes: &mut [u8]) -> Result<Heard, Errno> {
    let mut space = [0u64; 32];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zeroes are an empty header.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
    (header.msg_control, header.msg_controllen) = (space.as_mut_ptr().cast(), size_of_val(&space) as _);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC;
    // SAFETY: the header names two buffers that live longer than the call, with their lengths.
    let length = Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) })?;
    let (mut sender, mut descriptors) = (Sender { pid: Pid::from_raw(0), user: u32::MAX }, 0);
    // SAFETY: the kernel filled `space`, which is aligned for it, and wrote into the header how far. The macros yield null
    // or a whole message within that. Each descriptor that lies in one is open, and nobody else's.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(one) = message.as_ref() {
            let data = libc::CMSG_DATA(one);
            let whole: usize = one.cmsg_len as _;
            let length = whole - (data as usize - message as usize);
            match (one.cmsg_level, one.cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                    let credentials = data.cast::<libc::ucred>().read_unaligned();
                    sender = Sender { pid: Pid::from_raw(credentials.pid), user: credentials.uid };
                }
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => (0..length / size_of::<i32>()).for_each(|at| {
                    descriptors += 1;
                    drop(OwnedFd::from_raw_fd(data.cast::<i32>().add(at).read_unaligned()));
                }),
                _ => {}
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    Ok(Heard { length: length as usize, sender, descriptors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use std::os::unix::net::UnixDatagram;

    /// In a child, whose limit is nobody else's: the number of the first check that does not hold.
    fn run(checks: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child makes the calls above, takes no lock that another thread may have but that of the allocator,
        // which the C library gives back after a fork, and ends without a clean-up.
        match unsafe { libc::fork() } {
            // SAFETY: ends the child.
            0 => unsafe { libc::_exit(checks()) },
            child => {
                let mut status = 0;
                // SAFETY: the child is ours; the status is written to an integer on our stack.
                while unsafe { libc::waitpid(child, &mut status, 0) } < 0 && Errno::last() == Errno::EINTR {}
                if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
            }
        }
    }

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
    }

    #[test]
    fn a_packet_whose_descriptors_find_no_room_says_so_and_comes_whole_once_there_is() {
        let failed = run(|| {
            let Ok((ours, theirs)) = UnixDatagram::pair() else { return 1 };
            let Ok(null) = std::fs::File::open("/dev/null") else { return 2 };
            if send(&ours, b"three", &[null.as_fd(); 3]).is_err() {
                return 3;
            }
            let Ok((limit, most)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 4 };
            let highest = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
            let highest = highest.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok()).max();
            // The gaps below are filled, so that there is room for one only.
            let Some(highest) = highest else { return 5 };
            let room = highest + 2;
            if setrlimit(Resource::RLIMIT_NOFILE, room, most).is_err() {
                return 6;
            }
            let mut fillers = Vec::new();
            while let Ok(filler) = null.try_clone() {
                fillers.push(filler);
            }
            fillers.pop();
            let mut bytes = [0; 16];
            match peek(&theirs, &mut bytes) {
                Ok(cut) if cut.lacks_descriptors && cut.length == 5 && cut.descriptors.len() == 1 => {}
                _ => return 7,
            }
            drop(fillers);
            if setrlimit(Resource::RLIMIT_NOFILE, limit, most).is_err() {
                return 8;
            }
            let before = open_descriptors();
            match peek(&theirs, &mut bytes) {
                Ok(whole)
                    if !whole.lacks_descriptors && whole.descriptors.len() == 3 && bytes.starts_with(b"three") => {}
                _ => return 9,
            }
            if discard(&theirs).is_err() || open_descriptors() != before {
                return 10;
            }
            i32::from(peek(&theirs, &mut bytes).err() != Some(Errno::EAGAIN)) * 11
        });
        assert_eq!(failed, 0);
    }
}
