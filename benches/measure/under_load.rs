//! What clients notice of reloads: connections dropped, and time to an answer.
//!
//! Eight clients in this process ask for one small answer on a new connection each, some 600 times a second together:
//! enough for every moment of a reload to be hit, and a small part of what two processors can do, so that the latency
//! is that of the way through the kernel and the workers, and not that of a queue for a processor. What a reload costs
//! in processor time (it starts a generation) is in it all the same. Periods with and without reloads take turns, each
//! has its own percentiles, and what is compared is the median over the periods.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::load::{Load, Mode, Report};
use super::panzer::Panzer;
use super::program::{Program, SERVER, own_executable};
use super::stamps::Stamps;
use super::table::{Table, percentile};
use super::{Measured, server};

const CLIENTS: usize = 8;
const PAUSE: Duration = Duration::from_millis(12);
const PERIOD: Duration = Duration::from_secs(4);
/// Of each kind.
const PERIODS: usize = 5;

/// What the periods of one kind have shown.
#[derive(Default)]
struct Seen {
    requests: u64,
    dropped: u64,
    failures: Vec<String>,
    median: Vec<u64>,
    p99: Vec<u64>,
    longest: u64,
}

impl Seen {
    fn add(&mut self, report: &Report) {
        self.requests += report.requests;
        self.dropped += report.dropped();
        self.failures.extend(report.failures.iter().map(|(at, what)| format!("at {at:.3} s: {what}")));
        self.median.push(nanoseconds(report.latency(50.0)));
        self.p99.push(nanoseconds(report.latency(99.0)));
        self.longest = self.longest.max(nanoseconds(report.longest()));
    }
}

/// Periods with reloads and without, in turns.
pub(crate) fn measure(_: &Program, table: &mut Table) -> Measured<()> {
    let port = free_port()?;
    // It says nothing there, but the pipe has to be open.
    let (_stamps, stdout) = Stamps::pipe()?;
    let options = ["--workers", "4", "--ready", "notify", "--listen", &format!("127.0.0.1:{port}")];
    let panzer = Panzer::start(&options, &[own_executable()?, SERVER.to_owned()], stdout)?;
    panzer.wait_for("generation 1 serves")?;

    let (mut quiet, mut reloading) = (Seen::default(), Seen::default());
    let mut generation = 1;
    for _ in 0..PERIODS {
        quiet.add(&under_load(port, || panzer.stay_silent(PERIOD))?);
        let reloads = || {
            let until = Instant::now() + PERIOD;
            while Instant::now() < until {
                generation += 1;
                panzer.reload()?;
                panzer.wait_for(&format!("generation {generation} serves"))?;
            }
            // Its messages would be taken for the next period's.
            panzer.wait_for(&format!("generation {} has ended", generation - 1))
        };
        reloading.add(&under_load(port, reloads)?);
    }
    tell(quiet, reloading, generation - 1, table);
    Ok(())
}

fn tell(mut quiet: Seen, mut reloading: Seen, reloads: u32, table: &mut Table) {
    table.count("load: dropped during reloads", reloading.dropped, 0);
    reloading.failures.iter().for_each(|failure| table.note(failure));
    table.count("load: dropped without reloads", quiet.dropped, 0);
    quiet.failures.iter().for_each(|failure| table.note(failure));
    table.plain_ratio("load: p50", percentile(&mut reloading.median, 50), percentile(&mut quiet.median, 50));
    table.ratio("load: p99", percentile(&mut reloading.p99, 50), percentile(&mut quiet.p99, 50), 1.2);
    table.plain_ratio("load: max", reloading.longest, quiet.longest);
    let (asked, before) = (reloading.requests, quiet.requests);
    table.note(&format!(
        "{asked} requests during {reloads} reloads of 4 workers that need {} ms to",
        server::START.as_millis()
    ));
    table.note(&format!("start, against {before} without; periods of {} s, in turns", PERIOD.as_secs()));
}

/// What clients see while `meanwhile` lasts.
fn under_load(port: u16, meanwhile: impl FnOnce() -> Measured<()>) -> Measured<Report> {
    let load = Load::new(port, Mode::NewConnection, CLIENTS).pause(PAUSE).start();
    let done = meanwhile();
    let report = load.stop();
    done.map(|()| report)
}

/// A port that nobody has now.
pub(crate) fn free_port() -> Measured<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
