"""Records: every file of a run reads into its type and writes back equal; nothing else is read."""

from __future__ import annotations

import copy
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue, TypeAdapter

from tunewright.core import records
from tunewright.core.errors import RunError
from tunewright.core.records import (
    FILES,
    BranchFile,
    Event,
    Interval,
    Line,
    NotMeasured,
    Record,
    StepLine,
    Value,
    Verdict,
)

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
# Files of tiny runs as the stages wrote them before there were records, long lists cut to three items.
RUNS: dict[str, dict[str, Any]] = json.loads((HERE / "run_files.json").read_text(encoding="utf-8"))


def put(folder: Path, name: str) -> Path:
    """Write the run folder ``name`` of `RUNS` to ``folder``."""
    for file, value in RUNS[name].items():
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = value if file.endswith(".jsonl") else [value]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def without_versions(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_versions(v) for k, v in value.items() if k != "version"}
    return [without_versions(v) for v in value] if isinstance(value, list) else value


def below(kind: type[Value]) -> set[type[Value]]:
    return {kind}.union(*(below(k) for k in kind.__subclasses__()))


VALUES = sorted(below(Value) - {Value, Record, Line}, key=lambda k: k.__name__)


@pytest.mark.parametrize("name", RUNS)
def test_every_file_of_a_run_reads_and_writes_back_equal(name: str, tmp_path: Path) -> None:
    run = put(tmp_path, name)
    listed = records.files(run)
    assert {path.relative_to(run).as_posix() for path, _ in listed} == set(RUNS[name]), "a file without a record"
    for path, kind in listed:
        before = RUNS[name][path.relative_to(run).as_posix()]
        if kind.lines:
            records.write_lines(path, list(records.read_lines(path, kind.holds)))
            after: Any = [json.loads(line) for line in path.read_text().splitlines()]
            assert after == before, "lines of version 1 say nothing of it"
        else:
            records.write(path, records.read(path, kind.holds))
            after = json.loads(path.read_text())
        assert without_versions(after) == before, path
        first = path.read_bytes()
        if not kind.lines:
            records.write(path, records.read(path, kind.holds))
            assert path.read_bytes() == first


def test_the_files_of_the_runs_cover_every_kind(tmp_path: Path) -> None:
    seen = {kind.pattern for name in RUNS for _, kind in records.files(put(tmp_path, name))}
    assert seen == {kind.pattern for kind in FILES}


def test_a_file_says_its_version(tmp_path: Path) -> None:
    records.write(tmp_path / "cost.json", NotMeasured(reason="no test rows"))
    written = json.loads((tmp_path / "cost.json").read_text())
    assert written == {"version": 1, "measured": False, "reason": "no test rows"}
    assert records.to_json(NotMeasured()) == {"version": 1, "measured": False}
    assert records.read(tmp_path / "cost.json", records.COST) == NotMeasured(reason="no test rows")


def test_an_optional_key_is_absent_and_a_required_one_is_null() -> None:
    v = Verdict.model_validate_json(json.dumps(RUNS["free"]["verdict.json"]))
    written = records.to_json(v.model_copy(update={"rows_needed": None, "rerun": None}))
    assert isinstance(written, dict)
    assert written["rows_needed"] is None
    assert "rerun" not in written


# A change to a valid file, and the field that the error names.
WRONG: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "unknown key": ("verdict.json", lambda v: v.update(extra=1), "`extra`: Extra inputs are not permitted"),
    "unknown key, deep": ("verdict.json", lambda v: v["cost"].update(extra=1), "`cost.extra`: Extra"),
    "missing key": ("verdict.json", lambda v: v["comparator"].pop("name"), "`comparator.name`: Field required"),
    "wrong type": ("verdict.json", lambda v: v.update(n="73"), "`n`: Input should be a valid integer"),
    "fraction for a count": ("verdict.json", lambda v: v.update(n=7.5), "`n`: Input should be a valid integer"),
    "in a union": (
        "verdict.json",
        lambda v: v["forgetting"]["task"]["kl_bits"].__setitem__(0, "x"),
        "`forgetting.task.kl_bits.0`: Input should be a valid number",
    ),
    "neither of a union": (
        "verdict.json",
        lambda v: v["cost"].update(measured=1),
        "`cost`: Input should be an object whose",
    ),
    "half an interval": ("verdict.json", lambda v: v.update(interval=[0.1]), "`interval.1`: Field required"),
    "not a number": (
        "verdict.json",
        lambda v: v.update(tuned=float("nan")),
        "`tuned`: Input should be a finite number",
    ),
    "unknown word": ("verdict.json", lambda v: v.update(verdict="GOOD"), "`verdict`: Input should be 'BETTER'"),
    "measured, without results": ("forgetting.json", lambda v: v.pop("scales"), "`scales`: Field required"),
    "crossfit": ("crossfit.json", lambda v: v.update(rate="high"), "`rate`: Input should be a valid number"),
    "a list's item": (
        "export.json",
        lambda v: v[1].update(prompts="x"),
        "`1.prompts`: Input should be a valid integer",
    ),
    "a later version": ("verdict.json", lambda v: v.update(version=2), "written by a newer tunewright. Fix: upgrade"),
    "a version of a part": (
        "verdict.json",
        lambda v: v["forgetting"].update(version=2),
        "written by a newer tunewright",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_does_not_match_its_record_is_rejected(case: str, tmp_path: Path) -> None:
    file, change, words = WRONG[case]
    value = copy.deepcopy(RUNS["labels"][file])
    change(value)
    path = tmp_path / file
    path.write_text(json.dumps(value))
    (kind,) = (k for p, k in records.files(tmp_path) if p == path)
    with pytest.raises(RunError) as error:
        records.read(path, kind.holds)
    assert error.value.code == "RUN_DAMAGED"
    assert str(path) in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("text", [b"", b'{"steps": 3', b'{"steps": "\xff"}', b"[]", b"null"])
def test_invalid_json_and_non_objects_are_rejected(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "training.json"
    path.write_bytes(text)
    with pytest.raises(RunError, match=r"RUN_DAMAGED.*training\.json"):
        records.read(path, records.Training)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"RUN_DAMAGED.*verdict\.json: the file is missing"):
        records.read(tmp_path / "verdict.json", Verdict)
    assert records.existing(tmp_path / "verdict.json", Verdict) is None
    assert list(records.read_lines(tmp_path / "metrics.jsonl", records.METRICS)) == []


def test_lines_are_named_appended_and_unfinished_ones_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    start, step = (records.METRICS.validate_json(json.dumps(x)) for x in RUNS["labels"]["metrics.jsonl"])
    records.append_line(path, start)
    with open(path, "a") as file:
        file.write('{"step": 1, "lo')
    assert list(records.read_lines(path, records.METRICS)) == [start]
    records.append_line(path, step)
    assert list(records.read_lines(path, records.METRICS)) == [start, step]
    assert isinstance(step, StepLine)
    with open(path, "a") as file:
        file.write('{"step": 2, "loss": "low"}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:3: `loss`: Input should be a valid number"):
        list(records.read_lines(path, records.METRICS))


def test_the_views_of_events(tmp_path: Path) -> None:
    run = put(tmp_path, "labels")
    events = list(records.read_lines(run / "events.jsonl", Event))
    assert events[0].event == "created"
    assert set(events[0].facts) == {"command"}
    assert records.count_test_reads(events) == 1
    (judged,) = records.judged(events)
    assert judged.arm
    assert judged.seconds >= 0


def test_the_derived_values_of_the_verdict(tmp_path: Path) -> None:
    v = records.read(put(tmp_path, "labels") / "verdict.json", Verdict)
    assert (v.is_better, v.confidence, v.doubts) == (True, 0.95, ())
    assert v.comparator_arm.score == v.comparator.score
    assert v.tuned_arm.score == v.tuned
    other = v.model_copy(update={"unbeaten": ("constant",), "verdict": "CANNOT TELL"})
    assert other.doubts == ("constant",)
    assert other.model_copy(update={"interval": Interval(-0.1, 0.2)}).doubts == ()
    assert isinstance(v.mitigation, records.Mitigation)
    assert v.mitigation.best == v.mitigation.variants[v.mitigation.chosen]


def test_records_are_frozen_and_strict() -> None:
    with pytest.raises(ValueError, match="frozen"):
        NotMeasured().reason = "changed"  # type: ignore[misc]
    with pytest.raises(ValueError, match="valid string"):
        NotMeasured(reason=3)  # type: ignore[arg-type]


def test_a_record_is_made_from_a_value_of_another_layer() -> None:
    finding = types.SimpleNamespace(check="base", result="equal", passed=True)
    assert records.SelfTestFinding.model_validate(finding).result == "equal"


UNITS = [
    "second",
    "token",
    "character",
    "row",
    "item",
    "answer",
    "request",
    "prompt",
    "step",
    "weight",
    "thread",
    "layer",
    "head",
    "GB",
    "GFLOP",
    "nats",
    "bits",
    "byte",
    "logit",
    "score",
    "metric",
    "scale",
    "fraction",
    "probabilit",
    "0 to 1",
    "0 or 1",
    "price",
    "rate",
    "gradient",
    "squared",
    "threshold",
    "power",
    "hash",
    "ISO",
    "norm",
    "confidence",
]


@pytest.mark.parametrize("kind", VALUES, ids=lambda k: k.__name__)
def test_every_record_and_field_is_described_with_its_unit(kind: type[Value]) -> None:
    assert kind.__doc__
    assert kind.__doc__.strip().endswith(".")
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        if any(number in str(field.annotation) for number in ("float", "Interval", "Quantile")):
            printed = f"{kind.__doc__} {field.description}"
            assert any(unit in printed for unit in UNITS), f"{name} has no unit"


def test_the_schema_is_stable_and_complete() -> None:
    schema = records.schema()
    assert schema == records.schema()
    text = (DOCS / "records.schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps(schema)), (
        "run `make docs`, and raise a version if a meaning changed"
    )
    definitions = schema["$defs"]
    assert isinstance(definitions, dict)
    for name in set(json.dumps(schema).split('"#/$defs/')[1:]):
        assert name.split('"')[0] in definitions
    described = {k.__name__ for k in VALUES} - {
        "Judged",
        "Answered",
    }  # not part of any file: a view of events, a base class
    assert described <= set(definitions)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that records use."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind == JsonValue or kind is Any:
        return st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=2)
    if origin is Annotated:
        return values_of(arguments[0])
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values_of, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=2)
    if isinstance(kind, type) and issubclass(kind, tuple):
        return st.builds(kind, *map(values_of, get_type_hints(kind).values()))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = {k: f for k, f in kind.model_fields.items() if k != "version"}
        return st.builds(kind, **{k: values_of(f.annotation) for k, f in fields.items()})
    return {
        float: st.floats(allow_nan=False, allow_infinity=False),
        int: st.integers(1, 10**9),
        str: st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        bool: st.booleans(),
        type(None): st.none(),
    }[kind]


@pytest.mark.parametrize(
    "kind", [k for k in VALUES if not k.__subclasses__() and k is not BranchFile], ids=lambda k: k.__name__
)
@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_value_survives_the_file(kind: type[Value], data: st.DataObject) -> None:
    """But for the plan in a branch's file, whose numbers have ranges."""
    value = data.draw(values_of(kind))
    text = json.dumps(value.model_dump(mode="json"), allow_nan=False)
    back = TypeAdapter(kind).validate_json(text)
    assert back == value
    assert json.dumps(back.model_dump(mode="json")) == text


@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_file_of_a_union_survives(data: st.DataObject) -> None:
    file, kinds = data.draw(st.sampled_from(UNIONS))
    value = data.draw(st.one_of(*map(values_of, kinds)))
    assert file.validate_json(json.dumps(value.model_dump(mode="json"))) == value
    assert file.validate_python(value) == value


UNIONS: list[tuple[TypeAdapter[Any], tuple[type[Value], ...]]] = [
    (records.FORGETTING, (records.Forgetting, NotMeasured)),
    (records.MITIGATION, (records.Mitigation, NotMeasured)),
    (records.CROSSFIT, (records.LabelCrossfit, records.TextCrossfit, NotMeasured)),
    (records.CLEANING, (records.Cleaning, records.NotCleaned)),
    (records.PROMPT_DISTILLATION, (records.PromptDistillation, NotMeasured)),
    (records.CURVE, (records.LearningCurve, NotMeasured)),
    (records.COST, (records.Cost, NotMeasured)),
    (records.METRICS, (records.StartLine, StepLine)),
    (records.ANY_TRAINING, (records.Training, records.BranchTraining)),
]


@given(
    facts=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
            lambda k: k not in ("time", "event", "version") and not k.startswith("_") and not hasattr(Event, k)
        ),
        st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(st.characters(exclude_categories=["Cs"])),
        max_size=3,
    )
)
def test_any_event_survives(facts: dict[str, Any]) -> None:
    event = Event.model_validate({"time": "2026-01-01T00:00:00+00:00", "event": "judged", **facts})
    assert event.facts == facts
    back = Event.model_validate_json(json.dumps(event.model_dump(mode="json")))
    assert back == event
    assert back.facts == facts


def test_an_interval_is_printed_in_the_format_of_a_number() -> None:
    assert f"{Interval(0.0291, 0.1812):+.3f} {Interval(-1.0, 0.5):.2f}" == "[+0.029, +0.181] [-1.00, 0.50]"
