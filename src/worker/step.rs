//! The steps by which a child becomes a worker, of which each may be refused.

/// The step of becoming a worker that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// The nice value.
    Nice = 1,
    /// The supplementary groups.
    Groups,
    /// The group.
    Group,
    /// The user.
    User,
    /// The capabilities.
    Capabilities,
    /// Root could be regained.
    Proof,
    /// A limit of a resource.
    Limit,
    /// How gladly the kernel ends it.
    OomScore,
    /// The CPUs.
    Cpus,
    /// The cgroup.
    Cgroup,
}

impl Step {
    /// The step of this number.
    pub fn from_number(number: i32) -> Option<Step> {
        let identity = [Step::Nice, Step::Groups, Step::Group, Step::User, Step::Capabilities, Step::Proof];
        identity
            .into_iter()
            .chain([Step::Limit, Step::OomScore, Step::Cpus, Step::Cgroup])
            .find(|step| *step as i32 == number)
    }
}
