//! Man pages, completions, and tables of README.md and docs/ are made from the definitions in the code, and committed.
//!
//! To write them anew: `PANZER_GENERATE=1 cargo test --test generated`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking, its helpers as well")]

use std::fs;
use std::path::Path;

use clap::ValueEnum;
use clap_complete::Shell;
use panzer::signals::{Action, Preset, described};

#[test]
fn the_man_page_says_what_the_code_says() {
    let mut page = Vec::new();
    clap_mangen::Man::new(panzer::cli::manual()).render(&mut page).unwrap();
    page.extend(examples().into_bytes());
    hold_against("man/panzer.1", &String::from_utf8(page).unwrap());
    let mut page = Vec::new();
    clap_mangen::Man::new(panzer::panzerctl::command()).render(&mut page).unwrap();
    hold_against("man/panzerctl.1", &with_commands(&String::from_utf8(page).unwrap()));
}

/// What panzer.yml(5) says before the keys, and after them.
const FILE_BEGINS: &str = r#".TH PANZER.YML 5 "" "panzer" "File Formats"
.SH NAME
panzer.yml \- the configuration file of panzer
.SH DESCRIPTION
.BR panzer (1)
reads \fIconfig/panzer.yml\fR in the directory it is started in, if that file exists, or the file that \fB\-\-config\fR names.
The file is YAML: one map of keys and values.
A flag wins over the environment, and the environment over the file.
.PP
Each key is the name of an option.
An option that takes no value is \fBtrue\fR or \fBfalse\fR here.
One that may be given several times takes a list, and one of the form \fIK\fB=\fIV\fR a map.
Durations are written 500ms, 60s, 2m or 1h; a bare number is in seconds.
Anchors, aliases and tags are refused, and so is a file above 1 MiB.
.PP
Each reload reads the file again.
HUP reads it too, and takes over the count of workers, delays, waits, limits and the level of messages.
.B panzer \-\-check
prints what the file comes to, and starts nothing.
.SH KEYS
.TP
\fBprogram\fR
The program to run. A PROGRAM on the command line replaces it together with \fBargs\fR.
.TP
\fBargs\fR
A list with the arguments of the program.
"#;
const FILE_ENDS: &str = r#".SH EXAMPLE
.EX
program: ./bin/my_app
args: [\-\-id, "{worker}"]
workers: 4
listen: [8000, "admin=127.0.0.1:8001"]
env:
  RAILS_ENV: production
stop: QUIT/30s/KILL
.EE
.SH SEE ALSO
.BR panzer (1),
.BR panzerctl (1)
"#;

#[test]
fn the_page_of_the_file_has_every_key() {
    let command = panzer::cli::command();
    let key = |option: &clap::Arg| {
        let help = option.get_long_help().or(option.get_help()).unwrap().to_string();
        let value = option.get_value_names().filter(|_| option.get_action().takes_values());
        let value = value.map(|names| format!(": \\fI{}\\fR", roff(&names[0]))).unwrap_or_default();
        let text = roff(&help).replace("\n\n", "\n.sp\n");
        format!(".TP\n\\fB{}\\fR{value}\n{text}\n", roff(option.get_long().unwrap()))
    };
    // The file cannot name itself, and cannot ask for help.
    let of_file = |option: &&clap::Arg| !["config", "check"].contains(&option.get_long().unwrap());
    let keys: String = options(&command).filter(of_file).map(key).collect();
    hold_against("man/panzer.yml.5", &format!("{FILE_BEGINS}{keys}{FILE_ENDS}"));
}

/// The page with every command and its options in place of references to pages that there are not.
fn with_commands(page: &str) -> String {
    let (before, rest) = page.split_once(".SH SUBCOMMANDS\n").unwrap();
    let (_, after) = rest.split_once(".SH EXTRA\n").unwrap();
    let entry = |name: &str, text: &str| {
        let text = roff(text).replace("\n\n", "\n.sp\n");
        format!(".TP\n\\fB{}\\fR\n{text}\n", roff(name))
    };
    let command = |command: &clap::Command| {
        let arguments =
            command.get_positionals().map(|argument| format!(" {}", argument.get_value_names().unwrap()[0]));
        let name = command.get_name().to_owned() + &arguments.collect::<String>();
        let about = command.get_long_about().or(command.get_about()).unwrap();
        let option = |option| entry(&named(option), &option.get_long_help().or(option.get_help()).unwrap().to_string());
        let options: String = options(command).map(option).collect();
        format!("{}.RS\n{options}.RE\n", entry(&name, &about.to_string()))
    };
    let commands: String = panzer::panzerctl::command().get_subcommands().map(command).collect();
    format!("{before}.SH COMMANDS\n{commands}.SH EXTRA\n{after}")
}

fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}

/// The table of servers in README.md, whose commands `e2e` runs, as a part of the manual.
fn examples() -> String {
    let readme = fs::read_to_string("README.md").unwrap();
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix("` |")?.rsplit_once(" | `"));
    let row =
        |(server, line): (&str, &str)| format!(".TP\n{}\n\\fB{}\\fR\n", roff(&server.replace('`', "")), roff(line));
    let rows: Vec<String> = rows.map(row).collect();
    assert!(rows.len() > 9, "README.md has no table of servers");
    format!(".SH EXAMPLES\n{}", rows.concat())
}

#[test]
fn the_completions_know_every_option() {
    for (shell, file) in [(Shell::Bash, "panzer.bash"), (Shell::Zsh, "_panzer"), (Shell::Fish, "panzer.fish")] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut panzer::cli::command(), "panzer", &mut script);
        hold_against(&format!("completions/{file}"), &with_equals_signs(&String::from_utf8(script).unwrap()));
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut panzer::panzerctl::command(), "panzerctl", &mut script);
        let file = file.replace("panzer", "panzerctl");
        hold_against(&format!("completions/{file}"), &with_equals_signs(&String::from_utf8(script).unwrap()));
    }
}

/// Bash splits --option=value into three words, of which clap_complete's script for bash knows nothing.
fn with_equals_signs(script: &str) -> String {
    let split = r#"    prev="$3"
    if [[ "${cur}" == "=" ]]; then
        cur=""
    elif [[ "${prev}" == "=" ]]; then
        prev="${COMP_WORDS[COMP_CWORD-2]}"
    fi
"#;
    script.replacen("    prev=\"$3\"\n", split, 1)
}

#[test]
fn bash_completes_a_value_behind_an_equals_sign() {
    let complete = r#". completions/panzer.bash
        for COMP_LINE in "--ready = a" "--ready =" "--ready a"; do
            COMP_WORDS=(panzer $COMP_LINE) COMP_CWORD=${#COMP_WORDS[@]}-1
            _panzer panzer "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
            echo "${COMPREPLY[@]}"
        done"#;
    let Ok(done) = std::process::Command::new("bash").args(["--norc", "-c", complete]).output() else { return };
    let shown = String::from_utf8(done.stdout).unwrap();
    assert_eq!(shown, "auto accept alive\nauto accept notify alive exec:CMD\nauto accept alive\n");
}

#[test]
fn the_pages_show_what_the_code_says() {
    let mut shown: Vec<String> = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        hold_against(&page, &with_parts(&page, &text, &mut shown));
    }
    for option in options(&panzer::cli::command()) {
        let name = option.get_long().unwrap();
        let tables = shown.iter().filter(|shown| *shown == name).count();
        assert_eq!(tables, 1, "--{name} must be named by one <!-- options: ... --> of a page in docs/");
    }
}

#[test]
fn the_pages_mention_options_that_exist() {
    let (panzer, panzerctl) = (panzer::cli::command(), panzer::panzerctl::command());
    let commands = [&panzer, &panzerctl].into_iter().chain(panzerctl.get_subcommands());
    let mut known: Vec<&str> = commands.flat_map(options).filter_map(clap::Arg::get_long).collect();
    known.extend(["help", "version"]);
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        // There the first column of a table has the options of another tool.
        let of_two = page.starts_with("docs/from-");
        let ours = |line| {
            if of_two && str::starts_with(line, "| ") { line.split_once(" | ").map_or("", |row| row.1) } else { line }
        };
        for code in text.lines().map(ours).flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let name = code.strip_prefix("--").map(|code| code.split([' ', '=']).next().unwrap());
            assert!(name.is_none_or(|name| name.is_empty() || known.contains(&name)), "{page}: there is no --{name:?}");
        }
    }
}

fn pages() -> Vec<String> {
    let pages = fs::read_dir("docs").unwrap().map(|entry| entry.unwrap().path().to_str().unwrap().to_owned());
    pages.filter(|page| page.ends_with(".md")).chain(["README.md".to_owned()]).collect()
}

/// `text` with everything that stands between a comment that names a part and the one that ends it made anew.
fn with_parts(page: &str, text: &str, shown: &mut Vec<String>) -> String {
    let mut result = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        result += &format!("{line}\n");
        let Some((name, rest)) = part(line) else { continue };
        let names: Vec<&str> = rest.split_whitespace().collect();
        shown.extend(names.iter().map(|&name| name.to_owned()));
        result += &match name {
            "options" => option_table(&names),
            "signals" if page == "README.md" => own_signals(),
            "signals" => signals(),
            "actions" => actions(),
            "commands" => commands(),
            "exit-codes" => exit_codes(panzer::cli::command()),
            _ => exit_codes(panzer::panzerctl::command()),
        };
        let end = format!("<!-- /{name} -->");
        assert!(lines.any(|line| line == end), "{page} has no {end}");
        result += &format!("{end}\n");
    }
    result
}

/// The name of the part that begins with this line, and what stands behind it.
fn part(line: &str) -> Option<(&str, &str)> {
    let comment = line.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    let (name, rest) = comment.split_once(": ").unwrap_or((comment, ""));
    ["options", "signals", "actions", "commands", "exit-codes", "panzerctl-exit-codes"]
        .contains(&name)
        .then_some((name, rest))
}

/// The options of a command, but for those that every command has.
fn options(command: &clap::Command) -> impl Iterator<Item = &clap::Arg> {
    command.get_arguments().filter(|option| option.get_long().is_some_and(|long| !["help", "version"].contains(&long)))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn option_table(names: &[&str]) -> String {
    let command = panzer::cli::command();
    let row = |name: &&str| {
        let option = options(&command).find(|option| option.get_long() == Some(name));
        let option = option.unwrap_or_else(|| panic!("there is no --{name}"));
        format!("| `{}` | {} |\n", cell(&named(option)), cell(&option.get_help().unwrap().to_string()))
    };
    format!("| option | |\n| --- | --- |\n{}", names.iter().map(row).collect::<String>())
}

/// How an option is written.
fn named(option: &clap::Arg) -> String {
    let short = option.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let takes_value = option.get_action().takes_values();
    let value = option.get_value_names().filter(|_| takes_value).map(|names| format!(" {}", names[0]));
    format!("{short}--{}{}", option.get_long().unwrap(), value.unwrap_or_default())
}

fn commands() -> String {
    let row = |command: &clap::Command| {
        let arguments =
            command.get_positionals().map(|argument| format!(" {}", argument.get_value_names().unwrap()[0]));
        let options =
            options(command).map(|option| format!("`{}`", cell(&named(option)))).collect::<Vec<_>>().join(" ");
        let name = format!("`{}{}`", command.get_name(), cell(&arguments.collect::<String>()));
        format!("| {name} | {} | {options} |\n", cell(&command.get_about().unwrap().to_string()))
    };
    let rows: String = panzer::panzerctl::command().get_subcommands().map(row).collect();
    format!("| command | | its options |\n| --- | --- | --- |\n{rows}")
}

/// The part of the help that lists them.
fn exit_codes(command: clap::Command) -> String {
    let help = command.term_width(80).render_help().to_string();
    let (_, codes) = help.split_once("Exit codes:\n").unwrap();
    let codes = codes.split_once("\n\n").map_or(codes, |(codes, _)| codes);
    format!("```text\n{}\n```\n", codes.trim_end())
}

/// What signals do by default, in words.
fn own_signals() -> String {
    let row = |(name, actions): (&str, Vec<Action>)| format!("| {name} | {} |\n", actions[0].describe());
    let rows: String = described(&[Preset::Panzer]).map(row).collect();
    format!("| signal | |\n| --- | --- |\n{rows}")
}

/// What each action of the table is.
fn actions() -> String {
    let mut all: Vec<Action> = described(Preset::value_variants()).flat_map(|(_, actions)| actions).collect();
    let mut seen = Vec::new();
    all.retain(|action| {
        !seen.contains(action) && {
            seen.push(*action);
            *action != Action::Ignore
        }
    });
    let rows: String = all.iter().map(|action| format!("| *{action}* | {} |\n", action.describe())).collect();
    format!("| action | |\n| --- | --- |\n{rows}")
}

/// The whole table, a column for each preset.
fn signals() -> String {
    let cells = |action: &Action| if *action == Action::Ignore { "–".to_owned() } else { action.to_string() };
    let row = |(name, actions): (&str, Vec<Action>)| {
        format!("| {name} | {} |\n", actions.iter().map(cells).collect::<Vec<_>>().join(" | "))
    };
    let presets = Preset::value_variants();
    let names: Vec<String> = presets.iter().map(|preset| preset.name()).collect();
    let rows: String = described(presets).map(row).collect();
    format!("| | {} |\n|{}\n{rows}", names.join(" | "), " --- |".repeat(names.len() + 1))
}

#[test]
fn every_part_states_the_same_version() {
    let version = env!("CARGO_PKG_VERSION");
    let stated = [
        ("CHANGELOG.md", format!("## [{version}] - ")),
        ("clients/python/pyproject.toml", format!("\nversion = \"{version}\"\n")),
        ("clients/python/panzer.py", format!("\n__version__ = \"{version}\"\n")),
        ("clients/ruby/lib/panzer.rb", format!(" VERSION = \"{version}\"\n")),
        ("clients/rust/Cargo.toml", format!("\nversion = \"{version}\"\n")),
        ("clients/crystal/shard.yml", format!("\nversion: {version}\n")),
        ("clients/crystal/src/panzer.cr", format!(" VERSION = \"{version}\"\n")),
    ];
    for (path, line) in stated {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(&line), "{path} does not have {line:?}");
    }
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
