//! The argument of `--listen`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs, UdpSocket};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use super::run_as::{NameOrNumber, octal};

use crate::sys::accounts::{User, group_named};
use crate::sys::errno::words;

/// The name that `LISTEN_FDNAMES` has for a descriptor without a name (sd_listen_fds(3)).
const NO_NAME: &str = "unknown";

/// Limit of the number of listeners. No service needs as many.
pub const MAX_LISTENERS: usize = 256;

/// Limit of the name of a listener (sd_pid_notify_with_fds(3), FDNAME=).
const MAX_NAME_BYTES: usize = 255;

/// Limit of the path of a unix socket, without the closing NUL (unix(7)).
const MAX_PATH_BYTES: usize = 107;

/// One listener of the plan: `[NAME=]ADDR[,OPT…]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Its name in `LISTEN_FDNAMES` and `{fd:NAME}`.
    pub name: Option<String>,
    /// Its address.
    pub address: Address,
    /// Number of connections that may wait to be accepted, if one was given.
    pub backlog: Option<u32>,
    /// Whether accept() returns at once if no connection waits. This is for programs that share the socket and poll,
    /// but do not set O_NONBLOCK.
    pub nonblock: bool,
    /// Whether each slot has a queue of its own. A slot's queue passes from one of its workers to the next.
    #[serde(default)]
    pub per_worker: bool,
    /// The access rights of a unix path.
    #[serde(default)]
    pub access: Access,
    /// Whether port 0 was given. The kernel then chooses a port at the first bind, and panzer keeps it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub free_port: bool,
    /// Whether only a port was given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bare: bool,
    /// The descriptor of an inherited socket; none for a listener that main binds.
    #[serde(default)]
    pub inherited: Option<RawFd>,
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Address {
    /// A port on every address, of both families if the machine has both.
    Any(u16),
    /// A port on one address, of the family of this address.
    Tcp(SocketAddr),
    /// A unix socket in the file system.
    Unix(PathBuf),
    /// A unix socket without a path.
    Abstract(String),
    /// A port for datagrams on every address, of both families if the machine has both.
    AnyUdp(u16),
    /// A port for datagrams on one address, of the family of this address.
    Udp(SocketAddr),
    /// A port on every address of a host. The host is looked up, so no plan has this.
    Host {
        /// The host's name.
        host: String,
        /// The port.
        port: u16,
        /// Whether it is for datagrams.
        datagrams: bool,
    },
    /// Another kind of address. It cannot be asked for; only an inherited socket can have it.
    Other {
        /// The text that people see.
        text: String,
        /// Whether it accepts connections.
        accepts: bool,
    },
}

impl Address {
    /// Whether it accepts connections. Datagram sockets do not.
    pub fn accepts(&self) -> bool {
        use Address::{AnyUdp, Host, Other, Udp};
        !matches!(self, AnyUdp(_) | Udp(_) | Other { accepts: false, .. } | Host { datagrams: true, .. })
    }

    /// The port, if it has one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Any(port) | Address::AnyUdp(port) | Address::Host { port, .. } => Some(*port),
            Address::Tcp(address) | Address::Udp(address) => Some(address.port()),
            Address::Unix(_) | Address::Abstract(_) | Address::Other { .. } => None,
        }
    }

    /// The same address with another port, if it has one.
    pub fn with_port(&self, new: u16) -> Address {
        let mut address = self.clone();
        match &mut address {
            Address::Any(port) | Address::AnyUdp(port) | Address::Host { port, .. } => *port = new,
            Address::Tcp(address) | Address::Udp(address) => address.set_port(new),
            Address::Unix(_) | Address::Abstract(_) | Address::Other { .. } => {}
        }
        address
    }

    /// The port, if it accepts connections on one.
    pub fn tcp_port(&self) -> Option<u16> {
        self.port().filter(|_| self.accepts())
    }

    /// Whether both have the same port on a common address, so that the kernel binds only one of them.
    pub fn overlaps(&self, other: &Address) -> bool {
        let ip = |address: &Address| match address {
            Address::Tcp(address) | Address::Udp(address) => Some(address.ip()),
            _ => None,
        };
        let hosts_overlap = match (ip(self), ip(other)) {
            (Some(one), Some(other)) => {
                one == other || (one.is_ipv4() == other.is_ipv4() && (one.is_unspecified() || other.is_unspecified()))
            }
            _ => true,
        };
        self.port().is_some() && self.port() == other.port() && self.accepts() == other.accepts() && hosts_overlap
    }

    fn is_unix(&self) -> bool {
        matches!(self, Address::Unix(_) | Address::Abstract(_))
    }
}

/// Who may connect to a unix path. A field without a value is as for any file that panzer makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The permission bits.
    pub mode: Option<u32>,
    /// The owner's uid.
    pub owner: Option<u32>,
    /// The group's gid.
    pub group: Option<u32>,
}

impl Listen {
    /// Its name in `LISTEN_FDNAMES`.
    pub fn shown_name(&self) -> &str {
        self.name.as_deref().unwrap_or(NO_NAME)
    }

    /// Whether the kernel has yet to choose its port.
    pub fn lacks_port(&self) -> bool {
        self.free_port && self.address.port() == Some(0)
    }

    /// Looks a host up: one listener for each of its addresses. This may take long.
    pub fn looked_up(self) -> Result<Vec<Listen>, String> {
        let Address::Host { host, port, datagrams } = &self.address else { return Ok(vec![self]) };
        let found = (host.as_str(), *port).to_socket_addrs().map_err(|error| {
            let why = words(&error);
            let why = why.rsplit(": ").next().unwrap_or_default().to_lowercase();
            format!("the host '{host}' cannot be looked up: {why}; correct it, or give its address")
        })?;
        let mut found: Vec<SocketAddr> = found.collect();
        // Sorted, because the order of the answer may change.
        found.sort_unstable();
        found.dedup();
        let known = found.clone();
        found.retain(|address| known.len() == 1 || has_family(address));
        let kind = if *datagrams { Address::Udp } else { Address::Tcp };
        Ok(found.into_iter().map(|address| Listen { address: kind(address), ..self.clone() }).collect())
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        if text.trim() != text || text.contains(char::is_control) {
            return Err("it begins or ends with a blank, or holds a control character".to_owned());
        }
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (name, address) = match first.split_once('=') {
            // A path may hold a '='; a name holds neither '/' nor ':'.
            Some((name, address)) if !name.contains(['/', ':']) => (Some(name), address),
            _ => (None, first),
        };
        let key = name.unwrap_or(address);
        if OPTION_NAMES.contains(&key.to_ascii_lowercase().as_str()) {
            let is_of_paths = ["mode", "owner", "group"].contains(&key.to_ascii_lowercase().as_str());
            let address = if is_of_paths { "unix:/run/app.sock" } else { "8080" };
            return Err(format!(
                "{key} is an option, and stands behind an address and a comma: quote the whole value, as in \"{address},{first}\""
            ));
        }
        let name = name.map(checked_name).transpose()?;
        let bare = address.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
        let address: Address = address.parse()?;
        let free_port = address.port() == Some(0);
        let (backlog, access, inherited) = (None, Access::default(), None);
        let (nonblock, per_worker) = (false, false);
        let mut listen = Listen { name, address, backlog, nonblock, per_worker, access, free_port, bare, inherited };
        let mut known = Vec::new();
        for option in parts {
            let key = option.split('=').next().unwrap_or_default();
            if known.contains(&key) {
                return Err(format!("{key} is given twice"));
            }
            known.push(key);
            listen.set(option)?;
        }
        Ok(listen)
    }
}

impl Listen {
    fn set(&mut self, option: &str) -> Result<(), String> {
        let (key, value) = option.split_once('=').map_or((option, None), |(key, value)| (key, Some(value)));
        let is_path = matches!(self.address, Address::Unix(_));
        match (key, value) {
            _ if option.is_empty() || option.trim() != option => {
                return Err("an option stands right behind a comma, with no blank, as in 8080,backlog=4096".to_owned());
            }
            ("backlog", Some(_)) if !self.address.accepts() => {
                return Err("backlog= is for what accepts connections, and datagrams come without".to_owned());
            }
            ("mode" | "owner" | "group", Some(_)) if !is_path => {
                return Err(format!("{key}= is for unix sockets with a path, as in unix:/run/app.sock,{option}"));
            }
            ("per-worker", None) if self.address.is_unix() => {
                return Err("per-worker is for ports: the kernel gives a unix socket one queue, for all".to_owned());
            }
            ("backlog", Some(number)) => self.backlog = Some(parse_backlog(number)?),
            ("nonblock", None) => self.nonblock = true,
            ("per-worker", None) => self.per_worker = true,
            ("mode", Some(mode)) => self.access.mode = Some(parse_mode(mode)?),
            ("owner", Some(owner)) => self.access.owner = Some(find_user(owner)?),
            ("group", Some(group)) => self.access.group = Some(find_group(group)?),
            _ if option.parse::<Address>().is_ok() => {
                return Err(format!("'{option}' is a second address: each needs a --listen, or an item of a list"));
            }
            _ => return Err(format!("unknown option '{option}'; there are {OPTIONS}")),
        }
        Ok(())
    }
}

/// Whether this machine has addresses of this family. A host name often has an IPv6 address although the machine has
/// none.
fn has_family(address: &SocketAddr) -> bool {
    let lacks = |errno: i32| match Errno::from_raw(errno) {
        Errno::EAFNOSUPPORT => true,
        Errno::EADDRNOTAVAIL => address.is_ipv6() && address.ip().is_loopback(),
        _ => false,
    };
    let tried = UdpSocket::bind((address.ip(), 0));
    !tried.is_err_and(|error| error.raw_os_error().is_some_and(lacks))
}

const OPTION_NAMES: [&str; 6] = ["backlog", "nonblock", "per-worker", "mode", "owner", "group"];

const OPTIONS: &str = "backlog=N, nonblock, per-worker, mode=0660, owner=USER and group=GROUP";

/// Whether this could be the name of an option.
pub(super) fn is_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

pub(super) fn parse_mode(text: &str) -> Result<u32, String> {
    octal(text).ok_or_else(|| format!("'{text}' is not a mode; it is octal, from 0 to 0777, as in mode=0660"))
}

pub(super) fn find_user(text: &str) -> Result<u32, String> {
    find_id(text, "user", |name| Ok(User::named(name)?.map(|user| user.uid)))
}

pub(super) fn find_group(text: &str) -> Result<u32, String> {
    find_id(text, "group", group_named)
}

fn find_id(text: &str, kind: &str, find: impl Fn(&str) -> Result<Option<u32>, String>) -> Result<u32, String> {
    let name = match text.parse() {
        Ok(NameOrNumber::Number(id)) => return Ok(id),
        Ok(NameOrNumber::Name(name)) => name,
        Err(why) => return Err(format!("{kind} '{text}': {why}")),
    };
    match find(&name) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(format!("there is no {kind} '{text}' on this machine; create it, or give its number")),
        Err(why) => Err(format!("{kind} '{text}' cannot be looked up: {why}; give its number")),
    }
}

fn checked_name(name: &str) -> Result<String, String> {
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
    // A number before the colon looks like the port mapping of other programs.
    let digits = name.bytes().all(|byte| byte.is_ascii_digit());
    if digits || name.len() > MAX_NAME_BYTES || !printable || name.contains(['{', '}']) {
        return Err(format!("'{name}' is not a name for a listener; take letters, digits, '-' and '_'"));
    }
    Ok(name.to_owned())
}

fn parse_backlog(text: &str) -> Result<u32, String> {
    let number = text.parse::<i32>().ok().filter(|number| *number > 0 && number.to_string() == text);
    number.map(i32::unsigned_abs).ok_or_else(|| format!("'{text}' is not a backlog; it is a number from 1 up"))
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(rest) = text.strip_prefix("udp:") {
            return match rest.parse()? {
                Address::Any(port) => Ok(Address::AnyUdp(port)),
                Address::Tcp(address) => Ok(Address::Udp(address)),
                Address::Host { host, port, .. } => Ok(Address::Host { host, port, datagrams: true }),
                _ => Err(format!("'{rest}' is not a port for datagrams; write udp:53 or udp:127.0.0.1:53")),
            };
        }
        if let Some(name) = text.strip_prefix("unix:@") {
            return if name.is_empty() || name.len() > MAX_PATH_BYTES || name.contains('\0') {
                Err(format!("'{text}' needs a name of 1 to {MAX_PATH_BYTES} bytes after the @"))
            } else {
                Ok(Address::Abstract(name.to_owned()))
            };
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() || path.len() > MAX_PATH_BYTES || path.contains('\0') {
                Err(format!("'{text}' needs a path of 1 to {MAX_PATH_BYTES} bytes; the kernel takes no longer one"))
            } else {
                Ok(Address::Unix(path.into()))
            };
        }
        let port = text.strip_prefix("*:").or(text.strip_prefix(':')).unwrap_or(text);
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if digits || (port != text && !port.contains(':')) {
            return checked_port(port).map(Address::Any);
        }
        let Some((host, port)) = text.rsplit_once(':') else { return Err(why_no_address(text)) };
        let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Some(v6) = v6 {
            return Ok(Address::Tcp(checked_v6(v6, checked_port(port)?)?.into()));
        }
        if let Ok(v4) = host.parse::<Ipv4Addr>() {
            return Ok(Address::Tcp((v4, checked_port(port)?).into()));
        }
        if !is_host_name(host) || port.contains('/') {
            return Err(why_no_address(text));
        }
        match checked_port(port)? {
            0 => Err("port 0 is one port of one address: give an address, as in 127.0.0.1:0".to_owned()),
            port => Ok(Address::Host { host: host.to_owned(), port, datagrams: false }),
        }
    }
}

fn checked_port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port) if port.to_string() == text => Ok(port),
        Ok(port) => Err(format!("'{text}' is not a port: write {port}, with digits only and no zero before them")),
        Err(_) => Err(format!("there is no port '{text}'; ports go from 1 to 65535, or 0 for one that is free")),
    }
}

/// An IPv6 address without its brackets, possibly with a network interface after a '%'.
fn checked_v6(text: &str, port: u16) -> Result<SocketAddrV6, String> {
    let (ip, zone) = text.split_once('%').map_or((text, None), |(ip, zone)| (ip, Some(zone)));
    let ip: Ipv6Addr = ip.parse().map_err(|_| format!("'{ip}' is not an IPv6 address"))?;
    let scope = match zone {
        None => 0,
        Some(zone) => match zone.parse::<u32>().or_else(|_| if_nametoindex(zone)) {
            Ok(index) if index > 0 => index,
            _ => return Err(format!("there is no network interface '{zone}'; ip link lists them")),
        },
    };
    if ip.is_unicast_link_local() && scope == 0 {
        return Err(format!("[{ip}] is of one network interface: name it, as in [{ip}%eth0]:{port}"));
    }
    match ip.to_ipv4_mapped() {
        Some(v4) => Err(format!("[{ip}] is an IPv4 address: write {v4}:{port}")),
        None => Ok(SocketAddrV6::new(ip, port, 0, scope)),
    }
}

/// Whether it consists of labels of letters, digits, '-' and '_'. The last label is not a number, as in an address.
fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(is_label) && last.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn why_no_address(text: &str) -> String {
    if text.parse::<Ipv6Addr>().is_ok()
        || text.rsplit_once(':').is_some_and(|(host, _)| host.parse::<Ipv6Addr>().is_ok())
    {
        return "an IPv6 address stands in brackets before its port, as in [::1]:8080".to_owned();
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() || text == "localhost" || (is_host_name(text) && text.contains('.')) {
        return format!("the port is missing, as in {text}:8080");
    }
    if text.starts_with('/') || text.starts_with("./") {
        return format!("a unix socket is written unix:{text}");
    }
    "not an address; write 8080, 127.0.0.1:8080, [::1]:8080, localhost:8080, unix:/run/app.sock, unix:@name or udp:53"
        .to_owned()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Any(port) => write!(f, "port {port}"),
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Abstract(name) => write!(f, "unix:@{name}"),
            Address::AnyUdp(port) => write!(f, "udp port {port}"),
            Address::Udp(address) => write!(f, "udp:{address}"),
            Address::Host { host, port, datagrams: false } => write!(f, "{host}:{port}"),
            Address::Host { host, port, datagrams: true } => write!(f, "udp:{host}:{port}"),
            Address::Other { text, .. } => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_addresses_that_the_kernel_binds_only_one_of_overlap() {
        for (one, other, overlap) in [
            ("8000", "0.0.0.0:8000", true),
            ("8000", "127.0.0.1:8000", true),
            ("8000", "8001", false),
            ("8000", "udp:8000", false),
            ("udp:127.0.0.1:53", "udp:53", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "[::1]:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("unix:/a", "unix:/a", false),
        ] {
            let [one, other]: [Listen; 2] = [one, other].map(|text| text.parse().unwrap());
            assert_eq!(one.address.overlaps(&other.address), overlap, "{one:?} {other:?}");
            assert_eq!(other.address.overlaps(&one.address), overlap, "{other:?} {one:?}");
        }
    }

    #[test]
    fn addresses_are_read() {
        let address = |text: &str| text.parse::<Listen>().map(|listen| listen.address);
        assert_eq!(address("8080"), Ok(Address::Any(8080)));
        assert_eq!(address(":8080"), Ok(Address::Any(8080)));
        assert_eq!(address("127.0.0.1:80"), Ok(Address::Tcp("127.0.0.1:80".parse().unwrap())));
        assert_eq!(address("[::1]:80"), Ok(Address::Tcp("[::1]:80".parse().unwrap())));
        assert_eq!(address("unix:/run/a=b.sock"), Ok(Address::Unix("/run/a=b.sock".into())));
        assert_eq!(address("unix:@app"), Ok(Address::Abstract("app".into())));
        assert_eq!(address("udp:53"), Ok(Address::AnyUdp(53)));
        assert_eq!(address("dns=udp:127.0.0.1:53"), Ok(Address::Udp("127.0.0.1:53".parse().unwrap())));
        assert_eq!(address("udp:[::1]:53"), Ok(Address::Udp("[::1]:53".parse().unwrap())));
        let path: Listen = "unix:/run/app.sock,mode=0660,owner=root,group=0".parse().unwrap();
        assert_eq!(path.access, Access { mode: Some(0o660), owner: Some(0), group: Some(0) });
        let named: Listen = "web=127.0.0.1:80,backlog=5,nonblock".parse().unwrap();
        assert_eq!((named.shown_name(), named.backlog, named.nonblock), ("web", Some(5), true));
        for each in ["80,per-worker", "udp:53,per-worker"] {
            assert!(each.parse::<Listen>().unwrap().per_worker);
        }
        assert!(!named.per_worker);
        assert_eq!(address("[fe80::1%lo]:80"), address("[fe80::1%1]:80"));
        for free in ["0", "127.0.0.1:0", "[::1]:0", "udp:0"] {
            assert!(free.parse::<Listen>().unwrap().lacks_port(), "{free}");
        }
    }

    #[test]
    fn a_host_is_looked_up() {
        let listen: Listen = "web=localhost:8080,backlog=7".parse().unwrap();
        assert_eq!(listen.address.to_string(), "localhost:8080");
        let found = listen.looked_up().unwrap();
        assert_eq!(found[0].address, Address::Tcp("127.0.0.1:8080".parse().unwrap()));
        assert!(found.iter().all(|listen| listen.shown_name() == "web" && listen.backlog == Some(7)));
        let udp: Listen = "udp:localhost:53".parse().unwrap();
        assert!(!udp.address.accepts() && !udp.looked_up().unwrap()[0].address.accepts());
        let nobody: Listen = "no-such-host.invalid:80".parse().unwrap();
        assert!(nobody.looked_up().unwrap_err().contains("'no-such-host.invalid' cannot be looked up"));
    }

    #[test]
    fn what_is_no_address_gets_its_reason() {
        let reason = |text: &str| text.parse::<Listen>().unwrap_err();
        assert!(reason("70000").contains("65535"));
        for port in
            ["0660", "127.0.0.1:080", "*:+80", ":", "*:", "localhost:", "8000:8001", "127.0.0.1:", "-1", "80 81"]
        {
            let why = reason(port);
            assert!(why.contains("port") || why.contains("not an address"), "{port}: {why}");
        }
        for option in ["backlog=4096", "mode=0660", "owner=nobody", "Group=www", "nonblock", "per-worker", "backlog"] {
            assert!(reason(option).contains("quote the whole value"), "{option}");
        }
        // The message shows it in a form that is accepted.
        assert!(reason("mode=0660").contains("\"unix:/run/app.sock,mode=0660\""));
        assert!(reason("80,").contains("right behind a comma") && reason("80, nonblock").contains("with no blank"));
        assert!(reason("80,81").contains("a second address") && reason("80,[::1]:81").contains("a second address"));
        assert!(reason("80,backlog=5,backlog=6").contains("backlog is given twice"));
        for blank in [" 80", "80 ", "unix:/a ", "unix:/a\nb", "unix:/a\0b"] {
            assert!(reason(blank).contains("control character"), "{blank:?}");
        }
        assert!(reason("8000=8001").contains("not a name"));
        assert!(reason("[fe80::1]:80").contains("[fe80::1%eth0]:80"));
        assert!(reason("[fe80::1%nosuchnic]:80").contains("no network interface 'nosuchnic'"));
        assert!(reason("[::ffff:127.0.0.1]:80").contains("write 127.0.0.1:80"));
        assert!(reason("300.1.1.1:80").contains("not an address"));
        assert!(reason("localhost:0").contains("127.0.0.1:0"));
        assert!(reason("127.0.0.1:70000").contains("65535"));
        assert!(reason("::1:80").contains("brackets"));
        assert!(reason("127.0.0.1").contains("port is missing"));
        assert!(reason("/run/a.sock").contains("unix:/run/a.sock"));
        assert!(reason("localhost").contains("localhost:8080"));
        assert!(reason("").contains("not an address"));
        assert!(reason("80,backlog=0").contains("backlog"));
        assert!(reason("80,backlog=-3").contains("backlog") && reason("80,backlog=010").contains("backlog"));
        assert!(reason("80,nonsense").contains("unknown option"));
        assert!(reason("80,mode=0660").contains("unix sockets with a path"));
        assert!(reason("unix:@app,owner=root").contains("unix sockets with a path"));
        assert!(reason("udp:80,backlog=5").contains("datagrams"));
        assert!(reason("80,per-worker=2").contains("unknown option"));
        for unix in ["unix:/a,per-worker", "unix:@app,per-worker"] {
            assert!(reason(unix).contains("per-worker is for ports"));
        }
        assert!(reason("udp:unix:/a").contains("udp:53"));
        for mode in ["", "1777", "8", "rw", "+7", "-1"] {
            assert!(reason(&format!("unix:/a,mode={mode}")).contains("octal"), "{mode}");
        }
        assert!(reason("unix:/a,owner=nobody-has-this-name").contains("there is no user"));
        assert!(reason("unix:/a,group=nobody-has-this-name").contains("there is no group"));
        assert!(reason("unix:/a,owner=4294967295").contains("goes up to"));
        assert!(reason("=80").contains("not a name"));
        assert!(reason(&format!("unix:/{}", "x".repeat(200))).contains("107"));
    }
}
