"""Whatever its bytes, a file is read or rejected with one of our errors: no traceback, no hang, nothing left behind."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_inputs
import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import TunewrightError
from tunewright.data.files import hub
from tunewright.model import model_files

QUICK = settings(max_examples=150, deadline=10_000)


def damaged(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A known file with a piece removed, inserted or reversed."""

    def damage(seed: bytes, at: float, length: int, put: bytes) -> bytes:
        place = int(at * len(seed))
        return seed[:place] + put + seed[place + length :]

    return st.builds(damage, st.sampled_from(seeds), st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12))


def given_to(target: Callable[..., None], raw: bytes, *more: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target(Path(folder), raw, *more)


@QUICK
@given(
    st.one_of(st.binary(max_size=300), damaged(fuzz.SEEDS[fuzz.rows])),
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.txt"]),
)
def test_any_data_file_is_read_or_rejected(raw: bytes, name: str) -> None:
    given_to(fuzz.rows, raw, name)


@QUICK
@given(
    damaged([*fuzz.SEEDS[fuzz.compressed], *fuzz.SEEDS[fuzz.rows]]), st.sampled_from(["a.jsonl.gz", "a.csv.zst", "a"])
)
def test_any_compressed_file_is_read_or_rejected(raw: bytes, name: str) -> None:
    given_to(fuzz.rows, raw, name)


@QUICK
@given(damaged([bad_inputs.parquet(), bad_inputs.parquet(0)]))
def test_any_parquet_file_is_read_or_rejected(raw: bytes) -> None:
    given_to(fuzz.rows, raw, "a.parquet")


@settings(max_examples=60, deadline=20_000)
@given(
    st.one_of(st.binary(max_size=300), damaged([*fuzz.SEEDS[fuzz.remedied], *fuzz.SEEDS[fuzz.table]])),
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt"]),
)
def test_any_repaired_file_passes_the_check(raw: bytes, name: str) -> None:
    given_to(fuzz.remedied, raw, name)


@QUICK
@given(st.text(max_size=40) | st.builds("hub:{}/{}{}{}".format, *[st.text("ab@:/[]%.", max_size=6)] * 4))
def test_any_name_of_a_data_set_is_parsed_or_rejected(name: str) -> None:
    try:
        parsed = hub.parse(name)
    except TunewrightError as error:
        assert error.code == "DATA_NOT_A_FILE"  # noqa: PT017
    else:
        assert name.startswith(f"hub:{parsed.repo}")


def values() -> st.SearchStrategy[Any]:
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )


@QUICK
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["messages", "prompt", "completion", "text", "label", "role", "content", "x"]),
            values(),
            max_size=4,
        ),
        min_size=1,
        max_size=14,
    )
)
def test_any_rows_are_read_or_rejected(rows: list[dict[str, Any]]) -> None:
    given_to(fuzz.rows, "\n".join(json.dumps(r) for r in rows).encode())


@QUICK
@given(st.one_of(st.binary(max_size=200), damaged(fuzz.SEEDS[fuzz.settings])))
def test_any_config_is_read_or_rejected(raw: bytes) -> None:
    given_to(fuzz.settings, raw)


WRONG = [
    struct.pack("<Q", 1 << 60) + b"{}",
    struct.pack("<Q", 100 << 20) + b"{}",
    fuzz.tensors(fuzz.PLAIN, b"\0" * 15),
    fuzz.tensors({"a": {"dtype": "F32", "shape": [2, -2], "data_offsets": [0, 16]}}),
    fuzz.tensors({"a": {"dtype": "F99", "shape": [2, 2], "data_offsets": [0, 16]}}),
    fuzz.tensors({"a": fuzz.PLAIN["a"], "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}),
    fuzz.tensors({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 16]}}),
    fuzz.tensors([]),
]


@pytest.mark.parametrize("raw", WRONG)
def test_wrong_headers_of_weights_are_rejected(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(TunewrightError, match="MODEL_CORRUPT"):
        model_files.sizes(tmp_path)


@QUICK
@given(damaged(fuzz.SEEDS[fuzz.weights]))
def test_any_weight_file_is_read_or_rejected(raw: bytes) -> None:
    given_to(fuzz.weights, raw)


@QUICK
@given(
    st.one_of(
        values(),
        st.dictionaries(st.sampled_from(["auto_map", "model_type", "text_config", "vocab_size"]), values(), max_size=4),
    )
)
def test_any_config_of_a_model_is_read_or_rejected(value: Any) -> None:
    given_to(fuzz.model, json.dumps(value).encode())


@pytest.mark.slow
def test_a_guided_search_finds_nothing_else() -> None:
    pytest.importorskip("atheris", reason="no wheel of atheris for this system")
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "guided_fuzz.py", "--seconds", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("or refused by our error") == len(fuzz.TARGETS)
