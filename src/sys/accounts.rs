//! Users and groups of this machine: as /etc/passwd and /etc/group have them, or else as `getent` says.
//!
//! Not by getpwnam(3): it loads libraries for those that are elsewhere, as in LDAP, and a static program can load them only
//! if it was built with the libc that they were built with. They may also hang.

use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdout, execve};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::errno::words;
use super::process::pidfd::PidFd;
use super::process::{helper, processes};
use super::{descriptors, memfd, signals};

/// Folders where `getent` is looked for. PATH does not count: it would decide as whom workers run.
const FOLDERS: [&str; 3] = ["/usr/bin", "/bin", "/run/current-system/sw/bin"];

/// Time that `getent` has for an answer. A monitor may need three before main has to hear from it.
const PATIENCE: Duration = Duration::from_secs(3);

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The number of its own group.
    pub gid: u32,
    /// The home folder.
    pub home: PathBuf,
    /// The shell.
    pub shell: PathBuf,
}

/// A line of /etc/group.
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl User {
    /// The user with this name. The error says why that is unknown.
    pub fn named(name: &str) -> Result<Option<User>, String> {
        find("passwd", name, User::of, |user| user.name == name)
    }

    /// The user with this number. If there is no `getent`, /etc/passwd has all users that have a name.
    pub fn numbered(uid: u32) -> Result<Option<User>, String> {
        match getent() {
            Some(_) => find("passwd", &uid.to_string(), User::of, |user| user.uid == uid),
            None => Ok(local("passwd", User::of)?.into_iter().find(|user| user.uid == uid)),
        }
    }

    /// The numbers of its groups, `gid` first. Any source may add some, also for a user of /etc/passwd.
    pub fn groups(&self, gid: u32) -> Result<Vec<u32>, String> {
        let asked = getent().map_or(Ok(None), |getent| ask(&getent, "initgroups", &self.name))?;
        let others: Vec<u32> = match asked {
            // Its name, and then numbers.
            Some(answer) => answer.split_whitespace().skip(1).filter_map(|number| number.parse().ok()).collect(),
            // A getent that lacks this question, as musl's does, knows no other source.
            None => {
                let groups = local("group", Group::of)?.into_iter();
                groups.filter(|group| group.members.contains(&self.name)).map(|group| group.gid).collect()
            }
        };
        let mut groups = vec![gid];
        for other in others {
            if !groups.contains(&other) {
                groups.push(other);
            }
        }
        Ok(groups)
    }

    fn of(line: &str) -> Option<User> {
        let [name, _, uid, gid, _, home, shell] = line.split(':').collect::<Vec<_>>().try_into().ok()?;
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        Some(User { name: name.to_owned(), uid, gid, home: home.into(), shell: shell.into() })
    }
}

/// The number of the group with this name. The error says why that is unknown.
pub fn group_named(name: &str) -> Result<Option<u32>, String> {
    Ok(find("group", name, Group::of, |group| group.name == name)?.map(|group| group.gid))
}

impl Group {
    fn of(line: &str) -> Option<Group> {
        let [name, _, gid, members] = line.split(':').collect::<Vec<_>>().try_into().ok()?;
        let members = members.split(',').map(str::to_owned).collect();
        Some(Group { name: name.to_owned(), gid: gid.parse().ok()?, members })
    }
}

/// The entry that `is_wanted` in the file of `database`; else the one that `getent` has for `key`.
fn find<T>(
    database: &str,
    key: &str,
    read: fn(&str) -> Option<T>,
    is_wanted: impl Fn(&T) -> bool,
) -> Result<Option<T>, String> {
    if let Some(found) = local(database, read)?.into_iter().find(is_wanted) {
        return Ok(Some(found));
    }
    let getent = getent().ok_or_else(|| {
        format!("it is not in /etc/{database}, and there is no 'getent' in {} to ask for others", FOLDERS.join(", "))
    })?;
    // Its options begin like this, and its numbers.
    if key.starts_with(['-', '+', ' ']) {
        return Ok(None);
    }
    let Some(answer) = ask(&getent, database, key)? else { return Ok(None) };
    let entry = answer.lines().next().and_then(read);
    entry
        .map(Some)
        .ok_or_else(|| format!("'{} {database} {key}' gave no entry, but '{}'", getent.display(), answer.trim_end()))
}

/// All entries of the file of `database`. A container may lack it.
fn local<T>(database: &str, read: fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let path = format!("/etc/{database}");
    match fs::read(&path) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).lines().filter_map(read).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{path} cannot be read: {}", words(&error))),
    }
}

fn getent() -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join("getent")).find(|path| path.is_file())
}

/// The answer of `getent DATABASE KEY`. None if it knows nothing of that.
fn ask(getent: &Path, database: &str, key: &str) -> Result<Option<String>, String> {
    let why = |why: &str| format!("'{} {database} {key}' {why}", getent.display());
    let failed = |error| why(&format!("cannot be run: {}", words(&error)));
    let path = CString::new(getent.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let arguments = ["getent", database, key].map(CString::new).into_iter().collect::<Result<Vec<_>, _>>();
    let arguments = arguments.map_err(|error| failed(error.into()))?;
    // If CHLD were ignored, nobody would learn how it ended.
    signals::reset(Signal::SIGCHLD);
    let (pid, answer) = helper::start(move || {
        signals::swap_mask(0);
        let _ = dup2_stdout(std::io::stdin()).map(|()| descriptors::silence_stdin());
        let _ = std::fs::OpenOptions::new().write(true).open("/dev/null").map(dup2_stderr);
        let _ = execve::<_, CString>(&path, &arguments, &[]);
        Vec::new()
    })
    .map_err(failed)?;
    let ended = PidFd::open(pid).and_then(|process| ends_in_time(&process));
    if !matches!(ended, Ok(true)) {
        let _ = processes::signal_child(pid, Signal::SIGKILL);
    }
    let pid = Pid::from_raw(pid.as_raw());
    let status =
        rustix::io::retry_on_intr(|| waitpid(pid, WaitOptions::empty())).map_err(|error| failed(error.into()))?;
    if !ended.map_err(failed)? {
        return Err(why(&format!("gave no answer within {}s", PATIENCE.as_secs())));
    }
    let answer = memfd::read(answer).map_err(failed)?;
    match status.and_then(|(_, status)| status.exit_status()) {
        Some(0) if answer.is_empty() => Err(why("gave no answer")),
        Some(0) => Ok(Some(String::from_utf8_lossy(&answer).into_owned())),
        // 1: it lacks this question, 2: nobody of that name.
        Some(1 | 2) => Ok(None),
        Some(code) => Err(why(&format!("failed with exit code {code}"))),
        None => Err(why("was killed")),
    }
}

/// Whether the process ends before we run out of patience.
fn ends_in_time(process: &PidFd) -> std::io::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], left) {
            Err(Errno::EINTR) => {}
            polled => return Ok(polled? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let nobody = User::of("nobody:x:65534:65533:a, b:/nonexistent:/usr/sbin/nologin").unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.name.as_str()), (65534, 65533, "nobody"));
        assert_eq!((nobody.home, nobody.shell), ("/nonexistent".into(), "/usr/sbin/nologin".into()));
        for other in ["", "+::::::", "a:x:1:1::/", "a:x:-1:1::/:/bin/sh", "a:x:1:1::/:/bin/sh:"] {
            assert_eq!(User::of(other), None, "{other}");
        }
        let group = Group::of("adm:x:4:a,b").unwrap();
        assert_eq!((group.gid, group.members), (4, vec!["a".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn root_is_known() {
        let root = User::named("root").unwrap().unwrap();
        assert_eq!(User::numbered(0).unwrap().unwrap(), root);
        assert_eq!(root.groups(4711).unwrap()[0], 4711);
        assert_eq!(group_named("root"), Ok(Some(0)));
    }

    /// Needs `getent` itself, which has options.
    #[test]
    fn a_name_is_no_option() {
        assert_eq!(User::named("--help"), Ok(None));
        assert_eq!(User::named("no-such-user"), Ok(None));
    }
}
