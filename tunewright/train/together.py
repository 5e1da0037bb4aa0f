"""Several trainings on one base, whose steps are taken in common passes: each has the weights, losses and files that it
has alone. Where a small step is mostly the launching of kernels, as on a GPU, this is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunewright.core.config import Plan
from tunewright.core.errors import TrainError
from tunewright.core.records import CheckpointState, StepLine
from tunewright.model import forward, losses, several
from tunewright.model.language_model import LanguageModel
from tunewright.system import crowding
from tunewright.train import loop
from tunewright.train.loop import Taken, Trained, TrainingInputs
from tunewright.train.step import LOSS, Batch, Learner, Step, Sums, begin, finish


@dataclass
class Course:
    """A training under way. ``last``: the step to which it is trained; ``failed``: why it was given up."""

    number: int
    training: TrainingInputs
    student: Learner
    state: CheckpointState
    last: int
    failed: TrainError | None = None

    @property
    def over(self) -> bool:
        return self.failed is not None or loop.is_over(self.state, self.training.plan, self.last)


def may_be(plans: Sequence[Plan]) -> bool:
    """Whether passes of these trainings can be common ones: fine-tuning of plain LoRA with fused kernels."""
    alike = len({(plan.dtype, plan.kernels, plan.gradient_checkpointing, plan.threads) for plan in plans}) == 1
    plain = all(plan.adapter.kind in ("lora", "rslora") and not plan.adapter.dropout for plan in plans)
    fused = plans[0].kernels in ("fused", "flex") and all(plan.layout != "padded" for plan in plans)
    return len(plans) > 1 and alike and plain and fused and all(plan.method == "sft" for plan in plans)


def are(models: Sequence[LanguageModel]) -> bool:
    """Whether they are, of such plans: not if an adapter has only some of the layers."""
    return all(model.kernels in ("fused", "flex") and forward.frozen_head(model) for model in models)


def train(
    trainings: Sequence[TrainingInputs],
    progress: Callable[[StepLine], None] = lambda _: None,
    until: Sequence[int] | None = None,
) -> list[Trained | TrainError]:
    """As `loop.train` of each; the error of one does not end the others. ``until``: for each, the step to stop at.
    Raises RUN_INTERRUPTED after all have saved."""
    started = time.monotonic()
    courses = []
    for number, training in enumerate(trainings):
        last = min(until[number] if until else training.plan.steps, training.plan.steps)
        courses.append(Course(number, training, *loop.begun(training), last))
    with loop.interrupts() as interrupted, crowding.restored():
        crowding.use(trainings[0].plan.threads)
        while active := [course for course in courses if not course.over]:
            begun = time.monotonic()
            steps = take_steps(active)
            seconds = round((time.monotonic() - begun) / len(active), 4)
            for course, step in zip(active, steps, strict=True):
                _advance(course, step, seconds, progress)
                due = course.over or course.state.step % course.training.plan.checkpoint_every == 0
                if course.failed is None and (due or interrupted.is_set()):
                    loop.save(course.training, course.student, course.state)
            if interrupted.is_set():
                for course in courses:
                    if course.failed is None and not loop.is_over(course.state, course.training.plan, course.last):
                        raise loop.stopped(course.training, course.state)
    seconds = (time.monotonic() - started) / len(courses)
    return [c.failed or loop.ended(c.training, c.student, c.state, seconds) for c in courses]


def _advance(course: Course, step: Step | TrainError, seconds: float, progress: Callable[[StepLine], None]) -> None:
    try:
        if isinstance(step, TrainError):
            raise step
        taken = Taken(step, seconds, course.training.plan.threads)
        course.state = loop.logged(course.training, course.student, course.state, taken, progress)
    except TrainError as error:
        if error.code != "TRAIN_NOT_FINITE":
            raise
        course.failed = error


def take_steps(courses: Sequence[Course]) -> list[Step | TrainError]:
    """The next step of each, or why it was discarded. The passes are those that each would take alone; the first ones
    of all are one pass, then the second ones, and so on."""
    batches = [begin(c.student, c.training.rows, c.training.plan, c.state.step) for c in courses]
    sums: list[dict[int, Sums]] = [{} for _ in courses]
    for number in range(max(len(batch.microbatches) for batch in batches)):
        here = [k for k, batch in enumerate(batches) if number < len(batch.microbatches)]
        models = [courses[k].student.model for k in here]
        parts = [batches[k].microbatches[number] for k in here]
        hidden = several.hidden(models, parts, courses[0].training.plan.gradient_checkpointing)
        scaled = []
        for k, model, part, hidden_ND in zip(here, models, parts, hidden, strict=True):
            target_N, weight_N = forward.on_device(model, part.target_N), forward.on_device(model, part.weight_N)
            total = losses.head_cross_entropy(hidden_ND, model.head_VD, target_N, weight_N)
            sums[k][number] = {LOSS: total.detach().double()}
            scaled.append(total / batches[k].weight)
        torch.autograd.backward(scaled)
    return [_finished(course, batch, own) for course, batch, own in zip(courses, batches, sums, strict=True)]


def _finished(course: Course, batch: Batch, sums: dict[int, Sums]) -> Step | TrainError:
    try:
        return finish(course.student, batch, sums, course.training.plan, course.state.step)
    except TrainError as error:
        return error
