"""Guesses of the next tokens, which the model then confirms several at a time: a step reads all weights, whether it is
for one token or for a few.

A guess is what most often followed the last tokens in the answers that the model was trained on (retrieval: He et al.
2023, 2311.08252), or else what followed them in the prompt (prompt lookup). What is guessed changes no answer, only how
many steps it takes (speculative decoding: Leviathan et al. 2023, 2211.17192, here for the most probable token).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

ORDER = 6  # tokens that a guess looks back
# Of all guesses so far being right, as far as these answers tell: a further token makes a step about a sixth slower.
LIKELY = 0.2
COPIED = 2  # tokens in a row from the prompt, from where copying is guessed to continue


class Drafts:
    """Made of training answers: token ids, each after the last tokens of its prompt."""

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for ids in answers:
            for at in range(1, len(ids)):
                for n in range(1, min(ORDER, at) + 1):
                    counts[tuple(ids[at - n : at])][ids[at]] += 1
        # The most frequent token (of equally frequent ones, the first that was seen), and how often it followed.
        self._next: dict[tuple[int, ...], tuple[int, float]] = {}
        for before, following in counts.items():
            ((token, count),) = following.most_common(1)
            self._next[before] = token, count / (following.total() + 1)

    def guess(self, tokens: Sequence[int], prompt: Sequence[int], most: int) -> list[int]:
        """At most ``most`` tokens after ``tokens``, which begin with the prompt."""
        copied = _copied(prompt, tokens[-COPIED:], most)
        tail, guessed, likely = list(tokens[-ORDER:]), list[int](), 1.0
        while len(guessed) < most:
            token, prob = self._after(tail)
            likely *= prob
            if likely < LIKELY:
                break
            guessed.append(token)
            tail = [*tail[1 - ORDER :], token]
        return guessed or copied

    def _after(self, tail: Sequence[int]) -> tuple[int, float]:
        """The most frequent token after as many of the last tokens as occurred before."""
        for n in range(min(ORDER, len(tail)), 0, -1):
            if (known := self._next.get(tuple(tail[-n:]))) is not None:
                return known
        return 0, 0.0


def _copied(prompt: Sequence[int], tail: Sequence[int], most: int) -> list[int]:
    """What follows the last place in the prompt where the last tokens occur."""
    wanted = tuple(tail)
    for at in range(len(prompt) - 1, len(wanted) - 1, -1):
        if tuple(prompt[at - len(wanted) : at]) == wanted:
            return list(prompt[at : at + most])
    return []
