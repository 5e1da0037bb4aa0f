"""The store, tokens, fuzzed requests, a full disk, and a server that is killed."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import signal
import sqlite3
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from build import write_chat_rows
from server_running import SHORT_JOB, Running

from tunewright.core.errors import ConfigError, RunError
from tunewright.server.access import Tokens
from tunewright.server.service import open_service
from tunewright.server.store import database as databases
from tunewright.server.store.database import Database
from tunewright.server.store.files import Files, OverQuota
from tunewright.server.store.jobs import Jobs

REQUEST = {"training_file": "file-1", "validation_file": None, "model": "m"}


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.db"
    Database(file).close()
    monkeypatch.setattr(databases, "MIGRATIONS", (*databases.MIGRATIONS, "CREATE TABLE more (x INTEGER);"))
    newer = Database(file)
    assert newer.rows("SELECT * FROM more") == []
    newer.close()
    monkeypatch.undo()
    with pytest.raises(RunError, match=f"version {len(databases.MIGRATIONS) + 1}"):
        Database(file)
    assert oct(file.stat().st_mode)[-3:] == "600"


def test_a_migration_that_fails_leaves_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.db"
    Database(file).close()
    monkeypatch.setattr(databases, "MIGRATIONS", (*databases.MIGRATIONS, "CREATE TABLE a (x); CREATE TABLE a (x);"))
    with pytest.raises(sqlite3.OperationalError):
        Database(file)
    monkeypatch.undo()
    database = Database(file)
    assert not database.rows("SELECT name FROM sqlite_master WHERE name = 'a'")
    database.close()


def test_a_job_ends_once_and_only_for_the_attempt_that_runs_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "server.db")
    jobs = Jobs(database)
    job = jobs.add("t", dict(REQUEST), "d", "ft:m:t::")
    assert not jobs.start(job)  # not validated
    jobs.validated(job)
    first = jobs.start(job)
    assert first == 1
    assert not jobs.start(job)
    jobs.requeue(job, first, "killed", deaths=1)
    (again,) = jobs.in_state("queued")
    second = jobs.start(again)
    assert second == 2
    assert not jobs.finish(job, first, "succeeded", "late")  # of the attempt before
    jobs.requeue(job, first, "late", deaths=9)
    assert jobs.finish(job, second, "succeeded", "done")
    assert not jobs.finish(job, second, "failed", "again")
    now = jobs.get("t", job.id)
    assert now is not None
    assert (now.status, now.deaths, now.attempt) == ("succeeded", 1, 2)
    messages = [row["message"] for row in jobs.events(job.id, None, 100).rows]
    assert messages.count("done") == 1
    assert "late" not in messages
    database.close()


def test_a_job_that_was_cancelled_when_the_server_died_stays_cancelled(tmp_path: Path) -> None:
    database = Database(tmp_path / "server.db")
    jobs = Jobs(database)
    job = jobs.add("t", dict(REQUEST), "d", "ft:m:t::")
    jobs.validated(job)
    attempt = jobs.start(job)
    jobs.want(job, "cancel", "cancel")
    jobs.want(job, "pause", "pause")
    (running,) = jobs.in_state("running")
    assert running.wanted == "cancel"
    jobs.requeue(running, attempt, "The server was restarted", 0)  # as a new server does
    now = jobs.get("t", job.id)
    assert now is not None
    assert now.status == "cancelled"
    assert now.finished_at is not None
    database.close()


def test_pages_meet_every_row_once_whatever_is_added_meanwhile(tmp_path: Path) -> None:
    database = Database(tmp_path / "server.db")
    jobs = Jobs(database)
    made = [jobs.add("t", dict(REQUEST), "d", "ft:").id for _ in range(7)]
    jobs.add("other", dict(REQUEST), "d", "ft:")
    seen, after = list[str](), None
    while True:
        page = jobs.page("t", after, 3)
        seen += [row["id"] for row in page.rows]
        jobs.add("t", dict(REQUEST), "d", "ft:")  # newer ones come before
        if not page.more:
            break
        after = seen[-1]
    assert seen == made[::-1]
    assert jobs.page("t", "nothing", 3).rows == []
    database.close()


def test_an_older_database_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored before counts, too."""
    monkeypatch.setattr(databases, "MIGRATIONS", databases.MIGRATIONS[:1])
    old = Database(tmp_path / "db")
    old.change(
        "INSERT INTO completions (id, tenant, created_at, model, messages, response, metadata)"
        " VALUES ('c', 't', 1, 'm', '[\"é\"]', '{}', '{}')"
    )
    old.close()
    monkeypatch.undo()
    assert Files(Database(tmp_path / "db"), tmp_path / "files", quota=100).room("t") == 100 - 10


def test_files_that_arrive_together_do_not_exceed_the_quota(tmp_path: Path) -> None:
    files = Files(Database(tmp_path / "db"), tmp_path / "files", quota=100)

    class Slow(io.BytesIO):
        """While it is received, another file arrives."""

        def read(self, size: int | None = -1) -> bytes:
            piece = super().read(size)
            if piece:
                files.add("t", "other.jsonl", "user_data", b"y" * 60)
            return piece

    with pytest.raises(OverQuota):
        files.add("t", "x.jsonl", "user_data", Slow(b"x" * 60))
    assert [path.read_bytes() for path in (tmp_path / "files").iterdir()] == [b"y" * 60]
    assert files.room("t") == 40


def test_content_without_a_record_is_removed(tmp_path: Path) -> None:
    """Of a server that was killed between the two."""
    files = Files(Database(tmp_path / "db"), tmp_path / "files", quota=100)
    kept = files.add("t", "x.csv", "user_data", b"kept")
    for name in (".file-1.jsonl", "file-2.jsonl", "part_3"):
        (tmp_path / "files" / name).write_bytes(b"left")
    files.remove_leftovers()
    assert list((tmp_path / "files").iterdir()) == [files.path(kept)]


def test_quota_and_expiry(tmp_path: Path) -> None:
    database = Database(tmp_path / "server.db")
    files = Files(database, tmp_path / "files", quota=100)
    kept = files.add("t", "a.jsonl", "fine-tune", b"x" * 60)
    with pytest.raises(OverQuota):
        files.add("t", "b.jsonl", "fine-tune", b"x" * 41)
    files.add("u", "b.jsonl", "fine-tune", b"x" * 100)  # another tenant's room
    assert sorted(p.name for p in (tmp_path / "files").iterdir()) == sorted(
        files.path(f).name for f in (kept, *(databases_files(files, "u")))
    )
    database.change("UPDATE files SET expires_at = 1 WHERE id = ?", kept.id)
    files.remove_expired()
    assert files.get("t", kept.id) is None
    assert not files.path(kept).exists()
    assert files.room("t") == 100
    database.close()


def databases_files(files: Files, tenant: str) -> list[Any]:
    from tunewright.server.store.files import of_row

    return [of_row(row) for row in files.page(tenant, None, None, 100, newest_first=False).rows]


def test_tokens(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens")
    first, other = tokens.token_of("default"), tokens.add("other")
    assert (tokens.tenant(first), tokens.tenant(other), tokens.tenant("tw-"), tokens.tenant("")) == (
        "default",
        "other",
        None,
        None,
    )
    assert oct((tmp_path / "tokens").stat().st_mode)[-3:] == "600"
    for name in ("other", "A", "../x", ""):
        with pytest.raises(ConfigError):
            tokens.add(name)
    assert Tokens(tmp_path / "tokens").token_of("default") == first


def test_one_server_for_each_home(server: Running) -> None:
    with pytest.raises(RunError, match="serves this folder"):
        open_service(server.service.settings)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing can be flushed any more."""
    with monkeypatch.context() as patch:

        def refuse(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", refuse)
        yield


def test_a_full_disk_is_an_error_and_nothing_half_is_left(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = server.service.settings.home / "files"
    before = sorted(folder.iterdir())
    with server.http() as http, full_disk(monkeypatch):
        response = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b"x" * 1000)})
    assert response.status_code == 507
    assert "No space left" in response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"
    assert sorted(folder.iterdir()) == before


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


def body(draw: random.Random, server: Running, known: list[str]) -> Any:
    """Nearly a request, often."""
    if draw.random() < 0.3:
        return junk(draw)
    values = {
        "model": server.model,
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


def fuzz(server: Running, known: list[str], count: int, seed: int) -> dict[int, int]:
    """Statuses of so many requests. Jobs and batches that they make by chance are cancelled."""
    draw, statuses = random.Random(seed), dict[int, int]()
    paths = [path.split(" ", 1) for path in PATHS.split("|")]
    with server.http("other") as http:
        for _ in range(count):
            method, path = draw.choice(paths)
            name = draw.choice([*known, "x", "..", "%00", "a/b", "é", "ft:x:y::z", "'; DROP TABLE jobs; --", "9" * 300])
            keys = draw.choices(["limit", "after", "order", "model", "start"], k=draw.randint(0, 2))
            query = {key: spelled(draw) for key in keys}
            given: dict[str, Any] = {"params": query if draw.random() < 0.3 else None}
            if method == "POST":
                kind = draw.random()
                if kind < 0.8:
                    content = json.dumps(body(draw, server, known), allow_nan=True).encode()
                    given |= {"content": content, "headers": {"content-type": "application/json"}}
                elif kind < 0.9:
                    given |= {"data": {draw.choice(NAMES): spelled(draw)}}
                else:
                    given |= {"content": draw.randbytes(20), "headers": {"content-type": draw.choice(TYPES)}}
            response = http.request(method, path.replace("{x}", name), **given)
            assert response.status_code < 500 or response.status_code == 501, (method, path, name, given, response.text)
            assert "secret-of-default" not in response.text
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        for job in http.get("/v1/fine_tuning/jobs", params={"limit": 100}).json()["data"]:
            http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    return statuses


def spelled(draw: random.Random) -> str:
    """A value of a form or a query."""
    return str(junk(draw, 9)).encode("utf-8", "replace").decode()


TYPES = ["application/json", "multipart/form-data", "multipart/form-data; boundary=x", "text/plain", ""]


@pytest.fixture(scope="module")
def known(server: Running, trained: Any) -> list[str]:
    """Ids of the default tenant, whose content another one must never see."""
    client = server.client()
    file = client.files.create(
        file=("a.jsonl", b'{"prompt": "secret-of-default", "completion": "b"}'), purpose="fine-tune"
    )
    kept = client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": "secret-of-default"}], max_tokens=2, store=True
    )
    return [file.id, kept.id, trained.id, trained.fine_tuned_model, trained.result_files[0]]


def test_a_thousand_fuzzed_requests(server: Running, known: list[str]) -> None:
    statuses = fuzz(server, known, 1000, seed=0)
    assert statuses.get(200, 0) > 50
    assert statuses.get(400, 0) > 100


def test_the_document_describes_what_the_server_does(server: Running) -> None:
    """schemathesis, from the server's own OpenAPI document: no 5xx, and every answer as documented."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    headers = {"authorization": f"Bearer {server.token('other')}"}
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=6,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any) -> None:
            nonlocal tried
            tried += 1
            response = case.call(headers=headers)
            assert response.status_code < 500 or response.status_code == 501, (case.as_curl_command(), response.text)

        check()
    assert tried > 100


def server_process(home: Path, model: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tunewright", "serve", "--home", str(home), "--model", str(model), "--port", "0"]
    with open(log, "ab") as out:
        return subprocess.Popen([*command, "--dtype", "float32"], stdout=out, stderr=out, cwd=home.parent)


def reached(log: Path, process: subprocess.Popen[bytes], seen: int) -> tuple[httpx.Client, int]:
    """A client of the server, once it listens."""
    for _ in range(600):
        addresses = re.findall(r"base_url +(\S+)/v1\napi_key +(\S+)", log.read_text())
        if len(addresses) > seen:
            url, token = addresses[-1]
            return httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=60), len(addresses)
        assert process.poll() is None, log.read_text()[-2000:]
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])


def kill_and_count(
    tmp_path: Path, model: Path, jobs: int, kills: int, settings: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Queue jobs, kill the server again and again, and let it finish. Returns what became of them."""
    home, log, draw = tmp_path / "home", tmp_path / "log", random.Random(0)
    log.touch()
    process, made, killed, seen = server_process(home, model, log), list[str](), 0, 0
    http, seen = reached(log, process, seen)
    rows = write_chat_rows(tmp_path / "rows.jsonl", 60).read_bytes()
    file = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", rows)}).json()["id"]
    body = {"model": model.name, "training_file": file, "tunewright": settings}
    for _ in range(jobs):
        made.append(http.post("/v1/fine_tuning/jobs", json=body).json()["id"])
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if killed < kills:
            time.sleep(draw.uniform(1, 8))
            process.send_signal(signal.SIGKILL)
            process.wait()
            http.close()
            killed += 1
            process = server_process(home, model, log)
            http, seen = reached(log, process, seen)
        states = [http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] for job_id in made]
        if killed >= kills and all(state == "succeeded" for state in states):
            break
        assert "failed" not in states
        time.sleep(0.5)
    finished = [http.get(f"/v1/fine_tuning/jobs/{job_id}").json() for job_id in made]
    events = {j: http.get(f"/v1/fine_tuning/jobs/{j}/events", params={"limit": 100}).json()["data"] for j in made}
    process.terminate()
    process.wait(60)
    http.close()
    return {"jobs": finished, "events": events, "kills": killed, "log": log.read_text()}


@pytest.mark.slow
def test_a_server_that_is_killed_loses_no_job(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    done = kill_and_count(tmp_path, model_folder("llama"), jobs=6, kills=6, settings=SHORT_JOB, seconds=400)
    assert [j["status"] for j in done["jobs"]] == ["succeeded"] * 6
    ends = [j["finished_at"] for j in done["jobs"]]
    assert ends == sorted(ends), "the order is not kept"
    for events in done["events"].values():
        messages = [e["message"] for e in events]
        assert messages.count("The job has successfully completed") == 1
        assert len([m for m in messages if m.startswith("Step")]) == 6
    assert len({j["result_files"][0] for j in done["jobs"]}) == 6
