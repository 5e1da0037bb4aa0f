"""Training methods by the name in `Plan.method`. `method.Method` is the contract of their functions.

`train.method` offers those that need nothing but the rows, and grpo, whose rows `sampling.rollouts` makes of prompts.
`distill` also needs a teacher: another model, or the same one with another prompt, neither of which the contract passes
to a method. So a stage that distils first adds the teacher's probabilities to the rows (`distill.with_probabilities`),
and then trains a branch on them with a plan whose method is "distill".
"""

from collections.abc import Sequence

import torch

from tunewright.core.config import Plan
from tunewright.methods import classify, distill, embed, grpo, kto, multilabel, pair_losses, regress, sft, tag
from tunewright.methods.method import Method, Progress
from tunewright.methods.pairs import reward_model
from tunewright.methods.preference import Preference
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TrainRow

METHODS: dict[str, Method] = {
    "sft": sft,
    "classify": classify,
    "regress": regress,
    "multilabel": multilabel,
    "embed": embed,
    "tag": tag,
    "distill": distill,
    "kto": kto,
    "grpo": grpo,
    "reward_model": reward_model,
    **{name: Preference(loss) for name, loss in pair_losses.LOSSES.items()},
}


# What a head that does not choose one label answers, given its logits.
HEAD_ANSWERS = {"regress": regress.answer, "multilabel": multilabel.answer}


def precomputed(
    model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress = lambda _: None
) -> list[TrainRow]:
    """The rows after the `Method.precompute` of the plan's method."""
    with torch.no_grad():
        return METHODS[plan.method].precompute(model, rows, plan, progress)
