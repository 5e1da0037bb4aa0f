"""Fixtures that several folders use: tiny saved models, rows, and finished runs, each made once for all workers."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the network
os.environ["OMP_NUM_THREADS"] = "1"  # tensors are tiny: a second thread would only wait

import torch  # here, because torch reads the environment when it is imported
from build import FLAGS, byte_tokenizer, cli, tiny_model, write_chat_rows

from tunewright import api
from tunewright.export import reload_check
from tunewright.stages import process, worker
from tunewright.system import machine

Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A run sets torch's threads for its process, which here is a worker that runs other tests too."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _one_core() -> None:
    """A worker has one core. A run measures its speed for a second; here it is measured once."""
    machine.cores = lambda: 1
    machine._gflops = functools.cache(machine._gflops)


@pytest.fixture(scope="session", autouse=True)
def _one_process() -> None:
    """A command starts processes that train and that check exports, each of which spends seconds importing torch. Here
    the same functions are called in this process. A command that is itself a process (`build.process`) starts real
    ones: `cli/test_run.py`, `stages/test_resume.py`."""
    run = subprocess.run

    def checked(command: Any, *args: Any, **more: Any) -> Any:
        if not isinstance(command, list) or command[1:3] != ["-m", "tunewright.export.reload_check"]:
            return run(command, *args, **more)
        try:
            reload_check.main(*command[3:])
        except Exception:
            return subprocess.CompletedProcess(command, 1, "", traceback.format_exc())
        return subprocess.CompletedProcess(command, 0, "", "")

    subprocess.run = checked
    process.train = lambda context: worker.work(context.run, under_lock=True)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """``shared(name, make)``: a folder that ``make`` fills once for all workers of pytest-xdist. Tests only read it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # it contains the folders of all workers

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        made, complete = root / f"shared-{name}", root / f"shared-{name}.complete"
        with FileLock(root / f"shared-{name}.lock"):
            if not complete.exists():
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                make(made)
                complete.touch()
        return made

    return folder


@pytest.fixture(scope="session")
def model_folder(shared: Shared) -> Callable[[str], Path]:
    """A saved tiny model of an architecture, with its tokenizer."""

    def folder(kind: str = "llama") -> Path:
        def make(where: Path) -> None:
            tokenizer = byte_tokenizer()
            tiny_model(kind, vocabulary=len(tokenizer)).save_pretrained(where)
            tokenizer.save_pretrained(where)

        return shared(f"tiny-{kind}", make)

    return folder


@pytest.fixture
def chat_rows(tmp_path: Path) -> Callable[..., Path]:
    """See `write_chat_rows`; written to the test's own folder."""

    def write(count: int = 60, name: str = "rows.jsonl", label: bool = False) -> Path:
        return write_chat_rows(tmp_path / name, count, label)

    return write


# -- finished runs, read-only: a test that changes one makes a copy


@pytest.fixture(scope="session")
def proved(shared: Shared, model_folder: Callable[[str], Path]) -> Path:
    """A folder with rows.jsonl and runs/r, which has a verdict and no export; `build.copied` copies it."""

    def make(root: Path) -> None:
        data = write_chat_rows(root / "rows.jsonl", 60)
        done = cli("prove", str(data), "--name", "r", "--model", str(model_folder("llama")), *FLAGS, cwd=root)
        assert done.returncode == 0, done.stderr

    return shared("proved", make)


@pytest.fixture(scope="session")
def labelled(shared: Shared, model_folder: Callable[[str], Path]) -> api.Result:
    """A finished run on a learnable classification set."""

    def make(root: Path) -> None:
        data = root / "labels.csv"
        data.write_text(
            "text,label\n"
            + "".join(
                f"lot {i * 37 % 1009} of {w},{x}\n"
                for i, (w, x) in enumerate([("fire and flame", "warm"), ("ice and snow", "cold")] * 60)
            )
        )
        api.run(
            data,
            model=str(model_folder("llama")),
            name="labels",
            root=root,
            data__instruction="warm or cold?",
            train__steps=120,
            train__batch_size=8,
            train__lr=0.005,
            threads=1,
            train__dtype="float32",
            prove__few_shot=[2],
        )

    return api.load_run(shared("labelled", make) / "labels")


@pytest.fixture(scope="session")
def full(shared: Shared, model_folder: Callable[[str], Path]) -> api.Result:
    """A run with full evidence: labels with a long instruction, some of them wrong or duplicate, regression rows,
    documents."""

    def make(root: Path) -> None:
        words = [("fire and flame", "warm"), ("ice and snow", "cold")]
        lines = [f"lot {i * 37 % 1009} of {words[i % 2][0]},{words[(i + (i % 17 == 0)) % 2][1]}\n" for i in range(150)]
        (root / "labels.csv").write_text("text,label\n" + "".join([*lines, *lines[:3]]))
        (root / "keep.jsonl").write_text(
            "".join(json.dumps({"prompt": f"say {w}", "completion": w}) + "\n" for w in ("yes", "no", "red"))
        )
        (root / "documents").mkdir()
        (root / "documents" / "one.txt").write_text("Fire and flame are warm.\n\nIce and snow are cold.\n")
        api.run(
            root / "labels.csv",
            model=str(model_folder("llama")),
            name="all",
            root=root,
            data__instruction="Say whether what is named in the text is warm or cold. " * 4,
            train__steps=12,
            train__batch_size=8,
            threads=1,
            train__dtype="float32",
            prove__evidence="full",
            prove__few_shot=[1],
            prove__documents=str(root / "documents"),
            experiments__prompt_distillation=10,
            experiments__crossfit=True,
            experiments__cleaning=True,
            prove__max_dev_rows=8,
            forget__regression_rows=str(root / "keep.jsonl"),
            experiments__mitigation=True,
            forget__scales=[0.5],
            cost__requests=4,
            cost__batch_size=2,
            cost__price_per_hour=1.0,
        )

    return api.load_run(shared("full", make) / "all")


# -- the table of planted bugs


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of known silent bugs, if their tests were run."""
    reports = [r for r in terminalreporter.getreports("passed") if "test_faults.py" in r.nodeid]
    if not reports or (terminalreporter.config.option.verbose < 0 and len(reports) < 30):
        return
    from test_faults import FAULTS

    passed = {r.nodeid for r in reports}

    def has_passed(test: str, fault: Any) -> bool:
        return any(f"{test}[{fault.number}-" in nodeid for nodeid in passed)

    terminalreporter.section("known silent bugs: planted, and detected by their property")
    for fault in FAULTS:
        state = "detected" if has_passed("planted_bug_is_detected", fault) else "NOT DETECTED"
        holds = "" if has_passed("the_property_holds", fault) else "; THE PROPERTY DOES NOT HOLD"
        terminalreporter.write_line(f"{fault.number:>3}  {state:<12} {fault.bug}{holds}")
