"""Records on disk: reads are validated, writes are atomic. Also the table of a run's files and their records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails

from tunewright.core import run_folder
from tunewright.core.config import Plan
from tunewright.core.errors import RunError
from tunewright.core.records.common import Record
from tunewright.core.records.data import Audit, SplitRow
from tunewright.core.records.events import Event
from tunewright.core.records.evidence import (
    CLEANING,
    COST,
    CROSSFIT,
    CURVE,
    FORGETTING,
    MITIGATION,
    PROMPT_DISTILLATION,
)
from tunewright.core.records.export import CONSUMER_CHECKS, EXPORTS, AdapterNote
from tunewright.core.records.pairs import DISTILLATION, PAIRS
from tunewright.core.records.people import Choice, JudgeLine, Preferences
from tunewright.core.records.rollouts import REWARDS, ROLLOUT, GradeLine
from tunewright.core.records.score import RegressionLine, ScoreLine
from tunewright.core.records.sweep import SWEEP, BranchFailure, BranchFile, DevNats
from tunewright.core.records.training import (
    ANY_TRAINING,
    METRICS,
    CheckpointState,
    Profile,
    Receipt,
    SelfTest,
    Training,
)
from tunewright.core.records.verdict import ProtocolRecord, Verdict

RESTORE = "restore it from a backup; if there is none, delete it and rerun the same command, or start a new run."
# Each of their lines is a choice of its own, and cost somebody's time.
BY_PEOPLE, REMOVE = ("people.jsonl", "judge.jsonl"), "remove this line; the others still count."
T = TypeVar("T")
Json = dict[str, object] | list[dict[str, object]]


@dataclass(frozen=True)
class RunFile:
    """A kind of file in a run folder. ``pattern`` is relative to the folder; ``holds`` is the type of the file or, if
    ``lines``, of each of its lines.

    A file that matches several patterns is of the first kind.
    """

    pattern: str
    holds: TypeAdapter[object]
    meaning: str
    lines: bool = False


def _file(pattern: str, holds: object, meaning: str, lines: bool = False) -> RunFile:
    if isinstance(holds, type):
        return RunFile(pattern, TypeAdapter(holds), meaning, lines)
    assert isinstance(holds, TypeAdapter)
    return RunFile(pattern, holds, meaning, lines)


FILES: tuple[RunFile, ...] = (
    _file("data/audit.json", Audit, "the audit of the data"),
    _file("data/split.jsonl", SplitRow, "the side of every row", lines=True),
    _file("selftest.json", SelfTest, "the self-test before the first step"),
    _file("protocol.json", ProtocolRecord, "how the test rows will be evaluated"),
    _file("sweep.json", SWEEP, "recipes that were tried, and which the run uses (`tunewright sweep`)"),
    _file("receipt.json", Receipt, "what is needed to repeat the run"),
    _file("plan.json", Plan, "every number that training uses, with the reason for each"),
    _file("profile.json", Profile, "where the time of a training step goes (`tunewright train --profile`)"),
    _file("metrics.jsonl", METRICS, "every training step", lines=True),
    _file("rollouts/grades.jsonl", GradeLine, "what a model that grades has replied, to be asked once", lines=True),
    _file("rollouts/*.jsonl", ROLLOUT, "samples that were trained on, with their rewards", lines=True),
    _file("checkpoints/step-*/state.json", CheckpointState, "the state of a checkpoint"),
    _file("training.json", Training, "how training ended"),
    _file("scores/regression.jsonl", RegressionLine, "the regression rows, before and after training", lines=True),
    _file("scores/*.jsonl", ScoreLine, "answers of the chosen arms to the test rows", lines=True),
    _file("scores/dev/*.jsonl", ScoreLine, "answers to the dev rows", lines=True),
    _file("scores/rerun/*.jsonl", ScoreLine, "answers to some test rows, a second time", lines=True),
    _file("forgetting.json", FORGETTING, "what was forgotten"),
    _file("verdict.json", Verdict, "the verdict, with every number behind it"),
    _file("distillation.json", DISTILLATION, "how close the run came to its teacher"),
    _file("pairs.json", PAIRS, "what training on preferences or ratings did to the answers of the test rows"),
    _file("rewards.json", REWARDS, "what training on rewards did, besides the verdict"),
    _file("crossfit.json", CROSSFIT, "rows that look wrong to models not trained on them"),
    _file("cleaning.json", CLEANING, "training without the flagged rows"),
    _file("mitigation.json", MITIGATION, "ways to reduce forgetting"),
    _file("prompt_distillation.json", PROMPT_DISTILLATION, "the instruction, distilled into the weights"),
    _file("learning_curve.json", CURVE, "whether more data would help"),
    _file("cost.json", COST, "what a request costs"),
    _file("export.json", EXPORTS, "each export, reloaded and compared"),
    _file("verify.json", CONSUMER_CHECKS, "what other programs answered that serve an export (`tunewright verify`)"),
    _file("people.jsonl", Choice, "each choice of a person (`tunewright compare`)", lines=True),
    _file("judge.jsonl", JudgeLine, "each choice of a judge model (`tunewright compare --judge`)", lines=True),
    _file("people.json", Preferences, "what people, and judge models, preferred"),
    _file("adapter/tunewright.json", AdapterNote, "what PEFT's own config does not record"),
    _file("events.jsonl", Event, "what happened in the run, in order", lines=True),
    _file("branches/*/branch.json", BranchFile, "how a branch is trained, for another process"),
    _file("branches/*/failed.json", BranchFailure, "why a branch cannot be trained"),
    _file("branches/*/dev-*.json", DevNats, "the loss of each dev row after so many steps of a branch"),
    _file("branches/*/metrics.jsonl", METRICS, "as above, of a branch", lines=True),
    _file("branches/*/checkpoints/step-*/state.json", CheckpointState, "as above, of a branch"),
    _file("branches/*/training.json", ANY_TRAINING, "how the training of a branch ended"),
    _file("branches/*/scores/*.jsonl", ScoreLine, "answers of a branch", lines=True),
)


def files(run: Path) -> list[tuple[Path, RunFile]]:
    """Every file of a run folder that holds records, with its kind."""
    kind_of: dict[Path, RunFile] = {}
    for kind in FILES:
        for path in sorted(run.glob(kind.pattern)):
            kind_of.setdefault(path, kind)
    return list(kind_of.items())


def read(path: Path, kind: type[T] | TypeAdapter[T]) -> T:
    """The record in ``path``. ``kind`` is a record, or the adapter of a union such as `FORGETTING`.

    Raises RUN_DAMAGED, naming file and field, if the file is missing, is not JSON or does not match the record.
    """
    return _parsed(_type_adapter(kind), _bytes(path), str(path))


def existing(path: Path, kind: type[T] | TypeAdapter[T]) -> T | None:
    """Like `read`, but None if there is no such file."""
    return read(path, kind) if path.exists() else None


def read_lines(path: Path, kind: type[T] | TypeAdapter[T]) -> Iterator[T]:
    """One record per line; none if there is no such file. An unfinished last line (of a killed writer) is skipped.

    Raises RUN_DAMAGED, naming file, line and field.
    """
    adapter = _type_adapter(kind)
    for number, line in enumerate(_bytes(path).split(b"\n")[:-1] if path.exists() else [], 1):
        if line.strip():
            yield _parsed(adapter, line, f"{path}:{number}", REMOVE if path.name in BY_PEOPLE else RESTORE)


def write(path: Path, value: BaseModel | Sequence[BaseModel]) -> None:
    """A record, or a list of them, as one JSON file. Raises RUN_DISK."""
    run_folder.write_json(path, to_json(value))


def write_lines(path: Path, rows: Iterable[BaseModel]) -> None:
    """A JSON Lines file, written at once. Raises RUN_DISK."""
    run_folder.write_lines(path, [row.model_dump(mode="json") for row in rows])


def append_line(path: Path, row: BaseModel) -> None:
    """One more line, flushed to disk. Raises RUN_DISK."""
    run_folder.append_line(path, row.model_dump(mode="json"))


def to_json(value: BaseModel | Sequence[BaseModel]) -> Json:
    """The plain JSON value that is written to the file."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [v.model_dump(mode="json") for v in value]


def schema() -> dict[str, object]:
    """JSON schema (2020-12) of every file: ``files`` maps patterns to the schema of a file, or of one of its lines."""
    mode: Literal["validation"] = "validation"
    inputs = [(file.pattern, mode, file.holds) for file in FILES]
    refs, definitions = TypeAdapter.json_schemas(inputs, schema_generator=_Untitled)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tunewright run folder",
        "files": {file.pattern: refs[file.pattern, mode] for file in FILES},
        **definitions,
    }


class _Untitled(GenerateJsonSchema):
    """Omits field titles, which only repeat the field names."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def records() -> list[type[Record]]:
    """Every kind of record, in alphabetical order."""

    def below(kind: type[Record]) -> set[type[Record]]:
        return {kind}.union(*(below(k) for k in kind.__subclasses__()))

    return sorted(below(Record), key=lambda kind: kind.__name__)


def _type_adapter(kind: type[T] | TypeAdapter[T]) -> TypeAdapter[T]:
    return kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _damaged("the file is missing.", str(path)) from None


def _parsed(adapter: TypeAdapter[T], text: bytes, where: str, fix: str = RESTORE) -> T:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first, *others = error.errors(include_input=False, include_url=False)
        more = f" ({len(others)} more)" if others else ""
        if first["type"] == "newer_version":
            raise _damaged(f"it was {first['msg']}.", where, "upgrade tunewright.") from None
        raise _damaged(f"{_field(first)}{first['msg']}{more}.", where, fix) from None


def _field(error: ErrorDetails) -> str:
    """Dotted path of a field, without the steps that pydantic adds for members of a union."""
    steps = [str(step) for step in error["loc"] if not str(step).startswith("<")]
    return f"`{'.'.join(steps)}`: " if steps else ""


def _damaged(message: str, where: str, fix: str = RESTORE) -> RunError:
    return RunError("RUN_DAMAGED", message, where=where, fix=fix)
