//! Strangers on the machine: whose panzer panzerctl asks, and what it prints.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};

use crate::control::text;
use crate::support::Panzer;

/// What answers in a folder of somebody else's, as another user where that can be had.
const STRANGER: &str = r#"
import json, os, socket, sys
if len(sys.argv) > 2 and os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.makedirs(sys.argv[1], exist_ok=True)
os.chdir(sys.argv[1])
open("x.pid", "w").write("1\n")
listener = socket.socket(socket.AF_UNIX)
listener.bind("x.sock")
listener.listen(16)
os.chmod("x.sock", 0o777)
print("listens", flush=True)
while True:
    client, _ = listener.accept()
    try:
        if client.recv(4096):
            error = "\x1b]0;owned\x07\u202eforged"
            client.sendall(json.dumps({"version": 1, "ok": False, "error": error}).encode() + b"\n")
    except OSError:
        pass
    client.close()
"#;

struct Stranger(Child);

impl Stranger {
    fn at(folder: &Path, as_another: bool) -> Stranger {
        let mut python = Command::new("python3");
        python.args(["-c", STRANGER]).arg(folder).args(as_another.then_some("another"));
        let python = python.env("PATH", crate::support::with_real_interpreter()).stdout(Stdio::piped()).spawn();
        let mut stranger = Stranger(python.unwrap());
        let mut line = String::new();
        BufReader::new(stranger.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listens\n");
        stranger
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn folders_of_strangers_are_not_looked_at_and_what_they_say_acts_on_no_terminal() {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let folder = temp.path().join(format!("panzer-{}", nix::unistd::geteuid()));
    let ask = |arguments: &[&str]| asked(Command::new(env!("CARGO_BIN_EXE_panzerctl")).args(arguments), temp.path());
    let is_asked = || ask(&["list"]).contains("\nx ") || ask(&["--name", "x", "reload"]).contains("forged");
    let stranger = Stranger::at(&folder, false);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(is_asked(), "one of our own is");
    let told = ask(&["--name", "x", "reload"]);
    assert!(told.contains("?]0;owned??forged"), "{told:?}");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(!is_asked(), "others can put files there");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(&folder, temp.path().join("elsewhere")).unwrap();
    symlink(temp.path().join("elsewhere"), &folder).unwrap();
    assert!(!is_asked(), "a link leads there");
    drop(stranger);
    fs::remove_file(&folder).unwrap();
    if nix::unistd::geteuid().is_root() {
        let _stranger = Stranger::at(&folder, true);
        assert!(!is_asked(), "it is another user's");
        // Root may go there, if sent there.
        let socket = folder.join("x.sock");
        assert!(ask(&["--control", socket.to_str().unwrap(), "reload"]).contains("forged"));
        // Nobody has no other folder than this one, and does not go there by name either.
        crate::support::copy_executable(env!("CARGO_BIN_EXE_panzerctl"), temp.path().join("ctl"));
        let its = temp.path().join("panzer-65534");
        let _its_own = Stranger::at(&its, true);
        let ask = || {
            let mut ctl = Command::new(temp.path().join("ctl"));
            asked(ctl.args(["--name", "x", "reload"]).uid(65534).gid(65534), temp.path())
        };
        fs::set_permissions(&its, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(ask().contains("forged"), "{}", ask());
        fs::set_permissions(&its, fs::Permissions::from_mode(0o777)).unwrap();
        let told = ask();
        assert!(told.contains("x does not run (looked in ") && told.contains("skipped: a link, or others"), "{told}");
    }
}

fn asked(panzerctl: &mut Command, temporary: &Path) -> String {
    let command = panzerctl.env("TMPDIR", temporary).env_remove("RUNTIME_DIRECTORY").env_remove("XDG_RUNTIME_DIR");
    let output = command.output().unwrap();
    text(&output.stdout) + &text(&output.stderr)
}

/// A server that binds first and listens later lives all the same.
#[test]
fn a_unix_path_that_is_bound_and_not_listened_on_yet_is_left_to_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let address = UnixAddr::new(&path).unwrap();
    for kind in [SockType::Stream, SockType::SeqPacket, SockType::Datagram] {
        let bound = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(bound.as_raw_fd(), &address).unwrap();
        let own = path.display();
        for (arguments, why) in [
            (
                ["--listen".to_owned(), format!("unix:{own}")],
                format!("error: cannot listen on unix:{own}: in use by *"),
            ),
            (
                ["--control".to_owned(), own.to_string()],
                format!("error: the control socket {own} belongs to a process *"),
            ),
        ] {
            let panzer = Panzer::builder().args(["-w", "1"]).args(arguments).args(["--", "sleep", "1000"]).start();
            panzer.expect_line(&why);
            assert_eq!(panzer.wait_exit().code(), Some(125));
            assert!(path.exists());
        }
        drop(bound);
        let panzer = Panzer::builder().args(["-w", "1", "--control", &own.to_string(), "--", "sleep", "1000"]).start();
        panzer.wait_serving();
        panzer.stop();
    }
}
