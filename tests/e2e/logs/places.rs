//! Where logs go, and when they are opened anew.

use std::fs;

use nix::sys::signal::Signal;

use super::{assert_complete, counting, logging, read, wait_done};
use crate::control::{run, text};
use crate::faults::SOON;
use crate::support::eventually;

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
