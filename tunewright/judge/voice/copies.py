"""Answers that repeat long runs of words of training answers: memorised, or boilerplate that was learned. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data.split import spans


def copied(answers: Sequence[str], expected: Sequence[str], training: Sequence[str]) -> tuple[int, ...]:
    """Which answers share 13 consecutive words with a training answer, which the expected answer does not contain."""
    known = {span for text in training for span in spans(text)}
    return tuple(
        i for i, (answer, own) in enumerate(zip(answers, expected, strict=True)) if known & (spans(answer) - spans(own))
    )
