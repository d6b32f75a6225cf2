//! A pid, or what has one: written as its number.

use nix::unistd::Pid;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// For `serde(with)`.
pub fn serialize<S: Serializer>(pid: &Pid, serializer: S) -> Result<S::Ok, S::Error> {
    pid.as_raw().serialize(serializer)
}

/// For `serde(with)`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pid, D::Error> {
    i32::deserialize(deserializer).map(Pid::from_raw)
}
