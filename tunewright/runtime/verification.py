"""Checks a program that serves a run's export: are its answers to held-out prompts the trained model's?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import ConfigError, RunError, TrainError
from tunewright.core.records import ConsumerCheck, ExportCheck
from tunewright.core.run_folder import Run, now
from tunewright.export import export
from tunewright.export.consumers import answers, diagnosis
from tunewright.export.consumers.answers import Answered, Difference
from tunewright.export.consumers.diagnosis import Encoded, Evidence, Finding
from tunewright.export.consumers.openai_server import Server
from tunewright.export.consumers.suspects import likeliest_factor, rounded, suspects
from tunewright.export.gguf.model import FLOATS
from tunewright.export.kind import Dtype
from tunewright.export.reload_check import CheckPrompt
from tunewright.model import adapters, loading
from tunewright.model.decoding.generate import stop_ids
from tunewright.runtime.context import Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONG = 768  # tokens of the prompt that shows wrong positions
CHATS = 2
OTHERS = 4
ROUNDED: Sequence[Dtype] = ("float16", "bfloat16")


@dataclass(frozen=True)
class Comparison:
    """A server's answers to prompts of token ids, and the model that they should come from, in float32."""

    vocabulary: int
    module: PreTrainedModel
    prompts: Sequence[Sequence[int]]
    answers: Sequence[Answered]
    stop: tuple[int, ...]

    def first(self, count: int, answered: Sequence[Answered] | None = None) -> Comparison:
        return replace(self, prompts=self.prompts[:count], answers=(answered or self.answers)[:count])

    def against(self, module: PreTrainedModel, prefix: Sequence[int] = ()) -> Difference:
        pairs = list(zip(self.prompts, self._known(), strict=True))
        expected = [answers.expect(module, [*prefix, *prompt], answer, self.stop) for prompt, answer in pairs]
        return answers.compare([answer for _, answer in pairs], expected)

    def rounding(self, dtype: Dtype) -> float:
        """How much computing in ``dtype`` changes the log probability of a token, at most; not finite if it
        overflows."""
        exact = [
            replace(answer, logprobs=answers.expect(self.module, prompt, answer, self.stop).logprobs)
            for prompt, answer in zip(self.prompts, self._known(), strict=True)
        ]
        with rounded(self.module, loading.torch_dtype(dtype)):
            return replace(self, answers=exact).against(self.module).largest

    def _known(self) -> list[Answered]:
        return [answers.known(answer, self.vocabulary) for answer in self.answers]


def served(run: Run, exports: Sequence[ExportCheck], server: Server) -> ExportCheck | None:
    """The export that contains the files that the server names. The scripts of the serve bundle start servers in the
    run folder, so that names may be relative to it."""
    for name in server.files:
        for file in (Path(name).resolve(), (run.path / name).resolve()):
            for check in exports:
                if file.is_relative_to((run.path / check.relative_path).resolve()):
                    return check
    return None


def stored_dtype(exported: ExportCheck | None) -> Dtype:
    """The dtype to which a server of an export may round: float32 also for what is quantised, or not known."""
    stored = exported and FLOATS.get(exported.dtype, exported.dtype)
    return next((dtype for dtype in ROUNDED if dtype == stored), "float32")


def check(work: Work, held_out: Sequence[CheckPrompt], server: Server, path: str | None, dtype: Dtype) -> ConsumerCheck:
    """The record of one server. ``path``: of the export that it serves, relative to the run folder, if it is known;
    ``dtype``: rounding to it is allowed. Raises REMOTE_FAILED, and CONFIG_CONFLICT if the model overflows in
    ``dtype``."""
    work.console.say(f"verify: asking {server.name} {server.version}".rstrip())
    ids = [list(p.ids)[-export.CHECK_PROMPT_TOKENS :] for p in held_out]
    prompts = with_long_prompt(ids, work.inputs.facts.context, server.context)
    answered: list[Answered] = []
    with work.console.bar("verify", len(prompts), unit="prompts") as tick:
        for prompt in prompts:
            answered.append(server.complete(prompt, export.NEW_TOKENS))
            tick(1)
    conversations = list(_encoded(work, server, zip(held_out, answered, strict=False)))
    work.console.say("verify: comparing with the trained model, in float32")
    model = export.trained_model(work.run, work.plan, work.inputs.facts, torch.float32)
    stop = stop_ids(model, work.inputs.template.eos)
    comparison = Comparison(work.inputs.facts.vocabulary, model.module, prompts, answered, stop)
    with _base(work, model.module) as base:
        from_base = comparison.against(base)
    rounding = _allowed_rounding(comparison, dtype)
    evidence = Evidence(
        answers=answered,
        lengths=[len(prompt) for prompt in prompts],
        trained=comparison.against(model.module),
        base=from_base,
        allowed=diagnosis.allowed(max(rounding.values(), default=0.0)),
        stop=stop,
        bos=work.inputs.template.bos,
        vocabulary=work.inputs.facts.vocabulary,
        rounding=rounding,
        encoded=conversations,
    )
    if not evidence.trained.within(evidence.allowed):
        evidence = _investigated(comparison, work.plan.adapter, server, evidence)
    finding = diagnosis.diagnose(evidence)
    shown = [c.theirs == c.ours for c in conversations if c.theirs is not None]
    return ConsumerCheck(
        path=path,
        consumer=server.name,
        consumer_version=server.version or None,
        model=server.endpoint.model,
        time=now(),
        prompts=len(prompts),
        same_texts=evidence.trained.same_texts,
        tokens=evidence.trained.tokens,
        largest_difference=evidence.trained.largest,
        allowed=evidence.allowed,
        base_difference=from_base.largest,
        encoded=sum(shown) if shown or not conversations else None,
        cause=finding.cause if finding else None,
        finding=finding.what if finding else None,
    )


@dataclass(frozen=True)
class Reference:
    """A model whose answers a server should give: in float32, with its ``stop`` tokens."""

    name: str
    module: PreTrainedModel
    stop: tuple[int, ...]
    vocabulary: int


def require(server: Server, model: Reference, prompts: Sequence[Sequence[int]], dtype: Dtype) -> None:
    """Raises CONSUMER_DIFFERS unless a server's answers are those of the model."""
    prompts = with_long_prompt(prompts, server.context)
    answered = [server.complete(prompt, export.NEW_TOKENS) for prompt in prompts]
    comparison = Comparison(model.vocabulary, model.module, prompts, answered, model.stop)
    difference = comparison.against(model.module)
    allowed = diagnosis.allowed(max(_allowed_rounding(comparison, dtype).values(), default=0.0))
    if not difference.within(allowed):
        what = (
            f"{server.name} does not give the answers of {model.name}: a log probability differs by "
            f"{difference.largest:.2g} (allowed: {allowed:.2g})."
        )
        fix = "make sure that it serves the same weights; --dtype sets the precision whose rounding is tolerated."
        raise TrainError("CONSUMER_DIFFERS", what, where=server.endpoint.url, fix=fix)


def with_long_prompt(prompts: Sequence[Sequence[int]], *contexts: int | None) -> list[list[int]]:
    """And one made of all of them, which shows wrong positions; as long as the contexts of model and server allow."""
    tokens = min(LONG, *(context - export.NEW_TOKENS for context in contexts if context))
    long = itertools.islice(itertools.cycle(itertools.chain(*prompts)), tokens)
    return [*map(list, prompts), list(long)]


def _allowed_rounding(comparison: Comparison, dtype: Dtype) -> dict[str, float]:
    """Raises CONFIG_CONFLICT if the model overflows in ``dtype``."""
    rounding: dict[str, float] = {} if dtype == "float32" else {dtype: comparison.rounding(dtype)}
    if not all(map(math.isfinite, rounding.values())):
        fix = "--dtype bfloat16 allows more; or serve in float32, and give --dtype float32."
        what = f"the model overflows in {dtype}, so what rounding to it changes is unknown."
        raise ConfigError("CONFIG_CONFLICT", what, where="--dtype", fix=fix)
    return rounding


def _encoded(work: Work, server: Server, answered: Iterator[tuple[CheckPrompt, Answered]]) -> Iterator[Encoded]:
    """The check prompts that are conversations, as the server encodes them; it also answers the first ones."""
    template, chats = work.inputs.template, CHATS
    for prompt, answer in answered:
        if prompt.conversation is None:
            continue
        given = {**prompt.conversation, **({"chat_template_kwargs": template.kwargs} if template.kwargs else {})}
        theirs = server.encoded(given)
        asked = chats > 0 and len(prompt.ids) <= export.CHECK_PROMPT_TOKENS
        chats -= asked
        yield Encoded(
            ours=tuple(prompt.ids),
            theirs=None if theirs is None else tuple(theirs),
            texts=(template.tokenizer.decode(prompt.ids), template.tokenizer.decode(theirs or [])),
            by_ids=answer,
            by_chat=server.chat(given, export.NEW_TOKENS) if asked else None,
        )


def _investigated(comparison: Comparison, config: AdapterConfig, server: Server, evidence: Evidence) -> Evidence:
    """With what the model answers if it makes known mistakes or rounds, and with the server's other models."""
    module = comparison.module
    base = Finding("adapter", "its answers are the base model's: the trained weights are not applied")
    mistakes = [(base, evidence.base)]
    for suspect in suspects(module, evidence.bos):
        with suspect.simulated():
            mistakes.append((Finding(suspect.cause, suspect.what), comparison.against(module, suspect.prefix)))
    if config.kind != "none" and not config.of_peft:

        def loss(factor: float) -> float:
            with adapters.scaled(module, factor):
                return sum(comparison.first(3).against(module).by_prompt)

        factor, why = likeliest_factor(config, loss)
        with adapters.scaled(module, factor):
            what = f"the trained update is multiplied by {factor:.3g}{f': {why}' if why else ''}"
            mistakes.append((Finding("scale", what), comparison.against(module)))
    names = []
    others = [server.named(m.id) for m in server.models if m.id != server.endpoint.model]
    for other in others[:OTHERS]:
        with suppress(RunError):
            answered = [other.complete(prompt, export.NEW_TOKENS) for prompt in comparison.prompts[:2]]
            if comparison.first(2, answered).against(module).within(evidence.allowed):
                names.append(other.endpoint.model)
    more = {dtype: comparison.rounding(dtype) for dtype in ROUNDED if dtype not in evidence.rounding}
    rounding = {dtype: change for dtype, change in (evidence.rounding | more).items() if math.isfinite(change)}
    return replace(evidence, mistakes=mistakes, names=names, rounding=rounding)


@contextmanager
def _base(work: Work, module: PreTrainedModel) -> Iterator[PreTrainedModel]:
    if work.plan.adapter.kind == "none":
        yield loading.load(work.inputs.facts.path, torch.float32).module
        return
    with adapters.off(module):
        yield module
