//! Workers that hide whether they accept, for good or for a moment, and what hides beside them.

use super::*;

/// A ring of its own: io_uring_setup(8, zeroed parameters), under the same number on every architecture.
const RING: &str = "import ctypes
ring = ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120))
assert ring > 2
";

/// Whether this kernel, or this container, has io_uring at all.
fn has_io_uring() -> bool {
    let status = std::process::Command::new("python3").args(["-c", RING]).stderr(std::process::Stdio::null()).status();
    let has = status.is_ok_and(|status| status.success());
    if !has {
        eprintln!("skipped: io_uring is not to be had here");
    }
    has
}

#[test]
fn what_cannot_be_seen_is_taken_as_alive() {
    if !require("python3") || !has_io_uring() {
        return;
    }
    let panzer = watched(2, &format!("{RING}note()\ntime.sleep(1000)\n")).start();
    panzer.expect_line("warning: whether the workers of generation 1 accept cannot be seen: it uses io_uring");
    panzer.wait_serving();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    let told = panzer.lines().iter().filter(|line| line.contains("cannot be seen")).count();
    assert_eq!(told, 1, "it is said once");
    panzer.stop();
}

#[test]
fn what_cannot_be_seen_is_not_ready_where_it_must_be() {
    if !require("python3") || !has_io_uring() {
        return;
    }
    let panzer = watched(1, &in_its_set_for("1.5")).args(["--ready", "accept", "--ready-timeout", "6s"]).start();
    // With so little time to be ready, one that takes its own is soon suspected.
    panzer.allow_line("unless it is still starting");
    panzer.wait_serving();
    replace(&panzer, &format!("{RING}time.sleep(1000)\n"));
    panzer.expect_line("error: reload failed: generation 2: ");
    let line = panzer.reload_and_wait().unwrap_err();
    let why = "worker 0 was not ready within 6s: whether it accepts cannot be seen: it uses io_uring";
    assert!(line.contains(why), "{line}");
    // A ring for other things hinders nobody.
    replace(&panzer, &(RING.to_owned() + &in_its_set_for("1")));
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.stop();
}

/// A child of the worker with a ring, as long as the worker lives, and none in the worker.
const HIDDEN_HELPER: &str = "if os.fork() == 0:
    RING
    signal.pause()
";

#[test]
fn what_a_worker_starts_hides_nothing_of_the_worker() {
    if !require("python3") || !has_io_uring() {
        return;
    }
    let helper = HIDDEN_HELPER.replace("RING", &RING.replace('\n', "\n    "));
    let panzer = watched(1, &in_its_set_for("0")).args(["--ready-timeout", "6s"]).start();
    panzer.wait_serving();
    panzer.allow_line("unless it is still starting");
    panzer.allow_line("left processes behind");
    replace(&panzer, &format!("{helper}time.sleep(1000)\n"));
    panzer.expect_line(
        "error: reload failed: generation 2: 1 of 1 worker was not ready within 6s (worker 0): not seen accepting",
    );
    panzer.reload_and_wait().unwrap_err();
    replace(&panzer, &format!("{helper}{}", in_its_set_for("1")));
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.stop();
}

#[test]
fn what_could_be_seen_but_for_a_helper_is_told_so() {
    if !require("python3") || !has_io_uring() {
        return;
    }
    let helper = HIDDEN_HELPER.replace("RING", &RING.replace('\n', "\n    "));
    let panzer = watched(1, &format!("{helper}time.sleep(1000)\n")).args(["--ready-timeout", "1s"]).start();
    panzer.allow_line("left processes behind");
    panzer.allow_line("unless it is still starting");
    panzer.expect_line("warning: worker 0 * is not ready after *; stopping it");
    panzer.expect_line("warning: worker 0 * was not ready within 1s: * a process that it started uses io_uring*");
    panzer.wait_for_line("a process that it started uses io_uring", SOON);
    panzer.stop();
}

#[test]
fn what_is_hidden_for_a_moment_is_looked_at_again() {
    if !require("python3") || !has_io_uring() {
        return;
    }
    let moment = format!("{RING}time.sleep(0.4)\nos.close(ring)\n");
    let panzer = watched(1, &in_its_set_for("0")).args(["--ready-timeout", "6s"]).start();
    panzer.wait_serving();
    panzer.allow_line("unless it is still starting");
    replace(&panzer, &format!("{moment}time.sleep(1000)\n"));
    panzer.expect_line(
        "error: reload failed: generation 2: 1 of 1 worker was not ready within 6s (worker 0): not seen accepting",
    );
    panzer.reload_and_wait().unwrap_err();
    replace(&panzer, &format!("{moment}{}", in_its_set_for("1")));
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.stop();
}

/// Waits on descriptor 3 in the way that the file `way` names, and never accepts what comes.
const WAYS_IN_C: &str = r#"
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
    char way[16] = "";
    FILE *file = fopen("way", "r");
    if (!file || fscanf(file, "%15s", way) != 1) return 1;
    if (!strcmp(way, "accept")) accept(3, 0, 0);
    if (!strcmp(way, "accept4")) accept4(3, 0, 0, 0);
    struct pollfd one = { .fd = 3, .events = POLLIN };
    if (!strcmp(way, "poll")) poll(&one, 1, -1);
    if (!strcmp(way, "ppoll")) ppoll(&one, 1, 0, 0);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(3, &set);
    if (!strcmp(way, "select")) select(4, &set, 0, 0, 0);
    if (!strcmp(way, "epoll")) {
        struct epoll_event event = { .events = EPOLLIN };
        int all = epoll_create1(0);
        epoll_ctl(all, EPOLL_CTL_ADD, 3, &event);
        epoll_wait(all, &event, 1, -1);
    }
    pause();
}
"#;

#[test]
fn a_32_bit_worker_is_seen_as_any_other() {
    if !require("gcc") || cfg!(not(target_arch = "x86_64")) {
        return;
    }
    let builder = Panzer::builder().args(["-w", "1", "-l", &format!("127.0.0.1:{}", free_port()), "--bake", "0s"]);
    let builder = builder.args(["--ready-timeout", "3s", "--ready", "accept", "./server"]).file("way", "accept");
    let Some(builder) = crate::binding::compiled(builder, "server", WAYS_IN_C, &["-m32"]) else {
        eprintln!("skipped: gcc has no -m32");
        return;
    };
    let panzer = builder.start();
    panzer.wait_serving();
    for (way, generation) in ["accept4", "poll", "ppoll", "select", "epoll"].into_iter().zip(2..) {
        fs::write(panzer.path("way"), way).unwrap();
        assert_eq!(panzer.reload_and_wait(), Ok(generation), "{way}");
    }
    fs::write(panzer.path("way"), "pause").unwrap();
    panzer.allow_line("unless it is still starting");
    panzer.expect_line("error: reload failed: generation 7: ");
    let why = panzer.reload_and_wait().unwrap_err();
    assert!(why.contains("was not ready within 3s"), "{why}");
    panzer.stop();
}
