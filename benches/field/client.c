// Clients that open a connection for each request to 127.0.0.1:PORT, until TERM. Then they print a line for each request:
// when it began (monotonic seconds), how long it took (ms), and 1 if it was answered.
//    client PORT CLIENTS
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 400000
struct request { double begun, took; int answered; };
struct client { pthread_t thread; struct request *done; int count; };
static volatile sig_atomic_t ended;
static int port;
static void on_term(int signal) { (void)signal; ended = 1; }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int ask(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct timeval limit = {.tv_sec = 5};
    char answer[4096];
    int got = 0, more, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    const char request[] = "GET / HTTP/1.0\r\n\r\n";
    if (!connect(fd, (struct sockaddr *)&address, sizeof address) && write(fd, request, sizeof request - 1) > 0)
        while (got < (int)sizeof answer && (more = read(fd, answer + got, sizeof answer - got)) > 0) got += more;
    close(fd);
    return got > 12 && !memcmp(answer, "HTTP/1.", 7) && !memcmp(answer + 9, "200", 3);
}

static void *run(void *given) {
    struct client *client = given;
    while (!ended && client->count < MOST) {
        struct request *request = &client->done[client->count++];
        request->begun = now();
        request->answered = ask();
        request->took = (now() - request->begun) * 1000;
        // One that is refused is asked again a little later.
        usleep(request->answered ? 500 : 5000);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    port = atoi(argv[1]);
    int count = atoi(argv[2]);
    struct sigaction action = {.sa_handler = on_term, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    struct client *clients = calloc(count, sizeof *clients);
    for (int i = 0; i < count; i++) {
        clients[i].done = calloc(MOST, sizeof(struct request));
        pthread_create(&clients[i].thread, NULL, run, &clients[i]);
    }
    for (int i = 0; i < count; i++) pthread_join(clients[i].thread, NULL);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < clients[i].count; j++)
            printf("%.6f %.4f %d\n", clients[i].done[j].begun, clients[i].done[j].took, clients[i].done[j].answered);
    return 0;
}
