//! How a monitor starts: its assignment, the release, and everything that its loop needs.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, fchdir};

use super::notes::Held;
use super::{ACKS, CHANNEL, Lines, Monitor, NOTIFY, Program, SHARING, SIGNALS, Sockets, Talk};
use crate::config::{Plan, Ready};
use crate::control::environment::Environment;
use crate::control::monitor::channel::Channel;
use crate::control::monitor::messages::{Assignment, Report, VERSION};
use crate::monitor::decide::{Event, Settings, Slots, Watch};
use crate::monitor::processes::outputs::Outputs;
use crate::monitor::processes::roster::Roster;
use crate::readiness::ack::AckSocket;
use crate::readiness::notify::NotifySocket;
use crate::readiness::watch::Listeners;
use crate::sockets::queues::Placed;
use crate::sockets::sharing::Sharing;
use crate::sys::errno::words;
use crate::sys::oom::OomKills;
use crate::sys::poller::Poller;
use crate::sys::signals::Signals;
use crate::sys::{cgroup, descriptors, memfd, other_process, processes};
use crate::worker::cause::Cause;
use crate::worker::environment::Common;
use crate::worker::findings::Findings;
use crate::worker::identity::Identity;
use crate::worker::program::Release;
use crate::worker::refusal;

/// Time that main has to answer a worker's bind, beyond the longest time that another worker may take to listen.
const PATIENCE_WITH_MAIN: Duration = Duration::from_secs(10);

/// One descriptor in this number is for notify sockets of single workers.
const SHARE_FOR_NOTIFY: u64 = 4;

pub(super) fn read_assignment(plan: OwnedFd) -> anyhow::Result<Assignment> {
    let bytes = memfd::read(plan).context("cannot read the plan")?;
    let assignment: Assignment = serde_json::from_slice(&bytes).context("the plan is broken")?;
    if assignment.version > VERSION {
        bail!("the plan has version {}, and this build knows up to {VERSION}", assignment.version);
    }
    Ok(assignment)
}

pub(super) fn find_release(
    assignment: &Assignment,
    held: Option<[OwnedFd; 3]>,
    environment: &Environment,
) -> Result<(Release, Findings), Cause> {
    match (held, &assignment.release_path) {
        (Some([directory, program, findings]), Some(path)) => {
            Ok((Release::held(directory, program, path.clone()), Findings::from_document(findings)?))
        }
        _ => Findings::look_up(&with_descriptor_limit(&assignment.plan, environment), environment.inherited("PATH")),
    }
}

impl Monitor {
    pub(super) fn new(
        assignment: Assignment,
        (release, identity, findings): (Release, Identity, OwnedFd),
        mut channel: Channel,
        listeners: Vec<OwnedFd>,
        common: Common,
    ) -> io::Result<Monitor> {
        processes::become_subreaper()?;
        fchdir(&release.directory)?;
        let path = release.path.clone();
        let fingerprint = release.fingerprint(&assignment.plan);
        let resolved = Report::Resolved { path, other_user: identity.other_user(), fingerprint };
        channel.send_along(&resolved, vec![release.directory.try_clone()?, release.program.try_clone()?, findings]);
        channel.finish()?;
        let poller = Poller::new()?;
        let signals = Signals::new([Signal::SIGCHLD])?;
        let notify = NotifySocket::new()?;
        poller.watch(&signals, SIGNALS)?;
        poller.watch(&channel, CHANNEL)?;
        poller.watch(&notify, NOTIFY)?;
        let acks = assignment.ack_socket.as_deref().map(|path| acknowledge_at(path, &poller)).transpose()?;
        // Last, because from here on this process cannot bind anything.
        let sharing = if assignment.shares_ports { Some(share_ports(&assignment, &release, &poller)?) } else { None };
        // The first listeners are inherited as they are. Per-worker queues are passed explicitly, so close them on
        // exec.
        for queue in listeners.iter().skip(assignment.plan.listen.len()) {
            descriptors::set_inherited(queue, false)?;
        }
        let (allowed, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let accepted_on = Listeners::among(&listeners);
        let state = Slots::new(settings(&assignment, !accepted_on.is_empty()), Instant::now());
        let cgroup = assignment.cgroup.as_deref().map(cgroup::entrance).transpose()?;
        let talk = Talk {
            channel,
            unannounced: Vec::new(),
            outputs: Outputs::default(),
            cut_off: None,
            notify,
            own_sockets: usize::try_from(allowed / SHARE_FOR_NOTIFY).unwrap_or(usize::MAX),
            unattributed_told: false,
            too_long_told: false,
            unmeasured_told: false,
            acks,
        };
        Ok(Monitor {
            assignment,
            program: Program { common, release, identity: Rc::new(identity), cgroup, mixed_release_told: false },
            talk,
            sockets: Sockets { placed: Placed::new(listeners), accepted_on, sharing, own_path_told: false },
            lines: Lines::default(),
            signals,
            poller,
            roster: Roster::default(),
            oom_kills: OomKills::default(),
            unwatched: BTreeSet::new(),
            state,
            events: VecDeque::from([Event::Start]),
            held_notes: Held::default(),
            done: false,
        })
    }
}

/// Workers get the limit of descriptors that panzer was started with, unless the plan has another.
fn with_descriptor_limit(plan: &Plan, environment: &Environment) -> Plan {
    let mut plan = plan.clone();
    let has_own = plan.identity.rlimit.iter().any(|limit| limit.name() == "NOFILE");
    plan.identity.rlimit.extend(environment.descriptor_limit().filter(|_| !has_own));
    plan
}

fn share_ports(assignment: &Assignment, release: &Release, poller: &Poller) -> io::Result<Sharing> {
    let plan = &assignment.plan;
    let patience = plan.tuning.longest_start(plan.workers) + PATIENCE_WITH_MAIN;
    let (sharing, gave_up) = Sharing::begin(plan.share_ports.only().cloned(), patience)?;
    poller.watch(&sharing, SHARING)?;
    // Logged once for all monitors of a generation. What depends on the program's file is logged for each generation.
    if gave_up && assignment.release_path.is_none() {
        let capabilities = other_process::file_capabilities(refusal::through_proc(&release.program));
        let path = release.path.display();
        let nor = capabilities.map(|them| format!(", nor have the capabilities of {path} ({them})"));
        if assignment.generation == 1 || nor.is_some() {
            log::info!(
                "workers run with no_new_privs, so that they can share ports: in them sudo and other setuid programs \
                 have no power{} (--share-ports off gives it back)",
                nor.unwrap_or_default()
            );
        }
    }
    Ok(sharing)
}

fn acknowledge_at(path: &Path, poller: &Poller) -> io::Result<AckSocket> {
    AckSocket::bind(path, poller, ACKS)
        .map_err(|error| io::Error::other(format!("cannot listen on {}: {}", path.display(), words(&error))))
}

fn settings(assignment: &Assignment, has_listener: bool) -> Settings {
    let plan = &assignment.plan;
    Settings {
        workers: plan.workers,
        notify: assignment.notify,
        watch: match plan.ready {
            Ready::Accept => Watch::Always,
            Ready::Auto | Ready::Exec if has_listener || assignment.accept => Watch::IfSeeable,
            Ready::Auto | Ready::Exec if assignment.shares_ports => Watch::IfItListens,
            Ready::Auto | Ready::Exec | Ready::Notify | Ready::Alive => Watch::No,
        },
        // Before the worker accepts, another one may answer the probe.
        probe: plan.ready == Ready::Exec,
        has_listener,
        preload: plan.preload,
        refork: plan.refork.clone(),
        watchdog: plan.watchdog,
        tuning: plan.tuning.clone(),
        ended: assignment.ended.keys().copied().collect(),
        trial: assignment.trial,
        seed: Pid::this().as_raw().unsigned_abs().into(),
    }
}
