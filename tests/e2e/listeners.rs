//! Listeners are compared on reload: all that may be said of one can be said anew, and nobody who connects is lost.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::control::{panzerctl, run, text};
use crate::faults::SOON;
use crate::load::{Load, Mode, Running};
use crate::support::{Builder, Panzer, eventually, free_port, get, require};
use crate::zero_loss::START;

/// Takes one connection after the other from all its listeners, or from a port of its own where it has none, and takes
/// its time, so that others wait. What it has taken it answers, also when it is told to stop.
const SERVER: &str = "#!/usr/bin/env python3
import os, select, signal, socket, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
given = int(os.environ.get('LISTEN_FDS', '0'))
if given:
    listeners = [socket.socket(fileno=3 + at) for at in range(given)]
else:
    listeners = [socket.create_server(('127.0.0.1', int(sys.argv[1])), backlog=64)]
for listener in listeners:
    listener.setblocking(False)
body = f\"worker {os.environ['PANZER_WORKER_ID']} of {os.environ['PANZER_GENERATION']}\".encode()
head = b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n' % len(body)
while os.path.exists('hold') and os.environ['PANZER_GENERATION'] != '1':
    time.sleep(0.01)
while not stop:
    for listener in select.select(listeners, [], [], 0.02)[0]:
        try:
            connection, _ = listener.accept()
        except OSError:
            continue
        connection.settimeout(5)
        if b'GET /spoil' in connection.recv(65536):
            listener.shutdown(socket.SHUT_RDWR)
        time.sleep(0.004)
        connection.sendall(head + body)
        connection.close()
";

/// What every file here begins with.
const BASE: &str = "bake: 100ms\n";

fn write(folder: &Path, text: &str) {
    fs::create_dir_all(folder.join("config")).unwrap();
    // Not in place: a planner may be reading it.
    fs::write(folder.join("config/new"), format!("{BASE}{text}")).unwrap();
    fs::rename(folder.join("config/new"), folder.join("config/panzer.yml")).unwrap();
}

fn builder(config: &str) -> Builder {
    let builder = Panzer::builder().executable("app", SERVER);
    write(builder.folder(), config);
    if config.contains("program: ") { builder } else { builder.arg("./app") }
}

fn start(config: &str) -> Panzer {
    let panzer = builder(config).start();
    panzer.wait_serving();
    panzer
}

/// Reloads by another configuration, until the old generation has ended.
#[track_caller]
fn becomes(panzer: &Panzer, config: &str) {
    write(panzer.folder(), config);
    reloads(panzer);
}

#[track_caller]
fn reloads(panzer: &Panzer) {
    let output = run(panzer, &["reload", "--drained"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[track_caller]
fn done(panzer: &Panzer, arguments: &[&str]) {
    let output = run(panzer, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
}

/// The program is one that ends at once, and a reload by this configuration fails.
#[track_caller]
fn fails_with(panzer: &Panzer, config: &str) {
    let replace = |content: &str| {
        crate::support::write_executable(panzer.path("new"), content);
        fs::rename(panzer.path("new"), panzer.path("app")).unwrap();
    };
    replace("#!/bin/sh\nexit 3\n");
    write(panzer.folder(), config);
    panzer.expect_line("error: reload failed: generation * worker * exited with code 3");
    assert_eq!(run(panzer, &["reload"]).status.code(), Some(1));
    eventually(SOON, "it is gone", || panzer.status().generations.len() == 1);
    replace(SERVER);
}

/// What main holds: of each address its queues, and how many may wait in all of them.
fn queues(panzer: &Panzer) -> Vec<(String, u64, Option<u64>)> {
    let output = run(panzer, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let one = |queue: &serde_json::Value| {
        let address = queue["address"].as_str().unwrap().to_owned();
        (address, queue["queues"].as_u64().unwrap(), queue["limit"].as_u64())
    };
    status["listeners"].as_array().unwrap().iter().map(one).collect()
}

fn counts(panzer: &Panzer) -> Vec<u64> {
    queues(panzer).into_iter().map(|(_, count, _)| count).collect()
}

/// So many workers answer, where as many have their turn.
#[track_caller]
fn assert_all_answer(port: u16, workers: u32) {
    eventually(SOON, "every worker, and no other, answers", || {
        let mut seen: Vec<String> = (0..15 * workers).map(|_| get(port, "/").unwrap().text()).collect();
        seen.sort();
        seen.dedup();
        let slots: Vec<u32> = seen.iter().map(|text| text.split(' ').nth(1).unwrap().parse().unwrap()).collect();
        slots == (0..workers).collect::<Vec<_>>()
    });
}

fn load(port: u16) -> Running {
    eventually(START, "somebody answers", || get(port, "/").is_ok());
    let load = Load::new(port, Mode::NewConnection, 4).pause(std::time::Duration::from_millis(3)).start();
    eventually(START, "the load is answered", || load.answered() >= 10);
    load
}

#[track_caller]
fn assert_nothing_lost(load: Running, title: &str) {
    let report = load.stop();
    eprintln!("{title}: {report}");
    assert_eq!(report.dropped(), 0, "{title}");
}

#[test]
fn queues_for_each_worker_come_and_go_with_reloads_and_nothing_is_lost() {
    if !require("python3") {
        return;
    }
    let [a, b] = [(); 2].map(|()| free_port());
    let panzer = start(&format!("workers: 3\nlisten: ['127.0.0.1:{a}']\n"));
    let first = load(a);
    let own = |port: u16| format!("'127.0.0.1:{port},per-worker'");
    // One is added.
    becomes(&panzer, &format!("workers: 3\nlisten: ['127.0.0.1:{a}', {}]\n", own(b)));
    assert_eq!(counts(&panzer), [1, 3]);
    assert_all_answer(b, 3);
    let second = load(b);
    // One that is shared gets them, and the order is another.
    let both = format!("workers: 3\nlisten: [{}, {}]\n", own(b), own(a));
    becomes(&panzer, &both);
    assert_eq!(counts(&panzer), [3, 3]);
    assert_all_answer(a, 3);
    reloads(&panzer);
    done(&panzer, &["scale", "5"]);
    assert_all_answer(a, 5);
    assert_all_answer(b, 5);
    done(&panzer, &["restart"]);
    reloads(&panzer);
    assert_all_answer(a, 5);
    done(&panzer, &["scale", "2"]);
    assert_all_answer(a, 2);
    assert_all_answer(b, 2);
    // One becomes shared again.
    becomes(&panzer, &format!("workers: 4\nlisten: ['127.0.0.1:{a}', {}]\n", own(b)));
    assert_eq!(counts(&panzer), [1, 5]);
    assert_all_answer(b, 4);
    done(&panzer, &["restart"]);
    becomes(&panzer, &both);
    assert_eq!(counts(&panzer), [3, 5]);
    assert_all_answer(a, 3);
    assert_nothing_lost(second, "a queue for each worker, added by a reload");
    // One is dropped.
    becomes(&panzer, &format!("workers: 3\nlisten: ['127.0.0.1:{a}']\n"));
    assert_eq!(counts(&panzer), [1]);
    panzer.wait_for_line(&format!("closed 127.0.0.1:{b}: no generation has it any more"), SOON);
    assert!(get(b, "/").is_err());
    assert_nothing_lost(first, "one queue for all, then one for each, and back");
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn by_shares_a_listener_that_changes_its_kind_changes_it_at_once() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let config = |kind: &str| {
        let (address, datagrams) = (format!("127.0.0.1:{port}{kind}"), format!("udp:127.0.0.1:{port}{kind}"));
        format!("workers: 3\nsurge: 1\nlisten: ['{address}', '{datagrams}']\n")
    };
    let panzer = start(&config(""));
    panzer.allow_line("panzer: a listener becomes per-worker, or is no longer: this reload goes all at once");
    let load = load(port);
    for kind in [",per-worker", ",per-worker", "", "", ",per-worker"] {
        becomes(&panzer, &config(kind));
        assert_eq!(counts(&panzer), if kind.is_empty() { [1, 1] } else { [3, 3] });
    }
    assert_eq!(panzer.lines().iter().filter(|line| line.contains("all at once")).count(), 3);
    assert_nothing_lost(load, "by shares");
    panzer.stop();
}

#[test]
fn a_reload_that_fails_leaves_every_listener_as_it_was() {
    if !require("python3") {
        return;
    }
    let [a, b, c] = [(); 3].map(|()| free_port());
    let good = format!(
        "workers: 2\nlisten: ['127.0.0.1:{a},backlog=20', '127.0.0.1:{b},per-worker,backlog=30', 'unix:s,mode=0600']\n"
    );
    let panzer = start(&good);
    let mode = || fs::metadata(panzer.path("s")).unwrap().mode() & 0o777;
    let before = queues(&panzer);
    assert_eq!(
        before[..2].iter().map(|(_, count, limit)| (*count, *limit)).collect::<Vec<_>>(),
        [(1, Some(20)), (2, Some(60))]
    );
    let (first, second) = (load(a), load(b));
    let other = format!(
        "workers: 4\nlisten: ['127.0.0.1:{b},backlog=3', '127.0.0.1:{c},per-worker', \
         'unix:s,mode=0666', '127.0.0.1:{a},per-worker,backlog=9,nonblock']\n"
    );
    fails_with(&panzer, &other);
    eventually(SOON, "what the failed one had is closed", || get(c, "/").is_err());
    let listened = |now: &[(String, u64, Option<u64>)]| now[0] == before[0] && now[1].1 >= before[1].1;
    eventually(SOON, "each is as it was", || listened(&queues(&panzer)));
    assert_eq!(mode(), 0o600);
    assert_all_answer(a, 2);
    assert_all_answer(b, 2);
    // The same succeeds where the program is good.
    becomes(&panzer, &other);
    assert_eq!(mode(), 0o666);
    let named = |port: u16| queues(&panzer).into_iter().find(|(address, ..)| *address == format!("127.0.0.1:{port}"));
    assert_eq!(named(a).map(|(_, count, limit)| (count, limit)), Some((4, Some(36))));
    assert_eq!(named(b).map(|(_, count, limit)| (count, limit)), Some((1, Some(3))));
    assert_eq!(named(c).map(|(_, count, _)| count), Some(4));
    assert_all_answer(a, 4);
    assert_all_answer(c, 4);
    becomes(&panzer, &good);
    assert_eq!((mode(), named(a).unwrap().2), (0o600, Some(20)));
    assert_nothing_lost(first, "one that fails, and two that do not");
    assert_nothing_lost(second, "one that fails, and two that do not");
    panzer.stop();
}

#[test]
fn a_restart_in_the_middle_of_a_reload_hands_over_what_it_is_to_serve() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = start(&format!("workers: 2\nlisten: '127.0.0.1:{port}'\n"));
    let load = load(port);
    fs::write(panzer.path("hold"), "").unwrap();
    write(panzer.folder(), &format!("workers: 2\nlisten: ['unix:s', '127.0.0.1:{port},per-worker,backlog=9']\n"));
    let reload = panzerctl(&panzer, &["reload", "--drained"]).spawn().unwrap();
    panzer.wait_for_line("panzer: reload: starting generation 2", SOON);
    done(&panzer, &["restart"]);
    // Its second queue is there, and nobody is sent to it.
    assert_eq!(counts(&panzer), [2, 1]);
    assert!((0..60).all(|_| get(port, "/").unwrap().text().ends_with(" of 1")));
    fs::remove_file(panzer.path("hold")).unwrap();
    let output = reload.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_all_answer(port, 2);
    assert_eq!(queues(&panzer)[0], (format!("127.0.0.1:{port}"), 2, Some(18)));
    assert_nothing_lost(load, "restarted in the middle of a reload");
    panzer.stop();
}

#[test]
fn owner_and_group_of_a_path_follow_a_reload() {
    if !require("python3") || !nix::unistd::geteuid().is_root() {
        return;
    }
    let panzer = start("workers: 1\nlisten: 'unix:s,mode=0640,owner=1'\n");
    let access = || {
        let meta = fs::metadata(panzer.path("s")).unwrap();
        (meta.mode() & 0o777, meta.uid(), meta.gid(), meta.ino())
    };
    let (mode, owner, group, inode) = access();
    assert_eq!((mode, owner), (0o640, 1));
    becomes(&panzer, "workers: 1\nlisten: 'unix:s,mode=0606,owner=2,group=3'\n");
    assert_eq!(access(), (0o606, 2, 3, inode));
    becomes(&panzer, "workers: 1\nlisten: 'unix:s,mode=0600'\n");
    assert_eq!(access(), (0o600, 0, group, inode));
    // What has taken its place is not touched.
    fs::remove_file(panzer.path("s")).unwrap();
    fs::write(panzer.path("s"), "").unwrap();
    let before = access();
    panzer.expect_line("warning: unix:s is not wholly as the configuration says: another file has taken its place");
    becomes(&panzer, "workers: 1\nlisten: 'unix:s,mode=0777'\n");
    assert_eq!(access(), before);
    panzer.stop();
}

#[test]
fn what_workers_bind_themselves_may_be_asked_for_and_back() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let shared = format!("workers: 2\nshare-ports: 'on'\nprogram: ./app\nargs: ['{port}']\n");
    let asked = format!("{shared}listen: '127.0.0.1:{port},backlog=99'\n");
    let panzer = start(&shared);
    panzer.allow_line("workers run with no_new_privs");
    let load = load(port);
    for config in [&asked, &shared, &asked, &asked, &shared, &shared] {
        becomes(&panzer, config);
        assert_all_answer(port, 2);
        assert_eq!(counts(&panzer), [1], "it is one and the same");
    }
    assert_nothing_lost(load, "bound by workers, then by main, and back");
    // It is one to its guard as well.
    becomes(&panzer, &asked);
    let told = || panzer.lines().iter().filter(|line| line.contains("; it listens again")).count();
    panzer.expect_line(&format!("warning: a worker of generation 8 shut down 127.0.0.1:{port}*; it listens again"));
    let _ = get(port, "/spoil");
    eventually(SOON, "it is told", || told() > 0);
    assert_all_answer(port, 2);
    assert_eq!(told(), 1);
    becomes(&panzer, &shared);
    assert_all_answer(port, 2);
    // Another address at that port is in their way.
    write(panzer.folder(), &format!("{shared}listen: '{port}'\n"));
    let why = format!(
        "cannot listen on port {port}: workers have bound 127.0.0.1:{port} themselves and share it; ask for that"
    );
    panzer.expect_line(&format!("error: reload failed: generation 10: {why}; generation 9 serves on"));
    let refused = run(&panzer, &["reload"]);
    assert!(text(&refused.stderr).contains(&why), "{}", text(&refused.stderr));
    assert!(get(port, "/").is_ok());
    assert_eq!(panzer.stop().code(), Some(0));
}

/// No capability is needed for a queue for each worker: neither where main binds the port, nor where it holds one that a
/// worker has bound.
#[test]
fn an_ordinary_user_gets_a_queue_for_each_worker_and_loses_nothing() {
    if !require("setpriv") || !Path::new("/usr/bin/python3").exists() {
        return;
    }
    let as_nobody = "#!/bin/sh
PATH=/usr/local/bin:/usr/bin:/bin
[ $(id -u) = 0 ] || exec \"$@\"
# A copy, as panzer itself may lie where nobody may not go.
cp \"$1\" . && chown -R nobody . && shift
exec setpriv --reuid nobody --regid 65534 --clear-groups --no-new-privs ./panzer \"$@\"
";
    let [own, bound] = [(); 2].map(|()| free_port());
    let config = |workers: u32, kind: &str| {
        let first = format!("workers: {workers}\nshare-ports: 'on'\nprogram: ./app\nargs: ['{bound}']\n");
        if kind.is_empty() {
            first
        } else {
            format!("{first}listen: ['127.0.0.1:{own}{kind}', '127.0.0.1:{bound}{kind}']\n")
        }
    };
    for first in [",per-worker", ""] {
        let panzer = builder(&config(1, first)).executable("as-nobody", as_nobody).through("as-nobody").start();
        panzer.allow_line("workers run with no_new_privs");
        panzer.wait_serving();
        let load = load(bound);
        if first.is_empty() {
            becomes(&panzer, &config(3, ",per-worker"));
            assert_all_answer(bound, 3);
        }
        for count in [3, 1, 2] {
            done(&panzer, &["scale", &count.to_string()]);
            assert_all_answer(own, count);
            assert_all_answer(bound, count);
        }
        reloads(&panzer);
        done(&panzer, &["restart"]);
        write(panzer.folder(), &config(4, ",per-worker"));
        panzer.signal(Signal::SIGHUP);
        assert_all_answer(own, 4);
        becomes(&panzer, &config(2, ",backlog=64"));
        becomes(&panzer, &config(2, ",per-worker"));
        assert_all_answer(bound, 2);
        assert_nothing_lost(load, "a queue for each worker of an ordinary user");
        assert_eq!(panzer.stop().code(), Some(0));
    }
}

/// Whether ports are shared is decided when panzer starts.
#[test]
fn whether_ports_are_shared_stays_and_that_is_said() {
    if !require("python3") {
        return;
    }
    let port = free_port();
    let panzer = start(&format!("workers: 2\nshare-ports: 'on'\nprogram: ./app\nargs: ['{port}']\n"));
    panzer.allow_line("workers run with no_new_privs");
    // Until then it may be alive only, and nobody expects more of the next one.
    eventually(START, "somebody answers", || get(port, "/").is_ok());
    panzer.expect_line("warning: share-ports: takes effect when panzer is started anew");
    becomes(&panzer, &format!("workers: 2\nshare-ports: 'off'\nprogram: ./app\nargs: ['{port}']\n"));
    // Two of them could not bind it otherwise.
    assert_all_answer(port, 2);
    panzer.signal(Signal::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}
