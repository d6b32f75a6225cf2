//! Texts of the operating system: arguments, paths and variables are bytes, not necessarily UTF-8.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text of the operating system, byte for byte. In JSON it is a string if it is UTF-8, else an array of bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text(pub OsString);

impl Text {
    /// As a C string. A text from a command line or an environment has no NUL; otherwise the first one ends it.
    pub fn to_c(&self) -> CString {
        c_string(&self.0)
    }
}

/// `text` up to its first NUL, as a C string.
pub fn c_string(text: &OsStr) -> CString {
    let bytes = text.as_bytes();
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TextForm {
    Utf8(String),
    Bytes(Vec<u8>),
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => TextForm::Utf8(text.to_owned()).serialize(serializer),
            None => TextForm::Bytes(self.0.as_bytes().to_vec()).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        Ok(match TextForm::deserialize(deserializer)? {
            TextForm::Utf8(text) => Text(text.into()),
            TextForm::Bytes(bytes) => Text(OsString::from_vec(bytes)),
        })
    }
}

impl From<OsString> for Text {
    fn from(text: OsString) -> Text {
        Text(text)
    }
}

/// Reads and writes paths as [`Text`], because they need not be UTF-8: `#[serde(with = "crate::config::text::path")]`.
pub mod path {
    use std::path::PathBuf;

    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Text;

    /// A value that holds a path.
    pub trait HoldsPath: Sized {
        /// The form that is written.
        type Form: Serialize + DeserializeOwned;
        /// Into the written form.
        fn to_form(&self) -> Self::Form;
        /// From the written form.
        fn from_form(form: Self::Form) -> Self;
    }

    impl HoldsPath for PathBuf {
        type Form = Text;
        fn to_form(&self) -> Text {
            Text(self.clone().into())
        }
        fn from_form(form: Text) -> PathBuf {
            form.0.into()
        }
    }

    impl<P: HoldsPath> HoldsPath for Option<P> {
        type Form = Option<P::Form>;
        fn to_form(&self) -> Self::Form {
            self.as_ref().map(P::to_form)
        }
        fn from_form(form: Self::Form) -> Self {
            form.map(P::from_form)
        }
    }

    impl<T: Clone + Serialize + DeserializeOwned> HoldsPath for (PathBuf, T) {
        type Form = (Text, T);
        fn to_form(&self) -> Self::Form {
            (self.0.to_form(), self.1.clone())
        }
        fn from_form((path, other): Self::Form) -> Self {
            (PathBuf::from_form(path), other)
        }
    }

    /// For serde.
    pub fn serialize<P: HoldsPath, S: Serializer>(path: &P, serializer: S) -> Result<S::Ok, S::Error> {
        path.to_form().serialize(serializer)
    }

    /// For serde.
    pub fn deserialize<'de, P: HoldsPath, D: Deserializer<'de>>(deserializer: D) -> Result<P, D::Error> {
        P::Form::deserialize(deserializer).map(P::from_form)
    }
}

/// `NAME=VALUE` as a C string.
pub fn entry(name: &OsStr, value: &OsStr) -> CString {
    // With room for the NUL, too: this is done for each variable of each worker.
    let mut bytes = Vec::with_capacity(name.len() + value.len() + 2);
    [name.as_bytes(), b"=", value.as_bytes()].into_iter().for_each(|part| bytes.extend_from_slice(part));
    CString::new(bytes).unwrap_or_else(|error| c_string(OsStr::from_bytes(&error.into_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_keeps_every_byte() {
        for bytes in [&b"plain"[..], b"", b"\xff\xfe", "h\u{e9}".as_bytes()] {
            let text = Text(OsString::from_vec(bytes.to_vec()));
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text, "{json}");
        }
    }
}
