"""Preference losses: against closed forms, against TRL's own functions, and whatever the layout of a pass."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from build import LORA, byte_tokenizer, plan_of, with_adapter
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tunewright.core.config import MethodOptions, Plan
from tunewright.core.config.schema import HEADS, PREFERENCE
from tunewright.core.config.schema import REFERENCED as REFERENCED_METHODS
from tunewright.core.errors import DataError, TunewrightError
from tunewright.core.run_folder import Run
from tunewright.data.messages import Chat, Message
from tunewright.methods import METHODS, pair_losses, precomputed, preference
from tunewright.methods.pair_losses import LOSSES, Answers, Options
from tunewright.methods.preference import Preference
from tunewright.model import adapters
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template
from tunewright.train import dealing, loop, selftest, step

READ_BY = MethodOptions.READ_BY
REFERENCED = [name for name, loss in LOSSES.items() if loss.reference]


def chat(question: str, chosen: str, rejected: str | None) -> Chat:
    messages = (Message("user", question), Message("assistant", chosen))
    return Chat(messages, "x:1", rejected=None if rejected is None else Message("assistant", rejected))


PAIRS = [
    ("what is it", "a cat", "a dog that barks"),
    ("what is it", "a cat and more", "a cat"),  # the sides begin alike
    ("who", "nobody", "everyone, or so they think"),
    ("what was it then", "rain", "r"),
    ("w", "x", "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"),
]


def prepared(pairs: list[tuple[str, str, str]] = PAIRS) -> list[TrainRow]:
    template = Template(byte_tokenizer())
    return [METHODS["dpo"].prepare(template, chat(*p), i, None)[0] for i, p in enumerate(pairs)]


def plan(name: str, **more: Any) -> Plan:
    given = {k: v for k, v in more.items() if k in MethodOptions.model_fields}
    rest = {k: v for k, v in more.items() if k not in given}
    return plan_of(
        **{"method": name, "layout": "shared", **rest, "options": METHODS[name].options(MethodOptions(**given))}
    )


def with_reference(rows: list[TrainRow], shift: float = 0.3) -> list[TrainRow]:
    """Reference numbers that are not the policy's, so that every term of a loss counts."""
    draw = np.random.default_rng(0)
    made = []
    for r in rows:
        numbers = np.array([-4.0 * s.supervised + draw.normal() * shift * s.supervised for s in r.sequences])
        made.append(replace(r, signal={"reference_S": numbers}))
    return made


def loss_and_gradient(model: LanguageModel, rows: list[TrainRow], asked: Plan) -> tuple[float, Tensor]:
    method = METHODS[asked.method]
    model.module.zero_grad(set_to_none=True)
    parts = method.microbatches(model, rows, range(len(rows)), asked, 0)
    weight = sum(map(method.weight, parts))
    total = 0.0
    for part in parts:
        loss = method.loss(model, part, asked).sum / weight
        loss.backward()
        total += float(loss.detach())
    return total, gradient(model)


def gradient(model: LanguageModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in adapters.trainable(model.module).values() if p.grad is not None])


# -- TRL's own functions, on padded rows and autograd through all logits


class Padded:
    """TRL's layout of pairs: the chosen answers, then the rejected ones."""

    def __init__(self, rows: list[TrainRow]) -> None:
        sequences = [r.sequences[k] for k in (0, 1) for r in rows]
        longest = max(len(s.ids) for s in sequences)
        self.ids = torch.tensor([[*s.ids, *[0] * (longest - len(s.ids))] for s in sequences])
        self.mask = torch.tensor([[int(w != 0) for w in s.weights] + [0] * (longest - len(s.ids)) for s in sequences])
        self.seen = torch.tensor([[1] * len(s.ids) + [0] * (longest - len(s.ids)) for s in sequences])
        self.reference = torch.tensor([r.signal["reference_S"][k] for k in (0, 1) for r in rows])

    def logp(self, model: LanguageModel) -> Tensor:
        """log p of every token but the first, 0 where it is not supervised."""
        logits = model.module(self.ids, attention_mask=self.seen, use_cache=False).logits
        logp = logits[:, :-1].log_softmax(-1).gather(2, self.ids[:, 1:, None])[..., 0]
        return logp * self.mask[:, 1:]

    def sums(self, model: LanguageModel) -> tuple[Tensor, Tensor]:
        """logp_P of the chosen and of the rejected answers."""
        chosen, rejected = self.logp(model).sum(1).chunk(2)
        return chosen, rejected

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        chosen, rejected = self.mask.sum(1).chunk(2)
        return chosen, rejected


def trl_dpo(model: LanguageModel, padded: Padded, kind: str, beta: float, smoothing: float) -> Tensor:
    trainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer

    class Called:
        training = False

        def __call__(self, **_: Any) -> Any:
            logp = padded.logp(model)
            zeros = torch.zeros_like(logp)
            return SimpleNamespace(log_probs=logp, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    itself = SimpleNamespace(
        model=Called(),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen, rejected = padded.reference.chunk(2)
    inputs = {"input_ids": padded.ids, "attention_mask": padded.seen, "completion_mask": padded.mask}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss: Tensor = trainer._compute_loss(itself, itself.model, inputs, False)
    return loss


TRLS = {
    "dpo": "sigmoid",
    "robust_dpo": "robust",
    "normalized_dpo": "sigmoid_norm",
    "hinge": "hinge",
    "ipo": "ipo",
    "apo_zero": "apo_zero",
}


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("name", TRLS)
def test_loss_and_gradient_equal_trls(name: str, layout: str) -> None:
    model, rows = with_adapter("llama", torch.float64, vocabulary=300), with_reference(prepared())
    smoothing = 0.2 if name == "robust_dpo" else 0.0
    model.module.zero_grad(set_to_none=True)
    expected = trl_dpo(model, Padded(rows), TRLS[name], 0.3, smoothing)
    expected.backward()
    wanted = gradient(model)
    for capacity in (4096, 60):
        asked = plan(name, layout=layout, tokens_per_pass=capacity, beta=0.3, label_smoothing=smoothing)
        loss, actual = loss_and_gradient(model, rows, asked)
        assert abs(loss - float(expected.detach())) < 1e-10
        assert torch.allclose(actual, wanted, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_losses_without_a_reference_equal_trls(name: str, layout: str) -> None:
    model, rows = with_adapter("llama", torch.float64, vocabulary=300), prepared()
    padded = Padded(with_reference(rows))
    model.module.zero_grad(set_to_none=True)
    means = [s / n for s, n in zip(padded.sums(model), padded.lengths, strict=True)]
    itself = SimpleNamespace(beta=0.4, accelerator=SimpleNamespace(device="cpu"))
    if name == "simpo":
        trainer = pytest.importorskip("trl.experimental.cpo").CPOTrainer
        itself = SimpleNamespace(
            **vars(itself), alpha=0.0, loss_type="simpo", simpo_gamma=0.4 * 0.7, label_smoothing=0.0
        )
        expected = trainer.cpo_loss(itself, *means)[0].mean()
    else:
        trainer = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
        expected = (-trainer.odds_ratio_loss(itself, *means)[0] - means[0]).mean()
    expected.backward()
    wanted = gradient(model)
    more = {"gamma_beta_ratio": 0.7} if name == "simpo" else {}
    loss, actual = loss_and_gradient(model, rows, plan(name, layout=layout, tokens_per_pass=60, beta=0.4, **more))
    limit = 1e-10 if name == "simpo" else 2e-6  # ORPOTrainer rounds to float32
    assert abs(loss - float(expected.detach())) < limit
    assert torch.allclose(actual, wanted, rtol=0, atol=limit)


# -- closed forms


def answers(logp: list[float], reference: list[float], tokens: list[float]) -> Answers:
    return Answers(*(torch.tensor(x, dtype=torch.float64) for x in (logp, reference, tokens)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


FORMULAS = {
    "dpo": lambda w, r, b, e: -(1 - e) * math.log(sigmoid(b * (w - r))) - e * math.log(sigmoid(b * (r - w))),
    "robust_dpo": lambda w, r, b, e: (
        (-(1 - e) * math.log(sigmoid(b * (w - r))) + e * math.log(sigmoid(b * (r - w)))) / (1 - 2 * e)
    ),
    "hinge": lambda w, r, b, e: max(0.0, 1 - b * (w - r)),
    "ipo": lambda w, r, b, e: (w / 3 - r / 5 - 1 / (2 * b)) ** 2,
    "normalized_dpo": lambda w, r, b, e: (
        -(1 - e) * math.log(sigmoid(b * (w / 3 - r / 5))) - e * math.log(sigmoid(-b * (w / 3 - r / 5)))
    ),
    "apo_zero": lambda w, r, b, e: 1 - sigmoid(b * w) + sigmoid(b * r),
}


@given(
    w=st.floats(-30, 0), r=st.floats(-30, 0), cw=st.floats(-30, 0), cr=st.floats(-30, 0),
    beta=st.floats(0.01, 3), e=st.floats(0, 0.45),
)  # fmt: skip
def test_losses_equal_their_formulas(w: float, r: float, cw: float, cr: float, beta: float, e: float) -> None:
    assert set(LOSSES) - set(FORMULAS) == {"simpo", "orpo"}, "these are compared with TRL's alone"
    for name, formula in FORMULAS.items():
        smoothing = e if name in READ_BY["label_smoothing"] else 0.0
        got = LOSSES[name].function(answers([w], [cw], [3]), answers([r], [cr], [5]), Options(beta, smoothing))
        assert float(got) == pytest.approx(formula(w - cw, r - cr, beta, smoothing), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_raises_the_chosen_and_lowers_the_rejected_answer(name: str) -> None:
    sides = [answers([-9.0, -4.0], [-9.0, -4.0], [3, 4]), answers([-8.0, -7.0], [-8.0, -7.0], [5, 2])]
    for side in sides:
        side.logp_P.requires_grad_()
    LOSSES[name].function(
        *sides, Options(0.3, 0.1 if name in READ_BY["label_smoothing"] else 0.0, 0.5)
    ).sum().backward()
    chosen, rejected = (side.logp_P.grad for side in sides)
    assert chosen is not None
    assert rejected is not None
    assert bool((chosen < 0).all())
    assert bool((rejected > 0).all())


@pytest.mark.parametrize("name", REFERENCED)
def test_the_first_loss_is_the_formulas(name: str) -> None:
    same = answers([-9.0], [-9.0], [3]), answers([-8.0], [-8.0], [5])
    for beta in (0.1, 2.0):
        start = LOSSES[name].loss_at_reference
        assert start is not None
        assert float(LOSSES[name].function(*same, Options(beta, 0.2))) == pytest.approx(start(beta), rel=1e-12)


def test_log_odds_are_precise_at_both_ends() -> None:
    x = torch.tensor([-1e-12, -1e-3, -0.69, -0.7, -50.0, -800.0], dtype=torch.float64, requires_grad=True)
    odds = pair_losses.log_odds(x)
    odds.sum().backward()
    from mpmath import exp, log, mp, mpf

    mp.dps = 400
    expected = [float(log(exp(mpf(v)) / (1 - exp(mpf(v))))) for v in x.tolist()]
    slopes = [float(1 / (1 - exp(mpf(v)))) for v in x.tolist()]  # d log odds / d log p
    assert odds.tolist() == pytest.approx(expected, rel=1e-12)
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx(slopes, rel=1e-9)
    assert bool(torch.isfinite(pair_losses.log_odds(torch.zeros(1))).all()), "p = 1 is not infinite"


# -- pairs


def test_the_end_of_both_answers_counts_and_the_prompt_does_not() -> None:
    template = Template(byte_tokenizer())
    (row,) = METHODS["dpo"].prepare(template, chat("q", "yes", "no"), 0, None)
    for sequence, text in zip(row.sequences, ("yes", "no"), strict=True):
        supervised = [i for i, w in zip(sequence.ids, sequence.weights, strict=True) if w]
        assert template.tokenizer.decode(supervised[:-1]) == text
        assert supervised[-1] == template.eos


@pytest.mark.parametrize(("rejected", "code"), [(None, "DATA_FIELD_MISSING"), ("yes", "DATA_PREFERENCE_EQUAL")])
def test_a_row_that_compares_nothing_is_refused(rejected: str | None, code: str) -> None:
    with pytest.raises(DataError) as caught:
        METHODS["dpo"].prepare(Template(byte_tokenizer()), chat("q", "yes", rejected), 0, None)
    assert (caught.value.code, caught.value.where) == (code, "x:1")


def test_the_reference_of_a_pair_does_not_depend_on_the_others() -> None:
    model, rows, asked = with_adapter("llama", torch.float64, vocabulary=300), prepared(), plan("dpo")
    with torch.no_grad():
        together = precomputed(model, rows, asked)
        alone = [precomputed(model, [row], asked)[0] for row in rows]
    for a, b in zip(together, alone, strict=True):
        assert np.allclose(a.signal["reference_S"], b.signal["reference_S"], rtol=0, atol=1e-10)


def test_the_reference_is_computed_once_and_kept(tmp_path: Path) -> None:
    """A run that is resumed elsewhere continues with the same numbers, whatever it would compute there."""
    seen: list[int] = []
    first = loop.with_precomputed(inputs_of(tmp_path, seed=1), seen.append)
    again = loop.with_precomputed(inputs_of(tmp_path, seed=2), seen.append)
    assert sum(seen) == len(PAIRS), "the second time, nothing is computed"
    assert again.hashes == first.hashes
    for a, b in zip(first.rows, again.rows, strict=True):
        assert np.array_equal(a.signal["reference_S"], b.signal["reference_S"])
    other = loop.with_precomputed(replace(inputs_of(tmp_path, seed=2), hashes={"model": "another"}), seen.append)
    assert other.hashes["rows"] != first.hashes["rows"], "of another model"


def inputs_of(folder: Path, seed: int) -> loop.TrainingInputs:
    model = with_adapter("llama", torch.float32, vocabulary=300, seed=seed)
    rows = prepared()
    return loop.TrainingInputs(model, plan("dpo"), rows[:4], rows[4:], Run(folder), {"model": "one"})


def test_pairs_can_be_divided_into_passes_before_they_have_a_reference() -> None:
    """The plan counts what several processes would compute."""
    model = with_adapter("llama", torch.float32, vocabulary=300)
    assert dealing.speedups(model, prepared(), plan("dpo", tokens_per_pass=50, steps=4), (2,))[2] > 1


@pytest.mark.parametrize("name", LOSSES)
def test_the_self_test_passes(name: str) -> None:
    model, asked = with_adapter("llama", torch.float32, vocabulary=300), plan(name, layout="shared", adapter=LORA)
    examples = [chat(*p) for p in PAIRS]
    result = selftest.self_test(model, Template(byte_tokenizer()), examples, prepared(), asked)
    assert all(check.passed for check in result.checks)
    assert ("start" in [check.check for check in result.checks]) is (name in REFERENCED)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_trains(name: str) -> None:
    model, asked = with_adapter("llama", torch.float64, vocabulary=300), plan(name, lr=1e-2, batch_size=5)
    with torch.no_grad():
        rows = precomputed(model, prepared(), asked)
    learner = step.make_learner(model, asked)
    seen = [step.take_step(learner, rows, asked, i) for i in range(5)]
    assert seen[-1].loss < seen[0].loss
    rewards = [s.metrics["reward_chosen"] - s.metrics["reward_rejected"] for s in seen]
    assert rewards[-1] > rewards[0]
    assert 0 <= seen[0].metrics["accuracy"] <= 1


def test_the_likelihood_of_the_chosen_answer_is_added() -> None:
    model, rows = with_adapter("llama", torch.float64, vocabulary=300), with_reference(prepared())
    plain, _ = loss_and_gradient(model, rows, plan("dpo"))
    more, _ = loss_and_gradient(model, rows, plan("dpo", nll_weight=0.5))
    padded = Padded(rows)
    nll = -(padded.sums(model)[0] / padded.lengths[0]).mean()
    assert more - plain == pytest.approx(0.5 * float(nll.detach()), abs=1e-10)


# -- the self-test


@pytest.mark.parametrize("name", REFERENCED)
def test_the_start_is_checked(name: str) -> None:
    """A reference that is another model (LLaMA-Factory PR 10779, TRL 744 and 2042)."""
    model, asked = with_adapter("llama", torch.float32, vocabulary=300), plan(name, nll_weight=1.0)
    with torch.no_grad():
        rows = precomputed(model, prepared(), asked)
        (result,) = selftest.check_start(model, rows, asked)
    assert result.passed
    others = [replace(r, signal={"reference_S": r.signal["reference_S"] * [0.9, 1.1]}) for r in rows]
    with pytest.raises(TunewrightError, match="SELFTEST_START"):
        selftest.check_start(model, others, asked)


def test_methods_without_a_formula_for_the_start_are_not_checked() -> None:
    model = with_adapter("llama", torch.float32, vocabulary=300)
    assert selftest.check_start(model, prepared(), plan("simpo")) == []


# -- settings


def test_every_method_is_offered() -> None:
    assert tuple(LOSSES) == PREFERENCE
    assert (*REFERENCED, "kto") == REFERENCED_METHODS
    assert sorted(METHODS) == sorted(["sft", "distill", "embed", *HEADS, "kto", "grpo", *PREFERENCE])


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_method_reads_changes_its_loss_and_what_it_does_not_read_does_not(name: str) -> None:
    """TRL 1.16 reads no label_smoothing in its default loss."""
    model, rows = with_adapter("llama", torch.float64, vocabulary=300), with_reference(prepared())
    before, _ = loss_and_gradient(model, rows, plan(name))
    for key, value in {"beta": 0.7, "label_smoothing": 0.3, "nll_weight": 0.4, "gamma_beta_ratio": 0.9}.items():
        if name in READ_BY[key]:
            assert loss_and_gradient(model, rows, plan(name, **{key: value}))[0] != before, key


def test_a_method_is_a_value() -> None:
    assert METHODS["ipo"] == Preference(LOSSES["ipo"])
    assert preference.Preference(LOSSES["simpo"]).pair_loss.reference is False
