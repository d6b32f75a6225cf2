/* panzer.h: load once, fork many. Runs a C program's workers under panzer (Linux, C11).
 *
 *     #define PANZER_IMPLEMENTATION           in one file, before any other #include
 *     #include "panzer.h"
 *
 *     static int serve(void *data) { ... return 0; }
 *
 *     int main(int argc, char **argv) {
 *         const char *options[] = {"workers", "8", "listen", "8000", NULL};
 *         panzer_run(argc, argv, &(struct panzer_program){.run = serve}, options);
 *     }
 *
 * Run without panzer, the program finds panzer and runs under it. Under `panzer --preload` it is the mold: it is loaded once, and
 * forks each worker. README.md has more; panzer-mold(7) has the protocol. */
#ifndef PANZER_H
#define PANZER_H

#if defined(PANZER_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif

#include <stdbool.h>

/* C++ may include the declarations; the implementation is C. */
#ifdef __cplusplus
#define PANZER_NORETURN [[noreturn]]
extern "C" {
#else
#define PANZER_NORETURN _Noreturn
#endif

/* A program. Only `run` is needed; each function gets `data`. */
struct panzer_program {
    /* The worker. What it returns is its exit code. */
    int (*run)(void *data);
    /* In the mold, before each fork. */
    void (*before_fork)(void *data);
    /* In the worker, before `run`. */
    void (*after_start)(void *data);
    /* On TERM and on USR2. They are called in a signal handler: see signal-safety(7). */
    void (*stop)(void *data);
    void (*reload)(void *data);
    /* With --refork: in a worker whose `run` has returned 0, and which forks the others from now on. `run` is called again in them. */
    void (*become_mold)(void *data);
    void *data;
};

/* Runs workers of the program. Does not return. `options` are panzer's: a name and a value each, NULL at the end; a value "" is for an
 * option that takes none. They hold if the program is run without panzer. The user's flags and PANZER_* variables win. */
PANZER_NORETURN void panzer_run(int argc, char **argv, const struct panzer_program *program, const char *const *options);

/* Reports that the program cannot be loaded, and exits with 1. `why` is one line. */
PANZER_NORETURN void panzer_failed(const char *why);

/* The worker's number, from 0 on. A respawned worker has the number of the one that ended. */
int panzer_index(void);

/* Whether the worker was asked to stop. A worker that calls this, or has `stop`, is not ended by TERM. Calls that wait return EINTR. */
bool panzer_stopping(void);

/* Says that this worker can serve, or is not stuck (for the watchdog), or what sd_notify(3) lets it say. False if nobody listens. */
bool panzer_ready(void);
bool panzer_alive(void);
bool panzer_notify(const char *text);

/* Says how many requests this worker has served so far, for --max-requests and --refork. Now and then is enough. What was counted before it
 * was forked is left out. */
bool panzer_served(unsigned long requests);

/* The number of sockets that panzer passes, and the descriptor of one of them, in the order of `listen`. */
int panzer_listeners(void);
int panzer_listener(int index);

#ifdef __cplusplus
}
#endif

#ifdef PANZER_IMPLEMENTATION

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MSG_CMSG_CLOEXEC
#error "define _GNU_SOURCE, or include panzer.h first in the file that has PANZER_IMPLEMENTATION"
#endif

enum { PANZER__MESSAGE = 1024, PANZER__DESCRIPTORS = 253, PANZER__FIRST = 3, PANZER__HIGH = 512, PANZER__LOOKED_AT = 1024, PANZER__REFORK = -1 };

/* Variables that only a worker has. They stand in the environment from the beginning, so that a worker only writes digits. */
struct panzer__variable {
    char text[40];
    int length;
};

static struct {
    int socket; /* of the mold, or -1 */
    int refork; /* of a worker, which may become the mold on it; or -1 */
    pid_t monitor;
    struct sigaction at_start[NSIG];
    sigset_t mask_at_start;
    unsigned long served, served_before;
    char version[16];
    bool is_inherited[PANZER__LOOKED_AT];
    struct panzer__variable worker_id, listen_pid, watchdog_pid;
    bool has_listeners, has_watchdog, has_told_of_threads;
    const struct panzer_program *program;
    volatile sig_atomic_t stopping;
    bool catches_term;
    int notifier;
} panzer__ = {.socket = -1, .refork = -1, .notifier = -1};

/* Away from the numbers at which descriptors of workers are to stand, as far as RLIMIT_NOFILE allows. Closes the first one. */
static int panzer__raise(int descriptor) {
    int raised = -1;
    for (int lowest = PANZER__HIGH; raised < 0 && lowest > PANZER__FIRST; lowest /= 2) raised = fcntl(descriptor, F_DUPFD_CLOEXEC, lowest);
    close(descriptor);
    return raised;
}

/* Before main: takes what is for the mold out of the environment, before the program starts anything that would inherit it. */
__attribute__((constructor)) static void panzer__start(void) {
    const char *number = getenv("PANZER_MOLD_FD"), *version = getenv("PANZER_MOLD_VERSION");
    if (number) {
        panzer__.socket = panzer__raise(atoi(number));
        panzer__.monitor = getppid();
        snprintf(panzer__.version, sizeof panzer__.version, "%s", version ? version : "none");
        unsetenv("PANZER_MOLD_FD");
        unsetenv("PANZER_MOLD_VERSION");
    } else if (!getenv("PANZER_WORKER_ID")) {
        for (int fd = PANZER__FIRST; fd < PANZER__LOOKED_AT; fd++) panzer__.is_inherited[fd] = fcntl(fd, F_GETFD) >= 0;
    }
}

/* Returns whether the monitor can hear it. If it is gone, the next recvmsg says so as well. */
__attribute__((format(printf, 1, 2))) static bool panzer__send(const char *format, ...) {
    char text[PANZER__MESSAGE];
    va_list rest;
    va_start(rest, format);
    int length = vsnprintf(text, sizeof text, format, rest);
    va_end(rest);
    if (length >= (int)sizeof text) length = sizeof text - 1;
    ssize_t sent;
    do sent = send(panzer__.socket, text, (size_t)length, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

_Noreturn void panzer_failed(const char *why) {
    if (panzer__.socket >= 0) panzer__send("FAILED %s", why);
    fprintf(stderr, "panzer: %s\n", why);
    exit(1);
}

int panzer_index(void) {
    const char *index = getenv("PANZER_WORKER_ID");
    return index ? atoi(index) : 0;
}

static void panzer__on_term(int number) {
    (void)number;
    panzer__.stopping = 1;
    if (panzer__.program && panzer__.program->stop) panzer__.program->stop(panzer__.program->data);
}

static void panzer__on_usr2(int number) {
    (void)number;
    panzer__.program->reload(panzer__.program->data);
}

/* Without SA_RESTART: a call that waits is to return. */
static void panzer__catch(int number, void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler};
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

static void panzer__catch_term(void) {
    struct sigaction now;
    if (panzer__.catches_term) return;
    panzer__.catches_term = true;
    sigaction(SIGTERM, NULL, &now);
    if (panzer__.program->stop || (!(now.sa_flags & SA_SIGINFO) && now.sa_handler == SIG_DFL))
        panzer__catch(SIGTERM, panzer__on_term);
}

bool panzer_stopping(void) {
    if (panzer__.program) panzer__catch_term();
    return panzer__.stopping;
}

bool panzer_notify(const char *text) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("NOTIFY_SOCKET");
    size_t length = path ? strlen(path) : 0;
    if (length == 0 || length >= sizeof address.sun_path) return false;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@') address.sun_path[0] = 0;
    if (panzer__.notifier < 0) panzer__.notifier = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    ssize_t sent;
    do sent = sendto(panzer__.notifier, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address, size);
    while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

bool panzer_ready(void) { return panzer_notify("READY=1"); }

bool panzer_alive(void) { return panzer_notify("WATCHDOG=1"); }

bool panzer_served(unsigned long requests) {
    char text[48];
    if (requests < panzer__.served_before) panzer__.served_before = 0;
    panzer__.served = requests;
    snprintf(text, sizeof text, "X_PANZER_REQUESTS=%lu", requests - panzer__.served_before);
    return panzer_notify(text);
}

int panzer_listeners(void) {
    const char *count = getenv("LISTEN_FDS");
    return count ? atoi(count) : 0;
}

int panzer_listener(int index) { return PANZER__FIRST + index; }

/* In the worker, or in a process that panzer has started as one: everything from the first hook to the end of `run`. */
static int panzer__work(void) {
    const struct panzer_program *program = panzer__.program;
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) < 0) seed = (uint64_t)getpid();
    srandom((unsigned)seed);
    srand((unsigned)(seed >> 16));
    srand48((long)(seed >> 32));
    if (program->stop) panzer__catch_term();
    if (program->reload) panzer__catch(SIGUSR2, panzer__on_usr2);
    if (program->after_start) program->after_start(program->data);
    return program->run(program->data);
}

static void panzer__reserve(struct panzer__variable *variable, const char *name) {
    variable->length = snprintf(variable->text, sizeof variable->text, "%s=", name);
    putenv(variable->text);
}

static void panzer__set(struct panzer__variable *variable, long number) {
    snprintf(variable->text + variable->length, sizeof variable->text - (size_t)variable->length, "%ld", number);
}

static void panzer__clear(struct panzer__variable *variable) { variable->text[variable->length] = 0; }

/* Forks a worker that falls to the monitor. Returns 1 in it, and in the mold 0, or -1 with errno.
 *
 * The process between shares the mold's memory (vfork), so the page table is copied once. CLONE_PARENT would do with one copy too, but the
 * C library would not know of that fork: handlers of pthread_atfork would not run, nor would its locks be in order. */
static int panzer__fork(pid_t *between) {
    sigset_t all, before;
    volatile int error = 0;
    sigfillset(&all);
    /* The process between must run no handler: it would do so in the mold's memory. */
    sigprocmask(SIG_SETMASK, &all, &before);
    pid_t child = vfork();
    if (child == 0) {
        *between = getpid();
        pid_t worker = fork();
        if (worker == 0) {
            sigprocmask(SIG_SETMASK, &before, NULL);
            return 1;
        }
        if (worker < 0) error = errno;
        _exit(0);
    }
    if (child < 0) error = errno;
    while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR) {
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return error ? -1 : 0;
}

/* Waits until the monitor is the parent, and asks for TERM when it dies. */
static void panzer__settle(pid_t between) {
    struct timespec pause = {.tv_nsec = 100000};
    while (getppid() == between) nanosleep(&pause, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != panzer__.monitor) _exit(0);
    setpgid(0, 0);
}

/* Puts the descriptors where they are to stand. They are raised first, so that none overwrites another. */
static bool panzer__place(const int *numbers, int *descriptors, int count) {
    int top = 0;
    for (int i = 0; i < count; i++)
        if (numbers[i] >= top) top = numbers[i] + 1;
    for (int i = 0; i < count; i++) {
        int raised = fcntl(descriptors[i], F_DUPFD_CLOEXEC, top);
        if (raised < 0) return false;
        close(descriptors[i]);
        descriptors[i] = raised;
    }
    for (int i = 0; i < count; i++) {
        if (numbers[i] == PANZER__REFORK) {
            panzer__.refork = panzer__raise(descriptors[i]);
            continue;
        }
        if (dup2(descriptors[i], numbers[i]) < 0) return false;
        close(descriptors[i]);
    }
    return true;
}

/* Workers have only the thread that forks them. Says so once. */
static void panzer__tell_of_threads(void) {
    struct stat tasks;
    if (panzer__.has_told_of_threads || stat("/proc/self/task", &tasks) < 0 || tasks.st_nlink <= 3) return;
    panzer__.has_told_of_threads = true;
    fprintf(stderr, "panzer: warning: %ld more threads run in the mold. Workers do not have them, and locks that they hold stay locked "
                    "there. Start threads in after_start or run.\n", (long)tasks.st_nlink - 3);
}

/* Whether panzer wants this worker as its mold. It says so before it tells the worker to stop. */
static bool panzer__is_wanted(void) {
    char text[PANZER__MESSAGE];
    return panzer__.refork >= 0 && recv(panzer__.refork, text, sizeof text, MSG_DONTWAIT) == 4 && memcmp(text, "MOLD", 4) == 0;
}

/* In a worker whose `run` has returned. Its frames are those of the mold that has forked it. */
static void panzer__become_mold(void) {
    for (int number = 1; number < NSIG; number++) sigaction(number, &panzer__.at_start[number], NULL);
    sigprocmask(SIG_SETMASK, &panzer__.mask_at_start, NULL);
    panzer__.socket = panzer__.refork;
    panzer__.refork = -1;
    panzer__.stopping = panzer__.catches_term = false;
    panzer__.served_before = panzer__.served;
    panzer__clear(&panzer__.worker_id);
    if (panzer__.has_listeners) panzer__clear(&panzer__.listen_pid);
    if (panzer__.has_watchdog) panzer__clear(&panzer__.watchdog_pid);
    /* The program may have closed them, and each worker gets them anew. */
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (nothing < 0) panzer_failed(strerror(errno));
    for (int i = 0; i < panzer_listeners(); i++) dup2(nothing, panzer_listener(i));
    close(nothing);
    if (panzer__.program->become_mold) panzer__.program->become_mold(panzer__.program->data);
    panzer__send("READY refork");
}

/* One order. Returns in the mold; and, with true, in a worker that has become it. */
static bool panzer__obey(long ticket, long slot, const int *numbers, int *descriptors, int count) {
    const struct panzer_program *program = panzer__.program;
    pid_t between = 0;
    if (program->before_fork) program->before_fork(program->data);
    panzer__tell_of_threads();
    fflush(NULL);
    int forked = panzer__fork(&between);
    if (forked < 0) panzer__send("UNBORN %ld %s", ticket, strerror(errno));
    if (forked != 1) return false;
    panzer__settle(between);
    if (!panzer__place(numbers, descriptors, count)) _exit(1);
    panzer__set(&panzer__.worker_id, slot);
    if (panzer__.has_listeners) panzer__set(&panzer__.listen_pid, getpid());
    if (panzer__.has_watchdog) panzer__set(&panzer__.watchdog_pid, getpid());
    /* Otherwise the monitor has another mold by now, and does not know this worker. */
    if (!panzer__send("BORN %ld", ticket)) _exit(0);
    close(panzer__.socket);
    panzer__.socket = -1;
    int code = panzer__work();
    if (code != 0 || !panzer__is_wanted()) exit(code);
    panzer__become_mold();
    return true;
}

/* Forks a worker whenever the monitor asks for one, until it says STOP or is gone. */
static void panzer__serve(void) {
    if (strcmp(panzer__.version, "1") != 0) {
        char why[120];
        snprintf(why, sizeof why, "this client speaks version 1 of the mold protocol, and panzer version %s", panzer__.version);
        panzer_failed(why);
    }
    panzer__.has_listeners = getenv("LISTEN_FDS");
    panzer__.has_watchdog = getenv("WATCHDOG_USEC");
    panzer__reserve(&panzer__.worker_id, "PANZER_WORKER_ID");
    if (panzer__.has_listeners) panzer__reserve(&panzer__.listen_pid, "LISTEN_PID");
    if (panzer__.has_watchdog) panzer__reserve(&panzer__.watchdog_pid, "WATCHDOG_PID");
    for (int number = 1; number < NSIG; number++) sigaction(number, NULL, &panzer__.at_start[number]);
    sigprocmask(SIG_SETMASK, NULL, &panzer__.mask_at_start);
    panzer__send("READY refork");
    for (;;) {
        char text[PANZER__MESSAGE + 1];
        int descriptors[PANZER__DESCRIPTORS], numbers[PANZER__DESCRIPTORS], count = 0, named = 0;
        union {
            struct cmsghdr head;
            char room[CMSG_SPACE(sizeof descriptors)];
        } control;
        struct iovec part = {.iov_base = text, .iov_len = PANZER__MESSAGE};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t length = recvmsg(panzer__.socket, &message, MSG_CMSG_CLOEXEC);
        if (length < 0 && errno == EINTR) continue;
        if (length <= 0) return;
        text[length] = 0;
        for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
            if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
            size_t bytes = head->cmsg_len - CMSG_LEN(0);
            memcpy(descriptors + count, CMSG_DATA(head), bytes);
            count += (int)(bytes / sizeof(int));
        }
        if (strcmp(text, "STOP") == 0) return;
        if (strncmp(text, "FORK ", 5) == 0) {
            char *rest;
            long ticket = strtol(text + 5, &rest, 10), slot = strtol(rest, &rest, 10);
            while (*rest == ' ' && named < PANZER__DESCRIPTORS) {
                bool is_refork = strncmp(rest, " refork", 7) == 0;
                numbers[named++] = is_refork ? PANZER__REFORK : (int)strtol(rest, &rest, 10);
                if (is_refork) rest += 7;
            }
            if (named != count) panzer__send("UNBORN %ld %d descriptors came for %d numbers", ticket, count, named);
            else if (panzer__obey(ticket, slot, numbers, descriptors, count)) continue;
        }
        for (int i = 0; i < count; i++) close(descriptors[i]);
    }
}

/* The occurrence of a flag among the program's own arguments from `from` on, up to --; 0 if there is none. */
static int panzer__given(int argc, char **argv, int from, const char *flag, const char **value) {
    size_t length = strlen(flag);
    for (int i = from; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strncmp(argv[i], flag, length) != 0) continue;
        if (argv[i][length] == '=') *value = argv[i] + length + 1;
        else if (argv[i][length] == 0) *value = i + 1 < argc ? argv[i + 1] : "";
        else continue;
        return i;
    }
    return 0;
}

/* Whether a variable PANZER_NAME is set for the option. */
static bool panzer__is_variable(const char *option) {
    char name[64] = "PANZER_";
    size_t length = strlen(name);
    for (; *option && length < sizeof name - 1; option++)
        name[length++] = *option == '-' ? '_' : *option >= 'a' && *option <= 'z' ? (char)(*option - 'a' + 'A') : *option;
    return getenv(name);
}

/* Replaces this process by panzer, with this program as its mold. */
_Noreturn static void panzer__execute(int argc, char **argv, const char *const *options) {
    size_t count = 0;
    while (options && options[count]) count += 2;
    const char **command = calloc(2 * count + 3 * (size_t)argc + 8, sizeof *command);
    char(*flags)[64] = calloc(count + 1, sizeof *flags);
    if (!command || !flags) panzer_failed("there is no memory left");
    const char *named = getenv("PANZER"), *panzer = named && *named ? named : "panzer", *value;
    size_t used = 0;
    command[used++] = panzer;
    command[used++] = "--preload";
    for (size_t i = 0; i < count; i += 2) {
        snprintf(flags[i], sizeof flags[i], "--%s", options[i]);
        for (char *letter = flags[i]; *letter; letter++)
            if (*letter == '_') *letter = '-';
        if (panzer__is_variable(options[i])) continue;
        bool is_repeated = false;
        for (size_t j = 0; j < i; j++) is_repeated |= strcmp(flags[j], flags[i]) == 0;
        int at = panzer__given(argc, argv, 1, flags[i], &value);
        for (int from = at; from && !is_repeated; from = panzer__given(argc, argv, from + 1, flags[i], &value)) {
            command[used++] = flags[i];
            if (*options[i + 1]) command[used++] = value;
        }
        if (at) continue;
        command[used++] = flags[i];
        if (*options[i + 1]) command[used++] = options[i + 1];
    }
    command[used++] = "--";
    for (int i = 0; i < argc; i++) command[used++] = argv[i];
    fflush(NULL);
    /* What the program has opened is not panzer's, but for what it was started with. */
    for (int fd = PANZER__FIRST; fd < PANZER__LOOKED_AT; fd++)
        if (!panzer__.is_inherited[fd]) fcntl(fd, F_SETFD, FD_CLOEXEC);
    execvp(panzer, (char *const *)command);
    if (errno == ENOENT && !(named && *named)) {
        fputs("panzer: panzer is not installed: it is not in PATH, and the variable PANZER does not name it.\n"
              "Install it with `cargo install --path .` in the folder of its source, or set PANZER to the path of the binary.\n", stderr);
        _exit(127);
    }
    fprintf(stderr, "panzer: %s cannot be executed: %s. Set PANZER to the path of panzer's binary.\n", panzer, strerror(errno));
    _exit(126);
}

_Noreturn void panzer_run(int argc, char **argv, const struct panzer_program *program, const char *const *options) {
    panzer__.program = program;
    if (panzer__.socket >= 0) {
        panzer__serve();
        exit(0);
    }
    if (getenv("PANZER_WORKER_ID")) exit(panzer__work());
    panzer__execute(argc, argv, options);
}

#endif
#endif
