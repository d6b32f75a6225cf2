#define PANZER_IMPLEMENTATION
#include "panzer.h"

static int serve(void *loaded) {
    char body[64], answer[192];
    int length = snprintf(body, sizeof body, "%s from worker %d\n", (char *)loaded, panzer_index());
    length = snprintf(answer, sizeof answer, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", length, body);
    while (!panzer_stopping()) {
        int client = accept(panzer_listener(0), NULL, NULL);
        if (client < 0) continue; /* EINTR: it is to stop */
        char request[4096];
        if (read(client, request, sizeof request) > 0 && write(client, answer, (size_t)length) < 0) perror("write");
        close(client);
    }
    return 0;
}

int main(int argc, char **argv) {
    char loaded[] = "hello";
    const char *options[] = {"workers", "8", "listen", "8000", NULL};
    panzer_run(argc, argv, &(struct panzer_program){.run = serve, .data = loaded}, options);
}
