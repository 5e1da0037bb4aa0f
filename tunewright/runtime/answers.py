"""Answers of arms, cached in the run folder under a key of all that they depend on: weights, template, decoding."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from tunewright.core import run_folder
from tunewright.core.config import Plan, Teacher
from tunewright.core.console import Console
from tunewright.core.records import Side
from tunewright.core.run_folder import Run
from tunewright.core.sampling import DECODINGS
from tunewright.data.dataset import Dataset
from tunewright.data.messages import Example
from tunewright.data.scores import Score
from tunewright.judge.arms.arm import Arm, Model, Progress
from tunewright.judge.chat_model import ChatModel
from tunewright.judge.evaluate import decoded_together, score_arm, score_writers
from tunewright.judge.search.encoding import encode
from tunewright.judge.search.stored_vectors import StoredVectors
from tunewright.model.decoding.generate import Decoding, stop_ids
from tunewright.model.facts import Facts
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.inputs import Inputs
from tunewright.runtime.models import Models
from tunewright.runtime.weights import Weights, base, start, teacher
from tunewright.train import planning


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
        (scores,) = self._scores([request], weights)
        return scores

    def of(self, arm: Arm, side: Side, weights: Weights) -> list[Score]:
        """The scores of an arm on dev or test, cached in scores/."""
        return self.scores(self._request(arm, side), weights)

    def of_all(self, arms: Sequence[Arm], side: Side, weights: Weights) -> list[list[Score]]:
        """`of` for each arm. Those that write their answers with the same weights are decoded together, so that a step
        reads the weights once for all of them."""
        scores: dict[int, list[Score]] = {}
        for group in _groups(arms):
            requests = [self._request(arms[n], side) for n in group]
            scores |= dict(zip(group, self._scores(requests, weights), strict=True))
        return [scores[n] for n in range(len(arms))]

    def _request(self, arm: Arm, side: Side) -> AnswerRequest:
        name = f"dev/{arm.name}" if side == "dev" else arm.family
        return AnswerRequest(arm, side, self.inputs.evaluated(side), self.run.scores / f"{name}.jsonl")

    def _scores(self, requests: Sequence[AnswerRequest], weights: Weights) -> list[list[Score]]:
        """For requests of the same rows. Of several, all are cached or all are computed, because the last bits of an
        answer depend on its batch; a single one takes cached answers of whatever batch."""
        first, arms = requests[0], [request.arm for request in requests]
        rows = list(first.rows)
        answering = weights if first.arm.uses_adapter else base(self.plan, first.arm.full_precision)
        if first.arm.from_start:
            answering = start(self.run, self.plan)
        elif first.arm.teacher:
            answering = teacher(self.plan)
        suffix = f"+{_hash(*(arm.name for arm in arms))[:8]}" if len(arms) > 1 else ""
        keys = [self._key(answering, arm) + suffix for arm in arms]
        cached = [_cached(request, key) for request, key in zip(requests, keys, strict=True)]
        if all(scores is not None for scores in cached):
            return [scores for scores in cached if scores is not None]
        chosen, started = [self.data.examples[i] for i in rows], time.monotonic()
        title = first.branch or first.arm.name if len(arms) == 1 else f"{len(arms)} arms"
        with self.console.bar(f"{first.side} {title}".replace("_", " "), len(arms) * len(rows), unit="rows") as tick:
            computed = self._computed(arms, chosen, answering, tick)
        seconds = round((time.monotonic() - started) / len(arms), 1)
        stored = []
        for request, key, scores in zip(requests, keys, computed, strict=True):
            stored.append([dataclasses.replace(s, row=i, key=key) for i, s in zip(rows, scores, strict=True)])
            run_folder.write_lines(request.file, [s.to_json() for s in stored[-1]])
            file = str(request.file.relative_to(self.run.path))
            facts = {"arm": request.arm.name, "side": request.side, "branch": request.branch, "file": file}
            self.run.event("judged", **facts, rows=len(rows), seconds=seconds)
        return stored

    def _computed(
        self, arms: Sequence[Arm], examples: Sequence[Example], answering: Weights, tick: Progress
    ) -> list[list[Score]]:
        if not arms[0].needs_model:
            return [score_arm(arm, examples, self.data.task, None, tick) for arm in arms]
        with self.chat_model(answering) as model:
            if self.data.task.corpus is not None:
                searched = cast(Model, StoredVectors(partial(encode, model), self._vectors_file(answering)))
                return [score_arm(arm, examples, self.data.task, searched, tick) for arm in arms]
            if decoded_together(arms[0]):
                return score_writers(arms, examples, self.data.task, model, tick)
            return [score_arm(arm, examples, self.data.task, model, tick) for arm in arms]

    @contextmanager
    def chat_model(self, weights: Weights, max_new_tokens: int | None = None) -> Iterator[ChatModel]:
        """A model with these weights that answers as in every arm: in the plan's batches."""
        facts = self.plan.teacher if weights.teacher else None
        with self.models.at(weights) as model:
            yield self.answering(model, max_new_tokens, facts)

    def answering(
        self, model: LanguageModel, max_new_tokens: int | None = None, teacher: Teacher | None = None
    ) -> ChatModel:
        """The same for a given model, of whatever weights; or for the ``teacher``."""
        template = self.inputs.template
        decoding = self._decoding(stop_ids(model, template.eos), max_new_tokens, teacher or self.inputs.facts)
        return ChatModel(model, template, decoding, self.plan)

    def _decoding(self, stop: tuple[int, ...], max_new_tokens: int | None, facts: Facts | Teacher) -> Decoding:
        plan = self.plan
        return Decoding(
            plan.max_new_tokens if max_new_tokens is None else max_new_tokens,
            stop,
            plan.decode_batch_size,
            facts.packable,
            facts.window,
            batch_tokens=planning.batch_tokens(plan),
        )

    def _vectors_file(self, weights: Weights) -> Path:
        """For the vectors of the corpus: their last bits depend on how texts are divided into passes."""
        plan, corpus = self.plan, self.data.task.corpus
        assert corpus is not None
        facts = [weights.sha256, weights.scale, self.inputs.facts.sha256, self.inputs.template.sha256, corpus.sha256]
        facts += [
            plan.embed,
            plan.pooling,
            plan.max_length,
            plan.dtype,
            plan.tokens_per_pass,
            plan.layout,
            plan.kernels,
        ]
        return self.run.path / "data" / f"vectors-{_hash(*facts)[:16]}.safetensors"

    def _key(self, weights: Weights, arm: Arm) -> str:
        """Hash of everything that an answer depends on, except its row and its batch."""
        facts = [weights.sha256, weights.scale, self.inputs.facts.sha256, self.inputs.template.sha256]
        facts += [self.plan.max_new_tokens, self.plan.decode_batch_size, self.plan.dtype, self.data.task.metric.name]
        facts += [self.data.task.rules, self.data.task.schema, arm.name, DECODINGS[arm.decoding]]
        if self.data.task.corpus is not None:
            facts += [self.data.task.corpus.sha256, self.plan.embed, self.plan.pooling, self.plan.max_length]
        if self.data.task.grader is not None:
            facts += [self.data.task.grader, self.data.task.check]
        return _hash(*facts)[:16]


def _hash(*facts: object) -> str:
    return hashlib.sha256(repr(list(facts)).encode()).hexdigest()


def _groups(arms: Sequence[Arm]) -> list[list[int]]:
    """The numbers of the arms that are decoded together."""
    groups: dict[object, list[int]] = {}
    for n, arm in enumerate(arms):
        weights = arm.uses_adapter, arm.full_precision, arm.from_start, arm.teacher
        groups.setdefault(weights if decoded_together(arm) else arm.name, []).append(n)
    return list(groups.values())


def _cached(request: AnswerRequest, key: str) -> list[Score] | None:
    """The cached answers under ``key``; if that names no batch, of whatever batch."""
    lines = list(run_folder.read_lines(request.file))
    keys = {str(line.get("key")) if "+" in key else str(line.get("key")).partition("+")[0] for line in lines}
    if keys != {key} or [line["row"] for line in lines] != list(request.rows):
        return None
    return [Score.from_json(line) for line in lines]
