"""The same rows give the same examples, whatever the file that they are in."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError
from tunewright.data import formats, sources
from tunewright.data.files.rows import FileSettings
from tunewright.data.messages import Example

Rows = list[dict[str, str]]
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)
ROWS = st.lists(st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}), min_size=2, max_size=6)


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def table(rows: Rows) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["prompt", "completion"], lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def parquet(rows: Rows) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


FILES: dict[str, Callable[[Rows], bytes]] = {
    "plain.jsonl": lines,
    "signed.jsonl": lambda rows: b"\xef\xbb\xbf" + lines(rows).replace(b"\n", b"\r\n"),
    "array.json": lambda rows: json.dumps(rows).encode(),
    "indented.json": lambda rows: json.dumps({"data": rows}, indent=2).encode(),
    "table.csv": table,
    "table.parquet": parquet,
    "no_suffix": parquet,
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "a.csv.gz": lambda rows: gzip.compress(table(rows)),
    "a.jsonl": lambda rows: zstandard.compress(lines(rows)),
    "a.bz2": lambda rows: bz2.compress(lines(rows)),
    "a.json.xz": lambda rows: lzma.compress(json.dumps(rows).encode()),
    "a.parquet.zst": lambda rows: zstandard.compress(parquet(rows)),
}


def examples(source: sources.Source) -> list[tuple[str, str]]:
    parsed: tuple[Example, ...] = formats.parse(source.rows).examples
    return [(e.question, e.target) for e in parsed]


@settings(max_examples=25, deadline=None)
@given(ROWS, st.data())
def test_the_same_rows_give_the_same_examples(
    tmp_path_factory: pytest.TempPathFactory, rows: Rows, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("same")
    expected = [(r["prompt"], r["completion"]) for r in rows]
    for name, make in FILES.items():
        (folder / name).write_bytes(make(rows))
        assert examples(sources.read(folder / name)) == expected, name
    cut = data.draw(st.integers(1, len(rows) - 1))
    for number, part in ((1, rows[:cut]), (2, rows[cut:])):
        (folder / f"part{number}.jsonl").write_bytes(data.draw(st.sampled_from([lines, FILES["a.jsonl.gz"]]))(part))
    assert examples(sources.read(str(folder / "part*.jsonl"))) == expected
    assert examples(sources.read([str(folder / f"part{n}.jsonl") for n in (1, 2)])) == expected
    store = fsspec.filesystem("memory")
    store.pipe("/same.jsonl.gz", FILES["a.jsonl.gz"](rows))
    assert examples(sources.read("memory://same.jsonl.gz")) == expected


def test_the_same_content_has_the_same_hash(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}]
    hashes = set()
    for name in ("plain.jsonl", "a.jsonl.gz", "a.jsonl", "a.bz2"):
        (tmp_path / name).write_bytes(FILES[name](rows))
        hashes.add(sources.read(tmp_path / name).sha256)
    assert len(hashes) == 1


def test_lists_in_parquet_stay_lists(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pq.write_table(pa.Table.from_pylist([{"messages": messages, "n": None, "tags": ["x"]}]), tmp_path / "a.parquet")
    (row,) = sources.read(tmp_path / "a.parquet").rows
    assert row.data == {"messages": messages, "tags": ["x"]}


def test_an_empty_file_among_several(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "b.jsonl").write_text("\n")
    files = [str(tmp_path / n) for n in ("a.jsonl", "b.jsonl")]
    with pytest.raises(DataError, match=r"DATA_EMPTY.*b\.jsonl.*data\.empty=drop"):
        sources.read(files)
    drop = FileSettings(drop={"DATA_EMPTY": "data.empty=drop"})
    read = sources.read(files, drop)
    assert len(read.rows) == 1
    assert [(c.where, c.dropped) for c in read.changes] == [(files[1], True)]
    with pytest.raises(DataError, match="DATA_EMPTY"):
        sources.read(files[1:], drop)


def test_a_document_that_cannot_be_read_is_left_out_like_a_row(tmp_path: Path) -> None:
    for name, raw in (("a.txt", b"text"), ("b.txt", b"\xff\xfe\xff"), ("c.txt", b" "), ("d.txt", b"x\x00")):
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as caught:
        sources.read(tmp_path)
    codes = ["DATA_ENCODING", "DATA_EMPTY_TARGET", "DATA_CONTROL_CHAR"]
    assert [p.code for p in caught.value.problems] == codes
    read = sources.read(tmp_path, FileSettings(drop=dict.fromkeys(codes, "data.invalid=drop")))
    assert [Path(r.where).name for r in read.rows] == ["a.txt"]
    assert [c.code for c in read.changes] == codes


def test_a_notice_about_many_files_is_one_line(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n')
    (notice,) = sources.read(str(tmp_path / "*.jsonl")).notices
    assert notice.startswith("0.jsonl and 4 more: the file begins with a byte order mark")


def test_a_message_about_a_broken_row_does_not_show_an_address(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "write to anna.b@mail.example.org" "label": "a"}\n')
    with pytest.raises(DataError) as caught:
        sources.read(path)
    assert "example" not in str(caught.value)
    assert "`" in str(caught.value)
