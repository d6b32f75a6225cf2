//! Sockets that whoever started panzer has opened for it, such as systemd: `LISTEN_FDS` and its kin, as
//! sd_listen_fds(3) has them.

use super::role::Environment;
use crate::config::MOST_LISTENERS;
use crate::sys::pidfd;

/// The names of the sockets that lie from descriptor 3 on, none where a socket has no name. Empty where none are meant
/// for this process. The error is a line for people.
pub fn passed(environment: &Environment) -> Result<Vec<Option<String>>, String> {
    let Some(count) = environment.of_manager("LISTEN_FDS").filter(|_| is_for_us(environment)) else {
        return Ok(Vec::new());
    };
    let count = count.parse().ok().filter(|&count| count <= MOST_LISTENERS).ok_or_else(|| {
        format!("LISTEN_FDS={count} is no number from 0 to {MOST_LISTENERS}; unset it if panzer is passed no sockets")
    })?;
    let names = environment.of_manager("LISTEN_FDNAMES").unwrap_or_default();
    // What a socket without a name is called there.
    let names = names.split(':').map(|name| Some(name.to_owned()).filter(|name| !["", "unknown"].contains(&&**name)));
    Ok(names.chain(std::iter::repeat(None)).take(count).collect())
}

/// Variables that another process was meant to have are often inherited by its children.
fn is_for_us(environment: &Environment) -> bool {
    let is = |name, own: u64| environment.of_manager(name).is_none_or(|value| value.parse() == Ok(own));
    is("LISTEN_PID", std::process::id().into()) && pidfd::own_id().is_none_or(|id| is("LISTEN_PIDFDID", id))
}
