//! Bugs that are planted to check the checker: each changes what a state is given or what it decides, as the bug would.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use panzer::config::{FinalExits, StartDelay, Surge};
use panzer::control::monitor::messages::{Order, Report, Urgency, Which};
use panzer::main_process::decide::{self as main_state, Change, Monitor, Note, Settings};
use panzer::monitor::decide::{self as monitor_state, Watch, Worker};
use panzer::readiness::watch::{Bypass, Sight};

use crate::check_main::MainCheck;
use crate::check_monitor::MonitorCheck;

macro_rules! planted {
    ($($bug:ident)* ; $($of_molds:ident)*) => {
        /// A bug, by what it does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Planted {
            $($bug,)*
            $($of_molds),*
        }

        impl Planted {
            pub(crate) const ALL: &'static [Planted] = &[$(Planted::$bug),*];
            /// Those that show only where a mold forks the workers.
            pub(crate) const OF_MOLDS: &'static [Planted] = &[$(Planted::$of_molds),*];
        }
    };
}

planted! {
    LosesOrders
    LosesReports
    DropsCommit
    RecyclesDuringReload
    HoldsRecyclingForEver
    RetiresBeforeBake
    RetiresWithOneMissing
    RetiresOnReloadRequest
    DropsRetirement
    LosesQueuedReload
    RunsQueuedReloadAtOnce
    ReloadsOnceMore
    ForgetsRebound
    TakesReboundForReload
    NeverRejects
    RejectsSilently
    PromisesWhatIsStarting
    ForgetsPromise
    ForgetsVerdict
    ForgetsVerdictOnStop
    AcquitsTheRejected
    RejectionStopsServing
    StartsWhatIsNotPlanned
    StopsWrongMonitor
    StartsMonitorAfterStop
    ClosesListenersOnReload
    ReleasesTwice
    ReleasesEarly
    ForgetsRelease
    NeverKillsMonitor
    NeverKillsOrphans
    KillsOrphansAtOnce
    ExitsEarly
    IgnoresGaveUp
    SpawnsTwice
    SpawnsAfterStop
    RespawnsAtOnce
    TakesAnyLifeForHealthy
    KeepsTheReadyWaiting
    SkipsRespawn
    RespawnsOnTrial
    SignalsReaped
    KillsAtOnce
    NeverKills
    SkipsFirstSignal
    TakesOldLife
    TakesAnyMonitor
    IsReadyUntold
    DropsReady
    IgnoresMainGone
    IgnoresLimit
    ForgetsGroup
    NeverSleeps
    IsReadyUnseen
    FallsBackUnderAccept
    TakesAnyLook
    TakesAnyProbe
    ProbesBeforeItAccepts
    RejectsWhatPrepares
    RejectsTheExtended
    EndsTheExtended
    TakesHelperForWorker
    TakesGlimpseForGood
    NeverGivesMoreTime
    ForgetsListening
    OverlooksStops
    CommitsTheStopped
    ForgetsContinuing
    HidesStops
    LooksOnWhenReady
    NeverLooks
    LooksWithoutRest
    NeverEndsProbes
    WakesWhenIdle
    ForgetsToRequireAccept
    AlwaysRequiresAccept
    OverlooksWhoIsOnTheWay
    IsWholeThoughItListens
    HidesUnseeable
    ForgetsQueuedReloadOverRestart
    WritesWhatIsNotKnown
    RespawnsTheFinal
    ForgetsTheEnded
    GoesOnWhenFinished
    StopsAtAnyFinalExit
    ExitsWithZero
    IgnoresStartDelay
    ForgetsStartDelay
    NeverHastens
    HastensTheYoungest
    ExaminesForEver
    ConvictsWhoAccepts
    NeverExamines
    ConvictsTheBusy
    HidesBypass
    TellsBypassAgain
    ForgetsToScale
    ScalesServingOnly
    ForgetsToTellCount
    TakesQuietForOne
    ForgetsRetired
    RetiresTheFirst
    CountsBackOnReload
    RollsBeforeThereIsRoom
    GivesUpTooMany
    StaysOnItsWay
    SurgesAtOnce
    ForgetsPatience
    ForgetsToRetire
    LeavesTheRetiring
    LeavesThePatient
    IsReadyWithOne
    IsUnreadyForOne
    TunesByThePlanned
    ForgetsToTune
    TunesOnlyServing
    ScalesTheDraining
    ForgetsTheScaledOnTuning
    PrefersTheScaled
    PrefersTheScaledOnReload
    LosesTuningOverRestart
    IgnoresTuning
    ForgetsToHurry
    HurriesTheServing
    AdoptsStrangers
    RemembersStrangers
    TakesAnyHelper
    ForgetsTheUnknown
    NeverGivesUp
    GivesUpAtOnce
    NeverGivesUpOrphans
    GivesUpOrphansAtOnce
    ;
    TakesTheMoldForAWorker
    OverlooksThatMoldsFail
    CountsTheMold
}

impl Planted {
    pub(crate) fn main_settings(planted: Option<Planted>, mut settings: main_state::Settings) -> main_state::Settings {
        match planted {
            Some(Planted::RetiresBeforeBake) => settings.tuning.bake = Duration::ZERO,
            Some(Planted::NeverHastens) => settings.max_draining = u32::MAX,
            Some(Planted::ForgetsStartDelay) => settings.tuning.start_delay = StartDelay::default(),
            Some(Planted::StopsAtAnyFinalExit) => settings.tuning.final_exits.stop = true,
            Some(Planted::SurgesAtOnce) => settings.surge = Surge::All,
            Some(Planted::RetiresWithOneMissing) => settings.workers = settings.workers.max(2) - 1,
            Some(Planted::NeverRejects) => settings.tuning.ready_timeout = Duration::from_secs(3600),
            _ => {}
        }
        settings
    }

    pub(crate) fn monitor_settings(
        planted: Option<Planted>,
        mut settings: monitor_state::Settings,
    ) -> monitor_state::Settings {
        match planted {
            Some(Planted::RespawnsAtOnce) => settings.tuning.pace.delay = Duration::ZERO,
            Some(Planted::TakesAnyLifeForHealthy) => settings.tuning.pace.healthy_after = Duration::ZERO,
            Some(Planted::KeepsTheReadyWaiting) => settings.tuning.bake = Duration::from_secs(3600),
            Some(Planted::RespawnsOnTrial) => settings.trial = false,
            Some(Planted::IsReadyUntold) => settings.notify = false,
            Some(Planted::RespawnsTheFinal) => settings.tuning.final_exits = FinalExits::default(),
            Some(Planted::IgnoresStartDelay) => settings.tuning.start_delay = StartDelay::default(),
            Some(Planted::IgnoresLimit) => settings.tuning.respawn_limit = None,
            Some(Planted::IsReadyUnseen) => settings.watch = Watch::No,
            Some(Planted::ProbesBeforeItAccepts) if settings.probe => settings.watch = Watch::No,
            Some(Planted::CountsTheMold) if settings.preload => settings.workers = settings.workers.saturating_sub(1),
            Some(Planted::FallsBackUnderAccept) if settings.watch == Watch::Always => settings.watch = Watch::IfSeeable,
            _ => {}
        }
        settings
    }

    /// What becomes of an event before main's state gets it.
    pub(crate) fn main_event(
        planted: Option<Planted>,
        event: main_state::Event,
        check: &MainCheck,
    ) -> Option<main_state::Event> {
        use main_state::Event;
        match (planted, event) {
            (Some(Planted::LosesQueuedReload), Event::Reload) if check.starting().is_some() => None,
            (Some(Planted::LosesQueuedReload), Event::ReloadFor(_) | Event::ReloadRetiring(_))
                if check.starting().is_some() =>
            {
                None
            }
            (Some(Planted::ForgetsRebound), Event::Rebound) => None,
            (Some(Planted::ForgetsToHurry), Event::EscalateDraining(_)) => None,
            (Some(Planted::TakesReboundForReload), Event::Rebound) => Some(Event::Reload),
            (Some(Planted::IgnoresGaveUp), Event::Reported(_, Report::GaveUp)) => None,
            (Some(Planted::TakesAnyMonitor), Event::Reported(monitor, report)) => {
                Some(Event::Reported(check.serving().unwrap_or(monitor), report))
            }
            (Some(Planted::TakesQuietForOne), Event::Scale(request, Change::ToNone)) => {
                Some(Event::Scale(request, Change::To(1)))
            }
            (Some(Planted::RejectsWhatPrepares), Event::Preparing(..)) => None,
            (Some(Planted::RejectsTheExtended), Event::Reported(_, Report::Extends { .. })) => None,
            (Some(Planted::CommitsTheStopped), Event::Reported(_, Report::Suspended { .. })) => None,
            (Some(Planted::GoesOnWhenFinished), Event::Reported(_, Report::EndedForGood { .. })) => None,
            (Some(Planted::RollsBeforeThereIsRoom), Event::Reported(monitor, Report::Retired { slot, .. })) => {
                Some(Event::Reported(monitor, Report::Retired { slot, empty: true }))
            }
            (Some(Planted::StaysOnItsWay), Event::Reported(_, Report::Gone { .. })) => None,
            (Some(Planted::IsWholeThoughItListens), Event::Reported(_, Report::Listens { .. })) => None,
            (Some(Planted::OverlooksThatMoldsFail), Event::Reported(_, Report::MoldFailed(_))) => None,
            (Some(Planted::TakesTheMoldForAWorker), Event::Reported(monitor, Report::MoldFailed(cause))) => {
                Some(Event::Reported(monitor, Report::Died { slot: 0, cause }))
            }
            (Some(Planted::PrefersTheScaled), Event::Reread(_, tuning)) => {
                Some(Event::Reread(check.configured(), tuning))
            }
            (Some(Planted::PrefersTheScaledOnReload), Event::Planned(generation, settings)) => {
                Some(Event::Planned(generation, Settings { workers: check.configured(), ..settings }))
            }
            (planted, Event::Planned(generation, settings)) => {
                Some(Event::Planned(generation, Planted::main_settings(planted, settings)))
            }
            (_, event) => Some(event),
        }
    }

    /// What becomes of main's decisions.
    pub(crate) fn main_actions(
        planted: Option<Planted>,
        event: &main_state::Event,
        actions: &mut Vec<main_state::Action>,
        check: &MainCheck,
    ) {
        let Some(planted) = planted else { return };
        planted.spoil_reloads(event, actions, check);
        planted.spoil_verdicts(actions, check);
        planted.spoil_stops(event, actions, check);
        planted.spoil_keeping(actions, check);
        planted.spoil_measure(event, actions, check);
        planted.spoil_count(actions, check);
        planted.spoil_tuning(event, actions, check);
    }

    fn spoil_reloads(self, event: &main_state::Event, actions: &mut Vec<main_state::Action>, check: &MainCheck) {
        use main_state::{Action, Event};
        let notes = |wanted: fn(&Note) -> bool| {
            let is = |action: &Action| matches!(action, Action::Note(note) if wanted(note));
            actions.iter().any(is)
        };
        let commits = notes(|note| matches!(note, Note::Committed(..)));
        let rejects = notes(|note| matches!(note, Note::Rejected(..)));
        let queues = notes(|note| matches!(note, Note::ReloadQueued(_)));
        let stop_serving = check.serving().map(|serving| Action::Order(serving, Order::Stop(Urgency::Graceful)));
        let generation = check.starting().map_or(1, |starting| starting.generation + 1);
        let one_more = Action::Plan(generation);
        match self {
            Planted::RecyclesDuringReload => {
                actions.retain(|action| !matches!(action, Action::Order(_, Order::HoldRecycling(true))))
            }
            Planted::HoldsRecyclingForEver => {
                actions.retain(|action| !matches!(action, Action::Order(_, Order::HoldRecycling(false))))
            }
            Planted::DropsCommit => actions.retain(|action| !matches!(action, Action::Order(_, Order::Commit))),
            Planted::RetiresOnReloadRequest
                if matches!(event, Event::Reload | Event::ReloadFor(_) | Event::ReloadRetiring(_)) =>
            {
                actions.extend(stop_serving)
            }
            Planted::DropsRetirement if commits => {
                actions.retain(|action| !matches!(action, Action::Order(_, Order::Stop(_))));
            }
            Planted::RunsQueuedReloadAtOnce if queues => actions.push(one_more),
            Planted::ReloadsOnceMore if commits => actions.push(one_more),
            Planted::RejectsSilently => {
                actions.retain(|action| !matches!(action, Action::Note(Note::Rejected(..))));
            }
            Planted::StartsWhatIsNotPlanned if rejects => {
                if let Event::NotPlanned(generation, _) = event {
                    let monitor = main_state::Monitor { generation: *generation, life: 1 };
                    actions.push(Action::StartMonitor {
                        monitor,
                        workers: 1,
                        trial: true,
                        notify: false,
                        accept: false,
                        ended: Default::default(),
                    });
                }
            }
            Planted::RejectionStopsServing if rejects => actions.extend(stop_serving),
            Planted::StopsWrongMonitor if rejects => {
                for action in actions {
                    if let (Action::Order(monitor, Order::Stop(_)), Some(serving)) = (action, check.serving()) {
                        *monitor = serving;
                    }
                }
            }
            Planted::ForgetsPatience => {
                for action in actions {
                    if let Action::Order(_, Order::Stop(urgency @ Urgency::Patient)) = action {
                        *urgency = Urgency::Graceful;
                    }
                }
            }
            Planted::ForgetsToRetire => {
                for action in actions {
                    if let Action::Order(_, Order::Stop(urgency @ Urgency::Retiring)) = action {
                        *urgency = Urgency::Graceful;
                    }
                }
            }
            Planted::LeavesTheRetiring => {
                actions.retain(
                    |action| !matches!(action, Action::Order(monitor, Order::Stop(Urgency::Graceful)) if check.is_by_retire(*monitor)),
                );
            }
            Planted::LeavesThePatient
                if check.is_stopping() || matches!(event, Event::Stop(_) | Event::StopThenNow) =>
            {
                actions.retain(
                    |action| !matches!(action, Action::Order(monitor, Order::Stop(_)) if check.is_patient(*monitor)),
                );
            }
            Planted::HurriesTheServing if matches!(event, Event::EscalateDraining(_)) => {
                actions.extend(check.serving().map(|serving| Action::Order(serving, Order::Stop(Urgency::Quick))));
            }
            Planted::ClosesListenersOnReload if commits => actions.push(Action::CloseListeners),
            _ => {}
        }
    }

    fn spoil_verdicts(self, actions: &mut Vec<main_state::Action>, check: &MainCheck) {
        use main_state::{Action, Verdict};
        match self {
            Planted::PromisesWhatIsStarting => {
                for action in actions {
                    if let (Action::Promise(_, Some(promised)), Some(starting)) = (action, check.starting()) {
                        *promised = starting.generation;
                    }
                }
            }
            Planted::ForgetsPromise => actions.retain(|action| !matches!(action, Action::Promise(..))),
            Planted::ForgetsVerdict => actions.retain(|action| !matches!(action, Action::Verdict(..))),
            Planted::ForgetsVerdictOnStop => {
                actions.retain(|action| !matches!(action, Action::Verdict(_, Verdict::Stopped)));
            }
            Planted::AcquitsTheRejected => {
                for action in actions {
                    if let Action::Verdict(_, verdict @ Verdict::Rejected(_)) = action {
                        *verdict = Verdict::Serves(None, Duration::ZERO);
                    }
                }
            }
            _ => {}
        }
    }

    fn spoil_stops(self, event: &main_state::Event, actions: &mut Vec<main_state::Action>, check: &MainCheck) {
        use main_state::{Action, Event};
        match (self, event, check.serving()) {
            (Planted::StartsMonitorAfterStop, Event::Ended(ended, ..), Some(serving))
                if check.is_stopping() && *ended == serving =>
            {
                let monitor = Monitor { life: serving.life + 1, ..serving };
                let ended = BTreeMap::new();
                let (trial, notify, accept) = (false, false, false);
                actions.push(Action::StartMonitor { monitor, workers: 1, ended, trial, notify, accept });
            }
            (Planted::NeverKillsMonitor, ..) => {
                actions.retain(|action| !matches!(action, Action::KillMonitor(_)));
            }
            (Planted::NeverGivesUpOrphans, ..) => {
                actions.retain(|action| !matches!(action, Action::GiveUpOrphans(_)));
            }
            (Planted::GivesUpOrphansAtOnce, ..) => {
                for action in actions {
                    if let Action::SignalOrphans(monitor, _) = *action {
                        *action = Action::GiveUpOrphans(monitor);
                    }
                }
            }
            (Planted::NeverKillsOrphans, ..) => {
                actions.retain(|action| !matches!(action, Action::SignalOrphans(_, Signal::SIGKILL)));
            }
            (Planted::KillsOrphansAtOnce, ..) => {
                for action in actions {
                    if let Action::SignalUnreached(monitor, _) = *action {
                        *action = Action::SignalOrphans(monitor, Signal::SIGKILL);
                    }
                }
            }
            (Planted::ExitsWithZero, ..) => {
                for action in actions {
                    if let Action::Exit(code) = action {
                        *code = 0;
                    }
                }
            }
            (Planted::HastensTheYoungest, ..) if !check.is_stopping() => {
                let youngest = check.youngest_draining();
                for action in actions {
                    if let (Action::Order(monitor, Order::Stop(Urgency::Quick)), Some(youngest)) = (action, youngest) {
                        *monitor = youngest;
                    }
                }
            }
            (Planted::ExitsEarly, Event::Stop(_), _) => {
                actions.retain(|action| !matches!(action, Action::Exit(_)));
                actions.push(Action::Exit(0));
            }
            _ => {}
        }
    }

    fn spoil_measure(self, event: &main_state::Event, actions: &mut Vec<main_state::Action>, check: &MainCheck) {
        use main_state::{Action, Event};
        for action in &mut *actions {
            if let Action::StartMonitor { accept, .. } = action {
                *accept = (*accept || self == Planted::AlwaysRequiresAccept) && self != Planted::ForgetsToRequireAccept;
                *accept &= self != Planted::OverlooksWhoIsOnTheWay || check.all_listen();
            }
        }
        if self == Planted::HidesUnseeable {
            actions.retain(|action| !matches!(action, Action::Note(Note::Unseeable(..))));
        }
        match (self, event) {
            (Planted::HidesBypass, _) => {
                actions.retain(|action| !matches!(action, Action::Note(Note::Bypasses(..))));
            }
            (Planted::TellsBypassAgain, Event::Reported(monitor, Report::Bypasses { slot, own }))
                if actions.is_empty() =>
            {
                actions.push(Action::Note(Note::Bypasses(monitor.generation, *slot, own.clone())));
            }
            _ => {}
        }
    }

    fn spoil_count(self, actions: &mut Vec<main_state::Action>, check: &MainCheck) {
        use main_state::Action;
        let is_scale = |action: &Action| matches!(action, Action::Order(_, Order::Scale { .. }));
        let starting = check.starting();
        match self {
            Planted::ForgetsToScale => actions.retain(|action| !is_scale(action)),
            Planted::ScalesServingOnly => actions.retain(|action| {
                !is_scale(action) || !matches!(action, Action::Order(monitor, _) if Some(*monitor) == starting)
            }),
            Planted::GivesUpTooMany => {
                for action in actions {
                    if let Action::Order(monitor, Order::Scale { workers, .. }) = action
                        && check.serving() == Some(*monitor)
                    {
                        *workers = workers.saturating_sub(1);
                    }
                }
            }
            Planted::ForgetsToTellCount => actions.retain(|action| !matches!(action, Action::Scaled { .. })),
            Planted::ForgetsTheEnded => {
                for action in actions {
                    if let Action::StartMonitor { ended, .. } = action {
                        ended.clear();
                    }
                }
            }
            Planted::CountsBackOnReload => {
                for action in actions {
                    if let Action::StartMonitor { workers, trial: true, .. } = action {
                        *workers = check.configured();
                    }
                }
            }
            _ => {}
        }
    }

    fn spoil_tuning(self, event: &main_state::Event, actions: &mut Vec<main_state::Action>, check: &MainCheck) {
        use main_state::{Action, Event};
        let scale = |monitor, workers| Action::Order(monitor, Order::Scale { workers, which: Which::Last });
        match (self, event) {
            (Planted::TunesByThePlanned, Event::Planned(_, settings)) => {
                let serving = check.serving().map(|serving| serving.generation);
                actions.extend(serving.map(|serving| Action::Tune(serving, settings.tuning.clone())));
            }
            (Planted::ForgetsToTune, _) => actions.retain(|action| !matches!(action, Action::Tune(..))),
            (Planted::TunesOnlyServing, _) => {
                let serving = check.serving().map(|serving| serving.generation);
                actions.retain(|action| !matches!(action, Action::Tune(told, _) if Some(*told) != serving));
            }
            (Planted::ScalesTheDraining, Event::Reread(workers, _)) => {
                actions.extend(check.youngest_draining().map(|draining| scale(draining, *workers)));
            }
            (Planted::ForgetsTheScaledOnTuning, Event::Reread(workers, _)) if !check.is_stopping() => {
                let serving = check.serving().filter(|serving| !check.is_retired(*serving));
                actions.extend(serving.filter(|_| check.count() != *workers).map(|serving| scale(serving, *workers)));
            }
            _ => {}
        }
    }

    fn spoil_keeping(self, actions: &mut Vec<main_state::Action>, check: &MainCheck) {
        use main_state::Action;
        let is_release = |action: &Action| matches!(action, Action::Release(_));
        let commits = actions.iter().any(|action| matches!(action, Action::Note(Note::Committed(..))));
        match self {
            Planted::ReleasesTwice => {
                let again: Vec<_> = actions.iter().filter(|action| is_release(action)).cloned().collect();
                actions.extend(again);
            }
            Planted::ReleasesEarly if commits => {
                actions.extend(check.serving().map(|old| Action::Release(old.generation)));
            }
            Planted::ForgetsRelease => actions.retain(|action| !is_release(action)),
            _ => {}
        }
    }

    /// What becomes of an event before a monitor's state gets it.
    pub(crate) fn monitor_event(
        planted: Option<Planted>,
        event: monitor_state::Event,
        check: &MonitorCheck,
    ) -> Option<monitor_state::Event> {
        use monitor_state::Event;
        let current = |worker: Worker| Worker { life: check.life(worker.slot), ..worker };
        match (planted, event) {
            (Some(Planted::TakesOldLife), Event::Executed(worker)) => Some(Event::Executed(current(worker))),
            (Some(Planted::TakesOldLife), Event::Notified(worker)) => Some(Event::Notified(current(worker))),
            (Some(Planted::TakesOldLife), Event::Ended(worker, cause)) => Some(Event::Ended(current(worker), cause)),
            (Some(Planted::IgnoresMainGone), Event::MainGone) => None,
            (Some(Planted::ForgetsGroup), Event::LeftBehind(_)) => None,
            (Some(Planted::ForgetsListening), Event::Listens(_)) => None,
            (Some(Planted::OverlooksStops), Event::Suspended(..)) => None,
            (Some(Planted::ForgetsContinuing), Event::Continued(_)) => None,
            (Some(Planted::TakesAnyLook), Event::Seen(worker, _)) => Some(Event::Seen(worker, Sight::Accepting)),
            (Some(Planted::ConvictsWhoAccepts), Event::Examined(worker, _)) => {
                Some(Event::Examined(worker, Some(Bypass::default())))
            }
            (Some(Planted::ConvictsTheBusy), Event::Examined(worker, Some(shown))) => {
                Some(Event::Examined(worker, Some(Bypass { ran: Duration::ZERO, ..shown })))
            }
            (Some(Planted::LooksWithoutRest), Event::Looked(_)) => Some(Event::Looked(Duration::ZERO)),
            (Some(Planted::IgnoresTuning), Event::Ordered(Order::Tune(_))) => None,
            (Some(Planted::TakesHelperForWorker), Event::Seen(worker, Sight::NotYet(Some(why)))) => {
                Some(Event::Seen(worker, Sight::Unseeable(why)))
            }
            (Some(Planted::EndsTheExtended), Event::Extends(..)) => None,
            (Some(Planted::TakesGlimpseForGood), Event::Seen(_, Sight::NotYet(_))) => None,
            (Some(Planted::TakesAnyProbe), Event::Probed(worker, _)) => Some(Event::Probed(worker, true)),
            (_, event) => Some(event),
        }
    }

    /// What becomes of a monitor's decisions.
    pub(crate) fn monitor_actions(
        planted: Option<Planted>,
        event: &monitor_state::Event,
        actions: &mut Vec<monitor_state::Action>,
        check: &MonitorCheck,
    ) {
        use monitor_state::{Action, Event};
        match planted {
            Some(Planted::SpawnsTwice) if *event == Event::Start => actions.extend(actions.last().cloned()),
            Some(Planted::HidesStops) => {
                actions.retain(|action| !matches!(action, Action::Note(monitor_state::Note::Suspended(..))))
            }
            Some(Planted::SpawnsAfterStop) => {
                if let (Event::Ended(worker, _), true) = (event, check.is_stopping()) {
                    actions.push(Action::Spawn(Worker { life: worker.life + 1, ..*worker }));
                }
            }
            Some(Planted::SkipsRespawn) => {
                actions.retain(|action| !matches!(action, Action::Spawn(worker) if worker.life > 1));
            }
            Some(Planted::SignalsReaped) => {
                if let Event::Ended(worker, _) = event {
                    actions.push(Action::Signal(*worker, Signal::SIGTERM));
                }
            }
            Some(Planted::KillsAtOnce) => {
                for action in actions {
                    if let Action::Signal(worker, Signal::SIGTERM) = *action {
                        *action = Action::Signal(worker, Signal::SIGKILL);
                    }
                }
            }
            Some(Planted::NeverGivesUp) => actions.retain(|action| !matches!(action, Action::GiveUp(_))),
            Some(Planted::GivesUpAtOnce) => {
                for action in actions {
                    if let Action::SignalGroup(worker, _) = *action {
                        *action = Action::GiveUp(worker);
                    }
                }
            }
            Some(Planted::NeverKills) => {
                actions.retain(|action| !matches!(action, Action::Signal(_, Signal::SIGKILL)));
            }
            Some(Planted::SkipsFirstSignal) => {
                if let Some(at) = actions.iter().position(|action| matches!(action, Action::Signal(..))) {
                    actions.remove(at);
                }
            }
            Some(Planted::LooksOnWhenReady) => {
                if let Event::Seen(worker, Sight::Accepting) = event {
                    actions.push(Action::Look(*worker));
                }
            }
            Some(Planted::NeverLooks) => actions.retain(|action| !matches!(action, Action::Look(_))),
            Some(Planted::NeverExamines) => actions.retain(|action| !matches!(action, Action::Examine(_))),
            Some(Planted::ExaminesForEver) => {
                if let Event::Examined(worker, Some(_)) = event {
                    actions.push(Action::Examine(*worker));
                }
            }
            Some(Planted::NeverGivesMoreTime) => {
                for action in actions {
                    if let Action::Note(monitor_state::Note::NotReady(_, time, next)) = action {
                        *next = *time;
                    }
                }
            }
            Some(Planted::NeverEndsProbes) => actions.retain(|action| !matches!(action, Action::EndProbe(_))),
            Some(Planted::ForgetsRetired) => {
                actions.retain(|action| !matches!(action, Action::Report(Report::Retired { .. })));
            }
            Some(Planted::RetiresTheFirst) => {
                for action in actions {
                    if let Action::Report(Report::Retired { slot, .. }) = action {
                        *slot = 0;
                    }
                }
            }
            Some(Planted::DropsReady) => {
                actions.retain(|action| !matches!(action, Action::Report(Report::Ready { .. })));
            }
            _ => {}
        }
    }

    /// Whose a process is taken for that a monitor has adopted.
    pub(crate) fn owner(planted: Option<Planted>, owner: Option<Worker>, living: Option<Worker>) -> Option<Worker> {
        match planted {
            Some(Planted::TakesAnyHelper) => living.or(owner),
            Some(Planted::ForgetsTheUnknown) => None,
            _ => owner,
        }
    }

    /// What becomes of what main writes down for the next.
    pub(crate) fn written(planted: Option<Planted>, written: String, first: &Settings) -> String {
        match planted {
            Some(Planted::LosesTuningOverRestart) => {
                let mut document: serde_json::Value = serde_json::from_str(&written).unwrap();
                if let Some(tuning) = document.pointer_mut("/serving/settings/tuning") {
                    *tuning = serde_json::to_value(&first.tuning).unwrap();
                }
                document.to_string()
            }
            Some(Planted::ForgetsQueuedReloadOverRestart) => {
                let queued = |how: &str| format!(r#""reload_queued":"{how}""#);
                let written = written.replace(&queued("graceful"), r#""reload_queued":null"#);
                written.replace(&queued("patient"), r#""reload_queued":null"#)
            }
            Some(Planted::WritesWhatIsNotKnown) => written.replace(r#""kill_at":["#, r#""kill_at":null,"was":["#),
            _ => written,
        }
    }

    /// What main says of itself.
    pub(crate) fn is_ready(planted: Option<Planted>, state: &main_state::Generations) -> bool {
        match planted {
            Some(Planted::IsReadyWithOne) => state.overview().serves && state.ready() > 0 && state.workers() > 0,
            Some(Planted::IsUnreadyForOne) => state.is_ready() && state.ready() >= state.workers(),
            _ => state.is_ready(),
        }
    }

    /// When a loop is woken.
    pub(crate) fn deadline(planted: Option<Planted>, deadline: Option<Instant>, now: Instant) -> Option<Instant> {
        match planted {
            Some(Planted::NeverSleeps) => Some(now),
            Some(Planted::WakesWhenIdle) => deadline.or(Some(now + Duration::from_millis(50))),
            _ => deadline,
        }
    }
}
