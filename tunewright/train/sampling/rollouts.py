"""Rollouts: the samples of a step, drawn by the model as it is, graded, and written to the run folder before they are
trained on. A run that was killed reads them back, so that it ends as it would have, whatever graders do.

Axes: N prompts, G samples of a prompt, S samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.errors import RunError, TrainError
from tunewright.core.records import ROLLOUT, RolloutLine, RolloutStart
from tunewright.core.run_folder import make_folder
from tunewright.data.graders import graders
from tunewright.data.graders.grade import Grader
from tunewright.data.graders.graders import Graded
from tunewright.data.messages import Example
from tunewright.data.task import Task
from tunewright.data.task.rewards import answered
from tunewright.data.text import without_thoughts
from tunewright.methods import grpo
from tunewright.methods.grpo import STATISTICS
from tunewright.methods.policy_losses import LOSSES
from tunewright.model import adapters, forward
from tunewright.model.decoding import generate, outside
from tunewright.model.decoding.generate import Decoding
from tunewright.model.decoding.outside import Outside
from tunewright.model.decoding.sample import Draw, Sample, sample
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing, rendering
from tunewright.tokens.packing import to_microbatch
from tunewright.tokens.sequences import TrainRow, prompt_then_answer
from tunewright.tokens.template import Template

# Of the log-probability of a token in training and in sampling, in nats. Measured with SmolLM2-135M: below 5e-5 in
# float32; in bfloat16 0.04 to 0.06, because sampling and training add in another order.
MOST_MISMATCH = {"float32": 1e-3, "bfloat16": 0.15}
CAP = 2.0  # of importance weights; TRL takes 3, of whole samples
COMPARED = 4  # samples of a step whose log-probabilities are computed again
WHERE = "reward.grader"


@dataclass(frozen=True)
class Rollouts:
    """How the prompts of a run are answered and graded. ``folder``: rollouts/; ``note``: shown to the user. ``start``:
    the update that training continues from, which belongs to the reference; None if that is the base. ``outside``: the
    program that draws the samples of training; None: this one does."""

    template: Template
    examples: Sequence[Example]
    task: Task
    decoding: Decoding
    folder: Path
    note: Callable[[str], None] = lambda _: None
    start: Mapping[str, Tensor] | None = None
    outside: Outside | None = None

    def sampled(self, model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, step: int) -> Sequence[TrainRow]:
        """The rows; those of step ``step`` (from 0) with their samples, which are trained on: drawn for the first of
        several updates, and read for the others. Raises REWARD_FAILED and ROLLOUT_MISMATCH."""
        rollout, update = divmod(step, plan.options.num_iterations)
        first, chosen = step - update, packing.step_rows(len(rows), plan.batch_size, plan.seed, rollout)
        part, file = [rows[i] for i in chosen], self.folder / f"step-{first + 1:06d}.jsonl"
        if update == 0:
            start, lines = self.read_or_draw(model, part, plan, first, file)
        else:
            start, lines = self._drawn_before(part, plan, first, file)
        done = self._rows(part, lines, plan, start.mismatch)
        if wanted := [name for name, field in self._wanted(plan).items() if not any(getattr(x, field) for x in lines)]:
            assert update == 0, "written with the first update"
            lines = self._with_logp(model, done, lines, plan, wanted)
            self._write(file, start, lines)
            done = self._rows(part, lines, plan, start.mismatch)
        with_samples = dict(zip(chosen, done, strict=True))
        return [with_samples.get(i, row) for i, row in enumerate(rows)]

    def _drawn_before(
        self, rows: Sequence[TrainRow], plan: Plan, step: int, file: Path
    ) -> tuple[RolloutStart, list[RolloutLine]]:
        """What the first update has trained on, in this process: training pauses only between rollouts. Raises
        RUN_DAMAGED."""
        if not file.exists():
            raise RunError("RUN_DAMAGED", "the file is missing.", where=str(file), fix="repeat the command.")
        start, *lines = records.read_lines(file, ROLLOUT)
        asked = self._start("", rows, plan, step)
        assert isinstance(start, RolloutStart)
        assert start.model_copy(update={"weights": "", "mismatch": 0.0}) == asked, "samples of another step"
        return start, [line for line in lines if isinstance(line, RolloutLine)]

    @torch.no_grad()
    def _with_logp(
        self,
        model: LanguageModel,
        rows: Sequence[TrainRow],
        lines: Sequence[RolloutLine],
        plan: Plan,
        wanted: Sequence[str],
    ) -> list[RolloutLine]:
        """The lines with log-probabilities of what is trained on, computed in the passes of training: so a ratio is
        exactly 1 before the first update, and the divergence from an untrained model exactly 0."""
        done, fields = list(lines), self._wanted(plan)
        for part in grpo.microbatches(model, rows, range(len(rows)), plan, 0):
            for name in wanted:
                with self._reference(model) if name == "reference_M" else nullcontext():
                    logp_M = forward.logp(model, part, temperature=plan.options.temperature)
                own = np.split(logp_M.double().cpu().numpy(), np.cumsum(part.signal["tokens_S"])[:-1])
                for n, logp in zip(part.signal["sample_S"].tolist(), own, strict=True):
                    done[n] = done[n].model_copy(update={fields[name]: tuple(logp.tolist())})
        return done

    @contextmanager
    def _reference(self, model: LanguageModel) -> Iterator[None]:
        """Within, the model is the one before training."""
        if self.start is None:
            with adapters.off(model.module):
                yield
            return
        own = adapters.update_tensors(model.module)
        before = {name: tensor.detach().clone() for name, tensor in own.items()}
        try:
            _put(own, self.start)
            yield
        finally:
            _put(own, before)

    def dev_loss(self, model: LanguageModel, dev: Sequence[TrainRow], plan: Plan, step: int) -> float:
        """Minus the mean reward of greedy answers after ``step`` steps. Raises REWARD_FAILED."""
        start, file = self._start(_weights_sha256(model), dev, plan, step), self.folder / f"dev-{step:06d}.jsonl"
        lines = self._stored(file, start, len(dev))
        if not lines:
            was = model.module.training
            model.module.eval()
            written = generate.complete(model, [r.sequences[0].prompt for r in dev], self.decoding)
            model.module.train(was)
            limit = self.decoding.max_new_tokens
            answers = [[Sample(tuple(ids), (), "length" if len(ids) == limit else "stop")] for ids in written]
            lines = list(self._lines(dev, answers))
            self._write(file, start, lines)
        return -sum(line.reward or 0.0 for line in lines) / len(lines)

    def read_or_draw(
        self, model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, step: int, file: Path, weights: str = ""
    ) -> tuple[RolloutStart, list[RolloutLine]]:
        """The samples of a step, from its file if the same model drew them for the same prompts. ``weights``: a name
        for the model, if it is not one of the run's training."""
        start = self._start(weights or _weights_sha256(model), rows, plan, step)
        if lines := self._stored(file, start, len(rows) * plan.options.num_generations):
            first = next(records.read_lines(file, ROLLOUT))
            assert isinstance(first, RolloutStart)
            return first, lines
        model.module.eval()
        groups = self._drawn(model, rows, plan, step, None if weights else self.outside)
        start = start.model_copy(update={"mismatch": self._mismatch(model, rows, groups, plan)})
        lines = list(self._lines(rows, groups))
        self._write(file, start, lines)
        return start, lines

    def _start(self, weights: str, rows: Sequence[TrainRow], plan: Plan, step: int) -> RolloutStart:
        return RolloutStart(
            weights=weights,
            settings=self._settings_sha256(plan),
            seed=plan.seed,
            step=step,
            rows=tuple(r.row for r in rows),
            mismatch=0.0,
        )

    def _stored(self, file: Path, start: RolloutStart, count: int) -> list[RolloutLine]:
        """The lines of a file, if they are as many and were drawn as ``start`` has it; otherwise none."""
        stored = list(records.read_lines(file, ROLLOUT))
        lines = [line for line in stored if isinstance(line, RolloutLine)]
        if not stored or len(lines) != count or not isinstance(stored[0], RolloutStart):
            return []
        if stored[0].model_copy(update={"mismatch": start.mismatch}) == start:
            return lines
        self.note(f"{file.name} was drawn by another model or with other settings; its prompts are answered again")
        return []

    def _write(self, file: Path, start: RolloutStart, lines: Sequence[RolloutLine]) -> None:
        make_folder(file.parent)
        records.write_lines(file, [start, *lines])

    def _drawn(
        self, model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, step: int, by: Outside | None
    ) -> list[list[Sample]]:
        options, prompts = plan.options, [(r.row, r.sequences[0].prompt) for r in rows]
        draw = Draw(plan.seed, step, options.temperature)
        if by is None:
            return sample(model, prompts, options.num_generations, self.decoding, draw)
        return outside.sample(by, model, prompts, options.num_generations, self.decoding, draw)

    def _lines(self, rows: Sequence[TrainRow], groups: Sequence[Sequence[Sample]]) -> Iterator[RolloutLine]:
        """The samples, graded. Raises REWARD_FAILED."""
        every = [(r.row, n, s) for r, group in zip(rows, groups, strict=True) for n, s in enumerate(group)]
        texts = [self._text(row, s.ids) for row, _, s in every]
        graded = self.graded([(row, text) for (row, _, _), text in zip(every, texts, strict=True)])
        if self.task.grader is not None:
            graders.require_scored(graded, WHERE)
        for (row, number, s), text, g in zip(every, texts, graded, strict=True):
            yield RolloutLine(
                row=row,
                sample=number,
                ids=s.ids,
                logp=s.logp,
                finish=s.finish,
                text=text,
                reward=g.reward,
                problem=g.problem or None,
            )

    def _text(self, row: int, ids: Sequence[int]) -> str:
        """What graders, and those who judge the answer after training, read."""
        return without_thoughts(rendering.read_answer(self.template, ids, self.examples[row].prompt.tools).text)

    def graded(self, answers: Sequence[tuple[int, str]]) -> list[Graded]:
        """The rewards of answers, each with its row; none without a grader. Raises REWARD_FAILED."""
        return self._graded(self.task.grader, answers) if self.task.grader else [Graded(None)] * len(answers)

    def checked(self, answers: Sequence[tuple[int, str]]) -> list[Graded]:
        """The same by reward.check; 0 if there is none."""
        return self._graded(self.task.check, answers) if self.task.check else [Graded(0.0)] * len(answers)

    def _graded(self, grader: Grader, answers: Sequence[tuple[int, str]]) -> list[Graded]:
        return graders.grade_all(grader, [answered(self.examples[row], text) for row, text in answers])

    @torch.no_grad()
    def _mismatch(
        self, model: LanguageModel, rows: Sequence[TrainRow], groups: Sequence[Sequence[Sample]], plan: Plan
    ) -> float:
        """Mean difference of log-probabilities in sampling and in training. Raises ROLLOUT_MISMATCH: where it is large,
        other kernels, other weights or another temperature drew the samples than those that are trained."""
        some = [(r, group[0]) for r, group in zip(rows, groups, strict=True)][:COMPARED]
        sequences = [prompt_then_answer(r.sequences[0].prompt, s.ids, r.row) for r, s in some]
        logp_M = forward.logp(model, to_microbatch(sequences, plan.layout), temperature=plan.options.temperature)
        drawn_M = np.array([x for _, s in some for x in s.logp])
        mismatch = float(np.abs(logp_M.double().cpu().numpy() - drawn_M).mean())
        most = MOST_MISMATCH["bfloat16" if self.outside else plan.dtype]
        if not mismatch <= most:
            fix = "set train.dtype=float32; if that is set, report it: no result can be trusted."
            if self.outside:
                fix = "serve the base of the run in the same precision, not quantized, and without other adapters."
            raise TrainError(
                "ROLLOUT_MISMATCH",
                f"a token's log-probability differs by {mismatch:.4f} nats between sampling and training; in "
                f"{plan.dtype} at most {most:g} is expected.",
                fix=fix,
            )
        return mismatch

    def _rows(
        self, rows: Sequence[TrainRow], lines: Sequence[RolloutLine], plan: Plan, mismatch: float
    ) -> list[TrainRow]:
        """The rows with their samples, and the advantages of these."""
        count = plan.options.num_generations
        reward_NG = np.array([np.nan if x.reward is None else x.reward for x in lines], np.float64).reshape(-1, count)
        advantage_NG = LOSSES[plan.options.loss_type].advantages(reward_NG)
        done = []
        for n, row in enumerate(rows):
            own = lines[n * count : (n + 1) * count]
            sequences = tuple(prompt_then_answer(row.sequences[0].prompt, x.ids, row.row) for x in own)
            scored_G = reward_NG[n][~np.isnan(reward_NG[n])]
            statistics = {
                "reward": scored_G.mean() if len(scored_G) else 0.0,
                "reward_std": scored_G.std() if len(scored_G) else 0.0,
                "flat_groups": float(not advantage_NG[n].any()),
                "length": np.mean([len(x.ids) for x in own]),
                "cut": np.mean([x.finish == "length" for x in own]),
                "mismatch": mismatch,
            }
            signal = {"advantage_S": advantage_NG[n], "statistics": np.array([statistics[name] for name in STATISTICS])}
            for name, field in self._wanted(plan).items():
                if any(getattr(x, field) for x in own):
                    # Those of samples that are not trained on are never read.
                    signal[name] = np.concatenate([getattr(x, field) or np.zeros(len(x.ids)) for x in own])
            if self.outside and "old_M" in signal:
                signal["weight_M"] = np.concatenate([_weights(x) for x in own])
            done.append(replace(row, sequences=sequences, signal=signal))
        return done

    def _wanted(self, plan: Plan) -> dict[str, str]:
        """The log-probabilities that the loss reads: signals of rows, each with its field in the file."""
        fields = {"old_M": "old_logp"} if plan.options.num_iterations > 1 or self.outside else {}
        return fields | ({"reference_M": "reference_logp"} if plan.options.kl_weight > 0 else {})

    def _settings_sha256(self, plan: Plan) -> str:
        facts = (self.template.sha256, self.decoding, plan.options.num_generations, plan.options.temperature)
        return hashlib.sha256(repr((*facts, plan.dtype, self.task.grader)).encode()).hexdigest()


def _weights(line: RolloutLine) -> NDArray[np.float64]:
    """Of the tokens of a sample that another program drew: how much more probable they are here, at most `CAP`
    (truncated importance sampling, Yao et al. 2025; in TRL, token_truncate)."""
    old = np.array(line.old_logp or line.logp, np.float64)
    weight_M: NDArray[np.float64] = np.minimum(np.exp(old - np.array(line.logp)), CAP)
    return weight_M


@torch.no_grad()
def _put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _weights_sha256(model: LanguageModel) -> str:
    total = hashlib.sha256()
    for name, p in adapters.trainable(model.module).items():
        total.update(f"{name} {tuple(p.shape)}\n".encode())
        total.update(p.detach().float().contiguous().cpu().numpy().tobytes())
    return total.hexdigest()
