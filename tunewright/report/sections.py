"""What the report's sections need beyond the run's records: sentences that depend on several of them, ordered rows,
charts. No markup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunewright.core.config import Plan
from tunewright.core.records import (
    Calibration,
    Forecast,
    Forgetting,
    LearningCurve,
    Preferences,
    Probe,
    RecipeSweep,
    ScoreLine,
    StartLine,
    StepLine,
    Verdict,
)
from tunewright.data.metrics import METRICS
from tunewright.report import plots
from tunewright.report.page import fixed, interval, line, metric, percent, signed, spaced

MAX_CUT_FRACTION = 0.2  # fraction of cut answers above which the verdict comes with a caution
MAX_SHOWN_ROWS = 20  # with the largest losses, and with the largest gains
DECODING_WORDS = {"greedy": "greedy", "penalty": "greedy with a repetition penalty", "sampled": "sampled"}
FEW_CHOICES = 30  # by people, below which more would help
COLOURS = {"BETTER": "good", "WORSE": "bad", "PRACTICALLY EQUAL": "even", "CANNOT TELL": "even", "HACKED": "bad"}


@dataclass(frozen=True)
class Head:
    """The first screen: the verdict as a sentence, what it means and does not mean, cautions about it, and the key
    figures (value, caption)."""

    colour: str
    sentence: str
    meaning: str
    cautions: tuple[str, ...]
    tiles: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Change:
    """One test row: the tuned model's answer and the comparator's. ``notes``: the score of each, and whether it was
    cut."""

    where: str
    question: str
    expected: str
    other: str
    tuned: str
    notes: tuple[str, str]


@dataclass(frozen=True)
class Changes:
    """Test rows by how tuning changed their score: how many, and those that changed most."""

    better: int
    worse: int
    same: int
    regressions: tuple[Change, ...]
    gains: tuple[Change, ...]


def head(verdict: Verdict, plan: Plan, preferences: Preferences | None = None, quantised: bool = False) -> Head:
    """The top of the page, above its first section. ``quantised``: whether the run's base has fewer bits than its
    files."""
    other, difference = verdict.comparator.name, signed(verdict.difference)
    confidence = percent(verdict.confidence)
    by = "minus" if METRICS[verdict.metric].higher_is_better else "lower than"
    return Head(
        colour=COLOURS[verdict.verdict],
        sentence=_sentence(verdict) + _margin_note(verdict),
        meaning=_meaning(verdict) + _people(verdict, preferences),
        cautions=tuple(cautions(verdict, quantised)),
        tiles=(
            (fixed(verdict.tuned), f"tuned, {metric(verdict.metric)}"),
            (fixed(verdict.comparator.score), spaced(other)),
            (difference, f"{by} {spaced(other)}; {confidence} interval {interval(verdict.interval, sign=True)}"),
            (f"{plan.rows:,}", f"training sequences, {plan.steps} steps planned"),
        ),
    )


def _sentence(verdict: Verdict) -> str:
    name, rows, needed = verdict.comparator.name, verdict.n, verdict.rows_needed
    other = f"the best untrained arm ({spaced(name)})"
    if verdict.doubts and verdict.verdict != "WORSE":
        others = " or ".join(map(spaced, verdict.doubts))
        return (
            f"On {rows} held-out rows the tuned model is better than the untrained arm chosen on dev ({spaced(name)}), "
            f"but not shown to be better than {others}: the comparator is weak, and beating it alone does not justify "
            "fine-tuning."
        )
    if verdict.verdict == "BETTER":
        return f"On {rows} held-out rows the tuned model is better than {other}."
    if verdict.verdict == "HACKED" and (check := verdict.reward_check):
        return (
            f"On {rows} held-out rows the tuned model has a higher reward than {other}, and is worse by the grader "
            f"that was not trained on ({check.tuned:.3f}, {check.comparator:.3f}): it learned what the reward pays "
            "for, and not the task. Do not use it."
        )
    others_better = [n for n in verdict.better or () if n != name]
    if verdict.verdict == "WORSE" and others_better:
        names = " and ".join(map(spaced, others_better))
        return (
            f"On {rows} held-out rows the tuned model is worse than {names}, although the untrained arm chosen on dev "
            f"is {spaced(name)}. Do not use it. What did better: {verdict.arms[others_better[0]].description}."
        )
    if verdict.verdict == "WORSE":
        better = verdict.arms[name].description
        worse = f"On {rows} held-out rows the tuned model is worse than {other}."
        return f"{worse} Do not use it. What did better: {better}."
    if verdict.verdict == "PRACTICALLY EQUAL":
        margin = verdict.margin
        return f"On {rows} held-out rows the tuned model and {other} differ by less than the margin of {margin:g}."
    more = f" About {needed:,} rows would." if needed else ""
    if verdict.within_rerun_noise and not needed:
        more = " The difference is within re-run noise, which more rows do not reduce."
    if verdict.off_topic:
        return (
            f"On {rows} held-out rows the tuned model scores better than {other}, but your answers are not shown to "
            f"be likelier after their own question than after another row's{_topic(verdict)}: it may have learned only "
            "how they are written."
        )
    return f"{rows} held-out rows do not show which is better, the tuned model or {other}.{more}"


def _meaning(verdict: Verdict) -> str:
    """Of free text: what was measured, and what was not."""
    measured = {
        "reference_bits": "What was measured: how likely the model finds your answers, their form, tone and words",
        "chrf": "What was measured: how much of your answers' wording is in the model's answers",
    }.get(verdict.metric)
    if measured is None:
        return ""
    area = verdict.voice.arms["tuned"].auc if verdict.voice else None
    apart = ""
    if area is not None:
        still = "still tells" if area.interval.low > 0.5 else "is not shown to tell"
        apart = f" A classifier {still} its answers from yours (AUC {fixed(area.value, 2)}; 0.5 is a coin toss)."
    return f"{measured}. Whether what it writes is true was not measured.{apart}"


def _people(verdict: Verdict, preferences: Preferences | None) -> str:
    """How often people preferred the tuned model to the comparator."""
    compared = preferences.comparisons if preferences else ()
    rate = next((c.people for c in compared if c.against == verdict.comparator.name), None)
    if rate is None:
        return ""
    low, high = rate.interval
    shown = "more often" if low > 0.5 else "less often" if high < 0.5 else "no clear preference"
    few = f"; {FEW_CHOICES} to 100 rows give a usable interval" if rate.rows < FEW_CHOICES else ""
    how_often = f"{percent(rate.rate)} of {rate.rows} rows ({percent(low)} to {percent(high)}; {shown}{few})"
    return f" People preferred its answers in {how_often}."


def _topic(verdict: Verdict) -> str:
    topic = verdict.topic
    assert topic is not None
    ends = interval(topic.interval, sign=True)
    return f" (difference {signed(topic.difference)} bits per byte, 99.8% interval {ends})"


def _margin_note(verdict: Verdict) -> str:
    margin = verdict.margin
    if verdict.verdict != "BETTER" or verdict.interval[0] >= margin:
        return ""
    return f" The lower end of the interval is below {margin:g}, the margin for a useful difference (prove.margin)."


def cautions(verdict: Verdict, quantised: bool = False) -> list[str]:
    """What a reader must know beyond the verdict."""
    sentences = []
    if quantised and "full_precision" not in verdict.arms:
        sentences.append(
            "All arms ran on the quantised base. Whether the tuned model beats the base in its own precision was not "
            "measured: it did not fit in the memory of the machine."
        )
    for ability, probe in _probes(forgetting(verdict)).items():
        if probe is not None and probe.verdict == "WORSE":
            change = interval(probe.interval, sign=True)
            values = f"{fixed(probe.base)} before, {fixed(probe.tuned)} after ({change})"
            sentences.append(f"The tuned model got worse {ability}: {values}.")
    if tfidf_unbeaten(verdict):
        sentences.append("The tuned model is not shown to beat a TF-IDF classifier that trains in seconds.")
    arms = {"tuned": verdict.tuned_arm, verdict.comparator.name: verdict.comparator_arm}
    cut = {name: arm.summary.get("cut_answers", 0.0) for name, arm in arms.items()}
    if max(cut.values()) > MAX_CUT_FRACTION:
        counts = " and ".join(f"{percent(fraction)} of {spaced(name)} answers" for name, fraction in cut.items())
        limit = f"cut off at {verdict.max_new_tokens} tokens"
        affects = (
            "this affects chrF and the answers below, not the verdict"
            if verdict.metric == "reference_bits"
            else "only the text before the cut is scored"
        )
        sentences.append(f"{counts} were {limit}; {affects} (prove.max_new_tokens).")
    return sentences


def _probes(forgetting: Forgetting | None) -> dict[str, Probe | None]:
    """The probes of forgetting.json that have a verdict of their own, by what the model got worse or better at."""
    if forgetting is None:
        return {}
    general = forgetting.probes and {
        "at knowledge questions": forgetting.probes.knowledge,
        "at following instructions": forgetting.probes.instructions,
    }
    return {**(general or {}), "on your regression rows": forgetting.regression_rows}


def forgetting(verdict: Verdict) -> Forgetting | None:
    """The result of the stage `forgetting`; None if it measured nothing."""
    return verdict.forgetting if isinstance(verdict.forgetting, Forgetting) else None


def tfidf_unbeaten(verdict: Verdict) -> bool:
    """Whether tuned is not shown to be better than the TF-IDF classifier, if there is one."""
    classical = verdict.arms.get("classical")
    against = classical and classical.tuned_minus_this
    return against is not None and against.interval.low <= 0


def decodings(verdict: Verdict) -> str:
    """How the arms' tokens were chosen."""
    used = {arm.decoding or "greedy" for name, arm in verdict.arms.items() if name != "remote"}
    chosen = "" if used == {"greedy"} else ", chosen on dev by chrF for each arm"
    return f"{' or '.join(DECODING_WORDS[name] for name in sorted(used))}{chosen}"


def closer_arms(verdict: Verdict) -> list[str]:
    """Untrained arms whose chrF is higher than the tuned model's, where it is not the verdict's metric."""
    tuned = verdict.tuned_arm.summary.get("corpus_chrf")
    if verdict.metric != "reference_bits" or tuned is None:
        return []
    return [name for name in verdict.untrained_arms if verdict.arms[name].summary.get("corpus_chrf", 0.0) > tuned]


def other_metrics(verdict: Verdict) -> list[str]:
    """Names of the metrics, besides the verdict's own, that were measured for any arm."""
    return sorted({name for arm in verdict.arms.values() for name in arm.summary})


def changes(tuned: Sequence[ScoreLine], other: Sequence[ScoreLine], metric_name: str) -> Changes:
    """Pairs the two arms' scored rows, which are the same rows in the same order."""
    sign = 1 if METRICS[metric_name].higher_is_better else -1
    gains = sorted((sign * (a.score - b.score), i) for i, (a, b) in enumerate(zip(tuned, other, strict=True)))
    worse, better = [i for gain, i in gains if gain < 0], [i for gain, i in reversed(gains) if gain > 0]
    return Changes(
        better=len(better),
        worse=len(worse),
        same=len(gains) - len(better) - len(worse),
        regressions=tuple(_change(tuned[i], other[i]) for i in worse[:MAX_SHOWN_ROWS]),
        gains=tuple(_change(tuned[i], other[i]) for i in better[:MAX_SHOWN_ROWS]),
    )


def _change(tuned: ScoreLine, other: ScoreLine) -> Change:
    messages = tuned.messages
    return Change(
        where=line(tuned.where),
        question=next((m.content for m in reversed(messages) if m.role == "user"), ""),
        expected=tuned.target,
        other=other.answer,
        tuned=tuned.answer,
        notes=(_note(other), _note(tuned)),
    )


def _note(answered: ScoreLine) -> str:
    return f"{fixed(answered.score)}{', cut' if answered.cut else ''}"


def settings(plan: Plan) -> list[tuple[str, str, str]]:
    """(name, value, reason) of everything the plan fixed, without what is empty."""
    elsewhere = ("reasons", "estimate", "adapter", "options", "embed", "teacher")
    rows = [(name, _shown(value), plan.reasons.get(name, "")) for name, value in plan if name not in elsewhere]
    rows += [(name, _shown(value), "") for name, value in plan.options]
    rows += [(f"embed.{name}", _shown(value), "") for name, value in plan.embed or ()]
    rows += [(f"adapter.{k}", _shown(value), plan.reasons.get(f"adapter.{k}", "")) for k, value in plan.adapter]
    if plan.teacher:
        rows.append(("teacher", f"{plan.teacher.title}, sha256 {plan.teacher.sha256[:16]}", ""))
        rows += [(f"distill.{k}", _shown(value), "") for k, value in plan.teacher.settings if k != "teacher"]
    if plan.estimate:
        expected = f"{plan.estimate.train_seconds:.0f} s, {plan.estimate.peak_gb:.1f} GB"
        rows.append(("estimate", expected, plan.estimate.reason))
    return [row for row in rows if row[1]]


def _shown(value: object) -> str:
    if value is None or value in ((), [], {}):
        return ""
    return json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)


def arms_chart(verdict: Verdict) -> Markup:
    """Score and interval of every arm, the first on top."""
    arms = list(reversed(verdict.arms.items()))
    bars = [plots.Bar(name, arm.score, *arm.interval) for name, arm in arms]
    name = verdict.metric
    return plots.arms(bars, metric(name), METRICS[name].higher_is_better, verdict.comparator.name)


def pareto_chart(forgetting: Forgetting | None, metric_name: str) -> Markup | None:
    """Dev score by KL for every scale, if several were tried."""
    if forgetting is None or forgetting.sweep is None or forgetting.task is None:
        return None
    text, measured = ("generic", forgetting.generic) if forgetting.generic is not None else ("task", forgetting.task)
    scores = [forgetting.sweep.dev[f"{scale:g}"] for scale in forgetting.scales]
    points = [plots.Scale(*values) for values in zip(forgetting.scales, measured.kl_bits, scores, strict=True)]
    return plots.pareto(points, forgetting.sweep.chosen, text, metric(metric_name))


def curve_chart(verdict: Verdict, ceiling: float | None) -> Markup | None:
    """Score by number of training rows, if it was measured."""
    curve = verdict.learning_curve
    if not isinstance(curve, LearningCurve):
        return None
    rows, seeds, ahead = [p.rows for p in curve.points], [p.seeds for p in curve.points], None
    if isinstance(curve.forecast, Forecast):
        ahead = plots.ForecastPoint(curve.forecast.rows, curve.forecast.score, *curve.forecast.interval)
    against = plots.Reference(verdict.comparator.score, ceiling)
    return plots.curve(rows, seeds, against, ahead, metric(verdict.metric))


def sweep_chart(sweep: RecipeSweep) -> Markup:
    """Dev loss of every recipe by the fraction of its steps."""
    paths = [plots.Path(r.words, [(rung.fraction, rung.loss) for rung in r.rungs]) for r in sweep.recipes]
    return plots.rungs(paths, sweep.chosen)


def loss_chart(lines: Sequence[StartLine | StepLine], best_step: int | None) -> Markup:
    """Training and dev loss by step; in learning from rewards, mean rewards."""
    steps = [x for x in lines if isinstance(x, StepLine)]
    dev = [(x.step, x.dev_loss) for x in lines if x.dev_loss is not None]
    rewards = [(x.step, x.metrics["reward"]) for x in steps if x.metrics and "flat_groups" in x.metrics]
    if rewards:
        return plots.losses(rewards, [(step, -loss) for step, loss in dev], best_step, "mean reward")
    return plots.losses([(x.step, x.loss) for x in steps], dev, best_step)


def coverage_chart(calibration: Calibration | None) -> Markup | None:
    """Accuracy by the fraction of rows answered, if it was measured."""
    if calibration is None:
        return None
    return plots.risk_coverage(calibration.curve, calibration.handover.threshold if calibration.handover else None)
