//! The table that panzer prints on TTIN, taken apart.

/// One worker's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    pub slot: u32,
    /// None where the slot has no process.
    pub pid: Option<i32>,
    /// `starting`, `ready`, `stopping`, `stopped`, `waiting` or `empty`.
    pub phase: String,
    /// The rest of the line: since when, respawns, and why the last one ended.
    pub rest: String,
}

/// One generation's lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    pub number: u32,
    /// `serving`, `starting` or `draining`.
    pub standing: String,
    pub monitor: Option<i32>,
    /// With `--preload`.
    pub mold: Option<Worker>,
    pub workers: Vec<Worker>,
}

/// The whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub main: i32,
    pub generations: Vec<Generation>,
}

impl Status {
    /// Reads `lines`, of which the first is main's. Lines that others wrote in between are passed over.
    pub fn parse(lines: &[String]) -> Status {
        let mut messages = lines.iter().filter_map(|line| line.split_once("Z panzer: ").map(|(_, message)| message));
        let main = messages.next().and_then(|message| message.strip_prefix("main "));
        let main = main.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("no status table: {lines:#?}"));
        let mut generations: Vec<Generation> = Vec::new();
        for message in messages {
            if let Some(line) = message.strip_prefix("    worker ") {
                let generation = generations.last_mut().expect("a worker's line follows its generation's");
                generation.workers.push(worker(line).unwrap_or_else(|| panic!("not a worker: {line}")));
            } else if let Some(line) = message.strip_prefix("    mold") {
                let generation = generations.last_mut().expect("a mold's line follows its generation's");
                generation.mold = worker(&format!("{} {line}", u32::MAX));
            } else if let Some(line) = message.strip_prefix("  generation ") {
                generations.push(generation(line).unwrap_or_else(|| panic!("not a generation: {line}")));
            }
        }
        Status { main, generations }
    }

    /// The generation that serves.
    #[track_caller]
    pub fn serving(&self) -> &Generation {
        self.generations
            .iter()
            .find(|generation| generation.standing == "serving")
            .unwrap_or_else(|| panic!("no generation serves: {self:#?}"))
    }

    /// The generation with this number, if it is there.
    pub fn generation(&self, number: u32) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.number == number)
    }
}

impl Generation {
    /// The pid of the mold.
    #[track_caller]
    pub fn mold(&self) -> i32 {
        self.mold.as_ref().and_then(|mold| mold.pid).unwrap_or_else(|| panic!("no mold: {self:#?}"))
    }

    /// The pids of the workers that have a process.
    pub fn pids(&self) -> Vec<i32> {
        self.workers.iter().filter_map(|worker| worker.pid).collect()
    }
}

/// `3 serving, monitor 4711`, where the pid may be `none` and a remark may follow.
fn generation(line: &str) -> Option<Generation> {
    let (number, rest) = line.split_once(' ')?;
    let (standing, rest) = rest.split_once(", monitor ")?;
    let monitor = rest.split(':').next()?.parse().ok();
    Some(Generation {
        number: number.parse().ok()?,
        standing: standing.to_owned(),
        monitor,
        mold: None,
        workers: Vec::new(),
    })
}

/// `0        4712  ready     3s         respawned 1x, last: …`.
fn worker(line: &str) -> Option<Worker> {
    let mut words = line.split_ascii_whitespace();
    let slot = words.next()?.parse().ok()?;
    let pid = words.next()?.parse().ok();
    let phase = words.next()?.to_owned();
    Some(Worker { slot, pid, phase, rest: words.collect::<Vec<_>>().join(" ") })
}

#[test]
fn the_table_is_read() {
    let lines = [
        "2026-11-22T03:00:00Z panzer: main 10",
        "2026-11-22T03:00:00Z panzer:   generation 1 draining, monitor none",
        "someone else's line",
        "2026-11-22T03:00:00Z panzer:   generation 2 serving, monitor 11",
        "2026-11-22T03:00:00Z panzer:     worker 0          12  ready     3s",
        "2026-11-22T03:00:00Z panzer:     worker 1           -  waiting   90ms       respawned 1x, last: exited",
    ];
    let status = Status::parse(&lines.map(str::to_owned));
    assert_eq!(status.main, 10);
    assert_eq!(status.generation(1).unwrap().monitor, None);
    assert_eq!(status.serving().monitor, Some(11));
    assert_eq!(status.serving().pids(), [12]);
    assert_eq!(status.serving().workers[1].rest, "90ms respawned 1x, last: exited");
}
