//! A load generator: clients in threads, each asking one request after the other, that keeps account of every one.
//!
//! It is used by more than one target, through `#[path]`.
#![allow(dead_code, unreachable_pub, reason = "each of the targets uses a part of it")]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[path = "http.rs"]
pub mod http;

use http::{Address, Connection, Failure};

/// A client asks no more than this, and for no longer, so that a load that nobody stops ends.
const MOST_REQUESTS: u64 = 2_000_000;
const LONGEST: Duration = Duration::from_secs(600);

/// So many failures are kept in full.
const MOST_FAILURES: usize = 20;

/// After a failure a client waits this long, so that a server that is gone is not asked a million times.
const AFTER_FAILURE: Duration = Duration::from_millis(1);

/// How a client uses connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One for each request.
    NewConnection,
    /// The same one until the server says that it closes it.
    KeepAlive,
}

/// What is to be asked for, where, and how.
#[derive(Debug, Clone)]
pub struct Load {
    pub address: Address,
    pub path: String,
    pub mode: Mode,
    pub clients: usize,
    /// What a client waits between an answer and its next request.
    pub pause: Duration,
}

impl Load {
    /// Requests for `/`, one right after the other.
    pub fn new(address: impl Into<Address>, mode: Mode, clients: usize) -> Load {
        Load { address: address.into(), path: "/".to_owned(), mode, clients, pause: Duration::ZERO }
    }

    pub fn pause(self, pause: Duration) -> Load {
        Load { pause, ..self }
    }

    pub fn path(self, path: &str) -> Load {
        Load { path: path.to_owned(), ..self }
    }

    /// Begins. Every client asks until the returned handle is stopped.
    pub fn start(self) -> Running {
        let shared = Arc::new(Shared::default());
        let client = |_| {
            let (load, shared) = (self.clone(), shared.clone());
            thread::spawn(move || Client::new(&load, &shared).run())
        };
        let clients = (0..self.clients).map(client).collect();
        Running { clients, shared }
    }
}

/// A load that is under way. Dropped without being stopped, it ends as well.
#[derive(Debug)]
pub struct Running {
    clients: Vec<JoinHandle<Report>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stopped: Mutex<bool>,
    stop: Condvar,
    answered: AtomicU64,
}

impl Shared {
    /// Waits for `pause`, or less where the load is stopped meanwhile. Returns whether it is.
    fn stopped_within(&self, pause: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if pause.is_zero() {
            return *stopped;
        }
        *self.stop.wait_timeout_while(stopped, pause, |stopped| !*stopped).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Running {
    /// How many requests have been answered so far: to wait until the load is really there.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Lets every client finish the request it is at, and adds up.
    pub fn stop(mut self) -> Report {
        self.tell();
        let mut total = Report::default();
        for client in self.clients.drain(..) {
            total.add(client.join().expect("a client does not panic"));
        }
        total
    }

    fn tell(&self) {
        *self.shared.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.stop.notify_all();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tell();
    }
}

/// What became of every request.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub requests: u64,
    pub answered: u64,
    /// No connection: nobody listened.
    pub refused: u64,
    /// The connection was reset.
    pub reset: u64,
    /// The connection was closed before the answer was whole, or the answer took longer than 5 s.
    pub unanswered: u64,
    /// A connection that had been answered on before ended with no byte of this answer. A server may close an idle
    /// connection at any time; still, nothing was asked again, and the request is lost.
    pub idle_closed: u64,
    /// Anything else: another status than 200, no HTTP, no port left to connect from.
    pub other: u64,
    /// The first failures, as seconds since the client began, and in words.
    pub failures: Vec<(f64, String)>,
    /// Of the answered requests, connecting included, in ascending order.
    latencies: Vec<Duration>,
}

impl Report {
    /// All requests that were not answered, for whatever reason.
    pub fn dropped(&self) -> u64 {
        self.requests - self.answered
    }

    /// The time that `percent` of the answers took at most.
    pub fn latency(&self, percent: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * percent / 100.0).round() as usize;
        self.latencies.get(at).copied().unwrap_or_default()
    }

    pub fn longest(&self) -> Duration {
        self.latency(100.0)
    }

    /// Adds what another load, or another client, has seen.
    pub fn add(&mut self, other: Report) {
        self.requests += other.requests;
        self.answered += other.answered;
        self.refused += other.refused;
        self.reset += other.reset;
        self.unanswered += other.unanswered;
        self.idle_closed += other.idle_closed;
        self.other += other.other;
        self.failures.extend(other.failures);
        self.failures.truncate(MOST_FAILURES);
        self.latencies.extend(other.latencies);
        // By rank is how they are looked at.
        self.latencies.sort_unstable();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests: {} answered, {} refused, {} reset, {} unanswered, {} closed while idle, {} other; \
             p50 {:.1?}, p99 {:.1?}, max {:.1?}",
            self.requests,
            self.answered,
            self.refused,
            self.reset,
            self.unanswered,
            self.idle_closed,
            self.other,
            self.latency(50.0),
            self.latency(99.0),
            self.longest(),
        )?;
        for (at, what) in &self.failures {
            write!(f, "\n    at {at:.3} s: {what}")?;
        }
        Ok(())
    }
}

struct Client<'a> {
    load: &'a Load,
    shared: &'a Shared,
    began: Instant,
    report: Report,
}

impl Client<'_> {
    fn new<'a>(load: &'a Load, shared: &'a Shared) -> Client<'a> {
        Client { load, shared, began: Instant::now(), report: Report::default() }
    }

    fn run(mut self) -> Report {
        let mut connection = None;
        let mut pause = Duration::ZERO;
        while !self.shared.stopped_within(pause)
            && self.report.requests < MOST_REQUESTS
            && self.began.elapsed() < LONGEST
        {
            let asked_before = connection.is_some();
            let asked_at = Instant::now();
            self.report.requests += 1;
            match ask(&mut connection, self.load) {
                Ok(()) => {
                    self.report.answered += 1;
                    self.report.latencies.push(asked_at.elapsed());
                    self.shared.answered.fetch_add(1, Ordering::Relaxed);
                    pause = self.load.pause;
                }
                Err(failure) => {
                    connection = None;
                    self.count(&failure, asked_before);
                    pause = AFTER_FAILURE.max(self.load.pause);
                }
            }
        }
        self.report.latencies.sort_unstable();
        self.report
    }

    fn count(&mut self, failure: &Lost, asked_before: bool) {
        let report = &mut self.report;
        let of_an_idle_one = asked_before && failure.received == 0;
        let counter = match &failure.why {
            Failure::Reset(_) | Failure::Unanswered { why: "closed by the server", .. } if of_an_idle_one => {
                &mut report.idle_closed
            }
            Failure::Refused(_) => &mut report.refused,
            Failure::Reset(_) => &mut report.reset,
            Failure::Unanswered { .. } => &mut report.unanswered,
            Failure::Other(_) => &mut report.other,
        };
        *counter += 1;
        if report.failures.len() < MOST_FAILURES {
            let connection = if asked_before { "on a connection used before, " } else { "" };
            report.failures.push((self.began.elapsed().as_secs_f64(), format!("{connection}{}", failure.why)));
        }
    }
}

/// A request that was not answered, and how much of an answer had come.
struct Lost {
    why: Failure,
    received: usize,
}

/// Asks once. Leaves a connection for the next time where the mode and the server want that.
fn ask(connection: &mut Option<Connection>, load: &Load) -> Result<(), Lost> {
    let mut open = match connection.take() {
        Some(open) => open,
        None => Connection::open(&load.address).map_err(|why| Lost { why, received: 0 })?,
    };
    let close = load.mode == Mode::NewConnection;
    let response = open.get(&load.path, close).map_err(|why| Lost { why, received: open.received() })?;
    if response.status != 200 {
        let why = Failure::Other(format!("status {}: {}", response.status, response.text()));
        return Err(Lost { why, received: open.received() });
    }
    if !close && !response.closes() {
        *connection = Some(open);
    }
    Ok(())
}
