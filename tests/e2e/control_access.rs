//! Who else may use the control socket: a group that may do everything, and one that may only look.

use std::fs;
use std::process::{Command, Output};

use nix::sys::signal::Signal::SIGUSR2;

use crate::control::text;
use crate::faults::SOON;
use crate::support::{Panzer, copy_executable, require, set_mode};

/// As systemd starts it with `User=`: panzer itself has no rights.
const AS_NOBODY: &str = "#!/bin/sh
PATH=/usr/bin:/bin
[ $(id -u) = 0 ] || exec \"$@\"
cp \"$1\" . && chown -R nobody . && shift
exec setpriv --reuid nobody --regid 65534 --groups 65534,7001 --no-new-privs ./panzer \"$@\"
";

/// A panzer with these options of its control socket. None where nobody else can be played.
fn start(access: &str) -> Option<Panzer> {
    if !nix::unistd::geteuid().is_root() || !require("setpriv") {
        return None;
    }
    let builder = Panzer::builder().args(["-w", "1", "--bake", "0s", "--control", access]);
    let builder = builder.args(["--log", "out.log,mode=0640,group=7002", "--", "sleep", "1000"]);
    let panzer = builder.start();
    panzer.wait_serving();
    copy_executable(env!("CARGO_BIN_EXE_panzerctl"), panzer.path("panzerctl"));
    for path in ["", "run"] {
        set_mode(panzer.path(path), 0o755);
    }
    Some(panzer)
}

/// What becomes of a command of user nobody, in this group.
fn as_member(panzer: &Panzer, group: &str, arguments: &[&str]) -> Output {
    as_user(panzer, "65534", group, arguments)
}

fn as_user(panzer: &Panzer, user: &str, group: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", "65534", "--groups", group]).arg(panzer.path("panzerctl"));
    command.args(arguments).env("RUNTIME_DIRECTORY", panzer.path("run")).current_dir("/").output().unwrap()
}

#[test]
fn a_group_may_do_everything_and_another_only_look() {
    let Some(panzer) = start(",group=7001,group-read=7002") else { return };
    for round in 0..2 {
        let reload = as_member(&panzer, "7001", &["reload"]);
        assert!(reload.status.success(), "{}", text(&reload.stderr));
        for command in ["status", "list", "metrics", "logs"] {
            let looked = as_member(&panzer, "7002", &[command]);
            assert!(looked.status.success(), "{command}: {}", text(&looked.stderr));
        }
        for command in [&["reload"][..], &["stop"], &["scale", "2"], &["signal", "HUP"], &["restart"], &["quiet"]] {
            let refused = as_member(&panzer, "7002", command);
            assert_eq!(refused.status.code(), Some(1), "{command:?}");
            let said = text(&refused.stderr);
            assert!(said.contains("you may only look (group-read)"), "{command:?}: {said}");
        }
        let stranger = as_member(&panzer, "7003", &["status"]);
        let said = text(&stranger.stderr);
        assert!(said.contains("uid 65534 is neither the owner of this panzer nor root"), "{said}");
        set_mode(panzer.path("out.log"), 0o600);
        let refused = as_member(&panzer, "7002", &["logs"]);
        let said = text(&refused.stderr);
        assert!(said.contains("out.log is not open to your user") && said.contains("group=GROUP"), "{said}");
        set_mode(panzer.path("out.log"), 0o640);
        if round == 0 {
            // The next main goes by the same.
            let mark = panzer.mark();
            panzer.signal(SIGUSR2);
            panzer.wait_for_line_after(mark, "restarted in place", SOON);
        }
    }
    panzer.stop();
}

/// Whoever names the place trusts the owner of its folder, and nobody else who listens there.
#[test]
fn a_group_may_use_a_panzer_of_another_user() {
    if !nix::unistd::geteuid().is_root() || !require("setpriv") {
        return;
    }
    let builder =
        Panzer::builder().args(["-w", "1", "--bake", "0s", "--control", ",group=7001", "--", "sleep", "1000"]);
    let panzer = builder.executable("as-nobody", AS_NOBODY).through("as-nobody").start();
    panzer.allow_line("workers run with no_new_privs");
    panzer.wait_serving();
    copy_executable(env!("CARGO_BIN_EXE_panzerctl"), panzer.path("panzerctl"));
    for path in ["", "run"] {
        set_mode(panzer.path(path), 0o755);
    }
    let done = as_user(&panzer, "65533", "7001", &["scale", "2"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    set_mode(panzer.path("run"), 0o777);
    let socket = panzer.path("run/sleep.sock");
    let refused = as_user(&panzer, "65533", "7001", &["--control", socket.to_str().unwrap(), "status"]);
    assert!(text(&refused.stderr).contains("uid 65534 listens there"), "{}", text(&refused.stderr));
    set_mode(panzer.path("run"), 0o755);
    panzer.stop();
}

#[test]
fn a_mode_and_a_group_keep_others_out_of_the_socket() {
    use std::os::unix::fs::MetadataExt;
    let Some(panzer) = start(",mode=0660,group=7001") else { return };
    let meta = fs::metadata(panzer.path("run/sleep.sock")).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.gid()), (0o660, 7001));
    assert!(as_member(&panzer, "7001", &["scale", "2"]).status.success());
    let refused = as_member(&panzer, "7002", &["status"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused.stderr).contains("is not open to your user"), "{}", text(&refused.stderr));
    panzer.stop();
}
