//! The command: finds the files, shows lines, and follows until panzer has ended.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::line::{Filter, on_terminal};
use super::tail::Tail;
use crate::config::LogFile;
use crate::control::operator::requests::{Request, Wanted};
use crate::control::operator::status::{LogPlace, Status};
use crate::panzerctl::choose::{choose, connect};
use crate::panzerctl::client::{ANSWER_TIMEOUT, Client, status_in};
use crate::panzerctl::command_line::Options;
use crate::panzerctl::instance::Instance;
use crate::panzerctl::output::is_coloured;
use crate::panzerctl::trouble::Trouble;
use crate::sys::errno::words;
use crate::sys::printable;
use crate::sys::stdout::{why_not, write_bytes};

/// Pause between two looks at a file. A file system may not say that a file has grown.
const LOOK_PAUSE: u8 = 100;

/// Time between two questions whether a reload has changed the files.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// Bytes that are written at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Writes lines to stdout.
struct Writer {
    out: Vec<u8>,
    is_terminal: bool,
    /// The file whose lines were shown last.
    shown: Option<PathBuf>,
}

impl Writer {
    fn line(&mut self, path: &PathBuf, is_only: bool, line: &[u8]) -> io::Result<()> {
        if !is_only && self.shown.as_ref() != Some(path) {
            let gap = if self.shown.is_some() { "\n" } else { "" };
            let name = printable::line(&path.display().to_string());
            self.out.extend_from_slice(format!("{gap}==> {name} <==\n").as_bytes());
            self.shown = Some(path.clone());
        }
        match self.is_terminal {
            true => self.out.extend_from_slice(on_terminal(line, is_coloured()).as_bytes()),
            false => self.out.extend_from_slice(line),
        }
        self.out.push(b'\n');
        if self.out.len() < CHUNK_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        // Failing, it is not written twice.
        let out = std::mem::take(&mut self.out);
        write_bytes(&out).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => error,
            _ => io::Error::other(why_not(&error)),
        })
    }
}

/// Shows the last `count` lines of each file, and with `follows` what comes then.
pub(crate) fn show(options: &Options, follows: bool, count: u64, filter: Filter) -> Result<(), Trouble> {
    let instance = choose(options)?;
    let mut client = connect(&instance, &Request::new(Wanted::Status))?;
    let main = client.main();
    let answer = client.answer(Some(Instant::now() + options.timeout.unwrap_or(ANSWER_TIMEOUT)))?;
    let status = status_in(answer).map_err(Trouble::Unknown)?;
    let paths = files(&status).map_err(Trouble::Failed)?;
    if !filter.is_everything() && !status.logs.iter().all(|place| place.has_origins) {
        return Err(Trouble::Failed(
            "the lines of the log do not say which worker wrote them; start panzer with --log-prefix or --log-format \
             json, or leave out --worker and --generation"
                .to_owned(),
        ));
    }
    let is_terminal = io::IsTerminal::is_terminal(&io::stdout());
    let mut writer = Writer { out: Vec::new(), is_terminal, shown: None };
    let mut session = Session { instance, count, filter, tails: Vec::new() };
    let done = session.take(paths, &mut writer).and_then(|()| match follows {
        true => session.follow(main, &mut writer),
        false => session.finish(&mut writer),
    });
    match done {
        // Nobody wants to read on.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|error| Trouble::Failed(words(&error))),
    }
}

struct Session {
    instance: Instance,
    count: u64,
    filter: Filter,
    tails: Vec<Tail>,
}

impl Session {
    /// Shows these files from now on, each new one from its last lines on.
    fn take(&mut self, paths: Vec<PathBuf>, writer: &mut Writer) -> io::Result<()> {
        self.tails.retain(|tail| paths.contains(&tail.path));
        let is_only = paths.len() == 1;
        for path in paths {
            if self.tails.iter().any(|tail| tail.path == path) {
                continue;
            }
            let mut tail = Tail::new(path.clone(), self.filter);
            tail.begin(self.count, &mut |line| writer.line(&path, is_only, line))?;
            if !tail.is_there() {
                let path = printable::line(&path.display().to_string());
                eprintln!("panzerctl: {path} is not there; if it was moved, panzerctl reopen makes it anew");
            }
            self.tails.push(tail);
        }
        writer.flush()
    }

    fn finish(&mut self, writer: &mut Writer) -> io::Result<()> {
        let is_only = self.tails.len() == 1;
        for tail in &mut self.tails {
            let path = tail.path.clone();
            tail.finish(&mut |line| writer.line(&path, is_only, line))?;
        }
        writer.flush()
    }

    /// Follows the files until main has ended and everything is shown, or nobody reads any more.
    fn follow(&mut self, main: Option<impl AsFd>, writer: &mut Writer) -> io::Result<()> {
        let mut question: Option<Client> = None;
        let mut asked = Instant::now();
        let mut has_ended = false;
        loop {
            let is_only = self.tails.len() == 1;
            for tail in &mut self.tails {
                let path = tail.path.clone();
                if tail.follow(&mut |line| writer.line(&path, is_only, line))? {
                    eprintln!("panzerctl: the log was rotated faster than it could be read; lines may be missing here");
                }
            }
            writer.flush()?;
            if has_ended {
                eprintln!("panzerctl: {} has ended", self.instance.shown());
                return self.finish(writer);
            }
            if let Some(answer) = question.as_mut().and_then(Client::answer_so_far) {
                question = None;
                if let Some(paths) = answer.and_then(status_in).ok().and_then(|status| files(&status).ok()) {
                    self.take(paths, writer)?;
                }
            }
            if question.is_none() && asked.elapsed() >= ASK_INTERVAL {
                asked = Instant::now();
                question = Client::connect_without_waiting(&self.instance).ok();
                question.iter_mut().for_each(|client| client.ask(&Request::new(Wanted::Status)));
                has_ended = main.is_none() && question.is_none();
            }
            let stdout = io::stdout();
            let mut fds = vec![PollFd::new(stdout.as_fd(), PollFlags::empty())];
            fds.extend(main.as_ref().map(|main| PollFd::new(main.as_fd(), PollFlags::POLLIN)));
            // Interrupted, it looks a little sooner.
            let _ = poll(&mut fds, PollTimeout::from(LOOK_PAUSE));
            let has = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
            if has(0) {
                return Ok(());
            }
            has_ended |= has(1);
        }
    }
}

/// The files that panzer writes. An error says where the output goes instead.
fn files(status: &Status) -> Result<Vec<PathBuf>, String> {
    if status.logs.is_empty() {
        return Err(format!(
            "panzer keeps no logs: the workers write to its own stdout ({}) and stderr ({}); start it with --log FILE",
            own(status.pid, 1).1,
            own(status.pid, 2).1
        ));
    }
    let (mut paths, mut elsewhere) = (Vec::new(), String::new());
    for LogPlace { path, .. } in &status.logs {
        let log = LogFile { path: path.clone(), access: Default::default() };
        match log.own_descriptor().map(|number| own(status.pid, number)) {
            None => paths.push(path.clone()),
            Some((Some(path), _)) => paths.push(path),
            Some((None, shown)) => {
                elsewhere = format!("the logs go to panzer's own {log} ({shown}): read them there, or give --log FILE");
            }
        }
    }
    if paths.is_empty() { Err(elsewhere) } else { Ok(paths) }
}

/// The file behind a descriptor of main, if it is one, and what it is in words.
fn own(main: i32, number: i32) -> (Option<PathBuf>, String) {
    let link = PathBuf::from(format!("/proc/{main}/fd/{number}"));
    let Ok(path) = fs::read_link(&link) else { return (None, "whatever that is".to_owned()) };
    let shown = path.display().to_string();
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => (Some(path), shown),
        _ if shown.starts_with("pipe:") => (None, "a pipe".to_owned()),
        _ if shown.starts_with("socket:") => (None, "a socket; of systemd's journal, see journalctl".to_owned()),
        _ => (None, shown),
    }
}

/// The last lines of all files, for a screen; or why there are none.
pub(crate) fn last_lines(status: &Status, count: usize) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    let paths = files(status)?;
    let each = (count / paths.len()).max(1);
    for path in paths {
        let mut tail = Tail::new(path, Filter::default());
        let mut emit = |line: &[u8]| {
            lines.push(on_terminal(line, false));
            Ok(())
        };
        tail.begin(each as u64, &mut emit).and_then(|()| tail.finish(&mut emit)).map_err(|error| words(&error))?;
    }
    Ok(lines)
}
