"""The smallest applications for uvicorn and gunicorn.

    panzer -w 4 -l 127.0.0.1:8000 -- uvicorn app:app --fd {fd}
    panzer -w 4 -l 127.0.0.1:8000 -- gunicorn app:wsgi
"""

import os

TEXT = "worker {PANZER_WORKER_ID} of generation {PANZER_GENERATION}, pid {pid}\n"


def text():
    defaults = {"PANZER_WORKER_ID": "-", "PANZER_GENERATION": "-", "pid": os.getpid()}
    return TEXT.format(**(defaults | os.environ)).encode()


async def app(scope, receive, send):
    """ASGI."""
    if scope["type"] != "http":
        return
    body = text()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ, start_response):
    """WSGI."""
    body = text()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
