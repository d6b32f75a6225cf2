//! Cgroups of version 2: who is in which, and that nothing stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;

use crate::control::{run, text};
use crate::faults::SOON;
use crate::support::{Builder, Panzer, as_mold, eventually};

/// A cgroup of a test, in which panzer is started.
struct Group(PathBuf);

impl Group {
    /// None, with a line that says so, if no cgroup can be made here.
    fn new() -> Option<Group> {
        let group = Group::own().and_then(|(_, own)| Group::within(&own));
        if group.is_none() {
            eprintln!("skipped: no cgroup of version 2 can be made here");
        }
        group
    }

    /// One that may limit memory and pids. None, with a line that says so, if there is none here.
    fn limiting() -> Option<Group> {
        let limits = |group: &&Path| {
            let on = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
            ["memory", "pids"].iter().all(|one| on.split_ascii_whitespace().any(|other| other == *one))
        };
        let made = |(root, own): (PathBuf, PathBuf)| {
            own.ancestors().take_while(|group| group.starts_with(&root)).filter(limits).find_map(Group::within)
        };
        let group = Group::own().and_then(made);
        match &group {
            // What is swapped out does not count as memory.
            Some(group) => drop(fs::write(group.0.join("memory.swap.max"), "0")),
            None => eprintln!("skipped: no cgroup of version 2 that limits memory and pids can be made here"),
        }
        group
    }

    /// The root of all cgroups, and our own.
    fn own() -> Option<(PathBuf, PathBuf)> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let below = |root: &&str| Path::new(root).join(path).join("cgroup.procs").exists();
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().find(below)?;
        Some((root.into(), Path::new(root).join(path)))
    }

    /// A new one, which processes may enter.
    fn within(parent: &Path) -> Option<Group> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("panzer-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let group = parent.join(name);
        fs::create_dir(&group).ok()?;
        let group = Group(group);
        let enter = format!("echo $$ 2>/dev/null > {}/cgroup.procs", group.0.display());
        Command::new("sh").args(["-c", &enter]).status().is_ok_and(|status| status.success()).then_some(group)
    }

    /// A panzer in it. `first` is done before, in a shell that becomes panzer.
    fn builder_after(&self, first: &str) -> Builder {
        self.builder_in("", first).args(["--bake", "50ms"])
    }

    /// The same in a part of it.
    fn builder_in(&self, part: &str, first: &str) -> Builder {
        let group = self.0.join(part);
        let entering = format!("#!/bin/sh\necho $$ > {}/cgroup.procs\n{first}\nexec \"$@\"\n", group.display());
        let builder = Panzer::builder().executable("entering", &entering).through("entering");
        builder.args(["-w", "2", "--share-ports", "off", "--ready", "alive", "--name", "app"])
    }

    fn builder(&self) -> Builder {
        self.builder_after("")
    }

    /// Names of the cgroups below.
    fn below(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut names: Vec<String> = folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // If a test has failed, more is left than this; what is in it is killed.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let removed = || {
            self.below().iter().for_each(|name| drop(fs::remove_dir(self.0.join(name))));
            fs::remove_dir(&self.0).is_ok()
        };
        eventually(SOON, "the cgroup of the test is removed", removed);
    }
}

/// The last part of the cgroup that a process is in.
fn cgroup_of(pid: i32) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    path.rsplit('/').next().unwrap().to_owned()
}

#[test]
fn each_generation_has_its_own_and_panzer_another() {
    let Some(group) = Group::new() else { return };
    let panzer = group.builder().args(["--cgroup", "on", "sleep", "--", "1000"]).start();
    panzer.wait_serving();
    let status = panzer.status();
    assert_eq!(cgroup_of(panzer.pid()), "panzer-app");
    assert_eq!(cgroup_of(status.generations[0].monitor.unwrap()), "panzer-app");
    assert!(panzer.workers().into_iter().all(|pid| cgroup_of(pid) == "panzer-app:1"));
    assert_eq!(group.below(), ["panzer-app", "panzer-app:1"]);
    let shown = text(&run(&panzer, &["status", "--json"]).stdout);
    assert!(shown.contains(&format!("\"cgroup\":{{\"path\":\"{}/panzer-app:1\"}}", group.0.display())), "{shown}");
    let generation = panzer.reload_and_wait().unwrap();
    panzer.wait_drained(generation - 1);
    assert!(panzer.workers().into_iter().all(|pid| cgroup_of(pid) == "panzer-app:2"));
    eventually(SOON, "the first one is removed", || group.below() == ["panzer-app", "panzer-app:2"]);
    panzer.stop();
    assert!(group.below().is_empty(), "{:?}", group.below());
}

/// Leaves a process that nothing but its cgroup shows to be a worker's.
const LEAVES_ONE: &str = "#!/bin/sh
env -i setsid -f sh -c 'trap \"\" TERM INT; echo $$ >> left; exec sleep 1000 > /dev/null 2>&1'
exec sleep 1000
";

/// Of those that the monitor of their worker has adopted.
const LEFT_BEHIND: &str = "warning: worker * ended and left processes behind; stopping them";

fn left(panzer: &Panzer) -> Vec<i32> {
    let notes = fs::read_to_string(panzer.path("left")).unwrap_or_default();
    notes.lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn what_a_generation_leaves_is_killed_with_it() {
    let Some(group) = Group::new() else { return };
    // With a child from before, main takes what it cannot attribute for a stranger.
    let builder = group.builder_after("sleep 0.1 &").executable("app", LEAVES_ONE);
    let panzer = builder.args(["--cgroup", "on", "--stop", "TERM/100ms/KILL", "./app"]).start();
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    panzer.allow_line(LEFT_BEHIND);
    panzer.allow_line("warning: worker * has not stopped yet; sent it SIGKILL");
    panzer.wait_serving();
    eventually(SOON, "each worker has left one", || left(&panzer).len() == 2);
    let old = left(&panzer);
    assert!(old.iter().all(|pid| cgroup_of(*pid) == "panzer-app:1"));
    crate::faults::kill_9(panzer.status().generations[0].monitor.unwrap());
    eventually(SOON, "another monitor has started others", || left(&panzer).len() == 4);
    assert!(old.iter().all(|pid| crate::faults::is_alive(*pid)), "without its cgroup nothing would end them");
    let generation = panzer.reload_and_wait().unwrap();
    panzer.wait_drained(generation - 1);
    let killed = "killing what generation 1 has left in its cgroup: pid * (sleep), pid * (sleep)";
    panzer.expect_line(killed);
    panzer.wait_for_line(killed, SOON);
    eventually(SOON, "they are killed", || old.iter().all(|pid| !crate::faults::is_alive(*pid)));
    eventually(SOON, "the cgroup is removed", || group.below() == ["panzer-app", "panzer-app:2"]);
    panzer.stop();
    assert!(group.below().is_empty(), "{:?}", group.below());
}

#[test]
fn the_next_main_takes_them_over_after_a_restart_in_place() {
    let Some(group) = Group::new() else { return };
    let panzer = group.builder().args(["--cgroup", "on", "sleep", "--", "1000"]).start();
    panzer.wait_serving();
    panzer.allow_line("restart*");
    let mark = panzer.mark();
    panzer.signal(Signal::SIGUSR2);
    panzer.wait_for_line_after(mark, "restarted in place", SOON);
    let generation = panzer.reload_and_wait().unwrap();
    panzer.wait_drained(generation - 1);
    eventually(SOON, "the first one is removed", || group.below() == ["panzer-app", "panzer-app:2"]);
    panzer.stop();
    assert!(group.below().is_empty(), "{:?}", group.below());
}

#[test]
fn those_of_a_killed_main_are_taken_over() {
    let Some(group) = Group::new() else { return };
    // A worker leaves a process, and its monitor dies with main: nobody is left that could end it.
    let options = ["--cgroup", "on", "--stop", "TERM/200ms/KILL", "./app"];
    let builder = || group.builder_after("sleep 0.1 &").executable("app", LEAVES_ONE).args(options);
    let first = builder().start();
    first.wait_serving();
    eventually(SOON, "each worker has left one", || left(&first).len() == 2);
    let (status, old) = (first.status(), left(&first));
    let killed = [first.pid(), status.generations[0].monitor.unwrap()];
    killed.into_iter().for_each(crate::faults::kill_9);
    crate::faults::wait_gone(&killed);
    let second = builder().start();
    second.allow_line(LEFT_BEHIND);
    second.allow_line("warning: worker * has not stopped yet; sent it SIGKILL");
    second.wait_serving();
    assert!(second.workers().into_iter().all(|pid| cgroup_of(pid) == "panzer-app:1.2"));
    let killed = "killing what a panzer that was killed has left in its cgroup: pid * (sleep), pid * (sleep)";
    second.expect_line(killed);
    second.wait_for_line(killed, SOON);
    eventually(SOON, "they are killed", || old.iter().all(|pid| !crate::faults::is_alive(*pid)));
    eventually(SOON, "the cgroup is removed", || group.below() == ["panzer-app", "panzer-app:1.2"]);
    assert!(!first.wait_exit().success());
    second.stop();
    assert!(group.below().is_empty(), "{:?}", group.below());
}

#[test]
fn what_cannot_be_limited_is_refused_at_the_start() {
    let Some(group) = Group::new() else { return };
    if fs::read_to_string(group.0.join("cgroup.controllers")).unwrap().contains("memory") {
        eprintln!("skipped: this cgroup may limit memory");
        return;
    }
    let panzer = group.builder().args(["--cgroup", "memory=1G,pids=100", "sleep", "--", "1000"]).start();
    let why = "error: --cgroup: the cgroup * has no controller for memory (it has: *); panzer needs a cgroup (v2) for itself: *";
    panzer.expect_line(why);
    assert_eq!(panzer.wait_exit().code(), Some(125));
    assert!(group.below().is_empty(), "{:?}", group.below());
}

#[test]
fn where_there_is_none_the_remedy_is_told() {
    // Whoever may not make a namespace has no such place.
    let hides = "#!/bin/sh\nexec unshare -m sh -c 'umount -l /sys/fs/cgroup && exec \"$@\"' sh \"$@\"\n";
    let possible = Command::new("unshare").args(["-m", "umount", "-l", "/sys/fs/cgroup"]).output();
    if !possible.is_ok_and(|done| done.status.success()) {
        eprintln!("skipped: /sys/fs/cgroup cannot be hidden here");
        return;
    }
    let panzer =
        Panzer::builder().executable("hides", hides).through("hides").args(["--cgroup", "on", "sleep", "--", "9"]);
    let panzer = panzer.start();
    panzer.expect_line("error: --cgroup: no cgroup of version 2 is mounted here; *Delegate=yes*systemd-run*docker*");
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn workers_that_a_mold_forks_are_in_it_too() {
    let Some(group) = Group::new() else { return };
    as_mold(|| {
        let panzer = group.builder().executable("app", "#!/usr/bin/env python3\nimport time\ntime.sleep(1000)\n");
        let panzer = panzer.args(["--cgroup", "on", "./app"]).start();
        panzer.wait_serving();
        let mold = panzer.status().generations[0].mold.as_ref().and_then(|mold| mold.pid);
        let all: Vec<i32> = panzer.workers().into_iter().chain(mold).collect();
        assert_eq!(all.len(), 3);
        assert!(all.into_iter().all(|pid| cgroup_of(pid) == "panzer-app:1"));
        panzer.stop();
    });
    assert!(group.below().is_empty(), "{:?}", group.below());
}

/// Takes processes once the file `fork` is there, until that is refused, and notes why.
const FORKS: &str = "#!/usr/bin/env python3
import os, time
while not os.path.exists('fork'):
    time.sleep(0.02)
try:
    while os.fork():
        pass
    time.sleep(1000)
except OSError as refused:
    own = f'refused-{os.getpid()}'
    open(own, 'w').write(refused.strerror)
    os.rename(own, 'refused')
time.sleep(1000)
";

#[test]
fn a_limit_of_processes_holds_for_a_generation_and_not_for_its_successor() {
    let Some(group) = Group::limiting() else { return };
    let builder = group.builder().executable("app", FORKS).args(["--cgroup", "pids=20", "./app"]);
    let panzer = builder.start();
    panzer.allow_line(LEFT_BEHIND);
    panzer.wait_serving();
    fs::write(panzer.path("fork"), "").unwrap();
    let refused = || fs::read_to_string(panzer.path("refused")).is_ok_and(|why| why.contains("unavailable"));
    eventually(SOON, "a fork is refused", refused);
    let shown = text(&run(&panzer, &["status", "--json"]).stdout);
    assert!(shown.contains("\"pids\":20,\"pids_max\":20"), "{shown}");
    let metrics = text(&run(&panzer, &["metrics"]).stdout);
    assert!(metrics.contains("panzer_cgroup_pids{standing=\"serving\"} 20\n"), "{metrics}");
    fs::remove_file(panzer.path("fork")).unwrap();
    let generation = panzer.reload_and_wait().unwrap();
    panzer.wait_drained(generation - 1);
    eventually(SOON, "the first one is removed", || group.below() == ["panzer-app", "panzer-app:2"]);
    panzer.stop();
    assert!(group.below().is_empty(), "{:?}", group.below());
}

/// One of them fills its memory once the file `grow` is there, and each that finds the file `grows` when it begins.
const GROWS: &str = "#!/usr/bin/env python3
import os, time
grows = os.path.exists('grows')
open(f'began-{os.getpid()}', 'w').close()
while not grows:
    try:
        os.unlink('grow')
        grows = True
    except FileNotFoundError:
        time.sleep(0.02)
taken = []
while True:
    taken.append(bytearray(b'x' * (1 << 20)))
";

#[test]
fn a_limit_of_memory_is_named_when_it_ends_a_worker_and_when_it_rejects_a_release() {
    let Some(group) = Group::limiting() else { return };
    let limits = ["--bake", "20s", "--cgroup", "memory=64M", "--cgroup", "pids=50", "./app"];
    let panzer = group.builder_in("", "").executable("app", GROWS).args(limits).start();
    panzer.wait_serving();
    let began = |pid: &i32| panzer.path(&format!("began-{pid}")).exists();
    let both_run = || panzer.workers().len() == 2 && panzer.workers().iter().all(began);
    eventually(SOON, "both have begun", both_run);
    let killed = "was killed by SIGKILL: the kernel's OOM killer, as its generation reached --cgroup memory=64 MiB";
    panzer.expect_line(&format!("warning: worker * (pid *, generation 1) {killed}; respawning it"));
    fs::write(panzer.path("grow"), "").unwrap();
    panzer.wait_for_line(killed, SOON);
    let is_counted =
        || text(&run(&panzer, &["metrics"]).stdout).contains("{cause=\"out_of_memory\",signal=\"SIGKILL\"} 1\n");
    eventually(SOON, "it is counted", is_counted);
    eventually(SOON, "another runs", both_run);
    // Somebody else's KILL is none of the kernel's.
    panzer.expect_line("warning: worker * (pid *, generation 1) was killed by SIGKILL; respawning it");
    crate::faults::kill_9(panzer.workers()[0]);
    panzer.wait_for_line("was killed by SIGKILL; respawning it", SOON);
    eventually(SOON, "another runs", both_run);
    fs::write(panzer.path("grows"), "").unwrap();
    panzer.expect_line(&format!("error: reload failed: generation 2: worker * {killed}; generation 1 serves on"));
    assert!(panzer.reload_and_wait().is_err());
    eventually(SOON, "its cgroup is removed", || group.below() == ["panzer-app", "panzer-app:1"]);
    panzer.stop();
    assert!(group.below().is_empty(), "{:?}", group.below());
}

#[test]
fn nothing_stays_of_a_killed_main_that_had_set_limits() {
    let Some(group) = Group::limiting() else { return };
    let options = ["--cgroup", "memory=1G,pids=100", "sleep", "--", "1000"];
    let first = group.builder().args(options).start();
    first.wait_serving();
    let workers = first.workers();
    crate::faults::kill_9(first.pid());
    crate::faults::wait_gone(&workers);
    first.allow_line("main is gone; stopping the workers of generation 1");
    assert!(!first.wait_exit().success());
    // No process may enter a cgroup that limits those below it: whoever starts panzer anew may do so in a part of it.
    let second = group.builder_in("panzer-app", "").args(options).start();
    second.wait_serving();
    second.stop();
    assert!(group.below().is_empty(), "{:?}", group.below());
    assert_eq!(fs::read_to_string(group.0.join("cgroup.subtree_control")).unwrap().trim(), "");
}
