"""Which texts are nearly equal: MinHash proposes pairs (Broder 1997), exact Jaccard of character 5-grams decides. No torch.

Rows are often one form filled in: a long instruction, then the few words that matter. Compared whole, they would all be one text,
and the split one side. So what very many rows share is left out, and rows are compared by the rest.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

PERMUTATIONS = 128
# A document of a megabyte has as many shingles; its first 20,000 characters tell a near-copy just as well.
LONGEST = 20_000


@dataclass(frozen=True)
class Alike:
    """``cluster[i]``: the lowest text that text i is nearly equal to, itself where there is none. ``form[i]``: the share of its
    5-grams that very many texts have."""

    cluster: tuple[int, ...]
    form: tuple[float, ...]

    def first(self, count: int) -> Alike:
        return Alike(self.cluster[:count], self.form[:count])


def alike(texts: Sequence[str], threshold: float) -> Alike:
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
    share = {i: len(bag & form) / len(bag) for i, bag in whole.items()}
    if threshold < 1.0:
        for i, j in _pairs({i: (bag - form) or bag for i, bag in whole.items()}, threshold):
            a, b = sorted((root(i), root(j)))
            parent[b] = a
    return Alike(tuple(root(i) for i in range(len(texts))), tuple(share[first[text]] for text in texts))


def shingles(text: str, size: int = 5) -> set[str]:
    return {text[i : i + size] for i in range(max(1, len(text) - size + 1))}


def _form(bags: Sequence[set[str]]) -> set[str]:
    """5-grams in more texts than copies of one question would be: in a twentieth of them and in fifty, or in half of a few."""
    seen = Counter(s for bag in bags for s in bag)
    many = min(len(bags) / 2, max(50, len(bags) / 20))
    return {s for s, count in seen.items() if count > many and count > 2}


def _pairs(bags: dict[int, set[str]], threshold: float) -> list[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    index, found = MinHashLSH(threshold=threshold * 0.9, num_perm=PERMUTATIONS), []
    for i, bag in bags.items():
        sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32, seed=1)
        sketch.update_batch([s.encode("utf-8", "surrogatepass") for s in sorted(bag)])
        for j in index.query(sketch):
            both = len(bag & bags[j])
            if both >= threshold * (len(bag) + len(bags[j]) - both):
                found.append((i, j))
        index.insert(i, sketch)
    return found
