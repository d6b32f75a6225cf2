//! Starts the monitor of a generation.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::unistd::Pid;

use crate::config::{Plan, text};
use crate::control::environment::OWN_IMAGE;
use crate::control::monitor::channel::Channel;
use crate::control::monitor::messages::{Assignment, Order, VERSION};
use crate::main_process::decide::Monitor;
use crate::main_process::main::Main;
use crate::main_process::processes::children::{FIRST_WORD_TIMEOUT, FirstWord, Running};
use crate::sys::memfd;
use crate::sys::trim_memory::release_heap;
use crate::worker::spawn::{Image, NewProcess, go_on_as};

/// The first version of the protocol that has [`Order::Own`].
const ASKED_SINCE: u32 = 2;

/// The fields of [`Action::StartMonitor`](crate::main_process::decide::Action).
pub(crate) struct Start {
    pub(crate) monitor: Monitor,
    pub(crate) workers: u32,
    pub(crate) ended: BTreeMap<u32, u8>,
    pub(crate) trial: bool,
    pub(crate) notify: bool,
    pub(crate) accept: bool,
}

impl Main {
    /// Asks the serving generation where it listens by itself. The answer is logged if the next generation fails. A
    /// monitor of an older build is not asked.
    pub(crate) fn ask_what_serves_by_itself(&mut self) {
        let serving = self.serving();
        if let Some(running) = serving.and_then(|serving| self.children.of_generation(serving))
            && running.protocol >= ASKED_SINCE
        {
            running.channel.send(&Order::Own);
        }
    }

    pub(crate) fn start_monitor(&mut self, start: Start) -> io::Result<()> {
        let Start { monitor, workers, ended, trial, notify, accept } = start;
        self.bind_queues(workers).map_err(io::Error::other)?;
        let plan = self.configuration.plan_of(monitor.generation);
        let limits = self.outside.cgroups.as_mut().zip(plan.cgroup.as_ref());
        let leaf = limits.map(|(cgroups, limits)| cgroups.leaf(monitor.generation, limits));
        let cgroup = leaf.transpose().map_err(io::Error::other)?;
        self.outside.protect(plan.identity.oom_score_adj);
        let found = self.configuration.found.get(&monitor.generation);
        let assignment = Assignment {
            version: VERSION,
            plan: Plan { workers, ..plan.clone() },
            generation: monitor.generation,
            starts: self.operators.counters.started(),
            ended,
            trial,
            notify,
            accept,
            shares_ports: self.listeners.shares_ports,
            main_pid: Pid::this().as_raw(),
            ack_socket: self.outside.ack_paths.of(monitor.generation),
            release_path: found.map(|found| found.path.clone()),
            cgroup,
        };
        let document = memfd::write(&serde_json::to_vec(&assignment)?)?;
        let (channel, theirs) = Channel::pair()?;
        let mut descriptors = self.listeners.held.sockets(&plan.listen, workers, 0)?;
        let sockets = descriptors.len();
        descriptors.extend([theirs.as_fd(), document.as_fd()]);
        if let Some(found) = found {
            descriptors.extend([found.directory.as_fd(), found.program.as_fd(), found.findings.as_fd()]);
        }
        let title = format!("panzer: monitor [gen {}]", monitor.generation);
        let environment = self.environment.for_monitor(monitor.generation, sockets, found.is_some());
        let image = Image::Path(text::c_string(OWN_IMAGE.as_ref()));
        let role = NewProcess::role(image, &title, environment.entries(), descriptors);
        // It notices by itself that main is gone, and then needs time to stop its workers.
        let (leads_group, death_signal) = (false, None);
        let token = self.children.new_token();
        // Watch before the fork: a monitor that could not be watched would run on beside its successor.
        self.poller.watch(&channel, token)?;
        let command = NewProcess { inherits_descriptors: true, keeps_mask: true, leads_group, death_signal, ..role };
        // What is free would be copied, page by page, when the monitor uses it again.
        release_heap();
        let child =
            go_on_as(command, || (self.run_monitor)(&environment)).inspect_err(|_| self.poller.forget(&channel))?;
        let first_word = FirstWord::Until(Instant::now() + FIRST_WORD_TIMEOUT);
        let running = Running {
            child,
            channel,
            asked: false,
            token,
            queues: sockets,
            workers,
            protocol: VERSION,
            first_word,
            given_up: BTreeSet::new(),
        };
        self.children.add(monitor, running);
        Ok(())
    }
}
