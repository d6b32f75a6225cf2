//! A moment, as the time of CLOCK_MONOTONIC in seconds and nanoseconds. An [`Instant`] has this inside, but does not
//! show it.
//!
//! Within a process it is read back exactly. In the next image it is off by the nanoseconds between two looks at the
//! clock.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const NANOS: i128 = 1_000_000_000;

/// One moment in both forms. All others are computed from it.
fn anchor() -> (Instant, i128) {
    static ANCHOR: OnceLock<(Instant, i128)> = OnceLock::new();
    *ANCHOR.get_or_init(|| {
        let now = Instant::now();
        // This clock always exists.
        let nanos = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| nanos(time.tv_sec(), time.tv_nsec()));
        (now, nanos)
    })
}

/// Durations on the command line are shorter, even if several add up.
const MAX_DISTANCE_SECONDS: u64 = 1 << 40;

fn nanos(seconds: i64, rest: i64) -> i128 {
    i128::from(seconds) * NANOS + i128::from(rest)
}

#[derive(Serialize, Deserialize)]
struct Written(i64, u32);

impl From<Instant> for Written {
    fn from(moment: Instant) -> Written {
        let (instant, time) = anchor();
        let time = match moment.checked_duration_since(instant) {
            Some(after) => time + after.as_nanos() as i128,
            None => time - instant.duration_since(moment).as_nanos() as i128,
        };
        Written(time.div_euclid(NANOS) as i64, time.rem_euclid(NANOS) as u32)
    }
}

impl Written {
    /// None if it is further away than any deadline can be.
    fn moment(&self) -> Option<Instant> {
        let (instant, time) = anchor();
        let away = nanos(self.0, self.1.into()) - time;
        let distance = away.unsigned_abs();
        let seconds =
            u64::try_from(distance / NANOS.unsigned_abs()).ok().filter(|&seconds| seconds <= MAX_DISTANCE_SECONDS)?;
        let distance = Duration::new(seconds, (distance % NANOS.unsigned_abs()) as u32);
        if away < 0 { instant.checked_sub(distance) } else { instant.checked_add(distance) }
    }

    fn read<E: serde::de::Error>(&self) -> Result<Instant, E> {
        self.moment().ok_or_else(|| E::custom("a moment out of all bounds"))
    }
}

/// For `serde(with)`.
pub fn serialize<S: Serializer>(moment: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    Written::from(*moment).serialize(serializer)
}

/// For `serde(with)`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Instant, D::Error> {
    Written::deserialize(deserializer)?.read()
}

/// A moment, or none.
pub mod option {
    use super::*;

    /// For `serde(with)`.
    pub fn serialize<S: Serializer>(moment: &Option<Instant>, serializer: S) -> Result<S::Ok, S::Error> {
        moment.map(Written::from).serialize(serializer)
    }

    /// For `serde(with)`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Instant>, D::Error> {
        Option::<Written>::deserialize(deserializer)?.map(|written| written.read()).transpose()
    }
}

/// A moment for each key.
pub mod by_key {
    use super::*;

    /// For `serde(with)`.
    pub fn serialize<K, S>(moments: &BTreeMap<K, Instant>, serializer: S) -> Result<S::Ok, S::Error>
    where
        K: Serialize,
        S: Serializer,
    {
        serializer.collect_seq(moments.iter().map(|(key, moment)| (key, Written::from(*moment))))
    }

    /// For `serde(with)`.
    pub fn deserialize<'de, K, D>(deserializer: D) -> Result<BTreeMap<K, Instant>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        D: Deserializer<'de>,
    {
        let pairs = Vec::<(K, Written)>::deserialize(deserializer)?;
        pairs.into_iter().map(|(key, written)| Ok((key, written.read()?))).collect()
    }
}

/// Something with a moment to it, or nothing.
pub mod optional_pair {
    use super::*;

    /// For `serde(with)`.
    pub fn serialize<T, S>(pair: &Option<(T, Instant)>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize,
        S: Serializer,
    {
        pair.as_ref().map(|(first, moment)| (first, Written::from(*moment))).serialize(serializer)
    }

    /// For `serde(with)`.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<(T, Instant)>, D::Error>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        let pair = Option::<(T, Written)>::deserialize(deserializer)?;
        pair.map(|(first, written)| Ok((first, written.read()?))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Moments {
        #[serde(with = "super")]
        one: Instant,
        #[serde(with = "super::option")]
        perhaps: Option<Instant>,
        #[serde(with = "super::by_key")]
        many: BTreeMap<u32, Instant>,
        #[serde(with = "super::optional_pair")]
        pair: Option<(String, Instant)>,
    }

    #[test]
    fn moments_are_read_back_to_the_nanosecond() {
        let now = Instant::now();
        let year = Duration::from_secs(365 * 24 * 3600);
        for one in [now, now + Duration::from_nanos(1), now - Duration::from_nanos(999_999_999), now + 100 * year] {
            let moments = Moments {
                one,
                perhaps: Some(one),
                many: [(1, one), (2, now)].into(),
                pair: Some(("text".to_owned(), one)),
            };
            let json = serde_json::to_string(&moments).unwrap();
            assert_eq!(serde_json::from_str::<Moments>(&json).unwrap(), moments, "{json}");
        }
    }

    #[test]
    fn a_moment_that_no_clock_shows_is_refused() {
        for bad in ["[9223372036854775807,0]", "[-9223372036854775808,0]", "[1]", "3", "[1,-1]"] {
            let json = format!(r#"{{"one":{bad},"perhaps":null,"many":[],"pair":null}}"#);
            assert!(serde_json::from_str::<Moments>(&json).is_err(), "{bad}");
        }
    }
}
