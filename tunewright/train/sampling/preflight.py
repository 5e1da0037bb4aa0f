"""Rewards, before anything is trained on them: whether there is something to learn, and whether it is the task.

Axes: N prompts, G samples of a prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tunewright.core.config import Plan
from tunewright.core.errors import ConfigError
from tunewright.core.records import RolloutLine
from tunewright.core.words import counted
from tunewright.data.graders import graders
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing
from tunewright.tokens.sequences import TrainRow
from tunewright.train.sampling.rollouts import WHERE, Rollouts

# Conventions, not measurements.
PROMPTS = 16
LEAST_UNEQUAL = 0.1  # of the groups
HIGH, WORTH = 90, 0.1  # percentile of the rewards of samples; what an empty or echoed answer may earn in any case
ALIKE, CONSTANT_WORTH = (
    0.9,
    0.5,
)  # a constant answer is one of the samples: it may earn what is a first step of the task
SHOWN = 80  # characters


@dataclass(frozen=True)
class Preflight:
    """``mean`` reward of the samples of the untrained model, and how many groups have unequal rewards."""

    prompts: int
    samples: int
    mean: float
    unequal: int

    @property
    def sentence(self) -> str:
        return (
            f"rewards before training: mean {self.mean:.3f} of {self.samples} samples; unequal in {self.unequal} of "
            f"{counted(self.prompts, 'prompt')}"
        )


def preflight(rollouts: Rollouts, model: LanguageModel, rows: Sequence[TrainRow], plan: Plan) -> Preflight:
    """Samples a few training prompts. Raises REWARD_FLAT, REWARD_TRIVIAL and REWARD_FAILED."""
    part = [rows[i] for i in packing.epoch_order(len(rows), plan.seed, 0)[:PROMPTS]]
    # A step that training does not have, so that these samples are not those of one.
    _, lines = rollouts.read_or_draw(model, part, plan, plan.steps, rollouts.folder / "preflight.jsonl")
    graders.require_scored(rollouts.checked([(line.row, line.text) for line in lines]), "reward.check")
    reward_NG = np.array([line.reward or 0.0 for line in lines]).reshape(len(part), -1)
    unequal = int((reward_NG.max(1) != reward_NG.min(1)).sum())
    if unequal < LEAST_UNEQUAL * len(part):
        raise ConfigError(
            "REWARD_FLAT",
            f"in {len(part) - unequal} of {len(part)} prompts, all {reward_NG.shape[1]} samples have the same reward "
            f"(mean {reward_NG.mean():.3f}), so there is nothing to learn from them.",
            where=WHERE,
            fix="if the mean is low, give partial credit, use easier prompts, or fine-tune on answers first and "
            "continue with adapter.start; if it is high, use harder prompts or a stricter grader.",
        )
    for answer, what, limit in _trivial(lines, reward_NG):
        texts = [rollouts.examples[r.row].question if answer is None else answer for r in part]
        graded = rollouts.graded([(r.row, text) for r, text in zip(part, texts, strict=True)])
        mean = float(np.mean([g.reward or 0.0 for g in graded]))
        if mean >= limit:
            quoted = repr(texts[0][:SHOWN]) + ("..." if len(texts[0]) > SHOWN else "")
            raise ConfigError(
                "REWARD_TRIVIAL",
                f"{what} ({quoted}) has a mean reward of {mean:.3f} on {counted(len(part), 'prompt')}; the model's own "
                f"samples have {reward_NG.mean():.3f}.",
                where=WHERE,
                fix="change the grader so that this answer earns less; training would exploit it.",
            )
    return Preflight(len(part), reward_NG.size, float(reward_NG.mean()), unequal)


def _trivial(
    lines: Sequence[RolloutLine], reward_NG: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> Iterator[tuple[str | None, str, float]]:
    """Answers that ignore the prompt (None: the prompt itself), what they are, and the reward that is too high."""
    high = max(float(np.percentile(reward_NG, HIGH)), WORTH)
    yield "", "an empty answer", high
    yield None, "the prompt as its own answer", high
    if len({line.row for line in lines}) < 2:
        return
    best = max(lines, key=lambda line: line.reward or 0.0)
    frequent, _ = Counter(line.text for line in lines).most_common(1)[0]
    for text in dict.fromkeys((best.text, frequent)):
        yield text, "one answer to all prompts", max(ALIKE * float(reward_NG.max()), CONSTANT_WORTH)
