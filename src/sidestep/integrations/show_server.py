"""The page of `sidestep show` over HTTP: on this machine alone, for browsers that came here by its own name."""

import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sidestep.errors import InputError, SidestepError
from sidestep.integrations.show import Shown
from sidestep.integrations.show_page import page
from sidestep.version import __version__

__all__ = ["HOST", "MOST_BYTES", "show_server"]

HOST = "127.0.0.1"
MOST_BYTES = 8 << 20  # of a picture that is posted
_SECONDS = 15  # that a browser may take to send a request
_KIND = "application/octet-stream"  # a page of another site cannot send it without asking first, and is not answered


def show_server(shown: Shown, port: int) -> ThreadingHTTPServer:
    """Return a server, ready for `serve_forever`; its port is `server_address[1]`.

    GET / is the page, POST /answer?step=K with a picture as the body its answer as JSON.

    Args:
        shown: the run.
        port: to listen at; 0 for any that is free.

    Raises:
        InputError: if the port is in use, or none.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port must be from 1 to 65535, or 0 for any that is free, got {port}")
    try:
        return _Server(shown, port)
    except OSError as error:
        raise InputError(
            f"port {port} of {HOST} cannot be used ({error.strerror}); give another one, or --port 0 for any that is "
            "free"
        ) from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False  # a port that another program listens at is in use

    def __init__(self, shown: Shown, port: int) -> None:
        self.shown = shown
        super().__init__((HOST, port), _Handler)
        self.names = {f"{host}:{self.server_address[1]}" for host in (HOST, "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a browser that has gone away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = f"sidestep/{__version__}", ""
    protocol_version, timeout = "HTTP/1.1", _SECONDS

    def do_GET(self) -> None:
        """Answer with the page."""
        if not self._is_local():
            return
        if urlsplit(self.path).path != "/":
            self._refuse(HTTPStatus.NOT_FOUND, "there is one page: /")
            return
        nonce = secrets.token_urlsafe(16)
        rules = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data: blob:; "
        rules += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        body = page({**self.server.shown.about(), "most_bytes": MOST_BYTES}, nonce).encode()
        self._send(HTTPStatus.OK, body, "text/html; charset=utf-8", {"Content-Security-Policy": rules})

    def do_POST(self) -> None:
        """Answer with what the net says of the picture that is posted."""
        if not self._is_local():
            return
        address = urlsplit(self.path)
        size, limit = self.headers.get("Content-Length", ""), f"{MOST_BYTES >> 20} MiB"
        if address.path != "/answer":
            self._refuse(HTTPStatus.NOT_FOUND, "pictures are posted to /answer")
        elif self.headers.get("Content-Type") != _KIND:
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the Content-Type of a picture is {_KIND} here")
        elif not (size.isascii() and size.isdigit() and len(size) < 16):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the picture's size is missing: Content-Length")
        elif not 0 < int(size) <= MOST_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a picture has from 1 byte to {limit}, got {int(size):,} bytes; make it smaller",
            )
        else:
            self._answer(self.rfile.read(int(size)), parse_qs(address.query).get("step", [""])[0])

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: library code does not."""

    def _answer(self, picture: bytes, step: str) -> None:
        if step and not (step.isascii() and step.isdigit() and len(step) < 16):
            self._refuse(HTTPStatus.BAD_REQUEST, f"step must be a whole number from 0 on, got {step[:20]!r}")
            return
        try:
            found = self.server.shown.answer(picture, int(step) if step else None)
        except SidestepError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error), close=False)
        except Exception as error:  # a mistake of ours, which one picture makes, does not end the page
            why = f"this is a mistake in Sidestep: {type(error).__name__}: {error!s:.200}"
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, why, close=False)
        else:
            self._send(HTTPStatus.OK, json.dumps(found).encode(), "application/json")

    def _is_local(self) -> bool:
        """Whether the request names this server, and comes from its own page: a name that was bent here does not."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host in self.server.names and (origin is None or origin.removeprefix("http://") in self.server.names):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, f"this page answers at http://{min(self.server.names)} alone")
        return False

    def _refuse(self, status: HTTPStatus, why: str, close: bool = True) -> None:
        self.close_connection = self.close_connection or close  # what was posted with it has not been read
        self._send(status, json.dumps({"error": why}).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(body)), "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", **(more or {}),
        }  # fmt: skip
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
