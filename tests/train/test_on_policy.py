"""On-policy distillation: which rows have an answer of the student, and what the teacher says to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from build import LORA, byte_tokenizer, exact_norms, plan_of, tiny_lm, with_adapter
from methods.test_teaching import MEASURES, gradient, naive

from tunewright.core import records
from tunewright.core.config import DistillConfig, Plan, Teacher
from tunewright.core.errors import TunewrightError
from tunewright.core.records import ROLLOUT, RolloutLine, StepLine
from tunewright.core.run_folder import Run, read_lines
from tunewright.data.messages import Chat, Message
from tunewright.data.metrics import METRICS
from tunewright.data.task import REWARDS, Task
from tunewright.methods import METHODS, teaching
from tunewright.model import adapters
from tunewright.model.decoding.generate import Decoding
from tunewright.model.heads.divergence import Measure
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TrainRow, flat
from tunewright.tokens.template import Template
from tunewright.train import loop
from tunewright.train.sampling import rollouts
from tunewright.train.sampling.on_policy import OnPolicy, is_sampled, longest_sample
from tunewright.train.sampling.rollouts import Rollouts

TEMPLATE = Template(byte_tokenizer())
CHATS = [Chat((Message("user", f"say {n}"), Message("assistant", f"it is {n * 37}")), f"x:{n}") for n in range(10)]
ROWS = [METHODS["distill"].prepare(TEMPLATE, chat, n, None)[0] for n, chat in enumerate(CHATS)]


def plan(on_policy: float, measure: Measure = MEASURES[0], **more: Any) -> Plan:
    chosen = DistillConfig(divergence=measure.kind, beta=measure.beta, on_policy=on_policy)
    known = Teacher(
        name="t", path="t", sha256="", parameters=1, hidden=48, vocabulary=260, packable=True, shareable=True,
        window=None, gigabytes=0.0, settings=chosen,
    )  # fmt: skip
    return plan_of(**{"method": "distill", "teacher": known, "max_new_tokens": 8, "layout": "shared", **more})


def models(dtype: torch.dtype = torch.float64) -> tuple[LanguageModel, LanguageModel]:
    """Student and teacher; the student's adapter is not at its start, so that all of it has a gradient."""
    reader = tiny_lm("qwen3", dtype, seed=9, hidden_size=48)
    if dtype == torch.float64:
        exact_norms(reader.module)
    return replace(with_adapter("llama", dtype), teacher_VE=reader.head_VD), reader


def sampling(folder: Path, reader: LanguageModel, notes: Callable[[str], None] = lambda _: None) -> OnPolicy:
    task = Task(REWARDS, METRICS["reward"], "")
    return OnPolicy(Rollouts(TEMPLATE, CHATS, task, Decoding(8, (256,), batch_size=4), folder, notes), reader)


def read_by(reader: LanguageModel, rows: list[TrainRow] = ROWS) -> list[TrainRow]:
    return teaching.with_hidden(reader, rows, "shared", lambda _: None)


def changed(before: list[TrainRow], after: Any) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a is not b]


# -- which rows


def test_which_rows_have_a_sample_is_a_function_of_seed_step_and_place() -> None:
    drawn = [[is_sampled(plan(0.3), step, place) for place in range(50)] for step in range(40)]
    assert drawn == [[is_sampled(plan(0.3), step, place) for place in range(50)] for step in range(40)]
    assert sum(map(sum, drawn)) / 2000 == pytest.approx(0.3, abs=0.04)
    assert len(set(map(tuple, drawn))) == 40, "other rows in other steps"
    assert [is_sampled(plan(0.3, seed=4), 0, place) for place in range(50)] != drawn[0]
    assert not any(is_sampled(plan(0.0), 0, place) for place in range(50))
    assert all(is_sampled(plan(1.0), 0, place) for place in range(50))


def test_a_sample_takes_the_place_of_the_answer(tmp_path: Path) -> None:
    model, reader = models()
    rows, asked = read_by(reader), plan(0.5, batch_size=6)
    done = sampling(tmp_path, reader).sampled(model, rows, asked, 0)
    places = changed(rows, done)
    assert 0 < len(places) < 6, "only rows of this step, and not all of them"
    start, *lines = records.read_lines(tmp_path / "step-000001.jsonl", ROLLOUT)
    for place, line in zip(sorted(places, key=list(start.rows).index), lines, strict=True):  # type: ignore[union-attr]
        assert isinstance(line, RolloutLine)
        (sequence,) = done[place].sequences
        assert sequence.ids == (*ROWS[place].sequences[0].prompt, *line.ids)
        assert sequence.supervised == len(line.ids) == len(line.logp) <= 8
        assert (line.row, line.reward, line.problem) == (place, None, None)
        alone = read_by(reader, [replace(ROWS[place], sequences=(sequence,))])[0]
        assert abs(done[place].signal[teaching.ROWS] - alone.signal[teaching.ROWS]).max() < 1e-10, "of the sample"
    other = sampling(tmp_path / "other", reader).sampled(model, rows, asked, 6)
    assert [done[i].sequences for i in places] != [other[i].sequences for i in places]


def test_nothing_is_written_beyond_the_context() -> None:
    prompt = max(len(row.sequences[0].prompt) for row in ROWS)
    assert longest_sample(ROWS, CHATS, 8, prompt + 8) == prompt + 8
    with pytest.raises(TunewrightError, match=r"DATA_TOO_LONG.* x:0.*set prove.max_new_tokens=7,"):
        longest_sample(ROWS, CHATS, 8, prompt + 7)


def test_dev_losses_are_of_the_rows_own_answers(tmp_path: Path) -> None:
    model, reader = models()
    rows = read_by(reader)
    first, second = (sampling(tmp_path, reader).dev_loss(model, rows, plan(fraction), 3) for fraction in (0.0, 1.0))
    total, weight, _ = gradient(model, rows, plan(0.0))
    assert first == second == pytest.approx(total / weight, abs=1e-12)
    assert not list(tmp_path.iterdir())


# -- the loss


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: f"{m.kind}-{m.beta}")
def test_a_teacher_that_is_the_student_has_nothing_to_correct(measure: Measure, tmp_path: Path) -> None:
    student = with_adapter("llama", torch.float64)
    student = replace(student, teacher_VE=student.head_VD.detach().clone())
    asked = plan(1.0, measure, batch_size=10)
    done = sampling(tmp_path, student).sampled(student, ROWS, asked, 0)
    assert len(changed(ROWS, done)) == 10
    total, weight, grad = gradient(student, list(done), asked)
    assert weight == sum(r.supervised for r in done)
    assert abs(total) < 1e-11
    assert grad.abs().max() < 1e-11


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: f"{m.kind}-{m.beta}")
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_the_gradient_of_a_step_is_autograds_on_all_logits(fraction: float, measure: Measure, tmp_path: Path) -> None:
    """Of samples, that is: they are constants, as in GKD."""
    model, reader = models()
    asked = plan(fraction, measure, batch_size=10, tokens_per_pass=150)
    done = list(sampling(tmp_path, reader).sampled(model, read_by(reader), asked, 0))
    expected, expected_grad = naive(model, reader, flat(done), measure)
    total, _, grad = gradient(model, done, asked)
    assert total == pytest.approx(expected, abs=1e-9)
    assert (grad - expected_grad).abs().max() < 1e-10 * max(1.0, float(expected_grad.abs().max()))


# -- training


class Killed(Exception):
    pass


def trained(folder: Path, on_policy: float | None, stop: int | None = None) -> tuple[list[torch.Tensor], list[Any]]:
    """``on_policy``: None for a training without `OnPolicy`."""
    folder.mkdir(exist_ok=True)
    reader, model, run = tiny_lm("qwen3", seed=9, hidden_size=48), tiny_lm("llama"), Run(folder)
    adapters.attach(model.module, LORA, 3)
    rows, asked = read_by(reader), plan(on_policy or 0.0, steps=5, checkpoint_every=2, lr=0.05)
    own = None if on_policy is None else sampling(run.path / "rollouts", reader)
    given = loop.TrainingInputs(
        replace(model, teacher_VE=reader.head_VD), asked, rows[:8], rows[8:], run, {"data": "d"}, own
    )

    def stopping(line: StepLine) -> None:
        if line.step == stop:
            raise Killed

    loop.train(given, stopping)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
    return [p.detach().clone() for p in adapters.trainable(model.module).values()], lines


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True)) and bool(first[1] == second[1])


def test_without_samples_it_is_the_training_of_before_bit_for_bit(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", None)
    assert same(trained(tmp_path / "none", 0.0), plain)
    assert not (tmp_path / "none" / "rollouts").exists()
    assert not same(trained(tmp_path / "half", 0.5), plain)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_killed_training_ends_bit_for_bit_as_it_would_have(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = trained(tmp_path / "straight", 0.5)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", 0.5, stop)
    stored = {f.name: f.read_bytes() for f in (tmp_path / "killed" / "rollouts").iterdir()}
    own, drawn = rollouts.sample, []
    monkeypatch.setattr(rollouts, "sample", lambda *given: (drawn.append(given[4].step), own(*given))[1])
    assert same(trained(tmp_path / "killed", 0.5), straight)
    assert all((tmp_path / "killed" / "rollouts" / name).read_bytes() == stored[name] for name in stored)
    assert all(step >= stop for step in drawn), "the samples of finished steps are read back"


def test_samples_of_other_weights_are_drawn_again(tmp_path: Path) -> None:
    (model, reader), notes = models(), list[str]()
    first = sampling(tmp_path, reader, notes.append).sampled(model, ROWS, plan(1.0), 0)
    with torch.no_grad():
        for p in adapters.trainable(model.module).values():
            p.add_(0.05)
    second = sampling(tmp_path, reader, notes.append).sampled(model, ROWS, plan(1.0), 0)
    assert [r.sequences for r in first] != [r.sequences for r in second]
    assert len(notes) == 1


def test_another_model_than_the_one_that_is_trained_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model, reader), own = models(), rollouts.sample
    monkeypatch.setattr(rollouts, "sample", lambda lm, *given: own(tiny_lm("llama", torch.float64, seed=5), *given))
    with pytest.raises(TunewrightError, match="ROLLOUT_MISMATCH"):
        sampling(tmp_path, reader).sampled(model, ROWS, plan(1.0), 0)
