//! The argument of `--share-ports`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::address::MAX_LISTENERS;

/// Whether workers share the ports that they bind themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharePorts {
    /// If no listener is given, and if it is possible.
    #[default]
    Auto,
    /// Always. If it is not possible, panzer does not start.
    On,
    /// Never.
    Off,
    /// Always, but only these ports.
    Ports(BTreeSet<u16>),
}

impl SharePorts {
    /// The words for the values without ports.
    pub const WORDS: [(&str, SharePorts); 3] =
        [("auto", SharePorts::Auto), ("on", SharePorts::On), ("off", SharePorts::Off)];

    /// The only ports that are shared, if they were given.
    pub fn only(&self) -> Option<&BTreeSet<u16>> {
        match self {
            SharePorts::Ports(ports) => Some(ports),
            _ => None,
        }
    }
}

impl FromStr for SharePorts {
    type Err = String;

    fn from_str(text: &str) -> Result<SharePorts, String> {
        if let Some((_, known)) = SharePorts::WORDS.into_iter().find(|(word, _)| *word == text) {
            return Ok(known);
        }
        let port = |text: &str| text.trim().parse().ok().filter(|&port: &u16| port > 0);
        let ports: Option<BTreeSet<u16>> = text.split(',').map(port).collect();
        let ports = ports.filter(|ports| ports.len() <= MAX_LISTENERS).map(SharePorts::Ports);
        ports.ok_or_else(|| "it must be auto, on, off, or ports from 1 to 65535, as in 8000,8443".to_owned())
    }
}

impl fmt::Display for SharePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.only().into_iter().flatten().map(u16::to_string).collect::<Vec<_>>().join(",");
        let word = SharePorts::WORDS.into_iter().find(|(_, known)| known == self).map(|(word, _)| word);
        f.write_str(word.unwrap_or(&ports))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_shown() {
        for text in ["auto", "on", "off", "8000", "8000,8443"] {
            assert_eq!(text.parse::<SharePorts>().unwrap().to_string(), text);
        }
        assert_eq!("8443, 8000,8443".parse::<SharePorts>().unwrap().to_string(), "8000,8443");
        for text in ["", "0", "70000", "8000,", "yes", "8000-8003", "-1"] {
            assert!(text.parse::<SharePorts>().is_err(), "{text}");
        }
    }
}
