//! The kernel's own count of processes that it has ended because memory ran out.

use std::fs;
use std::path::{Path, PathBuf};

/// The counter of this process's control group, or else of the machine.
#[derive(Debug)]
pub struct OomKills {
    counter: PathBuf,
    known: u64,
}

impl OomKills {
    /// Counts those to come.
    pub fn from_now_on() -> OomKills {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let counter = candidates(&groups).into_iter().find(|path| count(path).is_some());
        let counter = counter.unwrap_or_else(|| PathBuf::from("/proc/vmstat"));
        let known = count(&counter).unwrap_or_default();
        OomKills { counter, known }
    }

    /// Whether one that has not been taken yet explains the death of a child that was killed.
    pub fn take_one(&mut self) -> bool {
        let new = count(&self.counter).is_some_and(|count| count > self.known);
        self.known += u64::from(new);
        new
    }
}

/// Possible places of the counter, according to /proc/self/cgroup. In a container only the root of the mount may be
/// visible.
fn candidates(groups: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            all.push(Path::new("/sys/fs/cgroup").join(path).join("memory.events"));
        } else if controllers.split(',').any(|controller| controller == "memory") {
            let root = Path::new("/sys/fs/cgroup/memory");
            all.extend([root.join(path).join("memory.oom_control"), root.join("memory.oom_control")]);
        }
    }
    all
}

fn count(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_looked_for_in_both_versions() {
        let of = |text| candidates(text).iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(of("0::/a.service\n"), ["/sys/fs/cgroup/a.service/memory.events"]);
        assert_eq!(of("0::/\n"), ["/sys/fs/cgroup/memory.events"]);
        let old = ["/sys/fs/cgroup/memory/b/memory.oom_control", "/sys/fs/cgroup/memory/memory.oom_control"];
        assert_eq!(of("8:pids:/b\n4:memory,x:/b\n"), old);
        assert!(of("").is_empty() && of("x\n:\n").is_empty());
    }
}
