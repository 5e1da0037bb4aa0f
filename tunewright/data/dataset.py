"""What a config's data section means: files read, rows parsed, audited, and each put on its side for ever. No torch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.config import Config
from tunewright.core.errors import DataError, Problem, data_error
from tunewright.data import audit, examples, label_noise, near_duplicates, sources, split
from tunewright.data.audit import Audit, Finding
from tunewright.data.examples import Chat, Example, content_hash, question
from tunewright.data.label_noise import Noise
from tunewright.data.metrics import METRICS_OF, Task


@dataclass(frozen=True)
class Dataset:
    """All examples of all files in order; ``sides[i]`` is train, dev or test, ``cluster[i]`` the lowest near-duplicate of row i."""

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

    def judged(self, most: int | None, side: str = "test") -> list[int]:
        """Rows of a side, at most ``most`` of them, chosen by their content hash and by nothing else."""
        rows = sorted(self.side(side), key=lambda i: content_hash(question(self.examples[i])))
        return sorted(rows[:most])

    @property
    def instruction(self) -> str | None:
        """The commonest system message of the training rows."""
        heads = Counter(
            e.messages[0].content
            for i in self.side("train")
            if isinstance(e := self.examples[i], Chat) and e.messages[0].role == "system"
        )
        return heads.most_common(1)[0][0] if heads else None

    @functools.cached_property
    def noise(self) -> Noise | None:
        """Probably wrong labels among the training rows; test labels are never looked at."""
        rows = [i for i in self.side("train") if isinstance(self.examples[i], Chat)]
        if self.task.kind != "label":
            return None
        targets = [e.target for i in rows if isinstance(e := self.examples[i], Chat)]
        return label_noise.find([question(self.examples[i]) for i in rows], targets, [self.cluster[i] for i in rows], rows)

    @functools.cached_property
    def overlap(self) -> tuple[int, ...]:
        """Test rows that share a run of 13 words with a training row, where few rows have that run (it is no template)."""
        return split.overlaps(self.examples, self.side("train"), self.side("test"))

    def findings(self) -> tuple[Finding, ...]:
        """Those of the audit, and those that need to know the sides."""
        found = [*self.audit.findings]
        if self.overlap:
            told = f"test rows that share a run of 13 words with training rows: {len(self.overlap)}; the verdict is told without them too"
            found.append(Finding("warning", "OVERLAP", told, self.overlap))
        if self.noise is not None and self.noise.suspects:
            n = self.noise
            told = (
                f"{len(n.suspects)} of {n.rows} training labels look wrong, some {n.expected:.0f} of them rightly so; in all about {n.rate:.1%} "
                f"are wrong ({n.interval[0]:.1%} to {n.interval[1]:.1%}), as a TF-IDF classifier judges that has not seen them"
            )
            found.append(Finding("notice", "LABEL_NOISE", told, tuple(s.row for s in n.suspects)))
        return tuple(sorted(found, key=lambda f: (audit.ORDER[f.level], f.code)))

    def answer(self, row: int) -> str:
        """The normalised target of a row; empty for a text."""
        example = self.examples[row]
        return examples.normalised(example.target) if isinstance(example, Chat) else ""

    def audit_json(self) -> dict[str, Any]:
        audited = dataclasses.replace(self.audit, findings=self.findings())
        suspects = self.noise.suspects if self.noise else ()
        return {
            **audited.to_json(self.examples),
            "suspects": [{**dataclasses.asdict(s), "where": self.examples[s.row].where} for s in suspects],
            "format": self.format,
            "unused": self.unused,
            "notices": list(self.notices),
            "sides": {side: n for side in ("train", "dev", "test") if (n := self.sides.count(side))},
            "sha256": self.sha256,
        }

    def split_json(self) -> list[dict[str, Any]]:
        return [
            {"row": i, "where": e.where, "side": s, "cluster": c, "hash": content_hash(question(e))[:16]}
            for i, (e, s, c) in enumerate(zip(self.examples, self.sides, self.cluster, strict=True))
        ]


def load(config: Config) -> Dataset:
    """Raises DataError with all problems of all files; ConfigError never."""
    if not config.data.train:
        raise data_error(
            "DATA_EMPTY", "no data file is named.", where="data.train", fix="give a data file: `tunewright run rows.jsonl`."
        )
    files = [("train", config.data.train), *((side, path) for side in ("dev", "test") if (path := getattr(config.data, side)))]
    parsed: list[tuple[str, examples.Parsed]] = []
    notices: list[str] = []
    problems: list[Problem] = []
    digest = hashlib.sha256()
    form = config.data.format
    for side, path in files:
        try:
            source = sources.read(path)
            found = examples.parse(source.rows, form, config.data.columns, config.data.instruction)
        except DataError as error:
            problems += error.problems
            continue
        form = found.format
        parsed.append((side, found))
        digest.update(f"{side}\x00{source.sha256}\x00".encode())
        notices += [f"{Path(path).name}: {n}" for n in source.notices]
    if problems:
        raise DataError(problems)
    mine = parsed[0][1]
    if (few := audit.too_few(len(mine.examples), config.data.train)) is not None:
        raise DataError([few])
    everything = tuple(e for _, p in parsed for e in p.examples)
    came_from = [side for side, p in parsed for _ in p.examples]
    alike = near_duplicates.alike([examples.normalised(question(e)) for e in everything], config.split.near_duplicate)
    split.check_leaks(everything, came_from, alike.cluster)
    audited = audit.audit(mine.examples, alike.first(len(mine.examples)))
    sides = _sides(config, mine.examples, alike.cluster, came_from)
    task = _task(config, audited.task, everything)
    unused: Counter[str] = Counter()
    for _, p in parsed:
        unused.update(p.unused)
    return Dataset(
        everything, tuple(sides), alike.cluster, audited, task, mine.format, dict(unused), tuple(notices), digest.hexdigest()
    )


def _sides(config: Config, mine: Sequence[Example], cluster: Sequence[int], came_from: list[str]) -> list[str]:
    held = split.hold_out(
        mine, cluster[: len(mine)], 0.0 if config.data.dev else config.split.dev, 0.0 if config.data.test else config.split.test
    )
    sides = list(came_from)
    for name, rows in (("train", held.train), ("dev", held.dev), ("test", held.test)):
        for i in rows:
            sides[i] = name
    if "test" not in sides:
        raise data_error(
            "DATA_TOO_FEW",
            "no test rows: nothing could be proven.",
            where="split.test",
            fix="set split.test above 0, or name data.test.",
        )
    return sides


def _task(config: Config, task: Task, everything: Sequence[Example]) -> Task:
    metric = config.prove.metric
    if metric != "auto" and metric not in METRICS_OF[task.kind]:
        raise data_error(
            "DATA_FORMAT_MISMATCH",
            f"prove.metric={metric} does not fit a {task.kind} task.",
            where="prove.metric",
            fix=f"use {', '.join(METRICS_OF[task.kind])} or auto.",
        )
    if task.kind == "label" and (unknown := [e for e in everything if isinstance(e, Chat) and e.target not in task.labels]):
        raise DataError(
            [
                Problem(
                    "DATA_FORMAT_MISMATCH",
                    f"the label {e.target!r} is in no training row.",
                    e.where,
                    "mend the label, or add training rows for it.",
                )
                for e in unknown
            ]
        )
    return task if metric == "auto" else Task(task.kind, metric, f"{task.reason}; metric as asked", task.labels)
