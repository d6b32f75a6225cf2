//! The calls in which a thread waits for a connection, as in `/proc/PID/task/TID/syscall`, and the descriptors in them.

use std::os::fd::RawFd;

/// Limit of the array of a thread in poll that is read. Later entries are not seen.
const MAX_POLL_ENTRIES: usize = 16_384;

/// Limit of the set of a thread in select that is read.
const MAX_SELECT_BITS: usize = 65_536;

/// The size of a `struct pollfd`.
const POLLFD_BYTES: usize = size_of::<libc::pollfd>();

/// A call that may wait for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// accept, accept4.
    Accept(RawFd),
    /// The same through socketcall: the address of its arguments in the thread's memory. The first one is the
    /// descriptor.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "32-bit programs of x86 only have this call"))]
    AcceptBy { arguments: usize },
    /// poll, ppoll: the address of the array in the thread's memory, and its length.
    Poll { array: usize, count: usize },
    /// select, pselect6: the address of the set for reading, and its number of bits.
    Select { readable: usize, count: usize },
    /// epoll_wait, epoll_pwait, epoll_pwait2.
    Epoll(RawFd),
    /// io_uring_enter.
    Ring,
}

/// Numbers of the calls of a 32-bit program on this machine: accept, accept4, poll, ppoll, select, pselect6, epoll_wait,
/// epoll_pwait. The first one is socketcall on x86.
#[cfg(target_arch = "x86_64")]
const CALLS_32: [libc::c_long; 8] = [102, 364, 168, 309, 142, 308, 256, 319];
#[cfg(target_arch = "aarch64")]
const CALLS_32: [libc::c_long; 8] = [285, 366, 168, 336, 142, 335, 252, 346];

/// The numbers of accept and accept4 within socketcall.
#[cfg(target_arch = "x86_64")]
const SOCKETCALL_ACCEPTS: [usize; 2] = [5, 18];

/// The stack and the code of a 32-bit program are below.
const END_32: usize = 1 << 32;

/// Reads `NUMBER ARGUMENT… STACK CODE`. None for another call, and for `running` and `-1 …`, which are no call.
pub(super) fn parse(line: &str) -> Option<Wait> {
    let mut fields = line.split_ascii_whitespace();
    let number: libc::c_long = fields.next()?.parse().ok()?;
    let fields: Option<Vec<usize>> =
        fields.map(|field| usize::from_str_radix(field.strip_prefix("0x")?, 16).ok()).collect();
    let [first, second, _, _, _, _, stack, code] = fields?[..] else { return None };
    if stack < END_32 && code < END_32 {
        return parse_32(number, first, second);
    }
    match number {
        libc::SYS_accept | libc::SYS_accept4 => Some(Wait::Accept(first as RawFd)),
        libc::SYS_ppoll => Some(poll(first, second)),
        libc::SYS_pselect6 => Some(select(first, second)),
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => Some(Wait::Epoll(first as RawFd)),
        libc::SYS_io_uring_enter => Some(Wait::Ring),
        // Newer architectures never had these calls.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll => Some(poll(first, second)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select => Some(select(first, second)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait => Some(Wait::Epoll(first as RawFd)),
        _ => None,
    }
}

/// The same call of a 32-bit program. Its arrays for poll and its sets for select have our layout.
fn parse_32(number: libc::c_long, first: usize, second: usize) -> Option<Wait> {
    /// With 64-bit times; these numbers are the same everywhere.
    const PSELECT6_TIME64: libc::c_long = 413;
    const PPOLL_TIME64: libc::c_long = 414;
    let [accept, accept4, poll_, ppoll, select_, pselect6, epoll_wait, epoll_pwait] = CALLS_32;
    match number {
        #[cfg(target_arch = "x86_64")]
        _ if number == accept => SOCKETCALL_ACCEPTS.contains(&first).then_some(Wait::AcceptBy { arguments: second }),
        _ if number == accept || number == accept4 => Some(Wait::Accept(first as RawFd)),
        _ if [poll_, ppoll, PPOLL_TIME64].contains(&number) => Some(poll(first, second)),
        _ if [select_, pselect6, PSELECT6_TIME64].contains(&number) => Some(select(first, second)),
        _ if [epoll_wait, epoll_pwait].contains(&number) => Some(Wait::Epoll(first as RawFd)),
        libc::SYS_epoll_pwait2 => Some(Wait::Epoll(first as RawFd)),
        libc::SYS_io_uring_enter => Some(Wait::Ring),
        _ => None,
    }
}

fn poll(array: usize, count: usize) -> Wait {
    Wait::Poll { array, count: count.min(MAX_POLL_ENTRIES) }
}

fn select(count: usize, readable: usize) -> Wait {
    Wait::Select { readable, count: count.min(MAX_SELECT_BITS) }
}

/// The bytes of an array for poll.
pub(super) fn length_of_array(count: usize) -> usize {
    count * POLLFD_BYTES
}

/// The bytes of a set for select. The kernel uses words.
pub(super) fn length_of_bits(count: usize) -> usize {
    count.div_ceil(usize::BITS as usize) * size_of::<usize>()
}

/// The descriptors of an array for poll that are waited on to be readable.
pub(super) fn polled(array: &[u8]) -> impl Iterator<Item = RawFd> {
    array.chunks_exact(POLLFD_BYTES).filter_map(|entry| {
        let fd = i32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]);
        let events = i16::from_ne_bytes([entry[4], entry[5]]);
        (fd >= 0 && events & (libc::POLLIN | libc::POLLRDNORM) != 0).then_some(fd)
    })
}

/// The descriptors in the first `count` bits of a set for select.
pub(super) fn selected(bits: &[u8], count: usize) -> impl Iterator<Item = RawFd> {
    const WORD: usize = size_of::<usize>();
    let words = bits.chunks_exact(WORD).map(|word| {
        let mut bytes = [0; WORD];
        bytes.copy_from_slice(word);
        usize::from_ne_bytes(bytes)
    });
    let has = |word: usize, bit: u32| word >> bit & 1 == 1;
    let numbers = words.enumerate().flat_map(move |(index, word)| {
        (0..usize::BITS).filter(move |&bit| has(word, bit)).map(move |bit| index * usize::BITS as usize + bit as usize)
    });
    numbers.take_while(move |&number| number < count).map(|number| number as RawFd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: libc::c_long, arguments: &str) -> String {
        format!("{number} {arguments} 0x0 0x0 0x0 0x0 0x7ffd00000042 0x7f0042\n")
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_calls_of_a_32_bit_program_are_told_apart() {
        let line =
            |number: u32, arguments: &str| format!("{number} {arguments} 0x0 0x0 0x0 0x0 0xffb2b0e0 0xf7f5b579\n");
        for kind in ["0x5", "0x12"] {
            assert_eq!(parse(&line(102, &format!("{kind} 0xffb0"))), Some(Wait::AcceptBy { arguments: 0xffb0 }));
        }
        assert_eq!(parse(&line(102, "0xa 0xffb0")), None, "recv");
        assert_eq!(parse(&line(364, "0x3 0x0")), Some(Wait::Accept(3)));
        for number in [168, 309, 414] {
            assert_eq!(parse(&line(number, "0xf10 0x2")), Some(Wait::Poll { array: 0xf10, count: 2 }));
        }
        for number in [142, 308, 413] {
            assert_eq!(parse(&line(number, "0x4 0xf10")), Some(Wait::Select { readable: 0xf10, count: 4 }));
        }
        for number in [256, 319, 441] {
            assert_eq!(parse(&line(number, "0x5 0xf10")), Some(Wait::Epoll(5)));
        }
        assert_eq!(parse(&line(43, "0x3 0x0")), None, "times, which has the number of our accept");
    }

    #[test]
    fn calls_that_wait_are_told_from_others() {
        assert_eq!(parse(&line(libc::SYS_accept4, "0x3 0x0")), Some(Wait::Accept(3)));
        assert_eq!(parse(&line(libc::SYS_accept, "0x3 0x0")), Some(Wait::Accept(3)));
        assert_eq!(parse(&line(libc::SYS_epoll_pwait, "0x5 0x7f0000")), Some(Wait::Epoll(5)));
        assert_eq!(parse(&line(libc::SYS_epoll_pwait2, "0x5 0x7f0000")), Some(Wait::Epoll(5)));
        assert_eq!(parse(&line(libc::SYS_ppoll, "0x7f10 0x2")), Some(Wait::Poll { array: 0x7f10, count: 2 }));
        assert_eq!(parse(&line(libc::SYS_pselect6, "0x4 0x7f10")), Some(Wait::Select { readable: 0x7f10, count: 4 }));
        assert_eq!(parse(&line(libc::SYS_io_uring_enter, "0x4 0x0")), Some(Wait::Ring));
        for other in [&line(libc::SYS_read, "0x3 0x0"), "running\n", "-1 0x7ffd42 0x7f0042\n", "", "232", "232 3 x"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn old_calls_are_known_where_they_exist() {
        assert_eq!(
            parse("7 0x7f10 0x1 0x1f4 0x0 0x0 0x0 0x7ffd00000001 0x2"),
            Some(Wait::Poll { array: 0x7f10, count: 1 })
        );
        assert_eq!(
            parse("23 0x4 0x7f10 0x0 0x0 0x0 0x0 0x7ffd00000001 0x2"),
            Some(Wait::Select { readable: 0x7f10, count: 4 })
        );
        assert_eq!(parse("232 0x5 0x7f10 0x1 0x0 0x0 0x0 0x7ffd00000001 0x2"), Some(Wait::Epoll(5)));
    }

    #[test]
    fn what_is_read_is_limited() {
        let endless = format!("0x7f10 {:#x}", usize::MAX);
        assert_eq!(
            parse(&line(libc::SYS_ppoll, &endless)),
            Some(Wait::Poll { array: 0x7f10, count: MAX_POLL_ENTRIES })
        );
        assert_eq!(length_of_array(2), 16);
        assert_eq!([0, 1, 64, 65].map(length_of_bits), [0, 8, 8, 16]);
    }

    #[test]
    fn only_what_is_to_be_readable_is_polled() {
        let entry = |fd: i32, events: i16| [&fd.to_ne_bytes()[..], &events.to_ne_bytes(), &[0, 0]].concat();
        let array = [entry(3, libc::POLLIN), entry(4, libc::POLLOUT), entry(-1, libc::POLLIN), entry(5, 0x43)].concat();
        assert_eq!(polled(&array).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(polled(&array[..12]).collect::<Vec<_>>(), [3], "half an entry is none");
    }

    #[test]
    fn a_set_has_a_bit_for_each_descriptor() {
        let bits = [(1usize << 3 | 1 << 63).to_ne_bytes(), (1usize << 2).to_ne_bytes()].concat();
        assert_eq!(selected(&bits, 67).collect::<Vec<_>>(), [3, 63, 66]);
        assert_eq!(selected(&bits, 66).collect::<Vec<_>>(), [3, 63]);
        assert_eq!(selected(&bits, 3).count(), 0);
    }
}
