"""What does a request cost? Times the same prompts, on this machine, on the tuned model and on the base with its best
prompt.

The base is timed both with and without its fixed prompt in a prefix cache: a long prompt that a server caches is cheap.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tunewright.core import records
from tunewright.core.records import COST, Cost, Event, Money, Quantile, Quantiles, RequestCost, Training, Verdict
from tunewright.data.messages import Chat
from tunewright.model import adapters, generate
from tunewright.model.generate import Decoding, Prefix
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import weights
from tunewright.runtime.context import Work
from tunewright.runtime.weights import base
from tunewright.stages.stage import Stage
from tunewright.tokens import rendering

EQUAL_OR_BETTER = ("BETTER", "PRACTICALLY EQUAL")
Seconds = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Timed:
    """One way to answer: a model, its prompts, and the content of a prefix cache. ``scale``: of the adapter; 0 is the
    base."""

    name: str
    model: LanguageModel
    scale: float
    prompts: list[list[int]]
    known: Prefix | None = None


@dataclass(frozen=True)
class Timings:
    """For every request, by way: seconds, seconds to the first token, tokens of the answer."""

    seconds: Seconds
    first_token: Seconds
    tokens: Seconds


def cost(work: Work) -> Cost:
    """Times every way on the first test rows."""
    config, verdict = work.config.cost, records.read(work.run.verdict, Verdict)
    rows = work.inputs.test[: config.requests]
    chats = [e for i in rows if isinstance(e := work.data.examples[i], Chat)]
    tuned = weights.trained(work.run, work.plan)
    with ExitStack() as stack:
        model = stack.enter_context(work.answers.chat_model(tuned))
        # With an adapter, the base is the same module at scale 0; otherwise it is a separate copy.
        has_adapter = work.plan.adapter.kind != "none"
        untuned = model.model if has_adapter else stack.enter_context(work.models.at(base(work.plan)))
        ways = _ways(work, verdict, chats, model.model, untuned)
        timed = _one_by_one(work, ways, model.decoding)
        together = _together(ways, dataclasses.replace(model.decoding, batch_size=config.batch_size))
    requests = {
        w.name: RequestCost(
            prompt_tokens=float(np.mean([len(p) for p in w.prompts])),
            cached_tokens=len(w.known.ids) if w.known else 0,
            answer_tokens=float(timed.tokens[w.name].mean()),
            first_token=quantiles(timed.first_token[w.name]),
            seconds=quantiles(timed.seconds[w.name]),
            requests_per_second_together=together[w.name],
        )
        for w in ways
    }
    money = _money(work, verdict, requests)
    return Cost(requests=len(rows), batch_size=config.batch_size, setups=requests, money=money)


def _ways(
    work: Work, verdict: Verdict, chats: Sequence[Chat], tuned: LanguageModel, untuned: LanguageModel
) -> list[Timed]:
    """Tuned with a separate adapter, tuned merged, and the base with the comparator's prompt, with and without a prefix
    cache."""
    arms = work.inputs.arms

    def prompts(family: str, variant: str) -> list[list[int]]:
        arm = next(a for a in arms[family] if a.variant == variant)
        return [rendering.for_generation(work.inputs.template, arm.prompt(e)) for e in chats]

    own, has_adapter = prompts("tuned", ""), work.plan.adapter.kind != "none"
    ways = [Timed("tuned, separate adapter", tuned, 1.0, own)] if has_adapter else []
    merged = work.models.merged(weights.trained(work.run, work.plan)) if has_adapter else tuned
    ways.append(Timed("tuned, merged" if has_adapter else "tuned", merged, 1.0, own))
    if "tuned_short" in arms:
        ways.append(Timed("tuned, merged, without the long instruction", merged, 1.0, prompts("tuned_short", "")))
    other = verdict.comparator
    if arms[other.name][0].needs_model:
        base_prompts = prompts(other.name, other.variant)
        name = f"base, {other.name.replace('_', ' ')}"
        ways.append(Timed(name, untuned, 0.0, base_prompts))
        same, facts = generate.common_prefix(base_prompts), work.inputs.facts
        if same >= generate.MIN_SHARED and facts.packable and facts.window is None:
            with adapters.off(untuned.module):
                known = generate.prefill(untuned, base_prompts[0][:same])
            ways.append(Timed(f"{name}, prompt cached", untuned, 0.0, base_prompts, known))
    return ways


def _one_by_one(work: Work, ways: Sequence[Timed], decoding: Decoding) -> Timings:
    """Time each request on every way, in a new random order each time."""
    rng = np.random.Generator(np.random.Philox(key=work.config.seed))
    first_only = dataclasses.replace(decoding, max_new_tokens=1)
    count = len(ways[0].prompts)
    seconds, first, tokens = ({w.name: np.zeros(count) for w in ways} for _ in range(3))
    turns = [0, *range(count)]  # the first request twice: once to warm up
    with work.console.bar("cost, one by one", len(turns), unit="requests") as tick:
        for i in turns:
            for k in rng.permutation(len(ways)):
                w = ways[k]
                for into, limit in ((first, first_only), (seconds, decoding)):
                    with adapters.scaled(w.model.module, w.scale):
                        start = time.perf_counter()
                        (answer,) = generate.greedy(w.model, [w.prompts[i]], limit, known=w.known)
                        into[w.name][i] = time.perf_counter() - start
                tokens[w.name][i] = len(answer)
            tick(1)
    return Timings(seconds, first, tokens)


def _together(ways: Sequence[Timed], batched: Decoding) -> dict[str, float]:
    """Requests per second when the prompts are answered in batches."""
    throughput = {}
    for w in ways:
        with adapters.scaled(w.model.module, w.scale):
            start = time.perf_counter()
            generate.greedy(w.model, w.prompts, batched, known=w.known)
            throughput[w.name] = len(w.prompts) / (time.perf_counter() - start)
    return throughput


def quantiles(values: NDArray[np.float64], alpha: float = 0.05) -> Quantiles:
    """p50 and p95, each with an interval from order statistics (exact for any distribution); an end that cannot be
    bounded by so few values is the smallest or largest value."""
    x, n = np.sort(values), len(values)

    def one(q: float) -> Quantile:
        low, high = np.asarray(stats.binom.ppf([alpha / 2, 1 - alpha / 2], n, q)).astype(int)
        return Quantile(float(np.quantile(x, q)), float(x[max(0, low - 1)]), float(x[min(n - 1, high)]))

    return Quantiles(p50=one(0.5), p95=one(0.95))


def _money(work: Work, verdict: Verdict, ways: Mapping[str, RequestCost]) -> Money | None:
    """Price of a thousand requests on this machine, and after how many requests the training is paid for."""
    per_second = work.config.cost.price_per_hour / 3600
    if not per_second:
        return None
    thousand = {name: 1000 / way.requests_per_second_together * per_second for name, way in ways.items()}
    judging = sum(j.seconds for j in records.judged(records.read_lines(work.run.events, Event)))
    training = (records.read(work.run.training, Training).seconds + judging) * per_second
    tuned = min(v for k, v in thousand.items() if k.startswith("tuned"))
    base_price = min((v for k, v in thousand.items() if k.startswith("base")), default=None)
    break_even, why_not = None, None
    if verdict.verdict not in EQUAL_OR_BETTER:
        why_not = "quality is not shown to be equal or better"
    elif base_price is None or base_price <= tuned:
        why_not = "a request to the tuned model is not cheaper"
    else:
        break_even = round(training / ((base_price - tuned) / 1000))
    return Money(per_thousand=thousand, training_and_judging=training, break_even_requests=break_even, why_not=why_not)


def skip_reason(work: Work) -> str | None:
    if work.config.prove.evidence != "full":
        return "prove.evidence is not full"
    return None if work.data.task.kind.prompted else "documents have no prompts"


def lines(record: Cost) -> Sequence[str]:
    return [
        f"cost: {name}: {way.prompt_tokens:.0f} + {way.answer_tokens:.0f} tokens, first token "
        f"{way.first_token.p50.value:.2f} s, answer {way.seconds.p50.value:.2f} s (median), "
        f"{way.requests_per_second_together:.1f} requests/s in batches"
        for name, way in record.setups.items()
    ]


STAGE = Stage(
    name="cost",
    record=COST,
    needs="work",
    run=cost,
    skip_reason=skip_reason,
    lines=lines,
)
