"""Distils a long prompt into the weights: the base with the prompt is the teacher, and a student learns to give the
same probabilities without it.

Prompt (context) distillation: Askell et al. 2021 (2112.00861), Snell et al. 2022 (2209.15189). No gold answers are
used, so the student should match the base with the prompt, neither better nor worse, with fewer tokens per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunewright.core.errors import ConfigError
from tunewright.core.records import PromptDistillation, PromptTokens, Side
from tunewright.data.messages import Chat, Prompt
from tunewright.data.scores import mean, mean_prompt_tokens
from tunewright.judge.arms import families
from tunewright.judge.arms.prompts import Recipe
from tunewright.methods import distill
from tunewright.model.decoding import generate
from tunewright.runtime import branches
from tunewright.runtime.answers import AnswerRequest
from tunewright.runtime.branches import Branch
from tunewright.runtime.context import Context, Work
from tunewright.runtime.weights import base
from tunewright.stages.prove import paired
from tunewright.stages.stage import Stage
from tunewright.tokens import rendering
from tunewright.tokens.sequences import TrainRow, prompt_then_answer


def require_possible(context: Context) -> None:
    """Raises CONFIG_CONFLICT if prompt distillation is set, and there is no instruction to distil."""
    if context.config.experiments.prompt_distillation and context.data.instruction is None:
        raise ConfigError(
            "CONFIG_CONFLICT",
            "experiments.prompt_distillation needs an instruction that all rows share.",
            where="experiments.prompt_distillation",
            fix="set data.instruction, or leave experiments.prompt_distillation out.",
        )


def prompt_distillation(work: Work) -> PromptDistillation:
    """Trains one branch."""
    count = work.config.experiments.prompt_distillation
    rows = distill_rows(work, work.inputs.short_enough(work.data.sample(count, "train")), "train")
    dev = distill_rows(work, work.inputs.dev, "dev")
    plan = branches.smaller(work.plan, 1.0, len(rows), work.plan.seed).model_copy(update={"method": "distill"})
    student_arm = families.tuned(
        work.data.task,
        Recipe(instruction=""),
        "distilled",
        "trained on the base's answers under the instruction, without it",
    )
    # The scale that the run chose is for its own update; the student's is used in full.
    branch = Branch("prompt-distillation", plan, tuple(rows), tuple(dev), scale=1.0)
    student = branches.scores(work, branch, "test", student_arm)
    # In a file of its own: dev may have chosen another instruction for the arm of this family.
    file = work.run.branch(branch.name).scores / "test-teacher.jsonl"
    work.run.event("test_read", rows=len(work.inputs.test), experiment=branch.name)
    own = AnswerRequest(work.inputs.arms["zero_shot"][0], "test", work.inputs.test, file, branch.name)
    teacher = work.answers.scores(own, base(work.plan))
    c = paired(work, student, teacher)
    same = sum(x.answer.text == y.answer.text for x, y in zip(student, teacher, strict=True))
    return PromptDistillation(
        prompts=len(rows),
        student=mean(student),
        teacher=mean(teacher),
        difference=c.difference,
        interval=c.interval,
        verdict=c.verdict,
        same_answers=same / len(student),
        prompt_tokens=PromptTokens(student=mean_prompt_tokens(student), teacher=mean_prompt_tokens(teacher)),
    )


def distill_rows(work: Work, rows: Sequence[int], side: Side) -> list[TrainRow]:
    """The base's answers to these rows under the instruction, as targets for the same questions without it."""
    template = work.inputs.template
    chats = [e for i in rows if isinstance(e := work.data.examples[i], Chat)]
    long = [rendering.for_generation(template, e.prompt) for e in chats]
    short = [rendering.for_generation(template, without_system(e.prompt)) for e in chats]
    with work.answers.chat_model(base(work.plan)) as model:
        with work.console.bar(f"teacher's {side} answers", len(long), unit="rows") as tick:
            answers = generate.complete(model.model, long, model.decoding, tick)
        ended = [[*a, template.eos] if len(a) < work.plan.max_new_tokens else a for a in answers]
        teacher_rows = [prompt_then_answer(p, a, i) for i, p, a in zip(rows, long, ended, strict=True)]
        student_rows = [prompt_then_answer(p, a, i) for i, p, a in zip(rows, short, ended, strict=True)]
        with work.console.bar(f"teacher's {side} probabilities", len(long), unit="rows") as tick:
            return distill.with_probabilities(model.model, teacher_rows, student_rows, work.plan.layout, progress=tick)


def without_system(prompt: Prompt) -> Prompt:
    return replace(prompt, messages=tuple(m for m in prompt.messages if m.role != "system"))


def skip_reason(work: Work) -> str | None:
    return None if work.config.experiments.prompt_distillation else "experiments.prompt_distillation is 0"


def lines(record: PromptDistillation) -> Sequence[str]:
    tokens = record.prompt_tokens
    return [
        f"prompt distillation: {record.verdict}: student {record.student:.3f} vs. base with prompt "
        f"{record.teacher:.3f}, difference {record.difference:+.3f} {record.interval:+.3f}; "
        f"{tokens.student:.0f} prompt tokens instead of {tokens.teacher:.0f}"
    ]


STAGE = Stage(
    name="prompt_distillation",
    run=lambda inputs: prompt_distillation(inputs.work()),
    skip_reason=skip_reason,
    lines=lines,
)
