//! Memory that is not needed while a process sleeps.

use std::ptr;

use nix::libc;

/// Lets go of the program text that is mapped now: most of it was for what is over, as the start, and what is needed
/// again is mapped again, from the page cache, when it is. To be called when there is nothing to do.
///
/// A process that waits for years would otherwise keep nearly all of the binary and much of libc resident.
pub(super) fn release_text() {
    // SAFETY: the callback keeps to the contract of dl_iterate_phdr(3) and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(release_text_of), ptr::null_mut()) };
}

/// Lets go of the text segments of one loaded object.
unsafe extern "C" fn release_text_of(
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
    // SAFETY: sysconf only answers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize;
    for header in headers {
        let is_text = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0;
        // What can be written to may have been, and letting go of it would undo that.
        if !is_text || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (info.dlpi_addr as usize + header.p_vaddr as usize).next_multiple_of(page);
        let end = (info.dlpi_addr as usize + header.p_vaddr as usize + header.p_filesz as usize) / page * page;
        if start < end {
            // SAFETY: whole pages of text, mapped from a file and never written: they come back from it, unchanged.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
    0
}
