//! The control socket and panzerctl. 36, 67-69, 76.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::faults::{SOON, kill_9, serving_app, start_app, wait_gone};
use crate::support::{Builder, Panzer, eventually, free_port, require};

pub(crate) fn sleeper() -> Builder {
    Panzer::builder().args(["-w", "2", "--bake", "100ms", "--", "sleep", "1000"])
}

pub(crate) fn serving_sleeper() -> Panzer {
    let panzer = sleeper().start();
    panzer.wait_serving();
    panzer
}

pub(crate) fn panzerctl(panzer: &Panzer, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_panzerctl"));
    command.args(arguments).env("RUNTIME_DIRECTORY", panzer.path("run")).env_remove("XDG_RUNTIME_DIR");
    command.env("TMPDIR", panzer.folder()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn run(panzer: &Panzer, arguments: &[&str]) -> Output {
    panzerctl(panzer, arguments).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a client of its own sees.
struct Raw(BufReader<UnixStream>);

impl Raw {
    fn connect(panzer: &Panzer, name: &str) -> Raw {
        let stream = UnixStream::connect(panzer.path(&format!("run/{name}.sock"))).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Raw(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        // A panzer that has had enough closes, and a write fails: what it said of it is read.
        let _ = self.0.get_mut().write_all(bytes);
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.0.read_line(&mut line);
        line
    }
}

/// The client that panzer-control(7) shows, as it stands there.
#[test]
fn the_example_of_the_manual_reloads() {
    let page = include_str!("../../man/panzer-control.7");
    let code = page.split(".EX\n").nth(1).and_then(|rest| rest.split(".EE\n").next()).unwrap();
    let panzer = serving_sleeper();
    let code = code.replace("\\e", "\\").replace("my_app.sock", "sleep.sock");
    let mut client = Command::new("python3");
    let output = client.args(["-c", &code]).env("RUNTIME_DIRECTORY", panzer.path("run")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("starting\n"), "{}", text(&output.stdout));
    assert_eq!(panzer.status().serving().number, 2);
}

/// The manual names every command that there is.
#[test]
fn the_manual_of_the_protocol_has_every_command() {
    let page = include_str!("../../man/panzer-control.7");
    for line in
        include_str!("../../src/control/operator/requests.rs").split("pub enum Wanted {").nth(1).unwrap().lines()
    {
        let Some(name) = line.strip_prefix("    ").and_then(|line| line.strip_suffix(',')) else {
            if line == "}" {
                break;
            }
            continue;
        };
        assert!(page.contains(&format!(".B {}\n", name.to_lowercase())), "{name}");
    }
}

const STATUS: &[u8] = b"{\"version\":1,\"command\":\"status\"}\n";

#[test]
fn a_count_that_is_none_is_refused_by_main_as_well() {
    let panzer = serving_sleeper();
    let mut client = Raw::connect(&panzer, "sleep");
    client.send(b"{\"version\":1,\"command\":\"scale\",\"count\":\"x\"}\n");
    let answer = client.line();
    assert!(answer.contains("'x' is no count of workers: take 4, +1 or -1"), "{answer}");
}

/// Everybody else is answered at once, whatever one does.
#[track_caller]
fn assert_prompt(panzer: &Panzer) {
    let mut fastest = Duration::MAX;
    // The best of a few: the machine may be busy with other tests.
    for _ in 0..10 {
        let begun = Instant::now();
        let mut client = Raw::connect(panzer, "sleep");
        client.send(STATUS);
        assert!(client.line().contains("\"ok\":true"));
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest < Duration::from_millis(100), "answered after {fastest:?}");
}

#[test]
fn the_socket_is_for_its_owner_and_goes_with_the_end() {
    let panzer = serving_sleeper();
    let path = panzer.path("run/sleep.sock");
    let meta = fs::symlink_metadata(&path).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    panzer.signal(nix::sys::signal::Signal::SIGTERM);
    eventually(SOON, "it is removed", || !path.exists());
    panzer.wait_exit();
}

#[test]
fn a_stale_socket_is_replaced_and_a_symlink_is_not_followed() {
    let first = serving_sleeper();
    kill_9(first.pid());
    wait_gone(&[first.pid()]);
    let second = sleeper().env("RUNTIME_DIRECTORY", first.path("run")).start();
    second.wait_serving();
    assert_eq!(run(&first, &["status"]).status.code(), Some(0));
    second.stop();
    assert!(!first.path("run/sleep.sock").exists());
    first.wait_exit();
    let builder = Panzer::builder();
    symlink(builder.folder().join("target"), builder.folder().join("link")).unwrap();
    let third = builder.args(["--control", "link", "--", "sleep", "1000"]).start();
    third.expect_line("error: cannot listen on the control socket *link: it is a symlink, which is not followed");
    assert!(!third.path("target").exists());
    assert_eq!(third.wait_exit().code(), Some(125));
}

#[test]
fn a_control_socket_that_is_taken_is_an_error() {
    let first = serving_sleeper();
    let path = first.path("run/sleep.sock");
    let second = Panzer::builder().arg("--control").arg(&path).args(["--", "sleep", "1000"]).start();
    second
        .expect_line("error: the control socket *sleep.sock belongs to a process that runs; stop it, or give another");
    assert_eq!(second.wait_exit().code(), Some(125));
    assert_eq!(run(&first, &["status"]).status.code(), Some(0));
}

#[test]
fn status_tells_workers_and_queues() {
    let (panzer, port) = start_app(2);
    let output = run(&panzer, &["status"]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    assert!(table.contains("app: ready, main ") && table.contains(&format!("127.0.0.1:{port}")), "{table}");
    let json = text(&run(&panzer, &["status", "--json"]).stdout);
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["generations"][0]["workers"].as_array().unwrap().len(), 2);
    assert_eq!(status["listeners"][0]["queued"], 0);
    assert!(status["listeners"][0]["limit"].as_u64().unwrap() > 0);
    assert_eq!(status["pid"], panzer.pid());
}

#[test]
fn exit_codes_of_status_are_those_of_lsb() {
    let panzer = serving_sleeper();
    assert_eq!(run(&panzer, &["status"]).status.code(), Some(0));
    assert_eq!(run(&panzer, &["--name", "other", "status"]).status.code(), Some(3));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(panzer.pid()), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let stopped = run(&panzer, &["--name", "sleep", "--timeout", "300ms", "status"]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(panzer.pid()), nix::sys::signal::Signal::SIGCONT).unwrap();
    assert_eq!(stopped.status.code(), Some(4));
    assert!(text(&stopped.stderr).contains("no answer in time"));
    kill_9(panzer.pid());
    eventually(SOON, "it is dead", || run(&panzer, &["--name", "sleep", "status"]).status.code() == Some(1));
    panzer.wait_exit();
}

#[test]
fn with_several_running_one_must_be_named() {
    let first = serving_sleeper();
    let second = sleeper().env("RUNTIME_DIRECTORY", first.path("run")).start();
    second.wait_serving();
    let refused = run(&first, &["status"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("several run: sleep, sleep-2; say which by --name"));
    assert_eq!(text(&run(&first, &["list"]).stdout).lines().count(), 3, "a heading, and two");
    assert_eq!(run(&first, &["--name", "sleep-2", "stop"]).status.code(), Some(0));
    second.wait_exit();
    assert_eq!(run(&first, &["status"]).status.code(), Some(0));
}

#[test]
fn a_reload_is_answered_with_its_verdict() {
    let port = free_port();
    let panzer = serving_app(port, 2).start();
    panzer.wait_serving();
    let good = run(&panzer, &["reload", "--drained"]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stderr));
    let told = text(&good.stdout);
    assert!(told.contains("generation 2: 2 of 2 ready") || told.contains("generation 2: all ready"), "{told}");
    assert!(told.contains("generation 1 is draining") && told.contains("generation 2 serves after"), "{told}");
    assert!(panzer.status().generation(1).is_none(), "the old one is gone by then");
    panzer.expect_line("error: reload failed: generation 3");
    crate::support::write_executable(panzer.path("app"), "#!/bin/sh\nexit 7\n");
    let bad = run(&panzer, &["reload"]);
    assert_eq!(bad.status.code(), Some(1));
    let why = text(&bad.stderr);
    assert!(why.contains("reload failed: generation 3: worker ") && why.contains("exited with code 7"), "{why}");
    let mut raw = Raw::connect(&panzer, "app");
    raw.send(b"{\"version\":1,\"command\":\"reload\"}\n");
    panzer.expect_line("error: reload failed: generation 4");
    let last = std::iter::repeat_with(|| raw.line()).find(|line| line.contains("\"ok\"")).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&last).unwrap();
    assert_eq!((&answer["ok"], &answer["failed"][0]["code"]), (&false.into(), &7.into()), "{last}");
}

#[test]
fn several_who_reload_at_once_each_get_the_verdict_that_covers_them() {
    let panzer = serving_sleeper();
    let ask = || panzerctl(&panzer, &["reload"]).spawn().unwrap();
    let all: Vec<Child> = (0..6).map(|_| ask()).collect();
    for child in all {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("serves after"));
    }
    assert!(panzer.status().serving().number <= 7);
}

#[test]
fn a_stop_during_a_reload_is_a_definite_answer() {
    let panzer = Panzer::builder().args(["-w", "1", "--bake", "60s", "--ready", "notify", "--", "sh", "-c"]);
    let panzer = panzer.arg("exec sleep 1000").start();
    eventually(SOON, "it answers", || run(&panzer, &["status"]).status.code() == Some(0));
    let mut first = Raw::connect(&panzer, "sh");
    first.send(b"{\"version\":1,\"command\":\"reload\"}\n");
    assert!(first.line().contains("\"event\":\"starting\",\"generation\":2"));
    let mut second = Raw::connect(&panzer, "sh");
    second.send(b"{\"version\":1,\"command\":\"reload\"}\n");
    assert!(second.line().contains("\"event\":\"queued\",\"generation\":3"));
    let stopped = run(&panzer, &["exit"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", text(&stopped.stderr));
    for client in [&mut first, &mut second] {
        let last = std::iter::repeat_with(|| client.line()).find(|line| line.is_empty() || line.contains("\"ok\""));
        assert!(last.as_ref().is_some_and(|last| last.contains("panzer is being stopped")), "{last:?}");
    }
    panzer.wait_exit();
}

#[test]
fn garbage_is_an_error_and_disturbs_nobody() {
    let panzer = serving_sleeper();
    let deep = "[".repeat(3000) + "\n";
    for garbage in
        [&b"\0\0\0\n"[..], b"\xff\xfe\n", b"{}\n", b"{\"version\":9,\"command\":\"stop\"}\n", deep.as_bytes()]
    {
        let mut client = Raw::connect(&panzer, "sleep");
        client.send(garbage);
        let answer = client.line();
        assert!(answer.contains("\"ok\":false,\"error\":\""), "{answer}");
        client.send(STATUS);
        assert!(client.line().contains("\"ok\":true"), "it goes on after {garbage:?}");
    }
    let mut endless = Raw::connect(&panzer, "sleep");
    for _ in 0..1000 {
        endless.send(&[b'x'; 65536]);
    }
    assert_prompt(&panzer);
    // Half a line, and gone while the answer is on its way.
    for _ in 0..50 {
        let mut client = Raw::connect(&panzer, "sleep");
        client.send(STATUS);
        client.send(b"{\"ver");
    }
    assert_prompt(&panzer);
    // Asks and asks, and never reads.
    let mut deaf = Raw::connect(&panzer, "sleep");
    deaf.0.get_mut().set_nonblocking(true).unwrap();
    for _ in 0..2000 {
        deaf.send(STATUS);
    }
    assert_prompt(&panzer);
}

#[test]
fn many_silent_clients_keep_nobody_out() {
    let panzer = serving_sleeper();
    let mut silent: Vec<Raw> = (0..300).map(|_| Raw::connect(&panzer, "sleep")).collect();
    silent.iter_mut().for_each(|client| client.send(b"{\"version\""));
    eventually(SOON, "somebody makes room", || run(&panzer, &["status"]).status.code() == Some(0));
    assert_prompt(&panzer);
}

#[test]
fn another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can take another user");
        return;
    }
    let panzer = serving_sleeper();
    // Even where somebody opens the socket to all, which takes its owner.
    for (path, mode) in [("", 0o755), ("run", 0o755), ("run/sleep.sock", 0o666)] {
        fs::set_permissions(panzer.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new("python3");
    command.args([
        "-c",
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(999))",
    ]);
    let python = command.arg(panzer.path("run/sleep.sock")).env("PATH", crate::support::with_real_interpreter());
    use std::os::unix::process::CommandExt;
    let output = python.uid(65534).gid(65534).current_dir("/").output();
    let Ok(output) = output else { return eprintln!("skipped: another user cannot run python3 here") };
    let told = text(&output.stdout);
    assert!(told.contains("uid 65534 is neither the owner of this panzer nor root"), "{told}{}", text(&output.stderr));
}

#[test]
fn who_waits_for_readiness_is_told() {
    let panzer = sleeper().start();
    let output = run(&panzer, &["--name", "sleep", "--timeout", "20s", "status", "--wait-ready"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let never = run(&panzer, &["--name", "other", "--timeout", "200ms", "status", "--wait-ready"]);
    assert_eq!(never.status.code(), Some(1));
    assert!(text(&never.stderr).contains("not ready in time: other does not run"));
    panzer.wait_serving();
}

#[test]
fn a_stop_is_waited_for() {
    let panzer = serving_sleeper();
    let output = run(&panzer, &["shutdown"]);
    assert_eq!(text(&output.stdout), "stopping\nstopped\n");
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn one_that_sends_no_more_still_gets_its_answer() {
    let panzer = serving_sleeper();
    let mut client = Raw::connect(&panzer, "sleep");
    client.send(STATUS);
    client.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = String::new();
    client.0.read_to_string(&mut all).unwrap();
    assert!(all.contains("\"ok\":true") && all.ends_with('\n'), "{all}");
}

#[test]
fn with_few_descriptors_a_crowd_leaves_enough_for_a_reload() {
    let launcher = "#!/bin/sh\nulimit -n 32\nexec \"$@\"\n";
    let panzer = sleeper().executable("few", launcher).through("few").start();
    panzer.wait_serving();
    let crowd: Vec<Raw> = (0..100).map(|_| Raw::connect(&panzer, "sleep")).collect();
    let before = cpu_ticks(panzer.pid());
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    eventually(SOON, "it still answers", || run(&panzer, &["status"]).status.code() == Some(0));
    assert!(cpu_ticks(panzer.pid()) - before < 20, "main spins");
    drop(crowd);
}

/// The time that a process has used, in hundredths of a second.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split_ascii_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_client_that_waits_for_nothing_wakes_nobody() {
    let panzer = serving_sleeper();
    let mut client = Raw::connect(&panzer, "sleep");
    client.send(STATUS);
    assert!(client.line().contains("\"ok\":true"));
    let before = cpu_ticks(panzer.pid());
    // Until it is given up, for which there is one deadline.
    assert!(client.line().contains("no complete line within 10s"));
    assert!(client.line().is_empty());
    assert!(cpu_ticks(panzer.pid()) - before < 5, "main spins");
}

#[test]
fn a_wrong_command_line_is_told_in_one_line() {
    for (arguments, why) in [
        (&["relod"][..], "there is no command 'relod': did you mean 'reopen' or 'reload'?"),
        (&["status", "--jsn"], "unknown option '--jsn': did you mean '--json'?"),
        (&["scale"], "<N|+N|-N> is missing: see panzerctl --help"),
        (&["logs", "-n", "all"], "invalid value 'all' for --lines: it must be a whole number"),
        (&["status", "8"], "unexpected argument '8': --name NAME selects an instance; see panzerctl --help"),
        (&["reload", "--timeout", "soon"], "invalid value 'soon' for --timeout: not a duration"),
    ] {
        let refused = Command::new(env!("CARGO_BIN_EXE_panzerctl")).args(arguments).output().unwrap();
        let told = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{told}");
        assert!(told.starts_with(&format!("panzerctl: {why}")) && told.lines().count() == 1, "{told}");
    }
}

/// What starts next wants the pid file: a stop that returns earlier lets it be refused now and then.
#[test]
fn after_a_stop_the_next_one_has_its_place() {
    for command in ["stop", "exit"] {
        let panzer = sleeper().start();
        panzer.wait_serving();
        let before = panzer.mark();
        assert_eq!(run(&panzer, &[command]).status.code(), Some(0));
        // It has ended, and nobody has reaped it yet.
        panzer.wait_for_line_after(before, "panzer: stopped", SOON);
        assert!(fs::read_to_string(format!("/proc/{}/stat", panzer.pid())).unwrap().contains(") Z "));
        panzer.wait_exit();
    }
}

#[test]
fn a_reload_says_that_the_old_generation_still_drains() {
    let panzer = sleeper().start();
    panzer.wait_serving();
    let told = text(&run(&panzer, &["reload"]).stdout);
    assert!(told.contains("generation 1 still drains (reload --drained waits until it answers nobody)"), "{told}");
    let told = text(&run(&panzer, &["reload", "--drained"]).stdout);
    assert!(!told.contains("still drains"), "{told}");
    panzer.stop();
}

#[test]
fn a_draining_generation_can_be_hurried() {
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\ntrap '' TERM\ntrap 'exit 0' INT\nwhile :; do sleep 0.05; done\n")
        .args(["-w", "1", "--bake", "50ms", "--stop", "TERM/1h/INT/1h/KILL", "./app"])
        .start();
    panzer.wait_serving();
    assert_eq!(text(&run(&panzer, &["drain"]).stdout), "nothing drains any more\n");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    let wrong = run(&panzer, &["drain", "--now", "--generation", "2"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("generation 2 does not drain; these do: 1"), "{}", text(&wrong.stderr));
    panzer.expect_line("generation 1 goes on to the rest of its stop schedule, as asked");
    let told = text(&run(&panzer, &["drain", "--now", "--timeout", "20s"]).stdout);
    assert_eq!(told, "generation 1 is draining\nnothing drains any more\n");
    assert_eq!(panzer.status().generations.len(), 1);
    panzer.signal(nix::sys::signal::Signal::SIGQUIT);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

/// A file that is called "pid", as many deploy tools have it, names nobody.
#[test]
fn a_pid_file_by_that_name_is_not_what_an_instance_is_called() {
    let panzer = sleeper().env("PANZER_PID", "run/pid").start();
    panzer.wait_serving();
    let status = run(&panzer, &["--pid", panzer.path("run/pid").to_str().unwrap(), "status", "--json"]);
    assert!(text(&status.stdout).contains("\"name\":\"sleep\""), "{status:?}");
    panzer.stop();
}

#[test]
fn a_list_is_of_the_one_that_is_named() {
    let one = |name: &str| {
        let options = ["-w", "1", "--name", name, "--ready", "alive", "--bake", "50ms", "--share-ports", "off"];
        let panzer = Panzer::start(options.iter().chain(&["--", "sleep", "1000"]));
        panzer.wait_serving();
        panzer
    };
    let (here, there) = (one("here"), one("there"));
    let pid_file = there.path("run/there.pid");
    let list = |options: &[&str]| run(&here, &[options, &["list"]].concat());
    let listed = list(&["-p", pid_file.to_str().unwrap()]);
    assert!(text(&listed.stdout).contains("\nthere ") && !text(&listed.stdout).contains("here.pid"), "{listed:?}");
    assert_eq!(text(&list(&[]).stdout).lines().count(), 2);
    let missing = list(&["-p", "/nowhere/x.pid"]);
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");
    assert!(text(&missing.stderr).contains("x does not run: nobody listens on /nowhere/x.sock"), "{missing:?}");
    here.stop();
    there.stop();
}

#[test]
fn what_cannot_be_written_is_no_success() {
    let panzer = serving_sleeper();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for wrong in [&["--name", "", "status"][..], &["--name", "a/b", "status"], &["logs", "-n", "-1"]] {
        assert_eq!(run(&panzer, wrong).status.code(), Some(2), "{wrong:?}");
    }
    let watched = [&["status", "--watch"][..], &["status", "--watch", "--json"]];
    for arguments in watched.into_iter().chain([
        &["status"][..],
        &["status", "--json"],
        &["metrics"],
        &["list"],
        &["reload"],
        &["--help"],
        &["--version"],
    ]) {
        let done = panzerctl(&panzer, arguments).stdout(full()).output().unwrap();
        assert_eq!(done.status.code(), Some(1), "{arguments:?}");
        let why = "panzerctl: cannot write to stdout: no space left on device\n";
        assert_eq!(text(&done.stderr), why, "{arguments:?}");
    }
    for argument in ["--help", "--check"] {
        let mut shown = Command::new(env!("CARGO_BIN_EXE_panzer"));
        let done = shown.args([argument, "sleep"]).stdout(full()).output().unwrap();
        assert_eq!(done.status.code(), Some(1), "{argument}");
        assert_eq!(text(&done.stderr), "panzer: cannot write to stdout: no space left on device\n");
    }
    panzer.stop();
}

#[test]
fn one_of_another_user_is_not_said_not_to_run() {
    if !nix::unistd::geteuid().is_root() || !require("setpriv") {
        return;
    }
    let panzer = serving_sleeper();
    crate::support::copy_executable(env!("CARGO_BIN_EXE_panzerctl"), panzer.path("panzerctl"));
    for path in [panzer.folder().to_owned(), panzer.path("run")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(panzer.path("panzerctl")).arg("status");
    let done = nobody.env("RUNTIME_DIRECTORY", panzer.path("run")).output().unwrap();
    assert_eq!(done.status.code(), Some(4), "{done:?}");
    assert!(text(&done.stderr).contains("is not open to your user; take its owner's"), "{done:?}");
    panzer.stop();
}
