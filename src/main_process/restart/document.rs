//! The document that one main writes for the next: everything that it knows, with a version. Descriptors go by their
//! numbers, because they stay open.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::carry::descriptor::{self, Read, Written};
use crate::control::environment::OWN_IMAGE;
use crate::control::monitor::messages;
use crate::main_process::configuration::Configuration;
use crate::main_process::decide::Generations;
use crate::main_process::listeners::Listeners;
use crate::main_process::main::Main;
use crate::main_process::operators::Operators;
use crate::main_process::outside::Outside;
use crate::main_process::processes::children::Children;
use crate::main_process::processes::logger::Logger;
use crate::sys::stderr;

/// The version of this document. [`crate::carry`] says when it goes up.
const VERSION: u32 = 2;

/// The oldest version that this build can read.
const OLDEST: u32 = 2;

/// The version of this build.
pub(crate) fn build() -> &'static str {
    // Kept as text in the binary, where strings(1) finds it and a test can change it. The compiler might otherwise make
    // so short a text part of an instruction.
    std::hint::black_box(env!("CARGO_PKG_VERSION"))
}

/// The file that a build was executed from. It tells two builds of one version apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BuildFile {
    device: u64,
    inode: u64,
    size: u64,
    /// When it was last written, in seconds since 1970.
    written: i64,
}

impl BuildFile {
    /// The file of this process, even if another file is at its path by now.
    pub(crate) fn own() -> Option<BuildFile> {
        let file = fs::metadata(OWN_IMAGE).ok()?;
        Some(BuildFile { device: file.dev(), inode: file.ino(), size: file.size(), written: file.mtime() })
    }

    /// Describes it to a user who knew `before`.
    pub(crate) fn against(self, before: BuildFile) -> String {
        let written = u64::try_from(self.written).ok().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        match written {
            _ if self == before => "the same file".to_owned(),
            Some(time) => format!("another file, of {}", humantime::format_rfc3339_seconds(time)),
            None => "another file".to_owned(),
        }
    }
}

/// The document as the next main reads it. [`write`] has the same fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    #[serde(rename = "version")]
    _version: u32,
    /// The build that wrote it.
    pub(crate) build: String,
    /// The file of that build.
    pub(crate) file: Option<BuildFile>,
    /// Number of messages that stderr did not take and that are not reported yet.
    pub(crate) lost_messages: u64,
    pub(crate) children: Children,
    #[serde(default)]
    pub(crate) logger: Logger,
    pub(crate) listeners: Listeners,
    pub(crate) configuration: Configuration,
    pub(crate) operators: Operators,
    pub(crate) outside: Outside,
    pub(crate) state: Generations,
}

/// Writes what the next main needs to know.
pub(crate) fn write(main: &Main, descriptors: Written) -> io::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Document<'a> {
        version: u32,
        build: &'a str,
        file: Option<BuildFile>,
        lost_messages: u64,
        #[serde(flatten)]
        main: &'a Main,
    }
    let (file, lost_messages) = (BuildFile::own(), stderr::lost());
    let document = Document { version: VERSION, build: build(), file, lost_messages, main };
    Ok(descriptor::write(&document, descriptors)?)
}

/// The remedy if two builds do not understand each other.
const ANEW: &str = "restart into a build that does, or stop panzer and start this one";

fn versions(oldest: u32, newest: u32) -> String {
    if oldest == newest { format!("version {newest}") } else { format!("versions {oldest} to {newest}") }
}

/// Reads a document and checks it. The error is a line.
pub(crate) fn read(bytes: &[u8], descriptors: Read) -> Result<Document, String> {
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
    let document: Document = descriptor::read(bytes, descriptors).map_err(|error| {
        // Cut serde's "expected one of …", which lists every variant.
        let error = error.to_string();
        unknown(error.split(", expected").next().unwrap_or_default())
    })?;
    if let Some(field) = unknown_in_plans(bytes, &document.configuration) {
        return Err(unknown(&format!("unknown field `{field}` in a plan")));
    }
    if let Some((generation, version)) = document.children.not_understood() {
        return Err(format!(
            "the monitor of generation {generation} speaks version {version} of the protocol, and panzer {} speaks {}; {ANEW}",
            build(),
            versions(messages::OLDEST, messages::VERSION)
        ));
    }
    Ok(document)
}

/// An unknown field of a plan. Serde cannot refuse it, because the tuning is flattened into the plan.
fn unknown_in_plans(bytes: &[u8], known: &Configuration) -> Option<String> {
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
    let written = std::iter::once(plan).chain(plans.into_values());
    let read = std::iter::once(&known.plan).chain(known.plans.values());
    written.zip(read).find_map(|(written, read)| {
        let known = serde_json::to_value(read).ok()?;
        written.into_iter().map(|(field, _)| field).find(|field| known.get(field).is_none())
    })
}
