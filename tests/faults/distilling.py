"""Distillation: whose distribution is learned, in which direction, and what may be tested on."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build import byte_tokenizer, exact_norms, plan_of, tiny_lm, tiny_model, with_adapter
from torch import Tensor

from faults import Fault, Patch, refused
from tunewright.core import config
from tunewright.core.config import DistillConfig, Plan, Teacher
from tunewright.data import dataset, split
from tunewright.data.messages import Chat, Message
from tunewright.data.metrics import METRICS
from tunewright.data.remedies import synthetic
from tunewright.data.task import REWARDS, Task
from tunewright.methods import METHODS, precomputed, teaching
from tunewright.model import loading, model_files
from tunewright.model.decoding.generate import Decoding
from tunewright.model.facts import read_facts
from tunewright.model.heads import divergence, teacher
from tunewright.model.heads.divergence import Measure
from tunewright.tokens.sequences import TokenSequence, TrainRow, single
from tunewright.tokens.template import Template
from tunewright.train.sampling import on_policy
from tunewright.train.sampling.on_policy import OnPolicy
from tunewright.train.sampling.rollouts import Rollouts

IDS = [(5, 6, 7, 8), (5, 6, 9), (1, 2, 3, 4, 5)]
SEQUENCES = [TokenSequence(ids, (0.0, *[1.0] * (len(ids) - 1)), i) for i, ids in enumerate(IDS)]


def plan(kind: str = "forward", temperature: float = 1.0, **more: Any) -> Plan:
    known = Teacher(
        name="t", path="t", sha256="", parameters=1, hidden=32, vocabulary=260, packable=True, shareable=True,
        window=None, gigabytes=0.0, settings=DistillConfig(divergence=kind, temperature=temperature),  # type: ignore[arg-type]
    )  # fmt: skip
    return plan_of(**{"method": "distill", "teacher": known, "layout": "shared", **more})


def loss(model: Any, rows: list[TrainRow], p: Plan) -> Tensor:
    parts = METHODS["distill"].microbatches(model, rows, range(len(rows)), p, 0)
    return torch.stack([METHODS["distill"].loss(model, part, p).sum for part in parts]).sum()


def models() -> tuple[Any, Any]:
    reader = tiny_lm("llama", torch.float64, seed=9)
    exact_norms(reader.module)
    return replace(with_adapter("llama", torch.float64), teacher_VE=reader.head_VD), reader


def by_hand(kind: str, temperature: float) -> None:
    """KL by its definition, of the softmax of both models' logits over the temperature."""
    model, reader = models()
    rows = teaching.with_hidden(reader, [single(s) for s in SEQUENCES], "packed", lambda _: None)
    expected = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for s in SEQUENCES:
            ids = torch.tensor([s.ids])
            p, q = (
                torch.softmax(m.module(ids, use_cache=False).logits[0, :-1] / temperature, -1) for m in (reader, model)
            )
            first, second = (p, q) if kind == "forward" else (q, p)
            expected += (first * (first / second).log()).sum()
    assert abs(float(loss(model, rows, plan(kind, temperature)).detach()) - float(expected)) < 1e-9


def forward_is_of_the_teacher() -> None:
    by_hand("forward", 1.0)


def forward_is_reverse(patch: Patch) -> None:
    own = divergence.divergence

    def swapped(student_nV: Tensor, teacher_nV: Tensor, measure: Measure) -> Any:
        kind: Any = {"forward": "reverse", "reverse": "forward"}[measure.kind]
        return own(student_nV, teacher_nV, replace(measure, kind=kind))

    patch.setattr(divergence, "divergence", swapped)


def both_have_the_temperature() -> None:
    by_hand("reverse", 2.0)


def one_has_the_temperature(patch: Patch) -> None:
    own = divergence.divergence
    patch.setattr(divergence, "divergence", lambda s, t, m: own(s, t * m.temperature, m))


def saved(folder: Path, tokenizer: Any = None, **more: Any) -> str:
    tokenizer = tokenizer or byte_tokenizer()
    tiny_model("llama", seed=9, vocabulary=len(tokenizer), **more).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def another_vocabulary_is_refused() -> None:
    """As many tokens, two of them in each other's place."""
    with tempfile.TemporaryDirectory() as folder:
        swapped = byte_tokenizer(special=("<|im_end|>", "<|im_start|>"), eos="<|im_start|>")
        chosen = DistillConfig(teacher=saved(Path(folder), swapped))
        student, template = read_facts(chosen.teacher), Template(byte_tokenizer())
        refused("TEACHER_MISMATCH", lambda: teacher.described(chosen, student, template, SEQUENCES, 4))


def vocabularies_are_counted(patch: Patch) -> None:
    own = teacher.load_template

    def counted(folder: Path) -> Any:
        template = own(folder)
        patch.setattr(template.tokenizer, "get_vocab", byte_tokenizer().get_vocab, raising=False)
        return template

    patch.setattr(teacher, "load_template", counted)


def the_teacher_is_as_it_is_served() -> None:
    """In eval mode, whatever mode and adapter the student has."""
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder), attention_dropout=0.5)
        reader = loading.load(path, torch.float32)
        with torch.no_grad():
            expected = [reader.decoder(torch.tensor([s.ids])).last_hidden_state[0, :-1].numpy() for s in SEQUENCES]
        known = plan().teacher
        assert known is not None
        update = {"path": path, "sha256": model_files.digest(Path(path)), "packable": False}
        p = plan(teacher=known.model_copy(update=update))
        model = with_adapter("llama", torch.float32)
        model.module.train()
        for row, own in zip(precomputed(model, [single(s) for s in SEQUENCES], p), expected, strict=True):
            assert abs(row.signal[teaching.ROWS] - own).max() < 1e-5


def in_train_mode(patch: Patch) -> None:
    own = teacher.load

    def training(*given: Any) -> Any:
        model = own(*given)
        model.module.train()
        return model

    patch.setattr(teacher, "load", training)


def the_adapted_student_is_read(patch: Patch) -> None:
    patch.setattr(
        teaching, "with_teacher", lambda model, rows, p, tick: teaching.with_hidden(model, rows, "padded", tick)
    )


def no_synthetic_row_is_tested_on() -> None:
    """Neither a model's own rows, nor its answers to the questions of test rows."""
    rows: list[dict[str, Any]] = []
    for i in range(40):
        row = {"prompt": f"what is {i * 104729} of {i * 7919 % 1009}", "completion": f"it is {i * 31}"}
        own = {**row, "prompt": f"and {i * 7907} by {i * 6101 % 977}?"}
        rows += [row, {**row, "completion": "?!", "synthetic": "m"}, {**own, "synthetic": "m"}]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        data = dataset.load(config.load(None, data__train=str(file), split__test=0.3))
    tested = {c for c, side in zip(data.cluster, data.sides, strict=True) if side == "test"}
    assert tested
    assert not [e for e, c in zip(data.examples, data.cluster, strict=True) if e.author and c in tested]


def only_the_rows_themselves(patch: Patch) -> None:
    """The question of a test row may be trained on, with a model's answer."""

    def drop_held_out(_: Any, sides: Any, cluster: Any) -> Any:
        return sides, []

    patch.setattr(synthetic, "drop_held_out", drop_held_out)
    patch.setattr(split, "hold_out", _without_the_check(split.hold_out))


def _without_the_check(own: Any) -> Any:
    def hold_out(examples: Any, cluster: Any, dev: float, test: float) -> Any:
        sides = split.placed(examples, cluster, dev, test)
        return split.Split(**{side: tuple(sorted(rows)) for side, rows in sides.items()})

    return hold_out


CHATS = [Chat((Message("user", f"say {n}"), Message("assistant", "yes")), f"x:{n}") for n in range(4)]


def the_teacher_reads_the_sample() -> None:
    """One that is the student has nothing to correct."""
    model, asked = models()[0], plan(batch_size=4, max_new_tokens=6)
    assert asked.teacher is not None
    settings = asked.teacher.settings.model_copy(update={"on_policy": 1.0})
    asked = asked.model_copy(update={"teacher": asked.teacher.model_copy(update={"settings": settings})})
    model = replace(model, teacher_VE=model.head_VD)
    rows = [METHODS["distill"].prepare(Template(byte_tokenizer()), chat, n, None)[0] for n, chat in enumerate(CHATS)]
    task = Task(REWARDS, METRICS["reward"], "")
    with tempfile.TemporaryDirectory() as folder:
        drawn = Rollouts(Template(byte_tokenizer()), CHATS, task, Decoding(6, (256,), batch_size=4), Path(folder))
        done = OnPolicy(drawn, model).sampled(model, rows, asked, 0)
    assert abs(float(loss(model, list(done), asked).detach())) < 1e-10


def it_reads_other_tokens(patch: Patch) -> None:
    own = teaching.with_hidden

    def late(*given: Any) -> list[TrainRow]:
        rolled = {teaching.ROWS: lambda values: np.roll(values, 1, axis=0)}
        return [replace(r, signal={k: rolled[k](v) for k, v in r.signal.items()}) for r in own(*given)]

    patch.setattr(teaching, "with_hidden", late)


def which_rows_are_sampled_is_known_from_the_step() -> None:
    asked = plan()
    assert asked.teacher is not None
    half = asked.teacher.model_copy(update={"settings": DistillConfig(on_policy=0.5)})
    asked = asked.model_copy(update={"teacher": half})
    first, again = ([on_policy.is_sampled(asked, 3, place) for place in range(64)] for _ in range(2))
    assert first == again


def it_is_drawn_from_a_stream(patch: Patch) -> None:
    stream = np.random.default_rng(0)
    patch.setattr(on_policy, "is_sampled", lambda asked, step, place: stream.random() < 0.5)


FAULTS = [
    Fault(101, "forward and reverse KL are swapped", "TRL 3043, twinkle 112", "both equal their definitions",
          forward_is_of_the_teacher, forward_is_reverse),
    Fault(102, "the temperature is applied to one model only", "", "the divergence is that of both distributions at the temperature",
          both_have_the_temperature, one_has_the_temperature),
    Fault(103, "a teacher of another vocabulary of the same size", "", "TEACHER_MISMATCH",
          another_vocabulary_is_refused, vocabularies_are_counted),
    Fault(104, "the teacher reads the rows with dropout", "", "a teacher's hidden states are those that it has alone, in eval mode",
          the_teacher_is_as_it_is_served, in_train_mode),
    Fault(105, "the student with its adapter is read instead of the teacher", "", "a teacher's hidden states are those that it has alone, in eval mode",
          the_teacher_is_as_it_is_served, the_adapted_student_is_read),
    Fault(106, "a row that a model wrote is tested on", "", "rows with a lineage, and near-duplicates of test rows that have one, are on no side with test rows",
          no_synthetic_row_is_tested_on, only_the_rows_themselves),
    Fault(112, "the teacher's distributions are those of other tokens than the student has sampled", "ms-swift 8436", "a teacher that is the student has nothing to correct in its samples",
          the_teacher_reads_the_sample, it_reads_other_tokens),
    Fault(113, "a run that is continued samples answers to other rows", "unsloth-zoo 832", "which rows are sampled is a function of (seed, step, place)",
          which_rows_are_sampled_is_known_from_the_step, it_is_drawn_from_a_stream),
]  # fmt: skip
