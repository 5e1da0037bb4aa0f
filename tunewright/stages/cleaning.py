"""Flag, show, prove: the run without its flagged rows, beside the run with them, on the same test rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tunewright.core import run_folder
from tunewright.data.dataset import Dataset
from tunewright.run import branches
from tunewright.run.session import Session
from tunewright.stages import prove


def clean(session: Session) -> None:
    """Writes cleaning.json: cleaned - as it is, paired. Nothing is dropped from the run itself."""
    flagged = to_drop(session.data)
    if (told := run_folder.read_json(session.run.crossfit))["measured"]:  # a better judge than words alone
        flagged["labels that look wrong"] = [s["row"] for s in told["suspects"]]
        flagged = {k: v for k, v in flagged.items() if v}
    train = session.data.side("train")
    if not session.config.experiments.cleaning or not flagged:
        if session.config.experiments.cleaning:
            session.talk.say("cleaning: nothing is flagged, so there is nothing to leave out")
        run_folder.write_json(session.run.cleaning, {"measured": False, "flagged": {k: len(v) for k, v in flagged.items()}})
        return
    gone = {i for rows in flagged.values() for i in rows}
    kept = tuple(i for i in train if i not in gone)
    branch = branches.of_rows(session, "cleaned", kept, len(kept) / len(train), session.plan.seed)
    cleaned = [s["score"] for s in branches.scores(session, branch, "test")]
    as_is = [line["score"] for line in run_folder.read_lines(session.run.scores / "tuned.jsonl")]
    c = prove.paired(session, cleaned, as_is)
    found: dict[str, Any] = {
        "measured": True,
        "flagged": {k: len(v) for k, v in flagged.items()},
        "rows": len(kept),
        "cleaned": sum(cleaned) / len(cleaned),
        "as_is": sum(as_is) / len(as_is),
        "difference": c.difference,
        "interval": list(c.interval),
        "verdict": c.verdict,
    }
    run_folder.write_json(session.run.cleaning, found)
    low, high = c.interval
    session.talk.say(
        f"cleaned ({len(gone)} rows fewer) against as it is: {c.verdict} {c.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
    )


def to_drop(data: Dataset) -> dict[str, list[int]]:
    """Training rows that one would drop, by reason: all but the first of equal rows, the minority of contradictory ones, labels
    that look wrong."""
    train = set(data.side("train"))
    found: dict[str, list[int]] = {}
    for finding in data.findings():
        if finding.code == "DUPLICATES":
            found["duplicates"] = [i for g in finding.groups for i in [r for r in g if r in train][1:]]
        if finding.code == "CONTRADICTIONS":
            found["contradictions"] = [i for g in finding.groups for i in _minority(data, [r for r in g if r in train])]
        if finding.code == "LABEL_NOISE":
            found["labels that look wrong"] = list(finding.rows)
    return {k: v for k, v in found.items() if v}


def _minority(data: Dataset, rows: list[int]) -> list[int]:
    answers = [data.answer(i) for i in rows]
    if not answers:
        return []
    usual = Counter(answers).most_common(1)[0][0]
    return [i for i, answer in zip(rows, answers, strict=True) if answer != usual]
