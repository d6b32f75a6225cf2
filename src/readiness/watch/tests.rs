//! Looks at processes that accept, and at processes that do not.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::*;

/// Looks at this process. Its threads are the tests that run now. Each test has its own listeners, so none sees
/// another's.
fn look_at_us(listeners: &Listeners) -> Sight {
    look(Pid::this(), listeners)
}

/// Other tests may have more connections in this process than one look asks for, and their children may have copies of ours
/// for a moment.
fn wait_for(sight: Sight, listeners: &Listeners) {
    let until = Instant::now() + Duration::from_secs(60);
    while look_at_us(listeners) != sight {
        assert!(Instant::now() < until, "{sight:?} is not seen");
    }
}

#[test]
fn a_held_listener_is_no_proof_and_a_connection_is() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listeners = Listeners::among([&listener]);
    assert_eq!(look_at_us(&listeners), Sight::NotYet(None));
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(look_at_us(&listeners), Sight::NotYet(None), "the client's end is none");
    let (connection, _) = listener.accept().unwrap();
    wait_for(Sight::Accepting, &listeners);
    drop((connection, client));
    wait_for(Sight::NotYet(None), &listeners);
}

#[test]
fn a_connection_of_a_unix_listener_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let listeners = Listeners::among([&listener]);
    let client = UnixStream::connect(&path).unwrap();
    assert_eq!(look_at_us(&listeners), Sight::NotYet(None));
    let (connection, _) = listener.accept().unwrap();
    wait_for(Sight::Accepting, &listeners);
    drop((connection, client));
}

#[test]
fn a_datagram_socket_is_no_listener() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(Listeners::among([&socket]).is_empty());
}
