//! The example server, one connection at a time: each case in which a worker that stops could forget somebody.

use std::time::Duration;

use crate::load::http::{Connection, Failure};
use crate::support::{Address, Panzer, eventually, free_port, require};

const SOON: Duration = Duration::from_secs(10);

/// One worker, so that what connects is accepted by it, until it is replaced.
fn start() -> Option<(Panzer, Address)> {
    if !require("python3") {
        return None;
    }
    let port = free_port();
    let arguments = ["-w", "1", "--bake", "50ms", "-l", &format!("127.0.0.1:{port}"), "./my_app"];
    let panzer = Panzer::builder().link("examples/my_app").args(arguments).start();
    panzer.wait_serving();
    Some((panzer, port.into()))
}

#[test]
pub fn a_request_under_way_is_answered_by_the_worker_that_took_it() {
    let Some((panzer, address)) = start() else { return };
    let mut connection = Connection::open(&address).unwrap();
    // Answered once, it has been accepted.
    connection.get("/", false).unwrap();
    connection.send("/slow?seconds=5", false).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    let answer = connection.receive().unwrap();
    assert!(answer.text().contains("of generation 1,"), "{}", answer.text());
    assert!(answer.closes(), "the next request goes to somebody else");
    panzer.wait_drained(1);
}

#[test]
pub fn a_connection_kept_alive_is_told_with_its_next_answer() {
    let Some((panzer, address)) = start() else { return };
    let mut connection = Connection::open(&address).unwrap();
    assert!(!connection.get("/", false).unwrap().closes());
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    eventually(SOON, "the connection is told", || {
        let answer = connection.get("/", false).unwrap();
        assert!(answer.text().contains("of generation 1,"), "{}", answer.text());
        answer.closes()
    });
    panzer.wait_drained(1);
}

#[test]
pub fn a_connection_that_was_accepted_before_it_asked_is_answered() {
    let Some((panzer, address)) = start() else { return };
    let mut asked = Connection::open(&address).unwrap();
    asked.get("/", true).unwrap();
    // The answer above came by the same accept loop, but this one may still wait for it: it is answered either way.
    let mut silent = Connection::open(&address).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    assert_eq!(silent.get("/", false).unwrap().status, 200);
    panzer.wait_drained(1);
}

#[test]
pub fn a_silent_connection_does_not_hold_the_end_up() {
    let Some((panzer, address)) = start() else { return };
    let mut connection = Connection::open(&address).unwrap();
    connection.get("/", false).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    // After the 5 s that the example gives it, and by itself: an escalation would be a warning.
    panzer.wait_drained(1);
    let failure = connection.get("/", false).unwrap_err();
    assert!(matches!(failure, Failure::Reset(_) | Failure::Unanswered { received: 0, .. }), "{failure}");
}
