//! One file is the deployment: a program that is run without panzer runs under it.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

const HOW_TO_INSTALL: &str =
    "panzer: panzer is not installed: it is not in PATH, and the variable PANZER does not name it.
Install it with `cargo install --path .` in the folder of its source, or set PANZER to the path of the binary.";

/// Replaces this process by panzer, with this program as its mold.
pub(crate) fn execute_panzer(options: &[(String, String)]) -> ! {
    let named = env::var_os("PANZER").filter(|path| !path.is_empty());
    let panzer = named.clone().unwrap_or_else(|| "panzer".into());
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let mut command = Command::new(&panzer);
    command.arg("--preload").args(flags(options, &arguments)).arg("--").args(env::args_os());
    let _ = io::stdout().flush();
    let error = command.exec();
    if error.kind() == io::ErrorKind::NotFound && named.is_none() {
        eprintln!("{HOW_TO_INSTALL}");
        exit_at_once(127);
    }
    let panzer = panzer.display();
    eprintln!("panzer: {panzer} cannot be executed: {error}. Set PANZER to the path of panzer's binary.");
    exit_at_once(126);
}

/// Without what was registered for the end: the program has not run.
fn exit_at_once(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) };
    #[allow(unreachable_code, reason = "_exit does not return on any platform")]
    process::exit(code)
}

/// The options of the code as flags: those of the user win, and so does a variable.
fn flags(options: &[(String, String)], arguments: &[OsString]) -> Vec<OsString> {
    let (mut flags, mut seen) = (Vec::new(), BTreeSet::new());
    for (name, value) in options {
        let variable = format!("PANZER_{}", name.replace('-', "_").to_uppercase());
        if env::var_os(variable).is_some() {
            continue;
        }
        let flag = OsString::from(format!("--{name}"));
        let given = given_by_user(&flag, value.is_empty(), arguments);
        if given.is_empty() {
            flags.push(flag);
            flags.extend(Some(value).filter(|value| !value.is_empty()).map(OsString::from));
        } else if seen.insert(name) {
            flags.extend(given);
        }
    }
    flags
}

/// The occurrences of a flag among the program's own arguments, up to --.
fn given_by_user(flag: &OsStr, is_switch: bool, arguments: &[OsString]) -> Vec<OsString> {
    let mut found = Vec::new();
    let mut words = arguments.iter().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        let rest = word.as_bytes().strip_prefix(flag.as_bytes());
        let value = match rest {
            Some([]) if is_switch => None,
            Some([]) => Some(words.next().cloned().unwrap_or_default()),
            Some([b'=', value @ ..]) => Some(OsStr::from_bytes(value).to_owned()),
            _ => continue,
        };
        found.push(flag.to_owned());
        found.extend(value);
    }
    found
}
