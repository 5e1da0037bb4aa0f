"""Rated answers: what z0 is estimated from, how rows are weighed, and which answers are references."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build import byte_tokenizer, plan_of, with_adapter

from faults import Fault, Patch
from faults.preferring import padding_counts, without_the_end
from tunewright.core import config
from tunewright.core.config import MethodOptions, Plan
from tunewright.data import dataset
from tunewright.data.messages import Chat, Message
from tunewright.methods import kto, preference
from tunewright.methods.method import Loss
from tunewright.methods.pairs import two_phase
from tunewright.model import adapters, forward
from tunewright.tokens import packing
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TokenSequence, TrainRow
from tunewright.tokens.template import Template
from tunewright.train import step

TEMPLATE = Template(byte_tokenizer())
GIVEN = [("q", "yes", True), ("q", "no, never", False), ("and why is that", "because", True),
         ("what else", "nothing more than this", False), ("who", "a man", True)]  # fmt: skip


def prepared() -> list[TrainRow]:
    chats = [Chat((Message("user", q), Message("assistant", a)), "x:1", desirable=good) for q, a, good in GIVEN]
    return [kto.prepare(TEMPLATE, chat, i, None)[0] for i, chat in enumerate(chats)]


@functools.cache
def rows() -> list[TrainRow]:
    """With the reference."""
    made, base = prepared(), with_adapter("llama", torch.float64, vocabulary=300)
    reference = [np.array([logp(base, r.sequences[0])]) for r in made]
    return [replace(r, signal={**r.signal, "reference_S": x}) for r, x in zip(made, reference, strict=True)]


def plan(**more: Any) -> Plan:
    options = MethodOptions(beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
    base = {"method": "kto", "layout": "shared", "options": options, "batch_size": len(GIVEN), "max_grad_norm": 1e9}
    return plan_of(**{**base, **more})


def model(sign: float = 1.0) -> Any:
    lm = with_adapter("llama", torch.float64, vocabulary=300)
    with torch.no_grad():
        for layer in adapters.adapted(lm.module).values():
            layer.lora_B.mul_(0.3 * sign)
    return lm


def logp(lm: Any, sequence: TokenSequence) -> float:
    with torch.no_grad():
        return float(forward.sequence_logp(lm, packing.to_microbatch([sequence], "packed")))


def estimate(lm: Any) -> float:
    """The mean of r over the mismatched rows of the step, each computed by itself; negative, or not."""
    ratios = []
    for sequence in kto.mismatched(rows(), range(len(GIVEN)), plan(), 0):
        policy, on = logp(lm, sequence), [layer.on for layer in adapters.adapted(lm.module).values()]
        for layer in adapters.adapted(lm.module).values():
            layer.on = False
        ratios.append(policy - logp(lm, sequence))
        for layer, was in zip(adapters.adapted(lm.module).values(), on, strict=True):
            layer.on = was
    return float(np.mean(ratios))


def z0(lm: Any, **more: Any) -> list[float]:
    """Of each pass."""
    parts = kto.microbatches(lm, rows(), range(len(GIVEN)), plan(**more), 0)
    return [float(part.signal["z0"]) for part in parts]


def no_row_is_given_an_answer_to_its_own_prompt() -> None:
    for prompts in (list("abcde"), list("aabbc"), list("aab")):
        given = kto.partners(prompts.__getitem__, len(prompts), range(len(prompts)), 0, 0)
        assert all(j is not None and prompts[i] != prompts[j] for i, j in enumerate(given))


def reversed_answers(patch: Patch) -> None:
    patch.setattr(kto, "partners", lambda prompt_of, rows, chosen, seed, step: list(reversed(chosen)))


def the_reference_point_is_that_of_the_step() -> None:
    seen = [estimate(model(sign)) for sign in (1.0, -1.0)]
    assert min(seen) < 0 < max(seen)
    for sign, expected in zip((1.0, -1.0), seen, strict=True):
        for capacity in (4096, 60, 1):
            assert np.allclose(z0(model(sign), tokens_per_pass=capacity), max(0.0, expected), rtol=0, atol=1e-10)


def one_for_each_pass(patch: Patch) -> None:
    made = kto.microbatches

    def apart(lm: Any, rows: Any, chosen: Any, asked: Plan, step: int) -> list[Microbatch]:
        groups = packing.split_into_passes(packing.units_of(rows, chosen), asked.tokens_per_pass, asked.layout)
        return [part for group in groups for part in made(lm, rows, group, asked, step)]

    patch.setattr(kto, "microbatches", apart)


def no_floor(patch: Patch) -> None:
    patch.setattr(kto, "max", lambda floor, value: value, raising=False)


def policy_is_its_own_reference(patch: Patch) -> None:
    patch.setattr(kto.adapters, "off", lambda module: contextlib.nullcontext())


def the_gradient_is_of_a_constant_point() -> None:
    """Descending the loss changes r by itself, never z0."""
    ratio = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    good, point, o = (
        torch.tensor([True, False, True]),
        torch.tensor(0.4, dtype=torch.float64),
        kto.Options(0.5, 2.0, 3.0),
    )
    kto.losses(ratio, good, point, o).sum().backward()
    p = torch.sigmoid(0.5 * torch.where(good, ratio.detach() - 0.4, 0.4 - ratio.detach()))
    expected = torch.where(good, -2.0, 3.0) * 0.5 * p * (1 - p)
    assert ratio.grad is not None
    assert torch.allclose(ratio.grad, expected, atol=1e-12)


def a_gradient_through_the_point(patch: Patch) -> None:
    constant = kto.losses

    def moving(ratio: torch.Tensor, good: torch.Tensor, point: torch.Tensor, o: kto.Options) -> torch.Tensor:
        return constant(ratio, good, point + ratio.mean() - ratio.mean().detach(), o)

    patch.setattr(kto, "losses", moving)


def steps_have_both_kinds() -> None:
    kinds = [i < 24 for i in range(48)]
    steps = [{kinds[i] for i in packing.step_rows(48, 8, 3, at)} for at in range(6)]
    assert sum(len(kind) == 2 for kind in steps) >= 5


def order_of_the_file(patch: Patch) -> None:
    patch.setattr(packing, "epoch_order", lambda rows, seed, epoch: np.arange(rows))


def each_kind_has_its_weight() -> None:
    asked, lm = plan(), model()
    parts = kto.microbatches(lm, rows(), range(len(GIVEN)), asked, 0)
    with torch.no_grad():
        loss = sum(float(kto.loss(lm, part, asked).sum) for part in parts)
    point = max(0.0, estimate(lm))
    ratios = [logp(lm, r.sequences[0]) - float(r.signal["reference_S"][0]) for r in rows()]
    terms = [
        (1.5 if good else 0.7) / (1 + np.exp(0.3 * (ratio - point if good else point - ratio)))
        for ratio, (_, _, good) in zip(ratios, GIVEN, strict=True)
    ]
    assert abs(loss - sum(terms)) < 1e-10


def weights_are_ignored(patch: Patch) -> None:
    patch.setattr(kto, "_options", lambda asked: kto.Options(0.3, 1.0, 1.0))


def sides_are_swapped(patch: Patch) -> None:
    constant = kto.losses
    patch.setattr(kto, "losses", lambda ratio, good, point, o: constant(ratio, ~good, point, o))


def the_step_does_not_depend_on_the_passes() -> None:
    gradients = []
    for capacity in (4096, 1):
        lm, asked = model(), plan(tokens_per_pass=capacity)
        learner = step.make_learner(lm, asked)
        step.take_step(learner, rows(), asked, 0)
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-12)


def a_mean_of_means(patch: Patch) -> None:
    summed = kto.loss

    def mean(lm: Any, microbatch: Microbatch, asked: Plan) -> Loss:
        loss = summed(lm, microbatch, asked)
        return replace(loss, sum=loss.sum / kto.weight(microbatch))

    patch.setattr(kto, "loss", mean)


def the_end_counts() -> None:
    end = TEMPLATE.tokenizer.decode([TEMPLATE.eos])
    for row, (_, answer, _) in zip(prepared(), GIVEN, strict=True):
        supervised = [i for s in row.sequences for i, w in zip(s.ids, s.weights, strict=True) if w]
        assert TEMPLATE.tokenizer.decode(supervised) == answer + end


def cut(patch: Patch) -> None:
    without_the_end(patch)  # of `preference`
    patch.setattr(kto, "for_training", preference.for_training)


def an_answer_is_what_it_is_alone() -> None:
    lm = model()
    (together,) = kto.microbatches(lm, rows(), range(len(GIVEN)), plan(layout="padded"), 0)
    with torch.no_grad():
        actual = forward.sequence_logp(lm, together).sort().values.tolist()
    assert np.allclose(actual, sorted(logp(lm, r.sequences[0]) for r in rows()), atol=1e-10)


def padded(patch: Patch) -> None:
    padding_counts(patch)  # of pairs
    patch.setattr(kto, "to_microbatch", two_phase.to_microbatch)


def no_undesirable_answer_is_a_reference() -> None:
    written = [
        {"prompt": f"number {i}: what of it, {i * i}?", "completion": f"{'GOOD' if good else 'bad'} {i}", "label": good}
        for i in range(40)
        for good in (True, False)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.write_text("".join(json.dumps(r) + "\n" for r in written), encoding="utf-8")
        data = dataset.load(config.load(None, ["train.method=kto"], data__train=str(file)))
    for side in ("train", "dev", "test"):
        assert all(data.examples[i].target.startswith("GOOD") for i in data.side(side))
        assert len(data.every(side)) == 2 * len(data.side(side)) > 0


def all_answers_are_references(patch: Patch) -> None:
    patch.setattr(dataset, "is_reference", lambda example: True)


FAULTS = [
    Fault(52, "a row's KL is estimated from its own answer, or from another one to its own prompt", "TRL 1911, LLaMA-Factory 7509", "z0 is estimated from the answers to other prompts",
          no_row_is_given_an_answer_to_its_own_prompt, reversed_answers),
    Fault(53, "KTO's KL is estimated for each pass by itself", "TRL 1.16, align-anything 216", "z0 is the mean over all rows of a step, whatever the passes",
          the_reference_point_is_that_of_the_step, one_for_each_pass),
    Fault(54, "KTO's KL may be negative", "", "z0 is at least 0",
          the_reference_point_is_that_of_the_step, no_floor),
    Fault(55, "KTO's KL is that of the policy from itself", "TRL 1340, 495", "z0 compares with the model before training",
          the_reference_point_is_that_of_the_step, policy_is_its_own_reference),
    Fault(56, "a gradient passes through KTO's KL", "align-anything 216", "the gradient is that of a constant z0",
          the_gradient_is_of_a_constant_point, a_gradient_through_the_point),
    Fault(57, "rated rows are trained on in the order of the file", "TRL 1.16 (KTO)", "rows sorted by rating give steps with both kinds",
          steps_have_both_kinds, order_of_the_file),
    Fault(58, "weights of desirable and undesirable rows are read by nothing", "", "the loss of each row has the weight of its kind",
          each_kind_has_its_weight, weights_are_ignored),
    Fault(59, "undesirable answers are made likelier", "", "the loss of each row falls in the direction of its rating",
          each_kind_has_its_weight, sides_are_swapped),
    Fault(60, "a batch of rated rows is a mean of means", "unsloth 1178", "the gradient does not depend on how the rows of a batch are divided into passes",
          the_step_does_not_depend_on_the_passes, a_mean_of_means),
    Fault(61, "the end of a rated answer is not part of its log-probability", "TRL 1.16 (truncation)", "an answer is rated with its stop token",
          the_end_counts, cut),
    Fault(62, "padding is part of a rated answer's log-probability", "0xallam 4", "an answer has the same log-probability alone and padded",
          an_answer_is_what_it_is_alone, padded),
    Fault(63, "an undesirable answer is taken for a reference", "", "answers that are shown, and compared with, are desirable ones",
          no_undesirable_answer_is_a_reference, all_answers_are_references),
]  # fmt: skip
