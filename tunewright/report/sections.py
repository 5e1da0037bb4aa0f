"""What the report's sections need beyond the run's records: sentences that depend on several of them, ordered rows,
charts. No markup."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunewright.data.metrics import METRICS
from tunewright.report import plots
from tunewright.report.page import Record, at, fixed, interval, line, metric, percent, signed, spaced

CUT = 0.2  # fraction of cut answers from which the verdict comes with a caution
SHOWN = 20  # rows that lost most, and rows that gained most
COLOURS = {"BETTER": "good", "WORSE": "bad", "PRACTICALLY EQUAL": "even", "CANNOT TELL": "even"}
INSTEAD = {
    "zero_shot": "prompt the base model",
    "few_shot": "give the base model example rows in its prompt",
    "nearest": "give the base model the rows most similar to each question",
    "retrieval": "give the base model passages from your documents",
    "constant": "answer with the commonest label",
    "remote": "use the remote model",
    "base": "use the base model",
}
ABILITIES = {  # where forgetting.json compares one, and what it is called
    "probes.knowledge": "knowledge",
    "probes.instructions": "following instructions",
    "keep": "your regression rows",
}


@dataclass(frozen=True)
class Head:
    """The first screen: the verdict as a sentence, what else its reader must know, and the figures (value, caption)
    below it."""

    colour: str
    sentence: str
    cautions: tuple[str, ...]
    tiles: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Change:
    """One test row: the tuned model's answer beside the comparator's, each with its score."""

    where: str
    question: str
    expected: str
    other: str
    tuned: str


@dataclass(frozen=True)
class Changes:
    """Test rows by how tuning changed their score: how many, and those that changed most."""

    better: int
    worse: int
    same: int
    regressions: tuple[Change, ...]
    gains: tuple[Change, ...]


def head(verdict: Record, plan: Record) -> Head:
    """The page above its first section."""
    other, difference = at(verdict, "comparator.name"), signed(at(verdict, "difference"))
    confidence = percent(1 - at(verdict, "alpha"))
    return Head(
        colour=COLOURS[at(verdict, "verdict")],
        sentence=_sentence(verdict) + _margin_note(verdict),
        cautions=tuple(cautions(verdict)),
        tiles=(
            (fixed(at(verdict, "tuned")), f"tuned, {metric(at(verdict, 'metric'))}"),
            (fixed(at(verdict, "comparator.score")), spaced(other)),
            (difference, f"{confidence} interval {interval(at(verdict, 'interval'), sign=True)}"),
            (f"{at(plan, 'rows'):,}", f"training sequences, {at(plan, 'steps')} steps planned"),
        ),
    )


def _sentence(verdict: Record) -> str:
    name, rows, needed = at(verdict, "comparator.name"), at(verdict, "n"), at(verdict, "rows_needed", None)
    other = f"the best untrained arm ({spaced(name)})"
    if at(verdict, "unbeaten") and at(verdict, "interval")[0] > 0:
        others = " or ".join(map(spaced, at(verdict, "unbeaten")))
        return (
            f"On {rows} held-out rows the tuned model is better than the untrained arm chosen on dev "
            f"({spaced(name)}), but not shown "
            f"to be better than {others}: dev chose a weak comparator, and beating it alone does not justify "
            "fine-tuning."
        )
    if at(verdict, "verdict") == "BETTER":
        return f"On {rows} held-out rows the tuned model is better than {other}."
    if at(verdict, "verdict") == "WORSE":
        instead = INSTEAD.get(name, "use that arm")
        return f"On {rows} held-out rows the tuned model is worse than {other}. Do not use it: {instead} instead."
    if at(verdict, "verdict") == "PRACTICALLY EQUAL":
        margin = at(verdict, "margin")
        return f"On {rows} held-out rows the tuned model and {other} differ by less than the margin of {margin:g}."
    enough = f" About {needed} rows would." if needed else ""
    return f"{rows} held-out rows do not decide between the tuned model and {other}.{enough}"


def _margin_note(verdict: Record) -> str:
    margin = at(verdict, "margin")
    if at(verdict, "verdict") != "BETTER" or at(verdict, "interval")[0] >= margin:
        return ""
    return f" The lower end of the interval is below {margin:g}, the margin that you set for a useful difference."


def cautions(verdict: Record) -> list[str]:
    """What a reader of the verdict alone must know as well."""
    found = []
    for path, ability in ABILITIES.items():
        probe = at(forgetting(verdict), path, None)
        if at(probe, "verdict", None) == "WORSE":
            change = interval(at(probe, "interval"), sign=True)
            before, after = fixed(at(probe, "base")), fixed(at(probe, "tuned"))
            found.append(f"It got worse at {ability}: {before} before, {after} after ({change}).")
    if beats_us(verdict):
        found.append("A TF-IDF classifier that trains in seconds is not shown to be worse.")
    arms = ("tuned", at(verdict, "comparator.name"))
    cut = {name: at(verdict, f"arms.{name}.summary.cut_answers", 0.0) for name in arms}
    if max(cut.values()) > CUT:
        counts = " and ".join(f"{percent(fraction)} of {spaced(name)} answers" for name, fraction in cut.items())
        limit = at(verdict, "max_new_tokens")
        found.append(
            f"{counts} were cut off at {limit} tokens; only what precedes the cut is scored (prove.max_new_tokens)."
        )
    return found


def forgetting(verdict: Record) -> Record | None:
    """What the stage `forgetting` measured; None where it measured nothing."""
    found = at(verdict, "forgetting", None)
    return found if at(found, "measured", False) else None


def beats_us(verdict: Record) -> bool:
    """Whether tuned is not shown to be better than the TF-IDF classifier, where there is one."""
    return "classical" in at(verdict, "arms") and at(verdict, "arms.classical.tuned_minus_this.interval")[0] <= 0


def other_metrics(verdict: Record) -> list[str]:
    """Names of what was measured of any arm beside the verdict's metric."""
    return sorted({name for arm in at(verdict, "arms").values() for name in at(arm, "summary")})


def changes(tuned: Sequence[Record], other: Sequence[Record], metric_name: str) -> Changes:
    """Pairs the two arms' scored rows, which are the same rows in the same order."""
    sign = 1 if METRICS[metric_name].higher_is_better else -1
    gains = sorted(
        (sign * (at(a, "score") - at(b, "score")), i) for i, (a, b) in enumerate(zip(tuned, other, strict=True))
    )
    worse, better = [i for gain, i in gains if gain < 0], [i for gain, i in reversed(gains) if gain > 0]
    return Changes(
        better=len(better),
        worse=len(worse),
        same=len(gains) - len(better) - len(worse),
        regressions=tuple(_change(tuned[i], other[i]) for i in worse[:SHOWN]),
        gains=tuple(_change(tuned[i], other[i]) for i in better[:SHOWN]),
    )


def _change(tuned: Record, other: Record) -> Change:
    messages = at(tuned, "messages")
    return Change(
        where=line(at(tuned, "where")),
        question=next((at(m, "content") for m in reversed(messages) if at(m, "role") == "user"), ""),
        expected=at(tuned, "target"),
        other=f"{at(other, 'answer')}  [{fixed(at(other, 'score'))}]",
        tuned=f"{at(tuned, 'answer')}  [{fixed(at(tuned, 'score'))}]",
    )


def settings(plan: Record) -> list[tuple[str, str, str]]:
    """(name, value, reason) of everything the plan fixed."""
    reasons, adapter, estimate = at(plan, "reasons"), at(plan, "adapter"), at(plan, "estimate")
    rows = [
        (name, _shown(value), reasons.get(name, ""))
        for name, value in _fields(plan)
        if name not in ("reasons", "estimate", "adapter")
    ]
    rows += [(f"adapter.{name}", _shown(value), "") for name, value in _fields(adapter)]
    if estimate:
        expected = f"{at(estimate, 'train_seconds'):.0f} s, {at(estimate, 'peak_gb'):.1f} GB"
        rows.append(("estimate", expected, at(estimate, "reason")))
    return rows


def _fields(record: Record) -> Iterable[tuple[str, object]]:
    return dict(record).items()  # of a typed record too: it yields its fields


def _shown(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def arms_chart(verdict: Record) -> Markup:
    """Score and interval of every arm, the first on top."""
    arms = list(reversed(at(verdict, "arms").items()))
    bars = [plots.Bar(name, at(arm, "score"), *at(arm, "interval")) for name, arm in arms]
    name = at(verdict, "metric")
    return plots.arms(bars, metric(name), METRICS[name].higher_is_better, at(verdict, "comparator.name"))


def pareto_chart(forgetting: Record | None, metric_name: str) -> Markup | None:
    """Dev score by KL for every scale, where several were tried."""
    if at(forgetting, "sweep", None) is None or at(forgetting, "task", None) is None:
        return None
    scales, dev = at(forgetting, "scales"), at(forgetting, "sweep.dev")
    text = "generic" if at(forgetting, "generic", None) is not None else "task"
    scores, kl = [dev[f"{scale:g}"] for scale in scales], at(forgetting, f"{text}.kl_bits")
    points = [plots.Scale(*values) for values in zip(scales, kl, scores, strict=True)]
    return plots.pareto(points, at(forgetting, "sweep.chosen"), text, metric(metric_name))


def curve_chart(curve: Record | None, verdict: Record, ceiling: float | None) -> Markup | None:
    """Score by number of training rows, where it was measured."""
    points = at(curve, "points", None)
    if points is None:
        return None
    forecast = at(curve, "forecast") if at(curve, "forecast.told", False) else None
    ahead = forecast and plots.Forecast(at(forecast, "rows"), at(forecast, "score"), *at(forecast, "interval"))
    rows, seeds = [at(p, "rows") for p in points], [at(p, "seeds") for p in points]
    return plots.curve(
        rows, seeds, plots.Reference(at(verdict, "comparator.score"), ceiling), ahead, metric(at(verdict, "metric"))
    )


def loss_chart(lines: Sequence[Record], best_step: int | None) -> Markup:
    """Training and dev loss by step."""
    train = [(at(x, "step"), loss) for x in lines if (loss := at(x, "loss", None)) is not None]
    dev = [(at(x, "step"), loss) for x in lines if (loss := at(x, "dev_loss", None)) is not None]
    return plots.losses(train, dev, best_step)


def coverage_chart(calibration: Record | None) -> Markup | None:
    """Accuracy by the fraction of rows answered, where it was measured."""
    if calibration is None:
        return None
    return plots.risk_coverage(at(calibration, "curve"), at(calibration, "handover.threshold", None))
