"""Rows that models wrote are trained on, and never tested on, nor is what repeats their questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core import config
from tunewright.core.errors import DataError
from tunewright.data import dataset
from tunewright.data.dataset import Dataset
from tunewright.data.files.rows import Row
from tunewright.data.formats.fields import author

LINEAGE = {"model": "big", "endpoint": "host", "date": "2026-11-30", "prompt": "x"}


def row(i: int, synthetic: Any = None) -> dict[str, Any]:
    made = {"prompt": f"what is {i * 104729} of {i * 7919 % 1009}", "completion": f"it is {i * 31} and nothing else"}
    return {**made, "synthetic": synthetic} if synthetic is not None else made


def loaded(folder: Path, rows: Sequence[dict[str, Any]], **more: Any) -> Dataset:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return dataset.load(config.load(None, data__train=str(file), **more))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([None, LINEAGE]), min_size=40, max_size=40), st.integers(0, 5))
def test_no_row_of_a_model_is_on_test(tmp_path_factory: pytest.TempPathFactory, by: list[Any], repeats: int) -> None:
    rows = [row(i, who) for i, who in enumerate([None, None, *by])]
    rows += [{**row(i, LINEAGE), "completion": "other words"} for i in range(repeats)]
    data = loaded(tmp_path_factory.mktemp("rows"), rows, split__test=0.3)
    on_test = [e for e, side in zip(data.examples, data.sides, strict=True) if side == "test"]
    assert on_test
    assert not any(e.author for e in on_test)
    tested = {c for c, side in zip(data.cluster, data.sides, strict=True) if side == "test"}
    assert not [e for e, c in zip(data.examples, data.cluster, strict=True) if e.author and c in tested]


def test_what_repeats_a_test_row_is_dropped_with_a_count_and_moves_no_other_row(tmp_path: Path) -> None:
    people = [row(i) for i in range(40)]
    alone = loaded(tmp_path, people, split__test=0.3)
    side_of = {e.where: side for e, side in zip(alone.examples, alone.sides, strict=True)}
    copies = [{**p, "completion": "as a model has it", "synthetic": LINEAGE} for p in people]
    both = loaded(tmp_path, [*people, *copies], split__test=0.3)
    kept = dict(zip((e.where for e in both.examples), both.sides, strict=True))
    assert {where: side for where, side in kept.items() if where in side_of} == side_of
    tested = [side_of[e.where] for e in alone.examples].count("test")
    dropped = [c for c in both.changes if c.code == "SYNTHETIC"]
    assert len(dropped) == tested > 0
    assert all(c.dropped for c in dropped)
    (finding,) = (f for f in both.findings() if f.code == "SYNTHETIC")
    assert (
        f"{40 - tested} of {80 - tested} rows were written by models ({40 - tested} by big at host)" in finding.message
    )
    assert finding.message.endswith("none in test")


def test_people_must_have_written_what_is_tested_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"DATA_SYNTHETIC.*all 40 rows .*40 by big at host.*data\.test"):
        loaded(tmp_path, [row(i, LINEAGE) for i in range(40)])
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(row(i)) + "\n" for i in range(100, 110)))
    data = loaded(tmp_path, [*(row(i, LINEAGE) for i in range(40)), row(101, True)], data__test=str(test))
    assert data.sides.count("test") == 10
    assert len([c for c in data.changes if c.code == "SYNTHETIC"]) == 1
    test.write_text(json.dumps(row(100, LINEAGE)) + "\n")
    with pytest.raises(DataError, match=r"DATA_SYNTHETIC.*test\.jsonl:1.*big at host wrote this row"):
        loaded(tmp_path, [row(i) for i in range(40)], data__test=str(test))


@pytest.mark.parametrize(
    ("value", "who"),
    [
        (LINEAGE, "big at host"),
        ({"model": "m"}, "m"),
        ({}, "a model without a name"),
        ("gpt", "gpt"),
        (True, "a model without a name"),
        ("True", "a model without a name"),
        (1, "a model without a name"),
        (False, ""),
        ("false", ""),
        ("", ""),
        (None, ""),
        (0, ""),
    ],
)
def test_who_wrote_a_row(value: Any, who: str) -> None:
    assert author(Row({"synthetic": value}, "x:1")) == who


def test_other_values_are_an_error_with_a_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"DATA_FIELD_TYPE.*rows\.jsonl:1.*which model wrote the answer"):
        loaded(tmp_path, [row(0, ["a"]), *(row(i) for i in range(1, 20))])
