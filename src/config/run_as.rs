//! User, group, umask and nice value of the workers, as they were given. Names are not looked up yet.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::resources::rlimit::{CpuAffinity, Rlimit};

/// A user or a group, as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameOrNumber {
    /// The number was given.
    Number(u32),
    /// The name was given.
    Name(String),
}

/// The argument of `--user`: a user, possibly with a colon and a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserAndGroup {
    /// The user.
    pub user: NameOrNumber,
    /// The group, if it is not the user's own.
    pub group: Option<NameOrNumber>,
}

/// User, group, umask and nice value of the workers. A field without a value stays as it is for panzer itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunAs {
    /// The user.
    pub user: Option<NameOrNumber>,
    /// The group, if it is not the user's own.
    pub group: Option<NameOrNumber>,
    /// The umask.
    pub umask: Option<u32>,
    /// Their nice value, from -20 to 19.
    pub nice: Option<i32>,
    /// Limits of their resources.
    #[serde(default)]
    pub rlimit: Vec<Rlimit>,
    /// How gladly the kernel ends them where memory is short, from -1000 to 1000.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// The CPUs that they run on.
    #[serde(default)]
    pub cpu_affinity: Option<CpuAffinity>,
}

impl FromStr for NameOrNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<NameOrNumber, String> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // The highest number means "unchanged" to the kernel.
            let number = text.parse().ok().filter(|&number| number != u32::MAX);
            return number.map(NameOrNumber::Number).ok_or_else(|| format!("a number goes up to {}", u32::MAX - 1));
        }
        if text.is_empty() || text.len() > 256 || text.contains([':', '\0', '\n']) {
            return Err("take a name or a number".to_owned());
        }
        Ok(NameOrNumber::Name(text.to_owned()))
    }
}

impl fmt::Display for NameOrNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameOrNumber::Number(number) => write!(f, "{number}"),
            NameOrNumber::Name(name) => write!(f, "{name}"),
        }
    }
}

impl FromStr for UserAndGroup {
    type Err = String;

    fn from_str(text: &str) -> Result<UserAndGroup, String> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let named = |named: &str| named.parse().map_err(|why| format!("{why}, as in www-data or 1000:1000"));
        Ok(UserAndGroup { user: named(user)?, group: group.map(named).transpose()? })
    }
}

/// Reads an octal umask.
pub fn umask(text: &str) -> Result<u32, String> {
    octal(text).ok_or_else(|| "it must be octal, from 0 to 777, as in 027".to_owned())
}

/// Permission bits in octal digits, from 0 to 0777.
pub(super) fn octal(text: &str) -> Option<u32> {
    let is_octal = !text.is_empty() && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    u32::from_str_radix(text, 8).ok().filter(|&bits| is_octal && bits <= 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_read() {
        let name = |name: &str| NameOrNumber::Name(name.to_owned());
        assert_eq!("app".parse(), Ok(UserAndGroup { user: name("app"), group: None }));
        assert_eq!("7:adm".parse(), Ok(UserAndGroup { user: NameOrNumber::Number(7), group: Some(name("adm")) }));
        for text in ["", ":", ":adm", "app:", "a:b:c", "4294967295", "4294967296", "1:4294967295"] {
            assert!(text.parse::<UserAndGroup>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_umask_is_octal() {
        assert_eq!(umask("027"), Ok(0o27));
        assert_eq!(umask("0"), Ok(0));
        for text in ["", "8", "-1", "+7", "1000", "0o27", "rwx"] {
            assert!(umask(text).is_err(), "{text}");
        }
    }
}
