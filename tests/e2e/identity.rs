//! Workers under another user, and how they are made so. (75: the order of dropping rights.)

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use crate::faults::{kill_9, wait_gone, wait_workers};
use crate::support::{Builder, Panzer, eventually, free_port, get, require};

const SOON: Duration = Duration::from_secs(20);

/// Serves; tries to become root again, and notes each try that succeeds and each TERM in a file that it creates.
const SERVER: &str = r#"#!/usr/bin/perl
use POSIX;
use Socket;
open(my $notes, '>>', "notes/$$") or die "notes: $!";
$notes->autoflush(1);
$SIG{TERM} = sub { print $notes "TERM " };
print $notes "setuid " if POSIX::setuid(0);
print $notes "setgid " if POSIX::setgid(0);
print $notes "tried ";
open(my $listener, '+<&=', 3) or die "listener: $!";
while (1) {
    accept(my $connection, $listener) or next;
    sysread($connection, my $request, 65536);
    syswrite($connection, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ngood");
}
"#;

fn can_run() -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: to become another user takes root");
        return false;
    }
    Path::new("/usr/bin/perl").exists() && require("perl")
}

/// A panzer whose folder everybody may enter, with a server in it, to run under nobody.
fn as_nobody(port: u16) -> Builder {
    let builder = Panzer::builder().executable("app", SERVER);
    let mode = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(builder.folder(), mode(0o755)).unwrap();
    fs::create_dir(builder.folder().join("notes")).unwrap();
    fs::set_permissions(builder.folder().join("notes"), mode(0o777)).unwrap();
    builder
        .args(["-w", "2", "--bake", "100ms", "--user", "nobody", "-l", &format!("127.0.0.1:{port}"), "./app"])
        .args(["--stop", "TERM/300ms/KILL"])
}

#[track_caller]
fn notes(panzer: &Panzer, pid: i32) -> String {
    let path = panzer.path(&format!("notes/{pid}"));
    eventually(SOON, "the worker has tried", || fs::read_to_string(&path).is_ok_and(|notes| notes.contains("tried")));
    fs::read_to_string(path).unwrap()
}

fn field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn allow_escalation(panzer: &Panzer) {
    panzer.allow_line("has not stopped yet; sent it SIGKILL");
}

#[test]
fn a_worker_is_nobody_and_can_be_nobody_else() {
    if !can_run() {
        return;
    }
    let port = free_port();
    let panzer = as_nobody(port).args(["--umask", "027", "--nice", "5", "--env", "SHELL=/mine"]).start();
    allow_escalation(&panzer);
    panzer.wait_serving();
    for pid in panzer.workers() {
        assert_eq!(notes(&panzer, pid), "tried ");
        let meta = fs::metadata(panzer.path(&format!("notes/{pid}"))).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (65534, 65534, 0o640));
        assert_eq!(field(pid, "Uid:"), "65534 65534 65534 65534");
        assert_eq!(field(pid, "Gid:"), "65534 65534 65534 65534");
        assert_eq!(field(pid, "Groups:"), "65534");
        assert_eq!(field(pid, "Umask:"), "0027");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(pid, set), "0000000000000000", "{set}");
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        assert_eq!(stat[stat.rfind(')').unwrap()..].split(' ').nth(17), Some("5"), "{stat}");
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment);
        let variables: Vec<&str> = environment.split('\0').collect();
        for variable in ["USER=nobody", "LOGNAME=nobody", "HOME=/nonexistent", "SHELL=/mine"] {
            assert!(variables.contains(&variable), "{variable}: {variables:?}");
        }
        assert_eq!(variables.iter().filter(|variable| variable.starts_with("HOME=")).count(), 1);
    }
    assert_eq!(get(port, "/").unwrap().text(), "good");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(get(port, "/").unwrap().text(), "good");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn workers_of_a_monitor_that_was_killed_are_stopped_and_told_once() {
    if !can_run() {
        return;
    }
    let port = free_port();
    let panzer = as_nobody(port).start();
    allow_escalation(&panzer);
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    panzer.wait_serving();
    let before = panzer.workers();
    before.iter().for_each(|pid| assert_eq!(notes(&panzer, *pid), "tried "));
    kill_9(panzer.status().serving().monitor.unwrap());
    wait_gone(&before);
    // By the kernel, whose signal was asked for after the user had changed; main knows, and does not say it again.
    before.iter().for_each(|pid| assert_eq!(notes(&panzer, *pid), "tried TERM "));
    let after = wait_workers(&panzer, 2, &before);
    assert_eq!(field(after[0], "Uid:"), "65534 65534 65534 65534");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn who_is_not_there_ends_the_start() {
    for (arguments, why) in [
        (["--user", "no-such-user"], "there is no user no-such-user on this machine; create it, or correct --user"),
        (["--user", "0:no-such-group"], "there is no group no-such-group on this machine"),
        (["--user", "4000000000"], "user 4000000000 has no entry that says its group; give one, as in --user"),
    ] {
        let panzer = Panzer::builder().args(["-w", "1"]).args(arguments).args(["--", "sleep", "1000"]).start();
        panzer.expect_line(&format!("panzer: error: {why}"));
        assert_eq!(panzer.wait_exit().code(), Some(125), "{arguments:?}");
    }
}

#[test]
fn who_has_gone_by_a_reload_fails_it() {
    if !can_run() || !require("unshare") {
        return;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let script = "#!/bin/sh\nexec unshare -m sh -c 'mount --bind passwd /etc/passwd && exec \"$0\" \"$@\"' \"$@\"\n";
    let panzer = Panzer::builder()
        .file("passwd", &format!("{passwd}visitor:x:4711:4712::/:/bin/sh\n"))
        .executable("start", script)
        .through("start")
        .args(["-w", "1", "--bake", "50ms", "--user", "visitor", "--", "sleep", "1000"])
        .start();
    panzer.wait_serving();
    let before = panzer.workers();
    assert_eq!(field(before[0], "Gid:"), "4712 4712 4712 4712");
    fs::write(panzer.path("passwd"), &passwd).unwrap();
    panzer.expect_line("error: reload failed: generation 2: there is no user visitor on this machine; create it");
    assert!(panzer.reload_and_wait().is_err());
    assert_eq!(panzer.workers(), before);
    // It is looked up anew, so the number may change.
    fs::write(panzer.path("passwd"), format!("{passwd}visitor:x:4713:4712::/:/bin/sh\n")).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    assert_eq!(field(panzer.workers()[0], "Uid:"), "4713 4713 4713 4713");
    // A generation is pinned to what it has found: another monitor of it looks nobody up.
    fs::write(panzer.path("passwd"), format!("{passwd}visitor:x:4714:4714::/:/bin/sh\n")).unwrap();
    let before = panzer.workers();
    panzer.expect_line("error: the monitor of generation 3 was killed by SIGKILL; starting another");
    kill_9(panzer.status().serving().monitor.unwrap());
    wait_workers(&panzer, 1, &before);
    assert_eq!(field(panzer.workers()[0], "Uid:"), "4713 4713 4713 4713");
    assert_eq!(field(panzer.workers()[0], "Gid:"), "4712 4712 4712 4712");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_program_that_the_user_may_not_execute_is_told_with_what_is_in_the_way() {
    if !can_run() {
        return;
    }
    let builder = as_nobody(free_port());
    fs::set_permissions(builder.folder(), fs::Permissions::from_mode(0o700)).unwrap();
    let panzer = builder.start();
    panzer.expect_line("app cannot be executed: user nobody may not enter /*/panzer-e2e-* (mode 0700, owned by uid 0)");
    assert_eq!(panzer.wait_exit().code(), Some(126));
}

/// A panzer for which `getent` is the file `getent` of its folder.
fn with_own_getent(getent: &str) -> Builder {
    let script =
        "#!/bin/sh\nexec unshare -m sh -c 'mount --bind getent /usr/bin/getent && exec \"$0\" \"$@\"' \"$@\"\n";
    Panzer::builder().executable("getent", getent).executable("start", script).through("start")
}

#[test]
fn who_is_not_in_etc_passwd_is_asked_of_getent() {
    if !can_run() || !require("unshare") || !Path::new("/usr/bin/getent").exists() {
        return;
    }
    let getent = r#"#!/bin/sh
case "$*" in
    'passwd far' | 'passwd 4711') echo 'far:x:4711:4712::/far:/bin/sh' ;;
    'group away') echo 'away:x:4714:' ;;
    'initgroups far') echo 'far                  4712 4713' ;;
    *) exit 2 ;;
esac
"#;
    let user = |user: &str| with_own_getent(getent).args(["-w", "1", "--user", user, "--", "sleep", "1000"]);
    for (named, gid, groups) in [("far", 4712, "4712 4713"), ("4711:away", 4714, "4712 4713 4714")] {
        let panzer = user(named).start();
        panzer.wait_serving();
        let worker = panzer.workers()[0];
        assert_eq!(field(worker, "Uid:"), "4711 4711 4711 4711");
        assert_eq!(field(worker, "Gid:"), format!("{gid} {gid} {gid} {gid}"));
        assert_eq!(field(worker, "Groups:"), groups);
        let variables = fs::read(format!("/proc/{worker}/environ")).unwrap();
        assert!(variables.split(|byte| *byte == 0).any(|variable| variable == b"HOME=/far"));
        assert_eq!(panzer.stop().code(), Some(0));
    }
    let panzer = user("nowhere").start();
    panzer.expect_line("panzer: error: there is no user nowhere on this machine; create it, or correct --user");
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn a_getent_that_gives_no_answer_is_named() {
    if !can_run() || !require("unshare") || !Path::new("/usr/bin/getent").exists() {
        return;
    }
    let why = "panzer: error: user far cannot be looked up: ";
    for (getent, said) in [
        (
            "#!/bin/sh\nexec sleep 1000\n",
            "'/usr/bin/getent passwd far' gave no answer within 3s; try again, or give numbers",
        ),
        ("#!/bin/sh\nexit 3\n", "'/usr/bin/getent passwd far' failed with exit code 3"),
        ("#!/bin/sh\necho far\n", "'/usr/bin/getent passwd far' gave no entry, but 'far'"),
        ("", "'/usr/bin/getent passwd far' gave no answer; try"),
    ] {
        let panzer = with_own_getent(getent).args(["-w", "1", "--user", "far", "--", "sleep", "1000"]).start();
        panzer.expect_line(&format!("{why}{said}"));
        assert_eq!(panzer.wait_exit().code(), Some(125), "{getent}");
    }
    let script =
        "#!/bin/sh\nexec unshare -m sh -c 'mount --bind /dev/null /usr/bin/getent && exec \"$0\" \"$@\"' \"$@\"\n";
    let panzer = Panzer::builder().executable("start", script).through("start");
    let panzer = panzer.args(["-w", "1", "--user", "far", "--", "sleep", "1000"]).start();
    panzer.expect_line(&format!("{why}it is not in /etc/passwd, and there is no 'getent' in /usr/bin, /bin"));
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

/// Runs it under strace with `options`, which writes what each process calls into `trace.PID`: in one file for all of
/// them, a call is torn in two where another one comes in between.
fn traced(options: &str) -> Builder {
    let tracer = format!("#!/bin/sh\nexec strace -D -qq -ff -o trace {options} \"$@\"\n");
    as_nobody(free_port()).executable("tracer", &tracer).through("tracer")
}

#[test]
fn rights_go_in_the_right_order() {
    if !can_run() || !require("strace") {
        return;
    }
    let expected = [
        "setpriority(",
        "setgroups(",
        "setresgid(",
        "setresuid(",
        "capset(",
        "setuid(0)",
        "setgid(0)",
        "prctl(PR_SET_PDEATHSIG",
        "execve(",
    ];
    let calls = "setpriority,setgroups,setresgid,setresuid,capset,setuid,setgid,prctl,execve";
    let panzer = traced(&format!("-e trace={calls}")).args(["--nice", "1"]).start();
    allow_escalation(&panzer);
    panzer.wait_serving();
    let trace = fs::read_to_string(panzer.path(&format!("trace.{}", panzer.workers()[0]))).unwrap();
    let own: Vec<&str> = trace.lines().collect();
    let places = expected.map(|call| own.iter().position(|line| line.contains(call)));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{own:#?}");
    for refused in ["setuid(0)", "setgid(0)"] {
        assert!(own.iter().any(|line| line.contains(refused) && line.contains("EPERM")), "{own:#?}");
    }
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn what_cannot_be_given_up_is_not_started() {
    if !can_run() || !require("strace") {
        return;
    }
    for (inject, why) in [
        (
            "setgroups:error=EPERM",
            "cannot become user nobody: operation not permitted; panzer must run as root for --user and --group",
        ),
        ("setresuid:error=EINVAL", "is its number mapped in this user namespace?"),
        ("setuid:retval=0", "was not started as user nobody: it could have become root again"),
    ] {
        let panzer = traced(&format!("-e inject={inject}")).start();
        panzer.expect_line(&format!("panzer: error: *{why}"));
        panzer.allow_line(why);
        assert_eq!(panzer.wait_exit().code(), Some(125), "{inject}");
    }
}

#[test]
fn without_root_it_takes_what_it_is_already() {
    if !can_run() || !require("setpriv") {
        return;
    }
    let unprivileged = |options: &[&str]| {
        // A copy, as panzer itself may lie where others may not go.
        let script = "#!/bin/sh\ncp \"$1\" \"$RUNTIME_DIRECTORY/panzer\" && shift\n\
                      exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$RUNTIME_DIRECTORY/panzer\" \"$@\"\n";
        let panzer = Panzer::builder().executable("somebody", script).through("somebody").args(options);
        panzer.args(["-w", "1", "--bake", "50ms", "--share-ports", "off", "--", "sleep", "1000"])
    };
    // The test's own folder is root's, and so is the one where it would write the pid.
    let run = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(run.path(), Some(65534), Some(65534)).unwrap();
    let start = |options: &[&str]| unprivileged(options).env("RUNTIME_DIRECTORY", run.path()).in_directory("/").start();
    let panzer = start(&["--user", "nobody"]);
    panzer.wait_serving();
    assert_eq!(field(panzer.workers()[0], "Uid:"), "65534 65534 65534 65534");
    assert_eq!(panzer.stop().code(), Some(0));
    for (options, why) in [
        (["--user", "root"], "cannot become user root: operation not permitted; panzer must run as root for --user"),
        (["--nice", "-5"], "cannot set the nice value -5: permission denied; only root may lower it"),
    ] {
        let panzer = start(&options);
        panzer.expect_line(why);
        assert_eq!(panzer.wait_exit().code(), Some(125), "{options:?}");
    }
}

#[test]
fn without_proc_panzer_says_what_is_missing() {
    if !can_run() || !require("unshare") {
        return;
    }
    let script = "#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs none /proc && exec \"$0\" \"$@\"' \"$@\"\n";
    let panzer = Panzer::builder().executable("bare", script).through("bare").args(["-w", "1", "--", "sleep", "1000"]);
    let panzer = panzer.start();
    panzer.expect_line("panzer: cannot start: /proc/self/fd is missing; mount -t proc proc /proc");
    assert_eq!(panzer.wait_exit().code(), Some(125));
}
