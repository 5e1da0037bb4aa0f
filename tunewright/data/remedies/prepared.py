"""The rows of a config: read from its files, parsed, and changed as its settings say."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tunewright.core.config import EMBEDDING, PAIRED, RANKERS, RATED, REWARDED, Config
from tunewright.core.errors import CODES, DataError, Problem, data_error
from tunewright.core.locations import HUB, listed
from tunewright.core.records.common import Side
from tunewright.data import formats, near_duplicates, sources
from tunewright.data.files import hub
from tunewright.data.files.rows import FileSettings, Row
from tunewright.data.formats import Parsed, RowSettings
from tunewright.data.formats.fields import cleaned_row
from tunewright.data.messages import Chat, is_reference
from tunewright.data.near_duplicates import Clusters
from tunewright.data.remedies import labels, repetitions, synthetic
from tunewright.data.remedies.change import Change, dropped
from tunewright.data.remedies.labels import Sides
from tunewright.data.sources import Source
from tunewright.data.task import detect_task
from tunewright.data.text import normalised

SIDES: tuple[Side, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class Prepared:
    """``sides``: the examples by the setting whose files they are from, data.train first; ``clusters``: of all of them,
    in order; ``raw``: the rows that they were made from, by place; ``sha256`` covers the content of all files."""

    sides: Sides
    clusters: Clusters
    raw: dict[str, Row]
    format: str
    unused: dict[str, int]
    notices: tuple[str, ...]
    changes: tuple[Change, ...]
    sha256: str


@dataclass(frozen=True)
class FileRows:
    """The rows of one setting that names files, as they are and parsed, and what was changed."""

    source: Source
    parsed: Parsed
    changes: tuple[Change, ...]


def file_settings(config: Config) -> FileSettings:
    """How the config says files are to be read."""
    data = config.data
    return FileSettings(encoding=data.encoding, control=data.control, drop=_dropped(config))


def row_settings(config: Config) -> RowSettings:
    """How the config says rows are to be read."""
    data = config.data
    return RowSettings(
        format=data.format,
        columns=data.columns,
        instruction=data.instruction,
        label_names=data.label_names,
        fix_turns=data.turns == "fix",
        drop=frozenset(_dropped(config)),
        as_asked=data.format != "auto",
        preference=config.train.method in PAIRED,
        margins=config.train.method in RANKERS,
        rated=config.train.method in RATED,
        numbers=config.train.method == "regress",
        tags=config.train.method == "tag",
        rewards=config.train.method in REWARDED,
        embedding=config.train.method in EMBEDDING,
        control=data.control,
    )


def pinned(config: Config) -> Config:
    """The config with the revisions of data sets of the Hub resolved to commits, so that a run can be repeated."""
    names = {
        (section, key): getattr(getattr(config, section), key)
        for section, key in (*(("data", side) for side in SIDES), ("forget", "regression_rows"))
    }
    if not any(name.startswith(HUB) for value in names.values() for name in listed(value)):
        return config
    data = config.model_dump()
    for (section, key), value in names.items():
        if value:
            data[section][key] = hub.pinned(value) if isinstance(value, str) else [hub.pinned(name) for name in value]
    return Config.model_validate(data)


def _dropped(config: Config) -> dict[str, str]:
    """The codes of problems for which a row is left out, with the setting that says so."""
    invalid = dict.fromkeys(CODES, "data.invalid=drop") if config.data.invalid == "drop" else {}
    empty = dict.fromkeys(("DATA_EMPTY", "DATA_EMPTY_TARGET"), "data.empty=drop") if config.data.empty == "drop" else {}
    return {**invalid, **empty}


def read(names: str | Sequence[str], config: Config, how: RowSettings) -> FileRows:
    """The rows of the files that a setting names. Raises DataError with all problems that no setting drops."""
    files = file_settings(config)
    source = sources.read(names, files)
    parsed = formats.parse(source.rows, how)
    changes = [dropped(p, files.drop[p.code]) for p in parsed.dropped]
    if not how.rated:
        parsed, new = _references(parsed)
        changes += new
    if not parsed.examples:
        raise DataError([sources.nothing_left(changes)])
    control = dict.fromkeys(("DATA_CONTROL_CHAR", "DATA_UNICODE"), f"data.control={how.control}")
    changes += [
        Change(p.where, p.code, control.get(p.code, "data.turns=fix"), p.message, dropped=False) for p in parsed.fixed
    ]
    dirty = {p.where for p in parsed.fixed if p.code in control}
    rows = tuple(cleaned_row(row, how.control) if row.where in dirty else row for row in source.rows)
    return FileRows(replace(source, rows=rows), parsed, (*source.changes, *changes))


def _references(parsed: Parsed) -> tuple[Parsed, list[Change]]:
    """For methods that know no ratings: the rows as if they had none, without those that are rated undesirable."""
    bad, why = [e for e in parsed.examples if not is_reference(e)], "the answer is rated undesirable"
    changes = [Change(e.where, "RATINGS", f"data.format={parsed.format}", why, dropped=True) for e in bad]
    kept = (replace(e, desirable=None) if isinstance(e, Chat) else e for e in parsed.examples if is_reference(e))
    return replace(parsed, examples=tuple(kept)), changes


def prepare(config: Config) -> Prepared:
    """Reads all files of a config. Raises DataError with all their problems; never ConfigError."""
    files = _read(config)
    sides, clusters, changes = _remedied(config, _identified({side: f.parsed.examples for side, f in files.items()}))
    unused: Counter[str] = Counter()
    digest = hashlib.sha256()
    for side, f in files.items():
        unused.update(f.parsed.unused)
        digest.update(f"{side}\x00{f.source.sha256}\x00".encode())
    return Prepared(
        sides=sides,
        clusters=clusters,
        raw={row.where: row for f in files.values() for row in f.source.rows},
        format=files["train"].parsed.format,
        unused=dict(unused),
        notices=tuple(n for f in files.values() for n in f.source.notices),
        changes=(*(c for f in files.values() for c in f.changes), *changes),
        sha256=digest.hexdigest(),
    )


def _read(config: Config) -> dict[Side, FileRows]:
    if not config.data.train:
        raise data_error(
            "DATA_EMPTY",
            "no data file is given.",
            where="data.train",
            fix="give a data file: `tunewright run rows.jsonl`.",
        )
    files: dict[Side, FileRows] = {}
    problems: list[Problem] = []
    how = row_settings(config)
    for side in SIDES:
        if not (names := listed(getattr(config.data, side))):
            continue
        try:
            files[side] = read(names, config, how)
        except DataError as error:
            problems += error.problems
            continue
        how = replace(how, format=files[side].parsed.format)  # the other files must have the format of the first
    if problems:
        raise DataError(problems)
    return files


def _identified(sides: Sides) -> Sides:
    """The rows, identified by their whole prompts if all of them ask the same, such as "Answer.", about what their
    system messages or tools contain. What all rows have in common does not make two of them dependent; as one group,
    they would be on one side, and count as one row in all statistics. Rows with one whole prompt are such a group."""
    every = [e for examples in sides.values() for e in examples]
    if _differ(e.question for e in every) or not _differ(e.whole_prompt for e in every):
        return sides
    chats = {side: [e for e in examples if isinstance(e, Chat)] for side, examples in sides.items()}
    return {side: tuple(replace(e, same_question=True) for e in own) for side, own in chats.items()}


def _differ(texts: Iterable[str]) -> bool:
    """Whether not all read the same; usually the first two tell."""
    return any(one != other for one, other in itertools.pairwise(map(normalised, texts)))


def _remedied(config: Config, sides: Sides) -> tuple[Sides, Clusters, list[Change]]:
    """The rows after the remedies that compare rows, and their near-duplicates."""
    data = config.data
    changes: list[Change] = []
    if data.labels == "merge":
        sides, new = labels.merge(sides)
        changes += new
    for wanted, remedy in (
        (data.contradictions == "drop", repetitions.drop_contradictions),  # before the rows are no longer counted
        (data.duplicates == "drop", repetitions.drop_duplicates),
    ):
        if wanted and any(map(is_reference, (e for examples in sides.values() for e in examples))):
            answers = [e for examples in sides.values() for e in examples if is_reference(e)]
            canonical = detect_task(answers).kind.canonical
            kept, new = remedy(sides["train"], canonical)
            sides, changes = {**sides, "train": kept}, [*changes, *new]
    while True:
        questions = [normalised(e.question) for examples in sides.values() for e in examples]
        clusters = near_duplicates.cluster(questions, config.split.near_duplicate)
        if config.train.method in EMBEDDING:  # a document may not be learned from and searched for
            documents = [normalised(e.target) for examples in sides.values() for e in examples]
            others = near_duplicates.cluster(documents, config.split.near_duplicate)
            clusters = near_duplicates.joined(clusters, others)
        before = len(changes)
        sides, new = synthetic.drop_held_out(config, sides, clusters.cluster)
        changes += new
        if new:
            continue
        if data.leaks == "drop":
            sides, new = repetitions.drop_leaks(sides, clusters.cluster)
            changes += new
        if data.unseen_labels == "drop" and sides["train"]:
            sides, new = labels.drop_unseen(sides)
            changes += new
        if len(changes) == before:  # which rows are near-duplicates depends on all rows
            return sides, clusters, changes
