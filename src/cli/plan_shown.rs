//! The output of `--check`: the resolved plan, one option a line, each with its origin.

use std::ffi::OsString;
use std::fmt::Write;

use clap::{Arg, Command};

use super::layers::{Layers, Origin, keys};
use crate::config::Plan;
use crate::sys::printable;

/// One line each for program, arguments and options: name, origin, value.
pub(super) fn table(definition: &Command, layers: &Layers, plan: &Plan, by_file: bool) -> String {
    let origin = layers.named.origin.clone().filter(|_| by_file).unwrap_or(Origin::Flag);
    let args: Vec<OsString> = plan.args.iter().map(|arg| arg.0.clone()).collect();
    let mut rows = vec![("program".to_owned(), origin.to_string(), shown(std::slice::from_ref(&plan.program.0)))];
    rows.push(("args".to_owned(), origin.to_string(), shown(&args)));
    for key in keys(definition) {
        let Some(arg) = definition.get_arguments().find(|arg| arg.get_long() == Some(key)) else { continue };
        let given = layers.settings.iter().find(|setting| arg.get_id() == setting.id.as_str());
        let origin = given.map_or(Origin::Default, |setting| setting.origin.clone());
        let value = resolved(key, plan).unwrap_or_else(|| match given {
            Some(setting) => shown(&setting.values),
            None => default(arg),
        });
        rows.push((key.to_owned(), origin.to_string(), value));
    }
    let width = |column: fn(&(String, String, String)) -> &String| {
        rows.iter().map(|row| column(row).chars().count()).max().unwrap_or_default()
    };
    let (names, origins) = (width(|row| &row.0), width(|row| &row.1));
    let mut out = String::new();
    for (name, origin, value) in &rows {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{}", printable::line(format!("{name:names$}  {origin:origins$}  {value}").trim_end()));
    }
    out
}

/// The effective value, if it differs from the given one.
fn resolved(key: &str, plan: &Plan) -> Option<String> {
    match key {
        "workers" => Some(plan.workers.to_string()),
        "stop" => Some(plan.tuning.stop.to_string()),
        _ => None,
    }
}

fn shown(values: &[OsString]) -> String {
    let quoted = |value: &OsString| {
        let text = value.to_string_lossy();
        let plain = |letter: char| letter.is_alphanumeric() || "-_./:@=,+%[]{}".contains(letter);
        if !text.is_empty() && text.chars().all(plain) { text.into_owned() } else { format!("{text:?}") }
    };
    let all: Vec<String> = values.iter().map(quoted).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(" ") }
}

/// The default, which the help has in brackets at its end.
fn default(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let bracket = help.strip_suffix(']').and_then(|help| help.rsplit_once('['));
    match bracket {
        Some((_, default)) => default.to_owned(),
        None if !arg.get_action().takes_values() => "false".to_owned(),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{command, plan};
    use super::*;

    #[test]
    fn the_defaults_in_the_help_are_the_defaults() {
        let planned = |more: Vec<String>| {
            let all = ["panzer".to_owned()].into_iter().chain(more).chain(["./x".to_owned()]);
            plan(all.map(OsString::from), None, Vec::new()).unwrap()
        };
        let usual = planned(Vec::new());
        let definition = command();
        let mut held = 0;
        for key in keys(&definition)
            .filter(|key| !["pid", "control", "name", "respawn-limit", "final-exit-codes", "retire"].contains(key))
        {
            let arg = definition.get_arguments().find(|arg| arg.get_long() == Some(key)).unwrap();
            let default = default(arg);
            if arg.get_action().takes_values() && default != "-" {
                assert_eq!(planned(vec![format!("--{key}"), default]), usual, "{key}");
                held += 1;
            }
        }
        assert!(held >= 9, "{held}");
    }
}
