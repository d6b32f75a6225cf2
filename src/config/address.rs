//! What `--listen` takes.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The queue of connections that wait to be accepted, where none is asked for. The kernel caps it at
/// `net.core.somaxconn`, whose default this is.
const BACKLOG: u32 = 4096;

/// `LISTEN_FDNAMES` has this for a descriptor without a name (sd_listen_fds(3)).
const NO_NAME: &str = "unknown";

/// The longest name of a listener (sd_pid_notify_with_fds(3), FDNAME=).
const LONGEST_NAME: usize = 255;

/// The longest path of a unix socket, its closing NUL not counted (unix(7)).
const LONGEST_PATH: usize = 107;

/// One listener as asked for: `[NAME=]ADDR[,OPT…]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// Its name in `LISTEN_FDNAMES` and `{fd:NAME}`.
    pub name: Option<String>,
    /// Where it listens.
    pub address: Address,
    /// How many connections may wait to be accepted.
    pub backlog: u32,
    /// Whether accept returns at once where nobody waits: for programs that share it and poll, but do not ask for it.
    pub nonblock: bool,
}

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
        let mut listen = Listen { name, address: address.parse()?, backlog: BACKLOG, nonblock: false };
        for option in parts {
            match option.split_once('=') {
                Some(("backlog", number)) => listen.backlog = parse_backlog(number)?,
                None if option == "nonblock" => listen.nonblock = true,
                _ => return Err(format!("unknown option '{option}'; there are backlog=N and nonblock")),
            }
        }
        Ok(listen)
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
    "not an address; write 8080, 127.0.0.1:8080, [::1]:8080, unix:/run/app.sock or unix:@name".to_owned()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Any(port) => write!(f, "port {port}"),
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Abstract(name) => write!(f, "unix:@{name}"),
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
        let named: Listen = "web=127.0.0.1:80,backlog=5,nonblock".parse().unwrap();
        assert_eq!((named.shown_name(), named.backlog, named.nonblock), ("web", 5, true));
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
        assert!(reason("=80").contains("no name"));
        assert!(reason(&format!("unix:/{}", "x".repeat(200))).contains("107"));
    }
}
