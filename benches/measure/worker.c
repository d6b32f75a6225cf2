/* The cheapest worker there is: no C library, no dynamic linker. Its first act is to write its pid and the monotonic
 * time to stdout, as one record (stamps.rs reads it); then it waits until it is killed. */
#include <sys/syscall.h>

static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
}

void _start(void)
{
    struct { long pid, seconds, nanoseconds; } record;
    call(SYS_clock_gettime, 1 /* CLOCK_MONOTONIC */, (long)&record.seconds, 0);
    record.pid = call(SYS_getpid, 0, 0, 0);
    call(SYS_write, 1, (long)&record, sizeof record);
    for (;;)
        call(SYS_pause, 0, 0, 0);
}
