//! Under somebody else's rule: as PID 1 of a container (62), and as a systemd service.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Panzer, eventually, eventually_some, require};

const SOON: Duration = Duration::from_secs(20);

/// Pid, state and parent of every process.
fn processes() -> Vec<(i32, String, i32)> {
    let stats = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
        Some((stat.split(' ').next()?.parse().ok()?, fields.next()?.to_owned(), fields.next()?.parse().ok()?))
    });
    stats.collect()
}

fn child_of(parent: i32) -> Option<i32> {
    processes().into_iter().find(|process| process.2 == parent).map(|process| process.0)
}

#[test]
fn as_pid_1_it_reaps_whatever_comes_and_obeys() {
    if !nix::unistd::geteuid().is_root() || !require("unshare") || !require("nsenter") {
        eprintln!("skipped: a pid namespace takes root");
        return;
    }
    let panzer = Panzer::builder()
        .executable("container", "#!/bin/sh\nexec unshare -pf --mount-proc \"$@\"\n")
        .through("container")
        .executable("app", "#!/bin/sh\n(sleep 0.1 &)\nexec sleep 1000\n")
        .args(["-w", "2", "--bake", "50ms", "./app"])
        .start();
    panzer.wait_for_line("started as pid 1 ", SOON);
    panzer.wait_serving();
    let main = eventually_some(SOON, "panzer is in its namespace", || child_of(panzer.pid()));
    let monitor = eventually_some(SOON, "it has a monitor", || child_of(main));
    // As `docker exec` leaves them: nobody's but PID 1's.
    for code in 0..4 {
        let orphan = format!("(sh -c 'sleep 0.1; exit {code}' &)");
        let entered = Command::new("nsenter").args(["-t", &main.to_string(), "-p", "-m", "sh", "-c", &orphan]).status();
        assert!(entered.unwrap().success());
    }
    eventually(SOON, "no orphan is left, dead or alive", || {
        processes().iter().filter(|process| process.2 == main).count() == 1
            && processes().iter().filter(|process| process.2 == monitor).count() == 2
    });
    kill(Pid::from_raw(main), Signal::SIGTERM).unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn systemd_accepts_the_unit() {
    if !require("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/my_app.service")).unwrap();
    // It looks for the binary, too.
    let unit = unit.replace("/usr/local/bin/panzer", env!("CARGO_BIN_EXE_panzer"));
    let path = folder.path().join("my_app.service");
    fs::write(&path, unit).unwrap();
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("my_app")).collect();
    assert!(verified.status.success() && of_ours.is_empty(), "{said}");
}

#[test]
fn ps_tells_the_processes_apart() {
    let panzer = Panzer::start(["-w", "1", "--bake", "50ms", "--", "sleep", "1000"]);
    panzer.wait_serving();
    let shown = |pid: i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim().to_owned();
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        (name, String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " "))
    };
    let (name, line) = shown(panzer.pid());
    // The command line as it was given: by it an instance is found.
    assert!(name == "panzer" && line.ends_with("panzer -w 1 --bake 50ms -- sleep 1000"), "{name}: {line}");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    let serving = panzer.status().serving().clone();
    assert_eq!(shown(serving.monitor.unwrap()), ("panzer".to_owned(), "panzer: monitor [gen 2]".to_owned()));
    assert_eq!(shown(serving.pids()[0]), ("sleep".to_owned(), "sleep 1000".to_owned()));
    panzer.stop();
}
