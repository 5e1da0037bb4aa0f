"""Graders: what they give, what they refuse, and that a user's code is confined. The processes are real."""

from __future__ import annotations

import difflib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.core.errors import ConfigError, TrainError
from tunewright.data.graders import graders, texts
from tunewright.data.graders.grade import Output
from tunewright.data.graders.graders import Graded

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)


def grader(**spec: Any) -> Any:
    return graders.of(spec, "reward.grader")


def reward(text: str, item: dict[str, Any] | None = None, **spec: Any) -> float | None:
    return graders.grade(grader(**spec), item or {}, Output(text)).reward


def python(body: str) -> dict[str, Any]:
    return {"type": "python", "source": f"def grade(sample, item):\n    {body}\n"}


def failed(text: str = "x", **spec: Any) -> str:
    graded = graders.grade(grader(**spec), {}, Output(text))
    assert graded.reward is None
    return graded.problem


# -- texts


def compared(text: str, reference: str, **spec: Any) -> float | None:
    both = {"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}
    return reward(text, {"answer": reference}, **both, **spec)


@given(TEXT, TEXT)
def test_string_checks_are_pythons_comparisons(text: str, reference: str) -> None:
    for operation, expected in (
        ("eq", text == reference),
        ("ne", text != reference),
        ("like", reference in text),
        ("ilike", reference.casefold() in text.casefold()),
    ):
        assert compared(text, reference, type="string_check", operation=operation) == float(expected)


def slow_common(a: list[str], b: list[str]) -> int:
    """By the textbook's table."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[-1]))
    return row[-1]


@given(st.lists(st.sampled_from("abc"), max_size=20), st.lists(st.sampled_from("abcd"), max_size=20))
def test_the_common_subsequence_is_the_textbooks(a: list[str], b: list[str]) -> None:
    assert texts._common(a, b) == slow_common(a, b)


@given(TEXT, TEXT)
def test_similarities_are_from_0_to_1_and_1_for_equal_texts(text: str, reference: str) -> None:
    for metric in texts.SIMILARITIES:
        value = compared(text, reference, type="text_similarity", evaluation_metric=metric)
        assert value is not None
        assert 0 <= value <= 1
    assert compared(text, text, type="text_similarity", evaluation_metric="fuzzy_match") == 1
    blocks = difflib.SequenceMatcher(None, text, reference, autojunk=False).ratio()
    fuzzy = compared(text, reference, type="text_similarity", evaluation_metric="fuzzy_match")
    assert fuzzy is not None
    assert fuzzy >= blocks - 1e-12, "no other matching of characters in order is longer"


@pytest.mark.parametrize(
    ("metric", "text", "reference", "expected"),
    [
        ("fuzzy_match", "this is a test", "this is a test!", 0.9655172413793104),  # rapidfuzz's own example
        ("rouge_l", "The quick brown fox jumps", "the fox quickly jumps over", 0.6),
        ("rouge_l", "police kill the gunman", "Police killed the gunman.", 0.75),  # Lin 2004, with F1
        ("rouge_l", "Лиса", "Собака", 0.0),  # rouge-score reads a-z and 0-9 alone
        ("bleu", "a b c d e", "a b c d e", 1.0),
    ],
)
def test_similarities_have_their_published_values(metric: str, text: str, reference: str, expected: float) -> None:
    got = compared(text, reference, type="text_similarity", evaluation_metric=metric)
    assert got == pytest.approx(expected, abs=1e-6)


def test_bleu_is_sacrebleus() -> None:
    from sacrebleu import sentence_bleu

    text, reference = "the cat sat on the mat today", "the cat sat on a mat"
    got = compared(text, reference, type="text_similarity", evaluation_metric="bleu")
    assert got == pytest.approx(sentence_bleu(text, [reference]).score / 100)


def test_our_metrics_and_schemas() -> None:
    assert compared("The answer is: cat.", "cat", type="metric", metric="exact_match") == 1
    assert compared("the cat", "cat", type="metric", metric="strict_match") == 0
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    answers = {'{"a": 1}': 1.0, '{"a": "1"}': 0.0, 'Sure: {"a": 1}': 0.0, "": 0.0, "1": 0.0}
    assert {text: reward(text, type="json_schema", schema=schema) for text in answers} == answers


def test_templates_read_fields_and_json() -> None:
    spec = {"type": "string_check", "operation": "eq", "reference": "{{item.a.b[1]}}-{{ item.n }}"}
    item = {"a": {"b": ["x", "y"]}, "n": 3}
    assert reward('{"k": ["y-3"]}', item, input="{{ sample.output_json.k[0] }}", **spec) == 1
    assert reward("not JSON", item, input="{{ sample.output_json.k[0] }}", **spec) == 0
    assert reward('{"k": "y-3"}', item, input="{{ sample.output_json.k[0] }}", **spec) == 0, "a text is no list"
    assert grader(input="{{ item.z }}", **spec).fields == {"a", "n", "z"}


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"type": "regex"},
        {"type": "string_check", "input": "a", "reference": "b"},
        {"type": "string_check", "input": "a", "reference": "b", "operation": "equals"},
        {"type": "string_check", "input": "{{ item }}", "reference": "b", "operation": "eq"},
        {"type": "string_check", "input": "{{ sample.text }}", "reference": "b", "operation": "eq"},
        {"type": "string_check", "input": 3, "reference": "b", "operation": "eq"},
        {"type": "string_check", "input": "a", "reference": "b", "operation": "eq", "case": True},
        {"type": "text_similarity", "input": "a", "reference": "b", "evaluation_metric": "cosine"},
        {"type": "metric", "input": "a", "reference": "b", "metric": "bits_per_byte"},
        {"type": "json_schema", "schema": {"type": "number of things"}},
        {"type": "json_schema", "schema": []},
        {"type": "python", "source": "def grade(sample, item)"},
        {"type": "python", "source": "import nothing_of_that_name"},
        {"type": "python", "source": "def score(sample, item): return 1"},
        {"type": "python", "source": 3},
        {"type": "multi", "graders": {}, "calculate_output": "1"},
        {"type": "multi", "graders": [], "calculate_output": "1"},
    ],
)
def test_what_is_not_supported_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        graders.of(spec, "reward.grader")
    assert caught.value.code in ("CONFIG_RANGE", "CONFIG_UNKNOWN_KEY")
    assert caught.value.where == "reward.grader"


# -- formulas

ONE = {"type": "string_check", "input": "{{ sample.output_text }}", "reference": "a", "operation": "like"}
TWO = {"type": "string_check", "input": "{{ sample.output_text }}", "reference": "b", "operation": "like"}


def multi(formula: str) -> dict[str, Any]:
    return {"type": "multi", "graders": {"one": ONE, "two": TWO}, "calculate_output": formula}


@given(st.floats(0, 1), st.sampled_from(["", "a", "b", "ab"]))
def test_formulas_are_arithmetic(weight: float, text: str) -> None:
    one, two = float("a" in text), float("b" in text)
    cases = {
        f"{weight!r} * one + (1 - {weight!r}) * two": weight * one + (1 - weight) * two,
        "min(one, two)": min(one, two),
        "max(one, two) ** 2": max(one, two) ** 2,
        "sqrt(abs(-one))": math.sqrt(one),
        "exp(-two)": math.exp(-two),
        "floor(one / 2) + ceil(two / 2)": math.floor(one / 2) + math.ceil(two / 2),
    }
    for formula, expected in cases.items():
        assert reward(text, **multi(formula)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "formula",
    [
        "three",
        "one.real",
        "one if two else 0",
        "__import__('os')",
        "(lambda: 1)()",
        "one and two",
        "[one]",
        "'a'",
        "True",
        "one <",
        "",
        "min(*one)",
        "min(one)",
        "min()",
        "abs(one, two)",
        "log()",
        "log(one, two, one)",
        "sqrt()",
        "1" + " + 1" * 400,
    ],
)
def test_formulas_are_nothing_else(formula: str) -> None:
    with pytest.raises(ConfigError, match="CONFIG_RANGE"):
        grader(**multi(formula))


@pytest.mark.parametrize("formula", ["1 / one", "log(two)", "10 ** 100 ** one", "sqrt(-1 - one)", "exp(exp(99))"])
def test_a_formula_that_has_no_value_leaves_the_answer_unscored(formula: str) -> None:
    assert failed("x", **multi(formula))


@pytest.mark.parametrize("formula", ["2", "-one - 1", "1 + two"])
def test_rewards_are_from_0_to_1(formula: str) -> None:
    assert "not from 0 to 1" in failed("b", **multi(formula))


# -- a user's code


def test_python_graders_are_given_sample_and_item() -> None:
    body = "return (sample['output_text'] == '{\"n\": 3}' and sample['output_json']['n'] == item['n']) * 0.5"
    assert reward('{"n": 3}', {"n": 3}, **python(body)) == 0.5
    assert reward("4", {"n": 3}, **python("return sample['output_json'] is not None")) == 1


def test_one_process_answers_all_and_another_one_after_it_was_ended() -> None:
    spec = python("import os, time\n    time.sleep(item['seconds'])\n    return os.getpid() % 1000 / 1000")
    same = grader(**spec)
    quick = [graders.grade(same, {"seconds": 0}, Output("x")).reward for _ in range(3)]
    assert len({*quick}) == 1
    started = time.monotonic()
    late = graders.grade(type(same)(same.source, 0.3), {"seconds": 60}, Output("x"))
    assert late.reward is None
    assert "no reply within 0.3 s" in late.problem
    assert time.monotonic() - started < 10
    assert graders.grade(same, {"seconds": 0}, Output("x")).reward != quick[0], "a new process"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("return None", "TypeError"),
        ("return float('nan')", "not from 0 to 1"),
        ("return 1.01", "not from 0 to 1"),
        ("import sys\n    sys.exit(0)", "SystemExit"),
        ("import os\n    os._exit(0)", "ended"),
        ("return bytearray(1 << 34) and 1", "MemoryError"),
    ],
)
def test_failures_are_unscored_and_the_next_answer_is_not(body: str, problem: str) -> None:
    spec = python(
        f"if sample['output_text'] == 'bad':\n        {body.replace(chr(10), chr(10) + '    ')}\n    return 1"
    )
    assert problem in failed("bad", **spec)
    assert reward("good", **spec) == 1


def test_what_a_grader_prints_or_reads_is_no_reply() -> None:
    body = "import sys, os\n    print('{}', flush=True)\n    os.write(1, b'junk')\n    return sys.stdin.read() == ''"
    assert reward("x", **python(body)) == 1


def test_a_grader_cannot_write_files_or_see_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "1")
    file = tmp_path / "written"
    assert "OSError" in failed(
        "x", **python(f"with open({str(file)!r}, 'w') as f:\n        f.write('x')\n    return 1")
    )
    assert not file.exists() or file.stat().st_size == 0
    assert reward("x", **python("import os\n    return 'SECRET_TOKEN' in os.environ")) == 0


def namespaces() -> bool:
    """Whether this system lets a process have a network of its own."""
    import ctypes

    if (child := os.fork()) == 0:
        os._exit(int(ctypes.CDLL(None).unshare(0x50000000) != 0))
    return os.waitpid(child, 0)[1] == 0


def test_a_grader_has_no_network() -> None:
    import socket

    if not namespaces():
        pytest.skip("no user namespaces here")
    server = socket.create_server(("127.0.0.1", 0))
    with server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 1):
            pass
        body = f"import socket\n    return socket.socket().connect_ex(('127.0.0.1', {port})) == 0"
        assert reward("x", **python(body)) == 0


LOOP = """
from tunewright.data.graders import python_grader
worker = python_grader.Worker("def grade(sample, item):\\n    while True: pass")
worker.start()
print(worker._process.pid, flush=True)
worker.ask("{\\"sample\\": {}, \\"item\\": {}}", 600)
"""


def test_a_grader_that_never_ends_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    import subprocess
    import sys

    asking = subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True)
    with asking:
        assert asking.stdout is not None
        grading = Path("/proc") / asking.stdout.readline().strip()
        assert grading.exists()
        time.sleep(0.3)  # until it has begun
        asking.kill()
    for _ in range(100):
        if not grading.exists() or ") Z" in (grading / "stat").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("it is still there")


def test_few_failures_are_counted_and_many_stop_the_run() -> None:
    good, bad = Graded(1.0), Graded(None, "why")
    graders.require_scored([bad, *[good] * 9], "reward.grader")
    graders.require_scored([*[bad] * 2, *[good] * 38], "reward.grader")
    with pytest.raises(TrainError, match=r"REWARD_FAILED.*3 of 40 answers, first with: why"):
        graders.require_scored([*[bad] * 3, *[good] * 37], "reward.grader")


def test_a_graders_repr_says_all_that_it_does() -> None:
    """It is part of the hash that samples of a resumed run must match."""
    first, second = (repr(grader(**multi(f"one * {weight}"))) for weight in ("0.5", "0.6"))
    assert first != second
    assert repr(grader(**json.loads(json.dumps(multi("one"))))) == repr(grader(**multi("one")))


def test_a_part_that_is_no_number_is_not_hidden_by_the_formula() -> None:
    nan = {"type": "python", "source": "def grade(sample, item):\n    return float('nan')\n"}
    both = {"type": "multi", "graders": {"one": ONE, "nan": nan}, "calculate_output": "min(1, nan)"}
    assert failed("b", **both)
