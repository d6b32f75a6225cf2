//! How evenly requests reach the workers, and what that means to those who wait, by how the workers share a port.
//!
//! A queue of its own for each worker (`per-worker`) is filled by a hash of the client's address, whoever is busy;
//! from one queue whoever is free takes the next.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Measured;
use super::crowd::{Answers, ask};
use super::page_server::{question, write_page};
use super::panzer::Panzer;
use super::program::{PAGE_SERVER, Program, own_executable};
use super::stamps::Stamps;
use super::table::{Table, median, percentile};
use super::under_load::free_port;

const WORKERS: usize = 8;
const CONNECTIONS: usize = 200;
const PERIOD: Duration = Duration::from_secs(2);
/// Of each kind.
const PERIODS: usize = 5;

/// What panzer says of an option of `--listen` that it does not know.
const NOT_KNOWN: &str = "unknown option 'per-worker'";

/// Eight workers behind one port, and what each period has shown of them.
struct Shared {
    what: &'static str,
    _panzer: Panzer,
    _stamps: Stamps,
    port: u16,
    by_worker: BTreeMap<u32, u64>,
    /// Of requests a worker, in per cent of their mean.
    variations: Vec<f64>,
    /// In nanoseconds.
    p99: Vec<u64>,
}

impl Shared {
    /// `listen` is what follows the port in `--listen`, where panzer binds it; else the program does.
    fn start(what: &'static str, page: &str, listen: Option<&str>) -> Measured<Shared> {
        let port = free_port()?;
        let mut options = vec!["--workers".to_owned(), WORKERS.to_string()];
        let mut command = vec![own_executable()?, PAGE_SERVER.to_owned(), page.to_owned()];
        match listen {
            Some(option) => options.extend(["--listen".to_owned(), format!("127.0.0.1:{port}{option}")]),
            None => command.push(port.to_string()),
        }
        let (stamps, stdout) = Stamps::pipe()?;
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let panzer = Panzer::start(&options, &command, stdout)?;
        panzer.wait_for("generation 1 serves")?;
        let (by_worker, variations, p99) = Default::default();
        Ok(Shared { what, _panzer: panzer, _stamps: stamps, port, by_worker, variations, p99 })
    }

    fn ask(&mut self) -> Measured<()> {
        let Answers { by_worker, mut latencies, .. } = ask(&question(self.port, 1), CONNECTIONS, PERIOD)?;
        self.variations.push(variation(&by_worker));
        self.p99.push(percentile(&mut latencies, 99));
        for (worker, count) in by_worker {
            *self.by_worker.entry(worker).or_default() += count;
        }
        Ok(())
    }

    fn tell(mut self, table: &mut Table) {
        let p99 = percentile(&mut self.p99, 50);
        table.plain(&format!("spread, {}: CV", self.what), &format!("{:.1} %", median(&self.variations)));
        table.plain("  p99", &format!("{:.3} ms", p99 as f64 / 1e6));
        let counts = || counts(&self.by_worker);
        let (least, most) = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
        table.note(&format!("from {least} to {most} requests a worker, {} together", counts().sum::<u64>()));
    }
}

/// Each kind in turns.
pub(crate) fn measure(_: &Program, table: &mut Table) -> Measured<()> {
    let directory = tempfile::tempdir()?;
    let page = directory.path().join("page");
    write_page(&page)?;
    let page = page.to_str().ok_or("a path that is not UTF-8")?;
    let mut kinds = vec![Shared::start("port shared", page, None)?, Shared::start("--listen", page, Some(""))?];
    let own_queues = match Shared::start("per-worker", page, Some(",per-worker")) {
        Err(why) if why.to_string().contains(NOT_KNOWN) => false,
        other => {
            kinds.push(other?);
            true
        }
    };
    for _ in 0..PERIODS {
        kinds.iter_mut().try_for_each(Shared::ask)?;
    }
    kinds.into_iter().for_each(|kind| kind.tell(table));
    if !own_queues {
        table.plain("spread, per-worker: CV", "not in this build");
    }
    table.note(&format!("{CONNECTIONS} connections at any time, a request each, over {WORKERS} workers;"));
    table.note(&format!(
        "medians of {PERIODS} periods of {} s, in turns; CV is the standard deviation",
        PERIOD.as_secs()
    ));
    table.note("of requests a worker as a share of their mean");
    Ok(())
}

/// A worker that was never reached is one with no request.
fn counts(by_worker: &BTreeMap<u32, u64>) -> impl Iterator<Item = u64> + '_ {
    by_worker.values().copied().chain(std::iter::repeat_n(0, WORKERS.saturating_sub(by_worker.len())))
}

fn variation(by_worker: &BTreeMap<u32, u64>) -> f64 {
    let counts: Vec<f64> = counts(by_worker).map(|count| count as f64).collect();
    let mean = counts.iter().sum::<f64>() / counts.len() as f64;
    let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64;
    variance.sqrt() * 100.0 / mean
}
