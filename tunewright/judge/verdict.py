"""The comparator, and the verdict of a run: pure functions on values. No torch.

`statistics.compare` states what one comparison shows. The verdict of a run has more conditions, and `final_verdict`
alone decides it: nothing changes the verdict after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tunewright.core.records import RewardCheck, TopicContrast, Verdict
from tunewright.core.records.common import Interval, RunVerdict
from tunewright.data.metrics import METRICS
from tunewright.judge import statistics
from tunewright.judge.arms.arm import Arm
from tunewright.judge.protocol import Protocol
from tunewright.judge.statistics import Comparison


@dataclass(frozen=True)
class ScoredArm:
    """One arm on the test rows. ``trained``: as in `Arm`. ``scores``: one per row; ``checks``: likewise, by
    reward.check; ``on_dev``: its mean score on dev, if it was measured; ``prompt_tokens``: the mean; ``seconds``: for
    all rows, None if not measured."""

    description: str
    trained: bool
    scores: tuple[float, ...]
    variant: str = ""
    decoding: str = "greedy"
    on_dev: float | None = None
    summary: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    prompt_tokens: float = 0.0
    checks: tuple[float, ...] = ()

    @property
    def score(self) -> float:
        return float(sum(self.scores) / len(self.scores))

    @property
    def can_be_comparator(self) -> bool:
        """As `Arm.can_be_comparator`."""
        return not self.trained


@dataclass(frozen=True)
class AdjustedComparison:
    """Tuned against one arm; ``p_holm``: the p value adjusted for all such comparisons."""

    comparison: Comparison
    p_holm: float


@dataclass(frozen=True)
class ComparedArm:
    """``interval``: of the arm's own mean score; ``contrast``: with the tuned arm, None for the tuned arm itself."""

    arm: ScoredArm
    interval: Interval
    contrast: AdjustedComparison | None

    def to_json(self) -> dict[str, Any]:
        arm = self.arm
        value: dict[str, Any] = {
            "description": arm.description,
            "trained": arm.trained,
            "variant": arm.variant,
            "decoding": arm.decoding if arm.decoding != "greedy" else None,
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
class ChosenComparator:
    """The untrained arm that tuned is compared with. ``chosen_on``: "dev", or "test" if there are no dev scores;
    ``on_dev``: the dev scores of the untrained arms."""

    name: str
    score: float
    variant: str
    chosen_on: str
    on_dev: dict[str, float]


@dataclass(frozen=True)
class RerunNoise:
    """The same rows answered twice. ``floor``: the changes of the mean scores of tuned and comparator, summed;
    ``changed``: answers that differ."""

    rows: int
    changed: int
    floor: float


@dataclass(frozen=True)
class Decision:
    """``verdict``: of the run. ``rows_needed``: how many test rows would decide a CANNOT TELL; None for the other
    verdicts, and if more rows would not help. ``comparison``: tuned - comparator, whose own verdict may be another one.
    ``unbeaten``: untrained arms that tuned is not shown to beat; ``better``: those that
    are shown to beat it. ``clusters``: of the test rows."""

    metric: str
    verdict: RunVerdict
    rows_needed: int | None
    comparator: ChosenComparator
    comparison: Comparison
    unbeaten: tuple[str, ...]
    better: tuple[str, ...]
    arms: dict[str, ComparedArm]
    clusters: tuple[int, ...]
    check: RewardCheck | None = None

    def to_json(self) -> dict[str, Any]:
        """Its part of verdict.json."""
        numbers = self.comparison.to_json()
        rows, _, _ = numbers.pop("rows"), numbers.pop("verdict"), numbers.pop("rows_needed")
        return {
            "metric": self.metric,
            "tuned": self.arms["tuned"].arm.score,
            "comparator": asdict(self.comparator),
            "arms": {name: compared.to_json() for name, compared in self.arms.items()},
            "groups": list(self.clusters),
            "verdict": self.verdict,
            "rows_needed": self.rows_needed,
            **numbers,
            "n": rows,
            "unbeaten": list(self.unbeaten),
            "better": list(self.better),
            "reward_check": self.check and self.check.model_dump(),
        }


def choose_comparator(arms: Mapping[str, ScoredArm], higher_is_better: bool) -> ChosenComparator:
    """The untrained arm that scored best on dev. Without dev scores, the best on the test rows themselves: if there are
    several, that favours it."""
    untrained = {name: arm for name, arm in arms.items() if arm.can_be_comparator}
    on_dev = {name: arm.on_dev for name, arm in untrained.items() if arm.on_dev is not None}
    best = max if higher_is_better else min
    name = best(untrained, key=lambda name: on_dev[name] if on_dev else arms[name].score)
    return ChosenComparator(
        name=name,
        score=arms[name].score,
        variant=arms[name].variant,
        chosen_on="dev" if on_dev else "test",
        on_dev=on_dev,
    )


def final_verdict(
    arms: Mapping[str, ScoredArm],
    comparator: ChosenComparator,
    protocol: Protocol,
    clusters: Sequence[int],
    noise: RerunNoise | None = None,
    topic: TopicContrast | None = None,
) -> Decision:
    """The verdict of a run: what the comparison of tuned with ``comparator`` shows, unless

    - it is BETTER, but tuned is not shown to beat every other untrained arm: CANNOT TELL. With few dev rows, dev may
      have chosen a weak comparator. Each arm is compared at alpha: an intersection-union test, which needs no
      adjustment (Berger 1982, Technometrics 24:295).
    - it is BETTER or WORSE, but the difference is within the re-run ``noise``: CANNOT TELL. More test rows do not
      reduce that noise, so no number of rows is given.
    - it would be PRACTICALLY EQUAL or CANNOT TELL, but another untrained arm is shown to be better than tuned, by
      Holm's method: WORSE. Dev may have chosen a weak comparator.
    - it is BETTER by the reward, but shown to be worse by reward.check, which was not trained on: HACKED.
    - it is BETTER, but the answers of free text are not shown to depend on the question (``topic``): CANNOT TELL.

    All other comparisons with tuned are exploratory.
    """
    against = {
        name: protocol.compare(arms["tuned"].scores, arm.scores, clusters)
        for name, arm in arms.items()
        if name != "tuned"
    }
    p_holm = dict(zip(against, statistics.holm([c.p_value for c in against.values()]), strict=True))
    untrained = [name for name, arm in arms.items() if arm.can_be_comparator]
    unbeaten = tuple(name for name in untrained if against[name].verdict != "BETTER")
    better = tuple(n for n in untrained if against[n].verdict == "WORSE" and p_holm[n] <= protocol.alpha)
    comparison = against[comparator.name]
    verdict: RunVerdict = comparison.verdict
    rows_needed = comparison.rows_needed
    if verdict == "BETTER" and unbeaten:
        verdict, rows_needed = "CANNOT TELL", max(against[name].rows_needed or 0 for name in unbeaten) or None
    if noise is not None and verdict in ("BETTER", "WORSE") and abs(comparison.difference) <= noise.floor:
        verdict, rows_needed = "CANNOT TELL", None
    if verdict in ("PRACTICALLY EQUAL", "CANNOT TELL") and set(better) - {comparator.name}:
        verdict, rows_needed = "WORSE", None
    if topic is not None and verdict == "BETTER" and not topic.depends_on_question:
        verdict, rows_needed = "CANNOT TELL", _rows_for(topic)
    check = _check(arms["tuned"], arms[comparator.name], protocol, clusters)
    if check is not None and verdict == "BETTER" and check.verdict == "WORSE":
        verdict, rows_needed = "HACKED", None
    return Decision(
        metric=protocol.metric,
        verdict=verdict,
        rows_needed=rows_needed,
        comparator=comparator,
        comparison=comparison,
        unbeaten=unbeaten,
        better=better,
        arms={
            name: ComparedArm(
                arm=arm,
                interval=statistics.mean_interval(arm.scores, clusters, protocol.alpha, protocol.bound),
                contrast=AdjustedComparison(against[name], p_holm[name]) if name in against else None,
            )
            for name, arm in arms.items()
        },
        clusters=tuple(clusters),
        check=None if check is None else _reward_check(arms["tuned"], arms[comparator.name], check),
    )


def _check(tuned: ScoredArm, other: ScoredArm, protocol: Protocol, clusters: Sequence[int]) -> Comparison | None:
    """Of both arms by reward.check, if there is one."""
    return protocol.compare(tuned.checks, other.checks, clusters) if tuned.checks else None


def _reward_check(tuned: ScoredArm, other: ScoredArm, check: Comparison) -> RewardCheck:
    means = [sum(arm.checks) / len(arm.checks) for arm in (tuned, other)]
    return RewardCheck(tuned=means[0], comparator=means[1], difference=check.difference, interval=check.interval)


def _checked(check: RewardCheck, comparator: str) -> str:
    return (
        f"by reward.check, tuned {check.tuned:.3f}, {comparator} {check.comparator:.3f}, "
        f"difference {check.difference:+.3f} {check.interval:+.3f}"
    )


def _rows_for(topic: TopicContrast) -> int | None:
    """Test rows whose interval would exclude 0, if the difference stays; its width falls with their square root."""
    if topic.difference <= 0:
        return None
    half = topic.difference - topic.interval.low
    return math.ceil(topic.rows * (half / topic.difference) ** 2)


def choose_variant(variants: Sequence[Arm], on_dev: Mapping[str, float], higher_is_better: bool) -> Arm:
    """The variant that scored best on dev (``on_dev``: by arm name); the first of equals, or if there are no scores."""
    if variants[0].name not in on_dev:
        return variants[0]
    sign = 1 if higher_is_better else -1
    return max(variants, key=lambda arm: sign * on_dev[arm.name])


def sentence(verdict: Verdict) -> str:
    """The verdict of a run in one line."""
    other = verdict.comparator
    difference = "difference" if METRICS[verdict.metric].higher_is_better else "lower by"
    also = [f"{name} ({verdict.arms[name].score:.3f})" for name in verdict.doubts]
    better = [f"{name} ({verdict.arms[name].score:.3f})" for name in verdict.better or () if name != other.name]
    return (
        f"{verdict.verdict}: {verdict.metric} tuned {verdict.tuned:.3f}, {other.name} {other.score:.3f}, "
        f"{difference} {verdict.difference:+.3f} {verdict.interval:+.3f} on {verdict.n} held-out rows"
        + (f"; not shown to be better than {', '.join(also)}" if also else "")
        + (f"; shown to be worse than {', '.join(better)}" if better else "")
        + ("; the difference is within re-run noise" if verdict.within_rerun_noise else "")
        + (f"; {_checked(verdict.reward_check, other.name)}" if verdict.reward_check else "")
        + ("; its answers are not shown to depend on the question" if verdict.off_topic else "")
    )
