//! The load of these tests: clients that open a connection for each request, and clients that keep theirs, at once.

use std::time::Duration;

use super::START;
use crate::load::{Load, Mode, Report, Running};
use crate::support::eventually;

/// So many of each kind.
pub const CLIENTS: usize = 4;

/// Between two requests of a client: leaves a part of the machine to the servers that are being started.
const PAUSE: Duration = Duration::from_millis(3);

/// Both kinds under way.
pub struct BothKinds {
    new_connection: Running,
    keep_alive: Running,
}

/// What both have seen.
#[derive(Default)]
pub struct Seen {
    pub new_connection: Report,
    pub keep_alive: Report,
}

impl BothKinds {
    /// Both have got answers when this returns.
    pub fn start(port: u16) -> BothKinds {
        BothKinds::of(CLIENTS, port)
    }

    /// The same with so many clients of each kind.
    pub fn of(clients: usize, port: u16) -> BothKinds {
        let clients = |mode| Load::new(port, mode, clients).pause(PAUSE).start();
        let both = BothKinds { new_connection: clients(Mode::NewConnection), keep_alive: clients(Mode::KeepAlive) };
        eventually(START, "clients of both kinds are answered", || both.answered() >= 10);
        both
    }

    /// How many requests have been answered so far, of the kind that has got fewer answers.
    pub fn answered(&self) -> u64 {
        self.new_connection.answered().min(self.keep_alive.answered())
    }

    pub fn stop(self) -> Seen {
        Seen { new_connection: self.new_connection.stop(), keep_alive: self.keep_alive.stop() }
    }
}

impl Seen {
    pub fn dropped(&self) -> u64 {
        self.new_connection.dropped() + self.keep_alive.dropped()
    }

    pub fn refused(&self) -> u64 {
        self.new_connection.refused + self.keep_alive.refused
    }

    pub fn add(&mut self, other: Seen) {
        self.new_connection.add(other.new_connection);
        self.keep_alive.add(other.keep_alive);
    }

    pub fn print(&self, title: &str) {
        eprintln!("{title}\n  new connections: {}\n  kept alive:      {}", self.new_connection, self.keep_alive);
    }
}
