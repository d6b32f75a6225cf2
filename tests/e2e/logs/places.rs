//! Where logs go, and when they are opened anew.

use std::fs;

use nix::sys::signal::Signal;

use super::{assert_complete, counting, logging, read, wait_done};
use crate::control::{run, text};
use crate::faults::SOON;
use crate::support::{eventually, require};

/// Panzer's own stdout is this file.
const REDIRECTED: &str = "#!/bin/sh\nexec \"$@\" >own\n";

#[test]
fn own_stdout_gets_whole_lines_too() {
    let panzer = counting(3, 1000).args(["--log", "-"]).executable("redirected", REDIRECTED).through("redirected");
    let panzer = panzer.start();
    panzer.wait_serving();
    wait_done(&panzer, 3);
    let path = panzer.path("own");
    eventually(SOON, "all is written", || read(&path).lines().count() == 3000);
    assert_complete(&read(&path), 3, 1000);
    assert_eq!(text(&run(&panzer, &["logs", "-n", "4"]).stdout).lines().count(), 4);
    assert!(panzer.stop().success());
}

#[test]
fn each_signal_that_reopens_logs_opens_them_anew() {
    let script = "#!/bin/sh\necho begun\nexec sleep 1000\n";
    for (preset, signal) in [("panzer", Signal::SIGHUP), ("unicorn", Signal::SIGUSR1), ("preforker", Signal::SIGUSR1)] {
        let panzer = logging(script).args(["-w", "1", "--log", "out.log", "--signals", preset]).start();
        panzer.allow_line("");
        panzer.wait_serving();
        let path = panzer.path("out.log");
        eventually(SOON, "the line is there", || fs::read_to_string(&path).is_ok_and(|text| text == "begun\n"));
        fs::rename(&path, panzer.path("moved")).unwrap();
        panzer.signal(signal);
        eventually(SOON, "there is a file again", || path.exists());
        assert_eq!((read(&path).as_str(), read(panzer.path("moved")).as_str()), ("", "begun\n"), "{preset}");
        panzer.stop();
    }
}

#[test]
fn many_workers_have_a_pipe_for_each_stream() {
    let script = "#!/bin/sh\nfor n in 1 2 3; do echo out $PANZER_WORKER_ID $n; echo err $PANZER_WORKER_ID $n >&2; done\n\
                  exec sleep 1000\n";
    let panzer = logging(script).args(["-w", "60", "--stdout", "out.log", "--stderr", "err.log"]).start();
    panzer.wait_serving();
    for stream in ["out", "err"] {
        let mut expected: Vec<String> =
            (0..60).flat_map(|worker| (1..=3).map(move |n| format!("{stream} {worker} {n}"))).collect();
        expected.sort();
        let path = panzer.path(&format!("{stream}.log"));
        eventually(SOON, "all is written", || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            lines == expected
        });
    }
    assert!(panzer.stop().success());
}

#[test]
fn a_reload_into_a_log_that_cannot_be_opened_is_rejected() {
    let script = "#!/bin/sh\nwhile :; do echo line; sleep 0.05; done\n";
    let panzer = logging(script).args(["-w", "1", "--config", "c.yml"]).file("c.yml", "log: a.log\n").start();
    panzer.wait_serving();
    fs::write(panzer.path("c.yml"), "log: nowhere/b.log\n").unwrap();
    panzer.allow_line("reload failed: generation 2: cannot open the log *nowhere/b.log: no such file or directory");
    assert!(panzer.reload_and_wait().unwrap_err().contains("cannot open the log"));
    let length = || fs::metadata(panzer.path("a.log")).unwrap().len();
    let before = length();
    eventually(SOON, "the old generation's log goes on", || length() > before);
    // What did not change holds no reload up.
    fs::write(panzer.path("c.yml"), "log: a.log\n").unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.stop();
}

#[test]
fn where_files_must_stay_small_logs_are_refused_with_the_limit() {
    let own = nix::unistd::geteuid().is_root().then(|| require("setpriv"));
    let drops = if own == Some(true) { "setpriv --bounding-set=-sys_resource " } else { "" };
    let limited = format!("#!/bin/sh\nulimit -f 100\nexec {drops}\"$@\"\n");
    let panzer = logging("#!/bin/sh\nexec sleep 1000\n").args(["-w", "1", "--log", "a.log"]);
    let panzer = panzer.executable("limited", &limited).through("limited");
    let panzer =
        panzer.expect_line("--log needs memory * and files may have 50 KiB here (ulimit -f, LimitFSIZE=)").start();
    assert_eq!(panzer.wait_exit().code(), Some(125));
    let panzer = logging("#!/bin/sh\nexec sleep 1000\n").args(["-w", "1", "--log", "a.log"]);
    let panzer = panzer.executable("limited", &limited.replace("-f 100", "-v 500000")).through("limited");
    let panzer = panzer.expect_line("--log needs memory * and a process may have 488.3 MiB here (ulimit -v, LimitAS=)");
    assert_eq!(panzer.start().wait_exit().code(), Some(125));
    // A soft limit is raised.
    let panzer = logging("#!/bin/sh\necho begun\nexec sleep 1000\n").args(["-w", "1", "--log", "a.log"]);
    let limited = "#!/bin/sh\nulimit -S -f 100\nulimit -S -v 500000\nexec \"$@\"\n";
    let panzer = panzer.executable("limited", limited).through("limited").start();
    eventually(SOON, "the line is there", || {
        fs::read_to_string(panzer.path("a.log")).is_ok_and(|text| text == "begun\n")
    });
    assert!(panzer.stop().success());
}

#[test]
fn two_panzers_may_write_and_rotate_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.log");
    let log = path.to_str().unwrap();
    let options = ["--log", log, "--log-size", "20k", "--log-keep", "1000"];
    let both =
        ["1", "2"].map(|workers| counting(workers.parse().unwrap(), 3000).env("PAUSE", "0.005").args(options).start());
    for (panzer, workers) in both.iter().zip(1..) {
        wait_done(panzer, workers);
    }
    both.into_iter().for_each(|panzer| assert!(panzer.stop().success()));
    let files = fs::read_dir(folder.path()).unwrap();
    let lines: usize = files.map(|file| read(file.unwrap().path()).lines().count()).sum();
    assert_eq!(lines, 9000);
}

#[test]
fn a_socket_is_no_log() {
    let builder = logging("#!/bin/sh\nexec sleep 1000\n").args(["-w", "1", "--log", "a.sock"]);
    let _socket = std::os::unix::net::UnixListener::bind(builder.folder().join("a.sock")).unwrap();
    let panzer = builder.start();
    panzer.expect_line("panzer: cannot open the log *a.sock: it is neither a file nor a FIFO; name another one");
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn a_log_that_cannot_be_opened_anew_is_told_once() {
    let panzer = logging("#!/bin/sh\nexec sleep 1000\n").args(["-w", "1", "--log", "out/a.log"]);
    fs::create_dir(panzer.folder().join("out")).unwrap();
    let panzer = panzer.start();
    panzer.wait_serving();
    fs::remove_dir_all(panzer.path("out")).unwrap();
    panzer.expect_line("warning: cannot write to the log *out/a.log: no such file or directory");
    let mark = panzer.mark();
    assert!(run(&panzer, &["reopen"]).status.success());
    panzer.wait_for_line_after(mark, "warning: cannot write to the log *out/a.log", SOON);
    panzer.signal(Signal::SIGTERM);
    panzer.wait_for_line("panzer: stopped", SOON);
    let told = panzer.lines();
    assert_eq!(told.iter().filter(|line| line.contains("cannot write to the log")).count(), 1, "{told:?}");
    panzer.wait_exit();
}
