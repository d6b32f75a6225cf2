//! Several operators at once, who want different things. 47
//!
//! Each round has a seed of its own, which a failure names: `PANZER_OPERATORS_SEED=7` plays that one,
//! `PANZER_OPERATORS_SECONDS=60` plays for a minute.

use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use crate::control::{run, text};
use crate::support::{Panzer, eventually};
use crate::zero_loss::START;

const CLIENTS: u64 = 4;

/// Each round ends with a stop.
const COMMANDS: u64 = 6;

/// What runs where nothing else is asked for.
const SECONDS: u64 = 8;

/// What somebody may be told who did not get what he wanted.
const REFUSALS: [&str; 9] = [
    "panzer is being stopped",
    "panzer has ended",
    "reload given up: panzer is being stopped",
    "panzer was told to end all workers meanwhile",
    "at least one worker is kept; panzerctl quiet ends them all",
    // The end came before the answer.
    "sleep does not run",
    "no panzer runs",
    "closed the connection",
    "is gone",
];

/// xorshift64*: the same seed gives the same commands.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

fn command(random: &mut Random) -> Vec<&'static str> {
    match random.below(12) {
        0..=2 => vec!["reload"],
        3 => vec!["reload", "--drained"],
        4 => vec!["reload", "--no-wait"],
        5 => vec!["scale", "+1"],
        6 => vec!["scale", "-1"],
        7 => vec!["scale", ["1", "2", "4"][random.below(3) as usize]],
        8 => vec!["quiet"],
        9 => vec!["signal", "WINCH"],
        _ => vec!["status", "--json"],
    }
}

/// Whether it was done, or refused in so many words.
fn is_definite(arguments: &[&str], output: &Output) -> Result<(), String> {
    let (code, why) = (output.status.code(), text(&output.stderr));
    let known = REFUSALS.iter().any(|known| why.contains(known));
    let signal = arguments[0] == "signal" && (why.contains("no worker got it") || why.contains("its monitor"));
    match code {
        Some(0) if why.is_empty() => Ok(()),
        Some(1 | 3 | 4) if known || signal => Ok(()),
        _ => Err(format!("{arguments:?} ended with {code:?}: {why}")),
    }
}

fn operate(panzer: &Panzer, seed: u64, stops: bool) -> Result<(), String> {
    let mut random = Random::new(seed);
    for _ in 0..COMMANDS {
        let arguments = command(&mut random);
        is_definite(&arguments, &run(panzer, &arguments))?;
    }
    let stop = if stops { vec![["stop", "exit"][random.below(2) as usize]] } else { vec!["status"] };
    is_definite(&stop, &run(panzer, &stop))
}

/// At every moment there is at most one generation that serves and one that starts.
fn look_on(panzer: &Panzer) {
    let output = run(panzer, &["status", "--json"]);
    let status = text(&output.stdout);
    let count = |standing: &str| status.matches(&format!("\"standing\":\"{standing}\"")).count();
    assert!(count("serving") <= 1 && count("starting") <= 1, "{status}");
}

fn play(seed: u64) {
    let surge = ["all", "1"][(seed % 2) as usize];
    let arguments = ["-w", "2", "--surge", surge, "--bake", "20ms", "--", "sleep", "1000"];
    let panzer = Panzer::builder().args(arguments).start();
    panzer.wait_serving();
    for line in ["reload failed: * panzer was told to end all workers meanwhile", "at least one worker is kept"] {
        panzer.allow_line(line);
    }
    let outcomes: Vec<_> = thread::scope(|clients| {
        let client = |number| {
            let panzer = &panzer;
            clients.spawn(move || operate(panzer, seed * CLIENTS + number, number == seed % CLIENTS))
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        eventually(START, "all clients have their answers", || {
            look_on(&panzer);
            clients.iter().all(|client| client.is_finished())
        });
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    for outcome in outcomes {
        assert_eq!(outcome, Ok(()), "PANZER_OPERATORS_SEED={seed}");
    }
    assert_eq!(panzer.wait_exit().code(), Some(0), "PANZER_OPERATORS_SEED={seed}");
}

#[test]
fn each_gets_a_definite_answer_and_nothing_is_left() {
    if let Some(seed) = from_environment("PANZER_OPERATORS_SEED") {
        return play(seed);
    }
    let seconds = from_environment("PANZER_OPERATORS_SECONDS").unwrap_or(SECONDS);
    let until = Instant::now() + Duration::from_secs(seconds);
    let rounds = (1..).take_while(|_| Instant::now() < until).map(play).count();
    eprintln!("{rounds} rounds, each with {CLIENTS} operators and {COMMANDS} commands of each");
}
