//! What loading once saves a Rack application of some size, in Ruby: its workers by `--preload`, and without, beside puma's
//! and unicorn's own ways to load it before they fork.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use nix::unistd::Pid;

use super::molds::{CLIENTS, Started, ask, held_by};
use super::panzer::{Panzer, descendants};
use super::program::Program;
use super::stamps::Stamps;
use super::table::Table;
use super::under_load::free_port;
use super::{LIMIT, Measured};

const WORKERS: usize = 8;

pub(crate) fn measure(_program: &Program, table: &mut Table) -> Measured<()> {
    let loads =
        Command::new("ruby").args(["-e", "require 'puma'; require 'sinatra/base'"]).stderr(Stdio::null()).status();
    if !loads.is_ok_and(|status| status.success()) {
        table.note("ruby, puma or sinatra is not installed");
        return Ok(());
    }
    let one = server("puma", &["-q", "-t", "1:5"], 0)?.map(|(pss, _)| pss).ok_or("puma is not installed")?;
    // As the client sets them if the program is started by hand.
    let less_free = [
        "--env",
        "RUBY_GC_HEAP_FREE_SLOTS_MIN_RATIO=0.05",
        "--env",
        "RUBY_GC_HEAP_FREE_SLOTS_GOAL_RATIO=0.08",
        "--preload",
    ];
    // Once, when a worker has served 1,000.
    let refork = [&less_free[..], &["--refork", "1000,366d", "--healthy-after", "1s"]].concat();
    let rows = [
        ("8 workers of a Rack application, --refork", &refork[..]),
        ("  without --refork", &less_free),
        ("  with Ruby's own settings", &["--preload"]),
        ("  without --preload", &[]),
    ];
    for (name, options) in rows {
        show(table, name, Some(by_panzer(options)?), one);
    }
    let puma = ["-q", "-t", "1:5", "-w", "8", "--preload"];
    show(table, "  under puma --preload", server("puma", &puma, WORKERS)?, one);
    let configuration = tempfile::NamedTempFile::new()?;
    std::fs::write(configuration.path(), "worker_processes 8\npreload_app true\n")?;
    let file = configuration.path().to_str().ok_or("a path that is not UTF-8")?;
    show(table, "  under unicorn's preload_app", server("unicorn", &["-E", "deployment", "-c", file], WORKERS)?, one);
    table.note("memory (PSS) of the whole tree after 10,000 requests, against one process of puma after as many");
    Ok(())
}

fn show(table: &mut Table, name: &str, held: Option<(u64, u64)>, one: u64) {
    match held {
        Some((after, before)) => {
            table.memory(name, after, one, None);
            table.memory("    before the first request", before, one, None);
        }
        None => table.note(&format!("{}: it is not installed, and left out", name.trim())),
    }
}

/// PSS after the requests, and before.
fn by_panzer(more: &[&str]) -> Measured<(u64, u64)> {
    let port = free_port()?;
    let (mut stamps, stdout) = Stamps::pipe()?;
    let (listen, path) = (format!("127.0.0.1:{port}"), format!("RUBYLIB={CLIENTS}/ruby/lib"));
    let mut options = vec!["--workers", "8", "--listen", &listen, "--env", &path];
    options.extend(more);
    let examples = format!("{CLIENTS}/ruby/examples");
    let command = ["ruby".to_owned(), format!("{examples}/rack.rb"), format!("{examples}/config.ru")];
    let panzer = Panzer::start(&options, &command, stdout)?;
    stamps.next()?;
    // Eight processes that load on a busy machine.
    panzer.wait_for("serves").or_else(|_| panzer.wait_for("serves"))?;
    asked(panzer.main(), port)
}

/// The same of a server with an address of its own. None if it is not installed.
fn server(name: &str, options: &[&str], workers: usize) -> Measured<Option<(u64, u64)>> {
    if !Command::new(name)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|it| it.success())
    {
        return Ok(None);
    }
    let port = free_port()?;
    let address = if name == "puma" { format!("tcp://127.0.0.1:{port}") } else { format!("127.0.0.1:{port}") };
    let flag = if name == "puma" { "-b" } else { "-l" };
    let mut command = Command::new(name);
    command.args(options).args([flag, &address, "config.ru"]).current_dir(format!("{CLIENTS}/ruby/examples"));
    command.env("RACK_ENV", "production").stderr(Stdio::null());
    let (mut stamps, stdout) = Stamps::pipe()?;
    let started = Started::start(command, stdout)?;
    stamps.next()?;
    let until = Instant::now() + 2 * LIMIT;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() || descendants(started.pid())?.len() < workers {
        if Instant::now() > until {
            return Err(format!("{name} does not serve").into());
        }
        pause(Duration::from_millis(50))?;
    }
    asked(started.pid(), port).map(Some)
}

fn asked(pid: Pid, port: u16) -> Measured<(u64, u64)> {
    // The last worker may still be on its way.
    pause(Duration::from_secs(2))?;
    let before = held_by(pid)?;
    ask(port);
    Ok((held_by(pid)?, before))
}

fn pause(time: Duration) -> Measured<()> {
    poll(&mut [], PollTimeout::try_from(time)?)?;
    Ok(())
}
