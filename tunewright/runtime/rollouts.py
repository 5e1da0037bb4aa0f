"""The rollouts of a run: what `train.rollouts` needs, from its config, data and model."""

from __future__ import annotations

from tunewright.core.config import REWARDED
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.answers import Answers
from tunewright.train.rollouts import Rollouts


def of(answers: Answers, model: LanguageModel) -> Rollouts | None:
    """None for methods that learn from rows alone. Answers are as long, and end as, those of the verdict's arms."""
    if answers.plan.method not in REWARDED:
        return None
    run, data, decoding = answers.run, answers.data, answers.answering(model).decoding
    template, warn = answers.inputs.template, answers.console.warn
    return Rollouts(template, data.examples, data.task, decoding, run.path / "rollouts", warn)
