"""Would the run be better without its flagged rows? Trains without them and compares on the same test rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tunewright.core import records
from tunewright.core.records import CROSSFIT, Cleaning, LabelCrossfit, NotCleaned, TextCrossfit
from tunewright.core.words import counted
from tunewright.data.dataset import Dataset
from tunewright.data.scores import mean
from tunewright.runtime import branches, weights
from tunewright.runtime.context import Work
from tunewright.stages.prove import paired
from tunewright.stages.stage import Stage

LABELS = "suspect rows"


def cleaning(work: Work) -> Cleaning | NotCleaned:
    """Compare the cleaned training with the run, paired by row. Nothing is dropped from the run itself."""
    flagged = flagged_rows(work)
    counts = {reason: len(rows) for reason, rows in flagged.items()}
    if not work.config.experiments.cleaning:
        return NotCleaned(flagged=counts)
    if not flagged:
        return NotCleaned(flagged=counts, reason="no rows are flagged, so there is nothing to leave out")
    train, dropped = work.data.every("train"), {i for rows in flagged.values() for i in rows}
    kept = tuple(i for i in train if i not in dropped)
    branch = branches.of_rows(work, "cleaned", kept, len(kept) / len(train), work.plan.seed)
    cleaned = branches.scores(work, branch, "test")
    as_is = work.answers.of(work.tuned, "test", weights.at_chosen_scale(work.run, work.plan))
    c = paired(work, cleaned, as_is)
    return Cleaning(
        flagged=counts,
        dropped=len(dropped),
        rows=len(kept),
        cleaned=mean(cleaned),
        as_is=mean(as_is),
        difference=c.difference,
        interval=c.interval,
        verdict=c.verdict,
    )


def flagged_rows(work: Work) -> dict[str, list[int]]:
    """Training rows to drop, by reason. If there is a cross-fit, it replaces the audit's weaker judgement of labels."""
    flagged = to_drop(work.data)
    crossfit = records.read(work.run.crossfit, CROSSFIT)
    if isinstance(crossfit, LabelCrossfit | TextCrossfit):
        flagged[LABELS] = [s.row for s in crossfit.suspects]
    return {reason: rows for reason, rows in flagged.items() if rows}


def to_drop(data: Dataset) -> dict[str, list[int]]:
    """By the audit: all but the first of duplicate rows, the minority of contradictory ones, suspect labels."""
    train = set(data.every("train"))
    dropped: dict[str, list[int]] = {}
    for finding in data.findings():
        if finding.code == "DUPLICATES":
            dropped["duplicates"] = [i for g in finding.groups for i in [r for r in g if r in train][1:]]
        if finding.code == "CONTRADICTIONS":
            minority = (_minority(data, [r for r in g if r in train]) for g in finding.groups)
            dropped["contradictions"] = [i for rows in minority for i in rows]
        if finding.code == "LABEL_NOISE":
            dropped[LABELS] = list(finding.rows)
    return {reason: rows for reason, rows in dropped.items() if rows}


def _minority(data: Dataset, rows: list[int]) -> list[int]:
    answers = [data.answer(i) for i in rows]
    if not answers:
        return []
    usual = Counter(answers).most_common(1)[0][0]
    return [i for i, answer in zip(rows, answers, strict=True) if answer != usual]


def lines(record: Cleaning | NotCleaned) -> Sequence[str]:
    if isinstance(record, NotCleaned):
        return [f"cleaning: {record.reason}"] if record.reason else []
    return [
        f"cleaning: {record.verdict}: without {counted(record.dropped, 'flagged row')} {record.cleaned:.3f} vs. "
        f"{record.as_is:.3f} with all rows, difference {record.difference:+.3f} {record.interval:+.3f}"
    ]


STAGE = Stage(
    name="cleaning",
    run=lambda inputs: cleaning(inputs.work()),
    lines=lines,
)
