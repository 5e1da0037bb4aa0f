"""Near-duplicate texts: MinHash proposes pairs (Broder 1997), their exact Jaccard similarity decides. No torch.

Similarity is that of the sets of character 5-grams. Rows often share boilerplate: a long instruction, then the few
words that matter. With it, all rows would be near-duplicates and on one side of the split, so 5-grams that very many
rows contain are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bag = NDArray[np.uint64]
SIZE, PERMUTATIONS = 5, 128
# Odd, with well-mixed bits, so that the sum of products modulo 2**64 changes whenever one character does.
FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)
# A document of a megabyte has a million shingles; its first 20,000 characters identify a near-copy just as well.
LONGEST = 20_000


@dataclass(frozen=True)
class Clusters:
    """``cluster[i]``: the first text that text i is a near-duplicate of (i itself if there is none).
    ``boilerplate[i]``: the fraction of its 5-grams that very many texts contain."""

    cluster: tuple[int, ...]
    boilerplate: tuple[float, ...]

    def first(self, count: int) -> Clusters:
        """The clusters of the first ``count`` texts."""
        return Clusters(self.cluster[:count], self.boilerplate[:count])


def cluster(texts: Sequence[str], threshold: float) -> Clusters:
    """Clusters of (nearly) equal normalised texts: the connected components of pairs whose 5-grams, without
    boilerplate, have a Jaccard similarity of at least ``threshold``."""
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        parent[i] = first.setdefault(text, i)
    bags = {i: shingles(texts[i][:LONGEST]) for i in first.values()}
    boilerplate = _boilerplate(list(bags.values()))
    rest = {i: np.setdiff1d(bag, boilerplate, assume_unique=True) for i, bag in bags.items()}
    fraction = {i: 1 - len(rest[i]) / len(bag) for i, bag in bags.items()}
    if threshold < 1.0:
        for i, j in _pairs({i: rest[i] if len(rest[i]) else bag for i, bag in bags.items()}, threshold):
            a, b = sorted((root(i), root(j)))
            parent[b] = a
    return Clusters(tuple(root(i) for i in range(len(texts))), tuple(fraction[first[text]] for text in texts))


def joined(one: Clusters, other: Clusters) -> Clusters:
    """Clusters of rows that have two texts: rows are together if one of their texts is. Boilerplate is the first's."""
    cluster = list(range(len(one.cluster)))

    def root(i: int) -> int:
        while cluster[i] != i:
            i = cluster[i]
        return i

    for first in (one.cluster, other.cluster):
        for i, j in enumerate(first):
            a, b = sorted((root(i), root(j)))
            cluster[b] = a
    return Clusters(tuple(map(root, range(len(cluster)))), one.boilerplate)


def shingles(text: str) -> Bag:
    """The distinct character 5-grams of a text, as sorted 64-bit hashes (tens of times smaller than the strings)."""
    codes = np.frombuffer(text.ljust(SIZE, "\0").encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, SIZE)
    return np.unique((windows * FACTORS).sum(1, dtype=np.uint64))


def _boilerplate(bags: Sequence[Bag]) -> Bag:
    """5-grams in more texts than a repeated question would explain: in over 5% of the texts and more than 50 of them;
    among few texts, in over half."""
    if not bags:
        return np.zeros(0, np.uint64)
    grams, counts = np.unique(np.concatenate(bags), return_counts=True)
    return grams[counts > max(2, min(len(bags) / 2, max(50, len(bags) / 20)))]


def _pairs(bags: dict[int, Bag], threshold: float) -> Iterator[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    # Searching at 0.7 of the threshold proposes a true pair with probability 0.998 (at 0.9: 0.93); exact Jaccard
    # rejects the false ones.
    index = MinHashLSH(threshold=threshold * 0.7, num_perm=PERMUTATIONS)
    for i, bag in bags.items():
        sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=int, seed=1)
        sketch.update_batch((bag >> np.uint64(32)).tolist())
        for j in index.query(sketch):
            both = len(np.intersect1d(bag, bags[j], assume_unique=True))
            if both >= threshold * (len(bag) + len(bags[j]) - both):
                yield i, j
        index.insert(i, sketch)
