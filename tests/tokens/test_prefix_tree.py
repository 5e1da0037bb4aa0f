"""Every row is a path of the trie."""

from __future__ import annotations

import pytest
from build import (
    relatives,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.tokens import prefix_tree


@settings(max_examples=300, deadline=None)
@given(relatives(), st.sampled_from([1, 3, 16]), st.booleans())
def test_every_row_is_a_path_of_the_tree(rows: list[tuple[int, ...]], min_shared: int, shared: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "MIN_SHARED", min_shared)
        actual = prefix_tree.build(rows, shared)
    for row, place in zip(rows, actual.place, strict=True):
        assert tuple(actual.ids_T[place]) == row
        assert list(actual.positions_T[place]) == list(range(len(row)))
    starts = [0, *(s.stop for s in actual.segments)]
    assert [s.start for s in actual.segments] == starts[:-1]
    assert starts[-1] == len(actual.ids_T)
    if not shared:
        assert len(actual.ids_T) == sum(map(len, rows))
    elif min_shared == 1:  # then nothing is computed twice
        assert len(actual.ids_T) == len({row[: i + 1] for row in rows for i in range(len(row))})
