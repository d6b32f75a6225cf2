//! 73: one clear line, the documented exit code, nothing started, nothing left.

use crate::support::Panzer;

/// Starts panzer with `arguments`, which must be refused with this line alone.
#[track_caller]
fn refused(arguments: &[&str], code: i32, line: &str) {
    let panzer = Panzer::start(arguments);
    panzer.expect_line(line);
    let path = panzer.path("run");
    panzer.wait_for_end();
    assert_eq!(panzer.lines().len(), 1, "{:#?}", panzer.lines());
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
    assert_eq!(panzer.wait_exit().code(), Some(code), "{arguments:?}");
}

#[test]
fn options() {
    refused(&["--frobnicate", "./x"], 2, "panzer: unknown option '--frobnicate': see panzer --help");
    refused(&["--worker", "3", "./x"], 2, "panzer: unknown option '--worker': did you mean '--workers'?");
    refused(&["./a", "b"], 2, "panzer: unexpected argument 'b': put the program's arguments after '--'");
    refused(&[], 2, "panzer: which program?");
    refused(&["-q", "-v", "./x"], 2, "panzer: --quiet and --verbose exclude each other");
}

#[test]
fn numbers() {
    for workers in ["0", "-1", "1e9", "1000000000", "99999999999999999999999", "x", ""] {
        refused(&["-w", workers, "./x"], 2, &format!("panzer: invalid value '{workers}' for --workers: it must be "));
    }
    refused(&["--respawn-limit", "-1/1s", "./x"], 2, "panzer: invalid value '-1/1s' for --respawn-limit: ");
}

#[test]
fn durations() {
    for (text, why) in [("5x", "not a duration"), ("-1s", "cannot be negative"), ("1e308", "longer than 366 days")] {
        refused(&["--bake", text, "./x"], 2, &format!("panzer: invalid value '{text}' for --bake: *{why}"));
    }
    refused(&["--stop", "TERM", "./x"], 2, "panzer: invalid value 'TERM' for --stop: a schedule ends in KILL");
}

#[test]
fn addresses() {
    refused(&["-l", "70000", "./x"], 2, "panzer: invalid value '70000' for --listen: there is no port '70000'");
    refused(&["-l", "no host:80", "./x"], 2, "panzer: invalid value 'no host:80' for --listen: *");
    let unix = "unix:@app,per-worker";
    refused(&["-l", unix, "./x"], 2, &format!("panzer: invalid value '{unix}' for --listen: per-worker is for ports"));
    refused(&["--", "x", "{fd}"], 2, "panzer: argument '{fd}': {fd} needs a listener: add --listen");
}

#[test]
fn programs() {
    refused(&["./nothing"], 127, "error: */nothing was not found (no such file or directory); check the path");
    refused(&["nothing-of-that-name"], 127, "error: nothing-of-that-name was not found in PATH");
    refused(
        &["sleep 1000"],
        127,
        "sleep 1000 was not found in PATH; give the arguments apart, as in panzer -- sleep 1000,",
    );
    refused(&["reload"], 127, "error: reload was not found in PATH; did you mean panzerctl reload?");
    refused(&["/etc/passwd"], 126, "error: /etc/passwd cannot be executed: it is not executable (mode 0644)");
    refused(&["/etc"], 126, "error: /etc cannot be executed: it is a directory");
    refused(&["--chdir", "/nonexistent", "sleep"], 125, "error: the working directory /nonexistent cannot be entered");
}

#[test]
fn a_program_that_only_exec_refuses() {
    let panzer = Panzer::builder().executable("app", "").args(["-w", "4", "--share-ports", "off", "./app"]).start();
    panzer.expect_line("error: */app cannot be executed: it is empty");
    panzer.wait_for_end();
    assert_eq!(panzer.lines().len(), 1, "once for all workers: {:#?}", panzer.lines());
    assert_eq!(panzer.wait_exit().code(), Some(126));
}

#[test]
fn a_role_without_its_channel() {
    let panzer = Panzer::builder().env("PANZER_ROLE", "monitor").arg("./x").start();
    panzer.expect_line("panzer: LISTEN_FDS is missing, though PANZER_ROLE is set; unset PANZER_ROLE");
    assert_eq!(panzer.wait_exit().code(), Some(1));
    let panzer = Panzer::builder().env("PANZER_ROLE", "king").arg("./x").start();
    panzer.expect_line("panzer: PANZER_ROLE=king: there is no such role; unset it");
    assert_eq!(panzer.wait_exit().code(), Some(2));
}
