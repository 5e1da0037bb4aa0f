"""KTO: against TRL's function, finite differences and closed forms, whatever the layout and the passes of a step."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from build import LORA, byte_tokenizer, exact_norms, plan_of, tiny_lm, training_of, with_adapter
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tunewright.core.config import MethodOptions, Plan
from tunewright.core.errors import DataError, TunewrightError
from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, read_lines
from tunewright.data.messages import Chat, Message
from tunewright.methods import METHODS, kto, precomputed
from tunewright.model import adapters
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing
from tunewright.tokens.sequences import TokenSequence, TrainRow
from tunewright.tokens.template import Template
from tunewright.train import dealing, loop, selftest, step

TEMPLATE = Template(byte_tokenizer())
GIVEN = [
    ("what is it", "a cat", True),
    ("what is it", "a dog that barks", False),
    ("who", "nobody", True),
    ("who", "everyone, or so they think", False),
    ("what was it then", "rain", True),
    ("w", "yyyyyyyyyyyyyyyyyyyyy", False),
    ("and why", "because", True),
]


def chat(question: str, answer: str, desirable: bool | None) -> Chat:
    return Chat((Message("user", question), Message("assistant", answer)), "x:1", desirable=desirable)


CHATS = [chat(*g) for g in GIVEN]


def prepared(chats: list[Chat] = CHATS) -> list[TrainRow]:
    return [row for i, c in enumerate(chats) for row in kto.prepare(TEMPLATE, c, i, None)]


def plan(**more: Any) -> Plan:
    """With weights that differ, so that it matters which one a row has."""
    options = MethodOptions(
        beta=more.pop("beta", 0.3),
        desirable_weight=more.pop("desirable_weight", 1.5),
        undesirable_weight=more.pop("undesirable_weight", 0.7),
    )
    base = {"method": "kto", "layout": "shared", "batch_size": len(GIVEN), "max_grad_norm": 1e9, "options": options}
    return plan_of(**{**base, **more})


def with_reference(rows: list[TrainRow]) -> list[TrainRow]:
    """Reference numbers that are near the policy's but not equal to them, so that every term of a loss counts."""
    draw, base = np.random.default_rng(0), unmoved(torch.float64)
    with torch.no_grad():
        done = precomputed(base, rows, plan())
    noise = [np.array([draw.normal()]) for _ in rows]
    return [
        replace(r, signal={**r.signal, "reference_S": r.signal["reference_S"] + x})
        for r, x in zip(done, noise, strict=True)
    ]


def moved(sign: float = 1.0, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A policy that is not its base; with the other sign, moved in the opposite direction."""
    model = with_adapter("llama", dtype, vocabulary=300)
    with torch.no_grad():
        for layer in adapters.adapted(model.module).values():
            layer.lora_B.mul_(0.3 * sign)
    return model


def unmoved(dtype: torch.dtype = torch.float32) -> LanguageModel:
    model = tiny_lm("llama", dtype=dtype, vocabulary=300)
    if dtype == torch.float64:
        exact_norms(model.module)
    adapters.attach(model.module, LORA, 1)
    return model


def loss_and_gradient(model: LanguageModel, rows: list[TrainRow], asked: Plan) -> tuple[float, Tensor]:
    model.module.zero_grad(set_to_none=True)
    parts = kto.microbatches(model, rows, range(len(rows)), asked, 0)
    weight = sum(map(kto.weight, parts))
    total = 0.0
    for part in parts:
        loss = kto.loss(model, part, asked).sum / weight
        loss.backward()
        total += float(loss.detach())
    return total, gradient(model)


def gradient(model: LanguageModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in adapters.trainable(model.module).values() if p.grad is not None])


# -- TRL's own function, on padded rows and autograd through all logits


class Padded:
    def __init__(self, sequences: list[TokenSequence]) -> None:
        longest = max(len(s.ids) for s in sequences)
        self.ids = torch.tensor([[*s.ids, *[0] * (longest - len(s.ids))] for s in sequences])
        self.mask = torch.tensor([[int(w != 0) for w in s.weights] + [0] * (longest - len(s.ids)) for s in sequences])
        self.seen = torch.tensor([[1] * len(s.ids) + [0] * (longest - len(s.ids)) for s in sequences])


def token_logp(model: LanguageModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """log p of every token but the first, 0 where there is no label."""
    logits = model.module(input_ids, attention_mask=attention_mask, use_cache=False).logits
    logp = logits[:, :-1].log_softmax(-1).gather(2, input_ids[:, 1:, None])[..., 0]
    return logp * (labels[:, 1:] != -100)


def trl_kto(model: LanguageModel, rows: list[TrainRow], asked: Plan) -> tuple[Tensor, float]:
    """The loss, and the estimate of the KL in it."""
    trainer = pytest.importorskip("trl.trainer.kto_trainer").KTOTrainer

    class Called:
        training = False

        def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> Any:
            logp = token_logp(model, input_ids, attention_mask, labels)
            zeros = torch.zeros_like(logp)
            return SimpleNamespace(log_probs=logp, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    itself = SimpleNamespace(
        model=Called(),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        calculate_KL=True,
        precompute_ref_logps=True,
        loss_type="kto",
        beta=asked.options.beta,
        desirable_weight=asked.options.desirable_weight,
        undesirable_weight=asked.options.undesirable_weight,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    itself._compute_kl_logps = lambda called, batch: trainer._compute_kl_logps(itself, called, batch)
    own = Padded([r.sequences[0] for r in rows])
    other = Padded(kto.mismatched(rows, range(len(rows)), asked, 0))
    with torch.no_grad(), adapters.off(model.module):
        reference = token_logp(model, other.ids, other.seen, other.ids.masked_fill(other.mask == 0, -100)).sum(1)
    inputs = {
        "input_ids": own.ids,
        "attention_mask": own.seen,
        "completion_mask": own.mask,
        "KL_input_ids": other.ids,
        "KL_attention_mask": other.seen,
        "KL_completion_mask": other.mask,
        "label": torch.tensor([kto.is_desirable(r) for r in rows]),
        "ref_logps": torch.tensor([r.signal["reference_S"][0] for r in rows]),
        "ref_KL_logps": reference,
    }
    return trainer._compute_loss(itself, itself.model, inputs, False), itself._metrics["eval"]["kl"][0]


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_loss_and_gradient_equal_trls(layout: str) -> None:
    rows, estimates = with_reference(prepared()), []
    for sign in (1.0, -1.0):
        model = moved(sign)
        model.module.zero_grad(set_to_none=True)
        expected, kl = trl_kto(model, rows, plan())
        assert 0.3 < float(expected.detach()) < 1.0, "far from the flat ends of the sigmoid"
        expected.backward()
        wanted = gradient(model)
        estimates.append(kl)
        for capacity in (4096, 60, 1):
            asked = plan(layout=layout, tokens_per_pass=capacity)
            loss, actual = loss_and_gradient(model, rows, asked)
            assert abs(loss - float(expected.detach())) < 1e-10
            assert torch.allclose(actual, wanted, rtol=0, atol=1e-10)
            assert kto.reference_point(model, rows, range(len(rows)), asked, 0) == pytest.approx(kl, abs=1e-10)
    assert min(estimates) == 0.0 < max(estimates), "both with and without the floor of z0"


# -- the loss


@given(r=st.floats(-60, 60), z0=st.floats(0, 30), beta=st.floats(0.01, 3), good=st.booleans(), weight=st.floats(0.1, 9))
def test_the_loss_is_the_papers(r: float, z0: float, beta: float, good: bool, weight: float) -> None:
    o = kto.Options(beta, weight if good else 99.0, 99.0 if good else weight)
    x = torch.tensor([r], dtype=torch.float64, requires_grad=True)
    loss = kto.losses(x, torch.tensor([good]), torch.tensor(z0, dtype=torch.float64), o)
    loss.sum().backward()
    above = beta * (r - z0 if good else z0 - r)
    expected = weight * (1 - 1 / (1 + math.exp(-above)))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-12 * weight)
    assert x.grad is not None
    assert float(x.grad) <= 0 if good else float(x.grad) >= 0, "a step down raises desirable answers, and no others"


def largest_ratio() -> LanguageModel:
    """A moved policy with z0 above 0."""
    rows = prepared()
    return max((moved(1.0), moved(-1.0)), key=lambda m: kto.reference_point(m, rows, range(len(rows)), plan(), 0))


def test_the_gradient_is_that_of_a_constant_reference_point() -> None:
    """Finite differences, with z0 as it was; with z0 as it becomes, the difference is another."""
    model, rows, asked = largest_ratio(), with_reference(prepared()), plan()
    parts = kto.microbatches(model, rows, range(len(rows)), asked, 0)
    assert float(parts[0].signal["z0"]) > 0
    _, actual = loss_and_gradient(model, rows, asked)
    direction = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def along(size: float, frozen: bool) -> float:
        at = 0
        trained = adapters.trainable(model.module).values()
        with torch.no_grad():
            for p in trained:
                p.add_(size * direction[at : at + p.numel()].view_as(p))
                at += p.numel()
            own = parts if frozen else kto.microbatches(model, rows, range(len(rows)), asked, 0)
            loss = sum(float(kto.loss(model, part, asked).sum) for part in own) / len(rows)
            at = 0
            for p in trained:
                p.sub_(size * direction[at : at + p.numel()].view_as(p))
                at += p.numel()
        return loss

    differences = [(along(1e-5, frozen) - along(-1e-5, frozen)) / 2e-5 for frozen in (True, False)]
    assert differences[0] == pytest.approx(float(actual @ direction), rel=1e-6)
    assert differences[1] != pytest.approx(float(actual @ direction), rel=1e-3)


def test_a_passes_loss_waits_for_no_gradient_of_z0() -> None:
    model = largest_ratio()
    for part in kto.microbatches(model, with_reference(prepared()), range(len(GIVEN)), plan(), 0):
        assert all(isinstance(value, np.ndarray) for value in part.signal.values())


@pytest.mark.parametrize("kind", [True, False])
def test_a_step_of_one_kind_has_the_reward_of_that_kind(kind: bool) -> None:
    rows = [r for r in with_reference(prepared()) if kto.is_desirable(r) is kind]
    model, names = moved(), ("reward_desirable", "reward_undesirable")
    done = step.take_step(step.make_learner(model, plan()), rows, plan(), 0)
    assert [name in done.metrics for name in names] == [kind, not kind]


def test_rewards_are_means_over_their_kind_whatever_the_passes() -> None:
    seen = []
    for capacity in (4096, 1):
        model, rows, asked = moved(), with_reference(prepared()), plan(tokens_per_pass=capacity)
        logp = [float(kto_logp(model, r)) for r in rows]
        done = step.take_step(step.make_learner(model, asked), rows, asked, 0)
        for kind, name in ((True, "reward_desirable"), (False, "reward_undesirable")):
            both = [(x - r.signal["reference_S"][0], kto.is_desirable(r)) for x, r in zip(logp, rows, strict=True)]
            own = [0.3 * ratio for ratio, good in both if good is kind]
            assert done.metrics[name] == pytest.approx(np.mean(own), abs=1e-10)
        seen.append(done.metrics)
    assert seen[0] == pytest.approx(seen[1], abs=1e-10)
    chosen = packing.step_rows(len(GIVEN), len(GIVEN), 3, 0)
    expected = kto.reference_point(moved(), with_reference(prepared()), chosen, plan(), 0)
    assert seen[0]["kl"] == pytest.approx(expected, abs=1e-10)


def kto_logp(model: LanguageModel, row: TrainRow) -> Tensor:
    own = Padded(list(row.sequences))
    with torch.no_grad():
        return token_logp(model, own.ids, own.seen, own.ids.masked_fill(own.mask == 0, -100)).sum()


# -- whose answer a row is given


@given(
    prompts=st.lists(st.integers(0, 4), min_size=1, max_size=24),
    seed=st.integers(0, 99),
    at=st.integers(0, 99),
    data=st.data(),
)
def test_a_row_is_given_the_answer_of_another_prompt(
    prompts: list[int], seed: int, at: int, data: st.DataObject
) -> None:
    """TRL 1911 and LLaMA-Factory 7509: reversed, the middle row of a batch was given its own answer."""
    chosen = data.draw(st.lists(st.sampled_from(range(len(prompts))), min_size=1, unique=True))
    given = kto.partners(prompts.__getitem__, len(prompts), chosen, seed, at)
    assert given == kto.partners(prompts.__getitem__, len(prompts), chosen, seed, at)
    for i, j in zip(chosen, given, strict=True):
        assert (j is None) is (len(set(prompts)) == 1)
        assert j is None or prompts[i] != prompts[j]
    if 2 * max(Counter(prompts[i] for i in chosen).values()) <= len(chosen):
        assert sorted(given) == sorted(chosen), "every answer of the step once"


def test_other_steps_give_other_answers() -> None:
    given = {tuple(kto.partners(lambda i: i, 16, range(16), 3, at)) for at in range(20)}
    assert len(given) == 20


def test_a_mismatched_row_is_a_prompt_as_it_is_served_and_a_whole_answer() -> None:
    rows = prepared()
    decode, answers = TEMPLATE.tokenizer.decode, {text: question for question, text, _ in GIVEN}
    made = kto.mismatched(rows, range(len(rows)), plan(), 5)
    assert len(made) == len(rows)
    for sequence, (question, own, _) in zip(made, GIVEN, strict=True):
        first = next(t for t, w in enumerate(sequence.weights) if w)
        supervised = [i for i, w in zip(sequence.ids, sequence.weights, strict=True) if w]
        text = decode(supervised[:-1])
        assert question in decode(sequence.ids[:first])
        assert supervised[-1] == TEMPLATE.eos
        assert text != own
        assert answers[text] != question
    limit = sorted(len(s.ids) for s in made)[3]
    limited = kto.mismatched(rows, range(len(rows)), plan(max_length=limit), 5)
    assert [s for s in made if len(s.ids) <= limit] == limited
    assert 0 < len(limited) < len(made), "those that would be too long are left out"


def test_rows_of_one_prompt_have_no_reference_point() -> None:
    rows = with_reference(prepared([chat("q", "a", True), chat("q", "b", False)]))
    assert kto.mismatched(rows, [0, 1], plan(), 0) == []
    assert kto.reference_point(moved(), rows, [0, 1], plan(), 0) == 0.0


# -- rows


def test_the_end_of_an_answer_counts_and_the_prompt_does_not() -> None:
    for row, (_, text, good) in zip(prepared(), GIVEN, strict=True):
        (sequence,) = row.sequences
        supervised = [i for i, w in zip(sequence.ids, sequence.weights, strict=True) if w]
        assert TEMPLATE.tokenizer.decode(supervised[:-1]) == text
        assert supervised[-1] == TEMPLATE.eos
        assert kto.is_desirable(row) is good


def test_a_pair_is_two_rows() -> None:
    pair = replace(chat("q", "yes", None), rejected=Message("assistant", "no"))
    rows = kto.prepare(TEMPLATE, pair, 3, None)
    (dpo,) = METHODS["dpo"].prepare(TEMPLATE, pair, 3, None)
    assert tuple(r.sequences[0] for r in rows) == dpo.sequences
    assert [kto.is_desirable(r) for r in rows] == [True, False]
    with pytest.raises(DataError, match="DATA_PREFERENCE_EQUAL"):
        kto.prepare(TEMPLATE, replace(pair, rejected=Message("assistant", "yes")), 3, None)


def test_a_row_without_a_rating_is_refused() -> None:
    with pytest.raises(DataError, match=r"DATA_FIELD_MISSING.*docs/guide-data.md") as caught:
        kto.prepare(TEMPLATE, chat("q", "a", None), 0, None)
    assert caught.value.where == "x:1"


def test_rows_can_be_divided_into_passes_before_they_have_a_reference() -> None:
    """The plan counts what several processes would compute; no model is asked for that."""
    assert dealing.speedups(moved(), prepared(), plan(tokens_per_pass=50, steps=4, batch_size=4), (2,))[2] > 1


# -- training


class Killed(Exception):
    pass


def trained(folder: Path, stop: int | None = None) -> tuple[list[Tensor], list[dict[str, Any]]]:
    run, model = Run(folder), unmoved(torch.float64)
    folder.mkdir(exist_ok=True)
    asked = plan(tokens_per_pass=90, steps=6, batch_size=3, checkpoint_every=1, lr=3e-3, desirable_weight=1.0)

    def stopping(line: StepLine) -> None:
        if line.step == stop:
            raise Killed

    rows = prepared()
    given = training_of(model.module, asked, rows[:5], rows[5:], run)
    loop.train(loop.with_precomputed(given), stopping)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
    return [p.detach().clone() for p in adapters.trainable(model.module).values()], lines


def test_a_resumed_run_is_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    weights, lines = trained(tmp_path / "straight")
    assert lines[0]["dev_loss"] == pytest.approx((1.0 + 0.7) / 4, abs=1e-12), "the policy starts as the reference"
    assert any(line["metrics"]["kl"] > 0 for line in lines[1:])
    for at in (1, 4):
        with pytest.raises(Killed):
            trained(tmp_path / f"killed-{at}", at)
        again, lines_again = trained(tmp_path / f"killed-{at}")
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
        assert lines_again == lines


def test_steps_raise_desirable_answers_over_undesirable_ones() -> None:
    model, asked = unmoved(torch.float64), plan(lr=1e-2)
    with torch.no_grad():
        rows = precomputed(model, prepared(), asked)
    learner = step.make_learner(model, asked)
    seen = [step.take_step(learner, rows, asked, i) for i in range(5)]
    assert seen[0].metrics["kl"] == 0
    assert seen[-1].loss < seen[0].loss
    assert seen[-1].metrics["reward_desirable"] > seen[-1].metrics["reward_undesirable"]


def test_what_it_reads_changes_the_loss() -> None:
    model, rows = moved(), with_reference(prepared())
    before, _ = loss_and_gradient(model, rows, plan())
    for key in ("beta", "desirable_weight", "undesirable_weight"):
        assert "kto" in MethodOptions.READ_BY[key]
        assert loss_and_gradient(model, rows, plan(**{key: 0.9}))[0] != pytest.approx(before, rel=1e-6)
    assert [key for key, readers in MethodOptions.READ_BY.items() if "kto" not in readers] == [
        "label_smoothing",
        "nll_weight",
        "gamma_beta_ratio",
        "loss_type",
        "num_generations",
        "temperature",
        "kl_weight",
        "num_iterations",
        "center_rewards_coefficient",
    ]


# -- the self-test


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_self_test_passes(dtype: str) -> None:
    model = unmoved(getattr(torch, dtype))
    result = selftest.self_test(model, TEMPLATE, CHATS, prepared(), plan(adapter=LORA, dtype=dtype))
    assert all(check.passed for check in result.checks)
    assert "start" in [check.check for check in result.checks]


def test_the_start_is_checked() -> None:
    """A reference that is another model (LLaMA-Factory PR 10779, TRL 744 and 2042)."""
    model, asked = unmoved(), plan()
    with torch.no_grad():
        rows = precomputed(model, prepared(), asked)
        (result,) = selftest.check_start(model, rows, asked)
    assert result.passed
    weights = [1.5 if good else 0.7 for _, _, good in GIVEN]
    assert kto.initial_loss(asked, rows) == pytest.approx(sum(weights) / 2 / len(weights), rel=1e-12)
    others = [replace(r, signal={**r.signal, "reference_S": r.signal["reference_S"] * 0.9}) for r in rows]
    with pytest.raises(TunewrightError, match="SELFTEST_START"):
        selftest.check_start(model, others, asked)


def test_a_policy_that_does_not_start_as_its_base_is_noticed() -> None:
    model, asked = largest_ratio(), plan()
    with torch.no_grad():
        rows = precomputed(model, prepared(), asked)
    with pytest.raises(TunewrightError, match="SELFTEST_START"):
        selftest.check_start(model, rows, asked)


def test_batches_of_sorted_rows_are_mixed() -> None:
    """TRL 1.16 trains KTO in the order of the file."""
    kinds = [i < 24 for i in range(48)]
    steps = [{kinds[i] for i in packing.step_rows(48, 8, 3, at)} for at in range(6)]
    assert sum(len(kind) == 2 for kind in steps) >= 5
