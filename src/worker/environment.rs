//! The environment and the arguments of a worker.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use super::dialects::{self, WorkerContext};
use crate::config::text::entry;
use crate::config::{ListenAs, Plan, Text};

/// The part of the environment that all workers of a generation have in common.
#[derive(Debug)]
pub struct Common {
    /// Variables that panzer was started with and passes on.
    pub inherited: Vec<(OsString, OsString)>,
    /// Variables that files set. They replace inherited ones.
    pub from_files: BTreeMap<Text, Text>,
}

/// The program as it was given, then its arguments with placeholders replaced.
pub fn arguments(plan: &Plan, context: WorkerContext<'_>) -> Result<Vec<CString>, String> {
    let args = plan.args.iter().map(|arg| Ok(plan.expand(arg, context.worker, context.generation)?.to_c()));
    std::iter::once(Ok(plan.program.to_c())).chain(args).collect()
}

/// The whole environment but `LISTEN_PID` and `WATCHDOG_PID`, which are known only after the fork. Later ones win: inherited variables,
/// panzer's own, those of files, those of options.
pub fn variables(plan: &Plan, common: &Common, context: WorkerContext<'_>) -> Result<Vec<CString>, String> {
    let mut all: BTreeMap<Cow<'_, OsStr>, Cow<'_, OsStr>> =
        common.inherited.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let own = [
        ("PANZER_WORKER_ID", context.worker.to_string()),
        ("PANZER_WORKER_COUNT", plan.workers.to_string()),
        ("PANZER_GENERATION", context.generation.to_string()),
        ("PANZER_MAIN_PID", context.main_pid.to_string()),
        ("NOTIFY_SOCKET", context.notify_socket.to_owned()),
    ];
    let watchdog = plan.watchdog.map(|period| ("WATCHDOG_USEC", period.as_micros().to_string()));
    let own =
        own.into_iter().chain(watchdog).map(|(name, value)| (OsStr::new(name).into(), OsString::from(value).into()));
    all.extend(own);
    let owned = |(name, value)| (OsString::from(name).into(), OsString::from(value).into());
    all.extend(of_listeners(plan, context).into_iter().map::<(Cow<'_, OsStr>, Cow<'_, OsStr>), _>(owned));
    all.extend(common.from_files.iter().map(|(name, value)| ((&name.0).into(), (&value.0).into())));
    for (name, value) in &plan.env {
        all.insert((&name.0).into(), plan.expand(value, context.worker, context.generation)?.0.into());
    }
    Ok(all.iter().map(|(name, value)| entry(name, value)).collect())
}

/// Makes the environment of a worker that of a mold, with its socket at that descriptor: it is no worker.
pub fn mold_variables(variables: &mut Vec<CString>, socket: RawFd) {
    variables.retain(|entry| !entry.as_bytes().starts_with(b"PANZER_WORKER_ID="));
    let own = [("PANZER_MOLD_FD", socket.to_string()), ("PANZER_MOLD_VERSION", "1".to_owned())];
    variables.extend(own.map(|(name, value)| entry(OsStr::new(name), OsStr::new(&value))));
}

/// The variables that name the listeners. `LISTEN_PID` is added after the fork.
fn of_listeners(plan: &Plan, context: WorkerContext<'_>) -> Vec<(String, String)> {
    let mut own = Vec::new();
    if !plan.listen.is_empty() && plan.handover.listen_as == ListenAs::Fds {
        let names: Vec<&str> = plan.listen.iter().map(|listen| listen.shown_name()).collect();
        own.push(("LISTEN_FDS".to_owned(), plan.listen.len().to_string()));
        own.push(("LISTEN_FDNAMES".to_owned(), names.join(":")));
    }
    own.extend(
        plan.handover.also_speak.iter().flat_map(|&dialect| dialects::variables(dialect, &plan.listen, context)),
    );
    own
}

/// Variables that only the worker itself can use, with its descriptors and its right to notify.
const WORKERS_OWN: [&[u8]; 4] = [b"NOTIFY_SOCKET=", b"WATCHDOG_USEC=", b"LISTEN_FDS=", b"LISTEN_FDNAMES="];

/// The whole environment of a probe: as the worker's, with `PANZER_WORKER_PID`, without what only the worker can use.
pub fn probe_variables(
    plan: &Plan,
    common: &Common,
    context: WorkerContext<'_>,
    pid: i32,
) -> Result<Vec<CString>, String> {
    let mut variables = variables(plan, common, context)?;
    let is_workers_own = |entry: &[u8]| {
        let name = entry.split(|&byte| byte == b'=').next().unwrap_or_default();
        WORKERS_OWN.iter().any(|own| entry.starts_with(own)) || dialects::owns(OsStr::from_bytes(name))
    };
    variables.retain(|entry| !is_workers_own(entry.as_bytes()));
    variables.push(entry(OsStr::new("PANZER_WORKER_PID"), OsStr::new(&pid.to_string())));
    Ok(variables)
}
