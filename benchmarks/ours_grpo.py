"""tunewright's GRPO as a timed process: a step samples, grades and trains, as in its training loop. No sample ends
before it has all its tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ours import loaded, plan_of
from subject import Wire, serve

from tunewright.core.config import Plan
from tunewright.data.graders import graders
from tunewright.data.messages import Chat, Message
from tunewright.data.metrics import METRICS
from tunewright.data.task import REWARDS, Task
from tunewright.methods import METHODS
from tunewright.model.decoding.generate import Decoding
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template, load_template
from tunewright.train import profile
from tunewright.train.sampling.rollouts import Rollouts
from tunewright.train.step import make_learner, take_step

NO_STOP = (-1,)


def rollouts_of(setup: dict[str, Any], template: Template, chats: list[Chat], plan: Plan) -> Rollouts:
    grader = graders.of({"type": "python", "source": setup["grader"]}, "benchmark")
    task = Task(REWARDS, METRICS["reward"], "", grader=grader)
    decoding = Decoding(plan.max_new_tokens, NO_STOP, batch_size=plan.batch_size * plan.options.num_generations)
    return Rollouts(template, chats, task, decoding, Path(setup["folder"]) / "rollouts", print)


def prepared(template: Template, given: list[dict[str, Any]]) -> tuple[list[Chat], list[TrainRow]]:
    chats = [
        Chat((Message("user", r["prompt"]), Message("assistant", "")), where=f"row {i}", item=r["item"])
        for i, r in enumerate(given)
    ]
    rows = [METHODS["grpo"].prepare(template, chat, i, None)[0] for i, chat in enumerate(chats)]
    assert [list(r.sequences[0].prompt) for r in rows] == [r["ids"] for r in given]
    return chats, rows


def main() -> None:
    wire = Wire()
    setup = wire.setup
    template = load_template(Path(setup["model"]))
    chats, rows = prepared(template, json.loads(Path(setup["rows"]).read_text(encoding="utf-8")))
    plan = plan_of(setup, rows)
    model, rollouts = loaded(setup, plan), rollouts_of(setup, template, chats, plan)
    profile.calibrate(model, rows[:2], plan)
    student = make_learner(model, plan)

    def train(number: int) -> float:
        sampled = rollouts.sampled(model, rows, plan, number)
        lengths = {s.supervised for r in sampled for s in r.sequences if "advantage_S" in r.signal}
        assert lengths == {plan.max_new_tokens}, lengths
        return take_step(student, sampled, plan, number).loss

    serve(train, wire)


if __name__ == "__main__":
    main()
