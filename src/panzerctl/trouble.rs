//! Why a command failed.

/// The reason in one line. Each variant has its own exit code.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Main refused the request or failed; or main is dead and left its pid file.
    Failed(String),
    /// The command line does not name one instance.
    Usage(String),
    /// The instance does not run.
    NotRunning(String),
    /// There is no valid answer.
    Unknown(String),
}

impl Trouble {
    /// The exit code and the reason.
    pub(super) fn into_parts(self) -> (u8, String) {
        match self {
            Trouble::Failed(why) => (1, why),
            Trouble::Usage(why) => (2, why),
            Trouble::NotRunning(why) => (3, why),
            Trouble::Unknown(why) => (4, why),
        }
    }
}
