"""Patterns and lists of files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tunewright.core.errors import DataError
from tunewright.data import sources
from tunewright.data.files import paths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("data/b.jsonl", "data/a.jsonl", "data/10.jsonl", "data/deep/c.jsonl", "data/x[1].jsonl", "data/y.csv"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(json.dumps({"text": name}) + "\n" if name.endswith("l") else f"text\n{name}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["data/*.jsonl"], ["data/10.jsonl", "data/a.jsonl", "data/b.jsonl", "data/x[1].jsonl"]),
        (
            ["data/**/*.jsonl"],
            ["data/10.jsonl", "data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl", "data/x[1].jsonl"],
        ),
        (["data/b.jsonl", "data/a.*"], ["data/b.jsonl", "data/a.jsonl"]),
        (["data/x[1].jsonl"], ["data/x[1].jsonl"]),
        (["data/[ab].jsonl"], ["data/a.jsonl", "data/b.jsonl"]),
        (["data/?.csv"], ["data/y.csv"]),
        (["hub:a/b", "https://host/a?b"], ["hub:a/b", "https://host/a?b"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_patterns_are_sorted_and_lists_are_not(names: list[str], expected: list[str]) -> None:
    assert paths.files_of(names) == expected


@pytest.mark.parametrize("names", [["data/*.none"], ["data/b.jsonl", "no/*"], ["*"], ["data/{a,b}.jsonl*"]])
@pytest.mark.usefixtures("folder")
def test_a_pattern_that_matches_no_file_is_an_error(names: list[str]) -> None:
    with pytest.raises(DataError, match="DATA_NOT_A_FILE"):
        paths.files_of(names)


@pytest.mark.parametrize(
    "names", [["data/a.jsonl", "data/*.jsonl"], ["data/a.jsonl", "./data/a.jsonl"], ["data/a.jsonl", "link.jsonl"]]
)
def test_a_file_counts_once(names: list[str], folder: Path) -> None:
    os.symlink(folder / "data" / "a.jsonl", "link.jsonl")
    with pytest.raises(DataError, match="DATA_FILE_TWICE"):
        paths.files_of(names)


@pytest.mark.parametrize("same", ["hub:a/b", "hub:a/b:train", "hub:a/b@main", "hub:a/b@main:train"])
def test_a_data_set_of_the_hub_counts_once_however_it_is_named(same: str) -> None:
    with pytest.raises(DataError, match="DATA_FILE_TWICE"):
        paths.files_of(["hub:a/b", same])
    others = ["hub:a/b@v1", "hub:a/b:test", "hub:a/b/c", "hub:a/c", same]
    assert paths.files_of(others) == others


@pytest.mark.usefixtures("folder")
def test_rows_of_several_kinds_keep_their_places() -> None:
    read = sources.read(["data/y.csv", "data/[ab].jsonl"])
    assert [row.where for row in read.rows] == ["data/y.csv:2", "data/a.jsonl:1", "data/b.jsonl:1"]
    assert [row.data["text"] for row in read.rows] == ["data/y.csv", "data/a.jsonl", "data/b.jsonl"]


@pytest.mark.usefixtures("folder")
def test_the_hash_depends_on_content_and_order_not_on_names() -> None:
    one = sources.read(["data/a.jsonl", "data/b.jsonl"]).sha256
    assert sources.read(["data/b.jsonl", "data/a.jsonl"]).sha256 != one
    os.rename("data/a.jsonl", "data/z.jsonl")
    assert sources.read(["data/z.jsonl", "data/b.jsonl"]).sha256 == one


@pytest.mark.usefixtures("folder")
def test_all_problems_of_all_files_are_shown() -> None:
    Path("data/a.jsonl").write_text("{\n[]\n")
    Path("data/b.jsonl").write_text("oops\n")
    with pytest.raises(DataError) as caught:
        sources.read("data/*.jsonl")
    assert [p.where for p in caught.value.problems] == ["data/a.jsonl:1:2", "data/a.jsonl:2", "data/b.jsonl:1:1"]


def test_documents_in_folders_and_by_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs/more").mkdir(parents=True)
    for name in ("docs/b.md", "docs/a.txt", "docs/more/c.MD", "docs/notes.jsonl"):
        Path(name).write_text(f"text of {name}")
    expected = ["docs/a.txt", "docs/b.md", "docs/more/c.MD"]
    assert [row.where for row in sources.read("docs").rows] == expected
    assert [row.where for row in sources.read("docs/**/*.[tmM]*").rows] == expected
    with pytest.raises(DataError, match="a single document"):
        sources.read("docs/b.md")
