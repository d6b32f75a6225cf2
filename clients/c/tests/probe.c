/* The program that clients/testing/conform.py drives. */
#define PANZER_IMPLEMENTATION
#include "../panzer.h"
#include <threads.h>

static void say(const char *word) {
    char line[64];
    int length = snprintf(line, sizeof line, "%s %d\n", word, panzer_index());
    if (write(1, line, (size_t)length) < 0) abort();
}

static void at_exit(void) {
    puts("exit");
    fflush(stdout);
}

static void before_fork(void *data) {
    (void)data;
    puts("before_fork");
    fflush(stdout);
}

static void become_mold(void *data) {
    (void)data;
    puts("become_mold");
    fflush(stdout);
}

static void after_start(void *data) { (void)data, say("after_start"); }
static void stop(void *data) { (void)data, say("stop"); }
static void reload(void *data) { (void)data, say("reload"); }

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "-";
}

static int run(void *data) {
    (void)data;
    printf("run %d %ld %s %s\n", panzer_index(), random(), variable("LISTEN_PID"), variable("WATCHDOG_PID"));
    fflush(stdout);
    panzer_ready();
    panzer_served(7);
    while (!panzer_stopping()) {
        panzer_alive();
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    say("done");
    return 0;
}

static int sleeps(void *nothing) {
    (void)nothing;
    while (pause() < 0) {
    }
    return 0;
}

int main(int argc, char **argv) {
    printf("loaded\n");
    atexit(at_exit);
    if (getenv("CONFORM_FAIL")) panzer_failed("no database");
    thrd_t thread;
    if (getenv("CONFORM_THREAD")) thrd_create(&thread, sleeps, NULL);
    struct panzer_program program = {.run = run, .before_fork = before_fork, .after_start = after_start, .stop = stop, .reload = reload,
                                     .become_mold = become_mold};
    const char *options[] = {"workers", "2", "listen", "127.0.0.1:0", NULL};
    panzer_run(argc, argv, &program, options);
}
