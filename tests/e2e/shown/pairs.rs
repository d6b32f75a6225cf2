//! Tables that put another tool's command lines on the left, and panzer's on the right: `<!-- pairs -->`.
//!
//! A row whose right side is `panzer …` starts panzer. The rows of `panzerctl …` and `kill …` below it are run while that
//! panzer serves. A right side that begins with `--` is options, which `panzer --check` must accept. With PANZER_TEST_THEIRS
//! set, the left side is started and run in the same way, if the tool is installed.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Page, SOON, Shown, can_run, code_in, is_command, run_beside};
use crate::support::{descendants, eventually, get, kill_exactly, there_is, with_real_interpreter};

/// A row of such a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    theirs: Option<String>,
    pub(super) ours: String,
}

impl Pair {
    fn starts(&self) -> bool {
        self.ours == "panzer" || self.ours.starts_with("panzer ")
    }

    fn is_options(&self) -> bool {
        self.ours.starts_with("--")
    }
}

/// The rows that have a command or options on their right side.
pub(super) fn pairs(rows: &[String]) -> Vec<Pair> {
    let pair = |row: &String| {
        let (theirs, ours) = row.trim_matches(['|', ' ']).split_once(" | ")?;
        let theirs = code_in(theirs).next().map(str::to_owned);
        let ours = code_in(ours).next()?.to_owned();
        let pair = Pair { theirs, ours };
        (pair.starts() || pair.is_options() || is_command(&pair.ours)).then_some(pair)
    };
    rows.iter().filter_map(pair).collect()
}

pub(super) fn run_pairs(page: &Page, pairs: &[Pair]) {
    let (options, commands): (Vec<&Pair>, Vec<&Pair>) = pairs.iter().partition(|pair| pair.is_options());
    options
        .into_iter()
        .for_each(|pair| page.run(&shown(format!("panzer --check {} true", pair.ours)), page.folder.path()));
    for group in commands.chunk_by(|_, next| !next.starts()) {
        let [start, beside @ ..] = group else { continue };
        assert!(start.starts(), "{}: no row above it starts panzer", start.ours);
        let theirs: Vec<&str> = beside.iter().filter_map(|pair| pair.theirs.as_deref()).collect();
        start.theirs.iter().for_each(|line| try_theirs(page, line, &theirs));
        if !can_run(&start.ours) {
            continue;
        }
        let ours: Vec<Shown> = beside.iter().map(|pair| shown(pair.ours.clone())).collect();
        if ours.is_empty() { page.serves(&start.ours) } else { run_beside(page, &start.ours, &ours) }
    }
}

fn shown(line: String) -> Shown {
    Shown { line, prints: Vec::new() }
}

fn try_theirs(page: &Page, line: &str, beside: &[&str]) {
    let tool = line.split(' ').find(|word| !word.contains('=')).unwrap();
    if env::var_os("PANZER_TEST_THEIRS").is_none() || !there_is(tool) || !can_run(line) {
        return;
    }
    println!("their $ {line}");
    let mut process = start(page, line);
    // Its port may be in a file of its own.
    let files = line.split(' ').filter_map(|word| std::fs::read_to_string(page.folder.path().join(word)).ok());
    let named = files.fold(line.to_owned(), |named, file| named + &file);
    for address in page.addresses(&named) {
        eventually(SOON, &format!("{line} serves"), || get(&address, "/").is_ok());
    }
    for command in beside {
        let command = page.here(command).replace("<pid>", &process.id().to_string());
        println!("their $ {command}");
        let mut said = String::new();
        eventually(SOON, &format!("{command} succeeds"), || {
            let (status, printed) = page.sh(&command, page.folder.path());
            said = printed;
            status.success()
        });
        println!("{said}");
    }
    let below = descendants(process.id().cast_signed());
    // A command may have stopped it. Unicorn drops a signal that comes soon after others, so it is sent again.
    let mut sent: Option<Instant> = None;
    eventually(SOON, &format!("{line} ends"), || {
        let ended = process.try_wait().unwrap().is_some();
        if !ended && sent.is_none_or(|at| at.elapsed() > Duration::from_secs(3)) {
            kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGTERM).unwrap();
            sent = Some(Instant::now());
        }
        ended
    });
    below.iter().for_each(kill_exactly);
}

fn start(page: &Page, line: &str) -> Child {
    let log = std::fs::File::create(page.folder.path().join("their.log")).unwrap();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec {}", page.here(line))).current_dir(page.folder.path()).process_group(0);
    shell.env("PATH", with_real_interpreter()).env("HOME", page.folder.path()).stdin(Stdio::null());
    shell.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

#[test]
fn a_pair_is_a_row_with_a_command_on_its_right() {
    let rows = [
        "| a | b |",
        "| --- | --- |",
        "| `x --y` | `panzer -w 2 ./z` |",
        "| `x` | see below |",
        "| `-q` | `--quiet` |",
    ];
    let found = pairs(&rows.map(str::to_owned));
    let pair = |theirs: &str, ours: &str| Pair { theirs: Some(theirs.to_owned()), ours: ours.to_owned() };
    assert_eq!(found, [pair("x --y", "panzer -w 2 ./z"), pair("-q", "--quiet")]);
}
