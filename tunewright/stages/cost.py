"""What does a request cost now? The same prompts, on this machine, to the tuned model and to the base with its best prompt.

The base is timed with its fixed prompt in a prefix cache as well as without: a long prompt that a server keeps is cheap.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tunewright.core import run_folder
from tunewright.data.examples import Chat
from tunewright.model import adapters, generate
from tunewright.model.generate import Prefix
from tunewright.model.language_model import LanguageModel
from tunewright.run.session import Session
from tunewright.tokens import rendering
from tunewright.train import checkpoints

EQUAL_OR_BETTER = ("BETTER", "PRACTICALLY EQUAL")


@dataclass(frozen=True)
class Timed:
    """One way to answer: a model, its prompts, and what a prefix cache would hold. ``scale``: share of the adapter that speaks."""

    name: str
    model: LanguageModel
    scale: float
    prompts: list[list[int]]
    known: Prefix | None = None


def cost(session: Session) -> None:
    """Writes cost.json; only for evidence: full, and for rows that are answered."""
    if session.config.prove.evidence != "full" or not session.data.task.kind.prompted:
        run_folder.write_json(session.run.cost, {"measured": False})
        return
    asked, verdict = session.config.cost, run_folder.read_json(session.run.verdict)
    rows = session.rows("test")[: asked.requests]
    ways = _ways(session, verdict, [e for i in rows if isinstance(e := session.data.examples[i], Chat)])
    seconds, first, tokens = _one_by_one(session, ways)
    together = _together(session, ways, asked.batch_size)
    found: dict[str, Any] = {"measured": True, "requests": len(rows), "together": asked.batch_size, "ways": {}}
    for w in ways:
        found["ways"][w.name] = {
            "prompt_tokens": float(np.mean([len(p) for p in w.prompts])),
            "cached_tokens": len(w.known.ids) if w.known else 0,
            "answer_tokens": float(tokens[w.name].mean()),
            "first_token": quantiles(first[w.name]),
            "seconds": quantiles(seconds[w.name]),
            "requests_per_second_together": together[w.name],
        }
    found["money"] = _money(session, verdict, found["ways"])
    run_folder.write_json(session.run.cost, found)
    for name, way in found["ways"].items():
        session.talk.say(
            f"cost: {name}: {way['prompt_tokens']:.0f} + {way['answer_tokens']:.0f} tokens, first token {way['first_token']['p50'][0]:.2f} s, "
            f"answer {way['seconds']['p50'][0]:.2f} s (median), {way['requests_per_second_together']:.1f} requests/s together"
        )


def _ways(session: Session, verdict: dict[str, Any], chats: Sequence[Chat]) -> list[Timed]:
    """Tuned with the adapter apart, tuned merged, and the comparator's prompt on the base, with and without a prefix cache."""

    def prompts(family: str, variant: str) -> list[list[int]]:
        system = next(s for s in session.families[family] if s.variant == variant)
        return [rendering.for_generation(session.template, system.prompt(e)) for e in chats]

    model, own = session.trained(), prompts("tuned", "")
    base = session.base_model()
    ways = [Timed("tuned, adapter apart", model, 1.0, own)] if base is model else []
    merged = _merged(session) if base is model else model
    ways.append(Timed("tuned, merged" if base is model else "tuned", merged, 1.0, own))
    if "tuned_short" in session.families:
        ways.append(Timed("tuned, merged, without the long instruction", merged, 1.0, prompts("tuned_short", "")))
    other = verdict["comparator"]
    if session.families[other["name"]][0].needs_model:
        asked = prompts(other["name"], other["variant"])
        name = f"base, {other['name'].replace('_', ' ')}"
        ways.append(Timed(name, base, 0.0, asked))
        same = generate.common_prefix(asked)
        if same >= generate.SHARE_FROM and session.how.exact_batch and session.how.window is None:
            with adapters.off(base.module):
                ways.append(Timed(f"{name}, prompt cached", base, 0.0, asked, generate.prefill(base, asked[0][:same])))
    return ways


def _merged(session: Session) -> LanguageModel:
    model = session.fresh(session.plan)
    checkpoints.load_trained(session.run, model.module)
    adapters.merge(model.module)
    return model


Seconds = dict[str, NDArray[np.float64]]


def _one_by_one(session: Session, ways: Sequence[Timed]) -> tuple[Seconds, Seconds, Seconds]:
    """(seconds, seconds to the first token, answer tokens) of every request, the ways in turn in another order each time."""
    how, order = session.how, np.random.Generator(np.random.Philox(key=session.config.seed))
    first_only = dataclasses.replace(how, max_new_tokens=1)
    count = len(ways[0].prompts)
    turns = [0, *range(count)]  # the first request once more, unread: it warms up
    found: list[Seconds] = [{w.name: np.zeros(count) for w in ways} for _ in range(3)]
    with session.talk.bar("cost, one by one", len(turns)) as note:
        for i in turns:
            for k in order.permutation(len(ways)):
                w = ways[k]
                for kind, limit in ((1, first_only), (0, how)):
                    with adapters.scaled(w.model.module, w.scale):
                        begun = time.perf_counter()
                        (answer,) = generate.greedy(w.model, [w.prompts[i]], limit, known=w.known)
                        found[kind][w.name][i] = time.perf_counter() - begun
                found[2][w.name][i] = len(answer)
            note(1, "requests")
    return found[0], found[1], found[2]


def _together(session: Session, ways: Sequence[Timed], size: int) -> dict[str, float]:
    """Requests a second when ``size`` prompts are answered as one batch."""
    batched = dataclasses.replace(session.how, batch_size=size)
    found = {}
    for w in ways:
        with adapters.scaled(w.model.module, w.scale):
            begun = time.perf_counter()
            generate.greedy(w.model, w.prompts, batched, known=w.known)
            found[w.name] = len(w.prompts) / (time.perf_counter() - begun)
    return found


def quantiles(values: NDArray[np.float64], alpha: float = 0.05) -> dict[str, list[float]]:
    """p50 and p95, each with an interval from order statistics (exact, whatever the distribution); an end that so few values
    do not bound is the smallest or largest value."""
    x, n = np.sort(values), len(values)
    told = {}
    for name, q in (("p50", 0.5), ("p95", 0.95)):
        low, high = np.asarray(stats.binom.ppf([alpha / 2, 1 - alpha / 2], n, q)).astype(int)
        told[name] = [float(np.quantile(x, q)), float(x[max(0, low - 1)]), float(x[min(n - 1, high)])]
    return told


def _money(session: Session, verdict: dict[str, Any], ways: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Price of a thousand requests on this machine, and after how many requests the training is paid for."""
    per_second = session.config.cost.price_per_hour / 3600
    if not per_second:
        return None
    thousand = {name: 1000 / way["requests_per_second_together"] * per_second for name, way in ways.items()}
    arms = [e for e in run_folder.read_lines(session.run.events) if e["event"] == "judged" and not e["branch"]]
    training = run_folder.read_json(session.run.training)["seconds"] + sum(e["seconds"] for e in arms)
    told: dict[str, Any] = {"per_thousand": thousand, "training_and_judging": training * per_second, "break_even_requests": None}
    tuned = min(v for k, v in thousand.items() if k.startswith("tuned"))
    base = min((v for k, v in thousand.items() if k.startswith("base")), default=None)
    if verdict["verdict"] not in EQUAL_OR_BETTER:
        told["why_not"] = "quality is not shown to be equal or better"
    elif base is None or base <= tuned:
        told["why_not"] = "a request to the tuned model is not cheaper"
    else:
        told["break_even_requests"] = round(training * per_second / ((base - tuned) / 1000))
    return told
