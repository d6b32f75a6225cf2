//! The cgroups of workers: as asked for.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::size;

/// The limits of a generation's cgroup, for all its workers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cgroup {
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
}

/// One item of `--cgroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupItem {
    /// A cgroup, even if it has no limit.
    On,
    /// No cgroup.
    Off,
    /// The limit of memory, in bytes.
    Memory(u64),
    /// The limit of processes and threads.
    Pids(u64),
}

impl FromStr for CgroupItem {
    type Err = String;

    fn from_str(text: &str) -> Result<CgroupItem, String> {
        const FORM: &str = "it must be on, off, or limits, as in memory=2G,pids=500";
        let positive = |number: u64| if number > 0 { Ok(number) } else { Err("a limit of 0 lets nothing run") };
        match text.split_once('=') {
            None if text == "on" => Ok(CgroupItem::On),
            None if text == "off" => Ok(CgroupItem::Off),
            Some(("memory", size)) => Ok(CgroupItem::Memory(positive(size::parse(size)?)?)),
            Some(("pids", number)) => Ok(CgroupItem::Pids(positive(number.trim().parse().map_err(|_| FORM)?)?)),
            _ => Err(FORM.to_owned()),
        }
    }
}

impl Cgroup {
    /// The controllers that limits may need.
    pub const CONTROLLERS: [&str; 2] = ["memory", "pids"];

    /// All items together; none: no cgroup. The error says which of them exclude each other.
    pub fn of(items: &[CgroupItem]) -> Result<Option<Cgroup>, &'static str> {
        if items.contains(&CgroupItem::Off) && items.iter().any(|item| *item != CgroupItem::Off) {
            return Err("off stands alone");
        }
        let mut cgroup = Cgroup::default();
        for item in items {
            let (limit, value) = match *item {
                CgroupItem::Memory(bytes) => (&mut cgroup.memory, bytes),
                CgroupItem::Pids(number) => (&mut cgroup.pids, number),
                CgroupItem::On | CgroupItem::Off => continue,
            };
            if limit.replace(value).is_some() {
                return Err("the same limit twice");
            }
        }
        Ok((!items.is_empty() && !items.contains(&CgroupItem::Off)).then_some(cgroup))
    }

    /// The limits that are set: their controller, the file, and its content.
    pub fn limits(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let [memory, pids] = Cgroup::CONTROLLERS;
        let all = [(memory, "memory.max", self.memory), (pids, "pids.max", self.pids)];
        all.into_iter().filter_map(|(controller, file, limit)| Some((controller, file, limit?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let read = |texts: &[&str]| {
            let items: Result<Vec<CgroupItem>, String> = texts.iter().map(|text| text.parse()).collect();
            items.and_then(|items| Cgroup::of(&items).map_err(str::to_owned))
        };
        let limits = |memory, pids| Ok(Some(Cgroup { memory, pids }));
        assert_eq!(read(&["memory=2G", "pids=500"]), limits(Some(2 << 30), Some(500)));
        assert_eq!(read(&["on", "pids=1"]), limits(None, Some(1)));
        assert_eq!(read(&["on"]), limits(None, None));
        assert_eq!([read(&[]), read(&["off"])], [Ok(None), Ok(None)]);
        for wrong in ["", "yes", "memory", "memory=", "memory=0", "memory=x", "pids=0", "pids=-1", "cpu=1", "=1"] {
            assert!(read(&[wrong]).is_err(), "{wrong}");
        }
        assert!(read(&["off", "on"]).is_err() && read(&["pids=1", "pids=2"]).is_err());
    }
}
