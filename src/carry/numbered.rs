//! A map with numbers for keys that is flattened into a struct: serde then has the keys as texts.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// For `serde(with)`.
pub fn serialize<V: Serialize, S: Serializer>(map: &BTreeMap<u64, V>, serializer: S) -> Result<S::Ok, S::Error> {
    map.serialize(serializer)
}

/// For `serde(with)`.
pub fn deserialize<'de, V, D>(deserializer: D) -> Result<BTreeMap<u64, V>, D::Error>
where
    V: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let map = BTreeMap::<String, V>::deserialize(deserializer)?;
    map.into_iter().map(|(key, value)| Ok((key.parse().map_err(D::Error::custom)?, value))).collect()
}
