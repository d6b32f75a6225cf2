//! The tests' programs in Python as molds: the same test runs with workers that are executed and with workers that are
//! forked.

use std::cell::Cell;

thread_local! {
    static IS_MOLD: Cell<bool> = const { Cell::new(false) };
}

/// Runs `test` with `--preload`.
pub fn as_mold(test: impl FnOnce()) {
    IS_MOLD.set(true);
    test();
}

pub fn is_mold() -> bool {
    IS_MOLD.get()
}

/// The mold of the manual's example, as it stands there.
pub fn example_mold() -> String {
    let page = include_str!("../../../man/panzer-mold.7");
    let code = page.split(".EX\n").nth(1).and_then(|rest| rest.split(".EE\n").next()).expect("it has an example");
    code.replace("\\-", "-").replace("\\e", "\\")
}

/// A program in Python as this test has it: as a mold, it forks its workers behind its first import.
pub fn in_this_test(program: &str) -> String {
    if !is_mold() || !program.lines().next().is_some_and(|line| line.contains("python")) {
        return program.to_owned();
    }
    let example = example_mold();
    let (mold, _) = example.split_once("\ndef work():").expect("it has workers");
    let mold = mold.split_once('\n').expect("a line names the interpreter").1;
    let begins = "\
# Ends without a word by what ends it, or where nobody listens any more.
import sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.excepthook = lambda *_: os._exit(1)
if 'PANZER_MOLD_FD' in os.environ and not mold(lambda: True):
    raise SystemExit
sys.excepthook = sys.__excepthook__
signal.signal(signal.SIGINT, signal.default_int_handler)
";
    let at = program.find("\nimport ").map(|at| at + 1).expect("it imports something");
    format!("{}{mold}\n{begins}{}", &program[..at], &program[at..])
}
