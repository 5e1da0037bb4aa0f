"""Names of files in settings: paths, patterns, URLs and data sets of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunewright.core import config, locations
from tunewright.core.errors import ConfigError

ABSENT = ["s3://bucket/a.jsonl", "hub:owner/name:test", "memory://x/*.jsonl", "https://host/a.jsonl?key=1"]


def test_paths_of_a_config_file_are_relative_to_it_and_urls_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "odd [1]"
    folder.mkdir()
    (folder / "a.jsonl").write_text("{}\n")
    (folder / "c.yaml").write_text(
        f"data:\n  train: [a.jsonl, 'more/*.jsonl', {', '.join(map(repr, ABSENT))}]\n  test: a.jsonl\n"
        "forget:\n  regression_rows: keep/*.jsonl\n"
    )
    data = config.load(folder / "c.yaml").data
    first, pattern, *absent = data.train
    assert first == str(folder / "a.jsonl") == data.test
    assert absent == ABSENT
    (folder / "more").mkdir()
    (folder / "more" / "b.jsonl").write_text("{}\n")
    import glob

    assert glob.glob(pattern) == [str(folder / "more" / "b.jsonl")], "the brackets of the folder are no wildcard"


def test_a_config_with_several_files_is_written_and_read_equal(tmp_path: Path) -> None:
    asked = config.absolute(config.load(None, data__train=["a.jsonl", *ABSENT], data__dev="b.jsonl"))
    (tmp_path / "c.yaml").write_text(config.to_yaml(asked))
    assert config.load(tmp_path / "c.yaml") == asked


def test_a_list_on_the_command_line() -> None:
    assert config.load(None, ["data.train=[a.jsonl, b.csv]"]).data.train == ["a.jsonl", "b.csv"]
    with pytest.raises(ConfigError, match="CONFIG_RANGE"):
        config.load(None, ["data.train=['']"])
    with pytest.raises(ConfigError, match=r"CONFIG_RANGE.*data\.train"):
        config.load(None, ["data.train=[1, 2]"])


def test_what_a_url_may_keep_secret_is_not_shown() -> None:
    url = "https://user:secret@host/path/a.jsonl?signature=secret"
    assert "secret" not in locations.shown(url)
    assert locations.shown(url).startswith("https://host/path/a.jsonl?")
    assert locations.shown(url) != locations.shown(url + "2"), "two files remain two places"
    assert locations.shown("s3://bucket/a?b.jsonl") == "s3://bucket/a?b.jsonl"


@pytest.mark.parametrize(
    ("value", "title"),
    [
        (None, ""),
        ("folder/a.jsonl", "a.jsonl"),
        (["x/a.jsonl", "b.jsonl", "c.jsonl"], "a.jsonl and 2 more"),
        ("data/*.jsonl", "*.jsonl"),
        ("hub:owner/name@v1:test", "hub:owner/name@v1:test"),
        ("hub:owner/name@0123456789abcdef0123456789abcdef01234567:test", "hub:owner/name@0123456:test"),
        ("https://user:pw@host/a.csv?key=1", "a.csv"),
        ("docs/", "docs"),
    ],
)
def test_titles(value: str | list[str] | None, title: str) -> None:
    assert locations.title(value) == title


def test_folders_that_a_name_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "a.jsonl").touch()
    searched = {
        "docs": "docs",
        "docs/**/*.md": "docs",
        "**/*.jsonl": ".",
        "*/rows.jsonl": ".",
        "docs/*.md": None,
        "a.jsonl": None,
        "s3://x/**/*.md": None,
        "hub:a/b": None,
        "none.jsonl": None,
    }
    for name, folder in searched.items():
        assert locations.searched_folder(name) == (None if folder is None else Path(folder)), name


@pytest.mark.parametrize("name", ["rot13", "hex", "zlib", "undefined", "nonsense", "", "a\x00b"])
def test_an_encoding_that_is_none_of_text_is_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match=r"CONFIG_RANGE.*data\.encoding"):
        config.load(None, data__encoding=name)
