//! A thousand servers: how long it takes until all serve that panzer looks at, against those that send READY=1; how long an
//! operator waits for a status meanwhile; and how often panzer wakes afterwards.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};

use super::panzer::Panzer;
use super::program::{Program, SERVER, own_executable};
use super::stamps::Stamps;
use super::table::{Table, percentile};
use super::under_load::free_port;
use super::wake_ups::switches;
use super::{LIMIT, Measured, SETTLED};

const ROUNDS: usize = 3;
const WORKERS: &str = "1000";
const IDLE: Duration = Duration::from_secs(5);
/// Between two questions for the status.
const PAUSE: Duration = Duration::from_millis(20);

/// What the starts of one kind have shown, in nanoseconds.
#[derive(Default)]
struct Seen {
    served: Vec<u64>,
    longest_status: u64,
    woken: u64,
}

/// Both kinds in turns.
pub(crate) fn measure(_: &Program, table: &mut Table) -> Measured<()> {
    let (mut looked_at, mut told) = (Seen::default(), Seen::default());
    for _ in 0..ROUNDS {
        start("auto", &mut looked_at)?;
        start("notify", &mut told)?;
    }
    let (ours, against) = (percentile(&mut looked_at.served, 50), percentile(&mut told.served, 50));
    table.ratio("1000 servers that are looked at", ours, against, 1.5);
    table.note(&format!("until all serve, against READY=1; median of {ROUNDS}, in turns"));
    table.plain_ratio("longest wait for a status", looked_at.longest_status, told.longest_status);
    table.note("while they start; the goal is 100 ms");
    table.count("wake-ups in 5 s afterwards", looked_at.woken, 0);
    Ok(())
}

fn start(ready: &str, seen: &mut Seen) -> Measured<()> {
    let (mut stamps, stdout) = Stamps::pipe()?;
    let address = format!("127.0.0.1:{}", free_port()?);
    let options = ["--workers", WORKERS, "--listen", &address, "--ready", ready, "--stop", "KILL"];
    let begun = Instant::now();
    let panzer = Panzer::start(&options, &[own_executable()?, SERVER.to_owned()], stdout)?;
    stamps.next()?;
    panzer.wait_for("started as pid")?;
    let mut longest = Duration::ZERO;
    let mut control = BufReader::new(UnixStream::connect(panzer.control_socket()?)?);
    loop {
        let asked = Instant::now();
        let serves = all_serve(&mut control)?;
        longest = longest.max(asked.elapsed());
        if serves {
            break;
        }
        if begun.elapsed() > LIMIT * 3 {
            return Err(format!("{WORKERS} servers do not serve").into());
        }
        poll(&mut [], PollTimeout::try_from(PAUSE)?)?;
    }
    seen.served.push(u64::try_from(begun.elapsed().as_nanos())?);
    seen.longest_status = seen.longest_status.max(u64::try_from(longest.as_nanos())?);
    drop(control);
    panzer.wait_for("serves")?;
    panzer.stay_silent(SETTLED)?;
    let before = switches(&panzer.processes()?)?;
    panzer.stay_silent(IDLE)?;
    seen.woken += switches(&panzer.processes()?)? - before;
    Ok(())
}

fn all_serve(control: &mut BufReader<UnixStream>) -> Measured<bool> {
    control.get_mut().write_all(b"{\"version\":1,\"command\":\"status\"}\n")?;
    let mut answer = String::new();
    control.read_line(&mut answer)?;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let ready = answer.pointer("/status/ready").and_then(serde_json::Value::as_bool);
    Ok(ready.ok_or_else(|| format!("no status: {answer}"))?)
}
