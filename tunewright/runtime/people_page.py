"""The page of `tunewright compare`: a server on this machine alone, which shows one blind pair at a time."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import get_args
from urllib.parse import parse_qs

from tunewright.core.records.people import Side
from tunewright.report import page
from tunewright.runtime.people import Comparing

MOST_BYTES = 4096  # of a choice
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"


class Page:
    """Serves the page at ``url`` until all pairs are compared or `close` is called. The address has a secret part, so
    that other pages in the same browser, and other users of the machine, cannot read or choose."""

    def __init__(self, comparing: Comparing, port: int = 0) -> None:
        self.done = threading.Event()
        secret = secrets.token_urlsafe(16)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(comparing, f"/{secret}", self.done.set))
        self.url = f"http://127.0.0.1:{self._server.server_port}/{secret}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="compare", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(comparing: Comparing, path: str, finish: Callable[[], None]) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()  # a choice is read and written by one request at a time

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "tunewright", ""

        def do_GET(self) -> None:
            if not secrets.compare_digest(self.path.encode(), path.encode()):
                _answer(self, HTTPStatus.NOT_FOUND, "not found")
                return
            nonce = secrets.token_urlsafe(16)
            with lock:
                shown = _shown(comparing)
            text = page.render("compare.html.j2", nonce=nonce, path=path, **shown)
            _answer(self, HTTPStatus.OK, text, nonce)
            if shown["pair"] is None:
                finish()

        def do_POST(self) -> None:
            if not secrets.compare_digest(self.path.encode(), path.encode()):
                _answer(self, HTTPStatus.NOT_FOUND, "not found")
                return
            size = self.headers.get("content-length", "")
            if not size.isascii() or not size.isdigit() or int(size) > MOST_BYTES:
                _answer(self, HTTPStatus.BAD_REQUEST, "a choice has a length of at most 4096 bytes")
                return
            sent = parse_qs(self.rfile.read(int(size)).decode("utf-8", "replace"))
            with lock:
                known = _choose(comparing, sent)
            if not known:
                _answer(self, HTTPStatus.BAD_REQUEST, "no such choice")
                return
            self.send_response(HTTPStatus.SEE_OTHER)
            self.send_header("location", path)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """The terminal is for the result."""

    return Handler


def _answer(handler: BaseHTTPRequestHandler, status: HTTPStatus, text: str, nonce: str = "") -> None:
    body = text.encode("utf-8", "replace")
    handler.send_response(status)
    script = f"; script-src 'nonce-{nonce}'" if nonce else ""
    headers = {
        "content-type": "text/html; charset=utf-8" if nonce else "text/plain; charset=utf-8",
        "content-length": str(len(body)),
        "content-security-policy": f"{POLICY}{script}",
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def _shown(comparing: Comparing) -> dict[str, object]:
    known, pair = comparing.choices(), comparing.next()
    return {
        "pair": pair,
        "against": comparing.against,
        "number": len(known) + 1,
        "asked": len(comparing.asked),
        "result": comparing.result() if pair is None else None,
    }


def _choose(comparing: Comparing, sent: dict[str, list[str]]) -> bool:
    """Whether the request was a choice that exists."""
    choice, row = sent.get("choice", [""])[0], sent.get("row", [""])[0]
    if choice == "back":
        comparing.take_back()
        return True
    sides: dict[str, Side] = {side: side for side in get_args(Side)}
    if choice not in sides or not row.isascii() or not row.isdigit():
        return False
    if int(row) not in {pair.row for pair in comparing.asked}:
        return False
    comparing.choose(int(row), sides[choice])
    return True
