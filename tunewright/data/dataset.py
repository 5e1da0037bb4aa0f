"""Loads the data set of a config: its rows, audited and split into train, dev and test.

No torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.core.config import RANKERS, RATED, Config
from tunewright.core.errors import DataError, Problem, data_error
from tunewright.core.locations import title
from tunewright.core.records import AnswerSchema
from tunewright.core.words import counted
from tunewright.data import audit, label_noise, numbers, split
from tunewright.data.audit import AuditResult, Finding
from tunewright.data.label_noise import Noise
from tunewright.data.messages import Chat, Example, Tool, is_reference
from tunewright.data.metrics import METRICS
from tunewright.data.remedies import prepared, repetitions, synthetic
from tunewright.data.remedies.change import Change, summaries
from tunewright.data.remedies.prepared import SIDES, Prepared
from tunewright.data.structure import outline
from tunewright.data.structure.schema import INFERRED
from tunewright.data.task import LABEL_SET, NUMBER, RANKING, Task, label_set, tags
from tunewright.data.task.configured import Violation, configured, violations
from tunewright.data.text import content_hash

# Methods that read rows in their own way.
READ_AS = {
    "regress": NUMBER.detect,
    "multilabel": LABEL_SET.detect,
    "tag": tags.detect,
    **dict.fromkeys(RANKERS, RANKING.detect),
}


@dataclass(frozen=True)
class Dataset:
    """The examples of all files, in order. ``sides[i]`` is train, dev or test; ``cluster[i]`` is the first row that row
    i is a near-duplicate of (i itself if there is none). ``changes``: what settings dropped or changed before."""

    examples: tuple[Example, ...]
    sides: tuple[str, ...]
    cluster: tuple[int, ...]
    audit: AuditResult
    task: Task
    format: str
    unused: dict[str, int]
    notices: tuple[str, ...]
    changes: tuple[Change, ...]
    sha256: str

    def side(self, name: str) -> list[int]:
        """The rows of a side whose answers are references; those that are rated undesirable are not among them."""
        return [i for i in self.every(name) if is_reference(self.examples[i])]

    def every(self, name: str) -> list[int]:
        """All rows of a side."""
        return [i for i, s in enumerate(self.sides) if s == name]

    def sample(self, limit: int | None, side: str = "test") -> list[int]:
        """At most ``limit`` rows of a side (None: all), chosen only by the hash of their content."""
        rows = sorted(self.side(side), key=lambda i: content_hash(self.examples[i].question))
        return sorted(rows[:limit])

    @property
    def instruction(self) -> str | None:
        """The most frequent system message of the training rows."""
        first = [e.messages[0] for i in self.side("train") if (e := self.examples[i]).messages]
        systems = Counter(m.content for m in first if m.role == "system")
        return systems.most_common(1)[0][0] if systems else None

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The most frequent tools of the training rows that have tools."""
        given = [e.tools for i in self.side("train") if isinstance(e := self.examples[i], Chat) and e.tools]
        by_text = {json.dumps(tools): tools for tools in given}
        frequent = Counter(json.dumps(tools) for tools in given).most_common(1)
        return by_text[frequent[0][0]] if frequent else ()

    @functools.cached_property
    def noise(self) -> Noise | None:
        """Probably wrong labels among the training rows; test labels are not examined."""
        if not self.task.labels:
            return None
        rows = self.side("train")
        chosen = [self.examples[i] for i in rows]
        questions, targets = [e.question for e in chosen], [e.target for e in chosen]
        return label_noise.find(questions, targets, [self.cluster[i] for i in rows], rows)

    @functools.cached_property
    def overlap(self) -> tuple[int, ...]:
        """Test rows that share 13 consecutive words with a training row, unless many rows share them (then they are a
        template)."""
        return split.overlaps(self.examples, self.every("train"), self.side("test"))

    @functools.cached_property
    def violations(self) -> tuple[Violation, ...]:
        """What the reference answers violate."""
        rows = [i for i, e in enumerate(self.examples) if is_reference(e)]
        every = violations(self.task, [self.examples[i] for i in rows])
        return tuple(dataclasses.replace(v, rows=tuple(rows[i] for i in v.rows)) for v in every)

    def findings(self) -> tuple[Finding, ...]:
        """The findings of the audit, and those that depend on the split or on the schema of the answers."""
        findings = [*self.audit.findings, *(Finding("warning", v.code, v.message, v.rows) for v in self.violations)]
        if (written := synthetic.sentence(self.examples, self.sides)) is not None:
            rows = tuple(i for i, e in enumerate(self.examples) if e.author)
            findings.append(Finding("notice", "SYNTHETIC", written, rows))
        if self.overlap:
            message = (
                f"{split.SPAN} consecutive words of a training row occur in {counted(len(self.overlap), 'test row')}; "
                "the verdict is also reported without them"
            )
            findings.append(Finding("warning", "OVERLAP", message, self.overlap))
        if self.noise is not None and self.noise.suspects:
            n, (low, high) = self.noise, self.noise.interval
            message = (
                f"{len(n.suspects)} of {n.rows} training labels flagged; about {n.expected:.0f} are expected to be "
                f"truly wrong. Overall about {n.rate:.1%} of labels are wrong ({low:.1%} to {high:.1%}), as estimated "
                "by a cross-validated TF-IDF classifier"
            )
            findings.append(Finding("notice", "LABEL_NOISE", message, tuple(s.row for s in n.suspects)))
        return tuple(sorted(findings, key=lambda f: (audit.ORDER[f.level], f.code)))

    def answer(self, row: int) -> str:
        """The target of a row, equal for targets that say the same, or its rating; empty for a document."""
        return repetitions.claim(self.examples[row], self.task.kind.canonical)

    @functools.cached_property
    def answer_schema(self) -> AnswerSchema | None:
        """The schema of structured answers, and the fraction of the reference answers of each side that satisfy it: of
        held-out rows only, if it was inferred from the training rows."""
        schema, value = self.task.schema, self.task.kind.value
        if schema is None or value is None:
            return None
        inferred = schema.source == INFERRED
        sides = {side: self.side(side) for side in SIDES if not (inferred and side == "train")}
        return AnswerSchema(
            source=schema.source,
            json_schema=schema.value,
            fields=dict(outline.fields(schema.value)) if inferred else {},
            satisfied={
                side: sum(schema.accepts(value(self.examples[i])) for i in rows) / len(rows)
                for side, rows in sides.items()
                if rows
            },
        )

    def audit_json(self) -> dict[str, Any]:
        audited = dataclasses.replace(self.audit, findings=self.findings())
        suspects = self.noise.suspects if self.noise else ()
        return {
            **audited.to_json(self.examples),
            "suspects": [{**dataclasses.asdict(s), "where": self.examples[s.row].where} for s in suspects],
            "format": self.format,
            "unused": self.unused,
            "notices": list(self.notices),
            "changes": [summary.to_json() for summary in summaries(self.changes)],
            **({"answer_schema": self.answer_schema.model_dump(mode="json")} if self.answer_schema else {}),
            "sides": {side: n for side in SIDES if (n := self.sides.count(side))},
            "sha256": self.sha256,
        }

    def split_json(self) -> list[dict[str, Any]]:
        return [
            {"row": i, "where": e.where, "side": s, "cluster": c, "hash": content_hash(e.question)[:16]}
            for i, (e, s, c) in enumerate(zip(self.examples, self.sides, self.cluster, strict=True))
        ]


def load(config: Config) -> Dataset:
    """The data set of a config. Raises DataError with all problems of all files; never ConfigError."""
    return audited(config, prepared.prepare(config))


def audited(config: Config, rows: Prepared) -> Dataset:
    """The data set of the rows of a config, audited and split. Raises DataError."""
    main = rows.sides["train"]
    if (problem := audit.too_few(len(main), title(config.data.train))) is not None:
        raise DataError([problem])
    synthetic.require_tested_on_people(config, rows.sides)
    everything = tuple(e for examples in rows.sides.values() for e in examples)
    came_from = [side for side, examples in rows.sides.items() for _ in examples]
    split.check_leaks(everything, came_from, rows.clusters.cluster)
    _require_both_kinds(config, main)
    findings = audit.audit(main, rows.clusters.first(len(main)))
    sides = _sides(config, everything, rows.clusters.cluster, came_from)
    train = [e for e, side in zip(everything, sides, strict=True) if side == "train"]
    _require_both_kinds(config, train)
    train = [e for e in train if is_reference(e)]
    return Dataset(
        examples=everything,
        sides=tuple(sides),
        cluster=rows.clusters.cluster,
        audit=findings,
        task=configured(config, _task(config, findings.task, train, everything), train, everything),
        format=rows.format,
        unused=rows.unused,
        notices=rows.notices,
        changes=rows.changes,
        sha256=rows.sha256,
    )


def _require_both_kinds(config: Config, train: Sequence[Example]) -> None:
    """Raises DATA_ONE_SIDED for rated rows of one kind: there is nothing to distinguish, and with desirable ones alone
    the loss is fine-tuning whose gradient vanishes. (A pair has both kinds.)"""
    ratings = {e.desirable for e in train if isinstance(e, Chat) and e.rejected is None}
    if config.train.method in RATED and ratings in ({True}, {False}):
        kind, other = ("desirable", "undesirable") if ratings == {True} else ("undesirable", "desirable")
        fix = f"add {other} answers" + (", or set train.method=sft." if ratings == {True} else ".")
        message = f"all training rows are {kind}; train.method={config.train.method} learns from both kinds."
        raise data_error("DATA_ONE_SIDED", message, where=title(config.data.train), fix=fix)


def _sides(
    config: Config, everything: Sequence[Example], cluster: Sequence[int], came_from: Sequence[str]
) -> list[str]:
    main = everything[: came_from.count("train")]
    held_out = split.hold_out(main, cluster[: len(main)], *synthetic.fractions(config))
    sides = list(came_from)
    for name, rows in (("train", held_out.train), ("dev", held_out.dev), ("test", held_out.test)):
        for i in rows:
            sides[i] = name
    if not any(side == "test" and is_reference(e) for side, e in zip(sides, everything, strict=True)):
        what = "test rows with a desirable answer" if "test" in sides else "test rows"
        raise data_error(
            "DATA_TOO_FEW",
            f"there are no {what}, so nothing could be proven.",
            where="split.test",
            fix="set split.test above 0, or set data.test.",
        )
    return sides


def _asked_task(method: str, everything: Sequence[Example]) -> Task:
    """The task of rows that a method reads in its own way."""
    if (task := READ_AS[method](everything)) is not None:
        return task
    assert method != "tag", "its row formats have one tag for each word"
    no_number = (e for e in everything if method == "regress" and numbers.exact(e.target) is None)
    first = next(no_number, max(everything, key=lambda e: len(e.target)))
    what = "a number" if method == "regress" else "short labels separated by commas"
    message = f"train.method={method} needs rows of one answer each, {what}; one is {first.target[:80]!r}."
    fix = "use another train.method; data.columns={label: FIELD} names the field of the answer."
    raise data_error("DATA_FORMAT_MISMATCH", message, where=first.where, fix=fix)


def _require_trained_labels(task: Task, train: Sequence[Example], everything: Sequence[Example]) -> None:
    """Raises DATA_FORMAT_MISMATCH for a label of a set, or a tag, that only rows of dev or test have, and
    LABELS_ONE_CLASS."""
    parts = label_set.parts if task.kind is LABEL_SET else tags.words
    known = {label for e in train for label in parts(e.target)}
    if task.label_set and len(known) < 2 and task.kind is not LABEL_SET:
        message, fix = f"all words have the tag {known.pop()!r}.", "add rows with other tags."
        raise data_error("LABELS_ONE_CLASS", message, where=train[0].where, fix=fix)
    for e in everything if task.label_set else ():
        if unknown := sorted(set(parts(e.target)) - known):
            fix = "add training rows for it, or remove the row."
            message = f"no training row has the {'label' if task.kind is LABEL_SET else 'tag'} {unknown[0]!r}."
            raise data_error("DATA_FORMAT_MISMATCH", message, where=e.where, fix=fix)


def _task(config: Config, task: Task, train: Sequence[Example], everything: Sequence[Example]) -> Task:
    """The task, with the metric that the config sets."""
    if config.train.method in READ_AS:
        task = _asked_task(config.train.method, everything)
        _require_trained_labels(task, train, everything)
    name, allowed = config.prove.metric, [m.name for m in task.kind.metrics]
    if name != "auto" and name not in allowed:
        raise data_error(
            "DATA_FORMAT_MISMATCH",
            f"prove.metric={name} cannot be used for a {task.kind.name} task.",
            where="prove.metric",
            fix=f"use {', '.join(allowed)} or auto.",
        )
    metric = task.metric if name == "auto" else METRICS[name]
    if config.train.method == "classify" and not metric.by_label:
        raise data_error(
            "DATA_FORMAT_MISMATCH",
            f"train.method=classify needs rows with labels, judged by accuracy; these are judged by {metric.name}, as "
            f"a {task.kind.name} task ({task.reason}).",
            where="train.method",
            fix="use train.method=sft; for rows with labels, leave prove.metric at auto.",
        )
    unknown = [e for e in everything if task.labels and is_reference(e) and e.target not in task.labels]
    if unknown:
        fix = "add training rows for it, or set data.unseen_labels=drop; data.labels=merge unites ways of writing it."
        raise DataError(
            [
                Problem("DATA_FORMAT_MISMATCH", f"no training row has the label {e.target!r}.", e.where, fix)
                for e in unknown
            ]
        )
    if name == "auto":
        return task
    return dataclasses.replace(task, metric=metric, reason=f"{task.reason}; metric set by prove.metric")
