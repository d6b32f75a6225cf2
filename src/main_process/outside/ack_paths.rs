//! The paths at which monitors bind the socket for einhorn's acknowledgement: one for each generation, beside the pid
//! file. The lock of the pid file keeps other instances away.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Dialect, Plan};
use crate::sys::errno::words;

/// Limit of the path of a unix socket, without the closing NUL (unix(7)).
const MAX_PATH_BYTES: usize = 107;

const SUFFIX: &str = ".sock";

/// The paths of this instance; none if it does not speak einhorn.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AckPaths(#[serde(with = "crate::config::text::path")] Option<PathBuf>);

impl AckPaths {
    /// Removes the sockets that a killed instance has left. Fails if a path is longer than the kernel allows.
    pub(crate) fn begin(plan: &Plan, pid_path: &Path) -> Result<AckPaths, String> {
        if !plan.handover.speaks(Dialect::Einhorn) {
            return Ok(AckPaths(None));
        }
        let absolute = std::path::absolute(pid_path)
            .map_err(|error| format!("cannot use {}: {}", pid_path.display(), words(&error)))?;
        if absolute.to_str().is_none() {
            return Err(format!(
                "--also-speak einhorn names a socket beside the pid file to workers, and {} is not UTF-8; give another \
                 --pid or RUNTIME_DIRECTORY",
                absolute.display()
            ));
        }
        let mut stem = absolute.into_os_string();
        stem.push(".einhorn-");
        let paths = AckPaths(Some(stem.into()));
        let longest = paths.of(u32::MAX).filter(|path| path.as_os_str().as_bytes().len() > MAX_PATH_BYTES);
        if let Some(path) = longest {
            return Err(format!(
                "--also-speak einhorn needs a socket beside the pid file, and {} is longer than the {MAX_PATH_BYTES} bytes \
                 that the kernel takes; give a shorter --pid or --name",
                path.display()
            ));
        }
        paths.remove_all();
        Ok(paths)
    }

    /// The path for a generation.
    pub(crate) fn of(&self, generation: u32) -> Option<PathBuf> {
        let mut path = self.0.clone()?.into_os_string();
        path.push(format!("{generation}{SUFFIX}"));
        Some(path.into())
    }

    /// Removes the socket that a killed monitor of this generation may have left.
    pub(crate) fn remove(&self, generation: u32) {
        self.of(generation).iter().for_each(|path| remove_socket(path));
    }

    /// Removes all sockets of this instance.
    pub(crate) fn remove_all(&self) {
        let Some((directory, stem)) = self.0.as_ref().and_then(|stem| Some((stem.parent()?, stem.file_name()?))) else {
            return;
        };
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.as_bytes().strip_prefix(stem.as_bytes());
            let number = number.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
            if number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit)) {
                remove_socket(&entry.path());
            }
        }
    }
}

fn remove_socket(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        // If another process was faster, the file is gone as wanted.
        let _ = fs::remove_file(path);
    }
}
