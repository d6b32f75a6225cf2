//! The stack of a child that shares its parent's memory until its exec or its end.

use std::cell::RefCell;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::libc::{self, c_int, c_void};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use nix::unistd::Pid;

/// Only pages that the child touches take memory: two or three.
const BYTES: usize = 64 << 10;
/// The largest page of any machine, so that a stack that overflows hits nothing else.
const GUARD_BYTES: usize = 64 << 10;

/// Stacks that are kept for the next children, at most. To map and to unmap one stops every processor that runs a child.
const SPARE: usize = 16;

thread_local! {
    static SPARES: RefCell<Vec<NonNull<c_void>>> = const { RefCell::new(Vec::new()) };
}

/// Frees the stacks that are kept.
pub fn free_spares() {
    SPARES.take().into_iter().for_each(free);
}

fn free(stack: NonNull<c_void>) {
    // SAFETY: the whole mapping that we made, and nobody uses it any more. It cannot be refused.
    let _ = unsafe { munmap(stack, GUARD_BYTES + BYTES) };
}

/// A stack, which must live until its child has executed a program or has ended.
#[derive(Debug)]
pub struct Stack(NonNull<c_void>);

impl Stack {
    /// A new one.
    pub fn new() -> io::Result<Stack> {
        if let Some(spare) = SPARES.with_borrow_mut(Vec::pop) {
            return Ok(Stack(spare));
        }
        let length = NonZeroUsize::new(GUARD_BYTES + BYTES).unwrap_or(NonZeroUsize::MIN);
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping, which overlaps no other.
        let stack = Stack(unsafe { mmap_anonymous(None, length, access, flags | MapFlags::MAP_STACK)? });
        // SAFETY: the lower end of that mapping, which nobody uses yet.
        unsafe { mprotect(stack.0, GUARD_BYTES, ProtFlags::PROT_NONE)? };
        Ok(stack)
    }

    /// Starts a child that calls `main` with `argument` on this stack. It shares our memory until it executes a program or
    /// ends, and we do not wait for that.
    ///
    /// # Safety
    ///
    /// `main` must never return, must neither allocate, take a lock nor panic, and must leave errno alone. Until the child
    /// has executed a program or has ended, this stack must live, and so must everything that `main` reads. No signal that
    /// has a handler of ours may reach the child.
    pub unsafe fn start(&self, main: extern "C" fn(*mut c_void) -> c_int, argument: *mut c_void) -> nix::Result<Pid> {
        // SAFETY: the caller vouches for it.
        unsafe { self.clone(main, libc::CLONE_VM, argument) }
    }

    /// Starts a child that calls `main` on a stack of its own, exits with the code that it returns, and shares our memory until
    /// then. We stand still meanwhile, so that `main` may do what it likes to memory.
    pub fn run(main: extern "C" fn(*mut c_void) -> c_int) -> io::Result<Pid> {
        let stack = Stack::new()?;
        // SAFETY: panzer has one thread in each of its roles, which goes on when the child has ended.
        Ok(unsafe { stack.clone(main, libc::CLONE_VM | libc::CLONE_VFORK, std::ptr::null_mut())? })
    }

    unsafe fn clone(
        &self,
        main: extern "C" fn(*mut c_void) -> c_int,
        flags: c_int,
        argument: *mut c_void,
    ) -> nix::Result<Pid> {
        // SAFETY: its end is within the mapping, or right behind it.
        let top = unsafe { self.0.byte_add(GUARD_BYTES + BYTES) };
        // SAFETY: the stack is not in use, and the caller vouches for the rest.
        let pid = unsafe { libc::clone(main, top.as_ptr(), flags | libc::SIGCHLD, argument) };
        nix::errno::Errno::result(pid).map(Pid::from_raw)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // At the end of this process there may be no list any more.
        let is_kept = SPARES.try_with(|spares| {
            let mut spares = spares.borrow_mut();
            let is_kept = spares.len() < SPARE;
            spares.extend(is_kept.then_some(self.0));
            is_kept
        });
        if is_kept != Ok(true) {
            free(self.0);
        }
    }
}
