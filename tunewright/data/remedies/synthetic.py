"""Rows that models wrote: they are trained on, and never tested on, nor is what (nearly) repeats their questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tunewright.core.config import Config
from tunewright.core.errors import DataError, Problem, data_error
from tunewright.core.locations import title
from tunewright.core.records.common import Side
from tunewright.core.words import counted
from tunewright.data import split
from tunewright.data.messages import Example
from tunewright.data.remedies.change import Change
from tunewright.data.remedies.labels import Sides


def drop_held_out(config: Config, sides: Sides, cluster: Sequence[int]) -> tuple[Sides, list[Change]]:
    """Without the synthetic rows that are near-duplicates of rows of test. ``cluster``: of the rows of all sides, in
    order."""
    main, every = sides["train"], [(side, e) for side in sides for e in sides[side]]
    if not any(e.author for _, e in every):
        return sides, []
    dev, test = fractions(config)
    own = set(split.placed(main, cluster[: len(main)], dev, test)["test"])
    tested = {c: e for i, (c, (side, e)) in enumerate(zip(cluster, every, strict=True))
              if not e.author and (side == "test" or i in own)}  # fmt: skip
    changes: list[Change] = []
    kept: dict[Side, list[Example]] = {side: [] for side in sides}
    for c, (side, e) in zip(cluster, every, strict=True):
        if e.author and c in tested and side != "test":
            message = f"a model wrote it, and it asks (nearly) the same question as the test row {tested[c].where}"
            changes.append(Change(e.where, "SYNTHETIC", "the split", message, dropped=True))
        else:
            kept[side].append(e)
    return {side: tuple(examples) for side, examples in kept.items()}, changes


def fractions(config: Config) -> tuple[float, float]:
    """Of the rows of data.train that dev and test get; 0 for a side that has its own file."""
    return 0.0 if config.data.dev else config.split.dev, 0.0 if config.data.test else config.split.test


def require_tested_on_people(config: Config, sides: Sides) -> None:
    """Raises DATA_SYNTHETIC for rows of data.test that a model wrote, and where all rows are such."""
    problems = [
        Problem("DATA_SYNTHETIC", f"{e.author} wrote this row; the verdict is about rows that people wrote.", e.where,
                "move it to data.train.")
        for e in sides.get("test", ()) if e.author
    ]  # fmt: skip
    if problems:
        raise DataError(problems)
    main = sides["train"]
    if main and not config.data.test and all(e.author for e in main):
        message = f"all {len(main)} rows were written by models ({by_whom(main)}): there are none to test on."
        fix = "set data.test to a file of rows that people wrote, or list such a file in data.train, too."
        raise data_error("DATA_SYNTHETIC", message, where=title(config.data.train), fix=fix)


def by_whom(examples: Sequence[Example]) -> str:
    """How many rows each model wrote."""
    counts = Counter(e.author for e in examples if e.author).most_common()
    return ", ".join(f"{n} by {author}" for author, n in counts)


def sentence(examples: Sequence[Example], sides: Sequence[str]) -> str | None:
    """How many rows are synthetic, by whom, and on which sides; None if none is."""
    every = Counter(side for e, side in zip(examples, sides, strict=True) if e.author)
    if not every:
        return None
    where = ", ".join(f"{n} in {side}" for side, n in every.items())
    rows = counted(len(examples), "row")
    return f"{every.total()} of {rows} were written by models ({by_whom(examples)}): {where}, none in test"
