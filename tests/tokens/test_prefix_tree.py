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
def test_every_row_is_a_path_of_the_tree(rows: list[tuple[int, ...]], share_from: int, share: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "SHARE_FROM", share_from)
        found = prefix_tree.build(rows, share)
    for row, place in zip(rows, found.place, strict=True):
        assert tuple(found.ids_T[place]) == row
        assert list(found.positions_T[place]) == list(range(len(row)))
    starts = [0, *(s.stop for s in found.segments)]
    assert [s.start for s in found.segments] == starts[:-1]
    assert starts[-1] == len(found.ids_T)
    if not share:
        assert len(found.ids_T) == sum(map(len, rows))
    elif share_from == 1:  # then nothing at all is computed twice
        assert len(found.ids_T) == len({row[: i + 1] for row in rows for i in range(len(row))})
