//! Sockets that panzer inherited: what each one is, which `--listen` means it, and how main takes it over. Their paths
//! belong to the process that opened them, so they are never removed.

use std::fs;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::libc;
use nix::sys::socket::{SockaddrStorage, UnixAddr, getsockname, getsockopt, sockopt};

use super::listener::Listener;
use crate::config::{Access, Address, Listen};
use crate::sys::descriptors::{set_nonblocking, take_over};
use crate::sys::socket_options;

/// Describes the listener that `socket` is. Main will find it under the same number. The error completes "descriptor 3
/// …".
pub fn describe(socket: impl AsFd, name: Option<String>) -> Result<Listen, String> {
    let (domain, kind, _) = socket_options::kind(&socket).map_err(|_| "is not a socket".to_owned())?;
    let accepts = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET].contains(&kind);
    if !accepts && kind != libc::SOCK_DGRAM {
        return Err("is a socket neither for connections nor for datagrams".to_owned());
    }
    if accepts && !matches!(getsockopt(&socket, sockopt::AcceptConn), Ok(true)) {
        return Err("is a socket that does not listen; a systemd socket unit must not have Accept=yes".to_owned());
    }
    let address = address(&socket, domain, kind).unwrap_or(Address::Other { text: "another socket".into(), accepts });
    let inherited = Some(socket.as_fd().as_raw_fd());
    Ok(Listen {
        name,
        address,
        backlog: None,
        nonblock: false,
        per_worker: false,
        access: Access::default(),
        free_port: false,
        bare: false,
        inherited,
    })
}

fn address(socket: &impl AsFd, domain: libc::c_int, kind: libc::c_int) -> Option<Address> {
    let name = getsockname::<SockaddrStorage>(socket.as_fd().as_raw_fd()).ok()?;
    let inet = match domain {
        libc::AF_INET => SocketAddr::from(SocketAddrV4::from(*name.as_sockaddr_in()?)),
        libc::AF_INET6 => SocketAddr::from(SocketAddrV6::from(*name.as_sockaddr_in6()?)),
        libc::AF_UNIX => return Some(unix_address(name.as_unix_addr()?, kind)),
        _ => return None,
    };
    let is_any = inet.is_ipv6() && inet.ip().is_unspecified() && !socket_options::v6_only(socket).ok()?;
    match kind {
        libc::SOCK_STREAM if is_any => Some(Address::Any(inet.port())),
        libc::SOCK_STREAM => Some(Address::Tcp(inet)),
        libc::SOCK_DGRAM if is_any => Some(Address::AnyUdp(inet.port())),
        libc::SOCK_DGRAM => Some(Address::Udp(inet)),
        _ => None,
    }
}

fn unix_address(name: &UnixAddr, kind: libc::c_int) -> Address {
    let hidden = name.as_abstract().map(|name| String::from_utf8_lossy(name).into_owned());
    // Only shown and compared, because a plan is text.
    let path = name.path().map(|path| path.to_string_lossy().into_owned());
    match (kind, path, hidden) {
        (libc::SOCK_STREAM, Some(path), _) => Address::Unix(path.into()),
        (libc::SOCK_STREAM, _, Some(hidden)) => Address::Abstract(hidden),
        (_, path, hidden) => {
            let place = path.or(hidden.map(|name| format!("@{name}"))).unwrap_or("without a name".to_owned());
            let kind_shown = match kind {
                libc::SOCK_DGRAM => "unix datagrams",
                libc::SOCK_SEQPACKET => "unix packets",
                _ => "unix",
            };
            Address::Other { text: format!("{kind_shown} {place}"), accepts: kind != libc::SOCK_DGRAM }
        }
    }
}

/// Joins the listeners that were asked for and those that were inherited. Each `--listen` gets the inherited socket of
/// its address, else the one of its name and kind. Inherited sockets that nobody asked for come last.
pub fn join(mut asked: Vec<Listen>, mut inherited: Vec<Listen>) -> Vec<Listen> {
    let by_name = |asked: &Listen, found: &Listen| {
        asked.name.is_some() && asked.name == found.name && asked.address.accepts() == found.address.accepts()
    };
    let by_address = |asked: &Listen, found: &Listen| is_meant(&asked.address, &found.address);
    let taken: Vec<Option<String>> = asked.iter().map(|listen| listen.name.clone()).collect();
    for matches in [&by_address as &dyn Fn(&Listen, &Listen) -> bool, &by_name] {
        for listen in asked.iter_mut().filter(|listen| listen.inherited.is_none()) {
            let Some(index) = inherited.iter().position(|found| matches(listen, found)) else { continue };
            let found = inherited.remove(index);
            // A name that was asked for stays with the listener that was asked for.
            let name = found.name.filter(|name| !taken.iter().flatten().any(|taken| taken == name));
            listen.name = listen.name.take().or(name);
            listen.address = found.address;
            listen.free_port = false;
            listen.inherited = found.inherited;
        }
    }
    asked.extend(inherited);
    asked
}

/// Whether a listener that was given as `asked` means a socket that is bound to `bound`.
fn is_meant(asked: &Address, bound: &Address) -> bool {
    let all = |address: &SocketAddr, port: u16| address.port() == port && address.ip().is_unspecified();
    match (asked, bound) {
        (Address::Any(port), Address::Tcp(bound)) | (Address::AnyUdp(port), Address::Udp(bound)) => all(bound, *port),
        // A socket of both families is in the way of one for IPv6 only.
        (Address::Tcp(asked), Address::Any(port)) | (Address::Udp(asked), Address::AnyUdp(port)) => {
            asked.is_ipv6() && all(asked, *port)
        }
        (Address::Unix(asked), Address::Unix(bound)) => {
            asked == bound
                || fs::canonicalize(asked).is_ok_and(|asked| fs::canonicalize(bound).is_ok_and(|it| it == asked))
        }
        (asked, bound) => asked == bound,
    }
}

/// Takes over the socket at `number`, once, and gives it the wanted settings.
pub(super) fn take(number: RawFd, wanted: &Listen) -> io::Result<Listener> {
    let fd = take_over(number)?;
    if let Some(backlog) = wanted.backlog {
        socket_options::listen(&fd, backlog)?;
    }
    if wanted.nonblock {
        set_nonblocking(&fd)?;
    }
    if wanted.access != Access::default() {
        log::warn!("{} is inherited, so its mode, owner and group stay as they are", wanted.address);
    }
    Ok(Listener::without_path(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::IntoRawFd;

    fn found(name: &str, address: Address, number: RawFd) -> Listen {
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        let (backlog, access) = (None, Access::default());
        let (nonblock, per_worker, free_port, bare) = (false, false, false, false);
        Listen { name, address, backlog, nonblock, per_worker, access, free_port, bare, inherited: Some(number) }
    }

    /// Name and descriptor of each.
    fn joined(asked: &[&str], inherited: Vec<Listen>) -> Vec<(String, Option<RawFd>)> {
        let asked = asked.iter().map(|text| text.parse().unwrap()).collect();
        let all = join(asked, inherited);
        all.iter().map(|listen| (listen.shown_name().to_owned(), listen.inherited)).collect()
    }

    fn tcp(text: &str) -> Address {
        Address::Tcp(text.parse().unwrap())
    }

    fn row(name: &str, number: impl Into<Option<RawFd>>) -> (String, Option<RawFd>) {
        (name.to_owned(), number.into())
    }

    #[test]
    fn the_address_counts_first_then_the_name_and_the_rest_comes_last() {
        let three = || {
            vec![
                found("app.socket", Address::Any(80), 3),
                found("app.socket", tcp("127.0.0.1:81"), 4),
                found("dns", Address::AnyUdp(53), 5),
            ]
        };
        assert_eq!(joined(&[], three()), [row("app.socket", 3), row("app.socket", 4), row("dns", 5)]);
        let all = joined(&["127.0.0.1:81", "app.socket=9000", "9001"], three());
        assert_eq!(all, [row("unknown", 4), row("app.socket", 3), row("unknown", None), row("dns", 5)]);
        // A name is not enough if the kinds differ.
        let all = joined(&["dns=53", "admin=127.0.0.1:81"], three());
        assert_eq!(all[..2], [row("dns", None), row("admin", 4)]);
    }

    #[test]
    fn a_port_alone_means_every_address_and_one_address_only_itself() {
        for (asked, bound, meant) in [
            ("80", Address::Any(80), true),
            ("80", tcp("0.0.0.0:80"), true),
            ("80", tcp("[::]:80"), true),
            ("80", tcp("127.0.0.1:80"), false),
            ("80", Address::AnyUdp(80), false),
            ("[::]:80", Address::Any(80), true),
            ("0.0.0.0:80", Address::Any(80), false),
            ("127.0.0.1:80", Address::Any(80), false),
            ("127.0.0.1:80", tcp("127.0.0.1:80"), true),
            ("udp:53", Address::Udp("0.0.0.0:53".parse().unwrap()), true),
            ("unix:/no/such.sock", Address::Unix("/no/such.sock".into()), true),
            ("unix:/no/such.sock", Address::Unix("/no/other.sock".into()), false),
        ] {
            let asked: Listen = asked.parse().unwrap();
            assert_eq!(is_meant(&asked.address, &bound), meant, "{asked:?} {bound:?}");
        }
    }

    #[test]
    fn a_socket_says_what_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(describe(&listener, None).unwrap().address, Address::Tcp(address));
        let both = TcpListener::bind("[::]:0").unwrap();
        assert_eq!(describe(&both, None).unwrap().address, Address::Any(both.local_addr().unwrap().port()));
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(describe(&datagrams, None).unwrap().address, Address::Udp(datagrams.local_addr().unwrap()));
        let client = TcpStream::connect(address).unwrap();
        assert!(describe(&client, None).unwrap_err().contains("does not listen"));
        assert!(describe(std::fs::File::open("/dev/null").unwrap(), None).unwrap_err().contains("not a socket"));
        let (unix, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let unix = describe(&unix, None).unwrap().address;
        assert_eq!(unix, Address::Other { text: "unix datagrams without a name".into(), accepts: false });
    }

    #[test]
    fn what_is_asked_of_it_is_added_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let set = |text: &str| {
            let wanted = Listen { inherited: None, ..text.parse().unwrap() };
            drop(take(listener.try_clone().unwrap().into_raw_fd(), &wanted).unwrap());
            let flags = OFlag::from_bits_retain(fcntl(&listener, FcntlArg::F_GETFL).unwrap());
            (socket_options::backlog(&listener).unwrap(), flags.contains(OFlag::O_NONBLOCK))
        };
        let (before, _) = set("80");
        assert_eq!(set("80"), (before, false));
        assert_eq!(set("80,backlog=7"), (Some(7), false));
        assert_eq!(set("80,nonblock"), (Some(7), true));
        assert_eq!(set("80"), (Some(7), true));
    }
}
