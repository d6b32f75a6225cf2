//! System calls that leave errno alone: for a child that shares its parent's memory until its exec. The C library's own
//! calls write errno when they fail, and there it is the parent's.

use nix::errno::Errno;

/// Whether [`call`] leaves errno alone on this machine.
pub const KEEP_ERRNO: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// Makes a system call of up to five arguments. Allocates nothing and takes no lock.
///
/// # Safety
///
/// As the call itself: each pointer among the arguments must be valid for what the kernel reads or writes there.
pub unsafe fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Result<usize, Errno> {
    const { assert!(N <= 5) };
    let mut all = [0; 5];
    all[..N].copy_from_slice(&arguments);
    // SAFETY: the caller vouches for the arguments.
    let result = unsafe { enter(number, all) };
    if result < 0 { Err(Errno::from_raw(-result as i32)) } else { Ok(result as usize) }
}

#[cfg(target_arch = "x86_64")]
unsafe fn enter(number: libc::c_long, [a, b, c, d, e]: [usize; 5]) -> isize {
    let result;
    // SAFETY: the kernel's calling convention; it changes the registers named here and no other.
    unsafe {
        std::arch::asm!(
            "syscall", inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
unsafe fn enter(number: libc::c_long, [a, b, c, d, e]: [usize; 5]) -> isize {
    let result;
    // SAFETY: the kernel's calling convention; it changes the register named here and no other.
    unsafe {
        std::arch::asm!(
            "svc 0", in("x8") number, inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, options(nostack)
        );
    }
    result
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn enter(number: libc::c_long, [a, b, c, d, e]: [usize; 5]) -> isize {
    // SAFETY: the caller vouches for the arguments.
    match unsafe { libc::syscall(number, a, b, c, d, e) } {
        -1 => -(Errno::last_raw() as isize),
        result => result as isize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_returns_its_errno_and_leaves_that_of_the_c_library() {
        Errno::set_raw(libc::EXDEV);
        // SAFETY: neither call gets a pointer.
        let (pid, refused) = unsafe { (call(libc::SYS_getpid, []), call(libc::SYS_close, [usize::MAX])) };
        assert_eq!(pid, Ok(std::process::id() as usize));
        assert_eq!(refused, Err(Errno::EBADF));
        assert!(!KEEP_ERRNO || Errno::last_raw() == libc::EXDEV);
    }
}
