//! The kernel's own count of processes that it has ended because memory ran out.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A process ends within this time after the kernel has killed it. Later the kill was of another one, such as a child of a
/// worker, which nobody told us of.
const EXPLAINS_FOR: Duration = Duration::from_secs(10);

/// The counter of this process's control group, or else of the machine.
#[derive(Debug, Default)]
pub struct OomKills {
    counter: PathBuf,
    known: u64,
    /// Those that were seen last and explain no death yet, and when they were seen.
    fresh: Option<(u64, Instant)>,
    /// How often the limit of the counter's own group was reached.
    reached: u64,
}

impl OomKills {
    /// Counts those to come among processes of ours, or of the cgroup (version 2) with this folder.
    pub fn from_now_on(group: Option<&Path>) -> OomKills {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let given = group.into_iter().flat_map(Path::ancestors).map(|group| group.join("memory.events"));
        let all = given.chain(candidates(&groups)).chain([PathBuf::from("/proc/vmstat")]);
        let found = all.map(|path| (fs::read_to_string(&path).unwrap_or_default(), path));
        let begin = |(text, counter): (String, PathBuf)| {
            let reached = of(&text, LIMIT_REACHED).unwrap_or_default();
            Some(OomKills { counter, known: of(&text, KILLS)?, fresh: None, reached })
        };
        found.filter_map(begin).next().unwrap_or_default()
    }

    /// Whether one that has not been taken yet explains the death of a process that was killed.
    pub fn take_one(&mut self, now: Instant) -> bool {
        let count = count(&self.counter, KILLS).unwrap_or(self.known);
        let new = count.saturating_sub(self.known);
        self.known = count;
        let fresh = self.fresh.take().filter(|(_, seen)| now.saturating_duration_since(*seen) < EXPLAINS_FOR);
        let (waiting, seen) = fresh.unwrap_or((0, now));
        let seen = if new > 0 { now } else { seen };
        let all = waiting + new;
        self.fresh = Some((all.saturating_sub(1), seen));
        all > 0
    }

    /// Whether the limit of the counter's own group has been reached. If not, one of a group above it was, or all memory
    /// of the machine was used.
    pub fn is_by_limit(&self) -> bool {
        count(&self.counter, LIMIT_REACHED).is_some_and(|count| count > self.reached)
    }
}

const KILLS: &str = "oom_kill ";
const LIMIT_REACHED: &str = "oom ";

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

fn count(path: &Path, what: &str) -> Option<u64> {
    of(&fs::read_to_string(path).ok()?, what)
}

fn of(text: &str, what: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(what)?.trim().parse().ok())
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

    #[test]
    fn the_counter_of_a_given_group_tells_its_own_limit_from_others() {
        let group = tempfile::tempdir().unwrap();
        let write = |oom, kills| {
            let text = format!("low 0\nhigh 0\nmax 9\noom {oom}\noom_kill {kills}\noom_group_kill 0\n");
            fs::write(group.path().join("memory.events"), text).unwrap();
        };
        write(1, 2);
        let mut kills = OomKills::from_now_on(Some(&group.path().join("leaf")));
        let now = Instant::now();
        assert!(!kills.take_one(now));
        write(1, 3);
        assert!(kills.take_one(now) && !kills.is_by_limit() && !kills.take_one(now));
        write(2, 4);
        assert!(kills.take_one(now) && kills.is_by_limit());
        // Seven at once: two deaths are seen in time.
        write(3, 11);
        assert!(kills.take_one(now) && kills.take_one(now + EXPLAINS_FOR / 2) && !kills.take_one(now + EXPLAINS_FOR));
    }
}
