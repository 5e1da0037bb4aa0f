"""The command line and the generated reference."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from build import cli, process

import tunewright

ROOT = Path(__file__).parent.parent.parent


def test_the_reference_is_what_the_code_says() -> None:
    """Except for docs/errors.md: see test_bad_inputs.py."""
    command = [sys.executable, "scripts/make_docs.py", "--check", "--without", "docs/errors.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: run `make docs`"


def test_every_example_config_is_valid() -> None:
    from tunewright.core import config

    actual = sorted((ROOT / "examples").glob("*/config.yaml"))
    assert len(actual) == 12
    for file in actual:
        assert config.load(file).data.train


def test_its_version(tmp_path: Path) -> None:
    assert process("-m", "tunewright", "--version", cwd=tmp_path).stdout == f"tunewright {tunewright.__version__}\n"


def test_doctor(tmp_path: Path) -> None:
    done = cli("doctor", "--json", cwd=tmp_path)
    actual = json.loads(done.stdout)
    assert actual["device"] in ("cpu", "cuda")
    assert "GFLOP/s" in actual["bfloat16"]
    (tmp_path / "c.yaml").write_text("train:\n  lrr: 1\n")
    assert cli("doctor", "--config", "c.yaml", cwd=tmp_path).returncode == 2


def test_doctor_runs_the_selftest(
    tmp_path: Path, chat_rows: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    (tmp_path / "c.yaml").write_text(f"model: {model_folder('llama')}\ndata:\n  train: {chat_rows()}\nthreads: 1\n")
    done = cli("doctor", "--selftest", "c.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout)
    assert {k for k in reported if k.startswith("self-test, ")} == {
        f"self-test, {check}" for check in ("prompts", "stops", "base", "gradient", "loss and gradient")
    }
    assert not (tmp_path / "runs").exists()


def test_runs_are_listed_compared_and_removed(
    tmp_path: Path, chat_rows: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    data = str(chat_rows())
    for name, rank in (("a", "2"), ("b", "4")):
        done = cli(
            "plan",
            data,
            "--name",
            name,
            "--model",
            str(model_folder("llama")),
            f"adapter.rank={rank}",
            "threads=1",
            "train.dtype=float32",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "adapter" not in done.stderr
    assert [r["name"] for r in json.loads(cli("runs", "list", "--json", cwd=tmp_path).stdout)] == ["a", "b"]
    actual = json.loads(cli("runs", "diff", "a", "b", "--json", cwd=tmp_path).stdout)
    assert actual["config.adapter.rank"] == [2, 4]
    shown = json.loads(cli("runs", "show", "a", "--json", cwd=tmp_path).stdout)
    assert shown["stage"] == "planned"
    assert next(e["event"] for e in shown["events"]) == "created"
    assert cli("runs", "rm", "a", "--yes", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "runs" / "a").exists()
    assert cli("runs", "rm", "a", "--yes", cwd=tmp_path).returncode == 2
    assert cli("chat", "b", "hello", cwd=tmp_path).returncode == 2, "an untrained run has nothing to say"


def test_a_broken_pipe_gives_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m tunewright doctor | head -1",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
