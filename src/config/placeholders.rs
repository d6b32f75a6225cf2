//! Placeholders in the program's arguments and in `--env` values, replaced for each worker.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The values of the placeholders for one worker.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    /// Names of the listeners, in the order of their descriptors from `first_fd` on.
    pub listeners: &'a [Option<&'a str>],
    /// Ports of the listeners, if they have one.
    pub ports: &'a [Option<u16>],
    /// Descriptor of the first listener.
    pub first_fd: i32,
    /// Number of the worker, from 0.
    pub worker: u32,
    /// Number of the generation, from 1.
    pub generation: u32,
}

/// Replaces the placeholders of `text`: `{fd}`, `{fd:NAME}`, `{port}`, `{port:NAME}`, `{worker}`, `{generation}`,
/// `{3000+worker}`. Double braces are not replaced but become single ones: `{{worker}}` becomes `{worker}`.
///
/// Any other brace stays as it is, and so does `{port}` if no listener has one. Fails for `{fd}` without a listener,
/// and for a NAME that no listener has.
pub fn expand(text: &OsString, values: Values<'_>) -> Result<OsString, String> {
    let mut rest = text.as_bytes();
    let mut out = Vec::with_capacity(rest.len());
    while let Some(open) = rest.iter().position(|&byte| byte == b'{') {
        out.extend_from_slice(&rest[..open]);
        rest = &rest[open..];
        let is_doubled = rest.starts_with(b"{{");
        let start = if is_doubled { 2 } else { 1 };
        let close = rest.iter().position(|&byte| byte == b'}').filter(|&close| close >= start);
        let name = close.and_then(|close| std::str::from_utf8(&rest[start..close]).ok());
        match name.map(|name| (name, value(name, values))) {
            Some((name, Some(_))) if is_doubled && rest[start + name.len()..].starts_with(b"}}") => {
                out.extend_from_slice(format!("{{{name}}}").as_bytes());
                rest = &rest[name.len() + 4..];
            }
            Some((name, Some(value))) if !is_doubled => {
                out.extend_from_slice(value?.to_string().as_bytes());
                rest = &rest[name.len() + 2..];
            }
            _ => {
                out.push(b'{');
                rest = &rest[1..];
            }
        }
    }
    out.extend_from_slice(rest);
    Ok(OsString::from_vec(out))
}

/// None if `name` is not a placeholder.
fn value(name: &str, values: Values<'_>) -> Option<Result<u64, String>> {
    let fd = |index: usize| Ok(values.first_fd as u64 + index as u64);
    match name {
        "fd" if values.listeners.is_empty() => Some(Err("{fd} needs a listener: add --listen".to_owned())),
        "fd" => Some(fd(0)),
        "port" => values.ports.iter().flatten().next().map(|port| Ok((*port).into())),
        "worker" => Some(Ok(values.worker.into())),
        "generation" => Some(Ok(values.generation.into())),
        _ => {
            if let Some((kind @ ("fd" | "port"), wanted)) = name.split_once(':') {
                let index = values.listeners.iter().position(|listener| *listener == Some(wanted));
                let missing = || format!("{{{name}}}: no listener has this name; give it with --listen {wanted}=ADDR");
                let Some(index) = index else { return Some(Err(missing())) };
                let port = || values.ports[index].ok_or_else(|| format!("{{{name}}}: that listener has no port"));
                return Some(if kind == "fd" { fd(index) } else { port().map(u64::from) });
            }
            let base = name.strip_suffix("+worker").filter(|base| base.bytes().all(|byte| byte.is_ascii_digit()))?;
            Some(Ok(base.parse::<u32>().ok()? as u64 + u64::from(values.worker)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let (listeners, ports) = (&[None, Some("web"), Some("api")], &[None, Some(80), Some(81)]);
        let values = Values { listeners, ports, first_fd: 3, worker: 7, generation: 2 };
        expand(&text.into(), values).map(|text| text.into_string().unwrap())
    }

    #[test]
    fn placeholders_are_replaced_and_other_braces_stay() {
        assert_eq!(expanded("--fd={fd}/{fd:web}").unwrap(), "--fd=3/4");
        assert_eq!(expanded("{port}/{port:api}").unwrap(), "80/81");
        assert_eq!(expanded("{worker} {generation} {3000+worker}").unwrap(), "7 2 3007");
        for text in
            ["{}", "{", "}", "{x}", "{{worker", "a{ b }c", "{+worker}", "{9999999999+worker}", "{\"a\": {\"b\": 1}}"]
        {
            assert_eq!(expanded(text).unwrap(), text);
        }
        assert_eq!(expanded("{{worker}} {{{worker}}} {{fd:web}}").unwrap(), "{worker} {{worker}} {fd:web}");
        assert_eq!(expanded("{{worker} {{x}} {{fd:none}").unwrap_or_default(), "");
        assert_eq!(expanded("{{worker} {{x}}").unwrap(), "{7 {{x}}");
    }

    #[test]
    fn a_listener_that_is_not_there_is_an_error() {
        for missing in ["{fd:admin}", "{port:admin}"] {
            assert!(expanded(missing).unwrap_err().contains("--listen admin="));
        }
        let none = Values { listeners: &[], ports: &[], first_fd: 3, worker: 0, generation: 1 };
        assert!(expand(&"{fd}".into(), none).unwrap_err().contains("--listen"));
        assert_eq!(expand(&"{port}".into(), none).unwrap(), "{port}");
    }

    #[test]
    fn bytes_that_are_no_text_pass_through() {
        let text = OsString::from_vec(b"\xff{worker}\xfe{\xfd}".to_vec());
        let values = Values { listeners: &[], ports: &[], first_fd: 3, worker: 1, generation: 1 };
        assert_eq!(expand(&text, values).unwrap().as_bytes(), b"\xff1\xfe{\xfd}");
    }
}
