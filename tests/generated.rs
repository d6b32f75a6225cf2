//! Man page and completions are made from the definitions of the options and committed; so is the README's part.
//!
//! To write them anew: `PANZER_GENERATE=1 cargo test --test generated`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking, its helpers as well")]

use std::fs;
use std::path::Path;

use clap_complete::Shell;
use panzer::signals::{Action, Preset, described};

#[test]
fn the_man_page_says_what_the_code_says() {
    let mut page = Vec::new();
    clap_mangen::Man::new(panzer::cli::manual()).render(&mut page).unwrap();
    hold_against("man/panzer.1", &String::from_utf8(page).unwrap());
    let mut page = Vec::new();
    clap_mangen::Man::new(panzer::panzerctl::command()).render(&mut page).unwrap();
    hold_against("man/panzerctl.1", &String::from_utf8(page).unwrap());
}

#[test]
fn the_completions_know_every_option() {
    for (shell, file) in [(Shell::Bash, "panzer.bash"), (Shell::Zsh, "_panzer"), (Shell::Fish, "panzer.fish")] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut panzer::cli::command(), "panzer", &mut script);
        hold_against(&format!("completions/{file}"), &String::from_utf8(script).unwrap());
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut panzer::panzerctl::command(), "panzerctl", &mut script);
        let file = file.replace("panzer", "panzerctl");
        hold_against(&format!("completions/{file}"), &String::from_utf8(script).unwrap());
    }
}

#[test]
fn the_readme_shows_help_and_signals() {
    let readme = fs::read_to_string("README.md").unwrap();
    let help = panzer::cli::command().term_width(80).render_help();
    let readme = with_part(&readme, "help", &format!("```text\n{help}```\n"));
    let readme = with_part(&readme, "signals", &signals());
    hold_against("README.md", &readme);
}

/// The whole table, a column for each preset.
fn signals() -> String {
    let cells = |action: &Action| if *action == Action::Ignore { "–".to_owned() } else { action.to_string() };
    let row = |(name, actions): (&str, Vec<Action>)| {
        format!("| {name} | {} |\n", actions.iter().map(cells).collect::<Vec<_>>().join(" | "))
    };
    let names: Vec<&str> = Preset::ALL.iter().map(|preset| preset.name()).collect();
    let rows: String = described(&Preset::ALL).map(row).collect();
    format!("| | {} |\n|{}\n{rows}", names.join(" | "), " --- |".repeat(names.len() + 1))
}

/// `text` with what stands between the comments of this name replaced.
fn with_part(text: &str, name: &str, part: &str) -> String {
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = text.split_once(&start).unwrap_or_else(|| panic!("README.md has no {start}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("README.md has no {end}"));
    format!("{before}{start}{part}{end}{after}")
}

#[test]
fn the_help_fits_a_terminal() {
    let help = panzer::cli::command().term_width(80).render_help().to_string();
    for line in help.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

fn hold_against(path: &str, expected: &str) {
    if std::env::var_os("PANZER_GENERATE").is_some() {
        fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
        fs::write(path, expected).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(found == expected, "{path} is not what the code says; run: PANZER_GENERATE=1 cargo test --test generated");
}
