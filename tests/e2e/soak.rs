//! Long runs at random: kills of anybody, and everything that a panzer does in a month. Each plays a short version in the
//! ordinary run. `PANZER_KILLS` is the number of kills, `PANZER_SOAK` the time of the soak, `PANZER_SEED` the seed of both.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::{run, text};
use crate::faults::is_alive;
use crate::load::{Load, Mode};
use crate::support::{Builder, Panzer, Process, as_mold, descendants, eventually, free_port, require};
use crate::zero_loss::clients::{BothKinds, Seen};

const SOON: Duration = Duration::from_secs(60);

/// A part of a long run: a load ends by itself after ten minutes.
const ROUND: Duration = Duration::from_secs(120);

fn given<T>(variable: &str, read: impl Fn(&str) -> Option<T>, otherwise: T) -> T {
    let Ok(text) = std::env::var(variable) else { return otherwise };
    read(&text).unwrap_or_else(|| panic!("{variable}={text} is not understood"))
}

/// Numbers at random (SplitMix64).
struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        let seed = given("PANZER_SEED", |text| text.parse().ok(), 1);
        eprintln!("PANZER_SEED={seed}");
        Dice(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    #[allow(clippy::disallowed_methods, reason = "a moment at random is what is wanted, and no condition")]
    fn pause(&mut self, longest: Duration) {
        std::thread::sleep(Duration::from_micros(self.below(longest.as_micros() as u64)));
    }
}

/// examples/my_app, where each worker writes a line for each request and reports how many it has served.
fn app() -> String {
    let counts = "\
served = 0


def count():
    global served
    served += 1
    print('request', served, file=sys.stderr, flush=True)
    if path := os.environ.get('NOTIFY_SOCKET'):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b'X_PANZER_REQUESTS=%d' % served, path.replace('@', '\\0', 1))


def answer(head):
    count()
";
    let original = include_str!("../../examples/my_app");
    let app = original.replacen("def answer(head):\n", counts, 1).replacen(
        "import socket\n",
        "import socket\nimport sys\n",
        1,
    );
    assert!(app.contains("    count()\n") && app.contains("import sys\n"));
    app
}

fn builder(port: u16, workers: usize, longest: Duration) -> Builder {
    let listen = format!("127.0.0.1:{port}");
    let options = [
        "-w",
        &workers.to_string(),
        "-l",
        &listen,
        "--bake",
        "50ms",
        "--log",
        "app.log",
        "--log-size",
        "32K",
        "--log-keep",
        "2",
    ];
    Panzer::builder().executable("app", &app()).args(options).lasting(longest)
}

/// Starts main again whenever it was killed.
const AGAIN: &str = "#!/bin/sh
trap 'stop=1; kill -TERM $main' TERM
while :; do
    \"$@\" &
    main=$!
    wait $main
    code=$?
    while kill -0 $main 2> /dev/null; do wait $main; code=$?; done
    [ -z \"$stop\" ] && [ $code = 137 ] || exit $code
done
";

fn main_of(panzer: &Panzer) -> Option<i32> {
    fs::read_to_string(panzer.path("run/app.pid")).ok()?.trim().parse().ok()
}

fn is_role(process: &Process, role: &str) -> bool {
    let command = fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
    command.starts_with(&format!("panzer: {role}"))
}

/// Somebody to kill, with a word for who it is.
fn victim(panzer: &Panzer, dice: &mut Dice) -> Option<(&'static str, i32)> {
    let below = descendants(panzer.pid());
    let of_role = |role| below.iter().filter(move |process| is_role(process, role));
    let monitors: BTreeSet<i32> = of_role("monitor").map(|monitor| monitor.pid).collect();
    let children = below.iter().filter(|process| monitors.contains(&process.parent));
    // A monitor starts its mold before its workers.
    let mold = children.clone().min_by_key(|process| process.started).map(|mold| mold.pid);
    let workers: Vec<i32> = children.map(|child| child.pid).filter(|pid| Some(*pid) != mold).collect();
    let one_of =
        |pids: &[i32], dice: &mut Dice| (!pids.is_empty()).then(|| pids[dice.below(pids.len() as u64) as usize]);
    let (word, pid) = match dice.below(5) {
        0 => ("main", main_of(panzer)),
        1 => ("monitor", one_of(&Vec::from_iter(monitors), dice)),
        2 => ("logger", of_role("logger").next().map(|logger| logger.pid)),
        3 => ("mold", mold),
        _ => ("worker", one_of(&workers, dice)),
    };
    // While main is started again, its file may have the pid of the one before.
    Some((word, pid.filter(|pid| below.iter().any(|process| process.pid == *pid))?))
}

/// All in the session of the test's panzer, zombies too.
fn in_session(leader: i32) -> Vec<(Process, bool)> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let all = pids.filter_map(Process::look).filter(|process| process.session == leader && process.pid != leader);
    all.map(|process| (process, process.zombie)).collect()
}

fn listening(port: u16) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let address = format!(":{port:04X} ");
    table.lines().filter(|line| line.contains(&address) && line.split_whitespace().nth(3) == Some("0A")).count()
}

/// All is as after a start: every worker ready, everybody below main, nobody dead among them, one listener.
fn wait_whole(panzer: &Panzer, port: u16, workers: usize) {
    let mut seen = String::new();
    let is_whole = || {
        let status = text(&run(panzer, &["status", "--json"]).stdout);
        let ready = status.matches("\"state\":\"ready\"").count();
        let session = in_session(panzer.pid());
        let main = main_of(panzer).unwrap_or_default();
        let below: Vec<i32> = descendants(main).iter().map(|process| process.pid).collect();
        let strays: Vec<String> = session
            .iter()
            .filter(|(process, zombie)| *zombie || (process.pid != main && !below.contains(&process.pid)))
            .map(|(process, _)| process.describe())
            .collect();
        let generations = status.matches("\"standing\":").count();
        seen = format!("{} listeners, {strays:#?}, {status}", listening(port));
        generations == 1 && ready >= workers && strays.is_empty() && listening(port) == 1
    };
    let deadline = Instant::now() + SOON;
    let mut is_whole = is_whole;
    eventually(SOON * 2, "all is whole again, or too long ago", || is_whole() || Instant::now() > deadline);
    assert!(Instant::now() <= deadline, "{seen}");
}

#[test]
fn after_seeded_kills_of_anybody_all_is_as_at_the_start() {
    if !require("python3") {
        return;
    }
    let kills = given("PANZER_KILLS", |text| text.parse().ok(), 5);
    let workers = if kills > 100 { 4 } else { 2 };
    let mut dice = Dice::new();
    as_mold(|| {
        let port = free_port();
        let panzer =
            builder(port, workers, Duration::from_secs(10) * kills).executable("again", AGAIN).through("again");
        // Whoever is killed is told of; what must not be there is looked for at the end.
        let panzer = panzer
            .args(["--name", "app", "--stop", "TERM/500ms/KILL", "--delay", "10ms", "./app"])
            .allow_line("")
            .start();
        panzer.wait_serving();
        let load = Load::new(port, Mode::NewConnection, 2).pause(Duration::from_millis(5)).start();
        let mut killed: Vec<&str> = Vec::new();
        while killed.len() < kills as usize {
            dice.pause(Duration::from_millis(400));
            assert!(is_alive(panzer.pid()), "main ended by itself after {} kills", killed.len());
            if dice.below(8) == 0 {
                // Where main is just being started again, nobody is there to be asked.
                drop(run(&panzer, &["reload", "--no-wait"]));
            }
            if let Some((word, pid)) = victim(&panzer, &mut dice)
                && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
            {
                killed.push(word);
            }
        }
        wait_whole(&panzer, port, workers);
        let seen = load.stop();
        assert!(seen.answered > 0, "{seen}");
        let words: BTreeSet<&str> = killed.iter().copied().collect();
        for word in words {
            eprintln!("{word}: {} killed", killed.iter().filter(|one| **one == word).count());
        }
        eprintln!("{seen}");
        let broken = |line: &&String| line.contains("panicked") || line.contains("cannot go on");
        assert_eq!(panzer.lines().iter().find(broken), None);
        assert_eq!(panzer.stop().code(), Some(0));
    });
}

/// What panzer's own processes use: descriptors, and memory of their own (PSS in KiB), of main, monitor and logger.
#[derive(Debug)]
struct Use {
    descriptors: Vec<usize>,
    memory: u64,
}

fn own(panzer: &Panzer) -> Vec<i32> {
    let below = descendants(panzer.pid());
    let roles = below.iter().filter(|process| is_role(process, "")).map(|process| process.pid);
    std::iter::once(panzer.pid()).chain(roles).collect()
}

fn used(panzer: &Panzer) -> Use {
    let memory = |pid: &i32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        // Not of files: what a page of the binary counts depends on how many other tests run.
        let own = rollup.lines().filter_map(|line| line.strip_prefix("Pss_Anon:").or(line.strip_prefix("Pss_Shmem:")));
        own.map(|line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    let pids = own(panzer);
    let count = |pid: &i32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let mut descriptors: Vec<usize> = pids.iter().map(count).collect();
    // The pids of later processes may be lower.
    descriptors.sort_unstable();
    Use { descriptors, memory: pids.iter().map(memory).sum() }
}

fn wakes(panzer: &Panzer) -> u64 {
    let of = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let lines = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        lines.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum::<u64>()
    };
    own(panzer).iter().map(of).sum()
}

/// Waits until nobody of panzer's has woken for half a second.
fn wait_asleep(panzer: &Panzer) {
    let mut last = (wakes(panzer), Instant::now());
    eventually(SOON, "panzer sleeps", || {
        let now = wakes(panzer);
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(500)
    });
}

/// Does one thing that a user may do; it must succeed.
fn act(panzer: &Panzer, which: u64, dice: &mut Dice) {
    let number = (2 + dice.below(5)).to_string();
    let arguments = match which {
        0 => vec!["reload"],
        1 => vec!["scale", &number],
        2 => {
            // Where a rotation is just under way, there may be none.
            drop(fs::rename(panzer.path("app.log"), panzer.path("moved.log")));
            vec!["reopen"]
        }
        _ => vec!["restart"],
    };
    let done = run(panzer, &arguments);
    assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
}

fn settle(panzer: &Panzer, port: u16) -> Use {
    let scaled = run(panzer, &["scale", "4"]);
    assert!(scaled.status.success(), "{}", text(&scaled.stderr));
    wait_whole(panzer, port, 4);
    wait_asleep(panzer);
    used(panzer)
}

#[test]
fn in_a_long_life_nothing_is_lost_and_nothing_grows() {
    if !require("python3") {
        return;
    }
    let time = given("PANZER_SOAK", |text| panzer::config::duration::parse(text).ok(), Duration::from_secs(1));
    let mut dice = Dice::new();
    let port = free_port();
    let panzer = builder(port, 4, 2 * time).args([
        "--name",
        "app",
        "--max-requests",
        "100",
        "--healthy-after",
        "100ms",
        "./app",
    ]);
    let panzer = panzer.allow_line("replacing it").allow_line("has taken the place of").allow_line("restart").start();
    panzer.wait_serving();
    let mut seen = Seen::default();
    let mut done = [0; 4];
    let load = BothKinds::of(1, port);
    // Once each before, since what is done for the first time takes memory for good.
    (0..4).for_each(|which| act(&panzer, which, &mut dice));
    seen.add(load.stop());
    let before = settle(&panzer, port);
    let end = Instant::now() + time;
    while Instant::now() < end {
        let load = BothKinds::of(2, port);
        let round = end.min(Instant::now() + ROUND);
        while Instant::now() < round {
            let which = dice.below(4);
            act(&panzer, which, &mut dice);
            done[which as usize] += 1;
            dice.pause(Duration::from_millis(500));
        }
        seen.add(load.stop());
        eprintln!("reloads, scalings, rotations, restarts: {done:?}; {:?}", used(&panzer));
    }
    let after = settle(&panzer, port);
    seen.print("the soak");
    eprintln!("{before:?}\n{after:?}\n{}", text(&run(&panzer, &["metrics"]).stdout));
    assert_eq!(seen.dropped(), 0);
    assert_eq!(before.descriptors, after.descriptors);
    // The logger keeps the last lines of workers that have ended, up to 256 KiB, and its heap takes some minutes to find its size.
    assert!(after.memory < before.memory + 1024, "{} KiB before, {} after", before.memory, after.memory);
    assert_eq!(panzer.stop().code(), Some(0));
}
