"""Loads the data set of a config: reads the files, parses and audits the rows, splits them into train, dev and test.

No torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.config import Config
from tunewright.core.errors import CODES, DataError, Problem, data_error
from tunewright.core.records import AnswerSchema, Side
from tunewright.data import audit, formats, label_noise, near_duplicates, sources, split
from tunewright.data.audit import Audit, Finding
from tunewright.data.formats import Parsed, RowSettings
from tunewright.data.label_noise import Noise
from tunewright.data.messages import Chat, Example, Tool
from tunewright.data.metrics import METRICS
from tunewright.data.structure import outline
from tunewright.data.structure.schema import INFERRED
from tunewright.data.task import Task
from tunewright.data.task.configured import Violation, configured, violations
from tunewright.data.text import content_hash, normalised

SIDES: tuple[Side, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class Dataset:
    """The examples of all files, in order. ``sides[i]`` is train, dev or test; ``cluster[i]`` is the first row that row
    i is a near-duplicate of (i itself if there is none)."""

    examples: tuple[Example, ...]
    sides: tuple[str, ...]
    cluster: tuple[int, ...]
    audit: Audit
    task: Task
    format: str
    unused: dict[str, int]
    notices: tuple[str, ...]
    sha256: str

    def side(self, name: str) -> list[int]:
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
        return split.overlaps(self.examples, self.side("train"), self.side("test"))

    @functools.cached_property
    def violations(self) -> tuple[Violation, ...]:
        """What the reference answers violate."""
        return tuple(violations(self.task, self.examples))

    def findings(self) -> tuple[Finding, ...]:
        """The findings of the audit, and those that depend on the split or on the schema of the answers."""
        findings = [*self.audit.findings, *(Finding("warning", v.code, v.message, v.rows) for v in self.violations)]
        if self.overlap:
            message = (
                f"{len(self.overlap)} test rows share {split.SPAN} consecutive words with training rows; "
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
        """The target of a row, equal for targets that say the same; empty for a document."""
        return self.task.kind.canonical(self.examples[row])

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
            **({"answer_schema": self.answer_schema.model_dump(mode="json")} if self.answer_schema else {}),
            "sides": {side: n for side in SIDES if (n := self.sides.count(side))},
            "sha256": self.sha256,
        }

    def split_json(self) -> list[dict[str, Any]]:
        return [
            {"row": i, "where": e.where, "side": s, "cluster": c, "hash": content_hash(e.question)[:16]}
            for i, (e, s, c) in enumerate(zip(self.examples, self.sides, self.cluster, strict=True))
        ]


def row_settings(config: Config) -> RowSettings:
    """How the config says rows are to be read."""
    data = config.data
    codes = [*CODES] if data.invalid == "drop" else ["DATA_EMPTY_TARGET"] if data.empty == "drop" else []
    return RowSettings(
        format=data.format,
        columns=data.columns,
        instruction=data.instruction,
        label_names=data.label_names,
        fix_turns=data.turns == "fix",
        drop=frozenset(codes),
        as_asked=data.format != "auto",
    )


@dataclass(frozen=True)
class _Files:
    """The parsed files by side, data.train first; ``sha256`` covers the content of all."""

    parsed: tuple[tuple[str, Parsed], ...]
    notices: tuple[str, ...]
    sha256: str


def load(config: Config) -> Dataset:
    """The data set of a config. Raises DataError with all problems of all files; never ConfigError."""
    files = _read(config)
    main = files.parsed[0][1]
    if (few := audit.too_few(len(main.examples), config.data.train)) is not None:
        raise DataError([few])
    everything = tuple(e for _, p in files.parsed for e in p.examples)
    came_from = [side for side, p in files.parsed for _ in p.examples]
    clusters = near_duplicates.cluster([normalised(e.question) for e in everything], config.split.near_duplicate)
    split.check_leaks(everything, came_from, clusters.cluster)
    audited = audit.audit(main.examples, clusters.first(len(main.examples)))
    unused: Counter[str] = Counter()
    for _, p in files.parsed:
        unused.update(p.unused)
    sides = _sides(config, main.examples, clusters.cluster, came_from)
    train = [e for e, side in zip(everything, sides, strict=True) if side == "train"]
    return Dataset(
        examples=everything,
        sides=tuple(sides),
        cluster=clusters.cluster,
        audit=audited,
        task=configured(config, _task(config, audited.task, everything), train),
        format=main.format,
        unused=dict(unused),
        notices=files.notices,
        sha256=files.sha256,
    )


def _read(config: Config) -> _Files:
    if not config.data.train:
        raise data_error(
            "DATA_EMPTY",
            "no data file is given.",
            where="data.train",
            fix="give a data file: `tunewright run rows.jsonl`.",
        )
    named = [(side, path) for side in SIDES if (path := getattr(config.data, side))]
    parsed: list[tuple[str, Parsed]] = []
    notices: list[str] = []
    problems: list[Problem] = []
    digest = hashlib.sha256()
    how = row_settings(config)
    name: str = how.format
    for side, path in named:
        try:
            source = sources.read(path)
            rows = formats.parse(source.rows, dataclasses.replace(how, format=name))
        except DataError as error:
            problems += error.problems
            continue
        name = rows.format  # the other files must have the same format as the first
        parsed.append((side, rows))
        digest.update(f"{side}\x00{source.sha256}\x00".encode())
        notices += [f"{Path(path).name}: {n}" for n in source.notices]
    if problems:
        raise DataError(problems)
    return _Files(tuple(parsed), tuple(notices), digest.hexdigest())


def _sides(config: Config, main: Sequence[Example], cluster: Sequence[int], came_from: list[str]) -> list[str]:
    dev = 0.0 if config.data.dev else config.split.dev
    test = 0.0 if config.data.test else config.split.test
    held_out = split.hold_out(main, cluster[: len(main)], dev, test)
    sides = list(came_from)
    for name, rows in (("train", held_out.train), ("dev", held_out.dev), ("test", held_out.test)):
        for i in rows:
            sides[i] = name
    if "test" not in sides:
        raise data_error(
            "DATA_TOO_FEW",
            "there are no test rows, so nothing could be proven.",
            where="split.test",
            fix="set split.test above 0, or set data.test.",
        )
    return sides


def _task(config: Config, task: Task, everything: Sequence[Example]) -> Task:
    """The task, with the metric that the config sets."""
    name, allowed = config.prove.metric, [m.name for m in task.kind.metrics]
    if name != "auto" and name not in allowed:
        raise data_error(
            "DATA_FORMAT_MISMATCH",
            f"prove.metric={name} cannot be used for a {task.kind.name} task.",
            where="prove.metric",
            fix=f"use {', '.join(allowed)} or auto.",
        )
    unknown = [e for e in everything if task.labels and e.target not in task.labels]
    if unknown:
        fix = "correct the label, or add training rows for it."
        raise DataError(
            [
                Problem("DATA_FORMAT_MISMATCH", f"no training row has the label {e.target!r}.", e.where, fix)
                for e in unknown
            ]
        )
    if name == "auto":
        return task
    return dataclasses.replace(task, metric=METRICS[name], reason=f"{task.reason}; metric set by prove.metric")
