"""The audit: flag, with rows and a reason; never drop. No torch, no model."""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from tunewright.errors import Problem, data_error
from tunewright.examples import Chat, Example, content_hash, normalised, question
from tunewright.metrics import Task, detect_task

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


def audit(examples: Sequence[Example], cluster: Sequence[int]) -> Audit:
    """Everything that can be told about the examples from their text alone. ``cluster`` comes from `near_clusters`.

    Raises DATA_DUPLICATES when all rows are one, LABELS_ONE_CLASS when a classification set has one label.
    """
    questions = [normalised(question(e)) for e in examples]
    targets = [normalised(e.target) if isinstance(e, Chat) else "" for e in examples]
    exact = _groups([content_hash(f"{q}\x00{t}") for q, t in zip(questions, targets, strict=True)])
    if len(examples) > 1 and len(exact) == 1 and len(exact[0]) == len(examples):
        raise data_error(
            "DATA_DUPLICATES", f"all {len(examples)} rows are the same.", where=examples[0].where, mend="bring different rows."
        )
    task = detect_task(examples)
    labels = Counter(e.target for e in examples if isinstance(e, Chat)) if task.kind == "label" else Counter()
    if task.kind == "label" and len(labels) < 2:
        raise data_error(
            "LABELS_ONE_CLASS",
            f"every answer is {next(iter(labels))!r}.",
            where=examples[0].where,
            mend="add rows with other labels.",
        )
    findings = [
        *_duplicates(exact),
        *_nearly(cluster, questions),
        *_contradictions(questions, targets),
        *_labels(labels, examples),
        *_private(examples),
        *_long(examples),
    ]
    sizes = np.array([len(q) + len(t) for q, t in zip(questions, targets, strict=True)])
    characters = {name: float(np.percentile(sizes, p)) for name, p in (("min", 0), ("median", 50), ("p95", 95), ("max", 100))}
    findings.sort(key=lambda f: (ORDER[f.level], f.code))
    return Audit(
        len(examples), task, tuple(cluster), characters, dict(labels.most_common()), ceiling(questions, targets), tuple(findings)
    )


def _groups(keys: Sequence[str]) -> list[list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        found[key].append(i)
    return list(found.values())


def shingles(text: str, size: int = 5) -> set[str]:
    return {text[i : i + size] for i in range(max(1, len(text) - size + 1))}


def near_clusters(texts: Sequence[str], threshold: float) -> list[int]:
    """Lowest row of each row's cluster of (nearly) equal normalised texts.

    ``threshold``: Jaccard similarity of character 5-grams from which two texts count as one. MinHash (128 permutations)
    proposes pairs, exact Jaccard decides, pairs are joined.
    """
    from datasketch import MinHash, MinHashLSH

    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        parent[i] = first.setdefault(text, i)
    if threshold >= 1.0:
        return [root(i) for i in range(len(texts))]
    unique = list(first.values())
    # A document of a megabyte has as many shingles; its first 20,000 characters tell a near-copy just as well.
    bags = {i: shingles(texts[i][:20_000]) for i in unique}
    index = MinHashLSH(threshold=threshold * 0.9, num_perm=128)
    for i in unique:
        sketch = MinHash(num_perm=128, hashfunc=zlib.crc32, seed=1)
        sketch.update_batch([s.encode("utf-8", "surrogatepass") for s in sorted(bags[i])])
        for j in index.query(sketch):
            union = len(bags[i] | bags[j])
            if root(i) != root(j) and len(bags[i] & bags[j]) >= threshold * union:
                a, b = sorted((root(i), root(j)))
                parent[b] = a
        index.insert(i, sketch)
    return [root(i) for i in range(len(texts))]


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


_SECRETS = {
    "e-mail address": re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.]{2,}\b"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "access key": re.compile(
        r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|sk-[A-Za-z0-9_-]{20,}|xox[baprs]-[A-Za-z0-9-]{10,})\b"
    ),
    "card number": re.compile(r"\b(?:\d[ -]?){13,16}\b"),
    "bank account (IBAN)": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
}


def _private(examples: Sequence[Example]) -> list[Finding]:
    """Counts and rows only: a value that may be private is never printed. "Found", never "clean": recall is unknown."""
    found = []
    for name, pattern in _SECRETS.items():
        rows = []
        for i, e in enumerate(examples):
            text = e.text if not isinstance(e, Chat) else "\n".join(m.content for m in e.messages)
            if any(_CHECKED.get(name, bool)(m[0]) for m in pattern.finditer(text)):
                rows.append(i)
        if rows:
            found.append(Finding("warning", "PRIVATE_DATA", f"{name} found in {len(rows)} rows (not shown)", tuple(rows)))
    return found


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d * 2 - 9 * (d > 4) if i % 2 else d for i, d in enumerate(reversed(digits))]
    return len(digits) >= 13 and sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as numbers, modulo 97 is 1."""
    plain = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


_CHECKED: dict[str, Callable[[str], bool]] = {"card number": _luhn, "bank account (IBAN)": _iban}


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
