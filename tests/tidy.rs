//! The shape of the code, as `src/lib.rs` describes it, held against the code.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking, its helpers as well")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, from the top down; a room imports from those below it, and from its own row only where listed.
const ROWS: [&[&str]; 4] = [
    &["launch", "main_process", "monitor", "panzerctl"],
    &["cli"],
    &["control", "sockets", "readiness", "worker"],
    &["config", "signals", "backoff", "carry", "sys"],
];

/// Within a row, and upward, only these: each with its reason.
const ALLOWED: [(&str, &str); 7] = [
    // A message says which address a worker wants.
    ("control", "sockets"),
    // A message says why a worker ended.
    ("control", "worker"),
    // A plan knows the limits of the backoff, what signals do, and where descriptors begin.
    ("config", "backoff"),
    ("config", "signals"),
    ("config", "sys"),
    ("signals", "sys"),
    // How far a stop has got is handed on by main to the next.
    ("config", "carry"),
];

#[test]
fn imports_run_downward() {
    let mut imports: BTreeMap<(String, String), PathBuf> = BTreeMap::new();
    for (path, text) in sources("src") {
        let room = room_of(&path);
        for line in text.lines() {
            let Some(start) = line.find("crate::") else { continue };
            let target: String =
                line[start + 7..].chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
            if row(&target).is_some() && target != room {
                imports.insert((room.clone(), target), path.clone());
            }
        }
    }
    for ((from, to), path) in imports {
        let (Some(upper), Some(lower)) = (row(&from), row(&to)) else { continue };
        let allowed = ALLOWED.contains(&(from.as_str(), to.as_str()));
        assert!(upper < lower || allowed, "{}: {from} imports {to}, which is not below it", path.display());
    }
}

#[test]
fn unsafe_is_in_two_rooms() {
    for (path, text) in sources("src") {
        let room = room_of(&path);
        let has_unsafe = text.lines().map(code).any(|line| line.contains("unsafe ") || line.contains("unsafe{"));
        assert!(!has_unsafe || ["sys", "worker"].contains(&room.as_str()), "{}: unsafe", path.display());
    }
}

#[test]
fn states_are_pure() {
    for (path, text) in sources("src") {
        let is_state = path.file_name().is_some_and(|name| name == "state.rs" || name == "vocabulary.rs");
        let is_part = text.lines().any(|line| line == "impl Generations {" || line == "impl Slots {");
        if is_state || is_part {
            for word in ["::now()", "std::fs", "std::io", "Pid", "crate::sys", "std::process", "std::net", "log::"] {
                let found = text.lines().map(code).any(|line| line.contains(word));
                assert!(
                    !found,
                    "{}: a state decides and does nothing, so what does it want with {word}?",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn each_process_sleeps_in_one_place() {
    for (path, text) in sources("src") {
        let sleeps = text.lines().map(code).filter(|line| line.contains("poller.wait(")).count();
        // Main waits once more, before its loop, for those who are ending to let go of an address. A daemon's starter does
        // nothing else.
        let may_sleep = ["run.rs", "main_process/binding.rs", "launch/daemon.rs"].iter().any(|end| path.ends_with(end));
        assert!(sleeps == 0 || (may_sleep && sleeps == 1), "{}: {sleeps} places to sleep", path.display());
    }
}

fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn row(room: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&room))
}

fn room_of(path: &Path) -> String {
    let below = path.strip_prefix("src").unwrap();
    below.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::from(directory)];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty());
    found
}
