//! `panzerctl status` on a terminal and off it, once and again and again; `panzerctl list`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::control::{panzerctl, run, serving_sleeper, sleeper, text};
use crate::faults::{SOON, kill_9, wait_gone};
use crate::support::{Panzer, eventually, free_port, require};

const COLUMNS: usize = 80;
const ROWS: usize = 24;

/// A terminal of 80 columns and 24 rows, and a panzerctl on it.
pub(crate) struct Terminal {
    pub(crate) child: Child,
    pub(crate) keyboard: File,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub(crate) fn start(mut command: Command) -> Terminal {
        let size = Winsize { ws_col: COLUMNS as u16, ws_row: ROWS as u16, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).unwrap();
        let side = || Stdio::from(pair.slave.try_clone().unwrap());
        command.env("TERM", "xterm").stdin(side()).stdout(side());
        let child = command.spawn().unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, filled) = (File::from(pair.master.try_clone().unwrap()), Arc::clone(&written));
        // The terminal's other side is kept open, so the reader ends with the process of the test.
        std::thread::spawn(move || {
            let _slave = pair.slave;
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut chunk) {
                filled.lock().unwrap().extend_from_slice(&chunk[..length]);
            }
        });
        Terminal { child, keyboard: File::from(pair.master), written }
    }

    pub(crate) fn text(&self) -> String {
        text(&self.written.lock().unwrap())
    }

    /// What was painted after each return to the corner, the last frame perhaps not whole.
    fn frames(&self) -> Vec<String> {
        self.text().split("\x1b[H").skip(1).map(str::to_owned).collect()
    }

    #[track_caller]
    fn wait_for_frame(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        eventually(SOON, what, || self.frames().iter().any(|frame| is_it(frame)));
    }

    fn shows_keys(&self) -> bool {
        tcgetattr(&self.keyboard).unwrap().local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended already, unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Without what colours it or clears behind it.
fn plain(frame: &str) -> String {
    let mut out = String::new();
    let mut rest = frame;
    while let Some((before, sequence)) = rest.split_once("\x1b[") {
        out.push_str(before);
        let end = sequence.find(|letter: char| letter.is_ascii_alphabetic()).map_or(sequence.len(), |at| at + 1);
        rest = &sequence[end..];
    }
    out + rest
}

#[track_caller]
fn assert_fits(text: &str) {
    for line in plain(text).lines() {
        assert!(line.trim_end_matches('\r').chars().count() <= COLUMNS, "{line}");
    }
}

fn many(workers: u32) -> Panzer {
    let panzer = Panzer::builder().args(["-w", &workers.to_string(), "--bake", "100ms", "--", "sleep", "1000"]).start();
    panzer.wait_serving();
    panzer
}

#[test]
fn colour_is_for_terminals_only_and_not_for_those_who_do_not_want_it() {
    let panzer = serving_sleeper();
    assert!(!text(&run(&panzer, &["status"]).stdout).contains('\x1b'));
    let on_terminal = |variable: Option<(&str, &str)>| {
        let mut command = panzerctl(&panzer, &["status"]);
        command.env_remove("NO_COLOR").envs(variable);
        let mut terminal = Terminal::start(command);
        assert!(terminal.child.wait().unwrap().success());
        eventually(SOON, "all is written", || plain(&terminal.text()).matches(" ready ").count() >= 2);
        terminal.text()
    };
    let coloured = on_terminal(None);
    assert!(coloured.contains("\x1b[32mready"), "{coloured}");
    assert_fits(&coloured);
    assert!(!on_terminal(Some(("NO_COLOR", "1"))).contains('\x1b'));
}

#[test]
fn a_worker_is_told_with_what_it_uses() {
    let panzer = serving_sleeper();
    let status: serde_json::Value = serde_json::from_slice(&run(&panzer, &["status", "--json"]).stdout).unwrap();
    let worker = &status["generations"][0]["workers"][0];
    assert!(worker["pss_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{worker}");
    assert!(worker["cpu_percent"].as_f64().is_some_and(|share| share < 50.0), "{worker}");
    let table = text(&run(&panzer, &["status"]).stdout);
    let row = table.lines().find(|line| line.contains(" ready ") && line.starts_with("  1 ")).unwrap();
    let fields: Vec<&str> = row.split_whitespace().collect();
    assert!(fields.len() == 8 && fields[6] != "-" && fields[7].ends_with(['K', 'M']), "{table}");
}

#[test]
fn a_watch_repaints_in_place_and_gives_the_terminal_back() {
    let panzer = many(60);
    for ended_by in ["q", "a signal"] {
        let mut terminal = Terminal::start(panzerctl(&panzer, &["status", "--watch", "--interval", "200ms"]));
        eventually(SOON, "it has painted several times", || terminal.frames().len() >= 4);
        assert!(!terminal.shows_keys());
        let frames = terminal.frames();
        assert!(frames[1].contains("\x1b[32mready"), "{:?}", frames[1]);
        for frame in &frames[..frames.len() - 1] {
            assert_fits(frame);
            let shown = plain(frame);
            assert!(shown.trim_end().lines().count() <= ROWS, "{shown}");
            assert!(shown.contains("sleep: ready, main ") && shown.contains(" more"), "{shown}");
            assert!(!frame.contains("\x1b[2J"), "cleared before it is painted, it flickers: {frame:?}");
        }
        match ended_by {
            "q" => terminal.keyboard.write_all(b"q").unwrap(),
            _ => kill(Pid::from_raw(terminal.child.id().cast_signed()), Signal::SIGINT).unwrap(),
        }
        assert!(terminal.child.wait().unwrap().success());
        let left = "\x1b[?25h\x1b[?1049l";
        eventually(SOON, "the screen of before is back", || terminal.text().ends_with(left));
        assert!(terminal.shows_keys());
    }
}

#[test]
fn a_watch_shows_that_main_does_not_answer_and_goes_on_when_it_does() {
    let panzer = serving_sleeper();
    let mut terminal = Terminal::start(panzerctl(&panzer, &["--timeout", "60s", "status", "--watch"]));
    terminal.wait_for_frame("it is shown", |frame| frame.contains("GEN WORKER"));
    kill(Pid::from_raw(panzer.pid()), Signal::SIGSTOP).unwrap();
    terminal.wait_for_frame("no answer is told", |frame| frame.contains("no answer for "));
    kill(Pid::from_raw(panzer.pid()), Signal::SIGCONT).unwrap();
    eventually(SOON, "it goes on", || terminal.frames().last().is_some_and(|frame| !frame.contains("no answer for ")));
    assert_eq!(panzer.stop().code(), Some(0));
    assert_eq!(terminal.child.wait().unwrap().code(), Some(3));
    let mut told = String::new();
    terminal.child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(told, "panzerctl: sleep has ended\n");
}

#[test]
fn a_panzer_that_comes_back_to_its_socket_is_watched_on() {
    let first = serving_sleeper();
    let arguments = ["--name", "sleep", "--timeout", "60s", "status", "--watch", "--interval", "100ms", "--json"];
    let mut child = panzerctl(&first, &arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["pid"], first.pid());
    kill_9(first.pid());
    // Until then it has its name.
    wait_gone(&[first.pid()]);
    let second = sleeper().env("RUNTIME_DIRECTORY", first.path("run")).start();
    eventually(SOON, "the second is watched", || next()["pid"] == second.pid());
    second.stop();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    first.wait_exit();
}

#[test]
fn off_a_terminal_tables_follow_each_other() {
    let panzer = serving_sleeper();
    let mut child = panzerctl(&panzer, &["status", "--watch", "--interval", "100ms"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first: Vec<String> = lines.by_ref().take_while(|line| !line.contains(" 1      1 ")).collect();
    assert!(first[0].starts_with("sleep: ready") && first.iter().all(|line| !line.contains('\x1b')), "{first:?}");
    assert_eq!(lines.next().as_deref(), Some(""));
    assert!(lines.next().unwrap().starts_with("sleep: ready"));
    drop(lines);
    // Nobody reads any more.
    assert!(child.wait().unwrap().success());
    let refused = run(&panzer, &["status", "--watch", "--interval", "1ms"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn the_queues_of_all_workers_are_told_together() {
    let (port, plain_port) = (free_port(), free_port());
    let listen = format!("127.0.0.1:{port},per-worker,backlog=16");
    let plain_listen = format!("127.0.0.1:{plain_port},backlog=8");
    // It accepts nothing.
    let panzer = Panzer::start([
        "-w",
        "3",
        "--bake",
        "100ms",
        "--ready",
        "alive",
        "-l",
        &listen,
        "-l",
        &plain_listen,
        "--",
        "sleep",
        "1000",
    ]);
    panzer.wait_serving();
    let clients: Vec<TcpStream> = (0..9).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let _other = TcpStream::connect(("127.0.0.1", plain_port)).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&run(&panzer, &["status", "--json"]).stdout).unwrap();
    let queue = &status["listeners"][0];
    assert_eq!((&queue["queued"], &queue["limit"], &queue["queues"]), (&9.into(), &48.into(), &3.into()), "{queue}");
    assert!((3..=9).contains(&queue["fullest"].as_u64().unwrap()), "{queue}");
    let queue = &status["listeners"][1];
    assert_eq!((&queue["queued"], &queue["limit"], &queue["queues"]), (&1.into(), &8.into(), &1.into()), "{queue}");
    let table = text(&run(&panzer, &["status"]).stdout);
    assert_fits(&table);
    assert!(table.contains("QUEUES   FULLEST") && table.contains(&format!("127.0.0.1:{port} ")), "{table}");
    let metrics = text(&run(&panzer, &["metrics"]).stdout);
    for line in [
        format!("panzer_accept_queue_depth{{listener=\"127.0.0.1:{port}\"}} 9\n"),
        format!("panzer_accept_queue_limit{{listener=\"127.0.0.1:{port}\"}} 48\n"),
        format!("panzer_accept_queue_fullest{{listener=\"127.0.0.1:{port}\"}} "),
    ] {
        assert!(metrics.contains(&line), "{metrics}");
    }
    drop(clients);
}

#[test]
fn the_queue_of_a_unix_socket_is_told() {
    let builder = Panzer::builder().args(["-w", "1", "--bake", "100ms", "--ready", "alive"]);
    let path = builder.folder().join("app.sock");
    let (listen, datagrams) = (format!("unix:{},backlog=8", path.display()), format!("udp:127.0.0.1:{}", free_port()));
    // It accepts nothing.
    let panzer = builder.args(["-l", &listen, "-l", &datagrams, "--", "sleep", "1000"]).start();
    panzer.wait_serving();
    let _clients = [UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap()];
    let status: serde_json::Value = serde_json::from_slice(&run(&panzer, &["status", "--json"]).stdout).unwrap();
    let (queue, datagrams) = (&status["listeners"][0], &status["listeners"][1]);
    assert_eq!((&queue["queued"], &queue["limit"]), (&2.into(), &8.into()), "{queue}");
    assert!(datagrams["queued"].is_null(), "{datagrams}");
    let depth = format!("panzer_accept_queue_depth{{listener=\"unix:{}\"}} 2\n", path.display());
    let metrics = text(&run(&panzer, &["metrics"]).stdout);
    assert!(metrics.contains(&depth), "{metrics}");
}

#[test]
fn a_list_tells_how_each_one_is() {
    let panzer = serving_sleeper();
    let listed = text(&run(&panzer, &["list"]).stdout);
    let fields: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(fields[0], ["NAME", "PID", "STATE", "WORKERS", "GEN", "UPTIME", "SOCKET"]);
    assert_eq!(fields[1][..5], ["sleep", &panzer.pid().to_string(), "ready", "2/2", "1"], "{listed}");
    assert_eq!(fields[1][6], panzer.path("run/sleep.sock").to_str().unwrap());
}

#[test]
fn top_sorts_and_reloads_by_keys_and_restores_the_terminal() {
    let panzer = serving_sleeper();
    let mut terminal = Terminal::start(panzerctl(&panzer, &["top", "--interval", "200ms"]));
    terminal.wait_for_frame("the list and its keys", |frame| {
        let frame = plain(frame);
        frame.contains("2 processes") && frame.contains("RESPAWNS") && frame.contains("r reload")
    });
    assert!(!terminal.shows_keys());
    (&terminal.keyboard).write_all(b"ml").unwrap();
    terminal.wait_for_frame("where logs are", |frame| plain(frame).contains("panzer keeps no logs"));
    (&terminal.keyboard).write_all(b"r").unwrap();
    terminal.wait_for_frame("the outcome", |frame| plain(frame).contains("reload: generation 2 serves after"));
    let fits = |frame: &String| plain(frame).lines().all(|line| line.trim_end().chars().count() <= COLUMNS);
    assert!(terminal.frames().iter().all(fits));
    (&terminal.keyboard).write_all(b"q").unwrap();
    assert!(terminal.child.wait().unwrap().success());
    assert!(terminal.shows_keys());
    panzer.stop();
}

#[test]
fn requests_per_second_are_shown_where_workers_report_them() {
    let app = "#!/usr/bin/env python3
import os, signal, socket
to = '\\0' + os.environ['NOTIFY_SOCKET'][1:]
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'X_PANZER_REQUESTS=1000', to)
signal.pause()
";
    if !require("python3") {
        return;
    }
    let options = ["-w", "1", "--bake", "50ms", "--share-ports", "off", "--ready", "alive", "./app"];
    let panzer = Panzer::builder().executable("app", app).args(options).start();
    panzer.wait_serving();
    let top = || text(&run(&panzer, &["top"]).stdout);
    eventually(SOON, "the requests are reported", || top().contains("REQ/S"));
    assert!(top().contains(" requests/s\n"), "{}", top());
    let json = text(&run(&panzer, &["status", "--json"]).stdout);
    assert!(json.contains("\"requests\":1000") && json.contains("\"requests_per_second\":"), "{json}");
    panzer.stop();
}

#[test]
fn top_is_printed_once_if_there_is_no_terminal() {
    let panzer = serving_sleeper();
    let output = run(&panzer, &["top"]);
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("2 processes, CPU ") && !said.contains("r reload"), "{said}");
    assert_eq!(said.lines().filter(|line| line.contains(" ready ")).count(), 2, "{said}");
    panzer.stop();
}
