"""Training methods, one module each, by the name in `Plan.method`. `method.Method` defines their functions."""

from collections.abc import Sequence

import torch

from tunewright.core.config import Plan
from tunewright.methods import distill, sft
from tunewright.methods.method import Method
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TrainRow

METHODS: dict[str, Method] = {"sft": sft, "distill": distill}


def annotated(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan) -> list[TrainRow]:
    """The rows with what the plan's method computes once for each before its loss can be computed."""
    with torch.no_grad():
        return METHODS[plan.method].annotate(model, rows, plan)
