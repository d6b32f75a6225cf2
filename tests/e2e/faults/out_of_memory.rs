//! 28: a worker that the kernel ends because memory ran out.

use std::fs;
use std::path::{Path, PathBuf};

use super::SOON;
use crate::control::{run, text};
use crate::support::{Panzer, eventually};

/// Fills its memory once the file `grow` is there, which it removes.
const PROGRAM: &str = "#!/usr/bin/env python3
import os, time
while not os.path.exists('grow'):
    time.sleep(0.02)
os.unlink('grow')
taken = []
while True:
    taken.append(bytearray(b'x' * (1 << 20)))
";

/// A control group with little memory, below our own.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Group> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let below = |root: &str, path: &str| Path::new(root).join(path.trim_start_matches('/'));
        let parents = groups.lines().flat_map(|line| {
            let (controllers, path) = line.split_once(':').and_then(|line| line.1.split_once(':')).unwrap_or_default();
            match controllers {
                "memory" => vec![below("/sys/fs/cgroup/memory", path)],
                // One that has processes limits none below it, but one above may.
                "" => below("", path).ancestors().map(|path| below("/sys/fs/cgroup", path.to_str().unwrap())).collect(),
                _ => Vec::new(),
            }
        });
        parents.into_iter().find_map(|parent| {
            let group = Group(parent.join(format!("panzer-test-{}", std::process::id())));
            fs::create_dir(&group.0).ok()?;
            let limit = |name: &str, bytes: &str| fs::write(group.0.join(name), bytes).is_ok();
            let limited = limit("memory.limit_in_bytes", "150M") || limit("memory.max", "150M");
            let _ = limit("memory.memsw.limit_in_bytes", "150M") || limit("memory.swap.max", "0");
            limited.then_some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn that_memory_ran_out_is_told_as_such() {
    let Some(group) = Group::new() else {
        eprintln!("skipped: no control group with a limit of memory can be made here");
        return;
    };
    let script = format!("#!/bin/sh\necho $$ > {}/cgroup.procs && exec \"$@\"\n", group.0.display());
    let panzer = Panzer::builder().executable("app", PROGRAM).executable("limited", &script).through("limited");
    let panzer = panzer.args(["-w", "1", "--ready", "alive", "--oom-score-adj", "900", "./app"]);
    let panzer = panzer.allow_line("if memory runs out, the kernel ends workers before panzer").start();
    panzer.wait_serving();
    panzer.expect_line(
        "worker 0 (pid *) was killed by SIGKILL: the kernel's OOM killer, as memory ran out; respawning it",
    );
    fs::write(panzer.path("grow"), "").unwrap();
    panzer.wait_for_line("OOM killer", SOON);
    let counted =
        || text(&run(&panzer, &["metrics"]).stdout).contains("{cause=\"out_of_memory\",signal=\"SIGKILL\"} 1");
    eventually(SOON, "it is counted", counted);
    // Somebody else's KILL is none of the kernel's.
    eventually(SOON, "another runs", || !panzer.workers().is_empty());
    let pid = panzer.workers()[0];
    panzer.expect_line("worker 0 (pid *) was killed by SIGKILL; respawning it");
    super::kill_9(pid);
    panzer.wait_for_line("was killed by SIGKILL; respawning it", SOON);
    panzer.stop();
}
