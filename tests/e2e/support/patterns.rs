//! Patterns for lines: plain text that is looked for anywhere in the line, where `*` stands for anything.

/// Whether `pattern` occurs in `line`.
pub fn matches(pattern: &str, line: &str) -> bool {
    let mut rest = line;
    for part in pattern.split('*') {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// What panzer says when all is well, after its time stamp.
const USUAL: [&str; 28] = [
    "panzer: started as pid ",
    "panzer: generation * serves: * ready in ",
    "panzer: reload: starting generation ",
    "panzer: reload: running the before-reload hook of generation ",
    "panzer: reload: generation * is still starting; the next reload follows it",
    "panzer: reload: generation * is ready; it must live for ",
    "panzer: reload done: generation ",
    "panzer: generation * has ended after draining for ",
    "panzer: keeping * from now on, instead of ",
    "panzer: ending all workers; a reload or a scale brings workers back",
    "panzer: configuration read again",
    "panzer: listening on ",
    // Of a daemon without --log.
    "panzer: the workers' output goes to ",
    // Where whoever runs the tests is not root.
    "panzer: workers run with no_new_privs, so that they can share ports: ",
    "panzer: workers share port * too, beside ",
    "panzer: closed * no generation has it any more",
    "panzer: worker *; replacing it",
    "panzer: worker * has taken the place of ",
    "panzer: restart: trying ",
    "panzer: restarted in place: panzer ",
    "panzer: stopping gracefully",
    "panzer: stopping now",
    "panzer: stopped",
    // Servers that listen once more, on what they were given, name a length of their own.
    "panzer: a worker cut the queue of * again (said once)",
    // The status table.
    "panzer: main ",
    "panzer:   generation * monitor ",
    "panzer:     worker ",
    "panzer:     mold ",
];

/// Whether panzer says this when all is well. No warning and no error is of that kind.
pub fn is_usual(line: &str) -> bool {
    let stamp_ends = line.find("Z panzer: ").map(|at| at + "Z ".len());
    let message = stamp_ends.map(|at| &line[at..]);
    message.is_some_and(|message| {
        USUAL.iter().any(|usual| message.starts_with(usual.split('*').next().unwrap_or("")) && matches(usual, message))
    })
}

#[test]
fn a_star_stands_for_anything() {
    assert!(matches("reload done: generation 3", "Z panzer: reload done: generation 3 serves"));
    assert!(matches(
        "worker 0 * killed by SIGSEGV*respawning",
        "worker 0 (pid 3) was killed by SIGSEGV; respawning it"
    ));
    assert!(!matches("worker 1 * killed", "killed worker 1"));
}

#[test]
fn warnings_and_foreign_lines_are_not_usual() {
    assert!(is_usual("2026-11-22T03:00:00Z panzer: stopping now"));
    assert!(is_usual("2026-11-22T03:00:00Z panzer:     worker 0        12  ready     1s"));
    assert!(!is_usual("2026-11-22T03:00:00Z panzer: warning: worker 0 (pid 3) exited with code 1; respawning it"));
    assert!(!is_usual("Traceback (most recent call last):"));
}
