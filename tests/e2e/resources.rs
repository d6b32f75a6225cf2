//! Limits of the workers: resources, CPUs, and whom the kernel ends first.

use std::fs;

use crate::support::{Builder, Panzer, require};

fn sleeper(options: &[&str]) -> Builder {
    Panzer::builder().args(["-w", "2", "--bake", "50ms", "--share-ports", "off"]).args(options)
}

fn line(path: String, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn limit(pid: i32, name: &str) -> String {
    line(format!("/proc/{pid}/limits"), name)
}

fn cpus(pid: i32) -> String {
    line(format!("/proc/{pid}/status"), "Cpus_allowed_list:")
}

fn oom_score(pid: i32) -> i32 {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
}

/// Whether this test may protect a process from the kernel, as root in a container often may not.
fn may_protect() -> bool {
    let capabilities = line("/proc/self/status".to_owned(), "CapEff:");
    u64::from_str_radix(&capabilities, 16).unwrap() >> 24 & 1 == 1
}

#[test]
fn limits_and_cpus_are_those_of_the_workers_only() {
    let panzer = sleeper(&["--rlimit", "NOFILE=300:400", "--rlimit", "core=0", "--oom-score-adj", "500"]);
    let folder = tempfile::tempdir().unwrap();
    let of_a_hook = folder.path().join("score");
    let hook = format!("stopped=cat /proc/self/oom_score_adj > {}", of_a_hook.display());
    let panzer = panzer.args(["--hook", &hook]);
    let panzer = panzer.args(["--cpu-affinity", "auto", "--", "sleep", "1000"]);
    let protected = "if memory runs out, the kernel ends workers before panzer (OOM score 500 and -900)";
    let panzer = panzer.allow_line(protected).start();
    panzer.wait_serving();
    for pid in panzer.workers() {
        assert_eq!(limit(pid, "Max open files"), "300 400 files");
        assert_eq!(limit(pid, "Max core file size"), "0 0 bytes");
        assert_eq!(oom_score(pid), 500);
        assert!(cpus(pid).parse::<usize>().is_ok(), "one CPU, not {}", cpus(pid));
    }
    let apart: Vec<String> = panzer.workers().into_iter().map(cpus).collect();
    assert!(apart[0] != apart[1] || cpus(panzer.pid()).parse::<usize>().is_ok(), "{apart:?}");
    let own = std::process::id() as i32;
    assert_eq!(cpus(panzer.pid()), cpus(own));
    assert_eq!(oom_score(panzer.pid()), if may_protect() { -900 } else { oom_score(own) });
    assert_eq!(panzer.stop().code(), Some(0));
    assert_eq!(fs::read_to_string(of_a_hook).unwrap().trim(), oom_score(own).to_string());
}

#[test]
fn a_reload_changes_the_limits_and_takes_them_back() {
    let options = "workers: 1\nbake: 50ms\nshare-ports: off\nprogram: sleep\nargs: [1000]\n";
    let with = |more: &str| format!("{options}{more}");
    let first = with("rlimit: [NOFILE=300, CORE=0:unlimited]\noom-score-adj: 300\ncpu-affinity: 0\n");
    let panzer = Panzer::builder()
        .file("panzer.yml", &first)
        .args(["--config", "panzer.yml"])
        .allow_line("if memory runs out")
        .start();
    panzer.wait_serving();
    let pid = panzer.workers()[0];
    let own = std::process::id() as i32;
    assert_eq!((limit(pid, "Max open files"), cpus(pid)), ("300 300 files".to_owned(), "0".to_owned()));
    fs::write(panzer.path("panzer.yml"), with("")).unwrap();
    panzer.reload_and_wait().unwrap();
    let pid = panzer.workers()[0];
    assert_eq!((limit(pid, "Max open files"), cpus(pid)), (limit(own, "Max open files"), cpus(own)));
    assert_eq!((oom_score(pid), oom_score(panzer.pid())), (oom_score(own), oom_score(own)));
    fs::write(panzer.path("panzer.yml"), with("cpu-affinity: 1023\n")).unwrap();
    panzer.allow_line("cannot run on the CPUs 1023 (--cpu-affinity): invalid argument; * may be used here");
    assert!(panzer.reload_and_wait().unwrap_err().contains("cannot run on the CPUs 1023"));
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_limit_that_cannot_be_set_is_refused_with_what_prevents_it() {
    for (option, why) in [
        ("--rlimit=NOFILE", "must be NAME=N"),
        ("--rlimit=FILES=1", "there is no resource FILES; take one of AS, CORE"),
        ("--rlimit=NOFILE=", "'' is not a limit"),
        ("--rlimit=NOFILE=2:1", "the soft limit is above the hard one"),
        ("--oom-score-adj=1001", "must be a whole number from -1000 to 1000"),
        ("--cpu-affinity=3-1", "must be auto, or CPUs from 0 to 1023, as in 0-3,6"),
    ] {
        let panzer = sleeper(&[option, "sleep", "--", "1000"]).expect_line(why).start();
        assert_eq!(panzer.wait_exit().code(), Some(2), "{option}");
    }
    let twice = sleeper(&["--rlimit=NOFILE=9", "--rlimit=nofile=8", "sleep", "--", "1000"]);
    let twice = twice.expect_line("--rlimit names NOFILE twice; give each resource once").start();
    assert_eq!(twice.wait_exit().code(), Some(2));
    let at_start = |panzer: Builder, why: &str| {
        let panzer = panzer.expect_line(why).start();
        assert_eq!(panzer.wait_exit().code(), Some(125), "{why}");
    };
    at_start(sleeper(&["--cpu-affinity=1023", "sleep", "--", "1000"]), "error: *cannot run on the CPUs 1023");
    at_start(
        sleeper(&["--rlimit=NOFILE=99999999999", "sleep", "--", "1000"]),
        "error: *cannot set --rlimit NOFILE=99999999999: the hard limit is *",
    );
    if !nix::unistd::geteuid().is_root() || !require("setpriv") {
        return;
    }
    let run = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(run.path(), Some(65534), Some(65534)).unwrap();
    let script = "#!/bin/sh\ncp \"$1\" \"$RUNTIME_DIRECTORY/panzer\" && shift && ulimit -n 100 &&\n\
                  exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$RUNTIME_DIRECTORY/panzer\" \"$@\"\n";
    let somebody = |option: &str| {
        let panzer = Panzer::builder().executable("somebody", script).through("somebody");
        let panzer = panzer.args(["-w", "1", "--share-ports", "off", option, "sleep", "--", "1000"]);
        panzer.env("RUNTIME_DIRECTORY", run.path()).in_directory("/")
    };
    at_start(
        somebody("--rlimit=NOFILE=101"),
        "cannot set --rlimit NOFILE=101: the hard limit is 100, and only root may raise it",
    );
    at_start(
        somebody("--oom-score-adj=-1000"),
        "cannot set --oom-score-adj -1000: permission denied; only root may lower it",
    );
}

#[test]
fn a_stack_that_is_too_small_is_refused_with_its_limit() {
    let panzer = sleeper(&["--", "sleep", "1000"]);
    let panzer = panzer.executable("limited", "#!/bin/sh\nulimit -s 128\nexec \"$@\"\n").through("limited");
    let refusal = "panzer needs a stack of 256 KiB, and the limit is 128 KiB (ulimit -s, LimitSTACK=)";
    assert_eq!(panzer.expect_line(refusal).start().wait_exit().code(), Some(125));
}
