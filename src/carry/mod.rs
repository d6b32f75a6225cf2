//! How what main knows is written down for the main that takes its place, where serde's own forms do not do.
//!
//! Both are the same process on the same clock, one after the other. They may be different builds, and either the newer
//! one: people go back.
//!
//! - A field that is added later has `#[serde(default)]`, so that the state of an older build can be read, and
//!   `skip_serializing_if` for as long as it says what an older build does anyway: then that can take over again.
//! - A field that is not known is refused (`deny_unknown_fields`; of plans, which have some flattened, by
//!   `main_process::restart::document`): what it says is in use, and an older build would go on as if it were not.
//! - Where neither does, the document's version goes up, and a build says which versions it reads.
//! - Monitors go on as the build that started them. Which version of the messages each speaks is written down, and a build
//!   that does not speak it refuses.
//!
//! All of that is found out by a pre-flight, before main is touched: the refusal names both builds and what helps.

pub mod bytes;
pub mod moment;
pub mod pairs;
