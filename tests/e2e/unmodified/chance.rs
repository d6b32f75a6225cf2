//! Whether a few losses more are more than chance.

/// Who loses no more than the other has as many losses as these, or more, less often than this.
const SELDOM: f64 = 0.01;

/// More than chance explains counts if it happens so often in a row.
const TRIES: u32 = 3;

/// Tries a server that loses few, alone and under panzer, whose numbers are largely chance: it may lose no more under panzer.
/// On a busy machine losses come in clumps, as when the server ends a process of its own that took too long, with all its
/// connections. What is lost by panzer is lost each time.
pub fn explains(mut alone_and_under_panzer: impl FnMut() -> (u64, u64)) {
    for tries in 1.. {
        let (alone, seen) = alone_and_under_panzer();
        if !hardly_explains(seen, alone) {
            return;
        }
        assert!(tries < TRIES, "{seen} lost, {alone} alone, which is more than chance, {tries} times in a row");
    }
}

/// Whether so many are hardly lost by chance, where over as many stops `alone` were.
///
/// If both lose alike, each of all the losses is of either as a coin falls: so it is asked how often so many heads, or
/// more, come of so many coins. One-sided, as nobody minds that fewer are lost.
fn hardly_explains(seen: u64, alone: u64) -> bool {
    let coins = seen + alone;
    let mut logarithm = -(coins as f64) * std::f64::consts::LN_2;
    let mut so_many_or_more = 0.0;
    for heads in 0..=coins {
        if heads >= seen {
            so_many_or_more += logarithm.exp();
        }
        logarithm += ((coins - heads) as f64).ln() - ((heads + 1) as f64).ln();
    }
    so_many_or_more < SELDOM
}

#[test]
fn a_few_more_are_chance_and_many_are_not() {
    for (seen, alone) in [(0, 0), (0, 9), (6, 0), (4, 1), (27, 22), (50, 40), (380, 376)] {
        assert!(!hardly_explains(seen, alone), "{seen} and {alone}");
    }
    for (seen, alone) in [(7, 0), (12, 2), (45, 22), (65, 2), (900, 700)] {
        assert!(hardly_explains(seen, alone), "{seen} and {alone}");
    }
}
