"""The adapter scale is chosen by the one-standard-error rule."""

from __future__ import annotations

from tunewright.stages import forgetting


def test_the_smallest_scale_within_one_standard_error_is_chosen() -> None:
    clear = {0.25: [0.0] * 20, 0.5: [0.5] * 20, 1.0: [1.0] * 20}
    assert forgetting.choose(clear) == 1.0
    assert forgetting.choose({s: [1.0] * 20 for s in (0.25, 0.5, 1.0)}) == 0.25
    near = {0.25: [0.0] * 20, 0.5: [1.0] * 19 + [0.0], 1.0: [1.0] * 20}
    assert forgetting.choose(near) == 0.5
    assert forgetting.choose({s: [-x for x in v] for s, v in clear.items()}, higher_is_better=False) == 1.0
