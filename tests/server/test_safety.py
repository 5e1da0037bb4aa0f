"""The store, tokens, fuzzed requests, a full disk, and a server that is killed."""

from __future__ import annotations

import errno
import io
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from server_running import Running
from torture_server import Ends, fuzz, kill_and_count, secrets

from tunewright.core.errors import ConfigError, RunError
from tunewright.core.run_folder import append_line
from tunewright.server.access import Tokens
from tunewright.server.chat.batches import BatchRunner
from tunewright.server.service import open_service
from tunewright.server.store import database as databases
from tunewright.server.store.batches import Batches
from tunewright.server.store.database import Database
from tunewright.server.store.files import Files, OverQuota, of_row
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


def test_what_a_batch_leaves_is_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is killed, or the disk is full, after its files were stored and before it ended."""
    database = Database(tmp_path / "db")
    files, batches = Files(database, tmp_path / "files", quota=1), Batches(database)
    runner = BatchRunner(batches, files, cast(Any, None), tmp_path / "batches")
    batch = batches.add("t", {"endpoint": "/v1/completions", "input_file_id": "f"}, None)
    batches.become(batch, "in_progress")
    out, failed = (tmp_path / "batches" / f"{batch.id}.{end}" for end in ("out", "err"))
    for file in (out, failed):
        file.parent.mkdir(exist_ok=True)
        append_line(file, {"custom_id": file.suffix})

    def killed(*_: Any, **__: Any) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("become", "become", "insert"):
        with monkeypatch.context() as patch:
            patch.setattr(batches if name == "become" else files, name, killed)
            with pytest.raises(OSError, match="No space"):
                runner._finish(batch, out, failed)
    runner._finish(batch, out, failed)
    now = batches.get("t", batch.id)
    assert now is not None
    assert now.status == "completed"
    stored = {row["id"]: files.path(of_row(row)) for row in files.page("t", None, None, 9, newest_first=True).rows}
    assert set(stored) == {now.output_file, now.error_file}
    assert {path.read_text() for path in stored.values()} == {'{"custom_id": ".out"}\n', '{"custom_id": ".err"}\n'}
    assert sorted((tmp_path / "files").iterdir()) == sorted(stored.values())
    assert list((tmp_path / "batches").iterdir()) == []
    assert files.add_beyond_quota("t", "x.csv", "user_data", b"1", "a").id != now.output_file
    database.close()


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


@pytest.fixture(scope="module")
def known(server: Running, trained: Any) -> list[str]:
    """Ids of the default tenant, whose content another one must never see."""
    with server.http() as http:
        made = secrets(http, server.model)
    return [*made, trained.id, trained.fine_tuned_model, trained.result_files[0]]


def test_a_thousand_fuzzed_requests(server: Running, known: list[str]) -> None:
    with server.http("other") as http:
        statuses = fuzz(http, server.model, known, 1000, seed=0)
    assert statuses[200] > 50
    assert statuses[400] > 100


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


@pytest.mark.slow
def test_a_server_that_is_killed_loses_no_job(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    ends = kill_and_count(tmp_path / "home", model_folder("llama"), Ends(jobs=6, kills=6), every=4.5, seconds=400)
    assert (ends.kills, ends.lost, ends.twice, ends.out_of_order) == (6, 0, 0, 0)
    assert ends.continued
