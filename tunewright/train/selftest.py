"""Checks, on the user's own rows and model before the first step, for bugs that would otherwise stay silent.

A failed check ends the run with an error code. Only the fast ways of computing may fail: where they differ from
transformers' own modules on single rows, the plan falls back to a slower way and gives the reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import get_args

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from tunewright.core.config import RANKERS, Kernels, Plan
from tunewright.core.errors import ModelError, TrainError
from tunewright.core.words import counted
from tunewright.data import messages
from tunewright.data.messages import Chat, Example
from tunewright.methods import METHODS, precomputed
from tunewright.model import adapters
from tunewright.model.decoding import generate
from tunewright.model.heads.linear import head_of
from tunewright.model.language_model import LanguageModel, recompute_layers
from tunewright.tokens import rendering
from tunewright.tokens.packing import Layout
from tunewright.tokens.sequences import TokenSequence, TrainRow
from tunewright.tokens.template import Template

ROWS, SHORT, COMPARED = 4, 128, 64
UPDATE = 0.1  # norm of the adapter's update over the weight's, while the checks run
MOVED = 0.02  # standard deviation of what is added to the numbers of an adapter of PEFT, while the checks run
# How far loss (relative, and in nats over the root of the weight) and gradient (relative) may be from the reference:
# several times the effect of another order of summation. A row that sees another, or a wrong label, has a larger one.
TOLERANCE = {"float32": (1e-4, 1e-3, 5e-3), "bfloat16": (2e-2, 0.2, 0.25)}
COMPUTED: dict[Kernels, str] = {
    "compiled": "compiled layers with FlexAttention",
    "flex": "tunewright's fused kernels with FlexAttention",
    "fused": "tunewright's fused kernels",
    "transformers": "transformers' own modules",
}
ONE_PASS, ONE_ROW = 1 << 40, 1  # tokens_per_pass with which all rows are one microbatch, and each is its own


@dataclass(frozen=True)
class CheckResult:
    """The result of one check, as a sentence. ``passed`` is False if the plan fell back to a slower computation; any
    other failure ends the run instead."""

    check: str
    result: str
    passed: bool = True


@dataclass(frozen=True)
class SelfTestResult:
    """``plan``: the given plan, or a slower one that computes correctly."""

    plan: Plan
    checks: tuple[CheckResult, ...]
    seconds: float


def self_test(
    model: LanguageModel, template: Template, examples: Sequence[Example], rows: Sequence[TrainRow], plan: Plan
) -> SelfTestResult:
    """Runs all checks on a few of the rows. The weights are left as they were; the caller must use the returned plan
    from here on.

    Raises SELFTEST_PROMPT, SELFTEST_STOP, SELFTEST_START, SELFTEST_BASE, SELFTEST_GRADIENT or SELFTEST_LOSS.
    """
    started = time.monotonic()
    checks: list[CheckResult] = []
    model.module.eval()
    plain = replace(model, kernels="transformers")  # the planned kernels are not known to work yet
    chosen = sample_rows(rows)
    sample = precomputed(plain, chosen, plan)
    chats, others = (
        [(e, s) for r in sample for s in r.sequences[part] if isinstance(e := examples[r.row], Chat)]
        for part in (slice(1), slice(1, None))
    )
    if chats and not plan.embed:  # of which a text is what is served, as it is
        stop = generate.stop_ids(model, template.eos)
        if plan.method not in (*RANKERS, "tag"):  # targets follow the answer, or a text has none
            checks.append(check_prompts(template, chats))
        checks += [] if plan.labels else [check_stop_tokens(template, [*chats, *others], stop)]  # a head does not stop
    if plan.kernels != "transformers" and model.kernels == "transformers":
        why = (
            "tunewright's fused kernels support plain LoRA on every linear layer without dropout; this adapter is "
            "different"
        )
        plan = _with(plan, why, kernels="transformers")
    checks += check_start(plain, sample, plan)
    with _nonzero_adapter(model):
        sample = precomputed(plain, chosen, plan)  # far from its reference, a hinge has no gradient
        if plan.adapter.kind != "none":
            checks.append(check_base(model, sample[0].sequences[0]))
        reference = loss_and_gradient(model, sample, plan, "padded", "transformers", ONE_ROW)
        checks.append(check_gradient(model, reference.gradient))
        plan, exactness = fastest_exact_plan(model, sample, plan, reference)
    return SelfTestResult(plan, (*checks, exactness), round(time.monotonic() - started, 1))


def sample_rows(rows: Sequence[TrainRow]) -> list[TrainRow]:
    """A few rows of different lengths, none of them long if there are short ones."""
    ordered = sorted(rows, key=lambda r: (r.tokens, r.row))
    short = [r for r in ordered if r.tokens <= SHORT] or ordered[:2]
    return [short[i * (len(short) - 1) // (ROWS - 1)] for i in range(ROWS)] if len(short) > ROWS else short


def supervised_spans(row: TokenSequence) -> list[tuple[int, int]]:
    """Start and end of each run of supervised tokens."""
    spans, at = [], 0
    for supervised, group in groupby(row.weights, bool):
        length = len(list(group))
        spans += [(at, at + length)] if supervised else []
        at += length
    return spans


def check_prompts(template: Template, chats: Sequence[tuple[Chat, TokenSequence]]) -> CheckResult:
    """Raises SELFTEST_PROMPT unless the tokens before every supervised span are an inference prompt of the chat."""
    count = 0
    for chat, row in chats:
        served = [tuple(rendering.for_generation(template, chat.before(k))) for k in messages.turns(chat.messages)]
        for start, _ in supervised_spans(row):
            count += 1
            if row.ids[:start] not in served:
                raise ModelError(
                    "SELFTEST_PROMPT",
                    "the trained tokens do not start where the inference prompt ends.",
                    where=chat.where,
                    fix="use another chat template (template=FILE); `tunewright preview` prints a row as trained.",
                )
    turns, sequences = counted(count, "assistant turn"), counted(len(chats), "row")
    return CheckResult("prompts", f"in {turns} of {sequences}, the tokens before the answer equal the inference prompt")


def check_stop_tokens(
    template: Template, chats: Sequence[tuple[Chat, TokenSequence]], stop: Sequence[int]
) -> CheckResult:
    """Raises SELFTEST_STOP unless every supervised span ends with a token that ends generation."""
    last: set[int] = set()
    for chat, row in chats:
        for _, end in supervised_spans(row):
            last.add(row.ids[end - 1])
            if row.ids[end - 1] not in stop:
                token = template.tokenizer.decode([row.ids[end - 1]])
                raise ModelError(
                    "SELFTEST_STOP",
                    f"a turn ends with {token!r}, at which generation would not stop.",
                    where=chat.where,
                    fix='name that token as "eos_token" in tokenizer_config.json, or in generation_config.json.',
                )
    named = " and ".join(repr(template.tokenizer.decode([i])) for i in sorted(last))
    return CheckResult("stops", f"every turn ends with a stop token ({named})")


@torch.no_grad()
def check_start(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan) -> list[CheckResult]:
    """Raises SELFTEST_START unless the loss is what the method's formula gives where policy and reference are equal.
    Nothing is checked, and nothing returned, where there is no such formula."""
    method = METHODS[plan.method]
    expected = method.initial_loss(plan, rows)
    if expected is None:
        return []
    options = plan.options.model_copy(update={"nll_weight": 0.0})
    plan = plan.model_copy(update={"tokens_per_pass": ONE_PASS, "options": options})
    parts = method.microbatches(model, rows, range(len(rows)), plan, 0)
    actual = sum(float(method.loss(model, part, plan).sum) for part in parts) / sum(map(method.weight, parts))
    relative, absolute, _ = TOLERANCE[plan.dtype]
    if abs(actual - expected) > relative * abs(expected) + absolute:
        message = (
            f"the loss before the first step is {actual:.6f}; with policy equal to reference it is {expected:.6f}."
        )
        raise TrainError("SELFTEST_START", message, fix="report this with the run's config: no result can be trusted.")
    return [CheckResult("start", f"the loss before the first step is {actual:.4f}; by its formula, {expected:.4f}")]


@torch.no_grad()
def check_base(model: LanguageModel, row: TokenSequence) -> CheckResult:
    """Raises SELFTEST_BASE unless the adapter changes the logits (of an encoder, the hidden states), and without it
    they are the base's, bit for bit."""
    ids = torch.tensor([row.ids], device=model.device)

    def logits() -> Tensor:
        computed: Tensor = model.module(ids)[0] if model.encoder else model.module(ids, use_cache=False).logits
        return computed

    adapted = logits()
    with adapters.off(model.module):
        switched_off = logits()
    with adapters.detached(model.module):
        removed = logits()
    if not torch.equal(switched_off, removed) or torch.equal(adapted, removed):
        raise TrainError(
            "SELFTEST_BASE",
            "the model with its adapter off is not the base model, or enabling the adapter changes nothing.",
        )
    return CheckResult("base", "with the adapter off the model is the base model, bit for bit; with it on it is not")


def check_gradient(model: LanguageModel, gradient: dict[str, Tensor]) -> CheckResult:
    """Raises SELFTEST_GRADIENT unless every tensor in ``gradient`` gets one, and no frozen tensor does."""
    dead = [name for name, g in gradient.items() if not bool(torch.isfinite(g).all()) or not bool(g.any())]
    stray = [name for name, p in model.module.named_parameters() if not p.requires_grad and p.grad is not None]
    if dead or stray:
        what = f"{dead[0]} gets no finite gradient" if dead else f"{stray[0]} is frozen and gets a gradient"
        raise TrainError(
            "SELFTEST_GRADIENT", f"{what}.", fix="adapter.targets may name layers that the forward pass does not use."
        )
    return CheckResult(
        "gradient", f"all {len(gradient)} trained tensors that were checked get a gradient, and no frozen one does"
    )


@dataclass(frozen=True)
class LossAndGrad:
    """``loss`` per unit of ``weight``, the method's divisor; ``gradient`` of some of the trained tensors."""

    loss: float
    weight: float
    gradient: dict[str, Tensor]


def fastest_exact_plan(
    model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, reference: LossAndGrad
) -> tuple[Plan, CheckResult]:
    """The given plan, or the fastest slower one, whose loss and gradient match the reference, and how far it is from
    it. Raises SELFTEST_LOSS if there is none."""
    every = get_args(Kernels)
    kernels: tuple[Kernels, ...] = every[every.index(plan.kernels) :]
    relative, absolute, limit = TOLERANCE[plan.dtype]
    allowed = relative * abs(reference.loss) + absolute / reference.weight**0.5
    tried: list[str] = []
    layouts: dict[Layout, None] = dict.fromkeys((plan.layout, "padded"))
    for layout, kernel in product(layouts, kernels):
        try:
            result = loss_and_gradient(model, rows, plan, layout, kernel)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a kernel that cannot be compiled here must not end the run
            if kernel == "transformers":
                raise
            what = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else type(error).__name__
            tried.append(f"{layout} rows in {COMPUTED[kernel]}: {what}")
            model.module.zero_grad(set_to_none=True)
            continue
        gap, apart = abs(result.loss - reference.loss), _apart(result.gradient, reference.gradient)
        distance = f"loss {gap:.1e} nats and gradient {apart:.1e} (relative)"
        text = f"{layout} rows in {COMPUTED[kernel]}: {distance} from single rows in {COMPUTED['transformers']}"
        if gap <= allowed and apart <= limit:
            if not tried:
                return plan, CheckResult("loss and gradient", text)
            return _with(plan, tried[0], layout=layout, kernels=kernel), CheckResult(
                "loss and gradient", f"{text}; rejected: {'; '.join(tried)}", passed=False
            )
        tried.append(text)
    raise TrainError(
        "SELFTEST_LOSS",
        f"no way of computing rows together gives the loss and gradient of single rows ({'; '.join(tried)}).",
        fix="try train.dtype=float32, in case rounding is the cause; otherwise this model cannot be trained here.",
    )


def _with(plan: Plan, why: str, **fields: str) -> Plan:
    """The plan with these fields, and ``why`` as the reason for those that changed."""
    changed = {k: v for k, v in fields.items() if getattr(plan, k) != v}
    return plan.model_copy(update={**changed, "reasons": {**plan.reasons, **dict.fromkeys(changed, why)}})


def loss_and_gradient(
    model: LanguageModel,
    rows: Sequence[TrainRow],
    plan: Plan,
    layout: Layout,
    kernels: Kernels,
    tokens_per_pass: int = ONE_PASS,
) -> LossAndGrad:
    """Of the rows as one step; the model's gradients are left empty."""
    model, method = replace(model, kernels=kernels), METHODS[plan.method]
    plan = plan.model_copy(update={"layout": layout, "tokens_per_pass": tokens_per_pass})
    total, weight = 0.0, 0.0
    for microbatch in method.microbatches(model, rows, range(len(rows)), plan, 0):
        with _recomputed(model, plan.gradient_checkpointing == "layers" and kernels == "transformers"):
            loss = method.loss(model, microbatch, plan).sum
            loss.backward()  # type: ignore[no-untyped-call]
        total, weight = total + float(loss.detach()), weight + method.weight(microbatch)
    trained = list(adapters.trainable(model.module).items())
    step = -(-len(trained) // COMPARED)
    gradient = {n: (torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()) for n, p in trained[::step]}
    model.module.zero_grad(set_to_none=True)
    return LossAndGrad(total / weight, weight, gradient)


@contextmanager
def _recomputed(model: LanguageModel, layers: bool) -> Iterator[None]:
    """Within, transformers' own layers keep only their inputs for the backward pass, where the plan needs that to fit
    into memory. They do so only in training mode, in which what is inside them, such as dropout, must not be."""
    own = [part for part in model.module.modules() if isinstance(part, GradientCheckpointingLayer)] if layers else []
    if own:
        recompute_layers(model.module, on=True)
    try:
        for part in own:
            part.training = True
        yield
    finally:
        for part in own:
            part.training = False
        if own:
            recompute_layers(model.module, on=False)


def _apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of ``b``."""
    gap = sum(float((a[n] - b[n]).square().sum()) for n in b)
    size = sum(float(g.square().sum()) for g in b.values())
    return float((gap / max(size, 1e-30)) ** 0.5)


@contextmanager
def _nonzero_adapter(model: LanguageModel) -> Iterator[None]:
    """Within, the adapter has an effect, UPDATE of each weight's norm: an untrained B is zero, and so is half of the
    gradient. An update as large as the weight, which a fixed size of B gives where the rank or the LoRA scaling factor
    is large, makes noise of the model, and then rounding alone changes the loss of a row by tenths of a nat."""
    layers, head = list(adapters.adapted(model.module).values()), head_of(model.module)
    of_peft = list(adapters.trainable(model.module).values()) if adapters.of_peft(model.module) else []
    before = [(p, p.detach().clone()) for p in (*(layer.lora_B for layer in layers), *of_peft)]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for layer in layers:
                drawn = torch.randn(layer.lora_B.shape, generator=generator).to(layer.lora_B)
                spread = layer.scaling * float(layer.lora_A.norm()) * layer.base.out_features**0.5
                layer.lora_B.add_(drawn * (UPDATE * float(layer.base_weight().norm()) / spread))
            for p in of_peft:
                p.add_(MOVED * torch.randn(p.shape, generator=generator).to(p))
            if head is not None:
                head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / head.in_features**0.5)
        yield
    finally:
        with torch.no_grad():
            if head is not None:
                head.weight.zero_()
            for p, own in before:
                p.copy_(own)
        model.module.zero_grad(set_to_none=True)
