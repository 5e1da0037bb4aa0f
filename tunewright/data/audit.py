"""The audit: flag, with rows and a reason; never drop. No torch, no model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from tunewright.core import pii
from tunewright.core.errors import Problem, data_error
from tunewright.data.examples import Chat, Example, content_hash, normalised, question
from tunewright.data.metrics import Task, detect_task
from tunewright.data.near_duplicates import Clusters

Level = Literal["error", "warning", "notice"]
ORDER: dict[Level, int] = {"error": 0, "warning": 1, "notice": 2}


@dataclass(frozen=True)
class Finding:
    """One thing about the data; ``rows`` are indices into the examples, ``groups`` the same rows as sets that belong together."""

    level: Level
    code: str
    message: str
    rows: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Audit:
    """What is in the data. ``cluster[i]`` is the lowest row that row i is the same question as (near-duplicates included)."""

    rows: int
    task: Task
    cluster: tuple[int, ...]
    characters: dict[str, float]
    labels: dict[str, int]
    ceiling: float
    findings: tuple[Finding, ...] = field(default=())

    def to_json(self, examples: Sequence[Example]) -> dict[str, Any]:
        value = asdict(self)
        for finding in value["findings"]:
            finding["where"] = [examples[i].where for i in finding["rows"][:20]]
        return value


def audit(examples: Sequence[Example], alike: Clusters) -> Audit:
    """Everything that can be told about the examples from their text alone. ``alike``: which questions are nearly equal.

    Raises DATA_DUPLICATES when all rows are one, LABELS_ONE_CLASS when a classification set has one label.
    """
    questions = [normalised(question(e)) for e in examples]
    targets = [normalised(e.target) if isinstance(e, Chat) else "" for e in examples]
    exact = _groups([content_hash(f"{q}\x00{t}") for q, t in zip(questions, targets, strict=True)])
    if len(examples) > 1 and len(exact) == 1 and len(exact[0]) == len(examples):
        raise data_error(
            "DATA_DUPLICATES", f"all {len(examples)} rows are the same.", where=examples[0].where, fix="bring different rows."
        )
    task = detect_task(examples)
    labels = Counter(e.target for e in examples if isinstance(e, Chat)) if task.kind == "label" else Counter()
    if task.kind == "label" and len(labels) < 2:
        raise data_error(
            "LABELS_ONE_CLASS",
            f"every answer is {next(iter(labels))!r}.",
            where=examples[0].where,
            fix="add rows with other labels.",
        )
    findings = [
        *_duplicates(exact),
        *_nearly(alike.cluster, questions),
        *_form(alike.form),
        *_contradictions(questions, targets),
        *_labels(labels, examples),
        *_private(examples),
        *_long(examples),
    ]
    sizes = np.array([len(q) + len(t) for q, t in zip(questions, targets, strict=True)])
    characters = {name: float(np.percentile(sizes, p)) for name, p in (("min", 0), ("median", 50), ("p95", 95), ("max", 100))}
    findings.sort(key=lambda f: (ORDER[f.level], f.code))
    return Audit(
        len(examples), task, alike.cluster, characters, dict(labels.most_common()), ceiling(questions, targets), tuple(findings)
    )


def _groups(keys: Sequence[str]) -> list[list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        found[key].append(i)
    return list(found.values())


def _duplicates(exact: list[list[int]]) -> list[Finding]:
    groups = [tuple(g) for g in exact if len(g) > 1]
    if not groups:
        return []
    rows = tuple(i for g in groups for i in g)
    return [
        Finding(
            "warning",
            "DUPLICATES",
            f"{len(rows) - len(groups)} of {len(rows)} rows repeat another (same question, same answer)",
            rows,
            tuple(groups),
        )
    ]


def _nearly(cluster: Sequence[int], questions: Sequence[str]) -> list[Finding]:
    members: dict[int, list[int]] = defaultdict(list)
    for i, c in enumerate(cluster):
        members[c].append(i)
    groups = [tuple(m) for m in members.values() if len({questions[i] for i in m}) > 1]
    if not groups:
        return []
    rows = tuple(i for g in groups for i in g)
    return [
        Finding(
            "notice",
            "NEAR_DUPLICATES",
            f"{len(rows)} rows stand in {len(groups)} groups of nearly equal questions; each group stays on one side of the split",
            rows,
            tuple(groups),
        )
    ]


def _form(form: Sequence[float]) -> list[Finding]:
    rows = tuple(i for i, share in enumerate(form) if share > 0.5)
    if len(rows) <= len(form) / 10:
        return []
    told = f"{len(rows)} questions are mostly a form that many rows share; which of them are nearly equal is judged by the rest"
    return [Finding("notice", "SHARED_FORM", told, rows)]


def ceiling(questions: Sequence[str], targets: Sequence[str]) -> float:
    """Largest share of rows that one answer a question can match exactly."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for q, t in zip(questions, targets, strict=True):
        answers[q][t] += 1
    return sum(c.most_common(1)[0][1] for c in answers.values()) / len(questions)


def _contradictions(questions: Sequence[str], targets: Sequence[str]) -> list[Finding]:
    answers: dict[str, list[int]] = defaultdict(list)
    for i, q in enumerate(questions):
        answers[q].append(i)
    groups = [tuple(g) for g in answers.values() if len({targets[i] for i in g}) > 1]
    if not groups:
        return []
    rows = tuple(i for g in groups for i in g)
    most = ceiling(questions, targets)
    return [
        Finding(
            "warning",
            "CONTRADICTIONS",
            f"{len(rows)} rows ask {len(groups)} questions that have different answers; no model can match more than {most:.1%} of all rows exactly",
            rows,
            tuple(groups),
        )
    ]


def _labels(labels: Counter[str], examples: Sequence[Example]) -> list[Finding]:
    found: list[Finding] = []
    where = defaultdict(list)
    for i, e in enumerate(examples):
        if isinstance(e, Chat):
            where[e.target].append(i)
    rare = [name for name, count in labels.items() if count < 5]
    if rare:
        rows = tuple(i for name in rare for i in where[name])
        found.append(Finding("warning", "LABELS_RARE", f"labels with fewer than 5 rows: {', '.join(sorted(rare)[:10])}", rows))
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in labels:
        spellings[re.sub(r"[\W_]+", "", normalised(name))].append(name)
    twins = [names for names in spellings.values() if len(names) > 1]
    if twins:
        rows = tuple(i for names in twins for name in names for i in where[name])
        shown = "; ".join(" / ".join(map(repr, sorted(n))) for n in twins[:5])
        found.append(
            Finding("warning", "LABELS_NEAR_DUPLICATE", f"labels that differ only in case, space or punctuation: {shown}", rows)
        )
    return found


def _private(examples: Sequence[Example]) -> list[Finding]:
    """Counts and rows only: a value that may be private is never printed."""
    rows: dict[str, list[int]] = defaultdict(list)
    for i, e in enumerate(examples):
        text = e.text if not isinstance(e, Chat) else "\n".join(m.content for m in e.messages)
        for kind in pii.kinds(text):
            rows[kind].append(i)
    return [
        Finding("warning", "PRIVATE_DATA", f"{kind} found in {len(at)} rows (not shown)", tuple(at))
        for kind, at in sorted(rows.items())
    ]


def _long(examples: Sequence[Example]) -> list[Finding]:
    sizes = [sum(len(m.content) for m in e.messages) if isinstance(e, Chat) else 0 for e in examples]
    rows = tuple(i for i, s in enumerate(sizes) if s > 24_000)
    if not rows:
        return []
    return [Finding("notice", "LONG_ROWS", f"{len(rows)} rows have over 24,000 characters; the plan counts their tokens", rows)]


def too_few(rows: int, where: str) -> Problem | None:
    """Fewer than 10 rows cannot be split, trained and judged."""
    if rows >= 10:
        return None
    return Problem(
        "DATA_TOO_FEW",
        f"{rows} rows; at least 10 are needed to train, choose and judge.",
        where,
        "collect more rows (some hundreds are usual); until then prompt the model, with these rows as examples.",
    )
