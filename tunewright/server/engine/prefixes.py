"""Keys and values of prompts that were read, kept for the next prompt that begins alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunewright.model.decoding.slots import Cache
from tunewright.model.decoding.stack import Use

SHORTEST = 16  # tokens worth a copy


@dataclass(frozen=True)
class Owner:
    """Whose keys and values they are: never of another tenant, whose prompts could be guessed by the time that an
    answer takes; and never of other weights."""

    tenant: str
    use: Use


@dataclass
class _Entry:
    owner: Owner
    ids: tuple[int, ...]
    cache: Cache
    size: int
    used: int


class PrefixCache:
    """At most ``most`` bytes; what was used longest ago leaves first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: list[_Entry] = []
        self._clock = itertools.count()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(e.size for e in self._entries)

    def longest(self, owner: Owner, ids: Sequence[int]) -> tuple[Cache, int]:
        """A cache, and how many of the tokens ``ids`` it begins with; the last one is always left to be read."""
        best, shared = None, 0
        for entry in self._entries:
            if entry.owner == owner and (same := min(_common(entry.ids, ids), len(ids) - 1)) > shared:
                best, shared = entry, same
        if best is None or shared < SHORTEST:
            return [], 0
        best.used = next(self._clock)
        return best.cache, shared

    def keep(self, owner: Owner, ids: Sequence[int], cache: Cache) -> None:
        """``cache``: of exactly these tokens; it is not changed afterwards."""
        ids, size = tuple(ids), sum(layer.nbytes for layer in cache)
        if len(ids) < SHORTEST or size > self._most:
            return
        same = [e for e in self._entries if e.owner == owner]
        if any(e.ids[: len(ids)] == ids for e in same):
            return
        self._remove(lambda e: e.owner == owner and e.ids == ids[: len(e.ids)])
        self._entries.append(_Entry(owner, ids, cache, size, next(self._clock)))
        while self.size > self._most:
            self._entries.remove(min(self._entries, key=lambda e: e.used))

    def forget(self, which: Callable[[Owner], bool]) -> None:
        """Remove what these owners have."""
        self._remove(lambda e: which(e.owner))

    def _remove(self, gone: Callable[[_Entry], bool]) -> None:
        self._entries = [e for e in self._entries if not gone(e)]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
