//! Real servers that a machine may have or not.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Whether `server` is installed. Where it is not, the test is to return: on a user's machine it is skipped, with a
/// line that says so; in CI (`CI=true`) it fails, so that nothing is left untested unnoticed.
pub fn require(server: &str) -> bool {
    let found = there_is(server);
    assert!(found || env::var("CI").as_deref() != Ok("true"), "{server} is not installed, and CI needs it");
    found
}

/// The same for a server that CI does without: where it is not installed, the test is skipped there as well.
pub fn there_is(server: &str) -> bool {
    // nginx and haproxy are for root on many systems, and not on a user's PATH.
    let system = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).chain(system).any(|folder| folder.join(server).is_file());
    if !found {
        eprintln!("skipped: {server} is not installed");
    }
    found
}

/// The same for a module of Python.
pub fn require_module(module: &str) -> bool {
    let mut python = Command::new("python3");
    python.arg("-c").arg(format!("import {module}")).env("PATH", with_real_interpreter()).stderr(Stdio::null());
    let found = python.status().is_ok_and(|status| status.success());
    if !found {
        assert!(env::var("CI").as_deref() != Ok("true"), "python's {module} is not installed, and CI has everything");
        eprintln!("skipped: python's {module} is not installed");
    }
    found
}

/// `PATH` with the folder of the real interpreter first: the shims of version managers such as pyenv take longer to
/// find python than python takes to start. The system's own folders for servers come last.
pub fn with_real_interpreter() -> OsString {
    static PATH: OnceLock<OsString> = OnceLock::new();
    PATH.get_or_init(|| {
        let asked = Command::new("python3")
            .args(["-c", "import sys; print(sys.executable)"])
            .stderr(Stdio::null())
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let folder = asked.ok().and_then(|python| Path::new(&python).parent().map(Path::to_owned));
        let path = env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
        let folders = folder.into_iter().chain(env::split_paths(&path)).chain(system);
        env::join_paths(folders).unwrap_or(path)
    })
    .clone()
}
