//! What sharing ports costs a worker: the filter that stands before each of its system calls.
//!
//! Three workers are asked in turns: one with the filter and two without. The second without is the measure of what
//! the machine adds by itself: where those two differ as much, the difference says nothing about the filter.

use std::fs;
use std::time::Duration;

use super::Measured;
use super::crowd::{ask, wait_for_listener};
use super::page_server::write_page;
use super::panzer::Panzer;
use super::program::{PAGE_SERVER, Program, own_executable};
use super::stamps::Stamps;
use super::table::{Table, median};
use super::under_load::free_port;

/// Enough for a request to wait whenever the worker has answered one.
const CONNECTIONS: usize = 16;
/// Of each connection, sent at once, so that the clients have less to do than the worker.
const REQUESTS: usize = 16;
const PERIOD: Duration = Duration::from_millis(250);
const ROUNDS: usize = 60;

/// In per cent, either way.
const GOAL: f64 = 2.0;

/// One worker that binds its own port, and what each period has shown of it.
struct Served {
    _panzer: Panzer,
    _stamps: Stamps,
    port: u16,
    /// Requests a second.
    rates: Vec<f64>,
    /// The worker's processor time for a request, in microseconds.
    times: Vec<f64>,
    /// For how much of the time it ran or waited for a processor, in per cent: what is left is the clients' fault.
    at_work: Vec<f64>,
}

impl Served {
    fn start(page: &str, share_ports: &str) -> Measured<Served> {
        let (stamps, stdout) = Stamps::pipe()?;
        let port = free_port()?;
        let command = [own_executable()?, PAGE_SERVER.to_owned(), page.to_owned(), port.to_string()];
        let panzer = Panzer::start(&["--workers", "1", "--share-ports", share_ports], &command, stdout)?;
        panzer.wait_for("generation 1 serves")?;
        // Without a listener of panzer's, that it serves says only that it lives.
        wait_for_listener(port)?;
        let (rates, times, at_work) = Default::default();
        Ok(Served { _panzer: panzer, _stamps: stamps, port, rates, times, at_work })
    }

    fn ask(&mut self) -> Measured<()> {
        let worker = *ask(self.port, 1, 1, Duration::ZERO)?.by_worker.keys().next().ok_or("no answer")?;
        let (ran_before, waited_before) = ran_and_waited(worker)?;
        let answers = ask(self.port, CONNECTIONS, REQUESTS, PERIOD)?;
        let (ran, waited) = ran_and_waited(worker)?;
        let (ran, waited) = (ran - ran_before, waited - waited_before);
        self.rates.push(answers.rate());
        self.times.push(ran * 1e6 / answers.requests());
        self.at_work.push((ran + waited) * 100.0 / answers.time.as_secs_f64());
        Ok(())
    }
}

/// With the filter and without, in pairs.
pub(crate) fn measure(_: &Program, table: &mut Table) -> Measured<()> {
    let directory = tempfile::tempdir()?;
    let page = directory.path().join("page");
    write_page(&page)?;
    let page = page.to_str().ok_or("a path that is not UTF-8")?;
    let mut with = Served::start(page, "on")?;
    let mut without = Served::start(page, "off")?;
    let mut again = Served::start(page, "off")?;
    for round in 0..ROUNDS {
        let mut turns = [&mut with, &mut without, &mut again];
        // Each of a pair comes as often before the other as after it.
        if round % 2 == 1 {
            turns.reverse();
        }
        turns.into_iter().try_for_each(Served::ask)?;
    }
    table.difference("cost of shared ports: requests/s", &with.rates, &without.rates, Some(GOAL));
    table.difference("  processor time, µs a request", &with.times, &without.times, None);
    table.difference("  both without: requests/s", &again.rates, &without.rates, None);
    table.difference("  both without: processor time", &again.times, &without.times, None);
    table.note(&format!("medians of {ROUNDS} pairs of {} ms, in turns; the worker ran, or waited", PERIOD.as_millis()));
    table.note(&format!("for a processor, {:.0} % of the time", median(&with.at_work)));
    Ok(())
}

/// Seconds for which the process, of one thread, has run so far, and waited for a processor.
fn ran_and_waited(pid: u32) -> Measured<(f64, f64)> {
    // "nanoseconds-run nanoseconds-waited slices"
    let schedstat = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let mut seconds = schedstat.split_ascii_whitespace().map_while(|word| word.parse::<u64>().ok());
    let mut next = || seconds.next().map(|nanoseconds| nanoseconds as f64 / 1e9).ok_or("schedstat is not as expected");
    Ok((next()?, next()?))
}
