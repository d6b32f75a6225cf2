// The worker that all supervisors of the field run: it answers each request with its pid and closes.
//    worker fd N              accepts on descriptor N
//    worker stdin             accepts on descriptor 0
//    worker env NAME          accepts on the descriptor whose number NAME has, or that stands behind its last '='
//    worker port P            listens on 127.0.0.1:P itself, with SO_REUSEPORT
//    worker prefork N env X   the same as env, in N children of its own, which it starts again
//    worker lines N           writes N lines of 100 bytes to stdout, and waits
// Before it accepts, it appends its pid and the monotonic time to the file that FIELD_STAMPS names.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t stopping;
static void on_term(int signal) { (void)signal; stopping = 1; }

// No SA_RESTART: a signal ends the wait for a connection. A connection that has been accepted is answered before the end.
static void stop_on_signals(void) {
    struct sigaction action = {.sa_handler = on_term};
    int signals[] = {SIGTERM, SIGINT, SIGUSR2};
    for (int i = 0; i < 3; i++) sigaction(signals[i], &action, NULL);
}

static void stamp(void) {
    const char *path = getenv("FIELD_STAMPS");
    if (!path) return;
    char line[64];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int length = snprintf(line, sizeof line, "%d %ld.%09ld\n", getpid(), (long)now.tv_sec, now.tv_nsec);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, line, length) != length) perror(path);
    close(fd);
}

static int own_port(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024)) { perror("bind"); exit(1); }
    return fd;
}

static int serve(int listener) {
    char request[4096], answer[256], body[64];
    stop_on_signals();
    // Some hand over a listener that does not block.
    fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) & ~O_NONBLOCK);
    stamp();
    while (!stopping) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) continue;
        if (read(fd, request, sizeof request) > 0) {
            int length = snprintf(body, sizeof body, "%d\n", getpid());
            int all = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", length, body);
            if (write(fd, answer, all) != all) perror("write");
        }
        close(fd);
    }
    return 0;
}

static int prefork(int count, int listener) {
    pid_t *pids = calloc(count, sizeof *pids);
    stop_on_signals();
    while (!stopping) {
        for (int i = 0; i < count && !stopping; i++)
            if (!pids[i] && !(pids[i] = fork())) { prctl(PR_SET_PDEATHSIG, SIGTERM); return serve(listener); }
        pid_t gone = waitpid(-1, NULL, 0);
        for (int i = 0; i < count; i++) if (pids[i] == gone) pids[i] = 0;
    }
    for (int i = 0; i < count; i++) if (pids[i]) kill(pids[i], SIGTERM);
    while (wait(NULL) > 0) {}
    return 0;
}

static int lines(long count) {
    char line[101];
    memset(line, 'x', 99);
    line[99] = '\n';
    for (; count > 0; count--) if (write(1, line, 100) != 100) return 1;
    stop_on_signals();
    while (!stopping) pause();
    return 0;
}

static int by_name(const char *name) {
    const char *value = getenv(name);
    if (!value) { fprintf(stderr, "no %s\n", name); exit(1); }
    const char *equals = strrchr(value, '=');
    return atoi(equals ? equals + 1 : value);
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "fd")) return serve(atoi(argv[2]));
    if (argc > 1 && !strcmp(argv[1], "stdin")) return serve(0);
    if (argc > 2 && !strcmp(argv[1], "env")) return serve(by_name(argv[2]));
    if (argc > 2 && !strcmp(argv[1], "port")) return serve(own_port(atoi(argv[2])));
    if (argc > 4 && !strcmp(argv[1], "prefork")) return prefork(atoi(argv[2]), by_name(argv[4]));
    if (argc > 2 && !strcmp(argv[1], "lines")) return lines(atol(argv[2]));
    return 2;
}
