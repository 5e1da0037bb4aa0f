"""Cached answers: arms that are decoded together are computed together again, unless all of them are cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from build import plan_of

from tunewright.core.console import Console
from tunewright.core.run_folder import Run
from tunewright.data.messages import Chat, Message
from tunewright.data.metrics import METRICS
from tunewright.data.scores import Answer, Written
from tunewright.data.task import GENERATION, Task
from tunewright.judge.arms.arm import Arm, Progress, Writing, silent
from tunewright.judge.arms.classifier import Classifier
from tunewright.judge.arms.prompted import Prompted
from tunewright.runtime import answers
from tunewright.runtime.answers import Answers
from tunewright.runtime.weights import Weights

ROWS = [Chat((Message("user", f"q{i}"), Message("assistant", f"a{i}")), f"x:{i}") for i in range(3)]
TASK = Task(GENERATION, METRICS["exact_match"], "")
TUNED = Arm("tuned", "", Prompted(), uses_adapter=True, trained=True)
BASE = [Arm("zero_shot", "", Prompted()), Arm("few_shot", "", Prompted(), "k4"), Arm("nearest", "", Prompted(), "k4")]


class Model:
    """Answers with the number of the call and of the arm in it."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def generate(self, writings: Sequence[Writing], progress: Progress = silent) -> list[list[Answer]]:
        self.calls.append(len(writings))
        text = f"call {len(self.calls)} arm "
        return [[Answer(f"{text}{n}", Written(1, False)) for _ in w.prompts] for n, w in enumerate(writings)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Answers, Model, Weights]:
    model = Model()

    @contextmanager
    def chat_model(*_: Any) -> Iterator[Model]:
        yield model

    monkeypatch.setattr(Answers, "chat_model", chat_model)
    run, data = Run(tmp_path), SimpleNamespace(examples=ROWS, task=TASK)
    facts, template = SimpleNamespace(sha256="f"), SimpleNamespace(sha256="t")
    inputs = SimpleNamespace(facts=facts, template=template, evaluated=lambda side: [0, 1, 2])
    own = Answers(run, Console(True), data, inputs, plan_of(), None)  # type: ignore[arg-type]
    return own, model, Weights(plan_of(), run.weights, "0" * 64)


def texts(scores: list[Any]) -> list[str]:
    return [s.answer.text for s in scores]


def test_arms_with_the_same_weights_are_decoded_together(bench: tuple[Answers, Model, Weights]) -> None:
    own, model, weights = bench
    classifier = Arm("constant", "", Classifier(lambda _: []))
    arms = [BASE[0], TUNED, BASE[1], BASE[2]]
    assert answers._groups([*arms, classifier]) == [[0, 2, 3], [1], [4]]
    scores = own.of_all(arms, "test", weights)
    assert model.calls == [3, 1]
    assert [texts(of)[0] for of in scores] == ["call 1 arm 0", "call 2 arm 0", "call 1 arm 1", "call 1 arm 2"]
    assert own.of_all(arms, "test", weights) == scores
    assert [own.of(arm, "test", weights) for arm in arms] == scores, "one arm reads what the group has computed"
    assert len(model.calls) == 2


def test_an_interrupted_group_is_computed_as_a_whole(bench: tuple[Answers, Model, Weights]) -> None:
    own, model, weights = bench
    own.of_all(BASE, "dev", weights)
    (own.run.scores / "dev" / "nearest-k4.jsonl").unlink()
    scores = own.of_all(BASE, "dev", weights)
    assert model.calls == [3, 3]
    assert {texts(of)[0][:6] for of in scores} == {"call 2"}


def test_another_group_does_not_take_the_answers_of_one(bench: tuple[Answers, Model, Weights]) -> None:
    """Nor those of an arm that was alone: the last bits of its logits may differ."""
    own, model, weights = bench
    own.of(BASE[0], "dev", weights)
    own.of_all(BASE[:2], "dev", weights)
    own.of_all(BASE, "dev", weights)
    assert model.calls == [1, 2, 3]
    own.of_all(BASE[:2], "dev", weights)
    assert model.calls == [1, 2, 3, 2]


def test_variants_of_an_arm_do_not_take_each_others_answers(bench: tuple[Answers, Model, Weights]) -> None:
    """On test, they have one file. Prompt distillation took the answers to another instruction for its teacher's."""
    own, model, weights = bench
    other = replace(BASE[0], variant="wording2")
    assert texts(own.of(other, "test", weights))[0] == "call 1 arm 0"
    assert texts(own.of(BASE[0], "test", weights))[0] == "call 2 arm 0"
    assert model.calls == [1, 1]
