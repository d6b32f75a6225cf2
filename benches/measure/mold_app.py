"""The program of the bench's part `molds`: 100 MB of objects, and an answer. Played as a mold, as one process, as what forks by
itself, and under gunicorn."""

import os
import random
import socket
import struct
import sys
import time
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

WSGIRequestHandler.log_message = lambda *_: None

LOADED = {number: "%050d" % number for number in range(int(os.environ.get("MOLD_OBJECTS", "560000")))}
time.sleep(float(os.environ.get("MOLD_SECONDS", "0")))


def stamp():
    """As worker.c does."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    os.write(1, struct.pack("3q", os.getpid(), now // 1_000_000_000, now % 1_000_000_000))


answered = 0


def wsgi(_environ, start_response):
    global answered
    answered += 1
    body = LOADED[random.randrange(len(LOADED) or 1)].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def serve(listener=None):
    server = WSGIServer(("127.0.0.1", 0), WSGIRequestHandler, bind_and_activate=False)
    server.socket = listener or socket.create_server(("127.0.0.1", 0))
    server.server_name, server.server_port = "localhost", 0
    server.setup_environ()
    server.set_app(wsgi)
    stamp()
    return server


def bare():
    """Forks a worker again whenever it has ended."""
    import ctypes

    libc = ctypes.CDLL(None)
    while True:
        pid = os.fork()
        if pid == 0:
            stamp()
            libc.prctl(1, 9)  # PR_SET_PDEATHSIG
            while True:
                time.sleep(1000)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    role = sys.argv[1]
    if role == "mold":
        import panzer

        class Worker(panzer.Worker):
            def run(self):
                server = serve(panzer.listeners()[0])
                os.set_blocking(server.fileno(), False)
                server.timeout = 0.1
                while not self.stopping:
                    server.handle_request()
                    if answered % 100 == 1:
                        self.served(answered)

        panzer.run(Worker)
    elif role == "alone":
        serve().serve_forever()
    else:
        bare()
