"""The bytes of a file: a line over the limit costs that line, wherever the pieces of the file end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError
from tunewright.data import sources
from tunewright.data.files import content
from tunewright.data.files.rows import FileSettings

DROP = FileSettings(drop={"DATA_LINE_TOO_LONG": "data.invalid=drop"})


def pieces(raw: bytes, size: int) -> Iterator[bytes]:
    return (raw[i : i + size] for i in range(0, len(raw), size))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=12), st.integers(1, 25), st.booleans())
def test_long_lines_are_left_out_whatever_the_pieces(lengths: list[int], size: int, ended: bool) -> None:
    raw = b"\n".join(bytes([97 + i]) * n for i, n in enumerate(lengths)) + b"\n" * ended
    expected = b"\n".join(b"" if n > 25 else bytes([97 + i]) * n for i, n in enumerate(lengths)) + b"\n" * ended
    long = [i + 1 for i, n in enumerate(lengths) if n > 25]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "MAX_LINE", 25)
        read = content._lines(pieces(raw, size), "a", DROP)
        assert bytes(read.raw) == expected
        assert [p.where for p in read.dropped] == [f"a:{number}" for number in long]
        if long:
            with pytest.raises(DataError) as caught:
                content._lines(pieces(raw, size), "a", FileSettings())
            assert caught.value.where == f"a:{long[0]}"


def test_the_hash_is_of_the_file_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_LINE", 25)
    one, two = (content._lines(pieces(b"a\n" + c * 30 + b"\nb\n", 9), "a", DROP) for c in (b"x", b"y"))
    assert one.raw == two.raw
    assert one.sha256 != two.sha256


@pytest.mark.parametrize("head", ['[{"text": "', '{"data": [{"text": "', '\ufeff [\n {"text": "'])
def test_an_array_may_be_one_long_line(tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_LINE", 100)
    (tmp_path / "a.json").write_text(head + "x" * 500 + '"}]' + "}" * head.startswith('{"data'))
    assert len(sources.read(tmp_path / "a.json").rows[0].data["text"]) == 500


@pytest.mark.parametrize("head", ['{"text": "', '{"messages": [{"role": "user", "content": "'])
def test_a_row_may_not(tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_LINE", 100)
    (tmp_path / "a.json").write_text(head + "x" * 500)
    with pytest.raises(DataError, match="DATA_LINE_TOO_LONG"):
        sources.read(tmp_path / "a.json")
