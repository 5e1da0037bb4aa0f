"""A Hub on this machine: as much of its API as pushing a repository needs. It keeps what it receives."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml


@dataclass
class FakeHub:
    """``files``: by path, of the last commit. ``refuse``: status that creating a repository is answered with."""

    url: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    refuse: int = 0

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            if self.refuse:
                return self.refuse, {"error": "no right to create a repository there"}
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repos:  # as it is: what is asked for does not change it
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            self.repos[name] = asked
            return 200, {"url": f"{self.url}/{name}"}
        if method == "GET" and path.removeprefix("/api/models/") in self.repos:
            name = path.removeprefix("/api/models/")
            return 200, {"id": name, "private": self.repos[name].get("visibility") == "private"}
        if path == "/api/validate-yaml":
            head = json.loads(body)["content"].removeprefix("---\n").split("\n---\n")[0]
            return (200, {}) if isinstance(yaml.safe_load(head), dict) else (400, {"errors": [{"message": "no head"}]})
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".gguf")) else "regular" for name in names}
            return 200, {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{self.url}/large/{o['oid']}"}} for o in objects]
            both = zip(objects, actions, strict=True)
            return 200, {"transfer": "basic", "objects": [{**o, "actions": action} for o, action in both]}
        if method == "PUT" and path.startswith("/large/"):
            oid = path.removeprefix("/large/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.large[oid] = body
            return 200, {}
        if "/commit/" in path:
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    self.files[value["path"]] = self.large[value["oid"]]
                else:
                    self.commits.append(value["summary"])
            repo = path.removeprefix("/api/models/").split("/commit/")[0]
            return 200, {"commitUrl": f"{self.url}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40}
        return 404, {"error": f"{method} {path} is not known here"}


@contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hub.tokens.add(self.headers.get("authorization", ""))
            size = int(self.headers.get("content-length", 0))
            status, value = hub.answer(self.command, self.path.split("?")[0], self.rfile.read(size))
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
