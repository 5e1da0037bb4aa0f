"""Each epoch contains every row once, passes respect their capacity, and shared tokens predict every branch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from build import (
    relatives,
    with_adapter,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.model import forward
from tunewright.tokens import packing, prefix_tree
from tunewright.tokens.sequences import TokenSequence


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 99))
def test_an_epoch_sees_every_row_once(count: int, batch: int, seed: int) -> None:
    per_epoch = -(-count // batch)
    for epoch in range(2):
        seen = [i for s in range(per_epoch) for i in packing.step_rows(count, batch, seed, epoch * per_epoch + s)]
        assert sorted(seen) == list(range(count))


@settings(max_examples=200, deadline=None)
@given(relatives(), st.integers(10, 60), st.sampled_from(["shared", "packed", "padded"]))
def test_passes_hold_every_row_once_and_keep_to_the_capacity(rows: list[Any], capacity: int, layout: Any) -> None:
    groups = packing.split_into_passes(packing.singles(rows), capacity, layout)
    assert sorted(i for g in groups for i in g) == list(range(len(rows)))
    for g in groups:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prefix_tree, "MIN_SHARED", 1)
            microbatch = packing.to_microbatch([TokenSequence(rows[i], (0.0,) * len(rows[i]), i) for i in g], layout)
        assert microbatch.ids_BT.size <= capacity or len(g) == 1


def test_the_last_shared_token_predicts_every_branch() -> None:
    """One-token answers: all of their loss is at the branch point, which other systems drop or mispredict."""
    begin = tuple(range(10, 40))
    rows = [TokenSequence((*begin, 50 + i), (*[0.0] * 30, 1.0), i) for i in range(4)]
    microbatch = packing.to_microbatch(rows, "shared")
    assert microbatch.ids_BT.size == 30  # a branch of one token is only predicted, never computed
    assert list(microbatch.at_N) == [29] * 4
    assert sorted(microbatch.target_N) == [50, 51, 52, 53]
    model = with_adapter("llama", torch.float64)
    alone = sum(float(forward.loss(model, packing.to_microbatch([r], "padded")).detach()) for r in rows)
    assert abs(float(forward.loss(model, microbatch).detach()) - alone) < 1e-10
