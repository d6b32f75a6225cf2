//! What main knows, as one main hands it on to the next: a document with a version. Descriptors go by their numbers, and
//! lie where they lay.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::control::environment::OWN_IMAGE;
use crate::control::monitor::messages;
use crate::main_process::decide::Generations;
use crate::main_process::processes::children;
use crate::main_process::{configuration, listeners, operators, outside};
use crate::sys::descriptors::FIRST;

/// The version of this document; [`crate::carry`] says when it goes up.
const VERSION: u32 = 2;

/// The oldest version that this build still reads.
const OLDEST: u32 = 2;

/// The build that this is.
pub(crate) fn build() -> &'static str {
    // As text in the binary, where strings(1) finds it and a test makes another build of this one: so short a one may
    // otherwise become a part of some instruction.
    std::hint::black_box(env!("CARGO_PKG_VERSION"))
}

/// The file that a build was executed from, to tell two builds of one version apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BuildFile {
    device: u64,
    inode: u64,
    size: u64,
    /// When it was last written to, in seconds since 1970.
    written: i64,
}

impl BuildFile {
    /// That of this process, also where another one lies at its path by now.
    pub(crate) fn own() -> Option<BuildFile> {
        let file = fs::metadata(OWN_IMAGE).ok()?;
        Some(BuildFile { device: file.dev(), inode: file.ino(), size: file.size(), written: file.mtime() })
    }

    /// What it is, to those who knew `before`.
    pub(crate) fn against(self, before: BuildFile) -> String {
        let written = u64::try_from(self.written).ok().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        match written {
            _ if self == before => "the same file".to_owned(),
            Some(time) => format!("another file, of {}", humantime::format_rfc3339_seconds(time)),
            None => "another file".to_owned(),
        }
    }
}

/// Everything that is not made anew, each room's by itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Carried {
    pub(crate) version: u32,
    /// The build that wrote it.
    pub(crate) build: String,
    /// The file of that build.
    pub(crate) file: Option<BuildFile>,
    /// Number of messages that stderr did not take, and that nobody was told of.
    pub(crate) lost_messages: u64,
    pub(crate) children: children::Carried,
    pub(crate) listeners: listeners::Carried,
    pub(crate) configuration: configuration::Carried,
    pub(crate) operators: operators::Carried,
    pub(crate) outside: outside::Carried,
    pub(crate) state: Generations,
}

/// Writes the version and the build that every document begins with.
pub(crate) fn head() -> (u32, String) {
    (VERSION, build().to_owned())
}

/// What helps where two builds do not understand each other.
const ANEW: &str = "restart into a build that does, or stop panzer and start this one";

fn versions(oldest: u32, newest: u32) -> String {
    if oldest == newest { format!("version {newest}") } else { format!("versions {oldest} to {newest}") }
}

/// Reads a document and checks it. The error is a line.
pub(crate) fn read(bytes: &[u8]) -> Result<Carried, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
        build: String,
    }
    let versioned: Versioned =
        serde_json::from_slice(bytes).map_err(|error| format!("the state is broken: {error}"))?;
    if !(OLDEST..=VERSION).contains(&versioned.version) {
        return Err(format!(
            "the state that panzer {} hands on has version {}, and panzer {} reads {}; {ANEW}",
            versioned.build,
            versioned.version,
            build(),
            versions(OLDEST, VERSION)
        ));
    }
    let unknown =
        |why: &str| format!("panzer {} cannot read what panzer {} knows: {why}; {ANEW}", build(), versioned.build);
    let carried: Carried = serde_json::from_slice(bytes).map_err(|error| {
        // What is expected instead is a list of all that there is.
        let error = error.to_string();
        unknown(error.split(", expected").next().unwrap_or_default())
    })?;
    if let Some(field) = unknown_in_plans(bytes, &carried) {
        return Err(unknown(&format!("unknown field `{field}` in a plan")));
    }
    if let Some((generation, version)) = carried.children.not_understood() {
        return Err(format!(
            "the monitor of generation {generation} speaks version {version} of the protocol, and panzer {} speaks {}; {ANEW}",
            build(),
            versions(messages::OLDEST, messages::VERSION)
        ));
    }
    carried.check_descriptors()?;
    Ok(carried)
}

/// A field of a plan that is not known here: as what is tuned is flattened into plans, serde cannot refuse it.
fn unknown_in_plans(bytes: &[u8], carried: &Carried) -> Option<String> {
    #[derive(Deserialize)]
    struct Document {
        configuration: Plans,
    }
    #[derive(Deserialize)]
    struct Plans {
        plan: Map<String, Value>,
        plans: BTreeMap<u32, Map<String, Value>>,
    }
    let Document { configuration: Plans { plan, plans } } = serde_json::from_slice(bytes).ok()?;
    let carried = &carried.configuration;
    let written = std::iter::once(plan).chain(plans.into_values());
    let read = std::iter::once(&carried.plan).chain(carried.plans.values());
    written.zip(read).find_map(|(written, read)| {
        let known = serde_json::to_value(read).ok()?;
        written.into_iter().map(|(field, _)| field).find(|field| known.get(field).is_none())
    })
}

impl Carried {
    /// Each is taken over once, and none is stdin, stdout or stderr.
    fn check_descriptors(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        let wrong = self.descriptors().into_iter().find(|&number| number < FIRST || !seen.insert(number));
        match wrong {
            Some(number) => {
                Err(format!("the state is broken: descriptor {number} cannot be handed on twice, or at all"))
            }
            None => Ok(()),
        }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let rooms = self.listeners.descriptors().chain(self.configuration.descriptors());
        let people = self.operators.descriptors().chain([self.outside.descriptor()]);
        rooms.chain(self.children.descriptors()).chain(people).collect()
    }
}
