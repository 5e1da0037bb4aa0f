"""A real chat completions server for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def endpoint(
    reply: Callable[[str], str | bytes | int], fail_after: int = 10**9, port: int = 0
) -> Iterator[tuple[str, list[Any]]]:
    """(URL, the requests so far). ``reply``: the text of an answer; or all that is sent, in bytes; or a status, without
    an answer. After ``fail_after`` requests, it rejects the key."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append({**body, "authorization": self.headers.get("authorization")})
            answer = reply(body["messages"][-1]["content"]) if len(seen) <= fail_after else 401
            choice = {"message": {"content": answer}, "finish_reason": "stop"}
            data = answer if isinstance(answer, bytes) else json.dumps({"choices": [choice], "usage": {}}).encode()
            self.send_response(answer if isinstance(answer, int) else 200)
            self.send_header("content-length", str(len(data)))
            if answer == 429:
                self.send_header("retry-after", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
