"""The audit flags rows and gives a reason; it never drops any. No torch, no model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tunewright.core import pii
from tunewright.core.errors import Problem, data_error
from tunewright.core.words import counted, on_one_line
from tunewright.data.messages import Chat, Example, is_reference
from tunewright.data.near_duplicates import Clusters
from tunewright.data.remedies import repetitions
from tunewright.data.remedies.labels import key as label_key
from tunewright.data.task import Task, detect_task
from tunewright.data.text import as_answer, normalised

Level = Literal["error", "warning", "notice"]
ORDER: dict[Level, int] = {"error": 0, "warning": 1, "notice": 2}
MIN_LABEL_ROWS = 5  # with fewer rows of a label, neither training nor the verdict has much to work with
LONG = 24_000  # characters: about 6,000 tokens of English


@dataclass(frozen=True)
class Finding:
    """One observation about the data. ``groups``: the same ``rows``, grouped by what they have in common."""

    level: Level
    code: str
    message: str
    rows: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", on_one_line(self.message))  # messages quote labels


@dataclass(frozen=True)
class AuditResult:
    """A summary of the data, with findings. ``cluster[i]``: the first row with (nearly) the same question as row i;
    ``characters``: row lengths by quantile; ``labels``: rows per label; ``ceiling``: the best possible exact match."""

    rows: int
    task: Task
    cluster: tuple[int, ...]
    characters: dict[str, float]
    labels: dict[str, int]
    ceiling: float
    findings: tuple[Finding, ...] = ()

    def to_json(self, examples: Sequence[Example]) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "task": self.task.to_json(),
            "cluster": self.cluster,
            "characters": self.characters,
            "labels": self.labels,
            "ceiling": self.ceiling,
            "findings": [{**asdict(f), "where": [examples[i].where for i in f.rows[:20]]} for f in self.findings],
        }


def audit(examples: Sequence[Example], clusters: Clusters) -> AuditResult:
    """Audits the text of the examples. ``clusters``: the near-duplicates among their questions. The task, its labels
    and the ceiling are those of the answers that are not rated undesirable.

    Raises DATA_DUPLICATES if all rows are identical, LABELS_ONE_CLASS if a label task has a single label.
    """
    references = [i for i, e in enumerate(examples) if is_reference(e)]
    task = detect_task([examples[i] for i in references])
    questions = [normalised(e.question) for e in examples]
    prompts = [repetitions.question(e, task.kind.canonical) for e in examples]
    targets = [repetitions.claim(e, task.kind.canonical) for e in examples]
    exact = _groups([repetitions.key(e, task.kind.canonical) for e in examples])
    if len(examples) > 1 and len(exact) == 1 and len(exact[0]) == len(examples):
        raise data_error(
            "DATA_DUPLICATES",
            f"all {len(examples)} rows are identical.",
            where=examples[0].where,
            fix="provide different rows.",
        )
    labels = Counter(examples[i].target for i in references) if task.labels else Counter()
    if len(labels) == 1:
        raise data_error(
            "LABELS_ONE_CLASS",
            f"all rows have the label {next(iter(labels))!r}.",
            where=examples[0].where,
            fix="add rows with other labels.",
        )
    findings = [
        *_duplicates(exact, len(examples)),
        *_near_duplicates(clusters.cluster, questions),
        *_boilerplate(clusters.boilerplate),
        *_contradictions(prompts, targets),
        *_labels(labels, examples),
        *_ratings(examples),
        *_private(examples),
        *_long(examples),
        *_suspicious(examples),
    ]
    sizes = np.array([len(q) + len(normalised(e.target)) for q, e in zip(questions, examples, strict=True)])
    characters = {
        name: float(np.percentile(sizes, p)) for name, p in (("min", 0), ("median", 50), ("p95", 95), ("max", 100))
    }
    findings.sort(key=lambda f: (ORDER[f.level], f.code))
    return AuditResult(
        rows=len(examples),
        task=task,
        cluster=clusters.cluster,
        characters=characters,
        labels=dict(labels.most_common()),
        ceiling=_ceiling([examples[i] for i in references], task),
        findings=tuple(findings),
    )


def _groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Groups of rows with equal keys, in the order of their first rows."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        members[key].append(i)
    return list(members.values())


def _grouped(level: Level, code: str, message: str, groups: list[tuple[int, ...]]) -> list[Finding]:
    """A finding about groups of rows, each of at least two; no finding without groups."""
    rows = tuple(i for g in groups for i in g)
    return [Finding(level, code, message, rows, tuple(groups))] if groups else []


def _duplicates(exact: list[list[int]], rows: int) -> list[Finding]:
    groups = [tuple(g) for g in exact if len(g) > 1]
    repeated = rows - len(exact)
    message = (
        f"{repeated} of {rows} rows {'repeats' if repeated == 1 else 'repeat'} an earlier row (same prompt, same "
        "answer); data.duplicates=drop leaves such rows out"
    )
    return _grouped("warning", "DUPLICATES", message, groups)


def _near_duplicates(cluster: Sequence[int], questions: Sequence[str]) -> list[Finding]:
    groups = [tuple(g) for g in _groups(cluster) if len({questions[i] for i in g}) > 1]
    count = counted(len(groups), "group")
    message = f"{sum(map(len, groups))} rows are near-duplicates ({count}); each group stays on one side of the split"
    return _grouped("notice", "NEAR_DUPLICATES", message, groups)


def _boilerplate(fractions: Sequence[float]) -> list[Finding]:
    rows = tuple(i for i, fraction in enumerate(fractions) if fraction > 0.5)
    if len(rows) <= len(fractions) / 10:
        return []
    message = f"{len(rows)} questions are mostly boilerplate, which is ignored when looking for near-duplicates"
    return [Finding("notice", "BOILERPLATE", message, rows)]


def ceiling(questions: Sequence[str], targets: Sequence[str]) -> float:
    """The largest fraction of rows that a model with one answer per question can match exactly."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for q, t in zip(questions, targets, strict=True):
        answers[q][t] += 1
    return sum(c.most_common(1)[0][1] for c in answers.values()) / len(questions)


def _ceiling(references: Sequence[Example], task: Task) -> float:
    """Two desirable answers to one prompt do not contradict each other, but only one of them can be given."""
    rated = any(isinstance(e, Chat) and e.desirable for e in references)
    canonical = task.kind.canonical
    prompts = [repetitions.asked(e) if rated else repetitions.question(e, canonical) for e in references]
    return ceiling(prompts, [as_answer(canonical(e)) for e in references])  # as metrics compare answers


def _ratings(examples: Sequence[Example]) -> list[Finding]:
    bad = tuple(i for i, e in enumerate(examples) if not is_reference(e))
    if not bad:
        return []
    message = (
        f"{counted(len(examples) - len(bad), 'answer is', 'answers are')} desirable and {len(bad)} undesirable; "
        "undesirable ones are trained on and part of the dev loss, and no answer is compared with them"
    )
    return [Finding("notice", "RATINGS", message, bad)]


def _contradictions(questions: Sequence[str], targets: Sequence[str]) -> list[Finding]:
    groups = [tuple(g) for g in _groups(questions) if len({targets[i] for i in g}) > 1]
    best = f"{ceiling(questions, targets):.1%}"
    message = (
        f"{sum(map(len, groups))} rows give different answers to {counted(len(groups), 'question')}; "
        f"no model can match more than {best} of all rows exactly; data.contradictions=drop keeps the most frequent "
        "answer"
    )
    return _grouped("warning", "CONTRADICTIONS", message, groups)


def _labels(labels: Counter[str], examples: Sequence[Example]) -> list[Finding]:
    findings: list[Finding] = []
    of_label = defaultdict(list)
    for i, e in enumerate(examples):
        of_label[e.target].append(i)
    rare = [name for name, count in labels.items() if count < MIN_LABEL_ROWS]
    if rare:
        rows = tuple(i for name in rare for i in of_label[name])
        message = f"labels with fewer than {MIN_LABEL_ROWS} rows: {', '.join(sorted(rare)[:10])}"
        findings.append(Finding("warning", "LABELS_RARE", message, rows))
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in labels:
        spellings[label_key(name)].append(name)
    variants = [names for names in spellings.values() if len(names) > 1]
    if variants:
        rows = tuple(i for names in variants for name in names for i in of_label[name])
        shown = "; ".join(" / ".join(map(repr, sorted(n))) for n in variants[:5])
        message = f"labels that differ only in case, space or punctuation: {shown}; data.labels=merge unites them"
        findings.append(Finding("warning", "LABELS_NEAR_DUPLICATE", message, rows))
    return findings


def _private(examples: Sequence[Example]) -> list[Finding]:
    """Counts and rows only: a value that may be private is never printed."""
    rows: dict[str, list[int]] = defaultdict(list)
    for i, e in enumerate(examples):
        for kind in pii.kinds(e.text):
            rows[kind].append(i)
    return [
        Finding("warning", "PRIVATE_DATA", f"{kind} found in {counted(len(at), 'row')} (not shown)", tuple(at))
        for kind, at in sorted(rows.items())
    ]


def _long(examples: Sequence[Example]) -> list[Finding]:
    """Long conversations; documents are split into pieces anyway."""
    rows = tuple(i for i, e in enumerate(examples) if sum(len(m.content) for m in e.messages) > LONG)
    if not rows:
        return []
    return [
        Finding(
            "notice",
            "LONG_ROWS",
            f"{counted(len(rows), 'row')} of more than {LONG:,} characters; the plan counts the tokens",
            rows,
        )
    ]


# Marks of the turns of chat templates, as texts that were rendered before contain them.
MARKS = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|eot_id|user|assistant|system|end|message)\|>|</?s>\s*\[INST\]|\[/INST\]"
    r"|<(?:start|end)_of_turn>|<｜(?:User|Assistant)｜>"
)
# Latin letters as which UTF-8 is read by programs that take it for Windows-1252, and what follows them.
MOJIBAKE = re.compile("[\u00c2-\u00f4][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]{1,3}")


def _suspicious(examples: Sequence[Example]) -> list[Finding]:
    """Texts that would be trained on as they are, but were probably meant otherwise."""
    texts = [e.text for e in examples]
    marks = {i: mark[0] for i, text in enumerate(texts) if (mark := MARKS.search(text))}
    garbled = tuple(i for i, text in enumerate(texts) if any(map(_is_mojibake, MOJIBAKE.findall(text))))
    findings = []
    if marks:
        first = next(iter(marks.values()))
        message = (
            f"{counted(len(marks), 'row contains', 'rows contain')} marks of a chat template ({first}), which are read "
            "as ordinary text; give the messages, not the text that a template made of them"
        )
        findings.append(Finding("warning", "TEMPLATE_MARKS", message, tuple(marks)))
    if garbled:
        message = (
            f"{counted(len(garbled), 'row seems', 'rows seem')} to be UTF-8 that was read as Windows-1252 (such as Ã© "
            "for é); if data.encoding is set, leave it out or set it to auto"
        )
        findings.append(Finding("warning", "MOJIBAKE", message, garbled))
    return findings


def _is_mojibake(text: str) -> bool:
    try:
        return len(text.encode("cp1252").decode("utf-8")) < len(text)
    except UnicodeError:
        return False


def too_few(rows: int, where: str) -> Problem | None:
    """Fewer than 10 rows cannot be split, trained on and evaluated."""
    if rows >= 10:
        return None
    return Problem(
        "DATA_TOO_FEW",
        f"only {counted(rows, 'row')}; at least 10 are needed to train, choose and evaluate.",
        where,
        "collect more rows (a few hundred are typical); until then, prompt the model with these rows as examples.",
    )
