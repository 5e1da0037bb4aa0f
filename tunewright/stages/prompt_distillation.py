"""The long prompt becomes weights: the base under its prompt is the teacher, a student without the prompt learns its shares.

Prompt (context) distillation: Askell et al. 2021 (2112.00861), Snell et al. 2022 (2209.15189). No gold answer is used, so the
student should do as the base does with the prompt: neither better nor worse, for fewer tokens a request.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tunewright.core import run_folder
from tunewright.core.errors import ConfigError
from tunewright.data.examples import Chat, Message
from tunewright.judge.arms.families import Arm
from tunewright.methods import distill
from tunewright.model import adapters, generate
from tunewright.run import branches
from tunewright.run.branches import Branch
from tunewright.run.session import Session
from tunewright.stages.prove import answered, paired
from tunewright.tokens import rendering
from tunewright.tokens.sequences import TrainRow, after

STUDENT = Arm(
    "internalised", "the base's answers under the instruction, learned, and asked without it", adapter=True, instruction=""
)


def internalise(session: Session) -> None:
    """Writes internalised.json, where experiments.prompt_distillation asks for it."""
    count = session.config.experiments.prompt_distillation
    if not count:
        run_folder.write_json(session.run.internalised, {"measured": False})
        return
    if session.data.instruction is None or session.plan.adapter.kind == "none":
        raise ConfigError(
            "CONFIG_CONFLICT",
            "experiments.prompt_distillation needs an instruction that the rows share, and an adapter.",
            where="experiments.prompt_distillation",
            fix="set data.instruction, or leave experiments.prompt_distillation out.",
        )
    train = session.data.judged(count, "train")
    rows, dev = distill_rows(session, train, "train"), distill_rows(session, session.rows("dev"), "dev")
    plan = branches.smaller(session.plan, 1.0, len(rows), session.plan.seed).model_copy(update={"method": "distill"})
    branch = Branch("internalised", plan, tuple(rows), tuple(dev))
    student = branches.scores(session, branch, "test", STUDENT)
    zero_shot = session.families["zero_shot"][0]
    teacher = answered(session, zero_shot, "test")
    a, b = [s["score"] for s in student], [s["score"] for s in teacher]
    c = paired(session, a, b)
    found: dict[str, Any] = {
        "measured": True,
        "prompts": len(rows),
        "student": sum(a) / len(a),
        "teacher": sum(b) / len(b),
        "difference": c.difference,
        "interval": list(c.interval),
        "verdict": c.verdict,
        "same_answers": sum(x["answer"] == y["answer"] for x, y in zip(student, teacher, strict=True)) / len(a),
        "prompt_tokens": {
            "student": sum(s["prompt_tokens"] for s in student) / len(a),
            "teacher": sum(s["prompt_tokens"] for s in teacher) / len(b),
        },
    }
    run_folder.write_json(session.run.internalised, found)
    tokens = found["prompt_tokens"]
    session.talk.say(
        f"the prompt as weights: {c.verdict} to the base with its prompt ({found['student']:.3f} against {found['teacher']:.3f}, "
        f"{c.interval[0]:+.3f} to {c.interval[1]:+.3f}), {tokens['student']:.0f} prompt tokens instead of {tokens['teacher']:.0f}"
    )


def distill_rows(session: Session, rows: Sequence[int], side: str) -> list[TrainRow]:
    """What the base says to these rows' questions under the instruction, as targets for the same questions without it."""
    chats = [e for i in rows if isinstance(e := session.data.examples[i], Chat)]
    long = [rendering.for_generation(session.template, e.prompt) for e in chats]
    short = [rendering.for_generation(session.template, without(e.prompt)) for e in chats]
    model = session.loaded()
    with adapters.off(model.module):
        with session.talk.bar(f"teacher's {side} answers", len(long)) as note:
            said = generate.greedy(model, long, session.how, functools.partial(note, words="rows"))
        ends = [[*a, session.template.eos] if len(a) < session.answer_tokens else a for a in said]
        heard = [after(p, a, i) for i, p, a in zip(rows, long, ends, strict=True)]
        learned = [after(p, a, i) for i, p, a in zip(rows, short, ends, strict=True)]
        with session.talk.bar(f"teacher's {side} shares", len(long)) as note:
            return distill.with_teacher(
                model, heard, learned, session.plan.layout, progress=functools.partial(note, words="rows")
            )


def without(prompt: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(m for m in prompt if m.role != "system")
