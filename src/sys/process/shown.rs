//! The command line and the environment that /proc shows of this process, which has not executed anything to get them.

use std::ffi::CString;

use nix::errno::Errno;
use nix::libc;

use super::processes::Stat;

/// The kernel's `struct prctl_mm_map`: where everything lies in the memory of a process.
#[repr(C)]
struct Map {
    /// Code, data, heap and stack, each from and to: numbers 26, 27, 45, 46 and 47 of proc_pid_stat(5), brk, and number 28.
    rest: [u64; 7],
    arguments: [u64; 2],
    environment: [u64; 2],
    /// Stays as it is.
    auxiliary: *const u64,
    auxiliary_bytes: u32,
    /// None.
    executable: i32,
}

/// Shows these from now on. Takes no privilege, but a kernel that has it (CONFIG_CHECKPOINT_RESTORE).
pub fn set(arguments: &[CString], environment: &[CString]) -> nix::Result<()> {
    let stat = Stat::read(rustix::fs::CWD, "/proc/self/stat").ok_or(Errno::ENOENT)?;
    let field = |number| stat.field::<u64>(number).ok_or(Errno::ENOTSUP);
    let (arguments, environment) = (kept(arguments), kept(environment));
    let fields = [field(26)?, field(27)?, field(45)?, field(46)?, field(47)?];
    // SAFETY: asks for the end of the heap, and changes nothing.
    let end_of_heap = unsafe { libc::sbrk(0) } as u64;
    let [code, code_end, data, data_end, heap] = fields;
    let map = Map {
        rest: [code, code_end, data, data_end, heap, end_of_heap, field(28)?],
        arguments,
        environment,
        auxiliary: std::ptr::null(),
        auxiliary_bytes: 0,
        executable: -1,
    };
    // SAFETY: the kernel reads the map, and checks all of it. The memory that it names is never freed.
    let set = unsafe {
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size_of::<Map>(), 0 as libc::c_ulong)
    };
    Errno::result(set).map(drop)
}

/// These strings one behind the other, for good: from where to where.
fn kept(strings: &[CString]) -> [u64; 2] {
    let bytes = strings.iter().flat_map(|string| string.as_bytes_with_nul()).copied().collect::<Vec<u8>>().leak();
    let range = bytes.as_ptr_range();
    [range.start as u64, range.end as u64]
}
