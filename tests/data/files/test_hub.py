"""Data sets of the Hub, read by the package datasets from a server on this machine that answers like the Hub."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunewright.core.errors import DataError, MissingExtra
from tunewright.data import sources
from tunewright.data.files import hub

CODE = """
import json, sys
from tunewright.core.errors import TunewrightError
from tunewright.core import config as configuration
from tunewright.data import sources
from tunewright.data.remedies import prepared
results = {}
for name in sys.argv[1:]:
    try:
        read = sources.read(name)
        results[name] = {"rows": [[r.data, r.where] for r in read.rows], "sha": read.sha256, "notices": read.notices}
    except TunewrightError as error:
        results[name] = {"code": error.code, "message": str(error)}
asked = configuration.load(None, data__train=["hub:owner/name", "a.jsonl"], data__test="hub:owner/name@v1:test")
config = prepared.pinned(asked)
assert prepared.pinned(config) == config
results["pinned"] = [*config.data.train, config.data.test]
print(json.dumps(results))
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = [
    "hub:owner/name",
    f"hub:owner/name@{COMMIT}",
    "hub:owner/name@v1",
    "hub:owner/name:test",
    "hub:owner/name:train[:5]",
    "hub:owner/name/other",
    "hub:owner/name:validation",
    "hub:owner/name/nothing",
    "hub:owner/name@v9",
    "hub:owner/nobody",
]


def test_rows_of_two_revisions_have_places_of_their_own(read: dict[str, Any]) -> None:
    places = [read[name]["rows"][0][1] for name in ("hub:owner/name", f"hub:owner/name@{COMMIT}", "hub:owner/name@v1")]
    assert places == ["hub:owner/name:train:1", "hub:owner/name@0123456789ab:train:1", "hub:owner/name@v1:train:1"]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("datasets")
    spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).parent / "hub_server.py")
    assert spec is not None
    assert spec.loader is not None
    server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    home = str(tmp_path_factory.mktemp("hub"))
    with server.running() as url:
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": home, "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", CODE, *NAMES], env=environment, capture_output=True, text=True, check=True
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_rows_labels_and_places(read: dict[str, Any]) -> None:
    rows = read["hub:owner/name"]["rows"]
    assert len(rows) == 40
    assert rows[1] == [{"text": "text number 1", "label": "positive"}, "hub:owner/name:train:2"]
    assert rows[7][0] == {"text": "text number 7"}, "-1 is no label"
    assert len(read["hub:owner/name:test"]["rows"]) == 10
    assert len(read["hub:owner/name:train[:5]"]["rows"]) == 5
    assert read["hub:owner/name/other"]["rows"][0][0]["text"] == "some text"


def test_the_commit_is_in_the_notices_and_in_the_hash(read: dict[str, Any]) -> None:
    notices = " ".join(read["hub:owner/name"]["notices"])
    assert f"commit {COMMIT} of main; to keep it, write @{COMMIT}" in notices
    assert "'label' are read as the names that the data set gives them: negative, positive" in notices
    pinned = read[f"hub:owner/name@{COMMIT}"]
    assert "to keep it" not in " ".join(pinned["notices"])
    assert pinned["sha"] == read["hub:owner/name"]["sha"] == read["hub:owner/name@v1"]["sha"]
    assert pinned["sha"] != read["hub:owner/name:test"]["sha"]


def test_a_run_keeps_the_commit(read: dict[str, Any]) -> None:
    assert read["pinned"] == [f"hub:owner/name@{COMMIT}:train", "a.jsonl", f"hub:owner/name@{COMMIT}:test"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hub:owner/name:validation", "validation"),
        ("hub:owner/name/nothing", "Available"),
        ("hub:owner/name@v9", "404"),
        ("hub:owner/nobody", "404"),
    ],
)
def test_what_does_not_exist_is_an_error_with_the_answer_of_the_hub(name: str, hint: str, read: dict[str, Any]) -> None:
    assert read[name]["code"] == "DATA_UNREADABLE"
    assert hint in read[name]["message"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub:a/b", hub.HubName("a/b", None, "main", "train")),
        ("hub:a/b/c", hub.HubName("a/b", "c", "main", "train")),
        ("hub:a/b/c@refs/pr/1:test[10%:]", hub.HubName("a/b", "c", "refs/pr/1", "test[10%:]")),
        ("hub:a/b.c-d@v1", hub.HubName("a/b.c-d", None, "v1", "train")),
    ],
)
def test_names(name: str, expected: hub.HubName) -> None:
    assert hub.parse(name) == expected


@pytest.mark.parametrize("name", ["hub:", "hub:a", "hub:a/b:", "hub:a/b@", "hub:a/b c"])
def test_a_name_that_is_none_is_an_error(name: str) -> None:
    with pytest.raises(DataError, match=r"DATA_NOT_A_FILE.*hub:owner/name"):
        sources.read(name)


def test_without_the_package_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"tunewright\[datasets\]"):
        sources.read("hub:owner/name")
