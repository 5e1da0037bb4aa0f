"""Answers of arms, cached in the run folder under a key of all that they depend on: weights, template, decoding."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunewright.core import run_folder
from tunewright.core.config import Plan
from tunewright.core.console import Console
from tunewright.core.records import Side
from tunewright.core.run_folder import Run
from tunewright.core.sampling import DECODINGS, GREEDY, Sampling
from tunewright.data.dataset import Dataset
from tunewright.data.scores import Score
from tunewright.judge.arms.arm import Arm
from tunewright.judge.chat_model import ChatModel
from tunewright.judge.evaluate import score_arm
from tunewright.model.decoding.generate import Decoding, stop_ids
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.inputs import Inputs
from tunewright.runtime.models import Models
from tunewright.runtime.weights import Weights, base


@dataclass(frozen=True)
class AnswerRequest:
    """A request for the answers of ``arm`` to ``rows`` of ``side``, cached in ``file``. ``branch``: the branch whose
    weights answer; empty for the run itself."""

    arm: Arm
    side: Side
    rows: Sequence[int]
    file: Path
    branch: str = ""


@dataclass(frozen=True)
class Answers:
    """Computes the answers of arms, or reads cached ones. Scores cannot be attributed to other weights than those that
    gave them: the cache key and the loaded module both follow from the `Weights` that are passed in."""

    run: Run
    console: Console
    data: Dataset
    inputs: Inputs
    plan: Plan
    models: Models

    def scores(self, request: AnswerRequest, weights: Weights) -> list[Score]:
        """One score per row, in the order of the rows. The caller records reads of test as an event."""
        arm, rows = request.arm, list(request.rows)
        answering = weights if arm.uses_adapter else base(self.plan)
        key = self._key(answering, DECODINGS[arm.decoding])
        lines = list(run_folder.read_lines(request.file))
        if lines and [(line["row"], line.get("key")) for line in lines] == [(i, key) for i in rows]:
            return [Score.from_json(line) for line in lines]
        chosen, started = [self.data.examples[i] for i in rows], time.monotonic()
        title = f"{request.side} {request.branch or arm.name}".replace("_", " ")
        with self.console.bar(title, len(chosen), unit="rows") as tick:
            if arm.needs_model:
                with self.chat_model(answering) as model:
                    scores = score_arm(arm, chosen, self.data.task, model, tick)
            else:
                scores = score_arm(arm, chosen, self.data.task, None, tick)
        stored = [dataclasses.replace(s, row=i, key=key) for i, s in zip(rows, scores, strict=True)]
        run_folder.write_lines(request.file, [s.to_json() for s in stored])
        seconds = round(time.monotonic() - started, 1)
        facts = {
            "arm": arm.name,
            "side": request.side,
            "branch": request.branch,
            "rows": len(rows),
            "seconds": seconds,
        }
        self.run.event("judged", **facts)
        return stored

    def of(self, arm: Arm, side: Side, weights: Weights) -> list[Score]:
        """The scores of an arm on dev or test, cached in scores/."""
        name = f"dev/{arm.name}" if side == "dev" else arm.family
        file = self.run.scores / f"{name}.jsonl"
        return self.scores(AnswerRequest(arm, side, self.inputs.evaluated(side), file), weights)

    @contextmanager
    def chat_model(self, weights: Weights, max_new_tokens: int | None = None) -> Iterator[ChatModel]:
        """A model with these weights that answers as in every arm: greedily, in the plan's batches."""
        with self.models.at(weights) as model:
            yield self.answering(model, max_new_tokens)

    def answering(self, model: LanguageModel, max_new_tokens: int | None = None) -> ChatModel:
        """The same for a given model, of whatever weights."""
        template = self.inputs.template
        decoding = self._decoding(stop_ids(model, template.eos), max_new_tokens)
        return ChatModel(model, template, decoding, self.plan)

    def _decoding(self, stop: tuple[int, ...], max_new_tokens: int | None) -> Decoding:
        facts, limit = self.inputs.facts, self.plan.max_new_tokens
        limit = limit if max_new_tokens is None else max_new_tokens
        return Decoding(limit, stop, self.plan.decode_batch_size, facts.packable, facts.window)

    def _key(self, weights: Weights, sampling: Sampling) -> str:
        """Hash of everything that an answer depends on, except its row and its arm."""
        facts = [weights.sha256, weights.scale, self.inputs.facts.sha256, self.inputs.template.sha256]
        facts += [self.plan.max_new_tokens, self.plan.decode_batch_size, self.plan.dtype, self.data.task.metric.name]
        facts += [self.data.task.rules, self.data.task.schema, *([] if sampling == GREEDY else [sampling])]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
