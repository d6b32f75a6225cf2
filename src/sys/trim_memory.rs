//! Gives memory back while a process sleeps.
//!
//! A process that waits for years would otherwise keep nearly all of the binary and much of libc resident: an idle main and
//! its monitor take 1.2 MB (PSS) with this, and 2.9 MB without. Pages that are needed again come back from the page cache.

use std::io;
use std::ptr;
use std::time::{Duration, Instant};

use nix::libc;
use rustix::param::page_size;

use super::poller::Poller;
use super::stack::free_spares;

/// A burst of work is over if nothing happens for this long.
const LULL: Duration = Duration::from_millis(100);

/// The same after text that was given back was needed again within this time: in a rush of deaths, each respawn would else
/// wait for some thirty pages.
const LULL_IN_A_RUSH: Duration = Duration::from_secs(5);

/// Pages of the stack that are kept below the frame that gives the others back.
const STACK_PAGES_KEPT: usize = 4;
/// The kernel maps nothing nearer to the stack than this.
const STACK_BYTES_RELEASED: usize = 512 << 10;

/// Sleeps, and trims memory meanwhile.
#[derive(Debug)]
pub struct Sleeper {
    lull: Duration,
    /// Whether what the start took was given back.
    is_trimmed: bool,
}

impl Default for Sleeper {
    fn default() -> Sleeper {
        Sleeper { lull: LULL, is_trimmed: false }
    }
}

impl Sleeper {
    /// Sleeps like [`Poller::wait`], and trims memory in the first lull after a burst of work: a single message maps 1 MB of
    /// text again. After that it goes on sleeping at once, as another turn of the caller's loop would do the same.
    pub fn wait(&mut self, poller: &Poller, deadline: Option<Instant>) -> io::Result<Vec<u64>> {
        if deadline.is_some() {
            return poller.wait(deadline);
        }
        let ready = poller.wait(Some(Instant::now() + self.lull))?;
        if !ready.is_empty() {
            return Ok(ready);
        }
        if !std::mem::replace(&mut self.is_trimmed, true) {
            release_what_the_start_took();
        }
        free_spares();
        release_text();
        let trimmed = Instant::now();
        let ready = poller.wait(None)?;
        self.lull = if trimmed.elapsed() < LULL_IN_A_RUSH { LULL_IN_A_RUSH } else { LULL };
        Ok(ready)
    }
}

/// Gives back heap and stack that nothing is in: a start takes more than anything that comes later.
fn release_what_the_start_took() {
    release_heap();
    let here = [0u8; 1];
    let end = (here.as_ptr() as usize / page_size() - STACK_PAGES_KEPT) * page_size();
    // SAFETY: the pages lie below all frames, and below those of the call itself. Nothing else is mapped this near.
    unsafe {
        libc::madvise((end - STACK_BYTES_RELEASED) as *mut libc::c_void, STACK_BYTES_RELEASED, libc::MADV_DONTNEED)
    };
}

/// Gives back pages of the heap in which no allocation lies.
pub fn release_heap() {
    // SAFETY: no allocation lies in what is given back.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

fn release_text() {
    // SAFETY: the callback keeps to the contract of dl_iterate_phdr(3) and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(release_pages_of), ptr::null_mut()) };
}

/// Unmaps the segments of one loaded object that come from its file and are never written: text and constants.
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
    for header in headers {
        // A segment that can be written to may have been: unmapping it would undo that.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (info.dlpi_addr as usize + header.p_vaddr as usize).next_multiple_of(page_size());
        let end =
            (info.dlpi_addr as usize + header.p_vaddr as usize + header.p_filesz as usize) / page_size() * page_size();
        if start < end {
            // SAFETY: whole pages that are mapped from a file and never written: they come back from it, unchanged.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
    0
}
