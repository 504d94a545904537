"""The page on a loopback address, where the text can be changed and training goes on, step by step, and back.

GET /                 the page
POST /step            {"text", "number"}: the numbers of that step on that text, as the page holds them
GET /PATH             a source or note that the page names

Nobody but this machine is answered: the socket is bound to 127.0.0.1, and a request that comes by another name, as from
a web page that lets its own name stand for that address, is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pygpt.backends.sources import CHECKOUT
from pygpt.errors import UserError
from pygpt.study.page.sources import LINES

ADDRESS = "127.0.0.1"
LONGEST_REQUEST = 1_000_000

Answer = Callable[[str, int], bytes]  # the JSON of a text and the number of a step


def listen(port: int) -> ThreadingHTTPServer:
    """A server that does not answer yet; port: 0 for any.  Raises UserError for a port that cannot be had."""
    if not 0 <= port < 2**16:
        raise UserError(f"--port is {port}, expected 0 to {2**16 - 1}")
    try:
        server = ThreadingHTTPServer((ADDRESS, port), BaseHTTPRequestHandler)
    except OSError as error:
        why = "in use" if error.errno == errno.EADDRINUSE else f"not to be had ({error.strerror})"
        raise UserError(f"port {port} is {why}: --port takes another, 0 any that is free") from None
    server.daemon_threads = True
    return server


def serve(server: ThreadingHTTPServer, page: bytes, answer: Answer, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.  ready is given the address, and what answer raises as UserError is what the page shows."""
    lock = threading.Lock()  # one computation at a time

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._is_local():
                return
            path = self.path.split("?")[0].lstrip("/")
            if not path:
                self._send(page, "text/html")
            elif path in _named() and (CHECKOUT / path).is_file():
                self._send((CHECKOUT / path).read_bytes(), "text/plain")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            if not self._is_local():
                return
            size = int(self.headers.get("Content-Length") or 0)
            if self.headers.get("Content-Type") != "application/json" or not 0 < size <= LONGEST_REQUEST:
                self.send_error(HTTPStatus.BAD_REQUEST)
                return
            try:
                asked = json.loads(self.rfile.read(size))
                text, number = str(asked["text"]), int(asked["number"])
            except (ValueError, TypeError, KeyError):
                self.send_error(HTTPStatus.BAD_REQUEST)
                return
            try:
                with lock:
                    found = answer(text, number)
            except UserError as error:
                found = json.dumps({"error": str(error)}).encode()
            self._send(found, "application/json")

        def _is_local(self) -> bool:
            """Whether the request names this address; the answer is sent where it does not."""
            local = self.headers.get("Host") in {f"{name}:{server.server_port}" for name in (ADDRESS, "localhost")}
            if not local:
                self.send_error(HTTPStatus.FORBIDDEN)
            return local

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Requests are not printed."""

    server.RequestHandlerClass = Handler
    with contextlib.suppress(KeyboardInterrupt):
        ready(f"http://{ADDRESS}:{server.server_port}/")
        server.serve_forever()


def _named() -> set[str]:
    """The files that a page links to."""
    notes = {path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.glob("docs/**/*.md")}
    return notes | {path for lines in LINES.values() for path, _ in lines}
