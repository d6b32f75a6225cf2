//! How main writes down what it knows for the main that takes its place, if serde's own forms are not enough.
//!
//! Main's structs are written as they are: a field that the next main makes anew is skipped. Both mains are the same
//! process with the same clock, one after the other. They may be different builds, and either may be the newer one,
//! because people go back.
//!
//! - A field that is added later has `#[serde(default)]`, so that the state of an older build can be read. It has
//!   `skip_serializing_if` for the value that an older build assumes, so that an older build can take over again.
//! - An unknown field is refused (`deny_unknown_fields`; `main_process::restart::document` does it for plans, which have
//!   flattened fields). The field is in use, and an older build would go on as if it were not.
//! - If neither is enough, the version of the document goes up. Each build says which versions it reads.
//! - Monitors stay the build that started them. The document has the version of the messages that each one speaks, and a
//!   build that does not speak it refuses.
//!
//! A pre-flight checks all this before main is touched. The refusal names both builds and says what helps.

pub mod bytes;
pub mod descriptor;
pub mod moment;
pub mod numbered;
pub mod pairs;
pub mod pid;
