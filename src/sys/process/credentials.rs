//! Who this process is and what it may do. Each change is a bare system call of this thread, so that a forked child may make
//! it. (The C library's own versions take locks and call every thread.)

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use rustix::process::setpriority_process;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set, set_capabilities, set_keep_capabilities,
    set_thread_gid, set_thread_res_gid, set_thread_res_uid, set_thread_uid,
};

fn done(result: rustix::io::Result<()>) -> Result<(), Errno> {
    result.map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// Sets the file mode creation mask.
pub fn set_umask(mask: u32) {
    umask(Mode::from_bits_truncate(mask));
}

/// Sets our nice value. Lowering it takes CAP_SYS_NICE.
pub fn set_nice(nice: i32) -> Result<(), Errno> {
    done(setpriority_process(None, nice))
}

/// Replaces our supplementary groups. (For rustix they would have to be copied into a list of its own type.)
pub fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads exactly as many numbers as the slice has.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Sets our real, effective and saved group, and the one for files with them.
pub fn set_group(group: u32) -> Result<(), Errno> {
    let group = Gid::from_raw(group);
    done(set_thread_res_gid(group, group, group))
}

/// Sets our real, effective and saved user, and the one for files with them.
pub fn set_user(user: u32) -> Result<(), Errno> {
    let user = Uid::from_raw(user);
    done(set_thread_res_uid(user, user, user))
}

/// Gives up every capability: permitted, effective, inheritable and ambient.
pub fn drop_capabilities() -> Result<(), Errno> {
    let none = CapabilitySet::empty();
    done(set_keep_capabilities(false))?;
    done(clear_ambient_capability_set())?;
    done(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }))
}

/// Tries to become root again, user or group. If it returns true, this process has become root.
pub fn can_become_root(group_as_well: bool) -> bool {
    let user = set_thread_uid(Uid::ROOT).is_ok();
    (group_as_well && set_thread_gid(Gid::ROOT).is_ok()) || user
}
