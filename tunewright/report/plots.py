"""Charts as SVG that take their colours from the page: one drawing for light, dark and print."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

# matplotlib draws in these colours; the page's own variables replace them.
_INK, _SOFT, _ACCENT, _OTHER = "#101112", "#808182", "#1f6f54", "#b4632a"
_VARIABLES = {_INK: "var(--ink)", _SOFT: "var(--soft)", _ACCENT: "var(--accent)", _OTHER: "var(--other)"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tunewright",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _SOFT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Bar:
    """One arm: its mean score and the ends of its interval."""

    name: str
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """The trained update at one scale: KL from the base model in bits per token, and the dev score."""

    scale: float
    kl: float
    score: float


@dataclass(frozen=True)
class Path:
    """A recipe: its dev loss after fractions of its steps."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Reference:
    """Reference lines of a learning curve: the best untrained arm, and the ceiling set by contradictory labels."""

    comparator: float
    ceiling: float | None


@dataclass(frozen=True)
class ForecastPoint:
    """The score expected at ``rows`` training rows, and the ends of its interval."""

    rows: int
    score: float
    low: float
    high: float


def losses(
    train: Sequence[tuple[int, float]],
    dev: Sequence[tuple[int, float]],
    best: int | None,
    unit: str = "nats per supervised token",
) -> Markup:
    """Training and dev loss as (step, loss), with a mark at the step whose weights were kept."""
    figure, axes = _figure(6.4, 2.9)
    axes.plot([s for s, _ in train], [x for _, x in train], color=_SOFT, linewidth=1, label="training, every step")
    if dev:
        axes.plot(
            [s for s, _ in dev], [x for _, x in dev], color=_ACCENT, linewidth=2, marker="o", markersize=4, label="dev"
        )
    if best is not None and best in dict(dev):
        _ring(axes, best, dict(dev)[best], f"kept (step {best})")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure)
    return _svg(figure, "Loss by step")


def arms(bars: Sequence[Bar], label: str, bounded: bool, comparator: str) -> Markup:
    """One line per arm, from the bottom up: score and interval; a dotted line through the comparator."""
    figure, axes = _figure(6.4, 0.6 + 0.45 * len(bars))
    axes.axvline(next(b.score for b in bars if b.name == comparator), color=_OTHER, linewidth=1, linestyle=":")
    for i, bar in enumerate(bars):
        colour = _ACCENT if bar.name == "tuned" else _OTHER if bar.name == comparator else _SOFT
        axes.plot([bar.low, bar.high], [i, i], color=colour, linewidth=3, solid_capstyle="round", alpha=0.55)
        axes.plot([bar.score], [i], marker="o", markersize=9, color=colour)
        _annotate(axes, f"{bar.score:.3f}", bar.score, i)
    axes.set_yticks(range(len(bars)), [b.name.replace("_", " ") for b in bars])
    axes.set_ylim(-0.6, len(bars) - 0.2)
    if bounded:
        axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(label)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return _svg(figure, f"Arms by {label}")


def pareto(points: Sequence[Scale], chosen: float, text: str, label: str) -> Markup:
    """Task score against distance from the base model on ``text``, one point per scale of the trained update."""
    figure, axes = _figure(6.4, 2.9)
    axes.plot([p.kl for p in points], [p.score for p in points], color=_SOFT, linewidth=1)
    for p in points:
        axes.plot([p.kl], [p.score], marker="o", markersize=9, color=_ACCENT if p.scale == chosen else _SOFT)
        _annotate(axes, f"{p.scale:g}", p.kl, p.score)
    axes.set_xlim(left=0)
    axes.margins(y=0.25)
    axes.set_xlabel(f"KL from the base model on {text} text, bits per token")
    axes.set_ylabel(f"dev {label}")
    return _svg(figure, "Task score against distance from the base model, by scale of the update")


def curve(
    rows: Sequence[int],
    scores: Sequence[Sequence[float]],
    against: Reference,
    forecast: ForecastPoint | None,
    label: str,
) -> Markup:
    """Score by number of training rows: mean and range of the seeds at each size, the reference lines, the forecast."""
    figure, axes = _figure(6.4, 3.2)
    means = [sum(s) / len(s) for s in scores]
    axes.fill_between(rows, [min(s) for s in scores], [max(s) for s in scores], color=_ACCENT, alpha=0.15, linewidth=0)
    name = "tuned (mean and range of seeds)" if max(map(len, scores)) > 1 else "tuned (one seed)"
    axes.plot(rows, means, color=_ACCENT, linewidth=2, marker="o", label=name)
    axes.axhline(against.comparator, color=_OTHER, linewidth=1.5, linestyle=":", label="best untrained arm")
    if against.ceiling is not None and against.ceiling < 1:
        axes.axhline(
            against.ceiling, color=_SOFT, linewidth=1.5, linestyle="--", label="ceiling set by contradictory labels"
        )
    ticks = list(rows)
    if forecast is not None:
        ends = [[forecast.score - forecast.low], [forecast.high - forecast.score]]
        style = {"color": _SOFT, "marker": "s", "capsize": 4, "label": "forecast (90%)"}
        axes.errorbar([forecast.rows], [forecast.score], ends, **style)
        ticks.append(forecast.rows)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training rows")
    axes.set_ylabel(label)
    axes.margins(y=0.2)
    _legend(figure)
    return _svg(figure, "Score by training rows")


def rungs(paths: Sequence[Path], chosen: int) -> Markup:
    """Dev loss by the fraction of the steps, a line for each recipe that a sweep tried; the first is the default."""
    figure, axes = _figure(6.4, 3.2)
    for n, path in enumerate(paths):
        colour = _ACCENT if n == chosen else _OTHER if n == 0 else _SOFT
        label = path.name if n in (0, chosen) else "dropped or not used" if n == max(1, len(paths) - 1) else None
        width = 2 if n in (0, chosen) else 1
        x, y = [100 * fraction for fraction, _ in path.points], [loss for _, loss in path.points]
        axes.plot(x, y, color=colour, linewidth=width, marker="o", markersize=4, label=label)
    axes.set_xlabel("percent of the steps")
    axes.set_ylabel("dev loss, nats per token")
    _legend(figure)
    return _svg(figure, "Dev loss of each recipe")


def risk_coverage(points: Sequence[Sequence[float]], threshold: float | None) -> Markup:
    """Accuracy of the answers given, by the fraction of rows answered. ``points``: (threshold, fraction, accuracy)."""
    figure, axes = _figure(6.4, 2.7)
    axes.plot([c for _, c, _ in points], [a for _, _, a in points], color=_ACCENT, linewidth=2)
    answered = [(c, a) for t, c, a in points if threshold is not None and t >= threshold]
    if answered:
        _ring(axes, *answered[-1], "threshold from dev")
        _legend(figure)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("fraction of rows answered, most confident first")
    axes.set_ylabel("accuracy of those answers")
    return _svg(figure, "Accuracy by fraction of rows answered")


def _ring(axes: Any, x: float, y: float, label: str) -> None:
    ring = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": _OTHER, "linestyle": "none"}
    axes.plot([x], [y], label=label, **ring)


def _annotate(axes: Any, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), textcoords="offset points", xytext=(0, 9), ha="center", fontsize=9, color=_INK)


def _legend(figure: Any) -> None:
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=_INK)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(width, height))
    return figure, axes


def _svg(figure: Any, title: str) -> Markup:
    import matplotlib
    from matplotlib import pyplot as plt

    out = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    plt.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)  # group ids, which would repeat in every chart of a page
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))
