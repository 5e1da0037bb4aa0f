"""What makes the rows of a step of what the model writes: for rewards, and for distillation on-policy."""

from __future__ import annotations

from tunewright.core.config import SamplerConfig
from tunewright.model import loading
from tunewright.model.heads import teacher
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.answers import Answers
from tunewright.runtime.grading import rollouts
from tunewright.train.sampling.on_policy import OnPolicy
from tunewright.train.sampling.rollouts import Rollouts


def of(answers: Answers, model: LanguageModel, sampler: SamplerConfig) -> Rollouts | OnPolicy | None:
    """None for methods that learn from rows as they are. ``model``: as it is before training. Loads the teacher that
    reads samples. Raises RESUME_MISMATCH if it has changed."""
    plan = answers.plan
    if plan.teacher is None or not plan.teacher.settings.on_policy:
        return rollouts.of(answers, model, sampler)
    data, folder, decoding = answers.data, answers.run.path / "rollouts", answers.answering(model).decoding
    drawn = Rollouts(answers.inputs.template, data.examples, data.task, decoding, folder, answers.console.warn)
    return OnPolicy(drawn, teacher.load(plan.teacher, loading.torch_dtype(plan.dtype), model.device))
