"""The page of `tunewright compare`: a server on this machine alone, which shows one blind pair at a time."""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, get_args
from urllib.parse import parse_qs, urlsplit

from tunewright.core.errors import ConfigError, TunewrightError
from tunewright.core.records.people import Side
from tunewright.report import page
from tunewright.runtime.people import REFERENCE, Comparing

MOST_BYTES = 4096  # of a choice
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"


class Page:
    """Serves the page at ``url`` until people have finished or `close` is called. The address has a secret part, so
    that other pages in the same browser, and other users of the machine, cannot read or choose. ``better``: what people
    are asked. Raises CONFIG_RANGE if another program uses the port."""

    def __init__(self, comparing: Comparing, port: int = 0, better: str = "") -> None:
        self.done = threading.Event()
        secret = secrets.token_urlsafe(16)
        try:
            self._server = _Server(("127.0.0.1", port), _handler(comparing, f"/{secret}", better, self.done.set))
        except OSError as error:
            what = f"port {port} cannot be used: {error.strerror}."
            fix = "choose another, or leave --port out."
            raise ConfigError("CONFIG_RANGE", what, where="--port", fix=fix) from None
        self.url = f"http://127.0.0.1:{self._server.server_port}/{secret}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="compare", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that closes a connection is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _handler(comparing: Comparing, path: str, better: str, finish: Callable[[], None]) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()  # a choice is read and written by one request at a time

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "tunewright", ""

        def do_GET(self) -> None:
            if not self._is_known():
                return
            asked = parse_qs(urlsplit(self.path).query).get("row", [""])[0]
            with lock:
                shown = _shown(comparing, _number(asked))
            self._page(**shown)

        def do_POST(self) -> None:
            if not self._is_known():
                return
            size = self.headers.get("content-length", "")
            if not size.isascii() or not size.isdigit() or int(size) > MOST_BYTES:
                _answer(self, HTTPStatus.BAD_REQUEST, "a choice has a length of at most 4096 bytes")
                return
            sent = {k: v[0] for k, v in parse_qs(self.rfile.read(int(size)).decode("utf-8", "replace")).items()}
            try:
                with lock:
                    outcome = _choose(comparing, sent)
            except TunewrightError as error:  # a full disk: nothing is lost but this choice
                _answer(
                    self,
                    HTTPStatus.INSUFFICIENT_STORAGE,
                    f"{error}\n\nThe choice was not saved. Go back and repeat it.",
                )
                return
            if outcome == "finish":
                self._page(pair=None, finished=True)
                finish()
            elif outcome == "unknown":
                _answer(self, HTTPStatus.BAD_REQUEST, "no such choice")
            else:
                _see(self, path)

        def _is_known(self) -> bool:
            known = secrets.compare_digest(self.path.partition("?")[0].encode(), path.encode())
            if not known:
                _answer(self, HTTPStatus.NOT_FOUND, "not found")
            return known

        def _page(self, **shown: object) -> None:
            nonce = secrets.token_urlsafe(16)
            _answer(
                self,
                HTTPStatus.OK,
                page.render("compare.html.j2", nonce=nonce, path=path, better=better, **shown),
                nonce,
            )

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


def _see(handler: BaseHTTPRequestHandler, path: str) -> None:
    handler.send_response(HTTPStatus.SEE_OTHER)
    handler.send_header("location", path)
    handler.send_header("content-length", "0")
    handler.end_headers()


def _shown(comparing: Comparing, row: int | None) -> dict[str, object]:
    """The pair of ``row``, if there is a choice to look at again; otherwise the next one. ``back``: the row chosen
    before it."""
    known = comparing.choices()
    rows = list(known)
    pair, chosen, place = comparing.next(), None, len(rows)
    if row is not None and row in known:
        pair, chosen, place = comparing.pair_of(row), known[row], rows.index(row)
    return {
        "pair": pair,
        "chosen": chosen,
        "with_reference": comparing.against != REFERENCE,
        "against": comparing.against,
        "number": place + 1,
        "back": rows[place - 1] if place else None,
        "asked": len(comparing.asked),
        "result": comparing.result() if pair is None else None,
        "finished": False,
    }


def _choose(comparing: Comparing, sent: dict[str, str]) -> Literal["chosen", "finish", "unknown"]:
    """What a request was: "unknown" if there is no such choice. One about a row that has a choice counts only if that
    was shown: in another tab, it may have been chosen meanwhile."""
    sides: dict[str, Side] = {side: side for side in get_args(Side)}
    choice, row = sent.get("choice", ""), _number(sent.get("row", ""))
    if choice == "finish":
        return "finish"
    if choice not in sides or row is None or comparing.pair_of(row) is None:
        return "unknown"
    if row not in comparing.choices() or sent.get("again") == "1":
        comparing.choose(row, sides[choice])
    return "chosen"


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
