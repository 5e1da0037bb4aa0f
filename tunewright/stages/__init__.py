"""The stages of a run, one module each, and what runs them; `STAGES` has their order."""

from tunewright.stages import check, cost, export, forgetting, plan, prove, report, train
from tunewright.stages.experiments import (
    cleaning,
    crossfit,
    distillation,
    learning_curve,
    mitigation,
    pairs,
    prompt_distillation,
    rewards,
    sweep,
)
from tunewright.stages.stage import Stage

STAGES: tuple[Stage, ...] = (
    check.STAGE,
    sweep.STAGE,
    plan.STAGE,
    train.STAGE,
    forgetting.STAGE,
    prove.STAGE,
    pairs.STAGE,
    rewards.STAGE,
    distillation.STAGE,
    crossfit.STAGE,
    cleaning.STAGE,
    mitigation.STAGE,
    prompt_distillation.STAGE,
    learning_curve.STAGE,
    cost.STAGE,
    export.STAGE,
    report.STAGE,
)
