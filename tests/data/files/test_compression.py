"""Compressed files: whatever their kind and members, the content is that of the module that compressed it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError, MissingExtra
from tunewright.data import sources
from tunewright.data.files import compression

ZSTD = zstandard.ZstdCompressor(write_content_size=False)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": ZSTD.compress,
}
ROWS = b"".join(b'{"prompt": "question %d", "completion": "answer %d"}\n' % (i, i * 7919) for i in range(200))
kinds = pytest.mark.parametrize("kind", COMPRESS)


def expanded(raw: bytes, size: int = 1 << 20) -> bytes:
    chunks = [raw[i : i + size] for i in range(0, len(raw), size)]
    return b"".join(compression.expanded(chunks[0], iter(chunks), "a"))


@kinds
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(max_size=200).map(lambda b: b * 50), min_size=1, max_size=4),
    st.integers(1, 300),
    st.integers(0, 3),
)
def test_any_members_in_any_chunks(kind: str, members: list[bytes], size: int, padding: int) -> None:
    compressed = b"".join(map(COMPRESS[kind], members)) + b"\0" * (4 * padding)
    size = max(size, 6)  # the first chunk is at least as long as the signature
    assert expanded(compressed, size) == b"".join(members)


def test_zstd_members_that_begin_with_a_skippable_frame() -> None:
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    assert expanded(skipped + ZSTD.compress(ROWS) + skipped + ZSTD.compress(ROWS)) == ROWS * 2


@kinds
def test_a_file_that_ends_early_is_never_read_as_fewer_rows(kind: str, tmp_path: Path) -> None:
    raw = COMPRESS[kind](ROWS)
    for length in range(0, len(raw), 37):
        (tmp_path / "a.jsonl").write_bytes(raw[:length])
        with pytest.raises(DataError) as caught:
            sources.read(tmp_path / "a.jsonl")
        if length > 6:
            assert caught.value.code == "DATA_COMPRESSED", length


def test_the_place_is_the_line_at_which_the_data_ends(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(ROWS)[:-20])
    with pytest.raises(DataError) as caught:
        sources.read(tmp_path / "a.gz")
    _, line = caught.value.where.rsplit(":", 1)
    assert 150 < int(line) <= 201
    assert "ends in the middle" in str(caught.value)


@kinds
def test_damage_is_an_error(kind: str, tmp_path: Path) -> None:
    raw = bytearray(COMPRESS[kind](ROWS))
    for at in (len(raw) // 3, len(raw) // 2, len(raw) - 3):
        damaged = raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :]
        (tmp_path / "a").write_bytes(damaged)
        try:
            rows = sources.read(tmp_path / "a").rows
        except DataError as error:
            assert error.code == "DATA_COMPRESSED"  # noqa: PT017
        else:
            assert kind == "zstd", "zstandard writes no checksum unless it is asked to"
            assert len(rows) == 200
    (tmp_path / "a").write_bytes(bytes(raw) + b"garbage")
    with pytest.raises(DataError, match="DATA_COMPRESSED"):
        sources.read(tmp_path / "a")


@kinds
def test_a_bomb_is_refused_before_it_expands(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "ALWAYS_ALLOWED", 1 << 22)
    bomb = COMPRESS[kind](b"\n" * (1 << 24))
    seen: list[int] = []
    with pytest.raises(DataError, match="DATA_TOO_LARGE"):
        seen.extend(map(len, compression.expanded(bomb, iter([bomb]), "a")))
    assert sum(seen) <= max(1 << 22, compression.MAX_RATIO * len(bomb)) < 1 << 24


def test_a_window_of_two_gigabytes_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, write_content_size=False)
    raw = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(DataError, match="DATA_COMPRESSED"):
        expanded(raw.compress(b"x" * 100) + raw.flush())


def test_without_a_decoder_of_zstd_the_message_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(ZSTD.compress(ROWS))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    with pytest.raises(MissingExtra, match=r"zstandard.*tunewright\[zstd\]"):
        sources.read(tmp_path / "a.jsonl")
