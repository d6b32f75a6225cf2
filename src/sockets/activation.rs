//! Sockets that were opened before panzer was started, for example by systemd: `LISTEN_FDS` and the other variables of
//! sd_listen_fds(3).

use crate::config::MAX_LISTENERS;
use crate::sys::pidfd;

/// The names of the sockets that were passed from descriptor 3 on, None for a socket without a name. Empty if no socket
/// is meant for this process. `variable` looks a variable up. The error is a line for people.
pub fn passed<'a>(variable: impl Fn(&str) -> Option<&'a str>) -> Result<Vec<Option<String>>, String> {
    let Some(count) = variable("LISTEN_FDS").filter(|_| is_for_us(&variable)) else {
        return Ok(Vec::new());
    };
    let count = count.parse().ok().filter(|&count| count <= MAX_LISTENERS).ok_or_else(|| {
        format!("LISTEN_FDS={count} is not a number from 0 to {MAX_LISTENERS}; unset it if panzer is passed no sockets")
    })?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    // systemd calls a socket without a name "unknown".
    let names = names.split(':').map(|name| Some(name.to_owned()).filter(|name| !["", "unknown"].contains(&&**name)));
    Ok(names.chain(std::iter::repeat(None)).take(count).collect())
}

/// Children often inherit variables that were meant for their parent.
fn is_for_us<'a>(variable: impl Fn(&str) -> Option<&'a str>) -> bool {
    let is = |name, own: u64| variable(name).is_none_or(|value| value.parse() == Ok(own));
    is("LISTEN_PID", std::process::id().into()) && pidfd::own_id().is_none_or(|id| is("LISTEN_PIDFDID", id))
}
