//! The shape of the code, as `src/lib.rs` describes it, held against the code.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking, its helpers as well")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, from the top down; a room imports from those below it, and from its own row only where listed.
const ROWS: [&[&str]; 4] = [
    &["launch", "logger", "main_process", "monitor", "panzerctl"],
    &["cli"],
    &["control", "sockets", "readiness", "worker"],
    &["config", "signals", "backoff", "carry", "sys"],
];

/// Within a row, and upward, only these: each with its reason.
const ALLOWED: [(&str, &str); 8] = [
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
    // A descriptor is written as its number.
    ("carry", "sys"),
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
fn no_file_imports_one_that_imports_it() {
    let files: BTreeMap<Module, String> =
        sources("src").into_iter().map(|(path, text)| (module_of(&path), text)).collect();
    let mut imports: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
    for (module, text) in files.iter().filter(|(module, _)| !module.is_empty()) {
        let others = imported(&files, module, text).into_iter();
        imports.insert(module, others.filter(|other| *other != module && !other.is_empty()).collect());
    }
    if let Some(circle) = circle(&imports) {
        panic!("a circle of imports: {circle}");
    }
}

/// The path of a module from the crate's root on, one for each file. Both `a.rs` and `a/mod.rs` are `a`.
type Module = Vec<String>;

fn module_of(path: &Path) -> Module {
    let parts = path.strip_prefix("src").unwrap().with_extension("");
    let parts = parts.iter().map(|part| part.to_string_lossy().into_owned());
    parts.filter(|part| part != "mod" && part != "lib").collect()
}

/// The files that `text`, the file of `module`, takes names from. Its tests do not count.
fn imported<'a>(files: &'a BTreeMap<Module, String>, module: &Module, text: &str) -> BTreeSet<&'a Module> {
    let mut found = BTreeSet::new();
    let (mut inner, mut test_ends) = (Vec::new(), None::<String>);
    if module.last().is_some_and(|name| name == "tests") {
        return found;
    }
    // A path may run over several lines: they are joined where a brace of an import is open.
    let mut joined = String::new();
    let mut lines = text.lines().map(code).peekable();
    while let Some(line) = lines.next() {
        if let Some(end) = &test_ends {
            if line == end {
                test_ends = None;
            }
            continue;
        }
        let margin = &line[..line.len() - line.trim_start().len()];
        if line.trim() == "#[cfg(test)]" {
            let is_block = lines.next().is_some_and(|item| item.ends_with('{'));
            test_ends = is_block.then(|| format!("{margin}}}"));
            continue;
        }
        if line.trim_start().trim_start_matches("pub ").starts_with("mod ") && line.ends_with('{') {
            inner.push(format!("{margin}}}"));
        } else if inner.last().is_some_and(|end| end == line) {
            inner.pop();
        }
        joined.push_str(line.trim());
        let is_import = ["use ", "pub use ", "pub(super) use "].iter().any(|start| joined.starts_with(start));
        if is_import && !joined.ends_with(';') && lines.peek().is_some() {
            continue;
        }
        for path in paths(&joined) {
            found.extend(resolved(files, module, inner.len(), &path));
        }
        joined.clear();
    }
    found
}

/// The paths of two names or more in a line of code, groups taken apart.
fn paths(line: &str) -> Vec<Vec<String>> {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let mut found = Vec::new();
    // What stands before each open brace, and what was read since.
    let (mut groups, mut path, mut rest) = (Vec::<Vec<String>>::new(), Vec::<String>::new(), line);
    while let Some(letter) = rest.chars().next() {
        let length = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        if rest.starts_with("pub(in ") {
            rest = &rest[rest.find(')').unwrap_or(0)..];
        } else if length > 0 {
            path.push(rest[..length].to_owned());
            rest = &rest[length..];
        } else if rest.starts_with("::{") {
            groups.push(path.clone());
            rest = &rest[3..];
        } else if rest.starts_with("::") {
            rest = &rest[2..];
        } else {
            if groups.last() != Some(&path) {
                found.push(path);
            }
            if letter == '}' {
                groups.pop();
            }
            path = groups.last().cloned().unwrap_or_default();
            rest = &rest[letter.len_utf8()..];
        }
    }
    found.push(path);
    found.retain(|path| path.len() > 1);
    found
}

/// The file that `path` leads to, as it stands in `module`, `depth` modules of the same file below that.
fn resolved<'a>(
    files: &'a BTreeMap<Module, String>,
    module: &Module,
    depth: usize,
    path: &[String],
) -> Option<&'a Module> {
    let supers = path.iter().take_while(|part| *part == "super").count();
    let start: Module = match path[0].as_str() {
        "crate" => Vec::new(),
        "super" => module[..module.len() - supers.saturating_sub(depth).min(module.len())].to_vec(),
        "self" => module.clone(),
        child if files.contains_key(&[&module[..], &[child.to_owned()]].concat()) => module.clone(),
        _ => return None,
    };
    let rest = &path[if ["crate", "self"].contains(&&*path[0]) { 1 } else { supers }..];
    let whole: Module = start.iter().chain(rest).cloned().collect();
    (0..=whole.len()).rev().find_map(|length| files.get_key_value(&whole[..length])).map(|(file, _)| file)
}

/// One circle, in words.
fn circle(imports: &BTreeMap<&Module, BTreeSet<&Module>>) -> Option<String> {
    // Whoever imports nothing that is left is in no circle.
    let mut left = imports.clone();
    loop {
        let known: BTreeSet<&Module> = left.keys().copied().collect();
        let before = left.len();
        left.retain(|_, others| others.iter().any(|other| known.contains(other)));
        if left.len() == before {
            break;
        }
    }
    let mut way = vec![*left.keys().next()?];
    loop {
        let next = *left[way.last()?].iter().find(|other| left.contains_key(*other))?;
        let start = way.iter().position(|module| *module == next);
        way.push(next);
        if let Some(start) = start {
            return Some(way[start..].iter().map(|module| module.join("::")).collect::<Vec<_>>().join(" -> "));
        }
    }
}

#[test]
fn paths_are_taken_apart() {
    let all = |line: &str| paths(line).iter().map(|path| path.join("::")).collect::<Vec<_>>();
    assert_eq!(all("use crate::a::{b::{C, D}, e};"), ["crate::a::b::C", "crate::a::b::D", "crate::a::e"]);
    assert_eq!(all("pub(in super::super) fn f(x: &super::G) -> super::h::I {"), ["super::G", "super::h::I"]);
    assert_eq!(all("with = \"crate::carry::moment\""), ["crate::carry::moment"]);
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
        if path.iter().any(|folder| folder == "decide") && !path.ends_with("tests.rs") {
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
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
        // What trims memory sleeps as well, in the place of its caller.
        if path.ends_with("sys/trim_memory.rs") {
            continue;
        }
        let sleeps = |line: &&str| line.contains("poller.wait(") || line.contains("sleeper.wait(");
        let sleeps = text.lines().map(code).filter(sleeps).count();
        // Main waits once more, before its loop, for those who are ending to let go of an address. A daemon's starter does
        // nothing else. A hook is a process of its own.
        let may_sleep = ["run.rs", "listeners/bind_at_start.rs", "launch/daemon.rs", "processes/hook.rs"];
        let may_sleep = may_sleep.iter().any(|end| path.ends_with(end));
        assert!(sleeps == 0 || (may_sleep && sleeps == 1), "{}: {sleeps} places to sleep", path.display());
    }
}

/// The largest of each: whoever needs more takes things apart.
const MAX_FIELDS: usize = 14;
const MAX_LINES_OF_FUNCTION: usize = 85;
const MAX_LINES_OF_FILE: usize = 510;
const MAX_FILES_OF_FOLDER: usize = 16;

/// A plan and the command line have a field for each option.
const WIDE: [&str; 2] = ["Plan", "Options"];

#[test]
fn nothing_is_larger_than_a_reader_can_hold() {
    let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (path, text) in sources("src") {
        *folders.entry(path.parent().unwrap().to_owned()).or_default() += 1;
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let shown = path.display();
        assert!(lines.len() <= MAX_LINES_OF_FILE || path.ends_with("tests.rs"), "{shown}: {} lines", lines.len());
        for (at, line) in lines.iter().enumerate() {
            let words: Vec<&str> = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_').collect();
            let named = |kind: &str| words.iter().position(|word| *word == kind).and_then(|at| words.get(at + 1));
            let margin = &line[..line.len() - line.trim_start().len()];
            let end = format!("{margin}}}");
            let block = || lines[at + 1..].iter().take_while(|line| **line != end);
            if let Some(name) = named("struct").filter(|_| line.ends_with('{') && !line.contains("//")) {
                let is_own = |line: &&&str| line.starts_with(&format!("{margin}    ")) && is_field(line.trim_start());
                let fields = block().filter(is_own).count();
                assert!(fields <= MAX_FIELDS || WIDE.contains(name), "{shown}: {name} has {fields} fields");
            }
            if let Some(name) = named("fn").filter(|_| line.ends_with('{') && !line.contains("//")) {
                let length = block().count() + 2;
                assert!(length <= MAX_LINES_OF_FUNCTION, "{shown}: {name} has {length} lines");
            }
        }
    }
    for (folder, files) in folders {
        assert!(files <= MAX_FILES_OF_FOLDER, "{}: {files} files", folder.display());
    }
}

fn is_field(line: &str) -> bool {
    let line =
        line.strip_prefix("pub").map_or(line, |rest| rest.trim_start_matches(|letter| letter != ' ').trim_start());
    line.split_once(": ").is_some_and(|(name, _)| name.chars().all(|letter| letter.is_alphanumeric() || letter == '_'))
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
