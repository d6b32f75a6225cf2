//! Cgroups of version 2: each is a folder, and what it does is written to files in it.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::pidfd::PidFd;

/// The file that lists the processes of a cgroup, and that moves a process there.
pub const PROCESSES: &str = "cgroup.procs";

/// The most processes that are killed one by one before the next look.
const MAX_KILLED_AT_ONCE: usize = 64;

/// The folder of the cgroup that this process is in. None if version 2 is not mounted.
pub fn own() -> Option<PathBuf> {
    let read = |name| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    folder_of(&read("cgroup"), &read("mountinfo"))
}

/// The folder, by the content of /proc/self/cgroup and /proc/self/mountinfo.
fn folder_of(groups: &str, mounts: &str) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounted = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        // Without a namespace of its own, a container sees a part of the hierarchy mounted.
        let below = Path::new(path).strip_prefix(root).ok()?;
        kind.starts_with("cgroup2 ").then(|| Path::new(&at.replace("\\040", " ")).join(below))
    };
    let found = mounts.lines().find_map(mounted)?;
    // The path of the top ends with a slash.
    Some(found.components().collect())
}

/// Writes to a file of a cgroup, which exists if the kernel knows it here.
pub fn write(file: &Path, content: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(content.as_bytes())
}

/// The words in a file of a cgroup.
pub fn words(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

/// The number in a file of a cgroup. None if there is no such file, or it says "max".
pub fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Moves a process there.
pub fn enter(group: &Path, pid: Pid) -> io::Result<()> {
    write(&group.join(PROCESSES), &pid.to_string())
}

/// What a child writes "0" to if it is to move there.
pub fn entrance(group: &Path) -> io::Result<OwnedFd> {
    OpenOptions::new().write(true).open(group.join(PROCESSES)).map(OwnedFd::from)
}

/// The folders of the cgroups directly below this one.
pub fn below(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// The processes in it and below it.
pub fn processes(group: &Path) -> Vec<Pid> {
    let own = words(&group.join(PROCESSES)).into_iter().filter_map(|pid| pid.parse().ok().map(Pid::from_raw));
    own.chain(below(group).iter().flat_map(|group| processes(group))).collect()
}

/// Kills the processes in it and below it. Before Linux 5.14 (cgroup.kill) it takes several calls until all have gone.
pub fn kill(group: &Path) {
    if write(&group.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // Held first, and then seen to be in it: a number alone may have come to mean another process.
    let some = processes(group).into_iter().take(MAX_KILLED_AT_ONCE);
    let held: Vec<(Pid, PidFd)> = some.filter_map(|pid| Some((pid, PidFd::open(pid).ok()?))).collect();
    let still = processes(group);
    held.iter().filter(|(pid, _)| still.contains(pid)).for_each(|(_, process)| process.kill());
}

/// Removes it with all those below it. Fails if a process is in one of them.
pub fn remove(group: &Path) -> io::Result<()> {
    below(group).iter().try_for_each(|group| remove(group))?;
    match fs::remove_dir(group) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_found_wherever_it_is_mounted() {
        let mount = |root: &str, at: &str| {
            format!(
                "31 23 0:28 / /sys rw - sysfs sysfs rw\n41 31 0:38 {root} {at} rw,x shared:9 - cgroup2 cgroup2 rw\n"
            )
        };
        let found = |groups, root, at| folder_of(groups, &mount(root, at)).map(|path| path.display().to_string());
        assert_eq!(found("0::/a.slice/b", "/", "/sys/fs/cgroup").as_deref(), Some("/sys/fs/cgroup/a.slice/b"));
        assert_eq!(found("1:cpu:/x\n0::/\n", "/", "/a\\040b/unified").as_deref(), Some("/a b/unified"));
        assert_eq!(found("0::/docker/1/x", "/docker/1", "/sys/fs/cgroup").as_deref(), Some("/sys/fs/cgroup/x"));
        assert_eq!(found("0::/other", "/docker/1", "/sys/fs/cgroup"), None);
        assert_eq!(found("8:pids:/\n", "/", "/sys/fs/cgroup"), None);
        assert_eq!(folder_of("0::/\n", "31 23 0:28 / /sys rw - sysfs sysfs rw\n"), None);
    }
}
