"""The rollouts of a run: what `train.rollouts` needs, from its config, data and model."""

from __future__ import annotations

from tunewright.core.config import REWARDED
from tunewright.model import adapters
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.answers import Answers
from tunewright.train.rollouts import Rollouts


def of(answers: Answers, model: LanguageModel) -> Rollouts | None:
    """None for methods that learn from rows alone. ``model``: as it is before training. Answers are as long, and end
    as, those of the verdict's arms."""
    if answers.plan.method not in REWARDED:
        return None
    run, data, decoding = answers.run, answers.data, answers.answering(model).decoding
    template, warn = answers.inputs.template, answers.console.warn
    start = None
    if answers.plan.options.kl_weight and answers.plan.adapter.start is not None:
        start = {name: t.detach().clone() for name, t in adapters.update_tensors(model.module).items()}
    return Rollouts(template, data.examples, data.task, decoding, run.path / "rollouts", warn, start)
