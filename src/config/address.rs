//! What `--listen` takes.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use nix::unistd::{Group, User};
use serde::{Deserialize, Serialize};

/// `LISTEN_FDNAMES` has this for a descriptor without a name (sd_listen_fds(3)).
const NO_NAME: &str = "unknown";

/// The longest name of a listener (sd_pid_notify_with_fds(3), FDNAME=).
const LONGEST_NAME: usize = 255;

/// The longest path of a unix socket, its closing NUL not counted (unix(7)).
const LONGEST_PATH: usize = 107;

/// One listener as asked for: `[NAME=]ADDR[,OPT…]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Its name in `LISTEN_FDNAMES` and `{fd:NAME}`.
    pub name: Option<String>,
    /// Where it listens.
    pub address: Address,
    /// How many connections may wait to be accepted, where that was asked for.
    pub backlog: Option<u32>,
    /// Whether accept returns at once where nobody waits: for programs that share it and poll, but do not ask for it.
    pub nonblock: bool,
    /// Whether each slot has a queue of its own, which passes from worker to worker.
    #[serde(default)]
    pub per_worker: bool,
    /// Who may connect, of a unix path.
    #[serde(default)]
    pub access: Access,
    /// The descriptor at which main finds it, bound by whoever started panzer; none for one that main is to bind.
    #[serde(default)]
    pub inherited: Option<RawFd>,
}

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Address {
    /// A port on every address, of both families where the machine has both.
    Any(u16),
    /// A port on one address, of its family only.
    Tcp(SocketAddr),
    /// A unix socket in the file system.
    Unix(PathBuf),
    /// A unix socket without a path.
    Abstract(String),
    /// A port for datagrams on every address, of both families where the machine has both.
    AnyUdp(u16),
    /// A port for datagrams on one address, of its family only.
    Udp(SocketAddr),
    /// What cannot be asked for, and only an inherited socket can be.
    Other {
        /// What people know it by.
        text: String,
        /// Whether connections are accepted there.
        accepts: bool,
    },
}

impl Address {
    /// Whether connections are accepted there; datagrams come without.
    pub fn accepts(&self) -> bool {
        !matches!(self, Address::AnyUdp(_) | Address::Udp(_) | Address::Other { accepts: false, .. })
    }

    /// The port, where connections are accepted at one.
    pub fn tcp_port(&self) -> Option<u16> {
        match self {
            Address::Any(port) => Some(*port),
            Address::Tcp(address) => Some(address.port()),
            _ => None,
        }
    }

    fn is_unix(&self) -> bool {
        matches!(self, Address::Unix(_) | Address::Abstract(_))
    }
}

/// Who may connect to a unix path: what is not said is as for any file that panzer makes.
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
    /// The name as `LISTEN_FDNAMES` has it.
    pub fn shown_name(&self) -> &str {
        self.name.as_deref().unwrap_or(NO_NAME)
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (name, address) = match first.split_once('=') {
            // A path may hold a '='; a name holds neither '/' nor ':'.
            Some((name, address)) if !name.contains(['/', ':']) => (Some(checked_name(name)?), address),
            _ => (None, first),
        };
        let address = address.parse()?;
        let (backlog, access, inherited) = (None, Access::default(), None);
        let mut listen = Listen { name, address, backlog, nonblock: false, per_worker: false, access, inherited };
        for option in parts {
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
            _ => return Err(format!("unknown option '{option}'; there are {OPTIONS}")),
        }
        Ok(())
    }
}

const OPTIONS: &str = "backlog=N, nonblock, per-worker, mode=0660, owner=USER and group=GROUP";

fn parse_mode(text: &str) -> Result<u32, String> {
    let octal = !text.is_empty() && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| octal && mode <= 0o777);
    mode.ok_or_else(|| format!("'{text}' is no mode; it is octal, from 0 to 0777, as in mode=0660"))
}

fn find_user(text: &str) -> Result<u32, String> {
    find_id(text, "user", |name| User::from_name(name).map(|user| user.map(|user| user.uid.as_raw())))
}

fn find_group(text: &str) -> Result<u32, String> {
    find_id(text, "group", |name| Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw())))
}

fn find_id(text: &str, kind: &str, find: impl Fn(&str) -> nix::Result<Option<u32>>) -> Result<u32, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // The highest means "leave it as it is" to chown(2).
        let id = text.parse().ok().filter(|&id| id != u32::MAX);
        return id.ok_or_else(|| format!("{kind} {text} is beyond {}", u32::MAX - 1));
    }
    match find(text) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(format!("there is no {kind} '{text}' on this machine; create it, or give its number")),
        Err(errno) => Err(format!("{kind} '{text}' cannot be looked up: {}; give its number", errno.desc())),
    }
}

fn checked_name(name: &str) -> Result<String, String> {
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
    if name.is_empty() || name.len() > LONGEST_NAME || !printable || name.contains(['{', '}']) {
        return Err(format!("'{name}' is no name for a listener; take letters, digits, '-' and '_'"));
    }
    Ok(name.to_owned())
}

fn parse_backlog(text: &str) -> Result<u32, String> {
    let number = text.parse::<i32>().ok().filter(|&number| number > 0);
    number.map(i32::unsigned_abs).ok_or_else(|| format!("'{text}' is no backlog; it is a number from 1 up"))
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(rest) = text.strip_prefix("udp:") {
            return match rest.parse() {
                Ok(Address::Any(port)) => Ok(Address::AnyUdp(port)),
                Ok(Address::Tcp(address)) => Ok(Address::Udp(address)),
                Ok(_) => Err(format!("'{rest}' is no port for datagrams; write udp:53 or udp:127.0.0.1:53")),
                Err(why) => Err(why),
            };
        }
        if let Some(name) = text.strip_prefix("unix:@") {
            return if name.is_empty() || name.len() > LONGEST_PATH || name.contains('\0') {
                Err(format!("'{text}' needs a name of 1 to {LONGEST_PATH} bytes after the @"))
            } else {
                Ok(Address::Abstract(name.to_owned()))
            };
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() || path.len() > LONGEST_PATH || path.contains('\0') {
                Err(format!("'{text}' needs a path of 1 to {LONGEST_PATH} bytes; the kernel takes no longer one"))
            } else {
                Ok(Address::Unix(path.into()))
            };
        }
        let port = text.strip_prefix(':').unwrap_or(text);
        if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
            return checked_port(port).map(Address::Any);
        }
        if let Some(port) = text.strip_prefix("*:") {
            return checked_port(port).map(Address::Any);
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => Err(NO_PORT_ZERO.to_owned()),
            Ok(address) => Ok(Address::Tcp(address)),
            Err(_) => Err(why_no_address(text)),
        }
    }
}

const NO_PORT_ZERO: &str = "port 0 cannot be shared: every process would get another port; name one from 1 to 65535";

fn checked_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) => Err(NO_PORT_ZERO.to_owned()),
        Ok(port) => Ok(port),
        Err(_) => Err(format!("there is no port '{text}'; ports go from 1 to 65535")),
    }
}

fn why_no_address(text: &str) -> String {
    if let Some((host, port)) = text.rsplit_once(':') {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_ok() && host.parse::<Ipv6Addr>().is_err() {
            return checked_port(port).err().unwrap_or_else(|| format!("'{text}' is no address"));
        }
    }
    if text.parse::<Ipv6Addr>().is_ok()
        || text.rsplit_once(':').is_some_and(|(host, _)| host.parse::<Ipv6Addr>().is_ok())
    {
        return "an IPv6 address stands in brackets before its port, as in [::1]:8080".to_owned();
    }
    if text.parse::<IpAddr>().is_ok() {
        return format!("the port is missing, as in {text}:8080");
    }
    if text.starts_with('/') || text.starts_with("./") {
        return format!("a unix socket is written unix:{text}");
    }
    "not an address; write 8080, 127.0.0.1:8080, [::1]:8080, unix:/run/app.sock, unix:@name or udp:53".to_owned()
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
            Address::Other { text, .. } => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn what_is_no_address_gets_its_reason() {
        let reason = |text: &str| text.parse::<Listen>().unwrap_err();
        assert!(reason("0").contains("port 0"));
        assert!(reason("127.0.0.1:0").contains("port 0"));
        assert!(reason("70000").contains("65535"));
        assert!(reason("127.0.0.1:70000").contains("65535"));
        assert!(reason("::1:80").contains("brackets"));
        assert!(reason("127.0.0.1").contains("port is missing"));
        assert!(reason("/run/a.sock").contains("unix:/run/a.sock"));
        assert!(reason("localhost").contains("not an address"));
        assert!(reason("").contains("not an address"));
        assert!(reason("80,backlog=0").contains("backlog"));
        assert!(reason("80,backlog=-3").contains("backlog"));
        assert!(reason("80,nonsense").contains("unknown option"));
        assert!(reason("80,mode=0660").contains("unix sockets with a path"));
        assert!(reason("unix:@app,owner=root").contains("unix sockets with a path"));
        assert!(reason("udp:80,backlog=5").contains("datagrams"));
        assert!(reason("80,per-worker=2").contains("unknown option"));
        for unix in ["unix:/a,per-worker", "unix:@app,per-worker"] {
            assert!(reason(unix).contains("per-worker is for ports"));
        }
        assert!(reason("udp:unix:/a").contains("udp:53"));
        assert!(reason("udp:0").contains("port 0"));
        for mode in ["", "1777", "8", "rw", "+7", "-1"] {
            assert!(reason(&format!("unix:/a,mode={mode}")).contains("octal"), "{mode}");
        }
        assert!(reason("unix:/a,owner=nobody-has-this-name").contains("there is no user"));
        assert!(reason("unix:/a,group=nobody-has-this-name").contains("there is no group"));
        assert!(reason("unix:/a,owner=4294967295").contains("beyond"));
        assert!(reason("=80").contains("no name"));
        assert!(reason(&format!("unix:/{}", "x".repeat(200))).contains("107"));
    }
}
