//! panzerctl logs: the last lines that workers wrote, and those that follow.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::process::{Child, ChildStdout};
use std::sync::mpsc::{Receiver, channel};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::{panzerctl, run, text};
use crate::control_status::Terminal;
use crate::faults::{SOON, kill_9};
use crate::logs::{logger, logging};
use crate::support::{Builder, Panzer, eventually, heed_ctrl_c};

/// Writes a line whenever one comes in through a FIFO of its own.
const ECHO: &str = "#!/bin/sh
[ -p in.$PANZER_WORKER_ID ] || mkfifo in.$PANZER_WORKER_ID
exec 3<>in.$PANZER_WORKER_ID
while read -r line <&3; do printf '%b\\n' \"$line\"; done
";

fn echoing(workers: &str, options: &[&str]) -> Panzer {
    let panzer = logging(ECHO).args(["-w", workers]).args(options).start();
    assert!(run(&panzer, &["status", "--wait-ready"]).status.success());
    panzer
}

fn say(panzer: &Panzer, worker: u32, line: &str) {
    let path = panzer.path(&format!("in.{worker}"));
    eventually(SOON, "the worker listens", || path.exists());
    fs::write(path, format!("{line}\n")).unwrap();
}

fn wait_written(panzer: &Panzer, line: &str) {
    let path = panzer.path("out.log");
    eventually(SOON, "a line is written", || fs::read_to_string(&path).is_ok_and(|all| all.contains(line)));
}

fn logs(panzer: &Panzer, arguments: &[&str]) -> String {
    let output = run(panzer, &[&["logs"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn start(panzer: &Panzer, arguments: &[&str]) -> Follower {
        let mut command = panzerctl(panzer, &[&["logs", "-f"], arguments].concat());
        let mut child = heed_ctrl_c(&mut command).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, receiver) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Follower { child, lines: receiver }
    }

    #[track_caller]
    fn expect(&self, line: &str) {
        assert_eq!(self.lines.recv_timeout(SOON).as_deref(), Ok(line));
    }

    fn wait(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(self.lines.try_recv().ok(), None);
        (self.child.wait().unwrap().code(), said)
    }
}

#[test]
fn the_last_lines_are_shown_also_from_rotated_files() {
    for compress in [&[][..], &["--log-compress"]] {
        let panzer = echoing("1", &[&["--log", "out.log", "--log-size", "20"], compress].concat());
        for number in 10..30 {
            say(&panzer, 0, &format!("line {number}"));
            wait_written(&panzer, &format!("line {number}"));
        }
        let lines = |numbers: std::ops::Range<u32>| numbers.map(|it| format!("line {it}\n")).collect::<String>();
        assert_eq!(logs(&panzer, &[]), lines(20..30));
        assert_eq!(logs(&panzer, &["-n", "1"]), lines(29..30));
        // The present file and five others, of two lines each.
        assert_eq!(logs(&panzer, &["-n", "1000"]), lines(18..30));
        panzer.stop();
    }
}

#[test]
fn lines_are_followed_over_rotation_moving_and_reopening_until_panzer_ends() {
    let panzer = echoing("1", &["--log", "out.log", "--log-size", "30"]);
    say(&panzer, 0, "before");
    wait_written(&panzer, "before");
    let follower = Follower::start(&panzer, &[]);
    follower.expect("before");
    for number in 0..12 {
        say(&panzer, 0, &format!("line number {number}"));
        follower.expect(&format!("line number {number}"));
        match number {
            3 => fs::rename(panzer.path("out.log"), panzer.path("moved")).unwrap(),
            5 => assert!(run(&panzer, &["reopen"]).status.success()),
            7 => {
                let before = logger(&panzer);
                kill_9(before);
                panzer.expect_line("error: the logger was killed by SIGKILL; starting another");
                eventually(SOON, "another logger", || logger(&panzer) != before);
            }
            9 => assert!(run(&panzer, &["restart"]).status.success()),
            _ => {}
        }
    }
    panzer.stop();
    let (code, said) = follower.wait();
    assert_eq!((code, said.as_str()), (Some(0), "panzerctl: app has ended\n"));
}

#[test]
fn a_follower_ends_with_its_reader_and_by_ctrl_c() {
    let panzer = echoing("1", &["--log", "out.log"]);
    say(&panzer, 0, "before");
    wait_written(&panzer, "before");
    let mut child = panzerctl(&panzer, &["logs", "-f"]).spawn().unwrap();
    let mut reader: BufReader<ChildStdout> = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    drop(reader);
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("before\n", Some(0)));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    let follower = Follower::start(&panzer, &[]);
    follower.expect("before");
    kill(Pid::from_raw(follower.child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(follower.wait(), (None, String::new()));
    panzer.stop();
}

#[test]
fn lines_of_one_worker_or_generation_are_chosen() {
    for origin in [&["--log-prefix"][..], &["--log-format", "json"]] {
        let panzer = echoing("2", &[&["--log", "out.log"], origin].concat());
        panzer.allow_line("{");
        for worker in [0, 1] {
            say(&panzer, worker, &format!("of worker {worker}"));
            wait_written(&panzer, &format!("of worker {worker}"));
        }
        assert!(run(&panzer, &["reload", "--drained"]).status.success());
        say(&panzer, 1, "of the second");
        wait_written(&panzer, "of the second");
        let shown = |arguments: &[&str]| logs(&panzer, arguments);
        assert_eq!(shown(&[]).lines().count(), 3);
        let first = shown(&["--worker", "0"]);
        assert!(first.lines().count() == 1 && first.contains("of worker 0"), "{first}");
        assert_eq!(shown(&["--worker", "1"]).lines().count(), 2);
        let second = shown(&["--worker", "1", "--generation", "2"]);
        assert!(second.lines().count() == 1 && second.contains("of the second"), "{second}");
        let follower = Follower::start(&panzer, &["--worker", "0"]);
        say(&panzer, 1, "not this");
        say(&panzer, 0, "but this");
        for expected in ["of worker 0", "but this"] {
            let line = follower.lines.recv_timeout(SOON).unwrap();
            assert!(line.contains(expected), "{line}");
        }
        panzer.stop();
        follower.wait();
    }
    let panzer = echoing("1", &["--log", "out.log"]);
    let refused = run(&panzer, &["logs", "--worker", "0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--log-prefix or --log-format json"), "{}", text(&refused.stderr));
    panzer.stop();
}

#[test]
fn where_there_is_no_file_the_way_to_one_is_told() {
    let refused = |builder: Builder, why: &str| {
        let panzer = builder.start();
        panzer.wait_serving();
        let output = run(&panzer, &["logs", "-f"]);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(why), "{why}: {said}");
        panzer.stop();
    };
    let sleeping = || logging("#!/bin/sh\nexec sleep 1000\n").args(["-w", "1"]);
    refused(sleeping(), "panzer keeps no logs: the workers write to its own stdout (/dev/null) and stderr (a pipe)");
    refused(sleeping().args(["--log", "-"]), "the logs go to panzer's own stdout (/dev/null)");
    refused(sleeping().args(["--log", "/dev/null"]), "/dev/null is not a regular file");
    let panzer = sleeping().args(["--log", "out.log"]).start();
    panzer.wait_serving();
    let path = panzer.path("out.log");
    eventually(SOON, "the log is opened", || path.exists());
    fs::rename(&path, panzer.path("moved")).unwrap();
    let output = run(&panzer, &["logs"]);
    assert!(output.status.success() && text(&output.stderr).contains("panzerctl reopen makes it anew"));
    symlink("moved", &path).unwrap();
    let output = run(&panzer, &["logs"]);
    assert!(!output.status.success() && text(&output.stderr).contains("is a symbolic link, which is not followed"));
    panzer.stop();
}

#[test]
fn stdout_and_stderr_that_have_files_of_their_own_are_shown_below_their_names() {
    let script = "#!/bin/sh\necho out\necho err >&2\nexec sleep 1000\n";
    let panzer = logging(script).args(["-w", "1", "--stdout", "out.log", "--stderr", "err.log"]).start();
    panzer.wait_serving();
    let folder = panzer.folder().to_owned();
    let expected = format!("==> {}/out.log <==\nout\n\n==> {}/err.log <==\nerr\n", folder.display(), folder.display());
    eventually(SOON, "both are shown", || logs(&panzer, &[]) == expected);
    panzer.stop();
}

#[test]
fn a_terminal_gets_colours_but_no_other_control_characters() {
    let panzer = echoing("1", &["--log", "out.log"]);
    say(&panzer, 0, "\\033[31mred\\033[2J\\a");
    wait_written(&panzer, "red");
    assert_eq!(logs(&panzer, &[]), "\x1b[31mred\x1b[2J\x07\n");
    let mut command = panzerctl(&panzer, &["logs"]);
    command.env_remove("NO_COLOR");
    let mut terminal = Terminal::start(command);
    assert!(terminal.child.wait().unwrap().success());
    eventually(SOON, "it is shown", || terminal.text() == "\x1b[31mred?[2J?\x1b[0m\r\n");
    let mut top = Terminal::start(panzerctl(&panzer, &["top"]));
    eventually(SOON, "the workers are shown", || top.text().contains("RESPAWNS"));
    top.keyboard.write_all(b"l").unwrap();
    eventually(SOON, "the logs are shown", || top.text().contains("red?[2J?"));
    top.keyboard.write_all(b"q").unwrap();
    assert!(top.child.wait().unwrap().success());
    panzer.stop();
}
