//! The program that clients/testing/conform.py drives.

use std::env;
use std::fs::File;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use panzer_mold::{Program, Worker};

extern "C" fn at_exit() {
    // Nobody may listen any more.
    let _ = writeln!(std::io::stdout(), "exit");
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("random bytes");
    u64::from_ne_bytes(bytes) >> 4
}

fn run(worker: &Worker) {
    let variable = |name| env::var(name).unwrap_or_else(|_| "-".to_owned());
    println!("run {} {} {} {}", worker.index(), random(), variable("LISTEN_PID"), variable("WATCHDOG_PID"));
    worker.ready();
    worker.served(7);
    while !worker.stopping() {
        worker.alive();
        thread::sleep(Duration::from_millis(20));
    }
    println!("done {}", worker.index());
    // The thread that calls `stop` may come later than this one.
    thread::sleep(Duration::from_millis(100));
}

fn main() {
    println!("loaded");
    // SAFETY: the handler is a function of this program.
    unsafe { libc::atexit(at_exit) };
    if env::var_os("CONFORM_FAIL").is_some() {
        panzer_mold::failed("no database");
    }
    if env::var_os("CONFORM_THREAD").is_some() {
        thread::spawn(|| thread::sleep(Duration::from_secs(1000)));
    }
    Program::new(run)
        .before_fork(|| println!("before_fork"))
        .after_start(|worker| println!("after_start {}", worker.index()))
        .stop(|worker| println!("stop {}", worker.index()))
        .reload(|worker| println!("reload {}", worker.index()))
        .become_mold(|| println!("become_mold"))
        .option("workers", 2)
        .option("listen", "127.0.0.1:0")
        .run()
}
