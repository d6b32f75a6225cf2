//! The settings of a socket, so that they can be put back.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

use super::socket_options::get;

type Option = (libc::c_int, libc::c_int, &'static str);

/// The options that connections and packets notice. The lock of the buffers comes after their
/// sizes, and the priority after the type of service, because these change them.
#[rustfmt::skip]
const OPTIONS: [Option; 39] = [
    (libc::SOL_SOCKET, libc::SO_REUSEADDR, "SO_REUSEADDR"), (libc::SOL_SOCKET, libc::SO_BROADCAST, "SO_BROADCAST"),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE, "SO_KEEPALIVE"), (libc::SOL_SOCKET, libc::SO_OOBINLINE, "SO_OOBINLINE"),
    (libc::SOL_SOCKET, libc::SO_LINGER, "SO_LINGER"),
    (libc::SOL_SOCKET, libc::SO_PASSCRED, "SO_PASSCRED"), (libc::SOL_SOCKET, libc::SO_RCVLOWAT, "SO_RCVLOWAT"),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO, "SO_RCVTIMEO"), (libc::SOL_SOCKET, libc::SO_SNDTIMEO, "SO_SNDTIMEO"),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE, "SO_DONTROUTE"), (libc::SOL_SOCKET, libc::SO_MARK, "SO_MARK"),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL, "SO_BUSY_POLL"), (libc::SOL_SOCKET, libc::SO_INCOMING_CPU, "SO_INCOMING_CPU"),
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE, "SO_BINDTODEVICE"), (libc::SOL_SOCKET, libc::SO_RCVBUF, "SO_RCVBUF"),
    (libc::SOL_SOCKET, libc::SO_SNDBUF, "SO_SNDBUF"), (libc::SOL_SOCKET, BUF_LOCK, "SO_BUF_LOCK"),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, "TCP_NODELAY"), (libc::IPPROTO_TCP, libc::TCP_MAXSEG, "TCP_MAXSEG"),
    (libc::IPPROTO_TCP, libc::TCP_CORK, "TCP_CORK"), (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, "TCP_KEEPIDLE"),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, "TCP_KEEPINTVL"), (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, "TCP_KEEPCNT"),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT, "TCP_SYNCNT"), (libc::IPPROTO_TCP, libc::TCP_LINGER2, "TCP_LINGER2"),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT"), (libc::IPPROTO_TCP, libc::TCP_CONGESTION, "TCP_CONGESTION"),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP"), (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT"),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN, "TCP_FASTOPEN"), (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT"),
    (libc::IPPROTO_IP, libc::IP_TOS, "IP_TOS"), (libc::IPPROTO_IP, libc::IP_TTL, "IP_TTL"),
    (libc::IPPROTO_IP, libc::IP_MINTTL, "IP_MINTTL"), (libc::IPPROTO_IP, libc::IP_TRANSPARENT, "IP_TRANSPARENT"),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS"), (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, "IPV6_TCLASS"),
    (libc::IPPROTO_IPV6, MIN_HOP_COUNT, "IPV6_MINHOPCOUNT"), (libc::SOL_SOCKET, libc::SO_PRIORITY, "SO_PRIORITY"),
];

/// libc does not have these yet.
const BUF_LOCK: libc::c_int = 72;
const MIN_HOP_COUNT: libc::c_int = 73;

/// The kernel tells a listener this segment size if none was set, and takes 0 for none.
const NO_MAXSEG: libc::c_int = 536;
/// The largest window that there is, instead of no limit: a socket that listens cannot be without one again.
const NO_CLAMP: libc::c_int = 0xffff << 14;

/// The flags of an open file that a program may change.
const FLAGS: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_ASYNC);

/// What a socket was set to, as values to set, by the names of the options. An option that it does not have is left out.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    options: Vec<(String, Vec<u8>)>,
    filtered: bool,
    flags: libc::c_int,
}

impl Settings {
    /// The settings now.
    pub fn of(socket: impl AsFd) -> io::Result<Settings> {
        let value = |option: &Option| {
            let mut value = vec![0; 16];
            let length = get(&socket, option.0, option.1, &mut value).ok()?;
            value.truncate(length);
            Some((option.2.to_owned(), to_be_set(*option, value)))
        };
        let flags = fcntl(socket.as_fd(), FcntlArg::F_GETFL)?;
        // The kernel tells the length of a filter, and refuses to tell a program's.
        let filtered = !matches!(get(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &mut []), Ok(0));
        Ok(Settings { options: OPTIONS.iter().filter_map(value).collect(), filtered, flags })
    }

    /// Makes the settings of this socket these. Returns what differed, and whether that worked.
    pub fn restore(&self, socket: impl AsFd) -> io::Result<Vec<(&'static str, io::Result<()>)>> {
        let now = Settings::of(&socket)?;
        let mut done = Vec::new();
        if now.filtered && !self.filtered {
            done.push(("a filter", set(&socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &[0; 4])));
        }
        // Another build may have had options that are unknown here.
        let known = self
            .options
            .iter()
            .filter_map(|(name, value)| OPTIONS.iter().find(|option| option.2 == name).map(|option| (option, value)));
        for ((level, option, name), value) in known {
            // To set the size of a buffer locks it.
            let locked = *option == BUF_LOCK && done.iter().any(|(name, _)| matches!(*name, "SO_RCVBUF" | "SO_SNDBUF"));
            if locked || !now.options.iter().any(|(its, now)| its == name && now == value) {
                done.push((*name, set(&socket, *level, *option, value)));
            }
        }
        let changed = (now.flags ^ self.flags) & FLAGS.bits();
        if changed != 0 {
            let set = fcntl(socket.as_fd(), FcntlArg::F_SETFL(OFlag::from_bits_retain(now.flags ^ changed)));
            let name = if changed & OFlag::O_NONBLOCK.bits() != 0 { "O_NONBLOCK" } else { "O_ASYNC" };
            done.push((name, set.map(drop).map_err(io::Error::from)));
        }
        Ok(done)
    }
}

/// The value to set, from the one that the kernel told.
fn to_be_set(option: Option, told: Vec<u8>) -> Vec<u8> {
    let Ok(number) = told.as_slice().try_into().map(libc::c_int::from_ne_bytes) else { return told };
    let number = match (option.0, option.1) {
        // The kernel doubles what it is given.
        (libc::SOL_SOCKET, libc::SO_RCVBUF | libc::SO_SNDBUF) => number / 2,
        (libc::IPPROTO_TCP, libc::TCP_MAXSEG) if number == NO_MAXSEG => 0,
        (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP) if number == 0 => NO_CLAMP,
        _ => number,
    };
    number.to_ne_bytes().to_vec()
}

fn set(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, which is what the value has.
    let done = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    Ok(Errno::result(done).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn whatever_was_changed_is_put_back() {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let before = Settings::of(&listener).unwrap();
            for (name, value) in &before.options {
                let option = OPTIONS.iter().find(|option| option.2 == name).unwrap();
                let mut other = value.clone();
                if let Some(byte) = other.first_mut() {
                    *byte ^= 1;
                }
                // Not every value can be set.
                let _ = set(&listener, option.0, option.1, &other);
            }
            set(&listener, libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
            set(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, &[1, 0, 0, 0]).unwrap();
            listener.set_nonblocking(true).unwrap();
            let done = before.restore(&listener).unwrap();
            assert!(done.iter().any(|(name, _)| *name == "SO_LINGER") && done.len() > 10, "{done:?}");
            assert_eq!(Settings::of(&listener).unwrap(), before);
            assert_eq!(serde_json::from_str::<Settings>(&serde_json::to_string(&before).unwrap()).unwrap(), before);
        }
    }
}
