//! Memory that is needed for work and not for sleeping.

use std::ptr;

use nix::libc;

/// As deep as the stack is taken to have been, in bytes. Below a stack the kernel keeps at least as much free.
const DEEPEST_STACK: usize = 512 << 10;

/// What is kept of the stack beyond what is in use, in bytes: this call's own, and what the next one needs at once.
const STACK_KEPT: usize = 8 << 10;

/// Lets go of the program's text and constants that are mapped now, and of what lies below the stack: what is needed
/// again is mapped again, from the page cache, when it is. To be called when there is nothing to do for a while.
///
/// A process that waits for years would otherwise keep nearly all of the binary and much of libc resident.
pub(super) fn release_unused() {
    // SAFETY: the callback keeps to the contract of dl_iterate_phdr(3) and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(release_pages_of), ptr::null_mut()) };
    release_stack();
    // What many clients, or a crowd of workers, once needed.
    #[cfg(target_env = "gnu")]
    // SAFETY: it only gives free memory back to the kernel.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Panzer has one thread in each of its roles, whose stack this is.
fn release_stack() {
    let here = 0_u8;
    let end = (std::ptr::from_ref(&here) as usize).saturating_sub(STACK_KEPT) / page() * page();
    let start = end.saturating_sub(DEEPEST_STACK);
    // SAFETY: nothing lives below the stack pointer and its red zone, which are far above `end`. What is not mapped there
    // is skipped, and nobody else's can be there: the kernel maps nothing within its guard gap below a stack, of 1 MiB.
    unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
}

fn page() -> usize {
    // SAFETY: sysconf only answers.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize
}

/// Lets go of the segments of one loaded object that come from its file and are never written.
unsafe extern "C" fn release_pages_of(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader passes a valid structure, whose headers live as long as the object is loaded.
    let (info, headers) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        (info, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    let page = page();
    for header in headers {
        // What can be written to may have been, and letting go of it would undo that.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (info.dlpi_addr as usize + header.p_vaddr as usize).next_multiple_of(page);
        let end = (info.dlpi_addr as usize + header.p_vaddr as usize + header.p_filesz as usize) / page * page;
        if start < end {
            // SAFETY: whole pages that are mapped from a file and never written: they come back from it, unchanged.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
    0
}
