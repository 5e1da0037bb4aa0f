"""Which texts are nearly equal: MinHash proposes pairs (Broder 1997), exact Jaccard of character 5-grams decides. No torch.

Rows are often one form filled in: a long instruction, then the few words that matter. Compared whole, they would all be one text,
and the split one side. So what very many rows share is left out, and rows are compared by the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bag = NDArray[np.uint64]
SIZE, PERMUTATIONS = 5, 128
# Odd, with the bits well spread; a sum of products modulo 2**64 then differs where one character does.
FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)
# A document of a megabyte has as many shingles; its first 20,000 characters tell a near-copy just as well.
LONGEST = 20_000


@dataclass(frozen=True)
class Clusters:
    """``cluster[i]``: the lowest text that text i is nearly equal to, itself where there is none. ``form[i]``: the share of its
    5-grams that very many texts have."""

    cluster: tuple[int, ...]
    form: tuple[float, ...]

    def first(self, count: int) -> Clusters:
        return Clusters(self.cluster[:count], self.form[:count])


def alike(texts: Sequence[str], threshold: float) -> Clusters:
    """Clusters of (nearly) equal normalised texts: pairs whose 5-grams, without those of a form, have a Jaccard similarity of at
    least ``threshold``, joined."""
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        parent[i] = first.setdefault(text, i)
    whole = {i: shingles(texts[i][:LONGEST]) for i in first.values()}
    form = _form(list(whole.values()))
    rest = {i: np.setdiff1d(bag, form, assume_unique=True) for i, bag in whole.items()}
    share = {i: 1 - len(rest[i]) / len(bag) for i, bag in whole.items()}
    if threshold < 1.0:
        for i, j in _pairs({i: rest[i] if len(rest[i]) else bag for i, bag in whole.items()}, threshold):
            a, b = sorted((root(i), root(j)))
            parent[b] = a
    return Clusters(tuple(root(i) for i in range(len(texts))), tuple(share[first[text]] for text in texts))


def shingles(text: str) -> Bag:
    """The 5-grams of characters that a text has, as 64-bit hashes in order: some tens of times smaller than as texts."""
    codes = np.frombuffer(text.ljust(SIZE, "\0").encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, SIZE)
    return np.unique((windows * FACTORS).sum(1, dtype=np.uint64))


def _form(bags: Sequence[Bag]) -> Bag:
    """5-grams in more texts than copies of one question would be: in a twentieth of them and in fifty, or in half of a few."""
    if not bags:
        return np.zeros(0, np.uint64)
    found, counts = np.unique(np.concatenate(bags), return_counts=True)
    return found[counts > max(2, min(len(bags) / 2, max(50, len(bags) / 20)))]


def _pairs(bags: dict[int, Bag], threshold: float) -> Iterator[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    # At 0.7 of the threshold a pair that has it is proposed with a chance of 0.998 (0.93 at 0.9 of it); exact Jaccard sorts out the rest.
    index = MinHashLSH(threshold=threshold * 0.7, num_perm=PERMUTATIONS)
    for i, bag in bags.items():
        sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=int, seed=1)
        sketch.update_batch((bag >> np.uint64(32)).tolist())
        for j in index.query(sketch):
            both = len(np.intersect1d(bag, bags[j], assume_unique=True))
            if both >= threshold * (len(bag) + len(bags[j]) - both):
                yield i, j
        index.insert(i, sketch)
