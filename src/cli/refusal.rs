//! How panzer ends if it does not become main. Also turns clap's errors into one line.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::num::ParseIntError;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::sys::errno::{chain, unless_forbidden};

/// The end of a panzer that does not become main.
#[derive(Debug)]
pub enum Ending {
    /// Help or version, for stdout.
    Shown(String),
    /// The command line or the environment is wrong, in a line.
    Usage(String),
    /// A daemon was started, or its start failed: the exit code, and a line that the daemon itself has not logged.
    Left(u8, Option<String>),
    /// Panzer cannot start, in a line.
    CannotStart(String),
}

impl From<anyhow::Error> for Ending {
    fn from(error: anyhow::Error) -> Ending {
        Ending::CannotStart(chain(&error))
    }
}

impl From<io::Error> for Ending {
    fn from(error: io::Error) -> Ending {
        Ending::from(anyhow::Error::from(unless_forbidden(error)).context("cannot start"))
    }
}

pub(super) fn usage(message: impl Into<String>) -> Ending {
    Ending::Usage(message.into())
}

/// The end of panzer because of clap's error about `arguments`: help is one too.
pub(super) fn refusal(error: &clap::Error, arguments: &[OsString]) -> Ending {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let text = error.render();
        let coloured = io::stdout().is_terminal();
        return Ending::Shown(if coloured { text.ansi().to_string() } else { text.to_string() });
    }
    const OWN: &str = "the program's own options come after '--'";
    usage(in_one_line(error, arguments, &format!("see panzer --help; {OWN}"), "put the program's arguments after '--'"))
}

/// Clap's error about `arguments` in one line: what, where, and what to do. `see` completes the line about an unknown
/// option, and `put` the line about an argument that is too many.
pub(crate) fn in_one_line(error: &clap::Error, arguments: &[OsString], see: &str, put: &str) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let argument = context(ContextKind::InvalidArg).unwrap_or_default();
    let flag = argument.split(' ').next().unwrap_or_default().to_owned();
    let value = context(ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        // A suggestion must share most of its letters. Clap would suggest for a short option any long one with its
        // letter.
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            match context(ContextKind::SuggestedArg).filter(|similar| similar.len() * 2 > argument.len()) {
                Some(similar) => format!("unknown option '{argument}': did you mean '{similar}'?"),
                None => format!("unknown option '{argument}': {see}"),
            }
        }
        ErrorKind::UnknownArgument => format!("unexpected argument '{argument}': {put}"),
        ErrorKind::InvalidValue if value.is_empty() => {
            format!("{flag} needs a value: {}", see.split(';').next().unwrap_or_default())
        }
        ErrorKind::InvalidValue => {
            let valid = context(ContextKind::ValidValue).unwrap_or_default();
            let similar = context(ContextKind::SuggestedValue).map(|similar| format!("did you mean '{similar}'? "));
            format!("invalid value '{value}' for {flag}: {}it must be one of {valid}", similar.unwrap_or_default())
        }
        ErrorKind::ValueValidation => {
            let why =
                std::error::Error::source(error).map_or_else(String::new, |why| match why.is::<ParseIntError>() {
                    true => ": it must be a whole number".to_owned(),
                    false => format!(": {why}"),
                });
            format!("invalid value '{value}' for {flag}{why}")
        }
        ErrorKind::ArgumentConflict => {
            let other = context(ContextKind::PriorArg).unwrap_or_default();
            if other == argument || other.is_empty() {
                format!("{flag} is given twice")
            } else {
                format!("{flag} and {} exclude each other", other.split(' ').next().unwrap_or_default())
            }
        }
        // Clap does not say which argument. A path may have any bytes, so another argument may be the wrong one.
        ErrorKind::InvalidUtf8 => match arguments.iter().position(|argument| argument.to_str().is_none()) {
            Some(at) => {
                let wrong = arguments[at].to_string_lossy();
                let before = at.checked_sub(1).map(|at| arguments[at].to_string_lossy());
                let (option, value) = match wrong.split_once('=').filter(|_| wrong.starts_with("--")) {
                    Some((option, value)) => (Some(option), value),
                    None => (before.as_deref().filter(|before| before.starts_with('-') && *before != "--"), &*wrong),
                };
                let option = option.map(|option| format!(" for {option}")).unwrap_or_default();
                format!("invalid value '{value}'{option}: it is not UTF-8")
            }
            None => "a value is not UTF-8".to_owned(),
        },
        ErrorKind::MissingRequiredArgument => format!("{argument} is missing: {see}"),
        ErrorKind::InvalidSubcommand => {
            let command = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            match context(ContextKind::SuggestedSubcommand) {
                Some(similar) => {
                    format!("there is no command '{command}': did you mean '{}'?", similar.replace(", ", "' or '"))
                }
                None => format!("there is no command '{command}': {see}"),
            }
        }
        _ => {
            let text = error.render().to_string();
            let said = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
            let parts: Vec<&str> = said.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
            parts.join("; ").replace(":; ", ": ").trim_start_matches("error: ").to_owned()
        }
    }
}
