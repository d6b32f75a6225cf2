//! The variables of `--env-file`, read by a monitor at its start.

use std::collections::BTreeMap;

use super::cause::Cause;
use crate::config::files::{env, yaml};
use crate::config::{EnvFile, Plan, Text};

/// Limit of all files together. The kernel passes on little more.
const MAX_TOTAL_BYTES: usize = 1 << 20;

/// The variables that the files of `plan` set now. If several set one variable, the last file counts. The error names
/// file, line and column, but no value.
pub fn read(plan: &Plan) -> Result<BTreeMap<Text, Text>, Cause> {
    let mut all = BTreeMap::new();
    for EnvFile { path, optional } in &plan.env_files {
        // Follows a symlink as it is now.
        let path = plan.start_directory.join(path);
        let shown = path.display();
        let wrong = |why: String| Cause::CannotStart(Cause::bounded(why));
        let bytes = match yaml::read_bytes(&path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) if *optional => continue,
            Ok(None) => return Err(wrong(format!("{shown}: there is no such file; create it, or correct --env-file"))),
            Err(why) => return Err(wrong(format!("{shown}: {why}; correct it, or --env-file"))),
        };
        let variables = env::parse(&bytes)
            .map_err(|found| wrong(format!("{shown}:{}:{}: {}", found.place.line, found.place.column, found.why)))?;
        all.extend(variables);
        let size: usize = all.iter().map(|(name, value)| name.0.len() + value.0.len()).sum();
        if size > MAX_TOTAL_BYTES {
            return Err(wrong(format!(
                "{shown}: with it, more than {} KiB of variables are set by files",
                MAX_TOTAL_BYTES / 1024
            )));
        }
    }
    Ok(all)
}
