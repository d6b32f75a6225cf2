//! A panzer under test.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::executables::set_mode;
use super::mold::{in_this_test, is_mold};
use super::output::{Lines, Mark};
use super::patterns::{is_usual, matches};
use super::processes::{Name, Process, descendants, kill_exactly, started_by};
use super::requirements::with_real_interpreter;
use super::status::Status;
use super::waiting::{eventually, eventually_some};

/// What is to happen by itself happens within this, also on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(30);

/// No test takes this long, be the machine ever so busy. What blocks for ever, such as a read from a worker, ends by it.
const LONGEST_TEST: Duration = Duration::from_secs(300);

/// What is left for the processes below panzer to be gone once it has ended: it ends last, so nothing but the
/// kernel's own work.
const CLEAN_UP: Duration = Duration::from_secs(2);

/// What a panzer is started with.
#[derive(Debug)]
pub struct Builder {
    folder: TempDir,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    expected: Vec<String>,
    allowed: Vec<String>,
    directory: Option<PathBuf>,
    through: Option<PathBuf>,
    longest: Duration,
}

/// A panzer that runs in a folder of its own. When it is dropped it is stopped, and the test fails if it left a
/// process behind or wrote a line that was not expected.
#[derive(Debug)]
pub struct Panzer {
    folder: TempDir,
    child: Child,
    exit: Option<ExitStatus>,
    stderr: Lines,
    expected: Mutex<Vec<String>>,
    allowed: Mutex<Vec<String>>,
    seen: Mutex<BTreeSet<Name>>,
    checked: bool,
    /// Until it is dropped, the time runs after which everything is ended: whatever a test waits for has an end.
    _limited: Sender<()>,
}

impl Builder {
    /// Where it will run: for paths in its arguments. Its runtime directory is `run` in it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Builder {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Builder {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Builder {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Has it start in another directory than its folder.
    pub fn in_directory(mut self, directory: impl Into<PathBuf>) -> Builder {
        self.directory = Some(directory.into());
        self
    }

    /// Has it executed by this executable of its folder, which gets its path and its arguments.
    pub fn through(mut self, name: &str) -> Builder {
        self.through = Some(self.folder().join(name));
        self
    }

    /// For a test that may take this long beside the usual time.
    pub fn lasting(self, longer: Duration) -> Builder {
        Builder { longest: LONGEST_TEST + longer, ..self }
    }

    /// As `Panzer::expect_line`, for whoever has the builder only.
    pub fn expect_line(mut self, pattern: &str) -> Builder {
        self.expected.push(pattern.to_owned());
        self
    }

    /// As `Panzer::allow_line`, for whoever has the builder only.
    pub fn allow_line(mut self, pattern: &str) -> Builder {
        self.allowed.push(pattern.to_owned());
        self
    }

    /// Puts a file into its folder.
    pub fn file(self, name: &str, content: &str) -> Builder {
        fs::write(self.folder().join(name), content).expect("the folder is ours");
        self
    }

    /// Puts an executable file into its folder.
    pub fn executable(self, name: &str, content: &str) -> Builder {
        let builder = self.file(name, &in_this_test(content));
        set_mode(builder.folder().join(name), 0o755);
        builder
    }

    /// Puts a link to a file of this repository into its folder, under the same name.
    pub fn link(self, path: &str) -> Builder {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let name = target.file_name().expect("a file has a name").to_owned();
        if is_mold() {
            let content = fs::read_to_string(&target).expect("it is ours");
            return self.executable(&name.to_string_lossy(), &content);
        }
        symlink(&target, self.folder().join(name)).expect("the folder is ours");
        self
    }

    pub fn start(self) -> Panzer {
        let folder = self.folder.path().to_owned();
        let runtime = folder.join("run");
        fs::create_dir(&runtime).expect("the folder is ours");
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_panzer"));
        let mut command = Command::new(self.through.as_ref().unwrap_or(&binary));
        command.args(self.through.is_some().then_some(&binary)).args(&self.arguments);
        command.current_dir(self.directory.as_ref().unwrap_or(&folder));
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_a_supervisor(name)) {
            command.env_remove(name);
        }
        command.env("PWD", &folder).env("RUNTIME_DIRECTORY", &runtime).env("PATH", with_real_interpreter());
        // Servers that keep a socket or a lock in the home folder would get into each other's way.
        command.env("HOME", &folder);
        command.envs(is_mold().then_some(("PANZER_PRELOAD", "1"))).envs(self.environment);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: setsid and sigaction are async-signal-safe, and neither touches our memory.
        unsafe { command.pre_exec(lead_a_session) };
        // A child of another test may still have the file open that this test has just written.
        let mut child = eventually_some(LIMIT, "panzer can be executed", || match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
            spawned => Some(spawned.expect("panzer can be executed")),
        });
        let stderr = Lines::collect(child.stderr.take().expect("stderr is a pipe"));
        let _limited = limit(child.id().cast_signed(), self.longest);
        Panzer {
            folder: self.folder,
            child,
            exit: None,
            stderr,
            expected: Mutex::new(self.expected),
            allowed: Mutex::new(self.allowed),
            seen: Mutex::default(),
            checked: false,
            _limited,
        }
    }
}

/// Ends panzer and all that it has started, if what is returned still lives after the longest time of a test.
fn limit(main: i32, longest: Duration) -> Sender<()> {
    let (alive, dropped) = mpsc::channel();
    std::thread::spawn(move || {
        if dropped.recv_timeout(longest) == Err(RecvTimeoutError::Timeout) {
            eprintln!("panzer (pid {main}) is ended, as its test takes longer than {longest:?}");
            let all = started_by(main, &BTreeSet::new());
            all.iter().chain(&Process::look(main)).for_each(kill_exactly);
        }
    });
    alive
}

/// By its session a process below panzer is known even if it has shed its parents and its environment. Without a
/// terminal, whether one is there does not depend on who runs the tests; nor does whether hang-ups are heeded.
fn lead_a_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    // What another test, in another thread, had open just then without close-on-exec is none of panzer's.
    // SAFETY: three integers go in, and only flags of descriptors change.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    // SAFETY: the default replaces no handler of ours.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigDfl) }?;
    Ok(())
}

/// Has a command end by Ctrl-C, also if whoever runs the tests lets them ignore it, as a shell does in the background.
pub fn heed_ctrl_c(command: &mut Command) -> &mut Command {
    // SAFETY: the default replaces no handler of ours, and nothing is allocated.
    let reset = || unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }.map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec, it makes one system call.
    unsafe { command.pre_exec(reset) }
}

/// Variables that would configure panzer, or that whoever runs the tests got from a supervisor of its own.
fn is_of_a_supervisor(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("PANZER_")
        || name.starts_with("LISTEN_")
        || ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "XDG_RUNTIME_DIR"].contains(&name.as_ref())
}

impl Panzer {
    /// To be completed, then started.
    pub fn builder() -> Builder {
        let folder = tempfile::Builder::new().prefix("panzer-e2e-").tempdir().expect("a temporary folder can be made");
        Builder {
            folder,
            arguments: Vec::new(),
            environment: Vec::new(),
            expected: Vec::new(),
            allowed: Vec::new(),
            directory: None,
            through: None,
            longest: LONGEST_TEST,
        }
    }

    /// A panzer with these arguments, for a program that needs no file.
    pub fn start(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Panzer {
        Panzer::builder().args(arguments).start()
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Where it runs. Its runtime directory is `run` in it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        self.look_around();
        self.signal_quietly(signal);
    }

    /// The same without a look around: for many in a row.
    #[track_caller]
    pub fn signal_quietly(&self, signal: Signal) {
        assert!(self.exit.is_none(), "panzer has ended already");
        // Not reaped yet, so the pid is nobody else's.
        kill(Pid::from_raw(self.pid()), signal).expect("a child can be signalled");
    }

    /// Remembers who is there now, to find them again should panzer lose them.
    fn look_around(&self) {
        lock(&self.seen).extend(descendants(self.pid()).iter().map(Process::name));
    }

    /// The end of what it has written so far, to look at what comes after it.
    pub fn mark(&self) -> Mark {
        self.stderr.mark()
    }

    /// All it has written, and all its workers have, on stderr.
    pub fn lines(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Waits until a line was written that matches, and returns it. `*` in a pattern stands for anything.
    #[track_caller]
    pub fn wait_for_line(&self, pattern: &str, limit: Duration) -> String {
        match self.stderr.wait_for(Mark::default(), &[pattern], limit) {
            Some((_, line)) => line,
            None => panic!("no line {pattern:?} within {limit:?}"),
        }
    }

    /// The same, for a line that comes after `mark`.
    #[track_caller]
    pub fn wait_for_line_after(&self, mark: Mark, pattern: &str, limit: Duration) -> String {
        self.wait_for_any(mark, &[pattern], limit).1
    }

    #[track_caller]
    fn wait_for_any(&self, mark: Mark, patterns: &[&str], limit: Duration) -> (Mark, String) {
        match self.stderr.wait_for(mark, patterns, limit) {
            Some(found) => found,
            None => panic!("no line {patterns:?} within {limit:?}"),
        }
    }

    /// Waits until nobody holds its stderr any more: all that it will ever say is there.
    #[track_caller]
    pub fn wait_for_end(&self) {
        assert!(self.stderr.wait_for_end(LIMIT), "somebody still holds panzer's stderr");
    }

    /// A warning, an error or a worker's own line like this must come, once or more often, until the end.
    pub fn expect_line(&self, pattern: &str) {
        lock(&self.expected).push(pattern.to_owned());
    }

    /// A line like this may come.
    pub fn allow_line(&self, pattern: &str) {
        lock(&self.allowed).push(pattern.to_owned());
    }

    /// Waits until the first generation serves.
    #[track_caller]
    pub fn wait_serving(&self) {
        self.wait_for_line("panzer: generation 1 serves: ", LIMIT);
    }

    /// Reloads, and waits for the verdict: the new generation's number, or the line that says why it was rejected.
    /// (That line is an error: a test that wants it says so with `expect_line`.)
    #[track_caller]
    pub fn reload_and_wait(&self) -> Result<u32, String> {
        let mark = self.mark();
        self.signal(Signal::SIGUSR1);
        let (_, line) = self.wait_for_any(mark, &["panzer: reload done: generation ", "error: reload failed: "], LIMIT);
        let number = line.split_once("reload done: generation ").and_then(|(_, rest)| rest.split(' ').next());
        number.and_then(|number| number.parse().ok()).ok_or(line)
    }

    /// Waits until a retired generation is gone.
    #[track_caller]
    pub fn wait_drained(&self, generation: u32) {
        self.wait_for_line(&format!("panzer: generation {generation} has ended after draining"), LIMIT);
    }

    /// Asks for the table, as an operator does. The table has no last line, so it is asked for twice, and read up to
    /// where the second one begins.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.status_by(Signal::SIGTTIN)
    }

    /// The same, where another signal asks for it.
    #[track_caller]
    pub fn status_by(&self, signal: Signal) -> Status {
        let head = format!("panzer: main {}", self.pid());
        let ask = |mark| {
            self.signal(signal);
            self.wait_for_any(mark, &[&head], LIMIT).0
        };
        let first = ask(self.mark());
        let second = ask(first.next());
        Status::parse(&self.stderr.between(first, second))
    }

    /// The pids of the live workers of the generation that serves.
    #[track_caller]
    pub fn workers(&self) -> Vec<i32> {
        self.status().serving().pids()
    }

    /// Waits until panzer has ended by itself, and checks what it leaves.
    #[track_caller]
    pub fn wait_exit(mut self) -> ExitStatus {
        let status = self.reap();
        self.check();
        status
    }

    /// Stops it gracefully, and checks what it leaves.
    #[track_caller]
    pub fn stop(self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit()
    }

    #[track_caller]
    fn reap(&mut self) -> ExitStatus {
        let status = match self.exit {
            Some(status) => status,
            None => eventually_some(LIMIT, "panzer ends", || self.child.try_wait().expect("it is our child")),
        };
        self.exit = Some(status);
        status
    }

    /// Nothing may be left, and nothing unexpected may have been said.
    #[track_caller]
    fn check(&mut self) {
        self.checked = true;
        let seen = lock(&self.seen).clone();
        let mut left = Vec::new();
        let is_clean = || {
            left = started_by(self.pid(), &seen);
            left.is_empty()
        };
        if !holds_within(CLEAN_UP, is_clean) {
            let named: Vec<String> = left.iter().map(Process::describe).collect();
            panic!("panzer left processes behind: {named:#?}");
        }
        assert!(self.stderr.wait_for_end(CLEAN_UP), "somebody still holds panzer's stderr");
        self.check_lines();
    }

    #[track_caller]
    fn check_lines(&self) {
        let lines = self.lines();
        let (expected, allowed) = (lock(&self.expected).clone(), lock(&self.allowed).clone());
        let is_known =
            |line: &String| is_usual(line) || expected.iter().chain(&allowed).any(|pattern| matches(pattern, line));
        let unexpected: Vec<&String> = lines.iter().filter(|line| !is_known(line)).collect();
        assert!(unexpected.is_empty(), "not expected on stderr: {unexpected:#?}");
        let numbers: Vec<&String> =
            lines.iter().filter(|line| line.contains("panzer: ") && line.contains("(os error")).collect();
        assert!(numbers.is_empty(), "numbers instead of words: {numbers:#?}");
        for pattern in &expected {
            assert!(lines.iter().any(|line| matches(pattern, line)), "expected on stderr, and not there: {pattern:?}");
        }
    }

    /// Ends by force whatever is there, each by its pid.
    fn kill_everything(&mut self) {
        self.look_around();
        if self.exit.is_none() {
            // An error means that it has ended, which is what is wanted.
            let _ = self.child.kill();
            self.exit = self.child.wait().ok();
        }
        let seen = lock(&self.seen).clone();
        eventually(LIMIT, "everything is killed", || {
            let left = started_by(self.pid(), &seen);
            left.iter().for_each(kill_exactly);
            left.is_empty()
        });
    }
}

impl Drop for Panzer {
    fn drop(&mut self) {
        if self.checked && !std::thread::panicking() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("panzer (pid {}) wrote:\n  {}", self.pid(), self.lines().join("\n  "));
            self.kill_everything();
            return;
        }
        let gracefully = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.signal(Signal::SIGTERM);
            self.reap();
            self.check();
        }));
        if let Err(cause) = gracefully {
            eprintln!("panzer (pid {}) wrote:\n  {}", self.pid(), self.lines().join("\n  "));
            self.kill_everything();
            std::panic::resume_unwind(cause);
        }
    }
}

/// As `eventually`, for whoever has more to say than that it did not happen.
fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = std::time::Instant::now() + limit;
    let mut holds = false;
    eventually(limit + limit, "a condition with its own deadline", || {
        holds = condition();
        holds || std::time::Instant::now() >= deadline
    });
    holds
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A test that panicked meanwhile leaves these lists as good as they were.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
