//! What workers write: whole lines in a file, whoever dies, and however slow the disk is. 6, 23, 26, 27, 76.

mod hindered;
mod places;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::control::{run, text};
use crate::faults::{SOON, kill_9};
use crate::support::{Builder, Panzer, descendants, eventually, eventually_some};

/// A line that belongs to nobody else: each worker counts its own.
const COUNTING: &str = "#!/usr/bin/env python3
import os, time
worker, generation = os.environ['PANZER_WORKER_ID'], os.environ['PANZER_GENERATION']
for number in range(int(os.environ['LINES'])):
    line = f'{worker} {number} {\"x\" * (number % 200)}\\n'.encode()
    cut = number % len(line)
    os.write(1, line[:cut])
    os.write(1, line[cut:])
    if 'PAUSE' in os.environ and number % 50 == 0:
        time.sleep(float(os.environ['PAUSE']))
open(f'done.{worker}.{generation}', 'w')
while True:
    time.sleep(1000)
";

pub(crate) fn logging(script: &str) -> Builder {
    let builder = Panzer::builder().executable("app", script).args(["--share-ports", "off", "--ready", "alive"]);
    builder.args(["--bake", "0s", "--name", "app", "./app"])
}

fn counting(workers: u32, lines: u32) -> Builder {
    logging(COUNTING).args(["-w", &workers.to_string()]).env("LINES", lines.to_string())
}

fn wait_done(panzer: &Panzer, workers: u32) {
    for worker in 0..workers {
        let path = panzer.path(&format!("done.{worker}.1"));
        eventually(Duration::from_secs(120), "a worker has written everything", || path.exists());
    }
}

fn read(path: impl AsRef<Path>) -> String {
    String::from_utf8(fs::read(path).unwrap()).unwrap()
}

/// The pid of the logger.
pub(crate) fn logger(panzer: &Panzer) -> i32 {
    eventually_some(SOON, "there is a logger", || {
        let found = descendants(panzer.pid()).into_iter().find(|one| one.describe().contains("panzer: logger"));
        found.map(|process| process.pid)
    })
}

/// Fails unless all lines are there, once and in order for each worker, and nothing else is.
#[track_caller]
fn assert_complete(text: &str, workers: u32, lines: u32) {
    let mut next = vec![0; workers as usize];
    assert!(text.is_empty() || text.ends_with('\n'));
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [worker, number, rest] = fields[..] else { panic!("a broken line: {line}") };
        let (worker, number): (usize, u32) = (worker.parse().unwrap(), number.parse().unwrap());
        assert_eq!(rest.len(), number as usize % 200, "{line}");
        assert_eq!(number, next[worker], "worker {worker} in order");
        next[worker] += 1;
    }
    assert_eq!(next, vec![lines; workers as usize]);
}

#[test]
fn lines_are_whole_and_complete() {
    let panzer = counting(3, 2000).args(["--log", "out.log", "--log-size", "0"]).start();
    panzer.wait_serving();
    wait_done(&panzer, 3);
    let path = panzer.path("out.log");
    eventually(SOON, "all is written", || read(&path).lines().count() == 6000);
    assert_complete(&read(&path), 3, 2000);
    assert!(panzer.stop().success());
}

#[test]
fn no_line_is_lost_or_doubled_if_the_logger_is_killed_and_the_file_moved_20_times() {
    let panzer = counting(4, 20_000).args(["--log", "out.log", "--log-size", "0"]).env("PAUSE", "0.01").start();
    panzer.allow_line("error: the logger was killed by SIGKILL; starting another");
    panzer.wait_serving();
    let path = panzer.path("out.log");
    for number in 0..20 {
        let before = logger(&panzer);
        kill_9(before);
        eventually(SOON, "another logger", || logger(&panzer) != before);
        fs::rename(&path, panzer.path(&format!("moved.{number:02}"))).unwrap();
        assert!(run(&panzer, &["reopen"]).status.success());
        eventually(SOON, "the file is there again", || path.exists());
    }
    wait_done(&panzer, 4);
    let folder = panzer.folder().to_owned();
    let all = || {
        let moved = (0..20).map(|number| read(folder.join(format!("moved.{number:02}")))).collect::<String>();
        moved + &read(folder.join("out.log"))
    };
    eventually(SOON, "all is written", || all().lines().count() == 80_000);
    assert_complete(&all(), 4, 20_000);
    assert!(panzer.stop().success());
}

#[test]
fn a_restart_in_place_loses_no_line() {
    let panzer = counting(2, 4000).args(["--log", "out.log", "--log-size", "0"]).env("PAUSE", "0.01").start();
    panzer.wait_serving();
    let before = logger(&panzer);
    for _ in 0..3 {
        assert!(run(&panzer, &["restart"]).status.success());
    }
    assert_eq!(logger(&panzer), before);
    kill_9(before);
    panzer.expect_line("error: the logger was killed by SIGKILL; starting another");
    wait_done(&panzer, 2);
    let path = panzer.path("out.log");
    eventually(SOON, "all is written", || read(&path).lines().count() == 8000);
    assert_complete(&read(&path), 2, 4000);
    assert!(panzer.stop().success());
}

#[test]
fn long_lines_rubbish_and_a_last_line_without_an_end_are_written() {
    let script = "#!/usr/bin/env python3
import os, sys
open('raw', 'wb').write(bytes(range(256)) * 16)
os.write(1, bytes(range(256)) * 16 + b'\\n')
out = open(1, 'wb', closefd=False)
out.write(b'L' * (1 << 20) + b'\\n')
out.flush()
os.write(2, b'no end')
open('done.0.1', 'w')
import time
time.sleep(1000)
";
    let panzer = logging(script).args(["-w", "1", "--log", "out.log", "--log-size", "0"]).start();
    panzer.wait_serving();
    wait_done(&panzer, 1);
    let (path, folder) = (panzer.path("out.log"), panzer.folder().to_owned());
    let rubbish = fs::read(folder.join("raw")).unwrap();
    eventually(SOON, "the long line is there", || fs::metadata(&path).unwrap().len() >= 1 << 20);
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.starts_with(&rubbish));
    let pieces: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(|piece| piece.contains(&b'L')).collect();
    let letters: usize = pieces.iter().map(|piece| piece.iter().filter(|byte| **byte == b'L').count()).sum();
    assert!(letters >= 1 << 20 && pieces.iter().all(|piece| piece.len() <= 32 << 10));
    let keep = File::open(&path).unwrap();
    assert!(panzer.stop().success());
    let mut rest = String::new();
    let mut bytes = Vec::new();
    (&keep).read_to_end(&mut bytes).unwrap();
    rest.push_str(&String::from_utf8_lossy(&bytes));
    assert!(rest.ends_with("no end\n"), "it is written at the latest when panzer ends");
}

#[test]
fn the_line_of_a_death_quotes_what_the_worker_wrote_last() {
    let script = "#!/bin/sh\necho on stdout\necho on stderr >&2\nprintf 'and no end' >&2\nexit 3\n";
    let panzer = logging(script).args(["-w", "1", "--log", "out.log", "--delay", "60s"]).start();
    panzer.allow_line("panzer: generation 1 serves");
    panzer.expect_line("warning: worker 0 * exited with code 3; respawning it");
    for line in ["  | on stdout", "  | on stderr", "  | and no end"] {
        panzer.allow_line(line);
        panzer.wait_for_line(line, SOON);
    }
    panzer.signal(Signal::SIGTERM);
    panzer.wait_exit();
}

#[test]
fn the_verdict_of_a_rejected_reload_quotes_the_last_lines() {
    let script = "#!/bin/sh\n[ $PANZER_GENERATION = 1 ] && exec sleep 1000\necho no such table: users >&2\nexit 7\n";
    let builder = Panzer::builder().executable("app", script).args(["--share-ports", "off", "--ready", "alive"]);
    let panzer = builder.args(["--bake", "4s", "--name", "app", "./app", "-w", "1", "--log", "out.log"]).start();
    panzer.wait_serving();
    panzer.expect_line("error: reload failed: generation 2: worker 0 exited with code 7");
    panzer.expect_line("  | no such table: users");
    let output = run(&panzer, &["reload"]);
    assert!(!output.status.success());
    let told = text(&output.stderr) + &text(&output.stdout);
    assert!(told.contains("no such table: users"), "{told}");
    assert!(panzer.stop().success());
}

#[test]
fn the_verdict_quotes_a_worker_that_was_only_not_ready() {
    let script = "#!/bin/sh\n[ $PANZER_GENERATION = 1 ] || printf 'waiting for the database' >&2\nexec sleep 1000\n";
    let builder = Panzer::builder().executable("app", script).file("panzer.yml", "ready: alive\n");
    let options = [
        "--config",
        "panzer.yml",
        "--share-ports",
        "off",
        "--bake",
        "0s",
        "--name",
        "app",
        "-w",
        "2",
        "--log",
        "out.log",
        "./app",
    ];
    let panzer = builder.args(options).start();
    panzer.wait_serving();
    fs::write(panzer.path("panzer.yml"), "ready: notify\nready-timeout: 1s\n").unwrap();
    panzer.expect_line("error: reload failed: generation 2: 2 of 2 workers were not ready within 1s");
    panzer.expect_line("  | waiting for the database");
    let output = run(&panzer, &["reload"]);
    let told = text(&output.stderr);
    assert!(
        !output.status.success() && told.contains("not ready") && told.contains("waiting for the database"),
        "{told}"
    );
    assert!(panzer.stop().success());
}

#[test]
fn files_are_rotated_between_lines_and_the_oldest_go() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("out.log");
    let panzer =
        counting(2, 4000).args(["--log", log.to_str().unwrap(), "--log-size", "64K", "--log-keep", "3"]).start();
    panzer.wait_serving();
    wait_done(&panzer, 2);
    let path = |number: u32| if number == 0 { log.clone() } else { log.with_file_name(format!("out.log.{number}")) };
    // Once it has ended, all is written and nothing is rotated any more.
    assert!(panzer.stop().success());
    assert!(read(path(0)).contains(" 3999 ") || read(path(1)).contains(" 3999 "));
    for number in 0..=3 {
        let text = read(path(number));
        assert!(text.len() <= 64 << 10 && text.ends_with('\n'), "{number}: {}", text.len());
        assert!(number == 0 || text.len() > 60 << 10, "{number}: {}", text.len());
    }
    assert!(!path(4).exists());
}

#[test]
fn rotated_files_are_compressed() {
    let panzer =
        counting(2, 3000).args(["--log", "out.log", "--log-size", "128K", "--log-keep", "20", "--log-compress"]);
    let panzer = panzer.start();
    panzer.wait_serving();
    wait_done(&panzer, 2);
    let folder = panzer.folder().to_owned();
    let script = "for n in 20 19 18 17 16 15 14 13 12 11 10 9 8 7 6 5 4 3 2 1; do \
                  if [ -e out.log.$n.gz ]; then gunzip -c out.log.$n.gz; elif [ -e out.log.$n ]; then cat out.log.$n; fi; \
                  done; cat out.log";
    let all = || {
        let output = std::process::Command::new("sh").args(["-c", script]).current_dir(&folder).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let is_plain = |number: &u32| folder.join(format!("out.log.{number}")).exists();
    eventually(SOON, "all are compressed", || {
        !(1..=20).any(|number| is_plain(&number)) && all().lines().count() == 6000
    });
    assert!(folder.join("out.log.1.gz").exists());
    assert_complete(&all(), 2, 3000);
    assert!(panzer.stop().success());
}

#[test]
fn each_line_has_its_origin_with_a_prefix_and_as_json() {
    let script = "#!/bin/sh\necho 'to \"stdout\"'\necho to stderr >&2\nexec sleep 1000\n";
    let start = |option: &[&str]| {
        let panzer = logging(script).args(["-w", "1", "--log", "out.log"]).args(option).start();
        panzer.allow_line("{");
        panzer
    };
    let panzer = start(&["--log-prefix"]);
    eventually(SOON, "both lines are there", || {
        fs::read_to_string(panzer.path("out.log")).is_ok_and(|it| it.lines().count() == 2)
    });
    let text = read(panzer.path("out.log"));
    assert!(text.contains("Z worker 0 [gen 1] stdout | to \"stdout\"\n"), "{text}");
    assert!(text.contains("Z worker 0 [gen 1] stderr | to stderr\n"), "{text}");
    panzer.stop();
    let panzer = start(&["--log-format", "json"]);
    eventually(SOON, "both lines are there", || {
        fs::read_to_string(panzer.path("out.log")).is_ok_and(|it| it.lines().count() == 2)
    });
    for line in read(panzer.path("out.log")).lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&value["worker"], &value["generation"]), (&0.into(), &1.into()));
        let stream = value["stream"].as_str().unwrap();
        assert_eq!(value["line"], if stream == "stdout" { "to \"stdout\"" } else { "to stderr" });
    }
    panzer.stop();
}

#[test]
fn stdout_and_stderr_are_parted_with_modes_as_given() {
    let script = "#!/bin/sh\necho out\necho err >&2\nexec sleep 1000\n";
    let options = ["-w", "1", "--log", "both.log", "--stderr", "err.log,mode=0600"];
    let panzer = logging(script).args(options).start();
    panzer.wait_serving();
    let has = |name: &str, text: &str| fs::read_to_string(panzer.path(name)).is_ok_and(|found| found == text);
    eventually(SOON, "each stream is in its file", || has("both.log", "out\n") && has("err.log", "err\n"));
    let metadata = fs::metadata(panzer.path("err.log")).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.nlink()), (0o600, 1));
    assert!(panzer.stop().success());
}

#[test]
fn a_symbolic_link_is_not_followed() {
    let builder = logging("#!/bin/sh\nexec sleep 1000\n").args(["-w", "1", "--log", "out.log"]);
    symlink("elsewhere", builder.folder().join("out.log")).unwrap();
    let panzer = builder.expect_line("cannot open the log * is a symbolic link, which panzer does not follow").start();
    let folder = panzer.folder().to_owned();
    assert!(!folder.join("elsewhere").exists());
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn a_full_disk_never_makes_a_worker_wait() {
    let panzer = counting(2, 30_000).args(["--log", "/dev/full"]).start();
    panzer.allow_line("were dropped: the log");
    panzer.wait_serving();
    panzer.expect_line(
        "warning: cannot write to the log /dev/full: * Workers run on; lines that find no room are dropped",
    );
    wait_done(&panzer, 2);
    panzer.expect_line("error: * lines are lost: the log /dev/full could not be written until the end");
    assert!(panzer.stop().success());
}

#[test]
fn dropped_lines_are_counted_exactly() {
    let builder = counting(2, 30_000).args(["--log", "fifo", "--log-format", "json"]);
    let path = builder.folder().join("fifo");
    mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    let panzer = builder.start();
    panzer.allow_line("{");
    panzer.expect_line("nobody reads the log *fifo");
    panzer.expect_line("lines (* bytes) were dropped: the log * could not be written fast enough");
    wait_done(&panzer, 2);
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        File::open(path).unwrap().read_to_string(&mut text).unwrap();
        text
    });
    // The last line is that of the count, once all that was kept has been read.
    eventually(SOON, "the count is told", || panzer.lines().iter().any(|line| line.contains("lines (")));
    panzer.signal(Signal::SIGTERM);
    panzer.wait_exit();
    let text = reader.join().unwrap();
    let values = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let (mut written, mut dropped) = (0, 0);
    for value in values {
        match value["dropped"].as_u64() {
            Some(count) => dropped += count,
            None => written += 1,
        }
    }
    assert!(dropped > 0);
    assert_eq!(written + dropped, 60_000);
}

#[test]
fn a_worker_that_writes_for_ever_without_an_end_is_written_and_can_be_stopped() {
    let script = "#!/usr/bin/env python3\nimport os\nwhile True:\n    os.write(1, b'y' * 4096)\n";
    let panzer = logging(script).args(["-w", "1", "--log", "out.log", "--log-keep", "2"]).start();
    panzer.wait_serving();
    panzer.allow_line("dropped: the log");
    panzer.allow_line("were dropped");
    eventually(SOON, "it is rotated", || panzer.path("out.log.2").exists());
    assert!(panzer.stop().success());
}
