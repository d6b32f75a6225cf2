use super::*;

fn key(port: u16) -> Key {
    Key::new(1, String::new(), false, ([127, 0, 0, 1], port).into())
}

fn monitor(generation: u32) -> Monitor {
    Monitor { generation, life: 1 }
}

const PATIENCE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// A worker of `generation` binds there, and listens if it is the first.
fn claim(shares: &mut Shares<String>, port: u16, generation: u32, now: Instant, own: &str) -> String {
    match shares.claim(&key(port), (monitor(generation), 1), 1, true, now) {
        Claimed::Held(held) => return held.clone(),
        Claimed::Waits => panic!("nobody has bound that"),
        Claimed::Kernel => {}
    }
    shares.bound(key(port), (monitor(generation), 1), 1);
    shares.hold(&key(port), own.to_owned(), generation, now).unwrap();
    own.to_owned()
}

#[test]
fn the_first_that_listens_is_held_and_all_others_get_it() {
    let (mut shares, now) = (Shares::new(PATIENCE), Instant::now());
    assert_eq!(claim(&mut shares, 80, 1, now, "first"), "first");
    assert_eq!(claim(&mut shares, 80, 1, now, "never"), "first");
    assert_eq!(claim(&mut shares, 80, 2, now, "never"), "first");
    assert_eq!(claim(&mut shares, 81, 2, now, "other"), "other");
}

#[test]
fn a_bind_is_held_by_nobody_and_others_wait_for_its_listen() {
    let (mut shares, now) = (Shares::<String>::new(PATIENCE), Instant::now());
    let (first, second, third) = ((monitor(1), 1), (monitor(1), 2), (monitor(2), 1));
    assert_eq!(shares.claim(&key(80), first, 10, true, now), Claimed::Kernel);
    shares.bound(key(80), first, 10);
    assert_eq!((shares.held().count(), shares.deadline(None)), (0, None), "as long as nobody waits nothing is done");
    assert_eq!(shares.claim(&key(80), second, 20, true, now), Claimed::Waits);
    assert_eq!(shares.claim(&key(80), third, 30, true, now), Claimed::Waits);
    assert_eq!(shares.claim(&key(80), (monitor(1), 3), 10, true, now), Claimed::Kernel, "nobody waits for itself");
    assert_eq!(shares.claim(&key(80), (monitor(1), 4), 40, false, now), Claimed::Kernel, "that one does not wait");
    assert_eq!(shares.hold(&key(80), "first".to_owned(), 1, now), Some(vec![second, third]));
    assert_eq!(shares.deadline(Some(1)), None);
}

#[test]
fn who_waits_is_told_once_the_first_will_not_listen() {
    let (mut shares, now) = (Shares::<String>::new(PATIENCE), Instant::now());
    let (first, second) = ((monitor(1), 1), (monitor(1), 2));
    shares.bound(key(80), first, 10);
    shares.claim(&key(80), second, 20, true, now);
    assert_eq!(shares.deadline(None), Some(now + FIRST_PAUSE));
    let now = now + FIRST_PAUSE;
    assert_eq!(shares.due(now), Due { looks: vec![first], again: vec![] });
    assert_eq!(shares.due(now), Due::default());
    assert_eq!(shares.looked(first, true, now), []);
    assert_eq!(shares.deadline(None), Some(now + FIRST_PAUSE * 2));
    let now = now + FIRST_PAUSE * 2;
    assert_eq!(shares.due(now), Due { looks: vec![first], again: vec![] });
    assert_eq!(shares.looked(first, false, now), [second]);
    assert_eq!(shares.claim(&key(80), second, 20, true, now), Claimed::Kernel);
    assert_eq!(shares.looked(first, false, now), []);
}

#[test]
fn nobody_waits_for_a_monitor_that_does_not_answer_or_has_ended() {
    let (mut shares, now) = (Shares::<String>::new(PATIENCE), Instant::now());
    let (first, second, third) = ((monitor(1), 1), (monitor(2), 1), (monitor(2), 2));
    shares.bound(key(80), first, 10);
    shares.claim(&key(80), second, 20, true, now);
    let asked = now + FIRST_PAUSE;
    assert_eq!(shares.due(asked).looks, [first]);
    assert_eq!(shares.due(asked + LOOK_TIMEOUT), Due { looks: vec![], again: vec![second] });
    shares.bound(key(80), first, 10);
    shares.claim(&key(80), third, 20, true, now);
    assert_eq!(shares.monitor_ended(monitor(1)), [third]);
    shares.bound(key(80), second, 20);
    shares.claim(&key(80), first, 10, true, now);
    assert_eq!(shares.monitor_ended(monitor(1)), []);
    assert_eq!(shares.monitor_ended(monitor(2)), [], "nobody waits any more");
}

#[test]
fn a_stop_leaves_whoever_waits_to_the_kernel() {
    let (mut shares, now) = (Shares::<String>::new(PATIENCE), Instant::now());
    shares.bound(key(80), (monitor(1), 1), 10);
    shares.claim(&key(80), (monitor(1), 2), 20, true, now);
    assert_eq!(shares.close(), [(monitor(1), 2)]);
    assert_eq!(shares.deadline(None), None);
}

#[test]
fn what_is_bound_and_never_asked_about_is_forgotten_some_day() {
    let (mut shares, now) = (Shares::<String>::new(PATIENCE), Instant::now());
    shares.bound(key(1), (monitor(1), 0), 10);
    shares.claim(&key(1), (monitor(1), 9999), 20, true, now);
    for port in 2..=2 * MAX_BOUND as u16 {
        shares.bound(key(port), (monitor(1), port.into()), 10);
    }
    assert!(shares.bound.len() <= MAX_BOUND && shares.bound.contains_key(&key(1)));
}

#[test]
fn who_waits_goes_along_to_the_next_main() {
    let (mut shares, now) = (Shares::<String>::new(PATIENCE), Instant::now());
    shares.bound(key(80), (monitor(1), 1), 10);
    shares.claim(&key(80), (monitor(1), 2), 20, true, now);
    let written = serde_json::to_string(&shares).unwrap();
    let mut read: Shares<String> = serde_json::from_str(&written).unwrap();
    assert_eq!(read.hold(&key(80), "held".to_owned(), 1, now), Some(vec![(monitor(1), 2)]));
    let plain = serde_json::to_string(&Shares::<String>::new(PATIENCE)).unwrap();
    assert!(!plain.contains("bound"), "an older build reads what has none: {plain}");
}

#[test]
fn what_the_next_release_does_not_bind_is_closed_once_the_old_one_is_gone() {
    let (mut shares, start) = (Shares::new(PATIENCE), Instant::now());
    for port in [80, 81] {
        claim(&mut shares, port, 1, start, "any");
    }
    claim(&mut shares, 80, 2, start, "never");
    assert_eq!(shares.deadline(Some(2)), None);
    shares.release(1, start + 5 * SECOND);
    assert_eq!(shares.deadline(Some(2)), Some(start + 5 * SECOND));
    assert_eq!(shares.close_abandoned(Some(2), start + 5 * SECOND), [key(81)]);
    assert_eq!(shares.deadline(Some(2)), None);
}

#[test]
fn a_failed_release_takes_with_it_what_it_alone_had_bound() {
    let (mut shares, now) = (Shares::new(PATIENCE), Instant::now());
    claim(&mut shares, 80, 1, now, "old");
    claim(&mut shares, 80, 2, now, "never");
    claim(&mut shares, 81, 2, now, "new");
    shares.release(2, now + 2 * SECOND);
    assert_eq!(shares.close_abandoned(Some(1), now + 2 * SECOND), [key(81)]);
    assert_eq!(claim(&mut shares, 80, 1, now, "never"), "old");
}

#[test]
fn a_slow_release_finds_the_listener_as_it_was() {
    let (mut shares, start) = (Shares::new(PATIENCE), Instant::now());
    for port in [80, 81] {
        claim(&mut shares, port, 1, start, "any");
    }
    shares.release(1, start);
    assert_eq!(shares.deadline(Some(2)), Some(start + PATIENCE));
    let late = start + 30 * SECOND;
    assert_eq!(shares.close_abandoned(Some(2), late), []);
    claim(&mut shares, 80, 2, late, "never");
    assert_eq!(shares.close_abandoned(Some(2), late), [], "it may bind more than one");
    assert_eq!(shares.close_abandoned(Some(2), late + SETTLED), [key(81)]);
}

#[test]
fn patience_follows_the_plan_in_force() {
    let (mut shares, start) = (Shares::new(SECOND), Instant::now());
    claim(&mut shares, 80, 1, start, "any");
    shares.release(1, start);
    shares.set_patience(PATIENCE);
    assert_eq!(shares.deadline(Some(2)), Some(start + PATIENCE));
}

#[test]
fn what_is_offered_waits_to_be_claimed() {
    let (mut shares, start) = (Shares::new(PATIENCE), Instant::now());
    assert!(shares.offer(key(80), "offered".to_owned(), start) && shares.offer(key(81), "other".to_owned(), start));
    assert!(!shares.offer(key(80), "twice".to_owned(), start));
    assert_eq!(claim(&mut shares, 80, 2, start, "never"), "offered");
    assert_eq!(shares.close_abandoned(Some(2), start + SETTLED), [key(81)]);
}

#[test]
fn there_is_a_limit() {
    let (mut shares, now) = (Shares::new(PATIENCE), Instant::now());
    for port in 1..=MAX_LISTENERS as u16 {
        claim(&mut shares, port, 1, now, "any");
    }
    assert_eq!(shares.hold(&key(9999), "any".to_owned(), 1, now), None);
    assert_eq!(claim(&mut shares, 7, 1, now, "never"), "any");
    shares.close();
    assert!(shares.hold(&key(9999), "any".to_owned(), 1, now).is_some());
}
