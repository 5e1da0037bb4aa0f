"""Tiny real models and tokenizers: random weights, real architectures, a byte-level vocabulary."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for the network
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: a second thread only waits

from build import WORDS, byte_tokenizer, tiny_model  # after it: torch reads the environment when it is imported)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A saved tiny model of an architecture, with its tokenizer."""
    made: dict[str, Path] = {}

    def folder(kind: str = "llama") -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(f"tiny-{kind}")
            tokenizer = byte_tokenizer()
            tiny_model(kind, vocabulary=len(tokenizer)).save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture
def chat_rows(tmp_path: Path) -> Callable[..., Path]:
    """A JSONL file of learnable chat rows: the answer is the question's word in capitals."""

    def write(count: int = 60, name: str = "rows.jsonl", label: bool = False) -> Path:
        rows = []
        for i in range(count):
            word, other = WORDS[i % 10], WORDS[(i * 7 + i // 10) % 10]
            answer = ("warm" if i % 10 in (0, 3, 4) else "cold") if label else word.upper()
            rows.append(
                {
                    "messages": [
                        {"role": "user", "content": f"item {i}: {word} by the {other}, lot {i * 37 % 101}"},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
        path = tmp_path / name
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of known silent bugs, where their tests were run."""
    reports = [r for r in terminalreporter.getreports("passed") if "test_faults.py" in r.nodeid]
    if not reports or (terminalreporter.config.option.verbose < 0 and len(reports) < 30):
        return
    from test_faults import FAULTS

    passed = {r.nodeid for r in reports}

    def says(test: str, fault: Any) -> bool:
        return any(f"{test}[{fault.number}-" in nodeid for nodeid in passed)

    terminalreporter.section("known silent bugs: planted, and killed by their property")
    for fault in FAULTS:
        state = "refused" if fault.plant is None else "killed" if says("planted_bug_is_killed", fault) else "NOT KILLED"
        holds = "" if says("the_property_holds", fault) else "; THE PROPERTY DOES NOT HOLD"
        terminalreporter.write_line(f"{fault.number:>3}  {state:<8} {fault.bug}{holds}")
