//! What main and monitor hold once they are idle.

use std::collections::BTreeMap;

use super::panzer::Panzer;
use super::program::Program;
use super::smaps::{Held, by_kind, whole};
use super::stamps::Stamps;
use super::table::Table;
use super::{Measured, SETTLED};

/// What main and monitor hold together.
struct Footprint {
    whole: Held,
    kinds: BTreeMap<&'static str, Held>,
}

/// With few workers, with many, and with few that are linked to the C library, as most are.
pub(crate) fn measure(program: &Program, table: &mut Table) -> Measured<()> {
    let few = footprint(8, program.command())?;
    table.bytes("memory (PSS) with 8 workers", few.whole.pss, 1_300_000);
    explain(&few, table);
    let many = footprint(100, program.command())?;
    let more = many.whole.pss.saturating_sub(few.whole.pss);
    table.bytes("  with 100 workers, more by", more, 500_000);
    explain(&many, table);
    let sleepers = footprint(8, &["sleep".to_owned(), "1000".to_owned()])?;
    table.note(&format!("with 8 of sleep(1), which share libc with it: {}", shown(sleepers.whole)));
    Ok(())
}

fn footprint(workers: u32, command: &[String]) -> Measured<Footprint> {
    let (_stamps, stdout) = Stamps::pipe()?;
    let panzer = Panzer::start(&["--workers", &workers.to_string()], command, stdout)?;
    panzer.wait_for("serves")?;
    panzer.stay_silent(SETTLED)?;
    let mut footprint = Footprint { whole: Held::default(), kinds: BTreeMap::new() };
    for pid in panzer.processes()? {
        footprint.whole += whole(pid)?;
        for (kind, held) in by_kind(pid)? {
            *footprint.kinds.entry(kind).or_default() += held;
        }
    }
    Ok(footprint)
}

fn explain(footprint: &Footprint, table: &mut Table) {
    table.note(&format!("PSS of main and monitor (private dirty): {}", shown(footprint.whole)));
    let kinds: Vec<String> = footprint.kinds.iter().map(|(kind, held)| format!("{kind} {}", shown(*held))).collect();
    for few in kinds.chunks(3) {
        table.note(&format!("  {}", few.join(", ")));
    }
}

fn shown(held: Held) -> String {
    format!("{} kB ({})", held.pss / 1000, held.private_dirty / 1000)
}
