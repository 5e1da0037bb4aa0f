"""Several trainings on one base, whose steps are taken in joint passes: each has the weights, losses and files that it
would have alone. Where a small step is mostly the launching of kernels, as on a GPU, this is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tunewright.core.config import Plan
from tunewright.core.errors import TrainError
from tunewright.core.records import CheckpointState, StepLine
from tunewright.model import forward, losses, several
from tunewright.model.language_model import LanguageModel
from tunewright.system import crowding, heap
from tunewright.tokens.packing import Microbatch
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


def kind_of(plan: Plan) -> tuple[object, ...] | None:
    """Trainings whose plans are of the same kind can have joint passes; None: of a kind that cannot."""
    plain = plan.adapter.kind in ("lora", "rslora") and not plan.adapter.dropout
    fused = plan.kernels in ("fused", "flex") and plan.layout != "padded"
    if not (plain and fused and plan.method == "sft"):
        return None
    return plan.dtype, plan.kernels, plan.gradient_checkpointing, plan.threads


def can_join(models: Sequence[LanguageModel]) -> bool:
    """Whether models of such plans can, too: not if an adapter has only some of the layers."""
    return all(model.kernels in ("fused", "flex") and forward.frozen_head(model) for model in models)


def train(
    trainings: Sequence[TrainingInputs],
    progress: Callable[[StepLine], None] = lambda _: None,
    until: Sequence[int] | None = None,
) -> list[Trained | TrainError]:
    """As `loop.train` of each; one whose loss is not finite does not end the others. ``until``: for each, the step to
    stop at. Raises RUN_INTERRUPTED after all have saved."""
    started, plan = time.monotonic(), trainings[0].plan
    crowd, kept = crowding.alone(plan.threads), heap.Kept()
    courses, failed = list[Course](), dict[int, TrainError]()
    for number, training in enumerate(trainings):
        last = min(until[number] if until else training.plan.steps, training.plan.steps)
        try:
            courses.append(Course(number, training, *loop.start_or_resume(training), last))
        except TrainError as error:
            failed[number] = _not_finite(error)
    with loop.interrupts() as interrupted, crowding.restored():
        while active := [course for course in courses if not course.over]:
            if plan.adapt_threads:
                crowd = crowding.adapted(crowd)
            crowding.use(crowd.threads)
            begun = time.monotonic()
            steps = take_steps(active)
            seconds = round((time.monotonic() - begun) / len(active), 4)
            for course, step in zip(active, steps, strict=True):
                _advance(course, step, (seconds, crowd.threads), progress)
            kept = heap.bounded(kept)
            _save(active, interrupted.is_set())
    seconds = (time.monotonic() - started) / len(trainings)
    failed |= {c.number: c.failed for c in courses if c.failed}
    done = {c.number: loop.finished(c.training, c.student, c.state, seconds) for c in courses if not c.failed}
    return [failed[n] if n in failed else done[n] for n in range(len(trainings))]


def _save(courses: Sequence[Course], stop: bool) -> None:
    """Writes the checkpoints that are due; all of them if training is to ``stop``, and then raises RUN_INTERRUPTED
    unless all have ended."""
    alive = [course for course in courses if course.failed is None]
    for course in alive:
        if stop or course.over or course.state.step % course.training.plan.checkpoint_every == 0:
            loop.save(course.training, course.student, course.state)
    for course in alive if stop else []:
        if not loop.is_over(course.state, course.training.plan, course.training.plan.steps):
            raise loop.interruption(course.training, course.state)


def _not_finite(error: TrainError) -> TrainError:
    """The error, if it is of one training alone; raises any other."""
    if error.code != "TRAIN_NOT_FINITE":
        raise error
    return error


def _advance(
    course: Course, step: Step | TrainError, took: tuple[float, int], progress: Callable[[StepLine], None]
) -> None:
    """``took``: seconds, and threads."""
    try:
        if isinstance(step, TrainError):
            raise step
        course.state = loop.record_step(course.training, course.student, course.state, Taken(step, *took), progress)
    except TrainError as error:
        course.failed = _not_finite(error)


def take_steps(courses: Sequence[Course]) -> list[Step | TrainError]:
    """The next step of each, or why it was discarded. The passes are those that each would take alone: every training's
    first pass is merged with the others' first, then every second one, and so on, as far as they fit together."""
    batches = [begin(c.student, c.training.rows, c.training.plan, c.state.step) for c in courses]
    sums: list[dict[int, Sums]] = [{} for _ in courses]
    for number in range(max(len(batch.microbatches) for batch in batches)):
        parts = {k: batch.microbatches[number] for k, batch in enumerate(batches) if number < len(batch.microbatches)}
        for group in _fitting(parts, max(c.training.plan.tokens_per_pass for c in courses)):
            models = [courses[k].student.model for k in group]
            recompute = courses[0].training.plan.gradient_checkpointing
            scaled = []
            hidden = several.hidden(models, [parts[k] for k in group], recompute)
            for k, model, hidden_ND in zip(group, models, hidden, strict=True):
                target_N, weight_N = (forward.on_device(model, x) for x in (parts[k].target_N, parts[k].weight_N))
                total = losses.head_cross_entropy(hidden_ND, model.head_VD, target_N, weight_N)
                sums[k][number] = {LOSS: total.detach().double()}
                scaled.append(total / batches[k].weight)
            torch.autograd.backward(scaled)
    return [_finished(course, batch, own) for course, batch, own in zip(courses, batches, sums, strict=True)]


def _fitting(parts: Mapping[int, Microbatch], tokens: int) -> list[list[int]]:
    """The keys in groups of at most so many tokens, which is what fits into memory; a longer pass goes alone."""
    groups, room = list[list[int]](), 0
    for k, part in parts.items():
        if not groups or part.ids_BT.size > room:
            groups.append([])
            room = tokens
        groups[-1].append(k)
        room -= part.ids_BT.size
    return groups


def _finished(course: Course, batch: Batch, sums: dict[int, Sums]) -> Step | TrainError:
    try:
        return finish(course.student, batch, sums, course.training.plan, course.state.step)
    except TrainError as error:
        return error
