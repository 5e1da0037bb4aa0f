"""Losses of sampled answers: against TRL's own functions, closed forms, exact enumeration; and whatever the passes."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from build import byte_tokenizer, plan_of, with_adapter
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from tunewright.core.config import MethodOptions, Plan
from tunewright.core.errors import DataError
from tunewright.data.messages import Chat, Message
from tunewright.methods import METHODS, grpo, policy_losses
from tunewright.methods.policy_losses import LOSSES, Samples
from tunewright.model import adapters
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TrainRow, prompt_then_answer
from tunewright.tokens.template import Template
from tunewright.train import profile, step

LENGTHS = (3, 5, 1, 8, 2, 4)
LONGEST = 9
REWARDS = st.integers(2, 9).flatmap(
    lambda g: arrays(np.float64, (3, g), elements=st.one_of(st.floats(0, 1), st.sampled_from([0.2, 0.7, math.nan])))
)


def samples(seed: int = 0) -> Samples:
    """A policy that has moved from the one that drew the samples, some of it beyond the clips."""
    random = torch.Generator().manual_seed(seed)
    old_M = -3 * torch.rand(sum(LENGTHS), generator=random, dtype=torch.float64)
    logp_M = (old_M + 0.3 * torch.randn(len(old_M), generator=random, dtype=torch.float64)).requires_grad_()
    advantage_S = torch.randn(len(LENGTHS), generator=random, dtype=torch.float64)
    reference_M = old_M + 0.5 * torch.randn(len(old_M), generator=random, dtype=torch.float64)
    return Samples(logp_M, old_M, LENGTHS, advantage_S, reference_M)


PENALISED = [name for name, loss in LOSSES.items() if loss.penalty]


def ours(name: str, given: Samples, kl: float = 0.0) -> Tensor:
    weight, loss_S = sum(LOSSES[name].weight(n, LONGEST) for n in given.tokens), LOSSES[name].function(given)
    if kl:
        penalty = LOSSES[name].penalty
        assert penalty is not None
        loss_S = loss_S + kl * penalty(given)
    return loss_S.sum() / weight


# -- TRL's own functions, on padded tensors


def padded(flat_M: Tensor, tokens: tuple[int, ...] = LENGTHS) -> Tensor:
    parts = torch.split(flat_M, list(tokens))
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


class Metrics(defaultdict[str, Any]):
    def __init__(self) -> None:
        super().__init__(lambda: defaultdict(list))


def trl(name: str, given: Samples, kl: float = 0.0) -> Tensor:
    """`_compute_loss` of TRL's trainers, with TRL's defaults."""
    mask = padded(torch.ones_like(given.old_M), given.tokens)
    logp = padded(given.logp_M, given.tokens)
    low, high = {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}.get(name, (0.2, 0.2))
    itself = SimpleNamespace(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if name == "gspo" else "token",
        beta=kl,
        loss_type="grpo" if name in ("gspo", "raft") else name,
        epsilon_low=low,
        epsilon_high=high,
        args=SimpleNamespace(delta=None, steps_per_generation=1, use_bias_correction_kl=True),
        use_vllm=given.weight_M is not None,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=False),
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x
        ),
        _entropy_bonus_enabled=False,
        _metrics=Metrics(),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(len(given.tokens), 1).long(),
        "prompt_mask": torch.ones(len(given.tokens), 1).long(),
        "completion_ids": torch.zeros(mask.shape).long(),
        "completion_mask": mask,
        "advantages": given.advantage_S,
        "old_per_token_logps": padded(given.old_M, given.tokens),
        "old_logps": padded(given.old_M, given.tokens).sum(1),
        **({"ref_per_token_logps": padded(given.reference_M, given.tokens)} if given.reference_M is not None else {}),
        "num_items_in_batch": mask.sum(),
        **({"importance_sampling_ratio": padded(given.weight_M, given.tokens)} if given.weight_M is not None else {}),
    }
    module = pytest.importorskip("trl.trainer.rloo_trainer" if name == "rloo" else "trl.trainer.grpo_trainer")
    trainer = module.RLOOTrainer if name == "rloo" else module.GRPOTrainer
    loss: Tensor = trainer._compute_loss(itself, itself.model, inputs)
    return loss


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "kl"), [*((name, 0.0) for name in LOSSES), *((name, 0.3) for name in PENALISED)])
def test_losses_and_gradients_equal_trls(name: str, kl: float, seed: int) -> None:
    """Off policy, some ratios beyond the clips, with and without KL."""
    given = samples(seed)
    (expected,) = torch.autograd.grad(trl(name, given, kl), given.logp_M)
    (actual,) = torch.autograd.grad(ours(name, given, kl), given.logp_M)
    assert float(ours(name, given, kl).detach()) == pytest.approx(float(trl(name, given, kl).detach()), abs=1e-10)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-10)
    assert bool(expected.any())


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_the_gradient_is_weighted_likelihood(name: str) -> None:
    given = replace(samples(), old_M=samples().logp_M.detach())
    (actual,) = torch.autograd.grad(ours(name, given), given.logp_M)
    tokens_S, advantage_S = torch.tensor(LENGTHS, dtype=torch.float64), given.advantage_S
    per_token_S = {
        "grpo": advantage_S / tokens_S / len(LENGTHS),
        "gspo": advantage_S / tokens_S / len(LENGTHS),
        "raft": advantage_S / tokens_S / len(LENGTHS),
        "dr_grpo": advantage_S / (len(LENGTHS) * LONGEST),
        "dapo": advantage_S / tokens_S.sum(),
        "rloo": advantage_S / len(LENGTHS),
    }[name]
    assert torch.allclose(actual, -torch.repeat_interleave(per_token_S, torch.tensor(LENGTHS)), rtol=0, atol=1e-12)


def test_length_bias_is_that_of_the_paper() -> None:
    """Two samples of 2 and 8 tokens and equal advantage: a token of the short one counts 4 times in GRPO, and as much
    in Dr. GRPO and DAPO."""
    for name, expected in (("grpo", 4.0), ("dr_grpo", 1.0), ("dapo", 1.0)):
        logp_M = torch.zeros(10, dtype=torch.float64, requires_grad=True)
        given = Samples(logp_M, logp_M.detach(), (2, 8), torch.ones(2, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(LOSSES[name].function(given).sum(), logp_M)
        assert float(gradient[0] / gradient[9]) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["rloo", "dr_grpo"])
def test_the_expected_gradient_is_that_of_the_expected_reward(name: str) -> None:
    """Over all groups of two samples from three answers of one token each: exactly for RLOO; for Dr. GRPO up to the
    factor (G - 1) / G, because a sample is in its own baseline."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reward = np.array([0.1, 1.0, 0.4])
    (wanted,) = torch.autograd.grad((logits.softmax(0) * torch.from_numpy(reward)).sum(), logits)
    total = torch.zeros(3, dtype=torch.float64)
    for pair in itertools.product(range(3), repeat=2):
        prob = float(logits.detach().softmax(0)[list(pair)].prod())
        advantage_S = torch.from_numpy(LOSSES[name].advantages(reward[list(pair)][None])[0])
        logp_M = logits.log_softmax(0)[list(pair)]
        given = Samples(logp_M, logp_M.detach(), (1, 1), advantage_S)
        (gradient,) = torch.autograd.grad(LOSSES[name].function(given).mean(), logits)
        total += prob * gradient
    assert torch.allclose(-total, wanted * (1.0 if name == "rloo" else 0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PENALISED)
def test_weights_of_another_sampler_are_trls(name: str) -> None:
    given = replace(samples(), weight_M=torch.linspace(0.2, 2, sum(LENGTHS), dtype=torch.float64))
    (expected,) = torch.autograd.grad(trl(name, given, 0.3), given.logp_M)
    (actual,) = torch.autograd.grad(ours(name, given, 0.3), given.logp_M)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-10)


def test_the_expected_gradient_of_the_penalty_is_that_of_the_divergence() -> None:
    """Of the policy from the reference, over all answers of one token; without the ratio it would be another."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([1.0, 0.1, -0.5], dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    (wanted,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), logits)
    totals = torch.zeros(2, 3, dtype=torch.float64)
    for token in range(3):
        logp_M = logits.log_softmax(0)[token : token + 1]
        given = Samples(logp_M, logp_M.detach(), (1,), torch.zeros(1), reference[token : token + 1])
        prob = float(logp_M.detach().exp())
        penalty = LOSSES["dr_grpo"].penalty
        assert penalty is not None
        for n, estimate in enumerate((penalty(given).sum(), policy_losses.k3(given).sum())):
            (gradient,) = torch.autograd.grad(estimate, logits, retain_graph=True)
            totals[n] += prob * gradient
    assert torch.allclose(totals[0], wanted, rtol=0, atol=1e-12)
    assert not torch.allclose(totals[1], wanted, rtol=0, atol=1e-2)


def test_what_is_clipped_has_no_gradient() -> None:
    for name, loss in LOSSES.items():
        given = samples()
        (gradient_M,) = torch.autograd.grad(loss.function(given).sum(), given.logp_M)
        assert torch.equal(gradient_M == 0, loss.clips(given)), name


# -- advantages


@given(REWARDS)
def test_advantages_are_of_a_prompts_own_group(reward_NG: Any) -> None:
    for name, loss in LOSSES.items():
        advantage_NG = loss.advantages(reward_NG)
        assert np.isfinite(advantage_NG).all()
        assert name == "raft" or np.allclose(advantage_NG.sum(1), 0, atol=1e-9)
        assert np.array_equal(loss.advantages(reward_NG[::-1]), advantage_NG[::-1]), "prompts are independent"
        for group_G, own_G in zip(reward_NG, advantage_NG, strict=True):
            scored = group_G[~np.isnan(group_G)]
            assert (own_G[np.isnan(group_G)] == 0).all(), "what has no reward is not trained on"
            if len(scored) < 2 or scored.max() == scored.min():
                assert (own_G == 0).all(), "exactly, not nearly"
            else:
                assert np.array_equal(own_G[~np.isnan(group_G)], loss.advantages(scored[None])[0]), "nor in a mean"
            bound = (len(scored) - 1) / math.sqrt(len(scored) or 1) if name in ("grpo", "dapo", "gspo") else 1.0
            assert (abs(own_G) <= max(bound, 0.0) + 1e-9).all()


def test_equal_rewards_that_float32_would_amplify() -> None:
    for value in (0.2, 0.1, 1 / 3):
        assert not policy_losses.scaled(np.full((1, 7), value)).any()


def test_advantages_are_trls() -> None:
    reward_NG = np.random.default_rng(0).random((4, 8))
    mean, std = reward_NG.mean(1, keepdims=True), torch.from_numpy(reward_NG).std(1, keepdim=True).numpy()
    assert np.allclose(policy_losses.scaled(reward_NG), (reward_NG - mean) / (std + 1e-4), rtol=0, atol=1e-12)
    others = (reward_NG.sum(1, keepdims=True) - reward_NG) / 7
    assert np.allclose(policy_losses.leave_one_out(reward_NG), reward_NG - others, rtol=0, atol=1e-12)


def test_raft_trains_on_the_best_sample_of_each_prompt() -> None:
    rewards = np.array([[0.1, 0.9, 0.9, np.nan], [0.5, 0.5, 0.5, 0.5], [np.nan, 0.0, 0.2, 0.1]])
    assert policy_losses.best(rewards).tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


# -- the method


def plan(name: str = "dr_grpo", **more: Any) -> Plan:
    options = MethodOptions(loss_type=name, temperature=more.pop("temperature", 1.0))  # type: ignore[arg-type]
    given = {"method": "grpo", "layout": "shared", "max_new_tokens": LONGEST, "batch_size": 3, "options": options}
    return plan_of(**{**given, **more})


def sampled(flat: bool = False) -> list[TrainRow]:
    """Three prompts with four samples each, some of which begin alike; one group is of equal rewards."""
    random, made = np.random.default_rng(0), []
    for row in range(3):
        answers = [[10 + row, *random.integers(0, 250, n).tolist(), 256] for n in (1, 4, 2, 6)]
        advantage = np.zeros(4) if flat or row == 1 else np.array([1.0, -0.5, 0.0, -0.5]) * (row + 1)
        own = tuple(prompt_then_answer([5, 6, 7 + row] * 3, a, row) for a in answers)
        made.append(TrainRow(own, row, {"advantage_S": advantage, "statistics": np.arange(6.0) + row}))
    return made


def loss_and_gradient(model: LanguageModel, rows: list[TrainRow], asked: Plan) -> tuple[float, Tensor]:
    model.module.zero_grad(set_to_none=True)
    parts = grpo.microbatches(model, rows, range(len(rows)), asked, 0)
    weight, total = sum(map(grpo.weight, parts)), 0.0
    for part in parts:
        loss = grpo.loss(model, part, asked).sum / weight
        loss.backward()
        total += float(loss.detach())
    grads = [p.grad for p in adapters.trainable(model.module).values() if p.grad is not None]
    return total, torch.cat([g.flatten() for g in grads])


def by_hand(model: LanguageModel, rows: list[TrainRow], asked: Plan) -> Tensor:
    """Autograd through transformers' own logits, one sample at a time."""
    model.module.zero_grad(set_to_none=True)
    loss, weights = torch.zeros((), dtype=torch.float64), 0.0
    pairs = [(s, a) for r in rows for s, a in zip(r.sequences, r.signal["advantage_S"], strict=True)]
    for sequence, advantage in pairs:
        ids, start = torch.tensor([sequence.ids]), sequence.weights.index(1.0)
        logp = (model.module(ids, use_cache=False).logits[0, start - 1 : -1] / asked.options.temperature).log_softmax(
            -1
        )
        own = logp.gather(1, ids[0, start:, None]).sum()
        name, tokens = asked.options.loss_type, len(sequence.ids) - start
        loss = loss - advantage * own * (1 / tokens if name in ("grpo", "gspo", "raft") else 1.0)
        weights += {"dr_grpo": float(LONGEST), "dapo": float(tokens)}.get(name, 1.0)
    (loss / weights).backward()
    grads = [p.grad for p in adapters.trainable(model.module).values() if p.grad is not None]
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_the_gradient_of_a_step_does_not_depend_on_its_passes(name: str, layout: str) -> None:
    model, rows = with_adapter("llama", torch.float64, vocabulary=300), sampled()
    wanted = by_hand(model, rows, plan(name, temperature=1.3))
    for capacity in (4096, 40):
        _, actual = loss_and_gradient(model, rows, plan(name, layout=layout, tokens_per_pass=capacity, temperature=1.3))
        assert torch.allclose(actual, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PENALISED)
@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_a_later_update_with_kl_is_trls_whatever_the_passes(name: str, layout: str) -> None:
    """The whole step, from tokens to the gradient of the adapter: against TRL on transformers' own logits."""
    model, rows = with_adapter("llama", torch.float64, vocabulary=300), sampled()
    options = MethodOptions(loss_type=name, kl_weight=0.3, num_iterations=2, temperature=1.3)  # type: ignore[arg-type]
    asked = plan(name).model_copy(update={"options": options})
    logp_M, tokens = by_transformers(model, rows, 1.3)
    random = torch.Generator().manual_seed(0)
    old_M, reference_M = (
        logp_M.detach() + 0.2 * torch.randn(len(logp_M), generator=random, dtype=torch.float64) for _ in range(2)
    )
    advantage_S = torch.from_numpy(np.concatenate([r.signal["advantage_S"] for r in rows]))
    model.module.zero_grad(set_to_none=True)
    wanted_loss = trl(name, Samples(logp_M, old_M, tokens, advantage_S, reference_M), 0.3)
    wanted_loss.backward()
    wanted = torch.cat([p.grad.flatten() for p in adapters.trainable(model.module).values() if p.grad is not None])
    ends = np.cumsum([sum(len(s.ids) - s.weights.index(1.0) for s in r.sequences) for r in rows])[:-1]
    stored = [np.split(x.numpy(), ends) for x in (old_M, reference_M)]
    given = [
        replace(r, signal={**r.signal, "old_M": stored[0][n], "reference_M": stored[1][n]}) for n, r in enumerate(rows)
    ]
    for capacity in (4096, 40):
        own = asked.model_copy(update={"layout": layout, "tokens_per_pass": capacity})
        loss, actual = loss_and_gradient(model, given, own)
        assert loss == pytest.approx(float(wanted_loss.detach()), abs=1e-10)
        assert torch.allclose(actual, wanted, rtol=0, atol=1e-10)
    part = grpo.loss(model, grpo.microbatches(model, given, range(3), asked, 0)[0], asked)
    assert part.metrics["kl"] > 0
    assert part.metrics["clipped"] > 0


def by_transformers(model: LanguageModel, rows: list[TrainRow], temperature: float) -> tuple[Tensor, tuple[int, ...]]:
    parts = []
    for sequence in (s for r in rows for s in r.sequences):
        ids, start = torch.tensor([sequence.ids]), sequence.weights.index(1.0)
        logits = model.module(ids, use_cache=False).logits[0, start - 1 : -1] / temperature
        parts.append(logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0])
    return torch.cat(parts), tuple(map(len, parts))


def test_samples_of_advantage_0_are_not_computed_and_count_in_the_divisor() -> None:
    model, rows = with_adapter("llama", torch.float64, vocabulary=300), sampled()
    parts = grpo.microbatches(model, rows, range(3), plan(tokens_per_pass=40), 0)
    assert sum(len(p.signal["tokens_S"]) for p in parts) == 6
    assert sum(map(grpo.weight, parts)) == 12 * LONGEST


def test_a_step_without_differences_changes_nothing_and_does_not_fail() -> None:
    model, rows = with_adapter("llama", torch.float64, vocabulary=300), sampled(flat=True)
    learner = step.make_learner(model, plan())
    before = [p.detach().clone() for p in learner.parameters.values()]
    taken = step.take_step(learner, rows, plan(), 0)
    assert taken.norm == 0
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters.values(), strict=True))


def test_the_statistics_of_a_step_are_means_over_its_prompts() -> None:
    model = with_adapter("llama", torch.float64, vocabulary=300)
    for name in LOSSES:
        asked = plan(name, tokens_per_pass=40)
        taken = step.take_step(step.make_learner(model, asked), sampled(), asked, 0)
        assert list(taken.metrics) == list(grpo.STATISTICS)
        assert list(taken.metrics.values()) == pytest.approx([1, 2, 3, 4, 5, 6])


def test_a_prompt_is_prepared_as_it_is_served() -> None:
    template = Template(byte_tokenizer())
    chat = Chat((Message("user", "q"), Message("assistant", "")), "x:1", item={})
    (row,) = grpo.prepare(template, chat, 0, None)
    (sequence,) = row.sequences
    assert template.tokenizer.decode(sequence.ids) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<|im_end|>"
    assert [i for i, w in zip(sequence.ids, sequence.weights, strict=True) if w] == [template.eos]
    with pytest.raises(DataError, match="DATA_FORM_UNSUPPORTED"):
        grpo.prepare(template, replace(chat, item=None), 0, None)


def test_calibration_and_profile_need_no_samples() -> None:
    model, template = with_adapter("llama", torch.float32, vocabulary=300), Template(byte_tokenizer())
    chats = [Chat((Message("user", f"q{n}"), Message("assistant", "")), "x:1", item={}) for n in range(5)]
    rows = [METHODS["grpo"].prepare(template, chat, n, None)[0] for n, chat in enumerate(chats)]
    assert profile.calibrate(model, rows, plan()).tokens_per_second > 0
    assert profile.measure(model, rows, plan(), 100.0).seconds > 0
