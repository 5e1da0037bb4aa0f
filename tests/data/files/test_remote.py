"""Files behind URLs, read through fsspec: in memory, and from a web server on this machine."""

from __future__ import annotations

import functools
import gzip
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tunewright.core.errors import DataError, MissingExtra
from tunewright.data import sources

ROWS = b"".join(b'{"text": "row %d of many"}\n' % i for i in range(30))


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    store = fsspec.filesystem("memory")
    store.pipe({"/rows/b.jsonl": ROWS, "/rows/a.jsonl.gz": gzip.compress(ROWS), "/rows/deep/c.csv": b"text\nx\n"})
    yield store
    store.rm("/rows", recursive=True)


@pytest.mark.usefixtures("store")
def test_files_in_a_store_and_patterns() -> None:
    read = sources.read("memory://rows/b.jsonl")
    assert len(read.rows) == 30
    assert read.rows[6].where.endswith("rows/b.jsonl:7")
    several = sources.read("memory://rows/**")
    assert [len([r for r in several.rows if n in r.where]) for n in ("a.jsonl.gz", "b.jsonl", "c.csv")] == [30, 30, 1]
    assert several.rows[0].where.endswith("a.jsonl.gz:1"), "sorted"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("memory://rows/none.jsonl", "DATA_NOT_A_FILE"),
        ("memory://rows/*.parquet", "DATA_NOT_A_FILE"),
        ("nonsense://bucket/a.jsonl", "DATA_UNREADABLE"),
    ],
)
@pytest.mark.usefixtures("store")
def test_what_cannot_be_read_is_an_error(url: str, code: str) -> None:
    with pytest.raises(DataError, match=code) as caught:
        sources.read(url)
    assert caught.value.where == url


@pytest.mark.parametrize(
    ("url", "package"), [("s3://bucket/a.jsonl", "s3fs"), ("gs://bucket/*.jsonl", "gcsfs"), ("az://x/a", "adlfs")]
)
def test_a_missing_driver_is_named(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"requires the package {package}.*pip install {package}"):
        sources.read(url)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text\n" + b"x\n" * 5))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_server(server: str) -> None:
    pytest.importorskip("aiohttp", reason="the driver of https")
    read = sources.read(f"{server}/a.jsonl?signature=secret")
    assert len(read.rows) == 30
    assert "secret" not in read.rows[0].where
    assert len(sources.read(f"{server}/a.csv.gz?x=*").rows) == 5, "the kind is that of the path; ? and * are no pattern"
    with pytest.raises(DataError, match="DATA_NOT_A_FILE"):
        sources.read(f"{server}/none.jsonl")
