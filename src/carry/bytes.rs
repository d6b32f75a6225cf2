//! Bytes as a text with one letter for each byte. Most of them are JSON, so the text has about their length.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// For `serde(with)`.
pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&bytes.iter().map(|&byte| char::from(byte)).collect::<String>())
}

/// For `serde(with)`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.chars().map(|letter| u8::try_from(letter).map_err(|_| Error::custom("a letter that is not a byte"))).collect()
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Bytes(#[serde(with = "super")] Vec<u8>);

    #[test]
    fn every_byte_is_read_back() {
        let all = Bytes((0..=255).collect());
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Bytes>(&json).unwrap(), all);
        assert!(serde_json::from_str::<Bytes>("\"\u{100}\"").is_err());
    }
}
