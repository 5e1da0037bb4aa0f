"""How long the whole run will take, predicted before training from what a few training rows took on this machine.

Times in seconds, lengths in tokens. A forecast counts what each stage reads, writes and trains on; it does not know how
long answers will be, except from the pilot's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from tunewright.core.config import PREFERENCE, RATED, REWARDED, Estimate
from tunewright.core.words import counted
from tunewright.data.task import rewards
from tunewright.export.export import CHECK_PROMPTS, NEW_TOKENS, wanted
from tunewright.export.kind import TrainedRun
from tunewright.judge.arms import decodings
from tunewright.judge.arms.arm import Arm
from tunewright.judge.evaluate import decoded_together, reads_references
from tunewright.methods import kto
from tunewright.model.decoding import generate
from tunewright.runtime.context import Work
from tunewright.runtime.forecast import pilot
from tunewright.runtime.forecast.pilot import Lengths, Pilot
from tunewright.runtime.sizes import CALIBRATED, OWN_ANSWER_TOKENS, PROBE_TOKENS, repeated
from tunewright.system import heap, machine
from tunewright.train import dealing, planning
from tunewright.train.profile import Speed

GENERIC, PROBES, PROBE_ROWS = 5_000, 32_000, 360  # of `forgetting`: tokens, tokens that each model reads, prompts
LOADING = 12.0  # writing an export, and a process that loads it
RANKS, WORTH_RANKS = (2, 4, 8), 3600.0  # processes; seconds of training from which several may be worth it
PROCESS_GB = 1.0  # torch, oneDNN's code, the data
ACTIVATIONS, LOGITS = 20, 10  # bytes: of a token of a prompt for each unit of width and byte of dtype; of a logit


def whole_run(work: Work, speed: Speed) -> Estimate:
    """The time and memory of the whole run. ``speed``: of training, measured."""
    measured = pilot.measure(work, speed)
    seconds = {name: round(s, 1) for name, s in stages(work, measured).items()}
    memory = training_gb(work, speed), decoding_gb(work, measured), export_gb(work)
    others = sum(model.gigabytes for model in rewards.reward_models(work.data.task))
    others += work.plan.teacher.gigabytes if work.plan.teacher else 0.0
    one_process = work.plan.embed or work.plan.method in REWARDED
    return Estimate(
        tokens_per_second=round(speed.tokens_per_second, 1),
        train_seconds=seconds["train"],
        peak_gb=round(max(machine.peak_gb(), others + max(memory)), 2),
        reason=f"{counted(speed.passes, 'training pass', 'training passes')} on real rows, at "
        f"{speed.tokens_per_second:.0f} tokens/s, and up to {pilot.ROWS} answers of each untrained arm",
        stages=seconds,
        ranks=_speedups(work) if seconds["train"] >= WORTH_RANKS and not one_process else {},
    )


def _speedups(work: Work) -> dict[int, float]:
    model = work.setup.models.untrained(work.plan)
    return dealing.speedups(model, work.inputs.rows["train"], work.plan, RANKS)


@dataclass(frozen=True)
class Forecast:
    """Predicts each stage's duration, in seconds, from the pilot."""

    work: Work
    pilot: Pilot
    tuned: Lengths | None

    def written(self, lengths: Sequence[Lengths], rows: int, adapter: bool = False) -> float:
        """Of the answers of arms that are decoded together."""
        if not lengths or not rows:
            return 0.0
        steps = self.pilot.steps
        batches = ceil(len(lengths) * rows / self.work.plan.decode_batch_size)
        tokens = sum(each.prefix + rows * each.own for each in lengths)
        decoded = batches * max(each.longest for each in lengths) * steps.step
        for each in lengths:
            # Rows of an arm are padded to its widest; in several batches, the longest are together.
            cached = (each.widest if rows <= self.work.plan.decode_batch_size else each.own) + each.mean / 2
            decoded += rows * each.mean * (steps.row + steps.cached * cached)
        return tokens * self.pilot.read + decoded * (steps.adapter if adapter else 1.0)

    def judged(self, arms: Sequence[Arm], rows: int) -> float:
        """Of the answers of arms with the same weights."""
        if self.work.data.task.corpus is not None:
            return self._read_texts(rows * sum(arm.needs_model for arm in arms))
        writers = [arm for arm in arms if decoded_together(arm)]
        lengths = [self.tuned if arm.trained else self.pilot.lengths.get(arm.name) for arm in writers]
        adapter = any(arm.uses_adapter for arm in writers)
        read = [x for arm, x in zip(writers, lengths, strict=True) if x and reads_references(arm)]
        answer = self.tuned.mean if self.tuned else 0.0
        references = sum(each.prefix + rows * (each.own + answer) for each in read) * self.pilot.read
        written = self.written([x for x in lengths if x], rows, adapter)
        return written + references + rows * sum(map(self._other, arms))

    def asked(self, arms: Sequence[Arm], rows: int) -> float:
        """Of the answers of arms, those with the same weights together."""
        alike = ([a for a in arms if a.uses_adapter is own and not a.teacher] for own in (False, True))
        return sum(self.judged(group, rows) for group in alike) + self.larger * self.judged(
            [a for a in arms if a.teacher], rows
        )

    @property
    def larger(self) -> float:
        """Times as long as the student the teacher takes for a token, about; 0 without a teacher."""
        teacher = self.work.plan.teacher
        return teacher.parameters / self.work.inputs.facts.parameters if teacher is not None else 0.0

    def _read_texts(self, count: int) -> float:
        """Of the vectors of so many queries and documents."""
        texts = sum(len(r.sequences) for r in self.work.inputs.rows["train"])
        return count * self.work.plan.tokens / texts * self.pilot.read

    def _searched(self) -> float:
        """Of the vectors of the corpus, if there is one."""
        corpus = self.work.data.task.corpus
        return self._read_texts(len(corpus.documents)) if corpus else 0.0

    def _other(self, arm: Arm) -> float:
        """Of a row of an arm that does not write; a trained one takes what the base takes."""
        if decoded_together(arm) or not arm.needs_model:
            return 0.0
        return self.pilot.others.get(arm.name, next(iter(self.pilot.others.values()), 0.0))

    def by_tuned(self, rows: int) -> float:
        return self.judged([self.work.inputs.tuned], rows)

    def trained(self, fraction: float = 1.0) -> float:
        """Of training on a fraction of the rows, dev losses included."""
        if self.work.plan.method in REWARDED:
            return self._sampled()
        plan, dev = self.work.plan, sum(r.tokens for r in self.work.inputs.rows["dev"])
        losses = (plan.steps * fraction / plan.eval_every + 1) * dev * self.pilot.read
        if plan.method in RATED:  # z0: other answers of as many tokens, read by policy and reference
            losses += 2 * (losses + fraction * plan.tokens * plan.epochs * self.pilot.read)
        if plan.embed and plan.tokens * plan.batch_size > plan.rows * plan.tokens_per_pass:  # read twice, in passes
            losses += fraction * plan.tokens * plan.epochs * self.pilot.read
        if plan.method in (*PREFERENCE, *RATED):
            losses += fraction * plan.tokens * self.pilot.read  # before the first step
        pairs = [r.tokens for r in self.work.inputs.rows["train"] if len(r.sequences) > 1]
        divided = sum(n for n in pairs if n > plan.tokens_per_pass)  # read once more, in `methods.pairs.two_phase`
        losses += fraction * divided * plan.epochs * self.pilot.read
        losses += fraction * plan.tokens * self.pilot.read * self.larger
        samples = round(plan.teacher.settings.on_policy * plan.batch_size) if plan.teacher is not None else 0
        if self.tuned and samples:
            read = samples * (self.tuned.own + self.tuned.mean) * self.pilot.read * self.larger
            losses += fraction * plan.steps * (self.written([self.tuned], samples, adapter=True) + read)
        return fraction * (plan.tokens * plan.epochs * self.pilot.train + plan.steps * self.pilot.update) + losses

    def _sampled(self) -> float:
        """Of training on samples that are as long as half the limit: drawn, read for ratios and KL, trained on."""
        plan, options, lengths = self.work.plan, self.work.plan.options, self._sample_lengths()
        samples = plan.batch_size * options.num_generations
        tokens = plan.batch_size * lengths.own + samples * lengths.mean
        readings = (options.num_iterations > 1) + (options.kl_weight > 0)
        rollout = self.written([lengths], samples, adapter=True) + readings * tokens * self.pilot.read
        greedy = self.written([lengths], len(self.work.inputs.rows["dev"]), adapter=True)
        steps = plan.steps * (tokens * self.pilot.train + self.pilot.update)
        return plan.steps / options.num_iterations * rollout + steps + (plan.steps / plan.eval_every + 1) * greedy

    def _sample_lengths(self) -> Lengths:
        plan = self.work.plan
        prompts = [len(r.sequences[0].ids) for r in self.work.inputs.rows["train"]]
        answer = plan.max_new_tokens / 2
        return Lengths(0, sum(prompts) / len(prompts), max(prompts), answer, plan.max_new_tokens)

    def rewards(self) -> float:
        """Of samples of base and tuned model; and of RAFT: as many samples as in training, and fine-tuning on them."""
        plan, lengths, test = self.work.plan, self._sample_lengths(), len(self.work.inputs.test)
        count = plan.options.num_generations
        seconds = 2 * self.written([lengths], test * count, adapter=True)
        if self.work.config.experiments.raft:
            rollouts = plan.steps / plan.options.num_iterations
            seconds += self.written([lengths], round(rollouts * plan.batch_size * count))
            tokens = plan.batch_size * (lengths.own + lengths.mean)
            seconds += plan.steps * (tokens * self.pilot.train + self.pilot.update) + self.by_tuned(test)
        return seconds

    def forgetting(self) -> float:
        config, pilot = self.work.config, self.pilot
        full, scales = config.prove.evidence == "full", 1
        adapter = self.work.plan.adapter
        if (full or config.forget.apply_best_scale) and adapter.kind != "none" and not adapter.of_peft:
            scales = len({*config.forget.scales, 1.0})
        seconds = (1 + scales) * GENERIC * pilot.read
        if pilot.lengths:
            own = next(iter(pilot.lengths.values())).cut(OWN_ANSWER_TOKENS)
            seconds += self.written([own], len(self.work.inputs.dev))
        if scales > 1:
            seconds += scales * self.by_tuned(len(self.work.inputs.dev))
        if full:
            probe = Lengths(0, 30, 0, PROBE_TOKENS, PROBE_TOKENS)
            seconds += 2 * (PROBES * pilot.read + self.written([probe], PROBE_ROWS))
        return seconds

    def prove(self) -> float:
        work, config = self.work, self.work.config.prove
        families, dev, test = list(work.inputs.arms.values()), len(work.inputs.dev), len(work.inputs.test)
        untrained = [arm for family in families for arm in family if arm.can_be_comparator]
        chosen = [family[0] for family in families]
        seconds = self.asked(chosen, test)
        seconds += self.judged(untrained, dev) if len(untrained) > 1 else 0.0
        seconds += 2 * self._searched()  # by the base and by the tuned model
        if config.evidence == "plain":
            return seconds
        ways = max(1, len(decodings.candidates(work.inputs.tuned, work.data.task, config.decoding)))
        seconds += (ways - 1) * self.asked(chosen, dev) + (self.by_tuned(dev) if ways > 1 else 0.0)
        seconds += self.trained() if any(arm.branch for arm in chosen) else 0.0
        again = repeated(test)
        seconds += self.by_tuned(again) + max((self.judged([a], again) for a in untrained), default=0.0)
        if work.data.task.metric.by_label:
            seconds += self.by_tuned(min(CALIBRATED, len(work.inputs.rows["dev"])))
        return seconds

    def experiments(self) -> dict[str, float]:
        work, config = self.work, self.work.config.experiments
        dev, test = len(work.inputs.dev), len(work.inputs.test)
        seconds: dict[str, float] = {}
        tunes = work.plan.method == "sft"
        adapter = work.plan.adapter.kind != "none" and tunes
        if work.plan.method in (*PREFERENCE, *RATED) and work.config.prove.evidence != "plain":
            seconds["pairs"] = self.trained() + self.by_tuned(test)  # on one answer of each pair; the other is read
        if work.plan.teacher is not None:  # before and after training, and after fine-tuning
            models = 2 + ("sft" in work.inputs.arms)
            tokens = sum(r.tokens for r in work.inputs.test_rows)
            seconds["distillation"] = (self.larger + models) * tokens * self.pilot.read
        if work.plan.method in REWARDED and (work.config.prove.evidence != "plain" or config.raft):
            seconds["rewards"] = self.rewards()
        if config.crossfit and adapter:
            # The half that is left out: answered, or read by both models.
            by_label = work.data.task.metric.by_label
            half = self.by_tuned(work.plan.rows // 2) if by_label else work.plan.tokens * self.pilot.read
            seconds["crossfit"] = 4 * (self.trained(0.5) + half)
        if config.cleaning:
            seconds["cleaning"] = self.trained() + self.by_tuned(test)
        if config.mitigation and adapter:
            seconds["mitigation"] = 2 * (self.trained() + self.by_tuned(dev)) + 6 * GENERIC * self.pilot.read
        if (count := config.prompt_distillation) and tunes:
            teacher = next(iter(work.inputs.arms.values()))[:1]
            seconds["prompt_distillation"] = self.judged(teacher, count + dev + 2 * test)
            seconds["prompt_distillation"] += self.trained((count + dev) / work.plan.rows)
        if work.config.prove.evidence == "full":
            seconds["learning_curve"] = self.trained(0.5) + self.by_tuned(test)
        return seconds

    def cost(self) -> float:
        if self.work.config.prove.evidence != "full" or self.tuned is None:
            return 0.0
        steps, tuned = self.pilot.steps, self.tuned
        alone = 2 * (tuned.prefix + tuned.own) * self.pilot.read + tuned.mean * steps.step * steps.adapter
        return 4 * (self.work.config.cost.requests + 1) * alone

    def export(self) -> float:
        work, config = self.work, self.work.config.export
        source = TrainedRun(work.run, work.config, work.plan, work.inputs.facts, work.inputs.template)
        short = 2 * CHECK_PROMPTS * NEW_TOKENS * self.pilot.steps.step  # answers of the trained model and of the export
        again = self.by_tuned(min(config.rows, len(work.inputs.test))) + self._searched()
        return len(wanted(source)) * (LOADING + short + again)


def stages(work: Work, measured: Pilot) -> dict[str, float]:
    """The seconds of each stage that takes long, by name."""
    f = Forecast(work, measured, _tuned(work))
    seconds = {"train": f.trained()}
    if work.config.prove.evidence != "plain" and not work.plan.silent:
        seconds["forgetting"] = f.forgetting()
    seconds |= {"prove": f.prove(), **f.experiments(), "cost": f.cost(), "export": f.export()}
    return {name: s for name, s in seconds.items() if s}


def training_gb(work: Work, speed: Speed) -> float:
    """Memory while the model trains: that of the first passes, and half of what `heap.bounded` lets pile up (rows of
    one length pile up nothing), so neither extreme is far off. Of a GPU, nothing but the peak so far is known."""
    return heap.GROWTH**0.5 * speed.held_gb if work.inputs.machine.device == "cpu" else 0.0


def decoding_gb(work: Work, measured: Pilot) -> float:
    """Memory while the arms write: weights, a cache for each row of the widest batch, and what a pass needs."""
    facts, plan = work.inputs.facts, work.plan
    size = 2 if plan.dtype == "bfloat16" else 4
    widths = [x.widest + plan.max_new_tokens for x in measured.lengths.values() for _ in work.inputs.test]
    widths = sorted(widths, reverse=True)[: plan.decode_batch_size]
    cache = size * facts.layers * facts.cached * min(sum(widths), planning.batch_tokens(plan))
    passes = ACTIVATIONS * size * facts.hidden * generate.PREFILL_TOKENS + LOGITS * facts.vocabulary * len(widths)
    return 1e-9 * (size * facts.parameters + cache + passes) + PROCESS_GB


def export_gb(work: Work) -> float:
    """Memory while exports are checked: the trained model in float32, merged, as tensors to write, and loaded again."""
    facts = work.inputs.facts
    return PROCESS_GB + 4e-9 * 4 * facts.parameters if work.config.export.to and not facts.packed else 0.0


def _tuned(work: Work) -> Lengths | None:
    """Of the tuned arm, if it writes: answers as long as those that it learns."""
    arm = work.inputs.tuned
    if not decoded_together(arm):
        return None
    if work.plan.method in REWARDED:  # half of the limit, for want of a better guess
        return Lengths(*pilot.prompts(work, arm), work.plan.max_new_tokens / 2, work.plan.max_new_tokens)
    rows = [r for r in work.inputs.rows["train"] if kto.is_desirable(r)]
    answers = [min(r.sequences[0].supervised, work.plan.max_new_tokens) for r in rows]
    return Lengths(*pilot.prompts(work, arm), sum(answers) / len(answers), max(answers))
