"""A real chat completions server for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def endpoint(reply: Callable[[str], str], fail_after: int = 10**9, port: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """(URL, the requests so far); after ``fail_after`` requests, it refuses."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append({**body, "authorization": self.headers.get("authorization")})
            choice = {"message": {"content": reply(body["messages"][-1]["content"])}, "finish_reason": "stop"}
            data = json.dumps({"choices": [choice], "usage": {}}).encode()
            self.send_response(200 if len(seen) <= fail_after else 400)
            self.send_header("content-length", str(len(data)))
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
