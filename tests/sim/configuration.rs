//! The configuration: what it says at first, what people make of it, and those that read it again.

use std::sync::LazyLock;
use std::time::Duration;

use panzer::backoff::Pace;
use panzer::config::{ExitCodes, FinalExits, Ready, RespawnLimit, Schedule, StartDelay, Surge, Tuning, Verbosity};
use panzer::main_process::decide::{Event, Settings};

use crate::choices::Choices;
use crate::world::{Node, Spec, World};

static STOPS: LazyLock<[Schedule; 6]> = LazyLock::new(|| {
    [
        "TERM/2s/INT/1s/KILL",
        "TERM/6s/KILL",
        "QUIT/1s/TERM/1s/INT/1s/KILL",
        "TERM/0s/INT/3s/KILL",
        "TERM/60s/INT/5s/KILL",
        "KILL",
    ]
    .map(|text| text.parse().unwrap())
});

pub(crate) fn draw(choices: &mut Choices, ready: Ready) -> Settings {
    let stop = choices.among(&*STOPS);
    let mut drawn = Settings {
        workers: 1 + choices.below(5) as u32,
        surge: draw_surge(choices),
        ready,
        tuning: Tuning {
            retire: draw_retire(choices),
            ready_timeout: draw_ready_timeout(choices),
            bake: draw_bake(choices),
            stop,
            pace: draw_pace(choices),
            respawn_limit: draw_respawn_limit(choices),
            final_exits: draw_final_exits(choices),
            start_delay: draw_start_delay(choices),
            recycling: panzer::config::Recycling::default(),
            verbosity: Verbosity::Normal,
        },
        max_draining: draw_max_draining(choices),
        seed: choices.below(1_000),
    };
    // Nobody reports requests here, so that nobody is replaced for it, but main holds that back during reloads.
    drawn.tuning.recycling.max_requests = (drawn.seed % 4 == 3).then_some(1);
    drawn
}

fn draw_retire(choices: &mut Choices) -> Option<Schedule> {
    choices.one_in(4).then(|| choices.among(&*STOPS))
}

fn draw_surge(choices: &mut Choices) -> Surge {
    choices.among(&[Surge::All, Surge::All, Surge::Count(1), Surge::Count(2), Surge::Percent(50)])
}

fn draw_ready_timeout(choices: &mut Choices) -> Duration {
    choices.millis(&[2_000, 5_000, 20_000, 500])
}

fn draw_bake(choices: &mut Choices) -> Duration {
    choices.millis(&[1_000, 0, 300])
}

fn draw_pace(choices: &mut Choices) -> Pace {
    Pace {
        delay: choices.millis(&[100, 100, 400]),
        delay_max: choices.millis(&[2_000, 500, 400]),
        healthy_after: choices.millis(&[3_000, 800]),
    }
}

fn draw_respawn_limit(choices: &mut Choices) -> Option<RespawnLimit> {
    let limits = [None, None, None, Some((4, 5_000)), Some((1, 1_000)), Some((0, 1_000))];
    choices.among(&limits).map(|(count, window)| RespawnLimit { count, window: Duration::from_millis(window) })
}

fn draw_final_exits(choices: &mut Choices) -> FinalExits {
    let lists: [&[&str]; 6] = [&[], &[], &[], &["0"], &["1"], &["0", "1-3"]];
    let codes: Vec<ExitCodes> = choices.among(&lists).iter().map(|codes| codes.parse().unwrap()).collect();
    FinalExits { codes, stop: choices.one_in(3), code: None }
}

fn draw_start_delay(choices: &mut Choices) -> StartDelay {
    StartDelay(choices.millis(&[0, 0, 0, 100, 1_000]))
}

fn draw_max_draining(choices: &mut Choices) -> u32 {
    choices.among(&[4, 1, 2])
}

impl Spec {
    /// What workers can be taken as ready by, so that some are.
    fn measures(&self) -> Vec<Ready> {
        let listens = self.has_listener || (self.shares_ports && self.traits.listens);
        let possible = |ready: &Ready| match ready {
            Ready::Notify => self.traits.notifies,
            Ready::Accept => listens && !self.traits.hidden,
            Ready::Auto | Ready::Exec | Ready::Alive => true,
        };
        let all = [Ready::Alive, Ready::Auto, Ready::Notify, Ready::Accept, Ready::Exec];
        all.into_iter().filter(possible).collect()
    }
}

impl World {
    /// Somebody edits the file. Whoever is running reads it when told to.
    pub(crate) fn reconfigure(&mut self) {
        let measures = self.spec.measures();
        let (choices, configured) = (&mut self.choices, &mut self.configured);
        for _ in 0..=choices.below(3) {
            let tuning = &mut configured.tuning;
            match choices.below(12) {
                0..=2 => configured.workers = 1 + choices.below(6) as u32,
                3 => tuning.ready_timeout = draw_ready_timeout(choices),
                4 => tuning.bake = draw_bake(choices),
                5 if choices.below(2) == 0 => tuning.retire = draw_retire(choices),
                5 => tuning.stop = choices.among(&*STOPS),
                6 => tuning.pace = draw_pace(choices),
                7 => tuning.respawn_limit = draw_respawn_limit(choices),
                8 => tuning.final_exits = draw_final_exits(choices),
                9 => tuning.start_delay = draw_start_delay(choices),
                10 => configured.surge = draw_surge(choices),
                _ if choices.below(2) == 0 => configured.max_draining = draw_max_draining(choices),
                _ => configured.ready = choices.among(&measures),
            }
        }
        self.ever_configured.push(self.configured.clone());
        self.log(|world| format!("configured: {:?}", world.configured));
    }

    /// The file is this now.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.configured);
        self.ever_configured.push(self.configured.clone());
    }

    /// HUP: what reads the configuration takes its time, and may go wrong, or hang.
    pub(crate) fn reread(&mut self) {
        let at = self.now + self.choices.millis(&[0, 2, 40, 700]);
        let troubled = self.faults && self.choices.one_in(self.spec.trouble * 2);
        if self.main_runs() && !troubled {
            let Settings { workers, tuning, .. } = self.configured.clone();
            self.main.planners.push((at, Event::Reread(workers, tuning)));
            self.wake(Node::Main, at);
        }
    }

    /// The longest that anything configured at any time allows.
    pub(crate) fn longest(&self, of: fn(&Settings) -> Duration) -> Duration {
        self.ever_configured.iter().map(of).max().unwrap_or_default()
    }
}
