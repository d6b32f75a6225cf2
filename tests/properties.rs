//! Properties of everything that comes from outside: whatever it is, nothing panics, nothing grows without bound, and an
//! error says in one place what is wrong.
//!
//! Half of each input is made of pieces that mean something, as bytes at random seldom get past the first check.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking, its helpers as well")]

use std::ffi::OsString;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, send};
use panzer::config::files::{env as env_file, yaml as file};
use panzer::config::{
    Control, FinalExit, Hook, Listen, Plan, RespawnLimit, Schedule, SharePorts, Surge, duration, placeholders,
};
use panzer::control::monitor::channel::{Channel, Received};
use panzer::control::monitor::messages::{Assignment, Order, Report};
use panzer::control::operator::requests::{Answer, MAX_REQUEST_BYTES, Request};
use panzer::readiness::ack::AckSocket;
use panzer::readiness::notify::NotifySocket;
use panzer::sys::poller::Poller;
use panzer::sys::signals::{parse_signal, parse_signal_or_number};
use panzer::worker::dialects;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;

/// No message about an input is longer than a few lines, be the input ever so long.
const MAX_LINES: usize = 8;

/// Text of these pieces, of any characters, or of both.
fn text(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    let piece = Union::new([select(pieces).prop_map(str::to_owned).boxed(), any::<String>().boxed()]);
    Union::new([
        vec(select(pieces), 0..12).prop_map(|all| all.concat()).boxed(),
        vec(piece, 0..6).prop_map(|all| all.concat()).boxed(),
    ])
}

fn bytes(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let any = vec(any::<u8>(), 0..200).boxed();
    Union::new([text(pieces).prop_map(String::into_bytes).boxed(), any])
}

/// An error says something, in few lines.
fn says<T>(result: Result<T, String>) {
    if let Err(why) = result {
        assert!(!why.trim().is_empty() && why.lines().count() <= MAX_LINES, "{why:?}");
    }
}

/// What is read is shown, and what is shown is read again as the same.
fn stays<T: std::str::FromStr<Err = String> + std::fmt::Display + PartialEq + std::fmt::Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(read) => assert_eq!(read.to_string().parse::<T>().as_ref(), Ok(&read), "{text:?}"),
        Err(why) => says::<T>(Err(why)),
    }
}

const ADDRESS: &[&str] = &[
    "unix:",
    "udp:",
    "@",
    "/run/a",
    "127.0.0.1",
    "[::1]",
    ":",
    "80",
    "0",
    "65536",
    "web=",
    ",",
    "backlog=",
    "per-worker",
    "nonblock",
    "mode=",
    "0660",
    "owner=",
    "group=",
    "root",
    "-1",
    "localhost",
    " ",
    "=",
    "%",
    "{",
    "é",
];
const SCHEDULE: &[&str] =
    &["TERM", "KILL", "INT", "/", "60s", "5", "1e308", "-1", "0", "SIG", "9", "ms", " ", "99999999h"];
const NUMBERS: &[&str] =
    &["0", "1", "9", "-", "%", "all", "/", "s", "=", ",", "1e308", "NaN", "inf", "18446744073709551616", " ", "auto"];
const ENV: &[&str] =
    &["A", "=", "\n", "'", "\"", "\\", "#", " ", "export ", ";", "$", "\u{feff}", "\0", "PANZER_X", "\r"];
const YAML: &[&str] = &[
    "workers",
    "listen",
    "env",
    ": ",
    "\n",
    "  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "!!str ",
    "\"",
    "'",
    "|",
    ">",
    "#",
    "---\n",
    "...\n",
    "?",
    "%YAML 1.2\n",
    "\t",
    ",",
    "~",
    "<<: ",
];
const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"version\"",
    "\"command\"",
    "\"status\"",
    "\"reload\"",
    "\"scale\"",
    "\"count\"",
    "1",
    "-1",
    "1e999",
    "null",
    "true",
    "\"\\ud800\"",
    "\"event\"",
    "\"ok\"",
    " ",
    "\"generation\"",
];
const NOTIFY: &[&str] = &[
    "READY=1",
    "\n",
    "EXTEND_TIMEOUT_USEC=",
    "18446744073709551616",
    "5",
    "-",
    "STATUS=",
    "\0",
    "MAINPID=",
    "WATCHDOG=1",
    "X_PANZER_REQUESTS=",
    "FDSTORE=1",
    "BARRIER=1",
];
const ACK: &[&str] =
    &["{", "}", "\"command\"", ":", "\"worker:ack\"", "\"worker:ping\"", ",", "\"pid\"", "1", "-1", "\n", "\"", "[["];
const PLACES: &[&str] =
    &["{", "}", "{{", "}}", "fd", "port", ":", "web", "worker", "generation", "+", "3000", "4294967295"];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn addresses(text in text(ADDRESS)) {
        let listen = text.parse::<Listen>();
        if let Ok(listen) = &listen {
            // As the next build, and other tools, read it.
            let json = serde_json::to_string(listen).unwrap();
            assert_eq!(&serde_json::from_str::<Listen>(&json).unwrap(), listen);
            let all = [listen.clone()];
            for dialect in ["server-starter", "einhorn", "nginx", "unicorn", "fpm"] {
                let dialect = clap::ValueEnum::from_str(dialect, false).unwrap();
                if dialects::check(dialect, &all).is_ok() {
                    let context = dialects::WorkerContext {
                        worker: 0, generation: 1, starts: 1, main_pid: 1, monitor_pid: 2, notify_socket: "@a",
                        ack_socket: None,
                    };
                    for (name, value) in dialects::variables(dialect, &all, context) {
                        assert!(!name.contains(['=', '\0']) && !value.contains('\0'), "{name}={value:?}");
                    }
                }
            }
        }
        says(listen);
    }

    #[test]
    fn schedules(text in text(SCHEDULE)) {
        stays::<Schedule>(&text);
    }

    #[test]
    fn numbers(text in text(NUMBERS)) {
        says(duration::parse(&text).map(|time| {
            assert!(time <= Duration::from_secs(366 * 24 * 3600));
            assert!(duration::parse(&duration::show(time)).is_ok(), "{time:?}");
        }));
        says(text.parse::<Surge>().map(|surge| assert!((1..=4096).contains(&surge.of(4096)))));
        stays::<SharePorts>(&text);
        says(text.parse::<RespawnLimit>());
        says(text.parse::<FinalExit>());
        says(parse_signal(&text));
        says(parse_signal_or_number(&text));
        says(text.parse::<panzer::signals::On>());
        says(panzer::config::run_as::umask(&text));
        says(text.parse::<panzer::config::run_as::UserAndGroup>());
    }

    #[test]
    fn hooks_and_control_sockets(text in bytes(&["died", "=", "before-reload", "x", ",", "mode=", "0660", "group=root", "/a"])) {
        if let Ok(text) = String::from_utf8(text.clone()) {
            says(text.parse::<Hook>());
        }
        says(Control::parse(OsString::from_vec(text)));
    }

    #[test]
    fn files_of_variables(bytes in bytes(ENV)) {
        match env_file::parse(&bytes) {
            Ok(variables) => {
                for (name, value) in &variables {
                    assert!(!name.0.is_empty() && !value.0.as_encoded_bytes().contains(&0));
                }
            }
            Err(wrong) => {
                let lines = bytes.iter().filter(|&&byte| byte == b'\n').count() + 1;
                assert!((1..=lines).contains(&wrong.place.line) && wrong.place.column >= 1, "{wrong:?}");
                says::<()>(Err(wrong.why));
            }
        }
    }

    #[test]
    fn configuration_files(text in text(YAML)) {
        match file::parse(&text) {
            Ok(entries) => assert!(entries.len() <= text.len()),
            Err(wrong) => {
                assert!(wrong.place.line >= 1 && wrong.place.column >= 1, "{wrong:?}");
                assert!(file::snippet(&text, wrong.place).lines().all(|line| line.chars().count() < 100));
                says::<()>(Err(wrong.why));
            }
        }
    }

    #[test]
    fn arguments_with_placeholders(bytes in bytes(PLACES), worker: u32, generation: u32) {
        let values = placeholders::Values {
            listeners: &[Some("web"), None], ports: &[Some(80), None], first_fd: 3, worker, generation,
        };
        let text = OsString::from_vec(bytes);
        match placeholders::expand(&text, values) {
            Ok(expanded) => assert!(expanded.len() <= text.len() * 5 + 16),
            Err(why) => says::<()>(Err(why)),
        }
    }

    #[test]
    fn requests_and_answers(text in text(JSON)) {
        for error in [
            serde_json::from_str::<Request>(&text).err(),
            serde_json::from_str::<Answer>(&text).err(),
            serde_json::from_str::<Order>(&text).err(),
            serde_json::from_str::<Report>(&text).err(),
            serde_json::from_str::<Assignment>(&text).err(),
            serde_json::from_str::<Plan>(&text).err(),
        ].into_iter().flatten() {
            assert!(!error.to_string().is_empty());
        }
        if let Ok(request) = serde_json::from_str::<Request>(&text) {
            assert!(serde_json::to_string(&request).unwrap().len() <= MAX_REQUEST_BYTES);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn packets_of_the_channel(packets in vec(bytes(JSON), 1..8)) {
        let (mut channel, theirs) = Channel::pair().unwrap();
        use std::os::fd::AsRawFd;
        for packet in &packets {
            let _ = send(theirs.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        }
        drop(theirs);
        // Each packet is told of at most once, and then it is over.
        for _ in 0..packets.len() {
            match channel.receive::<Report>() {
                Received::Gone | Received::Nothing | Received::Failed(_) => break,
                Received::Garbage(why) => says::<()>(Err(why)),
                Received::MoreGarbage | Received::Message(..) | Received::Cut(_) => {}
            }
        }
        assert!(matches!(channel.receive::<Report>(), Received::Gone | Received::Nothing | Received::Failed(_)));
    }

    #[test]
    fn datagrams_of_workers(datagrams in vec(bytes(NOTIFY), 1..8)) {
        let socket = NotifySocket::new().unwrap();
        let to = SocketAddr::from_abstract_name(socket.name().trim_start_matches('@')).unwrap();
        let from = UnixDatagram::unbound().unwrap();
        from.set_nonblocking(true).unwrap();
        let sent = datagrams.iter().filter(|datagram| from.send_to_addr(datagram, &to).is_ok()).count();
        let heard = std::iter::from_fn(|| socket.receive()).take(datagrams.len() + 1).count();
        assert_eq!(heard, sent);
    }

    #[test]
    fn acks_of_einhorns_workers(lines in vec(bytes(ACK), 1..5)) {
        let folder = tempfile::tempdir().unwrap();
        let (path, poller) = (folder.path().join("ack"), Poller::new().unwrap());
        let mut socket = AckSocket::bind(&path, &poller, 1).unwrap();
        for line in &lines {
            let mut client = UnixStream::connect(&path).unwrap();
            client.set_nonblocking(true).unwrap();
            let _ = client.write_all(line);
        }
        let now = Instant::now();
        let said = (0..10).map(|_| socket.tend(&poller, now, |_| true).len()).sum::<usize>();
        assert!(said <= lines.len());
        // Nobody keeps a place who has left.
        assert!(socket.deadline().is_none_or(|until| until > now));
    }
}
