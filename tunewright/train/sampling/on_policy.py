"""On-policy distillation: in each step, a fraction of the rows have an answer that the student has just written, in
place of their own, so that it is corrected where it goes wrong itself (GKD, Agarwal et al. 2023, 2306.13649).

Samples are drawn, stored and read back as those of rewards are. The teacher reads them before the step, and therefore
stays in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tunewright.core.config import Plan
from tunewright.core.errors import data_error
from tunewright.data.messages import Example
from tunewright.methods import teaching
from tunewright.model.heads import teacher
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing
from tunewright.tokens.sequences import TrainRow, prompt_then_answer, single
from tunewright.train import step as steps
from tunewright.train.sampling.rollouts import Rollouts


@dataclass(frozen=True)
class OnPolicy:
    """``reader``: the plan's teacher."""

    rollouts: Rollouts
    reader: LanguageModel

    @torch.no_grad()
    def sampled(self, model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, step: int) -> Sequence[TrainRow]:
        """The rows; some of those of step ``step`` (from 0) with an answer of the model as it is, and with what the
        teacher computes of it. Raises ROLLOUT_MISMATCH."""
        assert plan.teacher is not None
        chosen = packing.step_rows(len(rows), plan.batch_size, plan.seed, step)
        own = [i for i in chosen if is_sampled(plan, step, i)]
        if not own:
            return rows
        file, part = self.rollouts.folder / f"step-{step + 1:06d}.jsonl", [rows[i] for i in own]
        _, lines = self.rollouts.read_or_draw(model, part, _one_sample(plan), step, file)
        written = [
            single(prompt_then_answer(row.sequences[0].prompt, line.ids, row.row))
            for row, line in zip(part, lines, strict=True)
        ]
        read = teaching.with_hidden(self.reader, written, teacher.layout(plan.teacher), lambda _: None)
        with_samples = dict(zip(own, read, strict=True))
        return [with_samples.get(i, row) for i, row in enumerate(rows)]

    def dev_loss(self, model: LanguageModel, dev: Sequence[TrainRow], plan: Plan, step: int) -> float:
        """On the rows' own answers, which are the same after every step."""
        return steps.dev_loss(model, dev, plan)


def is_sampled(plan: Plan, step: int, place: int) -> bool:
    """Whether the row at this place has a sample in this step: a function of seed, step and place. The noise of
    samples has other counters."""
    assert plan.teacher is not None
    draw = np.random.Generator(np.random.Philox(key=[plan.seed, step], counter=[0, 1, place, 0])).random()
    return bool(draw < plan.teacher.settings.on_policy)


def longest_sample(rows: Sequence[TrainRow], examples: Sequence[Example], answer: int, context: int) -> int:
    """Tokens of the longest prompt and an ``answer`` of the student, which the teacher reads. Raises DATA_TOO_LONG if
    the student would write beyond its ``context``."""
    longest = max(rows, key=lambda row: len(row.sequences[0].prompt))
    prompt = len(longest.sequences[0].prompt)
    if prompt + answer > context:
        raise data_error(
            "DATA_TOO_LONG",
            f"distill.on_policy lets the model answer this row, whose prompt has {prompt} tokens: with an answer of "
            f"{answer}, more than its context of {context} tokens.",
            where=examples[longest.row].where,
            fix=f"set prove.max_new_tokens={context - prompt}, or leave the row out.",
        )
    return prompt + answer


def _one_sample(plan: Plan) -> Plan:
    """The plan, whose prompts have one sample each, of the student's own distribution."""
    options = plan.options.model_copy(update={"num_generations": 1, "temperature": 1.0})
    return plan.model_copy(update={"options": options})
