"""Every flag of every verb is read: with it, what is printed, written or answered is something else."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
from bad_inputs import Case, ask, nothing, sound
from build import FLAGS
from typer.main import get_command

from tunewright.cli import main

MODEL = ("--model", "model")
NEW = ("good.jsonl", *MODEL, *FLAGS, "export.merged=false")
# What a verb is asked without its flags; "r" is a run that is finished, "half" one that is trained, "other" one that is planned.
PLAINLY: dict[str, tuple[str, ...]] = {
    "run": ("r",), "plan": ("r",), "train": ("r",), "prove": ("r",), "export": ("r",), "report": ("r",),
    "learning-curve": ("r",), "check": ("good.jsonl",), "preview": ("good.jsonl", *MODEL), "chat": ("r", "hello there"), "doctor": (),
    "runs list": (), "runs show": ("r",), "runs diff": ("r", "other"), "runs reproduce": ("r",), "runs rm": ("other",),
}  # fmt: skip
# The value of a flag, and what stands beside it where that is not what the verb is asked plainly.
VALUES: dict[str, tuple[str, ...]] = {
    "--runs": ("elsewhere",), "--model": ("model",), "--name": ("n",), "--html": ("audit.html",), "--row": ("2",),
    "--system": ("Say nothing but numbers.",), "--max-new-tokens": ("1",), "--config": ("bad.yaml",), "--selftest": ("few.jsonl",),
}  # fmt: skip
BESIDE: dict[tuple[str, str], tuple[str, ...]] = {
    ("plan", "--name"): NEW, ("plan", "--quiet"): NEW, ("train", "--quiet"): ("other",), ("train", "--profile"): ("other",),
    ("preview", "--model"): ("good.jsonl",), **{(verb, "--quiet"): ("half",) for verb in ("run", "prove", "export", "report")},
}  # fmt: skip
# The demo fetches its rows from a package registry; all but its rows is `run`.
LEFT_OUT = {"demo"}


def flags() -> list[tuple[str, str]]:
    found = []
    top = get_command(main.app).commands  # type: ignore[attr-defined]
    verbs = {**top, **{f"runs {name}": command for name, command in top["runs"].commands.items()}}
    for verb, command in verbs.items():
        if verb not in ("runs", *LEFT_OUT):
            found += [(verb, p.opts[0]) for p in command.params if p.opts[0].startswith("--") and p.opts[0] != "--help"]
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flags") / "sound"
    folder.mkdir()
    sound(folder)
    (folder / "bad.yaml").write_text("model: model\ndata:\n  train: good.jsonl\nseed: 5\n")
    (folder / "few.jsonl").write_text("{}\n")
    with contextlib.chdir(folder):
        assert said("run", (*NEW, "--name", "r"))[0] == 0
        assert said("plan", (*NEW, "--name", "other"))[0] == 0
        assert said("train", (*NEW, "--name", "half"))[0] == 0
    return folder


def said(verb: str, words: tuple[str, ...]) -> tuple[int, str, str, list[str]]:
    """(exit status, stdout, stderr, files)."""
    status, out, err = ask(Case(0, "", nothing, (*verb.split(), *words), "", ""))
    return status, out, err, sorted(str(p) for p in Path().rglob("*"))


@pytest.mark.parametrize(("verb", "flag"), flags(), ids=lambda x: x)
def test_a_flag_is_read(verb: str, flag: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    asked, found = BESIDE.get((verb, flag), PLAINLY[verb]), []
    for n, more in enumerate(((), (flag, *VALUES.get(flag, ())))):
        shutil.copytree(finished, tmp_path / str(n) / "here")
        with contextlib.chdir(tmp_path / str(n) / "here"):
            found.append(said(verb, (*asked, *more)))
    without, with_it = found
    if flag == "--json":
        json.loads(with_it[1])
        assert without[1] != with_it[1]
    elif flag == "--quiet":
        assert len(with_it[2]) < len(without[2]) / 2
        assert with_it[0] == without[0] == 0
    else:
        assert without != with_it
