"""Answers that are structured values: JSON, YAML, XML. They are compared field by field.

An answer is read leniently, so a fence or a sentence around it does not make it wrong; ``valid`` says whether it is the
value and nothing else, ``schema_valid`` whether it also satisfies the schema.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence

from tunewright.core import pii
from tunewright.data import corpus_metrics, metrics
from tunewright.data.messages import Chat, Example, Json
from tunewright.data.metrics import METRICS, Kind
from tunewright.data.scores import Readings
from tunewright.data.structure import outline, schema, xml_notation, yaml_notation
from tunewright.data.structure.comparison import Comparison, compare
from tunewright.data.structure.values import JSON as JSON_NOTATION
from tunewright.data.structure.values import Container, Notation, unfenced
from tunewright.data.structure.xml_notation import XML as XML_NOTATION
from tunewright.data.structure.yaml_notation import YAML as YAML_NOTATION
from tunewright.data.task.free_text import text_metric
from tunewright.data.task.kind import WRITTEN, Task, TaskKind
from tunewright.data.text import as_answer, exact

FRACTION = 0.95  # a few malformed or refused answers do not change the task
PARSED = 500  # answers that are parsed to detect YAML or XML: reading a YAML text takes milliseconds
MOST_KEYS = 40  # that an instruction lists
LONGEST_FORM = 1500  # characters of a form that an instruction shows


# -- reading and comparing


def target_value(notation: Notation, target: str) -> Container | None:
    """The value of a target, which may be fenced or, in a few rows, have a sentence around it."""
    value = notation.strict(unfenced(target))
    return value if value is not None else notation.lenient(target, {}) or notation.lenient(target, [])


def _strict(notation: Notation, answer: str, target: str) -> Container | None:
    """The value that an answer is; it may be fenced only if the target is."""
    return notation.strict(answer if unfenced(target) == target else unfenced(answer))


def _compare(notation: Notation, task: Task, example: Example, answer: str) -> Comparison:
    target = target_value(notation, example.target)
    if target is None:
        return _compared_as_texts(example.target, answer)
    return compare(target, notation.lenient(answer, target), task.rules)


def _compared_as_texts(target: str, answer: str) -> Comparison:
    """A row whose target is no structured value, such as a refusal, is one field."""
    if metrics.exact_match(target, answer):
        return Comparison(right=(("(text)", target),))
    return Comparison(wrong=(("(text)", answer),), missed=(("(text)", target),))


def _read(notation: Notation, task: Task, example: Example, answer: str) -> Readings:
    target, compared = target_value(notation, example.target), _compare(notation, task, example, answer)
    given = _strict(notation, answer, example.target)
    if target is None or given is None:
        strict = as_answer(example.target) == as_answer(answer)
    else:
        strict = compare(target, given, task.rules).equal
    return Readings(
        exact_match=float(compared.equal),
        strict_match=float(strict),
        fields=compared.counts,
        chrf=metrics.chrf(example.target, answer) if task.metric.name == "chrf" else None,
        valid=given is not None and (target is None or type(given) is type(target)),
        schema_valid=None if task.schema is None else given is not None and task.schema.accepts(given),
    )


def _value(notation: Notation, example: Example) -> Json:
    return target_value(notation, example.target)


def _canonical(notation: Notation, example: Example) -> str:
    """The target without the order of keys and the white space between them."""
    value = notation.strict(unfenced(example.target))
    return exact(example.target if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False))


# -- detection


def _certain(examples: Sequence[Example], is_certain: Callable[[str], bool]) -> bool:
    """Whether at least 95 % of the answers are, judged by at most `PARSED` of them."""
    some = examples[:: -(-len(examples) // PARSED)]
    misses = 0
    for example in some:
        misses += not is_certain(example.target)
        if misses > (1 - FRACTION) * len(some):
            return False
    return True


def _detect_json(examples: Sequence[Example]) -> Task | None:
    values = [JSON_NOTATION.strict(unfenced(e.target)) for e in examples]
    kinds = Counter("objects" if isinstance(v, dict) else "arrays" for v in values if v is not None)
    if kinds.total() < FRACTION * len(examples):
        return None
    names = " or ".join(sorted(kinds, reverse=True))
    return Task(JSON, METRICS["field_f1"], f"{kinds.total()} of {len(examples)} answers are JSON {names}")


def not_json(examples: Sequence[Example]) -> dict[int, str]:
    """The rows whose answer is not JSON, with the reason, if at least half of the answers are or look like it."""
    texts = [unfenced(e.target).strip() for e in examples]
    if sum(text[:1] + text[-1:] in ("{}", "[]") for text in texts) < len(texts) / 2:
        return {}
    return {i: _why_not_json(text) for i, text in enumerate(texts) if JSON_NOTATION.strict(text) is None}


def _why_not_json(text: str) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"{error.msg.lower()} at `{pii.excerpt(text, error.pos)}`"
    except (ValueError, RecursionError):
        pass
    return "neither an object nor a list, or nested too deeply, or with NaN"


def _detect_yaml(examples: Sequence[Example]) -> Task | None:
    """The answers are YAML, and at least one key occurs in half of them: prose may look like a mapping, but starts
    each line with different words."""
    if not _certain(examples, yaml_notation.is_certainly_yaml):
        return None
    some = examples[:: -(-len(examples) // PARSED)]
    keys = Counter(key for e in some for key in yaml_notation.keys(e.target))
    if max(keys.values()) < len(some) / 2:
        return None
    return Task(YAML, METRICS["field_f1"], "the answers are YAML mappings or lists of mappings")


def _detect_xml(examples: Sequence[Example]) -> Task | None:
    if not _certain(examples, xml_notation.is_xml):
        return None
    if _certain(examples, xml_notation.is_record):
        return Task(XML, METRICS["field_f1"], "the answers are XML elements whose texts are values")
    return Task(XML, text_metric(examples), "the answers are XML elements with running text")


# -- instructions


def _values(notation: Notation, train: Sequence[Chat]) -> list[Json]:
    return [v for e in train if (v := target_value(notation, e.target)) is not None]


def _instruct_json(task: Task, train: Sequence[Chat]) -> str:
    values = _values(JSON_NOTATION, train)
    arrays = sum(isinstance(v, list) for v in values) > len(values) / 2
    values = [v for v in values if isinstance(v, list) == arrays]
    form = json.dumps(outline.example(schema.infer(values)), ensure_ascii=False)
    if (not arrays and not any(map(_is_nested, values))) or len(form) > LONGEST_FORM:
        objects = [o for v in values for o in (v if isinstance(v, list) else [v]) if isinstance(o, dict)]
        what = "array of objects" if arrays else "object"
        return (
            f"Answer with one JSON {what} and nothing else. Use only these keys, and only those that apply: "
            f"{_keys(objects)}."
        )
    return (
        f"Answer with one JSON {'array' if arrays else 'object'} and nothing else. It has this form, with the fields "
        f"that apply: {form}"
    )


def _is_nested(value: Json) -> bool:
    """Whether an object contains another, possibly in a list."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(v, dict) or _is_nested(v) for v in inner)


def _keys(objects: Sequence[dict[str, Json]]) -> str:
    """The keys, most frequent first."""
    counts = Counter(key for v in objects for key in v)
    return ", ".join(sorted(counts, key=lambda k: (-counts[k], k))[:MOST_KEYS])


def _instruct_fields(notation: Notation, task: Task, train: Sequence[Chat]) -> str:
    """An instruction that names the fields by their paths."""
    paths = [path for path, _ in outline.fields(schema.infer(_values(notation, train)))][:MOST_KEYS]
    return (
        f"Answer with {notation.name} and nothing else. Use only these fields, and only those that apply: "
        f"{', '.join(paths)}."
    )


def _kind(notation: Notation, name: Kind, detect: Callable[[Sequence[Example]], Task | None]) -> TaskKind:
    json_values = notation is not XML_NOTATION  # all scalars of XML are texts
    instruct = _instruct_json if notation is JSON_NOTATION else functools.partial(_instruct_fields, notation)
    schema_valid = ("schema_valid",) if json_values else ()
    return TaskKind(
        name=name,
        detect=detect,
        read=functools.partial(_read, notation),
        instruct=instruct,
        corpus=corpus_metrics.FIELD_MICRO_F1,
        summary=("field_micro_f1", f"valid_{name}", *schema_valid, *WRITTEN),
        compare=functools.partial(_compare, notation),
        value=functools.partial(_value, notation) if json_values else None,
        canonical=functools.partial(_canonical, notation),
    )


JSON = _kind(JSON_NOTATION, "json", _detect_json)
YAML = _kind(YAML_NOTATION, "yaml", _detect_yaml)
XML = _kind(XML_NOTATION, "xml", _detect_xml)
