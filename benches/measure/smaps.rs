//! What a process holds in memory, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::AddAssign;

use nix::unistd::Pid;

use super::Measured;

/// Bytes of one mapping, or of several.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Held {
    /// Its proportional share: a page that two processes map counts half in each.
    pub(crate) pss: u64,
    /// What it alone has, and has written to.
    pub(crate) private_dirty: u64,
}

impl AddAssign for Held {
    fn add_assign(&mut self, other: Held) {
        self.pss += other.pss;
        self.private_dirty += other.private_dirty;
    }
}

/// The whole process.
pub(crate) fn whole(pid: Pid) -> Measured<Held> {
    let mut held = Held::default();
    fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?.lines().for_each(|line| add(&mut held, line));
    Ok(held)
}

/// By what the mappings are of.
pub(crate) fn by_kind(pid: Pid) -> Measured<BTreeMap<&'static str, Held>> {
    let executable = fs::read_link(format!("/proc/{pid}/exe"))?;
    let mut kinds: BTreeMap<&str, Held> = BTreeMap::new();
    let mut kind = "other";
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        // "55d7…-55d7… r-xp 00000000 fe:00 1234   /usr/bin/panzer", then its counts, "Rss:  128 kB" and so on.
        let mut words = line.split_ascii_whitespace();
        if words.next().is_some_and(|word| word.ends_with(':')) {
            add(kinds.entry(kind).or_default(), line);
            continue;
        }
        kind = match words.nth(4) {
            Some(path) if executable.as_os_str() == path => "panzer",
            Some(path) if path.contains(".so") => "libc and loader",
            Some("[heap]") => "heap",
            Some("[stack]") => "stack",
            _ => "other",
        };
    }
    Ok(kinds)
}

fn add(held: &mut Held, line: &str) {
    let mut words = line.split_ascii_whitespace();
    let place = match words.next() {
        Some("Pss:") => &mut held.pss,
        Some("Private_Dirty:") => &mut held.private_dirty,
        _ => return,
    };
    // The kernel's kB are of 1024 bytes.
    *place += words.next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024;
}
