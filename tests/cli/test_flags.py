"""Every flag of every command has an effect: it changes what is printed, written or answered."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import typer
from bad_inputs import Case, ask, nothing, sound
from build import FLAGS, Folder, Rows, cli
from typer.main import get_command

from tunewright.cli import main

MODEL = ("--model", "model")
NEW = ("good.jsonl", *MODEL, *FLAGS, "export.to=[adapter]")
# Arguments of a command without flags; the run "r" is finished, "half" is trained, "other" is planned.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "run": ("r",), "plan": ("r",), "train": ("r",), "prove": ("r",), "export": ("r",), "report": ("r",),
    "learning-curve": ("r",), "check": ("good.jsonl",), "fix": ("good.jsonl",),
    "preview": ("good.jsonl", *MODEL), "doctor": (),
    "chat": ("r", "hello there"),
    "runs list": (), "runs show": ("r",), "runs diff": ("r", "other"), "runs reproduce": ("r",), "runs rm": ("other",),
}  # fmt: skip
# The value of a flag, and the other arguments if they are not those of ARGUMENTS.
VALUES: dict[str, tuple[str, ...]] = {
    "--runs": ("elsewhere",), "--model": ("model",), "--name": ("n",), "--html": ("audit.html",),
    "--out": ("copy.jsonl",), "--row": ("2",),
    "--system": ("Say nothing but numbers.",), "--max-new-tokens": ("1",), "--config": ("bad.yaml",),
    "--selftest": ("few.jsonl",), "--to": ("lora-gguf",),
}  # fmt: skip
BESIDE: dict[tuple[str, str], tuple[str, ...]] = {
    ("plan", "--name"): NEW, ("plan", "--quiet"): NEW, ("preview", "--model"): ("good.jsonl",),
    ("fix", "--json"): ("good.jsonl", "--out", "copy.jsonl"),
    ("train", "--quiet"): ("other",), ("train", "--profile"): ("other",),
    **{(verb, "--quiet"): ("half",) for verb in ("run", "prove", "export", "report")},
}  # fmt: skip
# The demo downloads its rows from a package registry; apart from that it is `run`. The others need a server
# (tests/export/test_push.py, test_consumers.py, tests/judge/test_synthesis.py), a run on free text
# (tests/stages/test_voice.py), or recipes (tests/stages/test_sweep.py); `serve` does not end by itself
# (tests/server/test_command.py).
LEFT_OUT = {"demo", "push", "verify", "compare", "sweep", "serve", "synthesize"}
# The first must not change any result (tests/stages/test_worker.py); the second only that of long runs (below).
UNSEEN = {"--separate", "--yes"}


def flags() -> list[tuple[str, str]]:
    pairs = []
    top = get_command(main.app).commands  # type: ignore[attr-defined]
    verbs = {**top, **{f"runs {name}": command for name, command in top["runs"].commands.items()}}
    for verb, command in verbs.items():
        if verb not in ("runs", *LEFT_OUT):
            pairs += [
                (verb, p.opts[0])
                for p in command.params
                if p.opts[0].startswith("--") and p.opts[0] not in ("--help", *UNSEEN)
            ]
    return pairs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flags") / "sound"
    folder.mkdir()
    sound(folder)
    (folder / "bad.yaml").write_text("model: model\ndata:\n  train: good.jsonl\nseed: 5\n")
    (folder / "few.jsonl").write_text("{}\n")
    with contextlib.chdir(folder):
        assert outcome("run", (*NEW, "--name", "r"))[0] == 0
        assert outcome("plan", (*NEW, "--name", "other"))[0] == 0
        assert outcome("train", (*NEW, "--name", "half"))[0] == 0
    return folder


def outcome(verb: str, words: tuple[str, ...]) -> tuple[int, str, str, list[str]]:
    """(exit status, stdout, stderr, files)."""
    status, out, err = ask(Case(0, "", nothing, (*verb.split(), *words), "", ""))
    return status, out, err, sorted(str(p) for p in Path().rglob("*"))


@pytest.mark.parametrize(("verb", "flag"), flags(), ids=lambda x: x)
def test_a_flag_is_read(verb: str, flag: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    arguments, outcomes = BESIDE.get((verb, flag), ARGUMENTS[verb]), []
    for n, more in enumerate(((), (flag, *VALUES.get(flag, ())))):
        shutil.copytree(finished, tmp_path / str(n) / "here")
        with contextlib.chdir(tmp_path / str(n) / "here"):
            outcomes.append(outcome(verb, (*arguments, *more)))
    without, with_it = outcomes
    if flag == "--json":
        json.loads(with_it[1])
        assert without[1] != with_it[1]
    elif flag == "--quiet":
        assert len(with_it[2]) < len(without[2]) / 2
        assert with_it[0] == without[0] == 0
    else:
        assert without != with_it


def test_a_run_of_hours_begins_only_if_someone_agrees(
    tmp_path: Path, chat_rows: Rows, model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(chat_rows()), "--model", str(model_folder("llama")), *FLAGS, "--name", "long"]
    assert cli("plan", *words, cwd=tmp_path).returncode == 0
    file = tmp_path / "runs" / "long" / "plan.json"
    plan = json.loads(file.read_text())
    plan["estimate"]["stages"] = {"train": 5 * 3600.0, "prove": 600.0}
    file.write_text(json.dumps(plan))
    refused = cli("train", "runs/long", cwd=tmp_path)
    assert refused.returncode == 2
    assert "[RUN_LONG] runs/long: the run would take about 5 h 10 min (train 5 h 0 min, prove 10 min)" in refused.stderr
    assert not (file.parent / "metrics.jsonl").exists()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer, status in ((False, 2), (True, 0)):
        monkeypatch.setattr(typer, "confirm", lambda text, err, answer=answer: answer)
        assert cli("train", "runs/long", cwd=tmp_path).returncode == status
    monkeypatch.setattr(typer, "confirm", lambda text, err: pytest.fail("it has begun already"))
    assert cli("train", "runs/long", cwd=tmp_path).returncode == 0
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    (file.parent / "metrics.jsonl").unlink()  # as if it had been killed before its first step
    events = file.parent / "events.jsonl"
    for more in ((), ("--yes",)):  # agreed at the terminal, and by the flag
        assert cli("train", "runs/long", *more, cwd=tmp_path).returncode == 0
        assert cli("train", "runs/long", cwd=tmp_path).returncode == 0, "it is not asked again"
        events.write_text("".join(line for line in events.read_text().splitlines(True) if '"agreed"' not in line))
        assert cli("train", "runs/long", cwd=tmp_path).returncode == 2, "nobody has agreed"
