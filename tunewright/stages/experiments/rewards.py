"""Rows without answers: what several samples of the tuned model are worth, and whether fine-tuning on good samples of
the untrained one, as many tokens of them as the run has sampled, would have done as much.

A policy trained on rewards may only find more certainly what the base writes among several samples (Yue et al. 2025,
2504.13837). Fine-tuning on the best samples (RAFT, Dong et al. 2023, 2304.06767; here one round of it, from the model
before training) is close to GRPO in many tasks (Xiong et al. 2025, 2504.11343).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from tunewright.core import records
from tunewright.core.config import REWARDED
from tunewright.core.records import ROLLOUT, HighestOf, NotMeasured, PairMeasure, Raft, Rewards, RolloutLine, Training
from tunewright.data.scores import Score, mean
from tunewright.judge import pass_at_k
from tunewright.methods import policy_losses
from tunewright.runtime import branches, weights
from tunewright.runtime.branches import Branch
from tunewright.runtime.context import Work
from tunewright.runtime.grading import rollouts
from tunewright.runtime.weights import Weights
from tunewright.stages.experiments import fine_tuning, sft_alone
from tunewright.stages.experiments.sft_alone import Floats
from tunewright.stages.prove import paired
from tunewright.stages.stage import Stage
from tunewright.tokens.packing import epoch_order
from tunewright.tokens.sequences import TokenSequence, TrainRow, prompt_then_answer, single

EPOCHS = 4  # at most, on the best samples: as many as the plan takes for few rows
# Steps that training does not have, counted from its last: the pre-flight's is 0.
TEST, RAFT = 1, 2


def rewards(work: Work) -> Rewards | NotMeasured:
    """Samples answers to the test prompts, by the model before and after training. With experiments.raft, also trains
    the branch."""
    trained = weights.at_chosen_scale(work.run, work.plan)
    if len({work.data.cluster[i] for i in work.inputs.test}) < 2:
        return NotMeasured(reason="there are fewer than two groups of test prompts")
    count, highest, binary, sharper = 0, tuple[HighestOf, ...](), False, False
    if work.config.prove.evidence != "plain":
        work.run.event("test_read", rows=len(work.inputs.test), experiment="rewards")
        count = work.plan.options.num_generations
        before, after = weights.before(work.run, work.plan), trained
        sides = [_on_test(work, which, name) for which, name in ((after, "tuned"), (before, "before"))]
        highest = tuple(HighestOf(k=k, reward=_compared(work, sides, k)) for k in (1, count))
        binary = all(set(np.unique(side)) <= {0.0, 1.0} for side in sides)
        sharper = highest[0].reward.interval.low > 0 >= highest[-1].reward.interval.low
    raft = raft_compared(work, trained) if work.config.experiments.raft else None
    return Rewards(samples=count, binary=binary, highest=highest, sharper=sharper, raft=raft)


def _on_test(work: Work, which: Weights, name: str) -> Floats:
    """reward_NG of samples of the test prompts; 0 where the grader fails."""
    rows, plan = work.inputs.test_rows, work.plan
    plan = plan.model_copy(update={"options": plan.options.model_copy(update={"temperature": 1.0})})
    with work.models.at(which) as model:
        drawn = rollouts.of(work.answers, model)
        assert drawn is not None
        file = drawn.folder / f"test-{name}.jsonl"
        known = f"{which.sha256 or 'base'} {which.scale:g}"
        _, lines = drawn.read_or_draw(model, rows, plan, plan.steps + TEST, file, known)
    return np.array([line.reward or 0.0 for line in lines], np.float64).reshape(len(rows), -1)


def _compared(work: Work, sides: Sequence[Floats], k: int) -> PairMeasure:
    clusters = [work.data.cluster[r.row] for r in work.inputs.test_rows]
    tuned_N, before_N = (pass_at_k.highest_of(side.tolist(), k) for side in sides)
    return sft_alone.measure(work, tuned_N, before_N, clusters, 1.0)


# -- fine-tuning on the best of as many sampled tokens


def raft_compared(work: Work, trained: Weights) -> Raft | None:
    """The run and the branch on the test rows. Trains the branch. None if no prompt has samples of unequal reward."""
    budget = sampled_tokens(work)
    chosen, tokens = best_samples(work, budget)
    if not chosen:
        work.console.warn("rewards: experiments.raft is not measured: no prompt has samples of unequal reward")
        return None
    alone = branches.scores(work, branch(work, chosen), "test")
    tuned = work.answers.of(work.tuned, "test", trained)
    c = paired(work, tuned, alone)
    metric = PairMeasure(run=mean(tuned), other=mean(alone), difference=c.difference, interval=c.interval)
    clusters = [work.data.cluster[i] for i in work.inputs.test]
    check = None
    if work.data.task.check is not None:
        check = sft_alone.measure(work, _checks(tuned), _checks(alone), clusters, 1.0)
    return Raft(tokens=tokens, run_tokens=budget, rows=len(chosen), metric=metric, check=check, verdict=c.verdict)


def _checks(scores: Sequence[Score]) -> Floats:
    return np.array([s.readings.check for s in scores if s.readings and s.readings.check is not None], np.float64)


def branch(work: Work, chosen: Sequence[TokenSequence]) -> Branch:
    """Supervised fine-tuning on these samples: for as many steps as the run, and at most `EPOCHS`."""
    made = fine_tuning.branch(work, "raft", tuple(map(single, chosen)), ())
    most = EPOCHS * -(-len(chosen) // made.plan.batch_size)
    if most >= made.plan.steps:
        return made
    plan = branches.smaller(made.plan, most / made.plan.steps, len(chosen), made.plan.seed)
    return replace(made, plan=plan.model_copy(update={"epochs": float(EPOCHS)}))


def sampled_tokens(work: Work) -> int:
    """Tokens of all samples that the run has trained on."""
    steps, total = records.read(work.run.training, Training).steps, 0
    for file in sorted((work.run.path / "rollouts").glob("step-*.jsonl")):
        if int(re.sub(r"\D", "", file.stem)) <= steps:
            total += sum(len(x.ids) for x in records.read_lines(file, ROLLOUT) if isinstance(x, RolloutLine))
    return total


def prompts_asked(work: Work) -> int:
    """How often the run has asked a prompt: once for all updates of a rollout."""
    rollouts = -(-records.read(work.run.training, Training).steps // work.plan.options.num_iterations)
    return rollouts * work.plan.batch_size


def best_samples(work: Work, budget: int) -> tuple[list[TokenSequence], int]:
    """Of each prompt that is asked, the best of its samples unless all are equal; among samples of at most ``budget``
    tokens in all, which are counted, too."""
    train = work.inputs.rows["train"]
    rows = [train[i] for i in sorted(epoch_order(len(train), work.plan.seed, 0)[: prompts_asked(work)])]
    samples: list[list[RolloutLine]] = [[] for _ in rows]
    spent = 0
    for n, line in _drawn(work, rows):
        if spent + len(line.ids) > budget:
            break
        samples[n].append(line)
        spent += len(line.ids)
    chosen = []
    for row, own in zip(rows, samples, strict=True):
        reward_1G = np.array([[np.nan if x.reward is None else x.reward for x in own]], np.float64)
        if (place := np.flatnonzero(policy_losses.best(reward_1G)[0])).size:
            chosen.append(prompt_then_answer(row.sequences[0].prompt, own[int(place[0])].ids, row.row))
    return chosen, spent


def _drawn(work: Work, rows: Sequence[TrainRow]) -> Iterator[tuple[int, RolloutLine]]:
    """Samples of the untrained model without end, with the place of their prompt: one of each prompt, then another."""
    plan, turn = work.plan, 0
    while True:
        model = work.models.untrained(plan)
        drawn = rollouts.of(work.answers, model)
        assert drawn is not None
        file = drawn.folder / f"raft-{turn + 1:03d}.jsonl"
        _, lines = drawn.read_or_draw(model, rows, plan, plan.steps + RAFT + turn, file)
        count = plan.options.num_generations
        for g in range(count):
            yield from ((n, lines[n * count + g]) for n in range(len(rows)))
        turn += 1


# -- shown to the user


def skip_reason(work: Work) -> str | None:
    if work.plan.method not in REWARDED:
        return "nothing was learned from rewards"
    if work.config.prove.evidence == "plain" and not work.config.experiments.raft:
        return "prove.evidence=plain"
    return None


def lines(record: Rewards | NotMeasured) -> Sequence[str]:
    if isinstance(record, NotMeasured):
        return []
    printed = []
    if record.highest:
        name = "pass@{}" if record.binary else "best of {}"
        parts = [
            f"{name.format(h.k)} {h.reward.other:.3f} -> {h.reward.run:.3f} {h.reward.interval:+.3f}"
            for h in record.highest
        ]
        sharper = "; sharper, not more able" if record.sharper else ""
        printed.append(f"samples at temperature 1, before and after training: {', '.join(parts)}{sharper}")
    if raft := record.raft:
        m = raft.metric
        check = f"; by reward.check {raft.check.run:.3f} and {raft.check.other:.3f}" if raft.check else ""
        printed.append(
            f"  compared with RAFT at as many sampled tokens ({raft.tokens:,} of {raft.run_tokens:,}): {raft.verdict}, "
            f"{m.run:.3f} and {m.other:.3f}, difference {m.difference:+.3f} {m.interval:+.3f}{check}"
        )
    return printed


STAGE = Stage(name="rewards", run=lambda inputs: rewards(inputs.work()), skip_reason=skip_reason, lines=lines)
