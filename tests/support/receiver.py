"""Somebody who is told of alerts: a real HTTP server that keeps what it gets, and answers as it was told to."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, override

import trustme

PATIENCE_S = 10.0


class Receiver:
    def __init__(self) -> None:
        self.port = 0
        self.messages: list[dict[str, Any]] = []
        """JSON bodies, in the order in which they came."""
        self.heads: list[dict[str, str]] = []
        """Their headers, names in lower case."""
        self.paths: list[str] = []
        self.answers: list[tuple[int, str]] = []
        """(status, body) of the next answers; afterwards ``200 ok``."""
        self.headers: dict[str, str] = {}
        """Of each answer."""
        self.silent = threading.Event()
        """While it is clear nobody is answered."""
        self.silent.set()
        self.server: ThreadingHTTPServer | None = None
        self._came = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook/0123456789"

    def speaks_tls(self, authority: trustme.CA) -> None:
        """Take TLS from now on, as ``localhost``."""
        if self.server:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("localhost").configure_cert(context)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)

    def heard(self, path: str, head: dict[str, str], body: bytes) -> tuple[int, str]:
        with self._came:
            self.paths.append(path)
            self.heads.append(head)
            self.messages.append(json.loads(body))
            self._came.notify_all()
            answer = self.answers.pop(0) if self.answers else (200, "ok")
        self.silent.wait(PATIENCE_S)
        return answer

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """Return the messages once there are so many."""
        with self._came:
            if not self._came.wait_for(lambda: len(self.messages) >= count, PATIENCE_S):
                raise TimeoutError(f"{len(self.messages)} of {count} messages came within {PATIENCE_S:g} s")
            return list(self.messages)

    def told(self) -> list[tuple[str, str]]:
        """Return (rule, state) of each message."""
        return [(message["alert"], message["state"]) for message in self.messages]


@contextmanager
def receiver() -> Iterator[Receiver]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            head = {name.lower(): value for name, value in self.headers.items()}
            status, said = told.heard(self.path, head, self.rfile.read(length))
            self.send_response(status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said.encode())

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves is part of a test
    told.server, told.port = server, server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        told.silent.set()
        server.shutdown()
        server.server_close()
        thread.join()
