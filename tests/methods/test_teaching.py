"""Distillation from another model: TRL's divergence over the whole vocabulary, whatever the layout and the passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from build import LORA, byte_tokenizer, exact_norms, plan_of, relatives, tiny_lm, tiny_model, training_of, with_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.config import DistillConfig, Plan, Teacher
from tunewright.core.errors import TunewrightError
from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, read_lines
from tunewright.methods import METHODS, precomputed, teaching
from tunewright.model import adapters, model_files
from tunewright.model.facts import read_facts
from tunewright.model.heads import divergence, teacher
from tunewright.model.heads.divergence import Measure
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TokenSequence, TrainRow, single
from tunewright.tokens.template import Template
from tunewright.train import loop

MEASURES = [Measure("forward"), Measure("jsd", 0.1), Measure("jsd", 0.5), Measure("jsd", 0.9), Measure("reverse")]
WIDE = {"hidden_size": 48, "num_hidden_layers": 3}


def trls(student_nV: torch.Tensor, teacher_nV: torch.Tensor, measure: Measure) -> torch.Tensor:
    """TRL's sum over tokens."""
    trainer = pytest.importorskip("trl.experimental.gkd.gkd_trainer").GKDTrainer
    beta = {"forward": 0.0, "reverse": 1.0}.get(measure.kind, measure.beta)
    total: torch.Tensor = trainer.generalized_jsd_loss(
        student_nV[None], teacher_nV[None], beta=beta, temperature=measure.temperature, reduction="sum"
    )
    return total


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: f"{m.kind}-{m.beta}")
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_value_and_gradient_are_trls(measure: Measure, temperature: float) -> None:
    rng = torch.Generator().manual_seed(0)
    student_nV, teacher_nV = (torch.randn(7, 50, generator=rng, dtype=torch.float64) * 3 for _ in range(2))
    student_nV.requires_grad_()
    measure = replace(measure, temperature=temperature)
    expected = trls(student_nV, teacher_nV, measure)
    (grad_nV,) = torch.autograd.grad(expected, student_nV)
    of_n, own_nV = divergence.divergence(student_nV.detach(), teacher_nV, measure)
    assert float(of_n.sum()) == pytest.approx(float(expected.detach()), abs=1e-10)
    assert (own_nV - grad_nV).abs().max() < 1e-10


def taught_by(reader: LanguageModel, sequences: list[TokenSequence], layout: Any = "padded") -> list[TrainRow]:
    return teaching.with_hidden(reader, [single(s) for s in sequences], layout, lambda _: None)


def plan(measure: Measure = MEASURES[0], **more: Any) -> Plan:
    chosen = DistillConfig(divergence=measure.kind, beta=measure.beta, temperature=measure.temperature)
    known = Teacher(
        name="t", path="t", sha256="", parameters=1, hidden=48, vocabulary=260, packable=True, shareable=True,
        window=None, gigabytes=0.0, settings=chosen,
    )  # fmt: skip
    return plan_of(**{"method": "distill", "teacher": known, "batch_size": 6, **more})


def teacher_lm(**more: Any) -> LanguageModel:
    reader = tiny_lm("qwen3", torch.float64, seed=9, **{**WIDE, **more})
    exact_norms(reader.module)
    return reader


def sequences_of(rows: list[tuple[int, ...]]) -> list[TokenSequence]:
    ids = [(*row, 5, 6 + i % 3) for i, row in enumerate(rows)]
    return [TokenSequence(x, (0.0, *(float(t % 2 or t > 2) for t in range(1, len(x)))), i) for i, x in enumerate(ids)]


def gradient(model: LanguageModel, rows: list[TrainRow], p: Plan) -> tuple[float, float, torch.Tensor]:
    """Loss, weight and gradient of all rows as one step."""
    total = weight = 0.0
    model.module.zero_grad(set_to_none=True)
    for microbatch in METHODS["distill"].microbatches(model, rows, range(len(rows)), p, 0):
        part = METHODS["distill"].loss(model, microbatch, p).sum
        part.backward()
        total, weight = total + float(part.detach()), weight + METHODS["distill"].weight(microbatch)
    grads = [p.grad.flatten() for p in adapters.trainable(model.module).values() if p.grad is not None]
    return total, weight, torch.cat(grads)


def naive(model: LanguageModel, reader: LanguageModel, data: list[TokenSequence], measure: Measure) -> Any:
    """Loss and gradient row by row, with all logits, by TRL."""
    model.module.zero_grad(set_to_none=True)
    total = 0.0
    for s in data:
        ids = torch.tensor([s.ids])
        at = [t - 1 for t, w in enumerate(s.weights) if w]
        student_nV = model.module(ids, use_cache=False).logits[0, at]
        with torch.no_grad():
            teacher_nV = reader.module(ids, use_cache=False).logits[0, at]
        part = trls(student_nV, teacher_nV, measure)
        part.backward()  # type: ignore[no-untyped-call]
        total += float(part.detach())
    grads = [p.grad.flatten() for p in adapters.trainable(model.module).values() if p.grad is not None]
    return total, torch.cat(grads)


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: f"{m.kind}-{m.beta}")
@settings(max_examples=4, deadline=None)
@given(rows=relatives(most=6, longest=12), temperature=st.sampled_from([1.0, 2.0]))
def test_a_step_is_trls_in_every_layout_and_division(
    measure: Measure, rows: list[tuple[int, ...]], temperature: float
) -> None:
    measure, data = replace(measure, temperature=temperature), sequences_of(rows)
    model, reader = with_adapter("llama", torch.float64), teacher_lm()
    model = replace(model, teacher_VE=reader.head_VD)
    expected, expected_grad = naive(model, reader, data, measure)
    for layout, capacity in (("shared", 4096), ("packed", 24), ("padded", 40), ("shared", 16)):
        taught = taught_by(reader, data, layout)
        p = plan(measure, layout=layout, tokens_per_pass=capacity)
        total, weight, grad = gradient(model, taught, p)
        assert weight == sum(s.supervised for s in data)
        assert total == pytest.approx(expected, abs=1e-10 * max(1, len(data)))
        assert (grad - expected_grad).abs().max() < 1e-9


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: f"{m.kind}-{m.beta}")
@pytest.mark.parametrize("trained_head", [False, True])
def test_a_teacher_that_is_the_student_teaches_nothing(measure: Measure, trained_head: bool) -> None:
    data = sequences_of([(1, 2, 3), (1, 2, 4, 5), (9,)])
    model = with_adapter("llama", torch.float64)
    taught, other = taught_by(model, data), taught_by(teacher_lm(), data)
    own, another = (
        replace(model, teacher_VE=model.head_VD.detach().clone()),
        replace(model, teacher_VE=teacher_lm().head_VD),
    )
    if trained_head:
        model.head_VD.requires_grad_()
    total, _, grad = gradient(own, taught, plan(measure))
    _, _, usual = gradient(another, other, plan(measure))
    assert abs(total) < 1e-12
    assert grad.abs().max() < 1e-12 * max(1.0, float(usual.abs().max()))


def test_a_trained_head_has_the_same_gradient() -> None:
    """Whether the student's logits are dropped or held, and the rows of its embedding beyond the teacher's."""
    data, reader = sequences_of([(1, 2, 3), (1, 2, 4, 5), (9,)]), teacher_lm()
    model = replace(with_adapter("llama", torch.float64, vocabulary=280), teacher_VE=reader.head_VD)
    taught = taught_by(reader, data)
    dropped = gradient(model, taught, plan(MEASURES[2]))
    held = gradient(replace(model, plain_head=False), taught, plan(MEASURES[2]))
    assert held[0] == pytest.approx(dropped[0], abs=1e-10)
    assert (held[2] - dropped[2]).abs().max() < 1e-10


def test_hidden_states_in_bfloat16_are_kept_bit_for_bit() -> None:
    reader = tiny_lm("llama", torch.bfloat16, seed=9)
    data = sequences_of([(1, 2, 3, 4)])
    (row,) = taught_by(reader, data)
    kept = torch.from_numpy(row.signal[teaching.ROWS]).view(torch.bfloat16)
    hidden = reader.decoder(torch.tensor([data[0].ids])).last_hidden_state[0]
    at = [t - 1 for t, w in enumerate(data[0].weights) if w]
    assert torch.equal(kept, hidden[at])


# -- the teacher


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder, tokenizer = tmp_path / "teacher", byte_tokenizer()
    tiny_model("qwen3", seed=9, vocabulary=len(tokenizer), **WIDE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Killed(Exception):
    pass


def test_a_killed_run_ends_bit_for_bit_the_same(tmp_path: Path, saved: Path) -> None:
    data = [single(s) for s in sequences_of([(1, 2, 3), (1, 2, 4, 5), (9,), (7, 7), (3, 1, 2), (2,)])]
    known = plan().teacher
    assert known is not None
    known = known.model_copy(update={"path": str(saved), "sha256": model_files.digest(saved)})
    p = plan(teacher=known, steps=5, batch_size=2, checkpoint_every=1, threads=1)

    def trained(folder: Path, stop: int | None = None) -> tuple[list[torch.Tensor], list[Any]]:
        module = tiny_model("llama", vocabulary=258)
        adapters.attach(module, LORA, 3)
        folder.mkdir(exist_ok=True)

        def stopping(line: StepLine) -> None:
            if line.step == stop:
                raise Killed

        inputs = training_of(module, p, data[:4], data[4:], Run(folder))
        head_VE = teacher.head(known, torch.float32, inputs.model.device)
        inputs = replace(inputs, model=replace(inputs.model, teacher_VE=head_VE))
        loop.train(loop.with_precomputed(inputs), stopping)
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(Run(folder).metrics)]
        return [p.detach().clone() for p in adapters.trainable(module).values()], lines

    weights, lines = trained(tmp_path / "straight")
    assert lines[-1]["dev_loss"] < lines[0]["dev_loss"]
    for at in (2,):
        with pytest.raises(Killed):
            trained(tmp_path / f"killed-{at}", at)
        again, lines_again = trained(tmp_path / f"killed-{at}")
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
        assert lines_again == lines


def test_rows_that_no_teacher_has_read_are_not_trained_on() -> None:
    model = replace(with_adapter("llama", torch.float64), teacher_VE=teacher_lm().head_VD)
    with pytest.raises(AssertionError, match="were read by it"):
        gradient(model, [single(s) for s in sequences_of([(1, 2)])], plan())


def test_the_teacher_reads_the_students_rows_from_its_folder(saved: Path) -> None:
    tokenizer, data = byte_tokenizer(), sequences_of([(1, 2, 3), (4,)])
    student = read_facts(str(saved))
    known = teacher.described(DistillConfig(teacher=str(saved)), student, Template(tokenizer), data, 4)
    assert (known.hidden, known.vocabulary) == (48, len(tokenizer))
    p = plan(teacher=known)
    model = with_adapter("llama", torch.float32, vocabulary=len(tokenizer))
    read = precomputed(model, [single(s) for s in data], p)
    assert [r.signal[teaching.ROWS].shape for r in read] == [(s.supervised, 48) for s in data]
    # An adapter of the student, or its training mode, is not the teacher's.
    model.module.train()
    again = precomputed(model, [single(s) for s in data], p)
    assert all((a.signal[teaching.ROWS] == b.signal[teaching.ROWS]).all() for a, b in zip(read, again, strict=True))


def refused(code: str, settings_: DistillConfig, template: Template, data: list[TokenSequence], folder: Path) -> str:
    with pytest.raises(TunewrightError) as error:
        teacher.described(settings_, read_facts(str(folder)), template, data, 4)
    assert error.value.code == code
    return str(error.value)


def test_a_teacher_that_does_not_fit_is_refused_with_the_way_out(saved: Path, tmp_path: Path) -> None:
    data, chosen = sequences_of([(1, 2, 3)]), DistillConfig(teacher=str(saved))
    other = byte_tokenizer(special=("<|im_start|>", "<|im_end|>", "<|more|>"))
    assert "tunewright synthesize" in refused("TEACHER_MISMATCH", chosen, Template(other), data, saved)
    swapped = byte_tokenizer(special=("<|im_end|>", "<|im_start|>"), eos="<|im_start|>")
    message = refused("TEACHER_MISMATCH", chosen, Template(swapped), data, saved)
    assert "has another number in the teacher" in message
    long = [TokenSequence((1,) * 3000, (0.0, *[1.0] * 2999), 0)]
    assert "2048" in refused("TEACHER_MISMATCH", chosen, Template(byte_tokenizer()), long, saved)
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.json").write_text("{}")
    message = refused("MODEL_NOT_FOUND", DistillConfig(teacher=str(run)), Template(byte_tokenizer()), data, saved)
    assert "--to merged" in message


def test_a_teacher_that_changed_is_not_used(saved: Path) -> None:
    known = plan().teacher
    assert known is not None
    known = known.model_copy(update={"path": str(saved), "sha256": "other"})
    with pytest.raises(TunewrightError, match="RESUME_MISMATCH"):
        teacher.load(known, torch.float32, torch.device("cpu"))


def test_a_teacher_of_capped_logits_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "capped"
    tiny_model("gemma2", vocabulary=258, head_dim=16, num_key_value_heads=1).save_pretrained(folder)
    known = plan().teacher
    assert known is not None
    known = known.model_copy(update={"path": str(folder), "sha256": model_files.digest(folder)})
    with pytest.raises(TunewrightError, match="MODEL_UNSUPPORTED"):
        teacher.load(known, torch.float32, torch.device("cpu"))
