//! The options that limit what workers may use.

use clap::{ArgAction, Args};

use super::refusal::{Ending, usage};
use crate::config::{Cgroup, CgroupItem, CpuAffinity, Rlimit, number};

#[derive(Debug, Args)]
pub(super) struct ResourceOptions {
    /// Limit a resource of each worker, as in NOFILE=65536 or CORE=0:unlimited, by the names of setrlimit(2) without
    /// RLIMIT_. One number is the soft and the hard limit. To raise a hard limit takes root. May be given several
    /// times, once for each resource
    #[arg(long, env = "PANZER_RLIMIT", value_name = "NAME=SOFT[:HARD]", action = ArgAction::Append)]
    pub(super) rlimit: Vec<Rlimit>,

    /// How gladly the kernel ends a worker if memory runs out, from -1000 (never) to 1000 (first). With this option
    /// panzer protects its own processes if it may, which takes root
    #[arg(long, env = "PANZER_OOM_SCORE_ADJ", value_name = "N", allow_hyphen_values = true, value_parser = |text: &str| number::parse(text, &(-1000..=1000)))]
    pub(super) oom_score_adj: Option<i32>,

    /// CPUs that the workers run on. auto: each worker gets one of the CPUs that panzer may use, in turn; LIST, as in
    /// 0-3,6: each worker may use all of these
    #[arg(long, env = "PANZER_CPU_AFFINITY", value_name = "auto|LIST", allow_hyphen_values = true)]
    pub(super) cpu_affinity: Option<CpuAffinity>,

    /// Put the workers of each generation into a cgroup of their own, with limits for all of them together: memory=SIZE,
    /// pids=N (processes and threads), or on for no limit. What a generation leaves behind is killed with it. Takes
    /// cgroups of version 2, and one that panzer may divide, as by Delegate=yes in a systemd unit [off]
    #[arg(long, env = "PANZER_CGROUP", value_name = "on|NAME=LIMIT", action = ArgAction::Append, value_delimiter = ',')]
    cgroup: Vec<CgroupItem>,
}

impl ResourceOptions {
    pub(super) fn cgroup(&self, workers: u32) -> Result<Option<Cgroup>, Ending> {
        let cgroup = Cgroup::of(&self.cgroup).map_err(|why| usage(format!("--cgroup: {why}")))?;
        match cgroup.and_then(|cgroup| cgroup.pids) {
            Some(pids) if pids < workers.into() => {
                Err(usage(format!("--cgroup pids={pids} leaves no room for {workers} workers; raise it")))
            }
            _ => Ok(cgroup),
        }
    }
}
