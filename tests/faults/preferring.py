"""Preferences: what is compared, with what, and what the comparison is divided by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from build import byte_tokenizer, plan_of, with_adapter

from faults import Fault, Patch
from tunewright.core.config import MethodOptions, Plan
from tunewright.data import formats
from tunewright.data.formats import RowSettings, conversation, preferences
from tunewright.data.messages import Chat
from tunewright.data.sources import Row
from tunewright.methods import METHODS, pair_losses, precomputed, preference
from tunewright.methods.method import Loss
from tunewright.methods.pair_losses import LOSSES, Answers, Options, PairLoss
from tunewright.methods.pairs import two_phase
from tunewright.methods.preference import Preference
from tunewright.model import adapters, forward
from tunewright.tokens import packing
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TokenSequence, TrainRow
from tunewright.tokens.template import Template
from tunewright.train import step

TEMPLATE = Template(byte_tokenizer())
GIVEN = [("q", "yes", "no, never"), ("and why is that", "because", "b"), ("what else", "nothing more than this", "all")]


def rows_of(row: dict[str, Any]) -> Chat:
    (example,) = formats.parse([Row(row, "x:1")], RowSettings(preference=True)).examples
    assert isinstance(example, Chat)
    return example


def pairs() -> list[TrainRow]:
    chats = [rows_of({"prompt": q, "chosen": a, "rejected": b}) for q, a, b in GIVEN]
    return [METHODS["dpo"].prepare(TEMPLATE, chat, i, None)[0] for i, chat in enumerate(chats)]


def plan(name: str = "dpo", **more: Any) -> Plan:
    options = METHODS[name].options(MethodOptions())
    return plan_of(**{"method": name, "layout": "shared", "options": options, "batch_size": len(GIVEN), **more})


def model() -> Any:
    return with_adapter("llama", torch.float64, vocabulary=300)


def texts(row: TrainRow) -> list[str]:
    """What is compared, as text."""
    supervised = [[i for i, w in zip(s.ids, s.weights, strict=True) if w] for s in row.sequences]
    return [TEMPLATE.tokenizer.decode(ids) for ids in supervised]


def the_end_counts() -> None:
    end = TEMPLATE.tokenizer.decode([TEMPLATE.eos])
    assert [texts(row) for row in pairs()] == [[a + end, b + end] for _, a, b in GIVEN]


def without_the_end(patch: Patch) -> None:
    rendered = preference.for_training

    def cut(*given: Any) -> list[TokenSequence]:
        sequences = rendered(*given)
        last = [max(i for i, w in enumerate(s.weights) if w) for s in sequences]
        return [
            replace(s, weights=(*s.weights[:end], *[0.0] * (len(s.weights) - end)))
            for s, end in zip(sequences, last, strict=True)
        ]

    patch.setattr(preference, "for_training", cut)


def a_pair_is_what_it_is_alone() -> None:
    lm, rows, asked = model(), pairs(), plan(layout="padded")
    (together,) = METHODS["simpo"].microbatches(lm, rows, range(len(rows)), asked, 0)
    with torch.no_grad():
        actual = forward.sequence_logp(lm, together)
        alone = [
            forward.sequence_logp(lm, m) for r in rows for m in METHODS["simpo"].microbatches(lm, [r], [0], asked, 0)
        ]
    assert torch.allclose(actual.sort().values, torch.cat(alone).sort().values, atol=1e-10)


def padding_counts(patch: Patch) -> None:
    def padded(sequences: Sequence[TokenSequence], *rest: Any, **more: Any) -> Microbatch:
        longest = max(len(s.ids) for s in sequences)
        long = [
            replace(
                s, ids=(*s.ids, *[0] * (longest - len(s.ids))), weights=(*s.weights, *[1.0] * (longest - len(s.ids)))
            )
            for s in sequences
        ]
        return packing.to_microbatch(long, *rest, **more)

    patch.setattr(two_phase, "to_microbatch", padded)


def the_step_does_not_depend_on_the_passes() -> None:
    gradients = []
    for capacity in (4096, 50):
        lm, asked = model(), plan(tokens_per_pass=capacity, max_grad_norm=1e9)
        with torch.no_grad():
            rows = precomputed(lm, pairs(), asked)
        learner = step.make_learner(lm, asked)
        assert (len(METHODS["dpo"].microbatches(lm, rows, range(len(rows)), asked, 0)) == 1) is (capacity == 4096)
        step.take_step(learner, rows, asked, 0)
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-12)


def a_pair_that_fits_no_pass_is_what_it_is_in_one() -> None:
    for name in ("dpo", "orpo"):
        values = []
        for capacity in (4096, 1):
            lm, asked = model(), plan(name, tokens_per_pass=capacity)
            with torch.no_grad():
                rows = precomputed(lm, pairs(), asked)
            for n, row in enumerate(rows):  # away from the reference, where both slopes would have one size
                if row.signal:
                    rows[n] = replace(row, signal={"reference_S": row.signal["reference_S"] * [0.9, 1.2]})
            passes = METHODS[name].microbatches(lm, rows, range(len(rows)), asked, 0)
            assert len(passes) == (1 if capacity == 4096 else 2 * len(rows))
            losses = [METHODS[name].loss(lm, part, asked).sum for part in passes]
            sum(losses).backward()
            trained = adapters.trainable(lm.module).values()
            gradient = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
            values.append((sum(float(x.detach()) for x in losses), gradient))
        assert abs(values[0][0] - values[1][0]) < 1e-10
        assert torch.allclose(values[0][1], values[1][1], rtol=0, atol=1e-10)


def slopes_of_the_other_answer(patch: Patch) -> None:
    right = two_phase.with_slopes

    def swapped(*given: Any) -> list[Microbatch]:
        one, other = right(*given)
        slopes = [m.signal["slope_S"] for m in (other, one)]
        return [replace(m, signal={**m.signal, "slope_S": s}) for m, s in zip((one, other), slopes, strict=True)]

    patch.setattr(two_phase, "with_slopes", swapped)


def the_value_is_not_shifted(patch: Patch) -> None:
    right = two_phase.with_slopes

    def unshifted(*given: Any) -> list[Microbatch]:
        return [replace(m, signal={**m.signal, "number_S": 0 * m.signal["number_S"]}) for m in right(*given)]

    patch.setattr(two_phase, "with_slopes", unshifted)


def a_mean_of_means(patch: Patch) -> None:
    summed = Preference.loss

    def mean(self: Preference, lm: Any, microbatch: Microbatch, asked: Plan) -> Loss:
        loss = summed(self, lm, microbatch, asked)
        return replace(loss, sum=loss.sum / self.weight(microbatch))

    patch.setattr(Preference, "loss", mean)


def every_setting_of_a_loss_changes_it() -> None:
    sides = [
        Answers(*(torch.tensor([x], dtype=torch.float64) for x in numbers)) for numbers in ((-3, -4, 3), (-5, -4, 2))
    ]
    for name, loss in LOSSES.items():
        before = loss.function(sides[0], sides[1], Options(0.3, 0.0, 0.5))
        for key, value in {"beta": 0.7, "label_smoothing": 0.2, "gamma_beta_ratio": 0.9}.items():
            after = loss.function(sides[0], sides[1], replace(Options(0.3, 0.0, 0.5), **{key: value}))
            assert bool(after != before) is (name in MethodOptions.READ_BY[key]), (name, key)


def smoothing_is_ignored(patch: Patch) -> None:
    plain = LOSSES["dpo"].function

    def ignoring(chosen: Answers, rejected: Answers, options: Options) -> torch.Tensor:
        return plain(chosen, rejected, replace(options, label_smoothing=0.0))

    patch.setitem(LOSSES, "dpo", PairLoss(ignoring, 0.1, LOSSES["dpo"].loss_at_reference))


def only_the_last_answer_is_compared() -> None:
    earlier = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "before"},
        {"role": "user", "content": "b"},
    ]
    sides = {
        k: [*earlier, {"role": "assistant", "content": v}] for k, v in {"chosen": "good", "rejected": "bad"}.items()
    }
    (row,) = METHODS["dpo"].prepare(TEMPLATE, rows_of(sides), 0, None)
    end = TEMPLATE.tokenizer.decode([TEMPLATE.eos])
    assert texts(row) == [f"good{end}", f"bad{end}"]


def earlier_answers_count(patch: Patch) -> None:
    patch.setattr(preferences.conversation, "untrained", list)
    assert conversation.untrained is list


def certain_answers_have_finite_odds() -> None:
    x = torch.tensor([-1e-12, -60.0], dtype=torch.float64, requires_grad=True)
    pair_losses.log_odds(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.tensor([1e12, 1.0], dtype=torch.float64), rtol=1e-3)


def naive_odds(patch: Patch) -> None:
    patch.setattr(pair_losses, "log_odds", lambda x: x - torch.log(1 - torch.exp(x).float()))


def training_prefers_the_chosen_answer() -> None:
    lm, asked = model(), plan(lr=1e-2)
    with torch.no_grad():
        rows = precomputed(lm, pairs(), asked)
    learner = step.make_learner(lm, asked)
    seen = [step.take_step(learner, rows, asked, i) for i in range(4)]
    assert seen[-1].metrics["reward_chosen"] > seen[-1].metrics["reward_rejected"]
    with torch.no_grad():
        logp = [forward.sequence_logp(lm, packing.to_microbatch(r.sequences, "packed")) for r in rows]
    better = [texts(r)[0].startswith(good) for r, (_, good, _) in zip(rows, GIVEN, strict=True)]
    assert all(better)
    assert sum(float(x[0] - x[1]) for x in logp) > sum(float(r.signal["reference_S"] @ [1, -1]) for r in rows)


def sides_are_swapped(patch: Patch) -> None:
    loss = LOSSES["dpo"].function

    def swapped(chosen: Answers, rejected: Answers, options: Options) -> torch.Tensor:
        return loss(rejected, chosen, options)

    method = Preference(PairLoss(swapped, 0.1, LOSSES["dpo"].loss_at_reference))
    patch.setitem(METHODS, "dpo", method)


FAULTS = [
    Fault(39, "the end of an answer is not part of its log-probability", "TRL 1.16 (truncation), PaddleFormers 4908", "both answers of a pair are compared with their stop tokens",
          the_end_counts, without_the_end),
    Fault(40, "padding is part of an answer's log-probability", "0xallam 4, transformers 28586", "an answer has the same log-probability alone and padded",
          a_pair_is_what_it_is_alone, padding_counts),
    Fault(41, "a batch of pairs is a mean of means", "unsloth 1178", "the gradient does not depend on how the pairs of a batch are divided into passes",
          the_step_does_not_depend_on_the_passes, a_mean_of_means),
    Fault(42, "label smoothing is read by nothing", "TRL 1.16", "each setting changes the losses that read it, and no others; CONFIG_CONFLICT",
          every_setting_of_a_loss_changes_it, smoothing_is_ignored),
    Fault(43, "earlier turns are part of the compared answers", "TRL 1.16", "only the last answer is compared, whatever precedes it",
          only_the_last_answer_is_compared, earlier_answers_count),
    Fault(44, "ORPO's odds are infinite, or have no gradient, for a certain answer", "mlx-lm-lora 65", "odds and gradient are precise at both ends",
          certain_answers_have_finite_odds, naive_odds),
    Fault(45, "the rejected answer is preferred", "", "steps raise the chosen answer over the rejected one",
          training_prefers_the_chosen_answer, sides_are_swapped),
    Fault(78, "of a pair that fits no pass, each answer is weighted as the other", "", "a pair has the same gradient in one pass and in two",
          a_pair_that_fits_no_pass_is_what_it_is_in_one, slopes_of_the_other_answer),
    Fault(79, "the loss of a pair in two passes is that of its linear form", "", "a pair has the same loss in one pass and in two",
          a_pair_that_fits_no_pass_is_what_it_is_in_one, the_value_is_not_shifted),
]  # fmt: skip
