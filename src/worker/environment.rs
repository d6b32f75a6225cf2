//! What a worker finds in its environment and in its arguments.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::dialects;
use crate::config::text::entry;
use crate::config::{ListenAs, Plan, Text};

/// What all workers of a generation find in their environment, whichever they are.
#[derive(Debug)]
pub struct Common {
    /// What panzer was started with, as far as it is passed on.
    pub inherited: Vec<(OsString, OsString)>,
    /// What files set, in place of that.
    pub from_files: BTreeMap<Text, Text>,
}

/// What one worker is told of itself.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Its number, from 0.
    pub worker: u32,
    /// Its generation's number, from 1.
    pub generation: u32,
    /// How many starts there were, as start_server counts them: the first is 1, and each further attempt one more.
    pub starts: u32,
    /// Main's pid.
    pub main_pid: i32,
    /// The pid of its parent.
    pub monitor_pid: i32,
    /// The value of `NOTIFY_SOCKET`.
    pub notify_socket: &'a str,
    /// The value of `EINHORN_SOCK_PATH`, where einhorn is spoken.
    pub ack_socket: Option<&'a str>,
}

/// The arguments: the program as it was named, then its own, with placeholders replaced.
pub fn arguments(plan: &Plan, place: Place<'_>) -> Result<Vec<CString>, String> {
    let args = plan.args.iter().map(|arg| Ok(plan.expand(arg, place.worker, place.generation)?.to_c()));
    std::iter::once(Ok(plan.program.to_c())).chain(args).collect()
}

/// The whole environment, but for `LISTEN_PID`, which is known only after the fork. What stands further down wins:
/// what panzer was started with, panzer's own, files, options.
pub fn variables(plan: &Plan, common: &Common, place: Place<'_>) -> Result<Vec<CString>, String> {
    let mut all: BTreeMap<OsString, OsString> = common.inherited.iter().cloned().collect();
    let own = [
        ("PANZER_WORKER_ID", place.worker.to_string()),
        ("PANZER_WORKER_COUNT", plan.workers.to_string()),
        ("PANZER_GENERATION", place.generation.to_string()),
        ("PANZER_MAIN_PID", place.main_pid.to_string()),
        ("NOTIFY_SOCKET", place.notify_socket.to_owned()),
    ];
    all.extend(own.map(|(name, value)| (name.into(), value.into())));
    all.extend(of_listeners(plan, place).into_iter().map(|(name, value)| (name.into(), value.into())));
    all.extend(common.from_files.iter().map(|(name, value)| (name.0.clone(), value.0.clone())));
    for (name, value) in &plan.env {
        all.insert(name.0.clone(), plan.expand(value, place.worker, place.generation)?.0);
    }
    Ok(all.iter().map(|(name, value)| entry(name, value)).collect())
}

/// What tells of the listeners; `LISTEN_PID` is added after the fork.
fn of_listeners(plan: &Plan, place: Place<'_>) -> Vec<(String, String)> {
    let mut own = Vec::new();
    if !plan.listen.is_empty() && plan.handover.listen_as == ListenAs::Fds {
        let names: Vec<&str> = plan.listen.iter().map(|listen| listen.shown_name()).collect();
        own.push(("LISTEN_FDS".to_owned(), plan.listen.len().to_string()));
        own.push(("LISTEN_FDNAMES".to_owned(), names.join(":")));
    }
    own.extend(plan.handover.also_speak.iter().flat_map(|&dialect| dialects::variables(dialect, &plan.listen, place)));
    own
}

/// Variables of a worker that only a process with its descriptors and its rights to tell can use.
const WORKERS_OWN: [&[u8]; 3] = [b"NOTIFY_SOCKET=", b"LISTEN_FDS=", b"LISTEN_FDNAMES="];

/// The whole environment of a probe: as the worker's, with `PANZER_WORKER_PID`, without what only the worker can use.
pub fn probe_variables(plan: &Plan, common: &Common, place: Place<'_>, pid: i32) -> Result<Vec<CString>, String> {
    let mut variables = variables(plan, common, place)?;
    let is_workers_own = |entry: &[u8]| {
        let name = entry.split(|&byte| byte == b'=').next().unwrap_or_default();
        WORKERS_OWN.iter().any(|own| entry.starts_with(own)) || dialects::owns(OsStr::from_bytes(name))
    };
    variables.retain(|entry| !is_workers_own(entry.as_bytes()));
    variables.push(entry(OsStr::new("PANZER_WORKER_PID"), OsStr::new(&pid.to_string())));
    Ok(variables)
}
