"""The verdict, decided from scores: pure functions on values. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tunewright.core.records.common import Interval, VerdictWord
from tunewright.judge import statistics
from tunewright.judge.arms.arm import Arm
from tunewright.judge.protocol import Protocol
from tunewright.judge.statistics import Comparison


@dataclass(frozen=True)
class ArmResult:
    """One arm on the test rows. ``scores``: one per row; ``on_dev``: its mean score on dev, if it was
    measured; ``prompt_tokens``: the mean; ``seconds``: for all rows, None if not measured."""

    description: str
    learned_from_rows: bool
    scores: tuple[float, ...]
    variant: str = ""
    on_dev: float | None = None
    summary: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    prompt_tokens: float = 0.0

    @property
    def score(self) -> float:
        return float(sum(self.scores) / len(self.scores))


@dataclass(frozen=True)
class Contrast:
    """Tuned against one arm; ``p_holm``: the p value adjusted for all such comparisons."""

    comparison: Comparison
    p_holm: float


@dataclass(frozen=True)
class ComparedArm:
    """``interval``: of the arm's own mean score; ``contrast`` is None for the tuned arm."""

    result: ArmResult
    interval: Interval
    contrast: Contrast | None

    def to_json(self) -> dict[str, Any]:
        arm = self.result
        value: dict[str, Any] = {
            "description": arm.description,
            "trained": arm.learned_from_rows,
            "variant": arm.variant,
            "on_dev": arm.on_dev,
            "score": arm.score,
            "summary": dict(arm.summary),
            "seconds": arm.seconds,
            "prompt_tokens": arm.prompt_tokens,
            "interval": list(self.interval),
        }
        if self.contrast is not None:
            comparison, p_holm = self.contrast.comparison, self.contrast.p_holm
            value["tuned_minus_this"] = {**comparison.estimate(), "p_value": comparison.p_value, "p_holm": p_holm}
        return value


@dataclass(frozen=True)
class Comparator:
    """The untrained arm that tuned is compared with. ``chosen_on``: "dev", or "test" if there are no dev scores;
    ``on_dev``: the dev scores of the untrained arms."""

    name: str
    score: float
    variant: str
    chosen_on: str
    on_dev: dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """``comparison``: tuned - comparator; ``word`` is its verdict or a weaker one. ``unbeaten``: untrained arms that
    tuned is not shown to beat. ``clusters``: of the test rows."""

    metric: str
    word: VerdictWord
    rows_needed: int | None
    comparator: Comparator
    comparison: Comparison
    unbeaten: tuple[str, ...]
    arms: dict[str, ComparedArm]
    clusters: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """This verdict's part of verdict.json."""
        facts = {**self.comparison.to_json(), "verdict": self.word, "rows_needed": self.rows_needed}
        rows = facts.pop("rows")
        return {
            "metric": self.metric,
            "tuned": self.arms["tuned"].result.score,
            "comparator": asdict(self.comparator),
            "arms": {name: arm.to_json() for name, arm in self.arms.items()},
            "groups": list(self.clusters),
            **facts,
            "n": rows,
            "unbeaten": list(self.unbeaten),
        }


def decide(arms: Mapping[str, ArmResult], protocol: Protocol, clusters: Sequence[int]) -> Verdict:
    """The verdict from the test scores: tuned against the untrained arm that scored best on dev. Without dev scores,
    the comparator is the best on these same rows, which favours it. All other comparisons with tuned are exploratory.

    With few dev rows, the comparator may be a weak one. So BETTER requires that every untrained arm is beaten, each at
    alpha: an intersection-union test, which needs no adjustment (Berger 1982, Technometrics 24:295).
    """
    untrained = {name: arm for name, arm in arms.items() if not arm.learned_from_rows}
    on_dev = {name: arm.on_dev for name, arm in untrained.items() if arm.on_dev is not None}
    best = max if protocol.higher_is_better else min
    other = best(untrained, key=lambda name: on_dev[name] if on_dev else arms[name].score)
    against = {
        name: protocol.compare(arms["tuned"].scores, arm.scores, clusters)
        for name, arm in arms.items()
        if name != "tuned"
    }
    p_holm = dict(zip(against, statistics.holm([c.p_value for c in against.values()]), strict=True))
    unbeaten = tuple(name for name in untrained if against[name].interval.low <= 0)
    comparison = against[other]
    word, rows_needed = comparison.verdict, comparison.rows_needed
    if word == "BETTER" and unbeaten:
        word, rows_needed = "CANNOT TELL", max(against[name].rows_needed or 0 for name in unbeaten) or None
    return Verdict(
        metric=protocol.metric,
        word=word,
        rows_needed=rows_needed,
        comparator=Comparator(
            name=other,
            score=arms[other].score,
            variant=arms[other].variant,
            chosen_on="dev" if on_dev else "test",
            on_dev=on_dev,
        ),
        comparison=comparison,
        unbeaten=unbeaten,
        arms={
            name: ComparedArm(
                result=arm,
                interval=statistics.mean_interval(arm.scores, clusters, protocol.alpha, protocol.bound),
                contrast=Contrast(against[name], p_holm[name]) if name in against else None,
            )
            for name, arm in arms.items()
        },
        clusters=tuple(clusters),
    )


def choose_variant(variants: Sequence[Arm], on_dev: Mapping[str, float], higher_is_better: bool) -> Arm:
    """The variant that scored best on dev (``on_dev``: by arm name); the first of equals, or if there are no scores."""
    if variants[0].name not in on_dev:
        return variants[0]
    sign = 1 if higher_is_better else -1
    return max(variants, key=lambda arm: sign * on_dev[arm.name])


@dataclass(frozen=True)
class RerunNoise:
    """The same rows answered twice. ``floor``: the changes of the mean scores of tuned and comparator, summed;
    ``changed``: answers that differ."""

    rows: int
    changed: int
    floor: float


def with_rerun_noise(verdict: Verdict, noise: RerunNoise) -> Verdict:
    """CANNOT TELL if the difference is within re-run noise."""
    within = verdict.word in ("BETTER", "WORSE") and abs(verdict.comparison.difference) <= noise.floor
    return replace(verdict, word="CANNOT TELL") if within else verdict


def doubts(verdict: Mapping[str, Any]) -> list[str]:
    """The untrained arms of a verdict.json that tuned is not shown to beat, although it beats the comparator."""
    return list(verdict["unbeaten"]) if verdict["interval"][0] > 0 else []


def sentence(verdict: Mapping[str, Any]) -> str:
    """A verdict.json in one line."""
    other, (low, high) = verdict["comparator"], verdict["interval"]
    also = [f"{name} ({verdict['arms'][name]['score']:.3f})" for name in doubts(verdict)]
    return (
        f"{verdict['verdict']}: {verdict['metric']} tuned {verdict['tuned']:.3f}, "
        f"{other['name']} {other['score']:.3f}, difference {verdict['difference']:+.3f} "
        f"[{low:+.3f}, {high:+.3f}] on {verdict['n']} held-out rows"
        + (f"; not shown to be better than {', '.join(also)}" if also else "")
    )
