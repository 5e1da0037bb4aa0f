"""Charts as SVG that take their colours from the page: one drawing for light, dark and print."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

# matplotlib draws in these colours; the page's own variables replace them.
_INK, _SOFT, _ACCENT, _OTHER = "#101112", "#808182", "#1f6f54", "#b4632a"
_VARIABLES = {_INK: "var(--ink)", _SOFT: "var(--soft)", _ACCENT: "var(--accent)", _OTHER: "var(--other)"}


def losses(
    steps: Sequence[int], values: Sequence[float], dev_steps: Sequence[int], dev_values: Sequence[float], best: int | None
) -> str:
    """Training loss by step, dev loss where it was measured, and the step whose weights were kept."""
    figure, axes = _figure(6.4, 2.9)
    axes.plot(steps, values, color=_SOFT, linewidth=1, label="training, each step")
    if dev_values:
        axes.plot(dev_steps, dev_values, color=_ACCENT, linewidth=2, marker="o", markersize=4, label="dev")
    if best is not None and best in dev_steps:
        axes.plot(
            [best],
            [dev_values[dev_steps.index(best)]],
            marker="o",
            markersize=10,
            markerfacecolor="none",
            markeredgecolor=_OTHER,
            linestyle="none",
            label=f"kept (step {best})",
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("nats a supervised token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    return _svg(figure, "Loss by step")


def arms(
    names: Sequence[str],
    scores: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    label: str,
    bounded: bool,
    comparator: str,
) -> str:
    """One line an arm: score and interval; a dotted line through the comparator."""
    figure, axes = _figure(6.4, 0.6 + 0.45 * len(names))
    axes.axvline(scores[list(names).index(comparator)], color=_OTHER, linewidth=1, linestyle=":")
    for i, (score, (low, high)) in enumerate(zip(scores, intervals, strict=True)):
        colour = _ACCENT if names[i] == "tuned" else _OTHER if names[i] == comparator else _SOFT
        axes.plot([low, high], [i, i], color=colour, linewidth=3, solid_capstyle="round", alpha=0.55)
        axes.plot([score], [i], marker="o", markersize=9, color=colour)
        axes.annotate(f"{score:.3f}", (score, i), textcoords="offset points", xytext=(0, 9), ha="center", fontsize=9, color=_INK)
    axes.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    axes.set_ylim(-0.6, len(names) - 0.2)
    if bounded:
        axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(label)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return _svg(figure, f"Arms by {label}")


def pareto(scales: Sequence[float], kl: Sequence[float], scores: Sequence[float], label: str, chosen: float) -> str:
    """Task score against distance from the base, for shares of the trained update."""
    figure, axes = _figure(6.4, 2.9)
    axes.plot(kl, scores, color=_SOFT, linewidth=1)
    for scale, x, y in zip(scales, kl, scores, strict=True):
        axes.plot([x], [y], marker="o", markersize=9, color=_ACCENT if scale == chosen else _SOFT)
        axes.annotate(f"{scale:g}", (x, y), textcoords="offset points", xytext=(0, 9), ha="center", fontsize=9, color=_INK)
    axes.set_xlim(left=0)
    axes.margins(y=0.25)
    axes.set_xlabel("KL to the base on generic text, bits a token (further right: more was changed)")
    axes.set_ylabel(f"dev {label}")
    return _svg(figure, "Task score against distance from the base")


def curve(
    rows: Sequence[int],
    scores: Sequence[Sequence[float]],
    comparator: float,
    ceiling: float | None,
    forecast: dict[str, Any] | None,
    label: str,
) -> str:
    """Score by number of training rows: every seed, their mean and range, the comparator, the ceiling of the labels, a forecast."""
    figure, axes = _figure(6.4, 3.2)
    means = [sum(s) / len(s) for s in scores]
    axes.fill_between(rows, [min(s) for s in scores], [max(s) for s in scores], color=_ACCENT, alpha=0.15, linewidth=0)
    axes.plot(rows, means, color=_ACCENT, linewidth=2, marker="o", label="tuned (mean and range of seeds)")
    axes.axhline(comparator, color=_OTHER, linewidth=1.5, linestyle=":", label="best untrained arm")
    if ceiling is not None and ceiling < 1:
        axes.axhline(ceiling, color=_SOFT, linewidth=1.5, linestyle="--", label="ceiling of contradictory labels")
    if forecast is not None:
        low, high = forecast["interval"]
        middle = forecast["score"]
        axes.errorbar(
            [forecast["rows"]],
            [middle],
            [[middle - low], [high - middle]],
            color=_SOFT,
            marker="s",
            capsize=4,
            label="forecast (90 %)",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        [*rows, *([forecast["rows"]] if forecast else [])], [str(n) for n in [*rows, *([forecast["rows"]] if forecast else [])]]
    )
    axes.minorticks_off()
    axes.set_xlabel("training rows")
    axes.set_ylabel(label)
    axes.margins(y=0.2)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    return _svg(figure, "Score by training rows")


def risk_coverage(points: Sequence[Sequence[float]], threshold: float | None) -> str:
    """Share of right answers among those that are given, by the share that is given."""
    figure, axes = _figure(6.4, 2.7)
    axes.plot([c for _, c, _ in points], [a for _, _, a in points], color=_ACCENT, linewidth=2)
    if threshold is not None:
        kept = [(c, a) for t, c, a in points if t >= threshold]
        if kept:
            axes.plot(
                *kept[-1], marker="o", markersize=10, markerfacecolor="none", markeredgecolor=_OTHER, label="hand over below this"
            )
            axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share of the rows that the model answers itself, surest first")
    axes.set_ylabel("right among them")
    return _svg(figure, "Accuracy by coverage")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "tunewright",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _SOFT,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
    with matplotlib.rc_context(style):
        figure, axes = plt.subplots(figsize=(width, height))
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    import matplotlib
    from matplotlib import pyplot as plt

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tunewright"}):
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    plt.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
