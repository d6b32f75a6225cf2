//! Command line, environment and file: which one wins, what is refused and where, and what `--check` prints.

use std::fs;
use std::time::Duration;

use crate::support::{Builder, Panzer};

const LIMIT: Duration = Duration::from_secs(10);

/// A builder with this configuration in its usual place.
fn configured(text: impl AsRef<[u8]>) -> Builder {
    let builder = Panzer::builder();
    fs::create_dir(builder.folder().join("config")).unwrap();
    fs::write(builder.folder().join("config/panzer.yml"), text).unwrap();
    builder
}

/// What `--check` prints, as rows of name, origin and value. It goes to a file: stdout is not collected.
fn checked(builder: Builder) -> Vec<(String, String, String)> {
    let script = "#!/bin/sh\npanzer=$1\nshift\nexec \"$panzer\" --check \"$@\" >checked\n";
    let panzer = builder.executable("check", script).through("check").start();
    panzer.wait_for_end();
    let path = panzer.path("checked");
    assert_eq!(fs::read_dir(panzer.path("run")).unwrap().count(), 0, "nothing is started");
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(0));
    let row = |line: &str| {
        let mut columns = line.split("  ").map(str::trim).filter(|column| !column.is_empty()).map(str::to_owned);
        (columns.next().unwrap(), columns.next().unwrap(), columns.collect::<Vec<_>>().join("  "))
    };
    text.lines().map(row).collect()
}

#[track_caller]
fn has(rows: &[(String, String, String)], name: &str, origin: &str, value: &str) {
    let found = rows.iter().find(|row| row.0 == name).unwrap_or_else(|| panic!("{name} is missing: {rows:#?}"));
    assert_eq!((found.1.as_str(), found.2.as_str()), (origin, value), "{name}");
}

/// Starts panzer with this configuration, which must be refused in this first line and this snippet.
#[track_caller]
fn refused(text: impl AsRef<[u8]>, first: &str, marked: &str) {
    let panzer = configured(text).arg("./x").start();
    panzer.expect_line(&format!("panzer: config/panzer.yml:{first}"));
    ["  |", "? | *"].iter().for_each(|line| panzer.allow_line(line));
    (1..10).for_each(|number| panzer.allow_line(&format!("{number} | ")));
    panzer.wait_for_end();
    let lines = panzer.lines();
    assert!(lines.last().is_some_and(|line| line.contains(marked)), "{lines:#?}");
    assert!(lines.len() <= 4, "{lines:#?}");
    assert_eq!(fs::read_dir(panzer.path("run")).unwrap().count(), 0);
    assert_eq!(panzer.wait_exit().code(), Some(2));
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file() {
    let all =
        "workers: 3\nbake: 3s\nchdir: /three\nready: alive\nquiet: true\nlisten: ['unix:@three']\nenv: {A: '3'}\n";
    let cases = [
        ("workers", "PANZER_WORKERS", ["1", "2", "3"], 1),
        ("bake", "PANZER_BAKE", ["1s", "2s", "3s"], 2),
        ("chdir", "PANZER_CHDIR", ["/one", "/two", "/three"], 3),
        ("ready", "PANZER_READY", ["exec:true", "notify", "alive"], 4),
        ("listen", "PANZER_LISTEN", ["unix:@one", "unix:@two", "unix:@three"], 6),
        ("env", "PANZER_ENV", ["A=1", "A=2", "A=3"], 7),
    ];
    let (mut with_variables, mut with_all) = (configured(all), configured(all));
    for (name, variable, [flag, value, _], _) in cases {
        with_variables = with_variables.env(variable, value);
        with_all = with_all.env(variable, value).args([format!("--{name}"), flag.to_owned()]);
    }
    let file = checked(configured(all).arg("./x"));
    let variables = checked(with_variables.arg("./x"));
    let flags = checked(with_all.args(["-v", "./x"]));
    for (name, variable, values, line) in cases {
        has(&flags, name, "command line", values[0]);
        has(&variables, name, variable, values[1]);
        has(&file, name, &format!("config/panzer.yml:{line}"), values[2]);
    }
    has(&file, "quiet", "config/panzer.yml:5", "true");
    has(&flags, "verbose", "command line", "true");
    has(&flags, "quiet", "default", "false");
    has(&file, "ready-timeout", "default", "60s");
    has(&file, "program", "command line", "./x");
}

#[test]
fn the_file_can_say_it_all() {
    let text = "# what runs\nprogram: ./my_app\nargs: [--id, \"{worker}\", 'a b']\nworkers: 2\ntimeout: 7\n";
    let rows = checked(configured(text));
    has(&rows, "program", "config/panzer.yml:2", "./my_app");
    has(&rows, "args", "config/panzer.yml:2", "--id {worker} \"a b\"");
    has(&rows, "stop", "default", "TERM/7s/INT/5s/KILL");
    let maps = "program: ./my_app\non: {TTIN: scale-up, TTOU: scale-down}\nrlimit: {NOFILE: 64, CORE: '0:unlimited'}\n\
                cgroup: {memory: 2G, pids: 500}\n";
    let rows = checked(configured(maps));
    has(&rows, "on", "config/panzer.yml:2", "TTIN=scale-up TTOU=scale-down");
    has(&rows, "rlimit", "config/panzer.yml:3", "NOFILE=64 CORE=0:unlimited");
    has(&rows, "cgroup", "config/panzer.yml:4", "memory=2G pids=500");
    let rows = checked(configured("program: ./my_app\nworkers: 2\n").args(["--cgroup", "memory=2G,pids=500"]));
    has(&rows, "cgroup", "command line", "memory=2G pids=500");
    let rows = checked(configured(text).args(["--", "./other", "-x"]));
    has(&rows, "program", "command line", "./other");
    has(&rows, "args", "command line", "-x");
}

#[test]
fn workers_run_by_the_file() {
    let script = "#!/bin/sh\necho \"app $PANZER_WORKER_ID $A $1\" >&2\nexec sleep 1000\n";
    let text = "program: ./app\nargs: ['{worker}']\nworkers: 2\nready: alive\nbake: 0\nenv:\n  A: w{worker}\n";
    let panzer = configured(text).executable("app", script).start();
    panzer.wait_serving();
    for line in ["app 0 w0 0", "app 1 w1 1"] {
        panzer.expect_line(line);
        panzer.wait_for_line(line, LIMIT);
    }
    assert_eq!(panzer.workers().len(), 2);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn another_file_can_be_named() {
    for by_flag in [true, false] {
        let builder = configured("workers: 9\n").file("other.yml", "workers: 4\n");
        let named =
            if by_flag { builder.args(["--config", "other.yml"]) } else { builder.env("PANZER_CONFIG", "other.yml") };
        has(&checked(named.arg("./x")), "workers", "other.yml:1", "4");
    }
    let panzer = Panzer::start(["--config", "nothing.yml", "./x"]);
    panzer.expect_line("panzer: nothing.yml: there is no such file; correct --config or PANZER_CONFIG");
    assert_eq!(panzer.wait_exit().code(), Some(2));
}

#[test]
fn an_empty_file_says_nothing() {
    for text in ["", "\n", "# workers: 3\n", "---\n"] {
        has(&checked(configured(text).args(["-w", "2", "./x"])), "workers", "command line", "2");
    }
}

#[test]
fn what_is_wrong_is_shown_in_its_place() {
    refused("workers: 0\n", "1:10: invalid value '0' for workers: it must be from 1 to 4096", "  |          ^");
    refused("bake: 1s\nworkers: -1\n", "2:10: invalid value '-1' for workers: it must be", "^");
    refused("workers: 1e9\n", "1:10: invalid value '1e9' for workers: it must be a whole number", "^");
    refused("bake: 1e308\n", "1:7: invalid value '1e308' for bake: that is longer than 366 days", "^");
    refused("ready: soon\n", "1:8: invalid value 'soon' for ready: it must be one of auto, accept", "^");
    refused("listen:\n  - 8000\n  - 70000\n", "3:5: invalid value '70000' for listen: there is no port", "^");
    refused("listen: [8000, 8000]\n", "1:16: invalid value '8000' for listen: the same address twice", "^");
    refused("env: {PANZER_X: 1}\n", "1:17: invalid value 'PANZER_X=1' for env: panzer sets this", "^");
    refused("quiet: on\n", "1:8: invalid value 'on' for quiet: it must be true or false", "^");
    refused("workers:\n", "1:*: workers has no value; give one, or remove the line", "");
    refused("workers: [1]\n", "1:10: workers is a single value", "^");
    refused("env: 3\n", "1:6: invalid value '3' for env: it must be NAME=VALUE", "^");
    refused("args: [a]\n", "1:1: args without program", "^");
}

#[test]
fn unknown_keys_get_a_suggestion() {
    refused("wrokers: 3\n", "1:1: unknown option 'wrokers': did you mean 'workers'?", "  | ^");
    refused("ready_timeout: 3s\n", "1:1: unknown option 'ready_timeout': did you mean 'ready-timeout'?", "^");
    refused("frobnicate: 3\n", "1:1: unknown option 'frobnicate': see panzer --help", "^");
    refused("config: x\n", "1:1: config cannot be set here, only on the command line", "^");
}

#[test]
fn what_is_no_configuration_is_refused() {
    refused("workers: 1\nworkers: 2\n", "2:1: 'workers' is given twice", "^");
    refused("a: &a [x]\nb: [*a, *a]\n", "1:*: anchors are not supported", "");
    refused("- workers\n", "1:1: not a list of 'option: value'", "^");
    refused("listen: [8080\nworkers: 2\n", "2:*: not YAML: ", "");
    refused(format!("env: [{}]\n", "A=1, ".repeat(100_000)), "1:6: env has 100000 values; 1024 are allowed", "^");
    for (text, why) in [
        (vec![b'#'; (1 << 20) + 1], "config/panzer.yml: it is larger than 1024 KiB"),
        (b"workers: 2\nname: \xff\n".to_vec(), "config/panzer.yml: it is not UTF-8 in line 2"),
    ] {
        let panzer = configured(text).arg("./x").start();
        panzer.expect_line(&format!("panzer: {why}"));
        assert_eq!(panzer.wait_exit().code(), Some(2));
    }
    let panzer = Panzer::start(["--config", "/dev/null", "./x"]);
    panzer.expect_line("panzer: /dev/null: it is not a regular file");
    panzer.wait_for_end();
    assert_eq!(panzer.wait_exit().code(), Some(2));
}

#[test]
fn a_bad_variable_is_named() {
    let panzer = configured("workers: 2\n").env("PANZER_WORKERS", "x").arg("./x").start();
    panzer.expect_line("panzer: invalid value 'x' for PANZER_WORKERS: it must be a whole number");
    assert_eq!(panzer.wait_exit().code(), Some(2));
    let panzer = Panzer::builder().env("PANZER_LISTEN", "8000 70000").arg("./x").start();
    panzer.expect_line("panzer: invalid value '70000' for PANZER_LISTEN: there is no port");
    panzer.wait_for_line("PANZER_LISTEN", LIMIT);
    assert_eq!(panzer.wait_exit().code(), Some(2));
    let builder = Panzer::builder().env("PANZER_LOG_COMPRESS", "maybe").arg("./x");
    let panzer = builder.expect_line("invalid value 'maybe' for PANZER_LOG_COMPRESS: it must be true or false").start();
    assert_eq!(panzer.wait_exit().code(), Some(2));
}
