//! Every command that README.md, CONTRIBUTING.md, docs/, deploy/ and examples/ show, run as it stands there: a page from
//! top to bottom, in a folder of its own, with free ports in place of those on the page.
//!
//! A comment above a block says how its commands are run:
//!
//! - `<!-- run -->`: each line starts panzer, which must serve, reload and stop. Of a table, the code in its rows.
//! - `<!-- with: COMMAND -->`: COMMAND starts panzer, and each line is run while it serves. `<pid>` is panzer's.
//! - `<!-- pairs -->`: a table with another tool's commands on the left and ours on the right; see `pairs`.
//! - `<!-- sh -->`: each line is run by itself.
//! - `<!-- file NAME -->`: the block is a file for the commands that follow.
//! - `<!-- elsewhere -->`, `<!-- test -->`: each line is in the list `ELSEWHERE`, with the reason.
//!
//! Each command must succeed. In a block of the kind `console` a `$` stands before each command, and what it prints is
//! below it, where `*` stands for anything, and a line `…` for any lines; such a command may fail.

mod pairs;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::{Address, Panzer, eventually, free_port, get, matches, require, there_is, with_real_interpreter};

const SOON: Duration = Duration::from_secs(20);
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Commands that cannot be run here, by how they begin, and why.
const ELSEWHERE: [(&str, &str); 19] = [
    ("cargo test", "CI runs it first of all, and it runs this test"),
    ("PANZER_SIM_", "a simulation that is longer or narrower than the one that CI runs"),
    ("PANZER_KILLS=", "CI plays a few seconds of it"),
    ("PANZER_SOAK=", "CI plays a second of it"),
    ("cargo install --path .", "it installs into the user's home; what it builds, the other tests build"),
    ("cargo fmt", "CI runs it"),
    ("cargo clippy", "CI runs it"),
    ("cargo bench", "it takes many minutes on a quiet machine"),
    ("benches/field/run", "it takes many minutes on a quiet machine"),
    ("PANZER_GENERATE=1 cargo test --test generated", "it writes files of the repository; CI compares them"),
    ("docs/pictures/make", "it writes files of the repository, and needs port 8000"),
    (
        "cp deploy/",
        "the units are for systemd as PID 1; `deploy` has systemd-analyze read them, and starts what they start",
    ),
    ("cp /etc/panzer/", "the file is for the unit of the package; `deploy` starts panzer with it"),
    ("systemctl", "there is no systemd as PID 1; `deploy` runs what the units start and reload by"),
    ("panzerctl --pid /run/my_app", "it asks a panzer that systemd has started; `control` tests --pid"),
    ("docker", "there is no engine; a linter reads the Dockerfile, and `deploy` runs its commands as in a container"),
    ("for host in", "there are no other machines; each one runs a command of systemd-and-containers.md"),
    ("nomad", "there is no cluster; `deploy` reads the job, and runs its command"),
    ("kubectl", "there is no cluster; `deploy` has the manifest validated, and runs its commands"),
];

/// The ports that pages show.
const PORTS: [u16; 5] = [8000, 8001, 8080, 8443, 9090];

/// What a page's folder has beside the files of examples/: programs of its readers.
const FILES: [(&str, &str); 4] = [
    ("release", "#!/bin/sh\nexec ./my_app\n"),
    ("einhorn_app", DESCRIPTOR),
    ("inetd_app", DESCRIPTOR),
    ("fd_app", DESCRIPTOR),
];

/// Takes its listener as einhorn's or inetd's programs do, or as the descriptor that its argument names.
const DESCRIPTOR: &str = "#!/usr/bin/env python3
import os, signal, socket, sys
signal.signal(signal.SIGUSR2, lambda *_: os._exit(0))
listener = socket.socket(fileno=int((sys.argv[1:] or [os.environ.get('EINHORN_FD_0', 0)])[0]))
listener.setblocking(True)
while True:
    client = listener.accept()[0]
    client.recv(4096)
    client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')
    client.close()
";

/// Servers that may be missing: the page's command is skipped then. CI has the first ones.
const SERVERS: [&str; 7] = ["python3", "gunicorn", "uvicorn", "node", "nginx", "haproxy", "systemd-socket-activate"];
const MORE_SERVERS: [&str; 8] = ["php", "php-fpm", "puma", "unicorn", "starman", "uwsgi", "java", "lighttpd"];

macro_rules! pages {
    ($($test:ident $page:literal,)*) => {
        $(#[test] fn $test() { run_page($page); })*
        const PAGES: &[&str] = &[$($page),*];
    };
}

pages! {
    readme "README.md",
    contributing "CONTRIBUTING.md",
    listening "docs/listening.md",
    readiness "docs/readiness.md",
    reload "docs/reload.md",
    configuration "docs/configuration.md",
    operating "docs/operating.md",
    platforms "docs/platforms.md",
    systemd_and_containers "docs/systemd-and-containers.md",
    moving_from "docs/moving-from.md",
    from_circus "docs/from-circus.md",
    from_crystal "docs/from-crystal.md",
    from_einhorn "docs/from-einhorn.md",
    from_foreman "docs/from-foreman.md",
    from_gunicorn "docs/from-gunicorn.md",
    from_pm2 "docs/from-pm2.md",
    from_ruby "docs/from-ruby.md",
    from_server_starter "docs/from-server-starter.md",
    from_supervisord "docs/from-supervisord.md",
    from_unicorn "docs/from-unicorn.md",
    logs "docs/logs.md",
    molds "docs/molds.md",
}

#[test]
fn every_page_is_run() {
    let folder = fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    let pages = folder.map(|entry| format!("docs/{}", entry.unwrap().file_name().to_string_lossy()));
    for page in pages.filter(|page| page.ends_with(".md")) {
        assert!(PAGES.contains(&page.as_str()), "{page} is among no tests");
    }
}

/// What stands in the text, and what comments of files show, is a command of a block that is run, or a part of one.
#[test]
fn what_is_mentioned_is_run_too() {
    let blocks = PAGES.iter().flat_map(|page| blocks(page));
    let run: Vec<String> = blocks.flat_map(|block| block.commands()).map(|command| command.line).collect();
    let mut mentioned: Vec<(&str, String)> = Vec::new();
    for page in PAGES {
        mentioned.extend(mentions(&read(page)).into_iter().map(|command| (*page, command)));
    }
    let commented = ["deploy/Dockerfile", "deploy/kubernetes.yml", "deploy/my_app.service", "deploy/my_app.socket"];
    let commented = commented.into_iter().chain(["deploy/panzer@.service", "deploy/my_app.yml"]);
    let commented = commented.chain(["deploy/kustomization.yaml", "deploy/my_app.nomad.hcl"]);
    for file in commented.chain(["examples/my_app", "examples/app.py", "examples/node_app.js"]) {
        mentioned.extend(indented(&read(file)).into_iter().map(|command| (file, command)));
    }
    for (place, command) in mentioned {
        assert!(
            run.iter().any(|line| line.contains(&command)),
            "{place} mentions a command that no block shows: {command}"
        );
    }
    for (begin, _) in ELSEWHERE {
        assert!(run.iter().any(|line| line.starts_with(begin)), "no page shows {begin}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for page in PAGES {
        let text = read(page);
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = Path::new(page).parent().unwrap();
            let file = if file.is_empty() { Path::new(page).to_owned() } else { folder.join(file) };
            let target = fs::read_to_string(Path::new(ROOT).join(&file));
            let target = target.unwrap_or_else(|error| panic!("{page}: {link}: {error}"));
            let headings = target.lines().filter(|line| line.starts_with('#')).map(anchor_of);
            assert!(anchor.is_empty() || headings.into_iter().any(|heading| heading == anchor), "{page}: {link}");
        }
    }
}

#[test]
fn every_file_that_is_named_is_there() {
    let folders = ["src/", "tests/", "docs/", "man/", "completions/", "deploy/", "examples/", ".ci/"];
    for page in PAGES {
        for code in
            read(page).lines().flat_map(code_in).filter(|code| folders.iter().any(|folder| code.starts_with(folder)))
        {
            assert!(code.contains('*') || Path::new(ROOT).join(code).exists(), "{page} names {code}");
        }
    }
}

/// By which a page can be linked to at this heading.
fn anchor_of(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    words.chars().filter(|letter| letter.is_alphanumeric() || *letter == '-').collect()
}

fn read(page: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(page)).unwrap()
}

fn is_command(text: &str) -> bool {
    let words = ["panzer", "panzerctl", "cargo", "kill", "curl", "systemctl", "docker", "kubectl", "nomad", "python3"];
    text.split_once(' ').is_some_and(|(first, _)| words.contains(&first))
}

/// The commands in the text of a page: in backticks, outside of blocks.
fn mentions(page: &str) -> Vec<String> {
    let mut is_text = true;
    let text = page.lines().filter(|line| {
        is_text ^= line.starts_with("```");
        is_text
    });
    // The first column of a table says what the row is about, such as another tool's command.
    let text =
        text.map(|line| line.strip_prefix("| ").map_or(line, |row| row.split_once(" | ").map_or("", |row| row.1)));
    text.flat_map(code_in).filter(|code| is_command(code)).map(str::to_owned).collect()
}

/// What stands in single backticks in a line.
fn code_in(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The commands that comments of a file show in lines of their own, further in than the rest.
fn indented(text: &str) -> Vec<String> {
    let shown = text.lines().filter_map(|line| {
        let line = line.trim_start_matches(['#', '/']);
        line.starts_with("   ").then(|| without_comment(line.trim()).to_owned())
    });
    shown.filter(|line| is_command(line)).collect()
}

fn without_comment(line: &str) -> &str {
    line.split_once("  #").map_or(line, |(command, _)| command).trim()
}

/// How the commands of a block are run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Run,
    Pairs,
    With(String),
    Sh,
    File(String),
    Elsewhere,
}

#[derive(Debug)]
struct Block {
    kind: Kind,
    /// The word behind its backticks; of a table, nothing.
    language: String,
    lines: Vec<String>,
}

#[derive(Debug, Default)]
struct Shown {
    line: String,
    /// What it prints, if the page shows that.
    prints: Vec<String>,
}

impl Block {
    fn commands(&self) -> Vec<Shown> {
        if matches!(self.kind, Kind::File(_)) {
            return Vec::new();
        }
        if self.kind == Kind::Pairs {
            let ours = pairs::pairs(&self.lines).into_iter().map(|pair| pair.ours);
            return ours.map(|line| Shown { line, prints: Vec::new() }).collect();
        }
        let mut commands: Vec<Shown> = Vec::new();
        for line in &self.lines {
            let command = if self.language == "console" { line.strip_prefix("$ ") } else { Some(line.as_str()) };
            match command {
                Some(line) if !without_comment(line).is_empty() => {
                    commands.push(Shown { line: without_comment(line).to_owned(), prints: Vec::new() });
                }
                Some(_) => (),
                None => commands.last_mut().unwrap().prints.push(line.clone()),
            }
        }
        commands
    }
}

fn kind_of(comment: &str) -> Option<Kind> {
    match comment.strip_prefix("<!-- ")?.strip_suffix(" -->")? {
        "run" => Some(Kind::Run),
        "pairs" => Some(Kind::Pairs),
        "sh" => Some(Kind::Sh),
        "elsewhere" | "test" => Some(Kind::Elsewhere),
        other => match other.split_once(' ')? {
            ("with:", command) => Some(Kind::With(command.to_owned())),
            ("file", name) => Some(Kind::File(name.to_owned())),
            _ => None,
        },
    }
}

/// The blocks of a page. One that shows commands and has no comment above it fails the test.
fn blocks(page: &str) -> Vec<Block> {
    let text = read(page);
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    let mut kind = None;
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let lines: Vec<String> = lines.by_ref().take_while(|line| *line != "```").map(str::to_owned).collect();
            let shows_commands = ["sh", "console"].contains(&language);
            assert!(kind.is_some() || !shows_commands, "{page}: nothing says how this is run: {lines:?}");
            blocks.extend(kind.take().map(|kind| Block { kind, language: language.to_owned(), lines }));
        } else if line.starts_with("| ") && kind == Some(Kind::Run) {
            let rows = lines.by_ref().take_while(|line| line.starts_with('|'));
            let lines = rows
                .flat_map(|row| code_in(row).filter(|code| is_command(code)).map(str::to_owned).collect::<Vec<_>>());
            blocks.push(Block { kind: Kind::Run, language: String::new(), lines: lines.collect() });
            kind = None;
        } else if line.starts_with("| ") && kind == Some(Kind::Pairs) {
            let rows = lines.by_ref().take_while(|line| line.starts_with('|')).map(str::to_owned);
            blocks.push(Block { kind: Kind::Pairs, language: String::new(), lines: rows.collect() });
            kind = None;
        } else if let Some(named) = kind_of(line) {
            kind = Some(named);
        } else {
            assert!(line.is_empty() || kind.is_none(), "{page}: no block follows {kind:?}");
        }
    }
    blocks
}

/// A page's folder, and the ports that it has in place of those that it shows.
struct Page {
    folder: TempDir,
    ports: Vec<(u16, u16)>,
}

impl Page {
    fn new() -> Page {
        let folder = tempfile::Builder::new().prefix("panzer-e2e-").tempdir().unwrap();
        let page = Page { folder, ports: PORTS.map(|port| (port, free_port())).to_vec() };
        let path = page.folder.path();
        for folder in ["run", "bin", "path"] {
            fs::create_dir(path.join(folder)).unwrap();
        }
        symlink(Path::new(ROOT).join("examples"), path.join("examples")).unwrap();
        symlink(Path::new(ROOT).join("examples/my_app"), path.join("bin/my_app")).unwrap();
        for example in fs::read_dir(Path::new(ROOT).join("examples")).unwrap() {
            let example = example.unwrap().path();
            // Whoever has run nginx there has folders of its beside them.
            let Ok(content) = fs::read_to_string(&example) else { continue };
            page.write(example.file_name().unwrap().to_str().unwrap(), &content);
        }
        FILES.iter().for_each(|(name, content)| page.write(name, content));
        for binary in [env!("CARGO_BIN_EXE_panzer"), env!("CARGO_BIN_EXE_panzerctl")] {
            symlink(binary, path.join("path").join(Path::new(binary).file_name().unwrap())).unwrap();
        }
        // Debian has its version in its name.
        let found = fs::read_dir("/usr/sbin").into_iter().flatten().flatten();
        let fpm = found.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("/php-fpm"));
        fpm.into_iter().for_each(|fpm| symlink(fpm, path.join("path/php-fpm")).unwrap());
        page
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, self.here(content)).unwrap();
        crate::support::set_mode(&path, 0o755);
    }

    /// What the page shows, with the ports and paths that this folder has.
    fn here(&self, shown: &str) -> String {
        let mut text = shown.replace("cargo run --release -- ", "panzer ");
        text = text.replace("/run/app.sock", self.folder.path().join("app.sock").to_str().unwrap());
        for (shown, port) in &self.ports {
            text = with_word_replaced(&text, &shown.to_string(), &port.to_string());
        }
        text
    }

    fn path_variable(&self) -> std::ffi::OsString {
        let mut path = self.folder.path().join("path").into_os_string();
        path.push(":");
        path.push(with_real_interpreter());
        path
    }

    /// Starts panzer by this line of a shell, in the page's folder, and waits until it serves.
    fn start(&self, line: &str) -> Panzer {
        // Starman loses a signal now and then: a child of its own is about to wait for a connection just then.
        let script = format!("#!/bin/sh\nexec {}\n", self.here(line).replace("QUIT/60s/KILL", "QUIT/5s/KILL"));
        let builder = Panzer::builder().executable("line", &script).through("line");
        let builder = builder.in_directory(self.folder.path()).env("PWD", self.folder.path());
        // What comes from the servers is theirs to say. Of panzer's own no warning may be there: see `complains_of_nothing`.
        let builder = builder.env("PATH", self.path_variable()).env("PANZER_BAKE", "100ms").allow_line("");
        let panzer = builder.start();
        if line.starts_with("systemd-socket-activate") {
            // It starts panzer when the first client comes.
            panzer.wait_for_line("Listening on ", SOON);
            self.addresses(line).iter().for_each(|address| drop(get(address, "/")));
        }
        panzer.wait_serving();
        panzer
    }

    /// Runs a line of a shell, as it is `here`, in the page's folder. What it printed is in a file: a daemon holds a pipe open.
    fn sh(&self, line: &str, runtime: &Path) -> (ExitStatus, String) {
        let printed = self.folder.path().join("printed");
        let file = fs::File::create(&printed).unwrap();
        let mut shell = Command::new("timeout");
        shell.args(["60", "sh", "-c", line]).current_dir(self.folder.path());
        shell.env("PWD", self.folder.path()).env("PATH", self.path_variable()).env("RUNTIME_DIRECTORY", runtime);
        shell.env("PANZER_BAKE", "100ms").env("HOME", self.folder.path());
        shell.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let status = shell.status().unwrap();
        (status, String::from_utf8_lossy(&fs::read(&printed).unwrap()).into_owned())
    }

    fn run(&self, command: &Shown, runtime: &Path) {
        self.run_line(&self.here(&command.line), command, runtime);
    }

    /// The same with a line that has all that is particular to this run, such as a pid.
    fn run_line(&self, line: &str, command: &Shown, runtime: &Path) {
        let (status, said) = self.sh(line, runtime);
        println!("$ {}\n{said}", command.line);
        assert!(status.success() || !command.prints.is_empty(), "{}: {status}: {said}", command.line);
        let mut lines = said.lines();
        for pattern in command.prints.iter().filter(|line| *line != "…") {
            let pattern = self.here(pattern);
            let starts = |line: &&str| pattern.starts_with('*') || line.starts_with(pattern.split('*').next().unwrap());
            let found = lines.by_ref().filter(starts).any(|line| matches(&pattern, line));
            assert!(found, "{}: does not print {pattern:?}, but {said}", command.line);
        }
    }

    /// The addresses that a command line names, as far as they answer to HTTP.
    fn addresses(&self, line: &str) -> Vec<Address> {
        if line.contains("fpm") {
            return Vec::new();
        }
        let line = self.here(line);
        let ports = self.ports.iter().map(|(_, port)| *port).filter(|port| line.contains(&port.to_string()));
        let mut addresses: Vec<Address> = ports.map(|port| (Ipv4Addr::LOCALHOST, port).into()).collect();
        let socket = self.folder.path().join("app.sock");
        if line.contains(socket.to_str().unwrap()) {
            addresses.push(socket.as_path().into());
        }
        addresses
    }

    /// Starts panzer by this line, asks it, reloads it, asks it again, and stops it.
    fn serves(&self, line: &str) {
        println!("$ {line}");
        let panzer = self.start(line);
        let addresses = self.addresses(line);
        let answer = |generation: &str| {
            for address in &addresses {
                eventually(SOON, &format!("{generation} answers"), || get(address, "/").is_ok());
            }
        };
        answer("the first generation");
        let reload = Shown { line: "panzerctl reload".to_owned(), prints: Vec::new() };
        self.run(&reload, &panzer.path("run"));
        answer("the second generation");
        let said = panzer.lines();
        assert_eq!(panzer.stop().code(), Some(0), "{line}");
        complains_of_nothing(&said);
    }
}

/// A daemon of a page that failed is not to stay.
impl Drop for Page {
    fn drop(&mut self) {
        let runtime = self.folder.path().join("run");
        if fs::read_dir(&runtime).is_ok_and(|mut left| left.next().is_some()) {
            self.sh("panzerctl exit", &runtime);
        }
    }
}

fn complains_of_nothing(lines: &[String]) {
    let complains = |line: &&String| line.contains("panzer: warning:") || line.contains("panzer: error:");
    // Newer gunicorns have a socket of their own, of which the page speaks. What is slow to stop is the server.
    let is_theirs = |line: &str| line.contains("/gunicorn.ctl") || line.contains("has not stopped yet; sent it ");
    let wrong = lines.iter().filter(complains).find(|line| !is_theirs(line));
    assert_eq!(wrong, None);
}

/// `text` with the word `word` replaced, where no letter and no digit stands beside it.
fn with_word_replaced(text: &str, word: &str, by: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let joins = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '.');
        let stands_alone = !joins(before.chars().last()) && !after.starts_with(|letter: char| letter.is_alphanumeric());
        result += before;
        result += if stands_alone { by } else { word };
        rest = after;
    }
    result + rest
}

/// Whether the servers that a line starts are installed.
fn can_run(line: &str) -> bool {
    let words: Vec<&str> = line.split([' ', '\'', '"']).collect();
    let needs =
        |servers: &[&'static str]| servers.iter().copied().filter(|server| words.contains(server)).collect::<Vec<_>>();
    let has_fpm = || {
        fs::read_dir("/usr/sbin")
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("php-fpm"))
    };
    needs(&SERVERS).into_iter().all(require)
        && needs(&MORE_SERVERS).into_iter().all(|server| if server == "php-fpm" { has_fpm() } else { there_is(server) })
        && (require("python3") || !line.contains("_app"))
}

fn run_page(page: &str) {
    let here = Page::new();
    for block in blocks(page) {
        let commands: Vec<Shown> = block.commands().into_iter().filter(|command| can_run(&command.line)).collect();
        match &block.kind {
            Kind::File(name) => here.write(name, &(block.lines.join("\n") + "\n")),
            Kind::Pairs => pairs::run_pairs(&here, &pairs::pairs(&block.lines)),
            Kind::Run => commands.iter().for_each(|command| here.serves(&command.line)),
            Kind::Sh => {
                commands.iter().for_each(|command| here.run(command, &here.folder.path().join("run")));
            }
            Kind::With(line) if can_run(line) => run_beside(&here, line, &commands),
            Kind::With(_) => (),
            Kind::Elsewhere => {
                for Shown { line, .. } in &commands {
                    let listed = ELSEWHERE.iter().any(|(begin, _)| line.starts_with(begin));
                    assert!(listed, "{page}: nothing says why {line} cannot be run here");
                }
            }
        }
    }
}

/// Runs commands while a panzer serves that this line has started. One of them may stop it.
fn run_beside(page: &Page, line: &str, commands: &[Shown]) {
    let panzer = page.start(line);
    for command in commands {
        let line = page.here(&command.line).replace("<pid>", &panzer.pid().to_string());
        page.run_line(&line, command, &panzer.path("run"));
    }
    let stops = commands.iter().any(|command| command.line == "panzerctl stop");
    let said = panzer.lines();
    let ended = if stops { panzer.wait_exit() } else { panzer.stop() };
    assert_eq!(ended.code(), Some(0));
    // A worker that gets a signal may end by it.
    if commands.iter().all(|command| command.prints.is_empty() && !command.line.contains(" signal ")) {
        complains_of_nothing(&said);
    }
}
