/* The program of the bench's part `molds`: a heap of 1 GB. It stamps how long one fork takes, with pid 0: first some of its
 * own, then that of each worker. */
#define PANZER_IMPLEMENTATION
#include "panzer.h"

enum { HEAP = 1 << 30, OWN = 5 };

static struct timespec begun;

static void begin(void *data) { (void)data, clock_gettime(CLOCK_MONOTONIC, &begun); }

static int stamp(void *data) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long taken = (now.tv_sec - begun.tv_sec) * 1000000000LL + now.tv_nsec - begun.tv_nsec;
    long long record[3] = {data ? getpid() : 0, taken / 1000000000, taken % 1000000000};
    return write(1, record, sizeof record) == sizeof record ? 0 : 1;
}

static int run(void *data) {
    stamp(data);
    for (;;) pause();
}

int main(int argc, char **argv) {
    char *heap = malloc(HEAP);
    if (!heap) return 1;
    memset(heap, 1, HEAP);
    for (int i = 0; i < OWN; i++) {
        begin(NULL);
        if (fork() == 0) _exit(stamp(NULL));
        wait(NULL);
    }
    panzer_run(argc, argv, &(struct panzer_program){.run = run, .before_fork = begin, .data = heap}, NULL);
}
