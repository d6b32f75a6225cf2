//! The variables by which other supervisors pass listeners to a server, exactly as they do.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;

use crate::config::handover::Dialect;
use crate::config::{Address, Listen};
use crate::sys::descriptors::FIRST;

/// Prefixes of names that belong to a dialect.
const PREFIXES: [&str; 3] = ["EINHORN_", "SERVER_STARTER_", "FPM_SOCKETS_"];

/// Whole names that belong to a dialect.
const NAMES: [&str; 3] = ["NGINX", "UNICORN_FD", "FPM_SOCKETS"];

/// Number of sockets that php-fpm expects in one variable (FPM_ENV_SOCKET_SET_SIZE).
const FPM_SET: usize = 128;

/// Facts about one worker that its environment and arguments state.
#[derive(Debug, Clone, Copy)]
pub struct WorkerContext<'a> {
    /// Its number, from 0.
    pub worker: u32,
    /// Its generation's number, from 1.
    pub generation: u32,
    /// Number of starts as start_server counts them: the first is 1, and each further attempt adds one.
    pub starts: u32,
    /// Main's pid.
    pub main_pid: i32,
    /// The pid of its parent.
    pub monitor_pid: i32,
    /// The value of `NOTIFY_SOCKET`.
    pub notify_socket: &'a str,
    /// The value of `EINHORN_SOCK_PATH`, if workers get einhorn's variables.
    pub ack_socket: Option<&'a str>,
}

/// Whether a variable belongs to a dialect. If panzer itself got it, it names descriptors that workers do not have.
pub fn owns(name: &OsStr) -> bool {
    let begins = |prefix: &&str| name.as_bytes().starts_with(prefix.as_bytes());
    PREFIXES.iter().any(begins) || NAMES.iter().any(|own| name == *own)
}

/// The variables of `dialect` for a worker that has these listeners from descriptor 3 on.
pub fn variables(dialect: Dialect, listen: &[Listen], context: WorkerContext<'_>) -> Vec<(String, String)> {
    let fds = || (FIRST..).take(listen.len());
    let named = |name: &str, value: String| (name.to_owned(), value);
    match dialect {
        // These take an empty list of descriptors for an error.
        Dialect::Nginx | Dialect::Unicorn | Dialect::Fpm if listen.is_empty() => Vec::new(),
        Dialect::ServerStarter => vec![
            named("SERVER_STARTER_PORT", joined(listen.iter().map(starter_key).zip(fds()), ";")),
            named("SERVER_STARTER_GENERATION", context.starts.to_string()),
        ],
        Dialect::Einhorn => {
            let mut all = vec![
                named("EINHORN_MASTER_PID", context.monitor_pid.to_string()),
                named("EINHORN_CHILD_INDEX", context.worker.to_string()),
                named("EINHORN_FD_COUNT", listen.len().to_string()),
            ];
            all.extend(fds().enumerate().map(|(index, fd)| (format!("EINHORN_FD_{index}"), fd.to_string())));
            all.extend(context.ack_socket.map(|path| named("EINHORN_SOCK_PATH", path.to_owned())));
            all
        }
        Dialect::Nginx => vec![named("NGINX", fds().map(|fd| format!("{fd};")).collect())],
        Dialect::Unicorn => vec![named("UNICORN_FD", fds().map(|fd| fd.to_string()).collect::<Vec<_>>().join(","))],
        Dialect::Fpm => {
            let all: Vec<_> = listen.iter().map(fpm_key).zip(fds()).collect();
            let name = |set| if set == 0 { "FPM_SOCKETS".to_owned() } else { format!("FPM_SOCKETS_{set}") };
            let sets = all.chunks(FPM_SET).enumerate();
            sets.map(|(set, some)| (name(set), joined(some.iter().cloned(), ","))).collect()
        }
    }
}

fn joined(pairs: impl Iterator<Item = (String, i32)>, separator: &str) -> String {
    pairs.map(|(key, fd)| format!("{key}={fd}")).collect::<Vec<_>>().join(separator)
}

/// Fails, with a line, if `dialect` cannot name one of these listeners.
pub fn check(dialect: Dialect, listen: &[Listen]) -> Result<(), String> {
    let (name, separators) = match dialect {
        Dialect::ServerStarter => ("server-starter", [';', '=']),
        Dialect::Fpm => ("fpm", [',', '=']),
        // These only pass numbers.
        Dialect::Einhorn | Dialect::Nginx | Dialect::Unicorn => return Ok(()),
    };
    for Listen { address, .. } in listen {
        match address {
            Address::Abstract(_) | Address::Other { .. } => {
                return Err(format!("{name} has no way to tell of {address}: give it a path"));
            }
            Address::Unix(path) if path.to_string_lossy().contains(separators) => {
                let [first, second] = separators;
                return Err(format!(
                    "{name} has no way to tell of {address}: take a path without '{first}' and '{second}'"
                ));
            }
            Address::AnyUdp(_) | Address::Udp(_) if dialect == Dialect::Fpm => {
                return Err(format!("fpm has no way to tell of {address}: it serves streams"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// As in start_server's --port and --path. The `u` of its UDP ports is not part of the key.
fn starter_key(listen: &Listen) -> String {
    match &listen.address {
        Address::Any(port) | Address::AnyUdp(port) => port.to_string(),
        Address::Tcp(address) | Address::Udp(address) if listen.bare => address.port().to_string(),
        Address::Tcp(address) | Address::Udp(address) => address.to_string(),
        Address::Unix(path) => path.display().to_string(),
        Address::Abstract(name) => format!("@{name}"),
        Address::Other { .. } | Address::Host { .. } => listen.address.to_string(),
    }
}

/// As in php-fpm, which looks its own `listen` up among the keys: an IPv6 address without brackets, and for a port
/// alone the wildcard address.
fn fpm_key(listen: &Listen) -> String {
    let with_port = |ip: IpAddr, port: u16| format!("{ip}:{port}");
    match &listen.address {
        Address::Any(port) | Address::AnyUdp(port) => with_port(Ipv6Addr::UNSPECIFIED.into(), *port),
        Address::Tcp(address) | Address::Udp(address) => with_port(address.ip(), address.port()),
        Address::Unix(path) => path.display().to_string(),
        Address::Abstract(name) => format!("@{name}"),
        Address::Other { .. } | Address::Host { .. } => listen.address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken(dialect: Dialect, listen: &[&str]) -> Vec<String> {
        let listen: Vec<Listen> = listen.iter().map(|text| text.parse().unwrap()).collect();
        let context = WorkerContext {
            worker: 2,
            generation: 3,
            starts: 7,
            main_pid: 10,
            monitor_pid: 11,
            notify_socket: "@n",
            ack_socket: Some("/run/a.sock"),
        };
        variables(dialect, &listen, context).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn each_dialect_is_spoken_to_the_letter() {
        let all = ["8080", "127.0.0.1:80", "[::1]:80", "unix:/run/a.sock"];
        assert_eq!(
            spoken(Dialect::ServerStarter, &all),
            ["SERVER_STARTER_PORT=8080=3;127.0.0.1:80=4;[::1]:80=5;/run/a.sock=6", "SERVER_STARTER_GENERATION=7"]
        );
        assert_eq!(
            spoken(Dialect::Einhorn, &all[..2]),
            [
                "EINHORN_MASTER_PID=11",
                "EINHORN_CHILD_INDEX=2",
                "EINHORN_FD_COUNT=2",
                "EINHORN_FD_0=3",
                "EINHORN_FD_1=4",
                "EINHORN_SOCK_PATH=/run/a.sock"
            ]
        );
        assert_eq!(spoken(Dialect::Nginx, &all[..2]), ["NGINX=3;4;"]);
        assert_eq!(spoken(Dialect::Unicorn, &all[..2]), ["UNICORN_FD=3,4"]);
        assert_eq!(
            spoken(Dialect::Fpm, &["127.0.0.1:9000", "[::1]:9000", "9001", "unix:/run/f.sock"]),
            ["FPM_SOCKETS=127.0.0.1:9000=3,::1:9000=4,:::9001=5,/run/f.sock=6"]
        );
        assert_eq!(spoken(Dialect::ServerStarter, &["udp:5000"])[0], "SERVER_STARTER_PORT=5000=3");
    }

    #[test]
    fn fpm_gets_its_sockets_in_sets() {
        let all: Vec<String> = (0..FPM_SET + 1).map(|index| format!("127.0.0.1:{}", 9000 + index)).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let spoken = spoken(Dialect::Fpm, &all);
        assert_eq!(spoken.len(), 2);
        assert_eq!(spoken[1], format!("FPM_SOCKETS_1=127.0.0.1:{}={}", 9000 + FPM_SET, 3 + FPM_SET));
    }

    #[test]
    fn what_a_dialect_has_no_words_for_is_refused() {
        let wrong = |dialect, text: &str| check(dialect, &[text.parse().unwrap()]);
        assert!(wrong(Dialect::ServerStarter, "unix:/run/a=b.sock").unwrap_err().contains("without ';' and '='"));
        assert!(wrong(Dialect::Fpm, "unix:@app").unwrap_err().contains("give it a path"));
        assert!(wrong(Dialect::Fpm, "udp:5000").is_err());
        assert_eq!(wrong(Dialect::Nginx, "unix:@app"), Ok(()));
        assert_eq!(wrong(Dialect::Fpm, "unix:/run/a;b.sock"), Ok(()));
    }

    #[test]
    fn variables_of_dialects_are_known() {
        for name in ["NGINX", "UNICORN_FD", "EINHORN_FD_9", "SERVER_STARTER_PORT", "FPM_SOCKETS", "FPM_SOCKETS_2"] {
            assert!(owns(OsStr::new(name)), "{name}");
        }
        assert!(!owns(OsStr::new("NGINX_VERSION")));
    }
}
