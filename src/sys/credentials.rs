//! Who a process is and what it may do: each a bare system call, so that a forked child may make it. (The C library's
//! own versions take locks and call every thread.)

use nix::errno::Errno;

/// The version of the structures of `capset` that have 64 capabilities.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

fn done(result: libc::c_long) -> Result<(), Errno> {
    Errno::result(result).map(drop)
}

/// Sets what is taken away from the mode of new files.
pub fn set_umask(mask: u32) {
    // SAFETY: a plain system call on numbers, which cannot fail.
    unsafe { libc::umask(mask) };
}

/// Sets our nice value. To lower it takes CAP_SYS_NICE.
pub fn set_nice(nice: i32) -> Result<(), Errno> {
    // SAFETY: a plain system call on numbers.
    done(unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice) })
}

/// Replaces our supplementary groups.
pub fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads exactly as many numbers as the slice has.
    done(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

/// Sets our real, effective and saved group, and with them the one for files.
pub fn set_group(group: u32) -> Result<(), Errno> {
    // SAFETY: a plain system call on numbers.
    done(unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) })
}

/// Sets our real, effective and saved user, and with them the one for files.
pub fn set_user(user: u32) -> Result<(), Errno> {
    // SAFETY: a plain system call on numbers.
    done(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) })
}

/// Gives up every capability: permitted, effective, inheritable and, with them, ambient.
pub fn drop_capabilities() -> Result<(), Errno> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: a plain system call on numbers.
    done(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_KEEPCAPS, 0, 0, 0, 0) })?;
    // SAFETY: as above.
    done(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    // SAFETY: this version of the call reads the header and twice three 32-bit sets, which is what is there.
    done(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) })
}

/// Tries to become root again, user or group. True where that is possible, which then has happened.
pub fn can_become_root(group_as_well: bool) -> bool {
    // SAFETY: plain system calls on numbers.
    let (user, group) = unsafe {
        (libc::syscall(libc::SYS_setuid, 0), if group_as_well { libc::syscall(libc::SYS_setgid, 0) } else { -1 })
    };
    user == 0 || group == 0
}
