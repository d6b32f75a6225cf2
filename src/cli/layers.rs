//! Command line over environment over file. Each value is checked in its own layer. Then the value of the highest layer
//! becomes an argument of one command line, so that one validation serves all three.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use strsim::levenshtein;

use super::refusal::{Ending, refusal, usage};
use crate::config::files::yaml::{self, Entry, Position, Scalar, Value};

/// The default path of the file.
const DEFAULT_FILE: &str = "config/panzer.yml";

/// Limit of the number of values of an option.
const MAX_VALUES: usize = 1024;

/// Options that say what is read, or what is done with it. They make no sense in the file.
const NOT_IN_FILE: [&str; 4] = ["config", "check", "help", "version"];

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The command line.
    Flag,
    /// This variable of the environment.
    Variable(OsString),
    /// The file, in this line.
    File(PathBuf, usize),
    /// The default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => write!(f, "command line"),
            Origin::Variable(name) => write!(f, "{}", name.display()),
            Origin::File(path, line) => write!(f, "{}:{line}", path.display()),
            Origin::Default => write!(f, "default"),
        }
    }
}

/// One option, with its values as on a command line.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) id: String,
    pub(super) values: Vec<OsString>,
    pub(super) origin: Origin,
    arguments: Vec<OsString>,
}

/// The program, if the file names it.
#[derive(Debug, Default)]
pub(super) struct ProgramFromFile {
    pub(super) program: Option<OsString>,
    pub(super) args: Vec<OsString>,
    pub(super) origin: Option<Origin>,
}

/// All options that were given, each from the highest layer that gave it.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) matches: ArgMatches,
    pub(super) settings: Vec<Setting>,
    pub(super) named: ProgramFromFile,
}

/// Reads and checks all three layers. `check` finds errors that clap does not see.
pub(super) fn gather(
    definition: &Command,
    arguments: Vec<OsString>,
    check: fn(&ArgMatches) -> Result<(), Ending>,
) -> Result<Layers, Ending> {
    let mut bare = definition.clone().mut_args(|arg| arg.env(Resettable::Reset));
    let flags = bare.try_get_matches_from_mut(&arguments).map_err(|error| refusal(&error, &arguments))?;
    let checker = Checker { bare: &bare, check };
    let mut settings = from_flags(&bare, &flags);
    for setting in checker.environment(definition)? {
        add(&mut settings, setting, &bare);
    }
    let given = settings.iter().find(|setting| setting.id == "config").and_then(|setting| setting.values.first());
    let path = PathBuf::from(given.map_or(OsStr::new(DEFAULT_FILE), |path| path));
    let mut named = ProgramFromFile::default();
    match yaml::read(&path) {
        Err(why) => return Err(usage(format!("{}: {why}", path.display()))),
        Ok(None) if given.is_some() => {
            return Err(usage(format!("{}: there is no such file; correct --config or PANZER_CONFIG", path.display())));
        }
        Ok(None) => {}
        Ok(Some(text)) => {
            let document = Document { path: &path, text: &text };
            let (found, program) = checker.file(&document)?;
            found.into_iter().for_each(|setting| add(&mut settings, setting, &bare));
            named = program;
        }
    }
    let lower: Vec<_> = settings.iter().flat_map(|setting| setting.arguments.iter().cloned()).collect();
    if lower.is_empty() {
        return Ok(Layers { matches: flags, settings, named });
    }
    let mut arguments = arguments.into_iter();
    let all: Vec<OsString> = arguments.next().into_iter().chain(lower).chain(arguments).collect();
    let matches = bare.try_get_matches_from(&all).map_err(|error| refusal(&error, &all))?;
    Ok(Layers { matches, settings, named })
}

/// Adds an option, unless a higher layer has given it, or one that excludes it.
fn add(settings: &mut Vec<Setting>, new: Setting, bare: &Command) {
    let origin = &new.origin;
    let same_layer = |other: &Setting| {
        matches!(
            (&other.origin, origin),
            (Origin::Variable(_), Origin::Variable(_)) | (Origin::File(..), Origin::File(..))
        )
    };
    let excluded = |other: &Setting| {
        let conflicts = |one: &str, another: &str| {
            let arg = bare.get_arguments().find(|arg| arg.get_id() == one);
            arg.is_some_and(|arg| bare.get_arg_conflicts_with(arg).iter().any(|other| other.get_id() == another))
        };
        !same_layer(other) && (conflicts(&other.id, &new.id) || conflicts(&new.id, &other.id))
    };
    if !settings.iter().any(|other| other.id == new.id || excluded(other)) {
        settings.push(new);
    }
}

fn from_flags(bare: &Command, flags: &ArgMatches) -> Vec<Setting> {
    let given = |arg: &&Arg| flags.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let values = |arg: &Arg| match arg.get_action().takes_values() {
        true => flags.get_raw(arg.get_id().as_str()).into_iter().flatten().map(OsStr::to_owned).collect(),
        false => vec!["true".into()],
    };
    let setting = |arg: &Arg| Setting {
        id: arg.get_id().to_string(),
        values: values(arg),
        origin: Origin::Flag,
        // They are on the command line already.
        arguments: Vec::new(),
    };
    bare.get_arguments().filter(given).map(setting).collect()
}

/// A file that was read.
struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Document<'_> {
    /// The first line says what is wrong, where, and what to do. The position follows.
    fn wrong(&self, place: Position, why: &str) -> Ending {
        let Position { line, column } = place;
        usage(format!("{}:{line}:{column}: {why}{}", self.path.display(), yaml::snippet(self.text, place)))
    }
}

struct Checker<'a> {
    bare: &'a Command,
    check: fn(&ArgMatches) -> Result<(), Ending>,
}

/// As people write it in variables.
fn is_on(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "y" | "yes" | "t" | "true" | "on" => Some(true),
        "" | "0" | "n" | "no" | "f" | "false" | "off" => Some(false),
        _ => None,
    }
}

impl Checker<'_> {
    /// Why a command line of only these arguments would be refused.
    fn refuses(&self, arguments: &[OsString]) -> Option<String> {
        let line = std::iter::once(OsString::from("panzer")).chain(arguments.iter().cloned());
        let checked = self.bare.clone().try_get_matches_from(line).map_err(|error| refusal(&error, arguments));
        match checked.and_then(|matches| (self.check)(&matches)) {
            Err(Ending::Usage(why) | Ending::CannotStart(why)) => Some(why),
            Ok(()) | Err(Ending::Shown(_) | Ending::Left(..)) => None,
        }
    }

    fn environment(&self, definition: &Command) -> Result<Vec<Setting>, Ending> {
        let mut settings = Vec::new();
        for arg in definition.get_arguments() {
            let (Some(long), Some(name)) = (arg.get_long(), arg.get_env()) else { continue };
            let Some(value) = std::env::var_os(name) else { continue };
            let values = match (arg.get_action(), value.to_str()) {
                (ArgAction::SetTrue, text) => {
                    let on = text.and_then(is_on).ok_or_else(|| {
                        let (value, name) = (value.to_string_lossy(), name.to_string_lossy());
                        usage(format!("invalid value '{value}' for {name}: it must be true or false"))
                    })?;
                    vec![OsString::from(if on { "true" } else { "false" })]
                }
                // Blanks belong to the value of such a variable.
                (ArgAction::Append, Some(text)) if !takes_pairs(arg) => words(text),
                _ => vec![value],
            };
            let arguments = arguments(arg, &values);
            if let Some(why) = self.refuses(&arguments) {
                let name = name.to_string_lossy();
                return Err(usage(why.replacen(&format!("for --{long}"), &format!("for {name}"), 1)));
            }
            settings.push(Setting {
                id: arg.get_id().to_string(),
                values,
                origin: Origin::Variable(name.to_owned()),
                arguments,
            });
        }
        Ok(settings)
    }

    fn file(&self, document: &Document<'_>) -> Result<(Vec<Setting>, ProgramFromFile), Ending> {
        let entries = yaml::parse(document.text).map_err(|wrong| document.wrong(wrong.place, &wrong.why))?;
        let (mut settings, mut named, mut args_at) = (Vec::new(), ProgramFromFile::default(), None);
        for entry in entries {
            let origin = Origin::File(document.path.to_owned(), entry.key.place.line);
            match (entry.key.text.as_str(), entry.value) {
                ("program", Value::Scalar(program)) if !program.is_null() && !program.text.is_empty() => {
                    named.program = Some(program.text.into());
                    named.origin = Some(origin);
                }
                ("program", _) => return Err(document.wrong(entry.place, "program is the path of one program")),
                ("args", Value::List(items)) => {
                    named.args = items.into_iter().map(|item| item.text.into()).collect();
                    args_at = Some(entry.key.place);
                }
                ("args", _) => return Err(document.wrong(entry.place, "args is a list, as in [--port, 8000]")),
                (_, value) => {
                    let entry = Entry { key: entry.key, value, place: entry.place };
                    settings.push(self.setting(document, entry, origin)?);
                }
            }
        }
        match args_at {
            Some(place) if named.program.is_none() => {
                Err(document.wrong(place, "args without program; say which program they belong to"))
            }
            _ => Ok((settings, named)),
        }
    }

    /// One key of the file as an option.
    fn setting(&self, document: &Document<'_>, entry: Entry, origin: Origin) -> Result<Setting, Ending> {
        let Entry { key, value, place } = entry;
        let arg = self.option(&key.text).map_err(|why| document.wrong(key.place, &why))?;
        let long = &key.text;
        let repeatable = matches!(arg.get_action(), ArgAction::Append);
        let items: Vec<(OsString, Scalar)> = match value {
            Value::Scalar(scalar) => vec![(scalar.text.clone().into(), scalar)],
            Value::List(items) if repeatable => {
                items.into_iter().map(|item| (item.text.clone().into(), item)).collect()
            }
            Value::Map(pairs) if takes_map(arg) => {
                let pair = |(name, value): (Scalar, Scalar)| (format!("{}={}", name.text, value.text).into(), value);
                pairs.into_iter().map(pair).collect()
            }
            _ if takes_map(arg) => {
                return Err(document.wrong(place, &format!("{long} is a map, as in {{NAME: value}}")));
            }
            _ if repeatable => return Err(document.wrong(place, &format!("{long} is a value or a list of values"))),
            _ => return Err(document.wrong(place, &format!("{long} is a single value"))),
        };
        if items.len() > MAX_VALUES {
            return Err(document.wrong(place, &format!("{long} has {} values; {MAX_VALUES} are allowed", items.len())));
        }
        let mut values = Vec::new();
        for (text, scalar) in items {
            if scalar.is_null() {
                return Err(document.wrong(scalar.place, &format!("{long} has no value; give one, or remove the line")));
            }
            if !arg.get_action().takes_values() && text != "true" && text != "false" {
                let why = format!("invalid value '{}' for {long}: it must be true or false", scalar.text);
                return Err(document.wrong(scalar.place, &why));
            }
            values.push(text);
            // Check the values up to this one together, so that a conflict is reported at its line. Pairs are checked
            // all together.
            let from = if takes_pairs(arg) { values.len() - 1 } else { 0 };
            if let Some(why) = self.refuses(&arguments(arg, &values[from..])) {
                let why = why.replacen(&format!("for --{long}"), &format!("for {long}"), 1);
                return Err(document.wrong(scalar.place, &why));
            }
        }
        let arguments = arguments(arg, &values);
        Ok(Setting { id: arg.get_id().to_string(), values, origin, arguments })
    }

    /// The option with the name `key`.
    fn option(&self, key: &str) -> Result<&Arg, String> {
        if NOT_IN_FILE.contains(&key) {
            return Err(format!("{key} cannot be set here, only on the command line"));
        }
        let found = self.bare.get_arguments().find(|arg| arg.get_long() == Some(key));
        found.ok_or_else(|| {
            // A key that is longer than any option is unknown anyway.
            let key_read: String = key.replace('_', "-").to_lowercase().chars().take(64).collect();
            let known = keys(self.bare).chain(["program", "args"]);
            let nearest = known.map(|known| (levenshtein(&key_read, known), known)).min();
            match nearest {
                Some((far, known)) if far <= 1 + known.len() / 4 => {
                    format!("unknown option '{key}': did you mean '{known}'?")
                }
                _ => format!("unknown option '{key}': see panzer --help; a key is an option without its dashes"),
            }
        })
    }
}

/// The keys that the file may have.
pub(super) fn keys(command: &Command) -> impl Iterator<Item = &str> {
    command.get_arguments().filter_map(Arg::get_long).filter(|long| !NOT_IN_FILE.contains(long))
}

/// Whether its values are pairs with a text behind the equals sign, as in `--env K=V` and `--hook EVENT=CMD`.
fn takes_pairs(arg: &Arg) -> bool {
    takes_map(arg) && value_names(arg).any(|name| name.ends_with("=V") || name.ends_with("=CMD"))
}

/// Whether its values are pairs, and not only may be, as in `[NAME=]ADDR`.
fn takes_map(arg: &Arg) -> bool {
    let is_pair = |name: &str| name.split_once('=').is_some_and(|(before, _)| !before.contains('['));
    matches!(arg.get_action(), ArgAction::Append) && value_names(arg).any(is_pair)
}

fn value_names(arg: &Arg) -> impl Iterator<Item = &str> {
    arg.get_value_names().into_iter().flatten().map(|name| name.as_str())
}

/// Splits the value of a variable at blanks. A backslash before a blank or a backslash makes it part of a value, as in
/// a path. Any other backslash is an ordinary character.
fn words(text: &str) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.push(letters.next_if(|next| next.is_whitespace() || *next == '\\').unwrap_or('\\')),
            _ if letter.is_whitespace() => words.push(std::mem::take(&mut word)),
            _ => word.push(letter),
        }
    }
    words.push(word);
    words.into_iter().filter(|word| !word.is_empty()).map(OsString::from).collect()
}

/// A command line with this option and these values.
fn arguments(arg: &Arg, values: &[OsString]) -> Vec<OsString> {
    let long = format!("--{}", arg.get_long().unwrap_or_default());
    let argument = |value: &OsString| {
        if !arg.get_action().takes_values() {
            return (value == "true").then(|| long.clone().into());
        }
        let mut argument = OsString::from(format!("{long}="));
        argument.push(value);
        Some(argument)
    };
    values.iter().filter_map(argument).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_holds_several_values_and_these_hold_blanks() {
        let all = |text: &str| words(text).into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>();
        assert_eq!(all(" 8080  unix:/run/a.sock\n127.0.0.1:1\t"), ["8080", "unix:/run/a.sock", "127.0.0.1:1"]);
        assert_eq!(all(r"/my\ files/a.env -b.env"), ["/my files/a.env", "-b.env"]);
        assert_eq!(all(r"C:\x \\\  \"), [r"C:\x", r"\ ", r"\"]);
        assert!(all(" \n").is_empty() && all("").is_empty());
    }
}
