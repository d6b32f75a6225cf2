//! Where program, directory and variables are looked up, in whatever bytes their names are.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::control::run;
use crate::faults::{SOON, kill_9, wait_workers};
use crate::support::{Builder, Panzer, require};

const SLEEPER: &str = "#!/bin/sh\nexec sleep 1000\n";

/// What the worker has as `name` in its environment.
fn variable(pid: i32, name: &str) -> Option<OsString> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let start = format!("{name}=");
    bytes
        .split(|&byte| byte == 0)
        .find_map(|entry| Some(OsStr::from_bytes(entry.strip_prefix(start.as_bytes())?).into()))
}

fn program(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    crate::support::write_executable(path, SLEEPER);
}

fn one() -> Builder {
    Panzer::builder().args(["-w", "1", "--bake", "50ms", "--share-ports", "off"])
}

#[test]
fn pwd_names_the_directory_of_the_worker() {
    let builder = one().args(["--chdir", "current/../current", "--", "sleep", "1000"]);
    fs::create_dir(builder.folder().join("real")).unwrap();
    symlink("real", builder.folder().join("current")).unwrap();
    let panzer = builder.start();
    panzer.wait_serving();
    let physical = fs::canonicalize(panzer.path("real")).unwrap();
    assert_eq!(variable(panzer.workers()[0], "PWD").map(PathBuf::from), Some(physical));
    panzer.stop();

    let builder = one().args(["--chdir", "./current", "--", "sleep", "1000"]);
    fs::create_dir(builder.folder().join("real")).unwrap();
    symlink("real", builder.folder().join("current")).unwrap();
    let panzer = builder.start();
    panzer.wait_serving();
    // The symlink is kept, as a shell keeps it.
    assert_eq!(variable(panzer.workers()[0], "PWD").map(PathBuf::from), Some(panzer.path("current")));
    panzer.stop();
}

#[test]
fn a_relative_program_is_found_in_chdir_too() {
    let builder = one().args(["--chdir", "app", "--", "bin/run"]);
    program(&builder.folder().join("app/bin/run"));
    let panzer = builder.start();
    panzer.wait_serving();
    panzer.stop();

    let builder = one().args(["--chdir", "app", "--", "./here"]);
    fs::create_dir(builder.folder().join("app")).unwrap();
    let folder = builder.folder().display().to_string();
    let panzer = builder.start();
    panzer.expect_line(&format!("{folder}/here was not found, nor {folder}/app/here (--chdir); check the path"));
    assert_eq!(panzer.wait_exit().code(), Some(127));
}

#[test]
fn a_program_is_looked_for_in_the_path_of_the_workers() {
    let builder = one().args(["--", "only_here"]);
    program(&builder.folder().join("bin/only_here"));
    let path = format!("{}:/usr/bin:/bin", builder.folder().join("bin").display());
    let panzer = builder.env("PANZER_ENV", format!("PATH={path}")).start();
    panzer.wait_serving();
    panzer.stop();

    let builder = one().args(["--env-file", "app.env", "--", "only_here"]);
    program(&builder.folder().join("bin/only_here"));
    let text = format!("\u{feff}PATH={}:/usr/bin:/bin\n", builder.folder().join("bin").display());
    let panzer = builder.file("app.env", &text).start();
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

/// A name that no encoding of text knows, of a directory, of the target of a symlink, and of the runtime folder.
#[test]
fn names_that_are_not_utf_8_work_everywhere() {
    let builder = Panzer::builder();
    let odd = builder.folder().join(OsStr::from_bytes(b"caf\xe9"));
    program(&odd.join("app"));
    symlink(&odd, builder.folder().join("current")).unwrap();
    let mut runtime = odd.clone();
    runtime.push("run");
    fs::create_dir(&runtime).unwrap();
    let mut directory = OsString::from("--chdir=");
    directory.push(&odd);
    let builder = builder.args(["-w", "1", "--bake", "50ms", "-l", "unix:web.sock"]).arg(directory);
    let builder = builder.args(["--ready", "alive", "--", "../current/app"]);
    let panzer = builder.env("PWD", &odd).env("RUNTIME_DIRECTORY", &runtime).in_directory(&odd).start();
    panzer.wait_serving();
    panzer.expect_line("was killed by SIGKILL; respawning it");
    panzer.expect_line("error: the monitor of generation 2 was killed by SIGKILL");
    assert!(runtime.join("app.sock").exists() && odd.join("web.sock").exists());
    assert_eq!(variable(panzer.workers()[0], "PWD").map(PathBuf::from), Some(odd.clone()));
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    let worker = panzer.workers();
    kill_9(worker[0]);
    let worker = wait_workers(&panzer, 1, &worker);
    kill_9(panzer.status().serving().monitor.unwrap());
    wait_workers(&panzer, 1, &worker);
    panzer.signal(Signal::SIGUSR2);
    panzer.wait_for_line("restarted in place", SOON);
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.stop();
    assert!(!odd.join("web.sock").exists());
}

#[test]
fn what_must_be_text_is_refused_by_its_name() {
    let bytes = OsString::from_vec(b"80\xff".to_vec());
    let panzer = one().args(["--", "sleep", "1000"]).env("PANZER_LISTEN", &bytes).start();
    panzer.expect_line("panzer: invalid value '80\u{fffd}' for PANZER_LISTEN: it is not UTF-8");
    assert_eq!(panzer.wait_exit().code(), Some(2));
    let mut long = OsString::from("--env-file=");
    long.push(&bytes);
    for (arguments, option) in [(&["-l".into(), bytes.clone()][..], "-l"), (&[long], "--env-file")] {
        let panzer = one().args(arguments).args(["--", "sleep", "1000"]).start();
        panzer.expect_line(&format!("panzer: invalid value '80\u{fffd}' for {option}: it is not UTF-8"));
        assert_eq!(panzer.wait_exit().code(), Some(2));
    }
}

/// A service that Kubernetes calls "panzer" is described to every pod in variables that begin alike.
#[test]
fn variables_that_describe_a_service_reach_the_workers() {
    let builder = one().env("PANZER_SERVICE_HOST", "10.0.0.1").env("PANZER_PORT_80_TCP_ADDR", "10.0.0.1");
    let panzer = builder.env("PANZER_ENV", "PANZER_WEB_SERVICE_PORT=80").args(["--", "sleep", "1000"]).start();
    panzer.wait_serving();
    let worker = panzer.workers()[0];
    for (name, value) in [
        ("PANZER_SERVICE_HOST", Some("10.0.0.1")),
        ("PANZER_PORT_80_TCP_ADDR", Some("10.0.0.1")),
        ("PANZER_WEB_SERVICE_PORT", Some("80")),
        ("PANZER_ENV", None),
    ] {
        assert_eq!(variable(worker, name).as_deref(), value.map(OsStr::new), "{name}");
    }
    panzer.stop();
}

/// Systemd joins several RuntimeDirectory= by colons.
#[test]
fn of_several_runtime_directories_the_first_is_used() {
    let builder = one().args(["--name", "web", "--", "sleep", "1000"]);
    let runtime = format!("{0}/run:{0}/other", builder.folder().display());
    let panzer = builder.env("RUNTIME_DIRECTORY", &runtime).start();
    panzer.wait_serving();
    assert!(panzer.path("run/web.pid").exists() && panzer.path("run/web.sock").exists());
    panzer.stop();
}

/// As under systemd's WorkingDirectory=, which gives no PWD.
#[test]
fn without_pwd_it_says_that_a_symlink_is_not_followed() {
    let builder = one();
    program(&builder.folder().join("one/app"));
    program(&builder.folder().join("two/app"));
    let current = builder.folder().join("current");
    symlink("one", &current).unwrap();
    let panzer = builder.env("PWD", "").in_directory(&current).args(["--", "./app"]).start();
    panzer.wait_serving();
    panzer.expect_line("panzer: PWD does not name */one, where panzer was started: *; give --chdir DIR");
    panzer.expect_line("warning: generation 2 runs the same files as the one before; PWD does not name *--chdir");
    fs::remove_file(&current).unwrap();
    symlink("two", &current).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.stop();
}

/// Many tools replace the program on HUP, and whoever sends it after a deploy may wait for that.
#[test]
fn a_hang_up_says_that_the_program_has_changed_and_what_replaces_it() {
    let builder = one().file("main.sh", SLEEPER).args(["--", "sh", "main.sh"]);
    let panzer = builder.start();
    panzer.wait_serving();
    let mark = panzer.mark();
    panzer.signal(Signal::SIGHUP);
    panzer.wait_for_line_after(mark, "configuration read again", SOON);
    crate::support::write_executable(panzer.path("new"), "#!/bin/sh\nexec sleep 2000\n");
    fs::rename(panzer.path("new"), panzer.path("main.sh")).unwrap();
    panzer
        .expect_line("warning: the program has changed on disk and goes on as it was; panzerctl reload, or SIGUSR1, *");
    panzer.signal(Signal::SIGHUP);
    panzer.wait_for_line("the program has changed on disk", SOON);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    let mark = panzer.mark();
    panzer.signal(Signal::SIGHUP);
    panzer.wait_for_line_after(mark, "configuration read again", SOON);
    run(&panzer, &["stop"]);
    panzer.wait_exit();
}

/// As a container's profile of system calls, refuses the one whose number stands for CALL.
const STRICT: &str = r#"#!/usr/bin/env python3
import ctypes, os, struct, sys
code = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, CALL, 6, 0, 0, 0x50001, 6, 0, 0, 0x7fff0000)
code = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(code)))
libc = ctypes.CDLL(None)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0): sys.exit("no seccomp")
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_program_is_found_where_a_container_refuses_newer_system_calls() {
    if !require("python3") {
        return;
    }
    let panzer = strict(439).executable("sleeper", SLEEPER).arg("./sleeper").start();
    panzer.wait_serving();
    assert!(panzer.stop().success());
}

/// One worker, under a panzer that may not use the system call with this number.
fn strict(call: i64) -> Builder {
    one().executable("strict", &STRICT.replace("CALL", &call.to_string())).through("strict")
}

#[test]
fn a_system_call_that_a_container_refuses_is_not_a_riddle() {
    if !require("python3") {
        return;
    }
    let why = "operation not permitted (if a seccomp profile forbids a system call, as in a container, strace -f shows which)";
    let epoll = strict(libc::SYS_epoll_create1).args(["--", "sleep", "1000"]).start();
    epoll.expect_line(&format!("error: cannot start: {why}"));
    epoll.wait_for_end();
    assert_eq!(epoll.wait_exit().code(), Some(125));
}
