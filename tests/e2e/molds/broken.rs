//! Molds that do not keep to the protocol: each fails its release with the cause, and the old generation serves
//! throughout; or, where it serves already, another mold is loaded and the workers serve on.

use super::*;

/// Puts `program` in place of the one that runs, as a new file.
fn replace(panzer: &Panzer, program: &str) {
    let new = panzer.path("app.new");
    crate::support::write_executable(&new, program);
    fs::rename(&new, panzer.path("app")).unwrap();
}

/// Releases what `change` makes of a good mold. It must be refused for this reason.
#[track_caller]
fn refuses(change: (&str, &str), cause: &str) {
    let port = free_port();
    let panzer = serving(&mold("good"), port, 2).args(["--ready-timeout", "8s"]).start();
    panzer.wait_serving();
    let (workers, good) = (panzer.workers(), panzer.status().serving().mold());
    let bad = mold("bad").replace(change.0, change.1);
    assert_ne!(bad, mold("bad"), "nothing was changed");
    // What it says to a monitor that no longer listens is nobody's business: stdout is the null device.
    replace(&panzer, &bad.replacen("\ndef mold(", "\nos.dup2(1, 2)\n\ndef mold(", 1));
    panzer.expect_line("error: reload failed: generation 2: ");
    panzer.allow_line("warning: the mold ended and left processes behind; stopping them");
    panzer.allow_line("warning: the mold (pid *, generation 2) ended and left processes behind; stopping them");
    panzer.allow_line("(pid *, generation 2) has not stopped yet; sent it ");
    let line = panzer.reload_and_wait().unwrap_err();
    assert!(line.contains(cause), "{line}");
    assert!(line.ends_with("; generation 1 serves on"), "{line}");
    assert_eq!(panzer.workers(), workers, "the old generation must not notice");
    assert_eq!(panzer.status().serving().mold(), good);
    // Its workers may still take a connection, and end with it: they are not made to finish one.
    eventually(SOON, "nothing is left of it", || panzer.status().generations.len() == 1);
    assert_answers(port, "good");
    replace(&panzer, &mold("better"));
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.wait_drained(1);
    assert_answers(port, "better");
    assert_eq!(panzer.stop().code(), Some(0));
}

const READY: &str = "line.send(b\"READY\")";
const BORN: &str = "line.send(b\"BORN %d\" % ticket)";

#[test]
fn it_cannot_load_and_says_why() {
    refuses(
        (READY, "line.send(b'FAILED no database at db:5432')"),
        "generation 2: the mold cannot load: no database at db:5432",
    );
}

#[test]
fn it_crashes_while_it_loads() {
    refuses((READY, "import no_such_module"), "the mold exited with code 1 before it said READY");
}

#[test]
fn it_is_killed_while_it_loads() {
    refuses((READY, "os.kill(os.getpid(), 9)"), "the mold was killed by SIGKILL before it said READY");
}

#[test]
fn it_never_says_ready() {
    refuses((READY, "time.sleep(1000)"), "the mold did not say READY within 8s");
}

#[test]
fn it_exits_after_ready() {
    refuses((READY, "line.send(b'READY'); os._exit(3)"), "the mold exited with code 3");
}

/// Its workers are ready; it goes while the release bakes.
#[test]
fn it_exits_while_the_release_bakes() {
    let exits = "if slot == 1: os._exit(0)\n        for fd in fds:";
    refuses(("for fd in fds:", exits), "the mold exited with code 0");
}

#[test]
fn it_hangs_in_a_fork() {
    refuses(
        ("if (middle := os.fork()) == 0:", "time.sleep(1000)\n        if (middle := os.fork()) == 0:"),
        "no answer came to FORK 1 in time",
    );
}

#[test]
fn it_forks_and_nobody_answers() {
    refuses((BORN, "time.sleep(1000)"), "no answer came to FORK 1 in time");
}

#[test]
fn it_cannot_fork() {
    let says = "line.send(b'UNBORN %d fork: too many processes' % ticket)\n        continue\n        if (middle := os.fork()) == 0:";
    refuses(("if (middle := os.fork()) == 0:", says), "worker 0 could not be forked: fork: too many processes");
}

#[test]
fn it_answers_twice() {
    refuses((BORN, "line.send(b'BORN %d' % ticket); line.send(b'BORN %d' % ticket)"), "already");
}

#[test]
fn it_forks_two_for_one_ticket() {
    refuses(("if os.fork() != 0:", "if os.fork() != 0 and os.fork() != 0:"), "came, a ticket answered already");
}

#[test]
fn it_answers_for_a_ticket_that_it_does_not_have() {
    refuses((BORN, "line.send(b'BORN 4711')"), "BORN 4711 came, a ticket of nobody's");
}

#[test]
fn it_says_itself_that_it_was_born() {
    refuses(
        ("if (middle := os.fork()) == 0:", "line.send(b'BORN %d' % ticket)\n        if (middle := os.fork()) == 0:"),
        "which is the mold already",
    );
}

#[test]
fn its_own_child_says_that_it_was_born() {
    let own = "if os.fork() == 0:\n            line.send(b'BORN %d' % ticket)\n            time.sleep(1000)\n        if (middle := os.fork()) == 0:";
    refuses(("if (middle := os.fork()) == 0:", own), "and not the monitor");
}

#[test]
fn it_sends_rubbish() {
    refuses((READY, "line.send(b'HELLO \\x1b[31m')"), "which is no message of panzer-mold(7)");
}

#[test]
fn it_sends_too_much_at_once() {
    refuses((READY, "line.send(b'FAILED ' + b'x' * 5000)"), "sent more than 1024 bytes at once");
}

#[test]
fn it_sends_descriptors() {
    refuses((READY, "socket.send_fds(line, [b'READY'], [0, 1])"), "sent descriptors along");
}

#[test]
fn it_floods() {
    refuses((READY, "line.send(b'READY')\n    while True: line.send(b'READY')"), "it said READY twice");
}

#[test]
fn it_closes_its_socket() {
    refuses((READY, "line.send(b'READY'); line.close(); time.sleep(1000)"), "it closed its socket (PANZER_MOLD_FD)");
}

/// It serves already when it gets stuck: another one takes its place, and the workers do not notice.
#[test]
fn one_that_gets_stuck_later_is_replaced() {
    let port = free_port();
    let stuck = "if os.path.exists('stuck'): os.rename('stuck', 'was stuck'); time.sleep(1000)\n        if (middle := os.fork()) == 0:";
    let program = mold("good").replace("if (middle := os.fork()) == 0:", stuck);
    let panzer = serving(&program, port, 2).args(["--ready-timeout", "8s"]).start();
    panzer.wait_serving();
    panzer.expect_line("warning: worker * was killed by SIGKILL; respawning it");
    panzer.expect_line("warning: the mold broke its protocol: no answer came to FORK 3 in time");
    panzer.allow_line("has not stopped yet; sent it ");
    let workers = panzer.workers();
    fs::write(panzer.path("stuck"), "").unwrap();
    kill_9(workers[0]);
    wait_gone(&workers[..1]);
    panzer.wait_for_line("no answer came to FORK 3 in time", SOON);
    let now = wait_workers(&panzer, 2, &workers[..1]);
    assert!(now.contains(&workers[1]), "the other one does not notice");
    assert_answers(port, "good");
    panzer.stop();
}

/// What it has forked and not told of ends with it.
#[test]
fn what_it_has_forked_ends_with_it() {
    let port = free_port();
    let program = mold("good")
        .replace(READY, "os.fork() or os.setsid() or os.execvp('sleep', ['sleep', '1000'])\n    line.send(b'READY')");
    let panzer = serving(&program, port, 1).start();
    panzer.expect_line("warning: the mold was killed by SIGKILL (pid *, generation 1); loading another");
    panzer.expect_line("warning: the mold (pid *, generation 1) ended and left processes behind; stopping them");
    panzer.wait_serving();
    let mold = panzer.status().serving().mold();
    let helper = crate::support::descendants(mold).into_iter().map(|it| it.pid).find(|pid| *pid != mold).unwrap();
    kill_9(mold);
    wait_gone(&[helper]);
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
fn a_program_that_is_no_mold_is_refused_at_a_first_start() {
    let refused = |arguments: &[&str], why: &str| {
        let panzer = Panzer::builder().args(["--preload", "-w", "2"]).args(arguments).expect_line(why).start();
        assert_eq!(panzer.wait_exit().code(), Some(126));
    };
    let help = ": --preload needs a program that speaks panzer-mold(7)*leave out --preload";
    refused(
        &["--ready-timeout", "300ms", "--", "sleep", "1000"],
        &format!("error: the mold did not say READY within *(--ready-timeout allows more time){help}"),
    );
    refused(&["true"], &format!("error: the mold exited with code 0 before it said READY{help}"));
    let panzer = Panzer::builder().args(["--preload", "./missing"]).expect_line("error: * was not found").start();
    assert_eq!(panzer.wait_exit().code(), Some(127));
}

/// Nothing but time helps one whose database is not there yet.
#[test]
fn one_that_cannot_load_yet_is_tried_again_at_a_first_start() {
    let port = free_port();
    let program = mold("good").replace(
        READY,
        "if not os.path.exists('there'): line.send(b'FAILED not yet'); os._exit(1)\n    line.send(b'READY')",
    );
    let panzer = serving(&program, port, 1).start();
    panzer.expect_line("warning: the mold cannot load: not yet (pid *, generation 1); loading another in ");
    panzer.wait_for_line("the mold cannot load: not yet", SOON);
    fs::write(panzer.path("there"), "").unwrap();
    panzer.wait_serving();
    assert_answers(port, "good");
    panzer.stop();
}

#[test]
fn a_respawn_limit_holds_for_molds_at_a_start() {
    let port = free_port();
    let program = mold("good").replace(READY, "os._exit(1)");
    let panzer = serving(&program, port, 1).args(["--respawn-limit", "2/60s", "--delay", "10ms"]).start();
    panzer.expect_line("warning: the mold exited with code 1 before it said READY");
    panzer.expect_line("error: more than 2 respawns within 1m; giving up");
    panzer.allow_line("error: generation 1 keeps failing; stopping everything");
    assert_eq!(panzer.wait_exit().code(), Some(1));
}
