"""Rewards: what is compared with what, which samples are trained on, and by whom they were drawn."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from build import LORA, byte_tokenizer, plan_of, tiny_model
from endpoints import endpoint

from faults import Fault, Patch, refused
from tunewright.core import records
from tunewright.core.config import MethodOptions, Plan
from tunewright.core.records import ROLLOUT
from tunewright.data.graders import graders, reward_model
from tunewright.data.graders.grade import Output
from tunewright.data.graders.reward_model import RewardModel
from tunewright.data.graders.score_model import ScoreModel
from tunewright.data.messages import Chat, Message, question
from tunewright.data.metrics import METRICS
from tunewright.data.task import REWARDS, Task
from tunewright.judge import pass_at_k
from tunewright.methods import METHODS, grpo, policy_losses
from tunewright.methods.policy_losses import LOSSES, Samples
from tunewright.model import adapters, forward
from tunewright.model.decoding import sample
from tunewright.model.decoding.generate import Decoding
from tunewright.model.decoding.sample import Draw
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.grading import reward_models
from tunewright.runtime.grading.reward_models import Loaded
from tunewright.stages.experiments import rewards
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template
from tunewright.train import step
from tunewright.train.sampling import preflight, rollouts
from tunewright.train.sampling.rollouts import Rollouts

TEMPLATE = Template(byte_tokenizer())
CHATS = [
    Chat((Message("user", f"letter {n}, please"), Message("assistant", "")), f"x:{n}", item={"n": n}) for n in range(8)
]
ROWS = [METHODS["grpo"].prepare(TEMPLATE, chat, n, None)[0] for n, chat in enumerate(CHATS)]
VARIED = "import zlib\n    return zlib.crc32(repr((sample['output_text'], item['n'])).encode()) % 97 / 97"


def plan(**more: Any) -> Plan:
    options = more.pop("options", None) or MethodOptions(
        num_generations=4, loss_type=more.pop("loss_type", "dr_grpo"), temperature=1.3
    )
    given = {"method": "grpo", "layout": "shared", "max_new_tokens": 6, "batch_size": 3, "max_grad_norm": 1e9}
    return plan_of(**{**given, "options": options, "decode_batch_size": 8, **more})


def model() -> LanguageModel:
    module = tiny_model(vocabulary=300)
    adapters.attach(module, LORA, 3)
    return LanguageModel(module, plain_head=True)


def drawing(folder: Path, body: str = VARIED) -> Rollouts:
    spec = {"type": "python", "source": f"def grade(sample, item):\n    {body}\n"}
    task = Task(REWARDS, METRICS["reward"], "", grader=graders.of(spec, "reward.grader"))
    return Rollouts(TEMPLATE, CHATS, task, Decoding(6, (256,), batch_size=8), folder)


def drawn(asked: Plan | None = None, body: str = VARIED) -> tuple[list[TrainRow], list[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        rows = drawing(Path(folder), body).sampled(model(), ROWS, asked or plan(), 0)
        _, *lines = records.read_lines(Path(folder) / "step-000001.jsonl", ROLLOUT)
    return [r for r in rows if "advantage_S" in r.signal], lines


# -- advantages


def a_prompt_is_compared_with_itself() -> None:
    reward_NG = np.array([[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]])
    for name, loss in LOSSES.items():
        assert name == "raft" or np.allclose(loss.advantages(reward_NG).sum(1), 0)


def over_the_batch(patch: Patch) -> None:
    patch.setitem(LOSSES, "dr_grpo", replace(LOSSES["dr_grpo"], advantages=lambda r: r - r.mean()))


def equal_rewards_have_no_advantage() -> None:
    for loss in LOSSES.values():
        for value in (0.1, 0.2, 1 / 3):
            assert not loss.advantages(np.full((1, 7), value)).any()


def in_float32(patch: Patch) -> None:
    def advantages(reward_NG: Any) -> Any:
        narrow = reward_NG.astype(np.float32)
        mean = narrow.sum(1, keepdims=True) * np.float32(1 / narrow.shape[1])
        return ((narrow - mean) / (narrow.std(1, keepdims=True) + 1e-4)).astype(np.float64)

    patch.setitem(LOSSES, "grpo", replace(LOSSES["grpo"], advantages=advantages))


def what_has_no_reward_is_in_no_mean() -> None:
    for loss in LOSSES.values():
        with_gap, without = loss.advantages(np.array([[0.2, np.nan, 0.8]])), loss.advantages(np.array([[0.2, 0.8]]))
        assert with_gap[0].tolist() == [without[0, 0], 0.0, without[0, 1]]


def no_reward_is_zero(patch: Patch) -> None:
    own = policy_losses.centred
    patch.setitem(LOSSES, "dr_grpo", replace(LOSSES["dr_grpo"], advantages=lambda r: own(np.nan_to_num(r))))


# -- losses


def long_samples_count_as_much() -> None:
    """Two samples of 2 and 8 tokens: a token of either has the same gradient in Dr. GRPO and DAPO."""
    for name in ("dr_grpo", "dapo"):
        logp_M = torch.zeros(10, dtype=torch.float64, requires_grad=True)
        given = Samples(logp_M, logp_M.detach(), (2, 8), torch.ones(2, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(LOSSES[name].function(given).sum(), logp_M)
        assert torch.allclose(gradient, gradient[0])


def a_mean_over_tokens(patch: Patch) -> None:
    patch.setitem(LOSSES, "dr_grpo", replace(LOSSES["dr_grpo"], function=policy_losses.grpo))


def the_divisor_is_of_the_whole_step() -> None:
    rows, _ = drawn()
    gradients = []
    for capacity in (4096, 40):
        lm = model()
        step.take_step(step.make_learner(lm, plan()), rows, plan(tokens_per_pass=capacity, batch_size=len(rows)), 0)
        gradients.append(
            torch.cat([p.grad.flatten() for p in adapters.trainable(lm.module).values() if p.grad is not None])
        )
    assert float(gradients[0].norm()) > 0
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def a_mean_of_passes(patch: Patch) -> None:
    summed = grpo.loss

    def mean(lm: Any, microbatch: Any, asked: Plan) -> Any:
        loss = summed(lm, microbatch, asked)
        return replace(loss, sum=loss.sum / grpo.weight(microbatch))

    patch.setattr(grpo, "loss", mean)


def the_clip_is_on_the_side_that_gains() -> None:
    """Beyond the clip, a good answer gains nothing more, and a bad one still loses."""
    logp_M = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    given = Samples(logp_M, torch.zeros(2, dtype=torch.float64), (1, 1), torch.tensor([1.0, -1.0], dtype=torch.float64))
    for loss in LOSSES.values():
        (gradient,) = torch.autograd.grad(loss.function(given).sum(), logp_M)
        assert float(gradient[0]) == 0
        assert float(gradient[1]) > 0


def a_maximum(patch: Patch) -> None:
    def clipped(ratio: Any, advantage: Any, clip: Any) -> Any:
        low, high = clip
        return -torch.maximum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)

    patch.setattr(policy_losses, "clipped", clipped)


# -- samples


def the_stop_token_is_trained() -> None:
    rows, lines = drawn()
    assert any(line.finish == "stop" for line in lines) or all(len(line.ids) == 6 for line in lines)
    lm = LanguageModel(tiny_model(vocabulary=300), plain_head=True)
    (group,) = sample.sample(lm, [(0, [5, 6])], 60, Decoding(6, tuple(range(0, 300, 3))), Draw(0, 0))
    assert any(s.finish == "stop" for s in group)
    assert all((s.ids[-1] % 3 == 0) is (s.finish == "stop") for s in group)
    assert [s.ids for r in rows for s in r.sequences]


def without_its_end(patch: Patch) -> None:
    own = sample.sample

    def cut(*given: Any, **more: Any) -> Any:
        return [
            [
                replace(s, ids=s.ids[:-1] or s.ids, logp=s.logp[:-1] or s.logp) if s.finish == "stop" else s
                for s in group
            ]
            for group in own(*given, **more)
        ]

    patch.setattr(sample, "sample", cut)


def training_has_the_temperature_of_sampling() -> None:
    drawn()


def another_temperature(patch: Patch) -> None:
    logp = forward.logp
    patch.setattr(forward, "logp", lambda *given, **more: logp(*given, **{**more, "temperature": 1.0}))


def samples_are_not_those_of_older_weights() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lm, how = model(), drawing(Path(folder))
        how.sampled(lm, ROWS, plan(), 0)
        before = (Path(folder) / "step-000001.jsonl").read_bytes()
        with torch.no_grad():
            for p in adapters.trainable(lm.module).values():
                p.add_(0.1)
        how.sampled(lm, ROWS, plan(), 0)
        assert (Path(folder) / "step-000001.jsonl").read_bytes() != before


def any_weights_will_do(patch: Patch) -> None:
    patch.setattr(rollouts, "_weights_sha256", lambda lm: "")


def a_sample_is_what_it_is_alone() -> None:
    lm = LanguageModel(tiny_model(vocabulary=300), plain_head=True)
    prompts = [(row, [5, 6, 7 + row]) for row in range(4)]
    together = sample.sample(lm, prompts, 3, Decoding(6, (256,)), Draw(0, 0))
    alone = [sample.sample(lm, [p], 3, Decoding(6, (256,)), Draw(0, 0))[0] for p in prompts]
    assert [[s.ids for s in group] for group in together] == [[s.ids for s in group] for group in alone]


def one_stream(patch: Patch) -> None:
    shared = np.random.default_rng(0)
    patch.setattr(sample, "_noise", lambda draw, row, number, length: shared.random(length))


def graders_read_what_was_written() -> None:
    _, lines = drawn()
    for line in lines:
        assert "<|im_" not in line.text
        assert "please" not in line.text, "the prompt is no answer"


def special_tokens_are_text(patch: Patch) -> None:
    own = Rollouts._text
    patch.setattr(Rollouts, "_text", lambda self, row, ids: own(self, row, ids) + "<|im_end|>")


def failures_stop_the_run() -> None:
    refused("REWARD_FAILED", lambda: drawn(body="return 1 / 0"))


def failures_are_zero(patch: Patch) -> None:
    patch.setattr(graders, "require_scored", lambda graded, where: None)


# -- rewards


def checked(body: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return preflight.preflight(drawing(Path(folder), body), model(), ROWS, plan())


def a_flat_reward_is_refused() -> None:
    refused("REWARD_FLAT", lambda: checked("return 0.25"))


def flat_is_fine(patch: Patch) -> None:
    patch.setattr(preflight, "LEAST_UNEQUAL", 0.0)


def a_reward_of_nothing_is_refused() -> None:
    refused("REWARD_TRIVIAL", lambda: checked("return max(0.0, 1 - len(sample['output_text']) / 9)"))


def nothing_is_tried(patch: Patch) -> None:
    def none(lines: Sequence[Any], reward_NG: Any) -> Any:
        return iter(())

    patch.setattr(preflight, "_trivial", none)


# -- several updates, the reference, evidence, models that grade


def the_divergence_is_that_of_the_policy() -> None:
    """Its estimate is never negative, 0 at the reference, and its gradient pulls towards the reference."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference, logp = torch.tensor([1.0, 0.1, -0.5], dtype=torch.float64).log_softmax(0), logits.log_softmax(0)
    (wanted,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), logits)
    given = Samples(logits.log_softmax(0), logp.detach(), (1, 1, 1), torch.zeros(3), reference)
    penalty = LOSSES["dr_grpo"].penalty
    assert penalty is not None
    assert (policy_losses.k3(given) >= 0).all()
    (gradient,) = torch.autograd.grad((penalty(given) * logp.detach().exp()).sum(), logits)
    assert torch.allclose(gradient, wanted, atol=1e-12)


def with_its_sign_swapped(patch: Patch) -> None:
    def k3(samples: Samples) -> Any:
        delta_M = samples.logp_M - samples.reference_M
        return delta_M.exp() - delta_M - 1

    patch.setattr(policy_losses, "k3", k3)


def several(folder: Path) -> tuple[Plan, Rollouts, LanguageModel]:
    """After the first of two updates for a rollout, and the two of the one before."""
    asked = plan(options=MethodOptions(num_generations=4, num_iterations=2, kl_weight=0.1, temperature=1.3))
    how, lm = drawing(folder), model()
    for at in range(3):
        how.sampled(lm, ROWS, asked, at)
        with torch.no_grad():
            for p in adapters.trainable(lm.module).values():
                p.add_(0.02)
    return asked, how, lm


def ratios_are_to_the_model_that_drew_the_samples() -> None:
    with tempfile.TemporaryDirectory() as folder:
        asked, how, lm = several(Path(folder))
        rows = [r for r in how.sampled(lm, ROWS, asked, 3) if "old_M" in r.signal]
        _, *lines = records.read_lines(Path(folder) / "step-000003.jsonl", ROLLOUT)
    assert rows
    for row in rows:
        drawn_M = np.concatenate([x.logp for x in lines if x.row == row.row])  # type: ignore[union-attr]
        old_M = row.signal["old_M"]
        assert np.allclose(old_M[old_M != 0], drawn_M[old_M != 0], atol=1e-3), "as the sampler has them"


def of_the_model_as_it_is_now(patch: Patch) -> None:
    own = Rollouts._drawn_before

    def again(self: Rollouts, rows: Any, asked: Plan, at: int, file: Path) -> Any:
        start, lines = own(self, rows, asked, at, file)
        done = self._rows(rows, lines, asked, 0.0)
        moved = model()
        with torch.no_grad():
            for p in adapters.trainable(moved.module).values():
                p.add_(0.06)
        return start, self._with_logp(moved, done, lines, asked, ["old_M"])

    patch.setattr(Rollouts, "_drawn_before", again)


def the_best_of_k_is_unbiased() -> None:
    """Over all outcomes of 4 samples that are right with probability 0.3: the expected estimate is 1 - 0.7 ** 2."""
    outcomes = [[float(n >> bit & 1) for bit in range(4)] for n in range(16)]
    probs = [0.3 ** sum(own) * 0.7 ** (4 - sum(own)) for own in outcomes]
    expected = sum(p * pass_at_k.highest_of([own], 2)[0] for p, own in zip(probs, outcomes, strict=True))
    assert abs(expected - (1 - 0.7**2)) < 1e-12


def by_the_plain_formula(patch: Patch) -> None:
    patch.setattr(pass_at_k, "highest_of", lambda r, k: 1 - (1 - np.asarray(r).mean(1)) ** k)


def raft_has_no_more_tokens() -> None:
    with tempfile.TemporaryDirectory() as folder:
        how, asked, lm = drawing(Path(folder)), plan(steps=5), model()
        data = SimpleNamespace(rows={"train": ROWS})
        work: Any = SimpleNamespace(
            plan=asked, inputs=data, answers=None, models=SimpleNamespace(untrained=lambda _: lm)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rewards.rollouts, "of", lambda answers, lm: how)
            patch.setattr(rewards, "prompts_asked", lambda work: len(ROWS))
            for budget in (20, 100, 400):
                chosen, spent = rewards.best_samples(work, budget)
                assert budget - 6 <= spent <= budget
                assert len(chosen) <= len(ROWS)


def as_many_samples(patch: Patch) -> None:
    own = rewards.best_samples
    patch.setattr(rewards, "best_samples", lambda work, budget: own(work, 2 * budget))


def a_grade_is_of_the_grader_that_is_set() -> None:
    def graded(model_name: str, file: Path, url: str) -> Any:
        asked = [{"role": "user", "content": "{{ sample.output_text }}"}]
        spec = {"type": "score_model", "model": model_name, "url": url, "input": asked}
        grader = graders.stored_in(graders.of(spec, "reward.grader"), file)
        return graders.grade_all(grader, [({}, Output("x"))])[0].reward

    lot = iter(["0.2", "0.7"])
    with tempfile.TemporaryDirectory() as folder, endpoint(lambda asked: next(lot)) as (url, _):
        file = Path(folder) / "grades.jsonl"
        assert [graded(name, file, url) for name in ("one", "two", "one")] == [0.2, 0.7, 0.2]


def whoever_graded(patch: Patch) -> None:
    patch.setattr(ScoreModel, "key", lambda self, prompt: prompt.messages[-1].content)


def answers() -> list[Output]:
    return [Output(text, question(asked)) for asked in ("red?", "blue?") for text in ("yes", "no", "yes")]


def a_reward_model_reads_the_prompt() -> None:
    def scores(grader: RewardModel, chats: Sequence[Chat]) -> list[float | str]:
        return [float(len(chat.messages)) + ("red" in chat.question) for chat in chats]

    graded = graders.grade_all(RewardModel("", (0.0, 4.0), scores=scores), [({}, output) for output in answers()])
    assert [g.reward for g in graded] == [0.75] * 3 + [0.5] * 3


def answers_alone_are_scored(patch: Patch) -> None:
    patch.setattr(Output, "__repr__", lambda output: output.text)


def equal_answers_have_equal_scores() -> None:
    """Whatever rounding depends on their place in a batch."""
    noise = iter(range(100))
    loaded = Loaded(TEMPLATE, 1000, lambda rows: [1e-6 * next(noise) for _ in rows])
    first, _, again, other, *_ = reward_models._scored(loaded, [reward_model._conversation(x) for x in answers()])
    assert first == again != other


def each_is_computed(patch: Patch) -> None:
    def scored(model: Loaded, chats: Sequence[Chat]) -> list[float]:
        return model.read([own for chat in chats if not isinstance(own := reward_models._row(model, chat), str)])

    patch.setattr(reward_models, "_scored", scored)


def a_reward_model_is_its_weights() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "reward"}}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        seen = set()
        for content in ("one", "two"):
            (Path(folder) / "model.safetensors").write_text(content)
            seen.add(repr(graders.of({"type": "reward_model", "model": folder}, "reward.grader")))
        assert len(seen) == 2


def it_is_its_folder(patch: Patch) -> None:
    patch.setattr(reward_model.run_folder, "sha256", lambda file: str(file))


FAULTS = [
    Fault(64, "advantages are compared over the batch, not with samples of the same prompt", "grpo-flat 2, Seg-Zero 104", "the advantages of a prompt's samples sum to 0",
          a_prompt_is_compared_with_itself, over_the_batch),
    Fault(65, "equal rewards have an advantage, which the standard deviation amplifies", "verl 4597, NeMo-RL 4161", "a group of equal rewards has advantage 0 exactly",
          equal_rewards_have_no_advantage, in_float32),
    Fault(66, "answers without a reward are in the mean of the others", "verl 6452, TRL 5773", "they are in no mean, and have advantage 0",
          what_has_no_reward_is_in_no_mean, no_reward_is_zero),
    Fault(67, "long wrong answers are spared", "TRL 3138", "in dr_grpo and dapo, a token counts as much in a long sample as in a short one",
          long_samples_count_as_much, a_mean_over_tokens),
    Fault(68, "a step of samples is a mean of means", "open-instruct 1161, TRL 3021", "the gradient does not depend on how samples are divided into passes",
          the_divisor_is_of_the_whole_step, a_mean_of_passes),
    Fault(69, "the ratio is clipped on the wrong side", "", "beyond the clip a good answer gains nothing, and a bad one still loses",
          the_clip_is_on_the_side_that_gains, a_maximum),
    Fault(70, "the stop token of a sample is lost, or another one is not known", "TRL 7039, open-instruct 1041", "a sample ends with the stop token that ended it, which is trained on",
          the_stop_token_is_trained, without_its_end),
    Fault(71, "training ignores the temperature of sampling", "TRL 3029, 4159, NeMo-RL 935", "ROLLOUT_MISMATCH",
          training_has_the_temperature_of_sampling, another_temperature),
    Fault(72, "samples of older weights are trained on", "ms-swift 9855, verl 7495, SkyRL 1776", "stored samples are used only by the weights that drew them",
          samples_are_not_those_of_older_weights, any_weights_will_do),
    Fault(73, "a sample depends on what else is in its batch", "unsloth-zoo 832, ms-swift 9935", "a sample is a function of (seed, step, row, sample)",
          a_sample_is_what_it_is_alone, one_stream),
    Fault(74, "graders read special tokens, or the prompt", "", "graders read the answer's text and nothing else",
          graders_read_what_was_written, special_tokens_are_text),
    Fault(75, "an answer on which the grader fails earns 0", "", "REWARD_FAILED",
          failures_stop_the_run, failures_are_zero),
    Fault(76, "rewards from which nothing can be learned", "", "REWARD_FLAT",
          a_flat_reward_is_refused, flat_is_fine),
    Fault(77, "an empty answer earns as much as a good one", "", "REWARD_TRIVIAL",
          a_reward_of_nothing_is_refused, nothing_is_tried),
    Fault(81, "the KL is estimated with the sign swapped: the reference's, from the policy", "", "the expected gradient of the estimate is that of KL(policy, reference)",
          the_divergence_is_that_of_the_policy, with_its_sign_swapped),
    Fault(82, "ratios are to log-probabilities of another step than the one that drew the samples", "", "at a later update, they are those that the sampler wrote down",
          ratios_are_to_the_model_that_drew_the_samples, of_the_model_as_it_is_now),
    Fault(83, "pass@k is 1 - (1 - c/n)^k, which is biased", "", "the expected estimate is that of k samples",
          the_best_of_k_is_unbiased, by_the_plain_formula),
    Fault(84, "RAFT chooses among more sampled tokens than the run had", "", "its samples have as many tokens, to one sample",
          raft_has_no_more_tokens, as_many_samples),
    Fault(109, "a reward model's score of an answer is taken for that of the same answer to another prompt", "", "a reward model reads prompt and answer",
          a_reward_model_reads_the_prompt, answers_alone_are_scored),
    Fault(110, "equal answers to a prompt have rewards that differ in their last bits, which the standard deviation amplifies", "", "equal answers have equal scores, bit for bit",
          equal_answers_have_equal_scores, each_is_computed),
    Fault(111, "a run continues with a reward model that was trained again", "", "a grader is known by the hash of its weights; RESUME_MISMATCH",
          a_reward_model_is_its_weights, it_is_its_folder),
    Fault(85, "a score that another model gave is read from the cache", "", "another model is asked itself",
          a_grade_is_of_the_grader_that_is_set, whoever_graded),
]  # fmt: skip
