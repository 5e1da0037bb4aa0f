"""A server that is killed while it has jobs, and one that is asked what no client asks; both on a tiny model.

python tests/torture_server.py [--jobs 300 --kills 20] [--requests 100000] [--out FILE]

Of the jobs: each ends once and in order, and reports every step once. Of the requests: no 5xx but 501, and nothing of
another tenant in an answer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from build import byte_tokenizer, tiny_model, write_chat_rows
from server_running import SHORT_JOB

from tunewright.server.access import Tokens

SECRET = "secret-of-default"
COMPLETED = "The job has successfully completed"


@dataclass
class Process:
    """A server in a process of its own, which can be killed and started again. ``tenants``: beside the default one."""

    home: Path
    model: Path
    tenants: tuple[str, ...] = ()
    log: Path = field(init=False)
    http: httpx.Client = field(init=False)
    _process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.home.parent / "log"
        self.log.touch()
        self.start()
        for tenant in self.tenants:
            Tokens(self.home / "tokens").add(tenant)

    def start(self) -> None:
        """Returns when it listens."""
        before = len(self._addresses())
        words = ["serve", "--home", str(self.home), "--model", str(self.model), "--port", "0", "--dtype", "float32"]
        with open(self.log, "ab") as out:
            command = [sys.executable, "-m", "tunewright", *words]
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=self.home.parent)
        while len(self._addresses()) == before:
            assert self._process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.1)
        self.http = self.client("default")

    def _addresses(self) -> list[str]:
        return re.findall(r"base_url +(\S+)/v1\napi_key", self.log.read_text())

    def client(self, tenant: str) -> httpx.Client:
        token = Tokens(self.home / "tokens").token_of(tenant)
        return httpx.Client(base_url=self._addresses()[-1], headers={"authorization": f"Bearer {token}"}, timeout=120)

    def kill(self) -> None:
        self._stop(signal.SIGKILL)

    def close(self) -> None:
        self._stop(signal.SIGTERM)

    def _stop(self, how: signal.Signals) -> None:
        self.http.close()
        self._process.send_signal(how)
        self._process.wait(60)

    def get(self, path: str, **query: Any) -> Any:
        return self.http.get(path, params=query).json()

    def every(self, path: str) -> list[Any]:
        """All pages of a list."""
        rows, more = list[Any](), {}
        while True:
            page = self.get(path, limit=100, **more)
            rows += page["data"]
            if not page["has_more"]:
                return rows
            more = {"after": page["last_id"]}


# -- jobs of a server that is killed


@dataclass
class Ends:
    """What became of the jobs. ``lost``: not succeeded; ``twice``: with another number of ends or of steps than one
    each; ``out_of_order``: ended before one that was made before it."""

    jobs: int
    kills: int = 0
    continued: int = 0
    lost: int = 0
    twice: int = 0
    out_of_order: int = 0
    seconds: int = 0


def kill_and_count(home: Path, model: Path, ends: Ends, every: float, seconds: float) -> Ends:
    """Queue jobs, kill the server ``ends.kills`` times, about ``every`` so many seconds, and let it finish."""
    draw, begun, kills = random.Random(0), time.monotonic(), 0
    server = Process(home, model)
    rows = write_chat_rows(home.parent / "rows.jsonl", 60).read_bytes()
    data, files = {"purpose": "fine-tune"}, {"file": ("rows.jsonl", rows)}
    file = server.http.post("/v1/files", data=data, files=files).json()["id"]
    body = {"model": model.name, "training_file": file, "tunewright": SHORT_JOB}
    made = [server.http.post("/v1/fine_tuning/jobs", json=body).json()["id"] for _ in range(ends.jobs)]
    while time.monotonic() - begun < seconds:
        time.sleep(draw.uniform(1, 2 * every) if kills < ends.kills else 1)
        states = Counter(job["status"] for job in server.every("/v1/fine_tuning/jobs"))
        print(f"{time.monotonic() - begun:.0f} s, {kills} kills: {dict(states)}", file=sys.stderr, flush=True)  # noqa: T201
        if not set(states) - {"succeeded", "failed", "cancelled"}:
            break
        if kills < ends.kills:
            kills += 1
            server.kill()
            server.start()
    jobs = {job["id"]: job for job in server.every("/v1/fine_tuning/jobs")}
    for job_id in made:
        messages = [event["message"] for event in server.every(f"/v1/fine_tuning/jobs/{job_id}/events")]
        steps = [message for message in messages if message.startswith("Step")]
        ends.twice += messages.count(COMPLETED) > 1 or len(steps) != len(set(steps)) or len(steps) > 6
        ends.lost += jobs[job_id]["status"] != "succeeded" or COMPLETED not in messages or len(steps) < 6
        ends.continued += jobs[job_id]["tunewright"]["attempts"] > 1
    finished = [jobs[job_id]["finished_at"] or 0 for job_id in made]
    ends.out_of_order = sum(after < before for before, after in itertools.pairwise(finished))
    ends.kills, ends.seconds = kills, round(time.monotonic() - begun)
    server.close()
    return ends


# -- requests that no client would send


def junk(draw: random.Random, depth: int = 0) -> Any:
    """A value of JSON that no client would send."""
    simple: list[Callable[[], Any]] = [
        lambda: draw.choice([None, True, False, 0, -1, 1, 2**63, -(2**70), 1e308, 0.5]),
        lambda: "".join(draw.choices(string.printable + "\u0000\ud800\U0001f600", k=draw.randint(0, 12))),
        lambda: draw.choice(["user", "assistant", "system", "tool", "auto", "none", "json_schema", "text"]),
    ]
    if depth > 3:
        return draw.choice(simple)()
    nested: list[Callable[[], Any]] = [
        lambda: [junk(draw, depth + 1) for _ in range(draw.randint(0, 3))],
        lambda: {draw.choice(NAMES): junk(draw, depth + 1) for _ in range(draw.randint(0, 4))},
    ]
    return draw.choice([*simple, *nested])()


NAMES = """model messages role content temperature top_p n seed stop stream max_tokens logprobs top_logprobs tools type
function name parameters response_format json_schema schema properties tool_choice training_file method hyperparameters
n_epochs suffix metadata input instructions text format prompt echo endpoint input_file_id completion_window filename
purpose bytes part_ids tunewright user logit_bias tool_calls arguments id""".split()  # noqa: SIM905
PATHS = """GET /v1/models|GET /v1/models/{x}|DELETE /v1/models/{x}|GET /v1/files|GET /v1/files/{x}|DELETE /v1/files/{x}
GET /v1/files/{x}/content|POST /v1/uploads|POST /v1/uploads/{x}/complete|POST /v1/uploads/{x}/cancel
POST /v1/fine_tuning/jobs|GET /v1/fine_tuning/jobs|GET /v1/fine_tuning/jobs/{x}|POST /v1/fine_tuning/jobs/{x}/cancel
POST /v1/fine_tuning/jobs/{x}/pause|GET /v1/fine_tuning/jobs/{x}/events|GET /v1/fine_tuning/jobs/{x}/checkpoints
POST /v1/chat/completions|GET /v1/chat/completions|GET /v1/chat/completions/{x}|POST /v1/chat/completions/{x}
GET /v1/chat/completions/{x}/messages|POST /v1/completions|POST /v1/responses|GET /v1/responses/{x}|POST /v1/batches
GET /v1/batches|GET /v1/batches/{x}|POST /v1/batches/{x}/cancel|POST /tunewright/files/from_completions|POST /v1/files
GET /|GET /data|GET /data/{x}|POST /data/{x}/rows|POST /data/{x}/job|GET /jobs/{x}|GET /jobs/{x}/report|GET /playground
POST /playground/keep|GET /exports|GET /static/{x}|POST /jobs/{x}/pause|GET /metrics|GET /health""".replace("\n", "|")


def body(draw: random.Random, model: str, known: list[str]) -> Any:
    """Nearly a request, often."""
    if draw.random() < 0.3:
        return junk(draw)
    values = {
        "model": model,
        "messages": [{"role": "user", "content": "x"}],
        "prompt": "x",
        "input": "x",
        "max_tokens": draw.randint(1, 3),
        "max_output_tokens": 2,
        "training_file": draw.choice(known),
        "input_file_id": draw.choice(known),
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        "filename": "x",
        "purpose": "batch",
        "bytes": 3,
    }
    chosen = {k: v for k, v in values.items() if draw.random() < 0.8}
    for _ in range(draw.randint(0, 3)):
        chosen[draw.choice(NAMES)] = junk(draw)
    chosen.pop("stream", None)
    return chosen


def fuzz(http: httpx.Client, model: str, known: list[str], count: int, seed: int) -> Counter[int]:
    """Statuses of so many requests. Jobs that they make by chance are cancelled. ``http``: of a tenant that must never
    see what ``known`` names."""
    draw, statuses = random.Random(seed), Counter[int]()
    paths = [path.split(" ", 1) for path in PATHS.split("|")]
    for _ in range(count):
        method, path = draw.choice(paths)
        name = draw.choice([*known, "x", "..", "%00", "a/b", "é", "ft:x:y::z", "'; DROP TABLE jobs; --", "9" * 300])
        keys = draw.choices(["limit", "after", "order", "model", "start"], k=draw.randint(0, 2))
        query = {key: spelled(draw) for key in keys}
        given: dict[str, Any] = {"params": query if draw.random() < 0.3 else None}
        if method == "POST":
            kind = draw.random()
            if kind < 0.8:
                content = json.dumps(body(draw, model, known), allow_nan=True).encode()
                given |= {"content": content, "headers": {"content-type": "application/json"}}
            elif kind < 0.9:
                given |= {"data": {draw.choice(NAMES): spelled(draw)}}
            else:
                given |= {"content": draw.randbytes(20), "headers": {"content-type": draw.choice(TYPES)}}
        response = http.request(method, path.replace("{x}", name), **given)
        assert response.status_code < 500 or response.status_code == 501, (method, path, name, given, response.text)
        assert SECRET not in response.text
        statuses[response.status_code] += 1
    for job in http.get("/v1/fine_tuning/jobs", params={"limit": 100}).json()["data"]:
        http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    return statuses


def spelled(draw: random.Random) -> str:
    """A value of a form or a query."""
    return str(junk(draw, 9)).encode("utf-8", "replace").decode()


TYPES = ["application/json", "multipart/form-data", "multipart/form-data; boundary=x", "text/plain", ""]


def secrets(http: httpx.Client, model: str) -> list[str]:
    """Ids of a tenant's file and chat, whose content another one must never see."""
    rows = f'{{"prompt": "{SECRET}", "completion": "b"}}'.encode()
    file = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", rows)}).json()
    chat = {"model": model, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 2, "store": True}
    return [file["id"], http.post("/v1/chat/completions", json=chat).json()["id"]]


def fuzz_process(home: Path, model: Path, count: int) -> dict[str, Any]:
    """In blocks of 1000; the seed of a block is its number."""
    begun, statuses = time.monotonic(), Counter[int]()
    server = Process(home, model, tenants=("other",))
    known = secrets(server.http, model.name)
    with server.client("other") as other:
        for seed in range(count // 1000):
            statuses += fuzz(other, model.name, known, 1000, seed)
            print(f"{time.monotonic() - begun:.0f} s: {sum(statuses.values())} requests", file=sys.stderr, flush=True)  # noqa: T201
    server.close()
    by_status = {str(status): n for status, n in sorted(statuses.items())}
    return {"requests": sum(statuses.values()), "statuses": by_status, "seconds": round(time.monotonic() - begun)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=float, default=60, help="seconds between two kills, on average")
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture-server-") as temporary:
        folder = Path(temporary)
        tokenizer = byte_tokenizer()
        tiny_model("llama", vocabulary=len(tokenizer)).save_pretrained(folder / "tiny")
        tokenizer.save_pretrained(folder / "tiny")
        results: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
        for name in ("jobs", "requests"):
            (folder / name).mkdir()
        if asked.jobs:
            ends = Ends(asked.jobs, asked.kills)
            done = kill_and_count(folder / "jobs" / "home", folder / "tiny", ends, asked.every, seconds=4 * 3600)
            results["jobs"] = vars(done)
        if asked.requests:
            results["requests"] = fuzz_process(folder / "requests" / "home", folder / "tiny", asked.requests)
    print(json.dumps(results, indent=1))  # noqa: T201
    if asked.out:
        asked.out.write_text(json.dumps(results, indent=1) + "\n")
    jobs = results.get("jobs", {})
    sys.exit(any(jobs.get(name) for name in ("lost", "twice", "out_of_order")))


if __name__ == "__main__":
    main()
