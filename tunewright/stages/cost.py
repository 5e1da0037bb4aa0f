"""What does a request cost? Times the same prompts, on this machine, on the tuned model and on the base with its best
prompt.

The base is timed both with and without its fixed prompt in a prefix cache, because production servers usually cache a
shared prompt.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tunewright.core import records
from tunewright.core.records import Cost, Event, Money, Quantile, Quantiles, RequestCost, Training, Verdict
from tunewright.core.sampling import DECODINGS, GREEDY, Sampling
from tunewright.data.messages import Chat
from tunewright.model import adapters
from tunewright.model.decoding import generate
from tunewright.model.decoding.generate import Decoding, Prefix
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import weights
from tunewright.runtime.context import Work
from tunewright.runtime.weights import base
from tunewright.stages.stage import Stage
from tunewright.tokens import rendering

EQUAL_OR_BETTER = ("BETTER", "PRACTICALLY EQUAL")
PerRequest = dict[str, NDArray[np.float64]]  # name of a setup -> one number per request


@dataclass(frozen=True)
class TimedSetup:
    """What is timed: a model, its prompts, the content of a prefix cache. ``is_base``: the trained update is off;
    ``is_judged``: the verdict is of its answers."""

    name: str
    model: LanguageModel
    is_base: bool
    prompts: list[list[int]]
    prefix_cache: Prefix | None = None
    sampling: Sampling = GREEDY
    is_judged: bool = True

    def enabled(self) -> AbstractContextManager[None]:
        """Within, the model computes as this setup does: an adapter is off for the base."""
        return adapters.off(self.model.module) if self.is_base else nullcontext()


@dataclass(frozen=True)
class Timings:
    """Seconds, seconds to the first token, and tokens of the answer."""

    seconds: PerRequest
    first_token: PerRequest
    tokens: PerRequest


def cost(work: Work) -> Cost:
    """Times every setup on the first test rows."""
    config, verdict = work.config.cost, records.read(work.run.verdict, Verdict)
    rows = work.inputs.test[: config.requests]
    chats = [e for i in rows if isinstance(e := work.data.examples[i], Chat)]
    with ExitStack() as stack:
        model = stack.enter_context(work.answers.chat_model(weights.at_chosen_scale(work.run, work.plan)))
        # With an adapter, the base is the same module with the adapter off; otherwise it is a separate copy.
        has_adapter = work.plan.adapter.kind != "none"
        untuned = model.model if has_adapter else stack.enter_context(work.models.at(base(work.plan)))
        setups = _setups(work, verdict, chats, model.model, untuned)
        timed = _one_by_one(work, setups, model.decoding)
        throughput = _batched(setups, dataclasses.replace(model.decoding, batch_size=config.batch_size))
    requests = {
        s.name: RequestCost(
            prompt_tokens=float(np.mean([len(p) for p in s.prompts])),
            cached_tokens=len(s.prefix_cache.ids) if s.prefix_cache else 0,
            answer_tokens=float(timed.tokens[s.name].mean()),
            first_token=quantiles(timed.first_token[s.name]),
            seconds=quantiles(timed.seconds[s.name]),
            requests_per_second_together=throughput[s.name],
        )
        for s in setups
    }
    money = _money(work, verdict, setups, throughput)
    return Cost(requests=len(rows), batch_size=config.batch_size, setups=requests, money=money)


def _setups(
    work: Work, verdict: Verdict, chats: Sequence[Chat], tuned: LanguageModel, untuned: LanguageModel
) -> list[TimedSetup]:
    """Tuned with a separate adapter, tuned merged, and the base with the comparator's prompt, with and without a prefix
    cache."""
    arms = work.inputs.arms

    def prompts(family: str, variant: str) -> list[list[int]]:
        arm = next(a for a in arms[family] if a.variant == variant)
        return [rendering.for_generation(work.inputs.template, arm.prompt(e)) for e in chats]

    tuned_prompts, has_adapter = prompts("tuned", ""), work.plan.adapter.kind != "none"
    own = DECODINGS[work.tuned.decoding]
    setups = [TimedSetup("tuned, separate adapter", tuned, False, tuned_prompts, None, own)] if has_adapter else []
    merged = work.models.merged(weights.at_chosen_scale(work.run, work.plan)) if has_adapter else tuned
    setups.append(TimedSetup("tuned, merged" if has_adapter else "tuned", merged, False, tuned_prompts, None, own))
    if "tuned_short" in arms:
        name = "tuned, merged, without the long instruction"
        short = prompts("tuned_short", "")
        setups.append(TimedSetup(name, merged, False, short, None, own, is_judged=False))
    other = verdict.comparator
    if arms[other.name][0].needs_model and other.name != "full_precision":  # it is another model than the one here
        base_prompts = prompts(other.name, other.variant)
        name = f"base, {other.name.replace('_', ' ')}"
        theirs = DECODINGS[verdict.comparator_arm.decoding or "greedy"]
        setups.append(TimedSetup(name, untuned, True, base_prompts, None, theirs))
        same, facts = generate.common_prefix(base_prompts), work.inputs.facts
        if same >= generate.MIN_SHARED and facts.packable and facts.window is None:
            with adapters.off(untuned.module):
                prefix_cache = generate.prefill(untuned, base_prompts[0][:same])
            setups.append(TimedSetup(f"{name}, prompt cached", untuned, True, base_prompts, prefix_cache, theirs))
    return setups


def _one_by_one(work: Work, setups: Sequence[TimedSetup], decoding: Decoding) -> Timings:
    """Time each request with every setup, in a new random order each time."""
    rng = np.random.Generator(np.random.Philox(key=work.config.seed))
    first_only = dataclasses.replace(decoding, max_new_tokens=1)
    count = len(setups[0].prompts)
    seconds, first, tokens = ({s.name: np.zeros(count) for s in setups} for _ in range(3))
    turns = [0, *range(count)]  # the first request twice: once to warm up
    with work.console.bar("cost, one by one", len(turns), unit="requests") as tick:
        for i in turns:
            for k in rng.permutation(len(setups)):
                s = setups[k]
                for into, how in ((first, first_only), (seconds, decoding)):
                    limit = dataclasses.replace(how, sampling=s.sampling)
                    with s.enabled():
                        start = time.perf_counter()
                        (answer,) = generate.complete(s.model, [s.prompts[i]], limit, prefix_cache=s.prefix_cache)
                        into[s.name][i] = time.perf_counter() - start
                tokens[s.name][i] = len(answer)
            tick(1)
    return Timings(seconds, first, tokens)


def _batched(setups: Sequence[TimedSetup], batched: Decoding) -> dict[str, float]:
    """Requests per second when the prompts are answered in batches, by name of the setup."""
    throughput = {}
    for s in setups:
        with s.enabled():
            start = time.perf_counter()
            how = dataclasses.replace(batched, sampling=s.sampling)
            generate.complete(s.model, s.prompts, how, prefix_cache=s.prefix_cache)
            throughput[s.name] = len(s.prompts) / (time.perf_counter() - start)
    return throughput


def quantiles(values: NDArray[np.float64], alpha: float = 0.05) -> Quantiles:
    """p50 and p95, each with an interval from order statistics (exact for any distribution); an end that cannot be
    bounded by so few values is the smallest or largest value."""
    x, n = np.sort(values), len(values)

    def one(q: float) -> Quantile:
        low, high = np.asarray(stats.binom.ppf([alpha / 2, 1 - alpha / 2], n, q)).astype(int)
        return Quantile(float(np.quantile(x, q)), float(x[max(0, low - 1)]), float(x[min(n - 1, high)]))

    return Quantiles(p50=one(0.5), p95=one(0.95))


def _money(work: Work, verdict: Verdict, setups: Sequence[TimedSetup], throughput: Mapping[str, float]) -> Money | None:
    """Price of a thousand requests on this machine, and the number of requests after which training has paid for
    itself."""
    per_second = work.config.cost.price_per_hour / 3600
    if not per_second:
        return None
    thousand = {s.name: 1000 / throughput[s.name] * per_second for s in setups}
    judging = sum(j.seconds for j in records.judged(records.read_lines(work.run.events, Event)))
    training = (records.read(work.run.training, Training).seconds + judging) * per_second
    tuned = min(thousand[s.name] for s in setups if not s.is_base and s.is_judged)
    base_price = min((thousand[s.name] for s in setups if s.is_base), default=None)
    break_even, why_not = None, None
    if verdict.verdict not in EQUAL_OR_BETTER:
        why_not = "quality is not shown to be equal or better"
    elif base_price is None:
        why_not = "the comparator was not timed"
    elif base_price <= tuned:
        why_not = "a request to the tuned model is not cheaper"
    else:
        break_even = round(training / ((base_price - tuned) / 1000))
    return Money(per_thousand=thousand, training_and_judging=training, break_even_requests=break_even, why_not=why_not)


def skip_reason(work: Work) -> str | None:
    if work.config.prove.evidence != "full":
        return "prove.evidence is not full"
    if work.plan.silent:
        return f"only written answers are timed, and the model {work.plan.silent}"
    return None if work.data.task.kind.prompted else "documents have no prompts"


def lines(record: Cost) -> Sequence[str]:
    return [
        f"cost: {name}: {c.prompt_tokens:.0f} prompt + {c.answer_tokens:.0f} answer tokens; median time to first token "
        f"{c.first_token.p50.value:.2f} s, total {c.seconds.p50.value:.2f} s; "
        f"{c.requests_per_second_together:.1f} requests/s batched"
        for name, c in record.setups.items()
    ]


STAGE = Stage(
    name="cost",
    run=lambda inputs: cost(inputs.work()),
    skip_reason=skip_reason,
    lines=lines,
)
