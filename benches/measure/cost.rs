//! What sharing ports costs a worker: the filter that stands before each of its system calls.
//!
//! Of each server three workers are asked in turns: one with the filter and two without. The second without is the
//! measure of what the machine adds by itself: where those two differ as much, the difference says nothing about the
//! filter. Servers as people run them come first, where they are installed, and last the worst case that could be
//! thought of.

use std::fs;
use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use tempfile::TempDir;

use super::Measured;
use super::crowd::{Question, ask, length_of_answer};
use super::page_server::{self, write_page};
use super::panzer::Panzer;
use super::program::{PAGE_SERVER, Program, own_executable};
use super::real_servers::{self, Server};
use super::stamps::Stamps;
use super::table::{Table, median, spread_of_median};
use super::under_load::free_port;

const PERIOD: Duration = Duration::from_millis(250);
const ROUNDS: usize = 40;

/// In per cent, either way.
const GOAL: f64 = 2.0;

/// Enough for a request to wait whenever the worker has answered one.
const CONNECTIONS: usize = 16;
/// Of each connection to the page server, sent at once, so that the clients have less to do than the worker.
const REQUESTS: usize = 16;

/// One worker that binds its own port, and what each period has shown of it.
struct Served {
    panzer: Panzer,
    _stamps: Stamps,
    question: Question,
    connections: usize,
    /// Requests a second.
    rates: Vec<f64>,
    /// The worker's processor time for a request, in microseconds.
    times: Vec<f64>,
    /// For how much of the time it ran or waited for a processor, in per cent: what is left is the clients' fault.
    at_work: Vec<f64>,
}

impl Served {
    fn start(server: &Kind, port: u16, share_ports: &str) -> Measured<Served> {
        let (stamps, stdout) = Stamps::pipe()?;
        let options = ["--workers", "1", "--share-ports", share_ports];
        let panzer = Panzer::start(&options, &server.command(port)?, stdout)?;
        panzer.wait_for("generation 1 serves")?;
        // Without a listener of panzer's, that it serves says only that it lives.
        let question = server.question(port)?;
        let (rates, times, at_work) = Default::default();
        Ok(Served { panzer, _stamps: stamps, question, connections: server.connections(), rates, times, at_work })
    }

    fn ask(&mut self) -> Measured<()> {
        let worker = self.panzer.workers()?;
        let (ran_before, waited_before) = ran_and_waited(&worker)?;
        let answers = ask(&self.question, self.connections, PERIOD)?;
        let (ran, waited) = ran_and_waited(&worker)?;
        // A thread that has ended takes along what it had waited.
        let (ran, waited) = (ran - ran_before, (waited - waited_before).max(0.0));
        self.rates.push(answers.rate());
        self.times.push(ran * 1e6 / answers.requests());
        self.at_work.push((ran + waited) * 100.0 / answers.time.as_secs_f64());
        Ok(())
    }
}

/// What is run as worker.
enum Kind {
    Real(Server),
    /// The one of [`page_server`], with its page.
    Worst {
        _folder: TempDir,
        page: String,
    },
}

impl Kind {
    fn worst() -> Measured<Kind> {
        let folder = tempfile::tempdir()?;
        let page = folder.path().join("page");
        write_page(&page)?;
        let page = page.to_str().ok_or("a path that is not UTF-8")?.to_owned();
        Ok(Kind::Worst { _folder: folder, page })
    }

    fn name(&self) -> &str {
        match self {
            Kind::Real(server) => server.name,
            Kind::Worst { .. } => "worst case",
        }
    }

    fn command(&self, port: u16) -> Measured<Vec<String>> {
        match self {
            Kind::Real(server) => server.command(port),
            Kind::Worst { page, .. } => {
                Ok(vec![own_executable()?, PAGE_SERVER.to_owned(), page.clone(), port.to_string()])
            }
        }
    }

    fn question(&self, port: u16) -> Measured<Question> {
        match self {
            Kind::Real(server) => server.question(port),
            Kind::Worst { .. } => {
                let question = page_server::question(port, REQUESTS);
                length_of_answer(port, &question.request)?;
                Ok(question)
            }
        }
    }

    fn connections(&self) -> usize {
        match self {
            Kind::Real(server) => server.connections,
            Kind::Worst { .. } => CONNECTIONS,
        }
    }
}

/// With the filter and without, in pairs.
pub(crate) fn measure(_: &Program, table: &mut Table) -> Measured<()> {
    let (real, missing) = real_servers::installed()?;
    for server in real {
        pairs(&Kind::Real(server), table)?;
    }
    if !missing.is_empty() {
        table.note(&format!("not installed here: {}", missing.join(", ")));
    }
    pairs(&Kind::worst()?, table)?;
    table.note("the worst case computes nothing and makes 14 calls a request; above: requests/s of");
    table.note(&format!(
        "one worker with shared ports and without, medians of {ROUNDS} pairs of {} ms,",
        PERIOD.as_millis()
    ));
    table.note("in turns; below each: between what its median is, 19 times of 20");
    Ok(())
}

fn pairs(kind: &Kind, table: &mut Table) -> Measured<()> {
    let mut with = Served::start(kind, free_port()?, "on")?;
    let mut without = Served::start(kind, free_port()?, "off")?;
    let mut again = Served::start(kind, free_port()?, "off")?;
    for round in 0..ROUNDS {
        let mut turns = [&mut with, &mut without, &mut again];
        // Each of a pair comes as often before the other as after it.
        if round % 2 == 1 {
            turns.reverse();
        }
        turns.into_iter().try_for_each(Served::ask)?;
    }
    table.difference(&format!("cost: {}", kind.name()), &with.rates, &without.rates, Some(GOAL));
    table.note(&format!(
        "{}; both without {}; CPU time {}",
        spread_of_median(&with.rates, &without.rates),
        spread_of_median(&again.rates, &without.rates),
        spread_of_median(&with.times, &without.times)
    ));
    table.note(&format!(
        "{:.1} µs a request; at work, or waiting for a processor, {:.0} % of the time",
        median(&without.times),
        median(&with.at_work)
    ));
    Ok(())
}

/// Seconds for which these processes have run so far, and waited for a processor.
fn ran_and_waited(pids: &[Pid]) -> Measured<(f64, f64)> {
    let (mut ran, mut waited) = (0.0, 0.0);
    for &pid in pids {
        // Of all its threads, those that have ended among them.
        let time = Duration::from(clock_getcpuclockid(pid)?.now()?);
        ran += time.as_secs_f64();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // One that ends meanwhile no longer waits.
            let schedstat = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            // "nanoseconds-run nanoseconds-waited slices"
            let nanoseconds = schedstat.split_ascii_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
            waited += nanoseconds.unwrap_or(0) as f64 / 1e9;
        }
    }
    Ok((ran, waited))
}
