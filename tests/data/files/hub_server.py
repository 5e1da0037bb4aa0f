"""A server on this machine that answers as much of the Hub's API as reading a data set needs."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train.jsonl}
  - {split: test, path: data/test.jsonl}
- config_name: other
  data_files: data/other.jsonl
dataset_info:
  config_name: default
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': negative, '1': positive}}}
---
"""


def rows(count: int) -> bytes:
    return "".join(
        json.dumps({"text": f"text number {i}", "label": -1 if i == 7 else i % 2}) + "\n" for i in range(count)
    ).encode()


FILES = {
    "README.md": CARD.encode(),
    "data/train.jsonl": rows(40),
    "data/test.jsonl": rows(10),
    "data/other.jsonl": b'{"text": "some text"}\n',
}


def blob(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


def entry(name: str) -> dict[str, object]:
    return {"type": "file", "path": name, "oid": blob(FILES[name]), "size": len(FILES[name])}


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def do_GET(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        path = self.path.partition("?")[0]
        _, _, name = path.partition(f"/{COMMIT}/")
        if path.startswith("/datasets/owner/name/resolve/"):
            if name in FILES:
                self.answer(FILES[name], X_Repo_Commit=COMMIT, ETag=f'"{blob(FILES[name])}"')
            else:
                self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        elif path in (f"/api/datasets/owner/name/revision/{r}" for r in ("main", "v1", COMMIT)):
            files = [{"rfilename": f} for f in FILES]
            self.answer({"id": "owner/name", "sha": COMMIT, "private": False, "tags": [], "siblings": files})
        elif path.startswith("/api/datasets/owner/name/tree/"):
            inside = [f for f in FILES if f.rpartition("/")[0] == name]
            folders = [{"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}] if not name else []
            self.answer([*map(entry, inside), *folders])
        elif "/paths-info/" in path:
            self.answer([entry(f) for f in asked["paths"] if f in FILES])
        else:
            self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_POST = do_GET


@contextmanager
def running() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
