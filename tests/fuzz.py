"""A file with arbitrary bytes gives either a value or one of our errors with a code, nothing else.

`tests/test_fuzz.py` searches for counterexamples with hypothesis, `tests/guided_fuzz.py` with atheris.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard
from bad_inputs import CONFIGS, DATA, GOOD

from tunewright.core import config
from tunewright.core.errors import TunewrightError
from tunewright.data import dataset
from tunewright.data.remedies import repaired
from tunewright.model import model_files

REPAIRS = [*repaired.DEFAULTS, "data.labels=merge", "data.contradictions=drop"]
SMALL = 10_000  # bytes; larger ones among the known inputs are about size


def rows(folder: Path, raw: bytes, name: str = "a.jsonl") -> None:
    """A data file is read and audited, or rejected, and no other file is left behind."""
    (folder / name).write_bytes(raw)
    try:
        json.dumps(dataset.load(config.load(None, data__train=str(folder / name))).audit_json())
    except TunewrightError as error:
        assert all(p.code and len(str(p)) < 2000 for p in error.problems)
    assert [p.name for p in folder.iterdir()] == [name]


def table(folder: Path, raw: bytes) -> None:
    """As `rows`, for a CSV file."""
    rows(folder, raw, "a.csv")


def compressed(folder: Path, raw: bytes) -> None:
    """As `rows`, for a file that may be compressed; it expands to as much as a file of its size may."""
    rows(folder, raw, "a.jsonl.gz")


def remedied(folder: Path, raw: bytes, name: str = "a.jsonl") -> None:
    """A repaired copy of a data file passes the check and needs no other repair, or the file is rejected."""
    (folder / name).write_bytes(raw)
    try:
        lines = repaired.repair(config.load(None, REPAIRS, data__train=str(folder / name))).lines
    except TunewrightError as error:
        assert all(p.code and len(str(p)) < 2000 for p in error.problems)
        return
    (folder / "b.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    copy = dataset.load(config.load(None, data__train=str(folder / "b.jsonl")))
    assert not copy.changes
    original = dataset.load(config.load(None, REPAIRS, data__train=str(folder / name)))
    assert [e.messages or e.question for e in copy.examples] == [e.messages or e.question for e in original.examples]
    again = repaired.repair(config.load(None, REPAIRS, data__train=str(folder / "b.jsonl")))
    assert again == repaired.Repaired(lines, ())


def settings(folder: Path, raw: bytes) -> None:
    """A config is read, or rejected in one line."""
    (folder / "c.yaml").write_bytes(raw)
    try:
        config.load(folder / "c.yaml")
    except TunewrightError as error:
        assert "\n" not in str(error)


def weights(folder: Path, raw: bytes) -> None:
    """The header of a safetensors file is read or rejected."""
    (folder / "model.safetensors").write_bytes(raw)
    try:
        model_files.sizes(folder)
    except TunewrightError as error:
        assert error.code == "MODEL_CORRUPT"


def model(folder: Path, raw: bytes) -> None:
    """A model's config.json is read or rejected."""
    (folder / "config.json").write_bytes(raw)
    (folder / "model.safetensors").write_bytes(tensors(PLAIN))
    try:
        read = model_files.check(folder)
        assert repr(read) == repr(json.loads(raw))  # NaN is not equal to itself
    except TunewrightError as error:
        assert error.code.startswith("MODEL_")


def tensors(header: Any, body: bytes = b"\0" * 16) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


PLAIN = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
PAIRS = "\n".join(["text,label", *(f'"a, ""{i}""",{i % 3}' for i in range(12))]).encode()
SIGNS = "\n".join(
    f'{{"text": "{"!?*"[i % 3] * (i % 9 + 1)}{"😀" * (i // 9)}", "label": "{i % 2}"}}' for i in range(60)
).encode()
SEEDS: dict[Callable[[Path, bytes], None], list[bytes]] = {
    rows: [*(raw for _, _, _, raw, *_ in DATA if len(raw) < SMALL), "\n".join(GOOD).encode(), SIGNS],
    table: [*(raw for _, _, name, raw, *_ in DATA if name.endswith("csv") and len(raw) < SMALL), PAIRS],
    compressed: [
        *(raw for number, *_, raw, _, _ in DATA if 48 < number < 53 and len(raw) < SMALL),
        *(compress("\n".join(GOOD).encode()) for compress in (gzip.compress, bz2.compress, lzma.compress)),
        zstandard.compress("\n".join(GOOD).encode()),
    ],
    remedied: [*(raw for _, _, name, raw, *_ in DATA if name.endswith("jsonl") and len(raw) < SMALL), SIGNS],
    settings: [text.encode() for _, _, text, *_ in CONFIGS if len(text) < SMALL],
    weights: [tensors(PLAIN)],
    model: [
        b'{"model_type": "llama", "vocab_size": 200}',
        b'{"auto_map": {"AutoModel": "a.B"}}',
        b'{"text_config": {"model_type": "x"}}',
    ],
}
TARGETS = {target.__name__: target for target in SEEDS}
