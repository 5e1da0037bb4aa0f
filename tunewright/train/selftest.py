"""The bugs that nobody would see, looked for on the user's own rows and model before the first step.

What fails refuses the run with its code. The fast ways of computing are no such case: where they differ from transformers' own
modules on rows alone, the plan falls back to these, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, product

import torch
from torch import Tensor

from tunewright.core.config import Plan
from tunewright.core.errors import ModelError, TrainError
from tunewright.data.examples import Chat, Example
from tunewright.methods import sft
from tunewright.model import adapters, generate
from tunewright.model.language_model import Kernels, LanguageModel
from tunewright.tokens import rendering
from tunewright.tokens.packing import to_batch
from tunewright.tokens.rendering import Rendered, Template

ROWS, SHORT, COMPARED = 4, 128, 64
# How far loss (of its size, and nats over the root of the tokens) and gradient (of its size) may lie from the reference: what other
# orders of summing do to them, some times over. A row that sees another, or a wrong label, does more.
TOLERANCE = {"float32": (1e-4, 1e-3, 5e-3), "bfloat16": (2e-2, 0.2, 0.25)}


@dataclass(frozen=True)
class Finding:
    """``held`` is False where the plan fell back."""

    check: str
    told: str
    held: bool = True


def run(
    model: LanguageModel, template: Template, examples: Sequence[Example], rows: Sequence[Rendered], plan: Plan
) -> tuple[Plan, tuple[Finding, ...], float]:
    """(the plan, or a slower one that computes the right thing; what was found; seconds). The weights are left as they were; the caller
    takes the plan's kernels from here on.

    Raises SELFTEST_PROMPT, SELFTEST_STOP, SELFTEST_BASE, SELFTEST_GRADIENT or SELFTEST_LOSS.
    """
    begun, few = time.monotonic(), some(rows)
    found: list[Finding] = []
    chats = [(e, r) for r in few if isinstance(e := examples[r.row], Chat)]
    if chats:
        found += [prompts(template, chats), stops(template, chats, generate.stop_ids(model, template.eos))]
    model.module.eval()
    if plan.kernels == "fused" and model.kernels != "fused":
        why = "our kernels know plain LoRA on every linear layer and no dropout; this adapter is another"
        plan = _with(plan, why, kernels="transformers")
    with _speaking(model):
        if plan.adapter.kind != "none":
            found.append(base(model, few[0]))
        reference = computed(model, [[r] for r in few], plan, "padded", "transformers")
        found.append(trains(model, reference.gradient))
        plan, computing = same(model, few, plan, reference)
    return plan, (*found, computing), round(time.monotonic() - begun, 1)


def some(rows: Sequence[Rendered]) -> list[Rendered]:
    """A few rows of different lengths, none of them long where there are short ones."""
    ordered = sorted(rows, key=lambda r: (len(r.ids), r.row))
    short = [r for r in ordered if len(r.ids) <= SHORT] or ordered[:2]
    return [short[i * (len(short) - 1) // (ROWS - 1)] for i in range(ROWS)] if len(short) > ROWS else short


def turns(row: Rendered) -> list[tuple[int, int]]:
    """Where each supervised run of tokens starts and ends."""
    found, at = [], 0
    for learned, run_of in groupby(row.weights, bool):
        length = len(list(run_of))
        found += [(at, at + length)] if learned else []
        at += length
    return found


def prompts(template: Template, chats: Sequence[tuple[Chat, Rendered]]) -> Finding:
    count = 0
    for chat, row in chats:
        served = [
            tuple(rendering.for_generation(template, chat.messages[:k]))
            for k, m in enumerate(chat.messages)
            if m.role == "assistant"
        ]
        for start, _ in turns(row):
            count += 1
            if row.ids[:start] not in served:
                raise ModelError(
                    "SELFTEST_PROMPT",
                    "what is learned does not begin where a served prompt ends.",
                    where=chat.where,
                    fix="use another chat template (template=FILE); `tunewright preview` prints the row as it is learned.",
                )
    return Finding("prompts", f"{count} turns of {len(chats)} rows begin with the very tokens that a server would send")


def stops(template: Template, chats: Sequence[tuple[Chat, Rendered]], stop: Sequence[int]) -> Finding:
    last: set[int] = set()
    for chat, row in chats:
        for _, end in turns(row):
            last.add(row.ids[end - 1])
            if row.ids[end - 1] not in stop:
                said = template.tokenizer.decode([row.ids[end - 1]])
                raise ModelError(
                    "SELFTEST_STOP",
                    f"a turn ends with {said!r}, at which generation would not stop.",
                    where=chat.where,
                    fix='name that token as "eos_token" in tokenizer_config.json, or in generation_config.json.',
                )
    named = " and ".join(repr(template.tokenizer.decode([i])) for i in sorted(last))
    return Finding("stops", f"every turn teaches the model to end with {named}, where generation stops")


@torch.no_grad()
def base(model: LanguageModel, row: Rendered) -> Finding:
    ids = torch.tensor([row.ids], device=model.device)

    def logits() -> Tensor:
        found: Tensor = model.module(ids, use_cache=False).logits
        return found

    spoken = logits()
    with adapters.off(model.module):
        quiet = logits()
    with adapters.detached(model.module):
        bare = logits()
    if not torch.equal(quiet, bare) or torch.equal(spoken, bare):
        raise TrainError("SELFTEST_BASE", "the model with its adapter off is not the base model, or the adapter says nothing.")
    return Finding("base", "with its adapter off the model is the base, bit for bit; with it on it is not")


def trains(model: LanguageModel, gradient: dict[str, Tensor]) -> Finding:
    dead = [name for name, g in gradient.items() if not bool(torch.isfinite(g).all()) or not bool(g.any())]
    stray = [name for name, p in model.module.named_parameters() if not p.requires_grad and p.grad is not None]
    if dead or stray:
        what = f"{dead[0]} gets no finite gradient" if dead else f"{stray[0]} is frozen and gets a gradient"
        raise TrainError("SELFTEST_GRADIENT", f"{what}.", fix="adapter.targets may name layers that do not take part.")
    return Finding("gradient", f"all {len(gradient)} trained tensors that were looked at get a gradient, and no frozen one does")


@dataclass(frozen=True)
class LossAndGrad:
    """``loss`` in nats a supervised token, of ``tokens`` of them; ``gradient`` of some of the trained tensors."""

    loss: float
    tokens: float
    gradient: dict[str, Tensor]


def same(model: LanguageModel, rows: Sequence[Rendered], plan: Plan, reference: LossAndGrad) -> tuple[Plan, Finding]:
    """The fastest plan whose loss and gradient are those of the reference. Raises SELFTEST_LOSS where none is."""
    kernels: tuple[Kernels, ...] = ("fused", "transformers") if plan.kernels == "fused" else ("transformers",)
    relative, absolute, limit = TOLERANCE[plan.dtype]
    allowed = relative * reference.loss + absolute / reference.tokens**0.5
    tried: list[str] = []
    for layout, kernel in product(dict.fromkeys((plan.layout, "padded")), kernels):
        found = computed(model, [list(rows)], plan, layout, kernel)
        gap, apart = abs(found.loss - reference.loss), _apart(found.gradient, reference.gradient)
        way = f"{layout} rows in {'our kernels' if kernel == 'fused' else 'its own modules'}"
        told = f"{way}: loss {gap:.1e} nats and gradient {apart:.1e} of its size away from rows alone in its own modules"
        if gap <= allowed and apart <= limit:
            if not tried:
                return plan, Finding("computing", told)
            return _with(plan, tried[0], layout=layout, kernels=kernel), Finding(
                "computing", f"{told}; given up: {'; '.join(tried)}", held=False
            )
        tried.append(told)
    raise TrainError(
        "SELFTEST_LOSS",
        f"no way of computing rows together gives the loss and gradient of rows alone ({'; '.join(tried)}).",
        fix="train.dtype=float32 tells whether rounding is the cause; else this model cannot be trained here.",
    )


def _with(plan: Plan, why: str, **numbers: str) -> Plan:
    """The plan with those of the numbers that are others, and why."""
    changed = {k: v for k, v in numbers.items() if getattr(plan, k) != v}
    return plan.model_copy(update={**changed, "reasons": {**plan.reasons, **dict.fromkeys(changed, why)}})


def computed(model: LanguageModel, groups: Sequence[list[Rendered]], plan: Plan, layout: str, kernels: Kernels) -> LossAndGrad:
    """One pass a group; the model's gradients are left empty."""
    model = replace(model, kernels=kernels)
    total, weight = 0.0, 0.0
    for group in groups:
        batch = to_batch(group, layout)  # type: ignore[arg-type]
        nats, part = sft.loss(model, batch, plan)
        nats.backward()  # type: ignore[no-untyped-call]
        total, weight = total + float(nats.detach()), weight + part
    trained = list(adapters.trainable(model.module).items())
    step = -(-len(trained) // COMPARED)
    gradient = {n: (torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()) for n, p in trained[::step]}
    model.module.zero_grad(set_to_none=True)
    return LossAndGrad(total / weight, weight, gradient)


def _apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm."""
    gap = sum(float((a[n] - b[n]).square().sum()) for n in b)
    size = sum(float(g.square().sum()) for g in b.values())
    return float((gap / max(size, 1e-30)) ** 0.5)


@contextmanager
def _speaking(model: LanguageModel) -> Iterator[None]:
    """Within, the adapter says something: at the start its B is zero, and half of its gradient with it."""
    layers = list(adapters.adapted(model.module).values())
    before = [layer.lora_B.detach().clone() for layer in layers]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for layer in layers:
                layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.02)
        yield
    finally:
        with torch.no_grad():
            for layer, b in zip(layers, before, strict=True):
                layer.lora_B.copy_(b)
        model.module.zero_grad(set_to_none=True)
