"""Whatever the bytes, a file is read or refused by our own error: no traceback, no hang, nothing left behind."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import CONFIGS, DATA, GOOD
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright import config, dataset, model_files
from tunewright.errors import TunewrightError

QUICK = settings(max_examples=150, deadline=10_000)
SEEDS = [raw for _, _, _, raw, *_ in DATA if len(raw) < 10_000] + ["\n".join(GOOD).encode()]


def damaged(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A known file with a piece cut out, put in, or turned round."""

    def damage(seed: bytes, at: float, length: int, put: bytes) -> bytes:
        place = int(at * len(seed))
        return seed[:place] + put + seed[place + length :]

    return st.builds(damage, st.sampled_from(seeds), st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12))


def read(folder: Path, name: str, raw: bytes) -> None:
    (folder / name).write_bytes(raw)
    try:
        dataset.load(config.load(None, data__train=str(folder / name)))
    except TunewrightError as error:
        assert all(p.code and len(str(p)) < 2000 for p in error.problems)
    assert [p.name for p in folder.iterdir()] == [name]


@QUICK
@given(
    st.one_of(st.binary(max_size=300), damaged(SEEDS)),
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.txt"]),
)
def test_any_data_file_is_read_or_refused(raw: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        read(Path(folder), name, raw)


def values() -> st.SearchStrategy[Any]:
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    return st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8
    )


@QUICK
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["messages", "prompt", "completion", "text", "label", "role", "content", "x"]), values(), max_size=4
        ),
        min_size=1,
        max_size=14,
    )
)
def test_any_rows_are_read_or_refused(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        read(Path(folder), "a.jsonl", "\n".join(json.dumps(r) for r in rows).encode())


@QUICK
@given(st.one_of(st.binary(max_size=200), damaged([text.encode() for _, _, text, *_ in CONFIGS if len(text) < 10_000])))
def test_any_config_is_read_or_refused(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_bytes(raw)
        try:
            config.load(file)
        except TunewrightError as error:
            assert "\n" not in str(error)


def tensors(header: Any, body: bytes = b"\0" * 16) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


PLAIN = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
WRONG = [
    struct.pack("<Q", 1 << 60) + b"{}",
    struct.pack("<Q", 100 << 20) + b"{}",
    tensors(PLAIN, b"\0" * 15),
    tensors({"a": {"dtype": "F32", "shape": [2, -2], "data_offsets": [0, 16]}}),
    tensors({"a": {"dtype": "F99", "shape": [2, 2], "data_offsets": [0, 16]}}),
    tensors({"a": PLAIN["a"], "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}),
    tensors({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 16]}}),
    tensors([]),
]


@pytest.mark.parametrize("raw", WRONG)
def test_wrong_headers_of_weights_are_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(TunewrightError, match="MODEL_CORRUPT"):
        model_files.sizes(tmp_path)


@QUICK
@given(damaged([tensors(PLAIN)]))
def test_any_weight_file_is_read_or_refused(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(raw)
        try:
            model_files.sizes(Path(folder))
        except TunewrightError as error:
            assert error.code == "MODEL_CORRUPT"


@QUICK
@given(
    st.one_of(
        values(), st.dictionaries(st.sampled_from(["auto_map", "model_type", "text_config", "vocab_size"]), values(), max_size=4)
    )
)
def test_any_config_of_a_model_is_read_or_refused(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(value))
        (Path(folder) / "model.safetensors").write_bytes(tensors(PLAIN))
        try:
            assert repr(model_files.check(Path(folder))) == repr(value)  # NaN is not equal to itself
        except TunewrightError as error:
            assert error.code.startswith("MODEL_")
