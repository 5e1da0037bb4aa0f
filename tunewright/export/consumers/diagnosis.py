"""From what a consumer answered to one finding: that it agrees, or what is wrong with it. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tunewright.core.errors import TrainError
from tunewright.core.records import ConsumerCheck
from tunewright.export.consumers.answers import Answered, Difference

FLOAT32 = 1e-3  # largest difference of a log probability that orders of summation make, and short decimal numbers
ROUNDING = 3.0  # a consumer may differ by this many times what rounding changes in torch: it also rounds elsewhere
EXPLAINED = 0.1  # a mistake is the cause if this part of the difference is left when the model makes it too

# Cause -> what to do about it.
FIXES = {
    "adapter": "serve the run's own export; if the server loads an adapter, ask for its name: --model NAME.",
    "bos": "write the BOS token once: in the chat template, or by the tokenizer (add_bos_token).",
    "context": "start the server with a longer context (llama-server -c, vLLM --max-model-len).",
    "model": "start the server with this run's export, or name its model: --model NAME.",
    "name": "ask for that name: --model NAME.",
    "order": "convert with `tunewright export`, which puts the rows in llama.cpp's order.",
    "precision": "serve in float32 (llama-server -ctk f32 -ctv f32, vLLM --dtype float32), or accept the rounding of a "
    "dtype: --dtype.",
    "rope": "write the base where this program looks for it (rope_theta in config.json), or update the program.",
    "sampling": "switch off the server's own temperature and penalties (vLLM: --generation-config vllm).",
    "scale": "export rslora as plain LoRA with the same factor, and apply the adapter once.",
    "stop": "make the end-of-turn token an end token (eos_token_id in generation_config.json).",
    "template": "give the server the chat template of the export (--chat-template FILE; llama-server also --jinja).",
    "tokenizer": "use the tokenizer of the export; of a GGUF, check tokenizer.ggml.pre.",
    "unknown": "compare the versions of the server and of the export, then report this with verify.json.",
}


@dataclass(frozen=True)
class Finding:
    """``cause``: a key of `FIXES`."""

    cause: str
    what: str


@dataclass(frozen=True)
class Encoded:
    """One conversation. ``ours``, ``theirs``: its token ids, and those of the consumer, if it shows them; ``texts``:
    both as text. ``by_ids``, ``by_chat``: the consumer's answers to the ids and to the messages."""

    ours: tuple[int, ...]
    theirs: tuple[int, ...] | None = None
    texts: tuple[str, str] = ("", "")
    by_ids: Answered | None = None
    by_chat: Answered | None = None


@dataclass(frozen=True)
class Evidence:
    """``lengths``: of the prompts, the last of which is long. ``trained``, ``base``: the difference from these models;
    ``allowed``: the largest that passes. ``stop``, ``bos``, ``vocabulary``: of the run's tokenizer and model.

    Needed only if the answers differ: ``mistakes``, with the difference from a model that makes each; ``rounding``:
    what a dtype changes in torch, if it does not overflow; ``names``: other models of the consumer, which give the
    trained model's answers.
    """

    answers: Sequence[Answered]
    lengths: Sequence[int]
    trained: Difference
    base: Difference
    allowed: float
    stop: Sequence[int]
    bos: int | None
    vocabulary: int
    mistakes: Sequence[tuple[Finding, Difference]] = ()
    rounding: dict[str, float] = field(default_factory=dict)
    names: Sequence[str] = ()
    encoded: Sequence[Encoded] = ()


def allowed(rounding: float) -> float:
    """The largest difference that passes, if computing in the consumer's dtype changes a log probability by so much."""
    return max(FLOAT32, ROUNDING * rounding)


def diagnose(e: Evidence) -> Finding | None:
    """The first thing that is wrong, from the prompt to the answer; None if nothing is."""
    return next((f for check in (_reading, _weights, _ending, _encoding) for f in check(e)), None)


def _reading(e: Evidence) -> Iterator[Finding]:
    """Does the consumer read the token ids that it is given, and give its likeliest tokens?"""
    for answer, length in zip(e.answers, e.lengths, strict=True):
        counted = answer.prompt_tokens
        if counted == length + 1 and e.bos is not None:
            yield Finding("bos", f"it reads {counted} tokens of a prompt of {length}: it adds a BOS token")
        elif counted is not None and counted < length:
            yield Finding("context", f"it reads only {counted} tokens of a prompt of {length}")
        elif counted not in (None, length):
            yield Finding("tokenizer", f"it reads {counted} tokens of a prompt of {length} token ids")
        if any(i >= e.vocabulary for i in answer.ids):
            yield Finding("model", f"it gives token ids above the model's {e.vocabulary}: it serves another model")
        if not answer.ids and not answer.ended:
            yield Finding("unknown", "it gives an empty answer")
        if answer.regret > FLOAT32:
            yield Finding("sampling", "it does not give the tokens that it finds likeliest, at temperature 0")


def _weights(e: Evidence) -> Iterator[Finding]:
    trained = e.trained
    if trained.within(e.allowed):
        return
    for name in e.names:
        yield Finding("name", f"its model {name} gives the trained model's answers, the one that was asked does not")
    likeliest, closest = min(e.mistakes, key=lambda m: m[1].largest)
    if closest.within(max(e.allowed, trained.largest * EXPLAINED)):
        yield likeliest
    *short, long = trained.by_prompt
    if max(short, default=0.0) <= e.allowed < long / 10:
        yield Finding("rope", f"it is right on short prompts, and wrong by {long:.2g} on one of {e.lengths[-1]} tokens")
    for dtype, change in sorted(e.rounding.items(), key=lambda item: item[1]):
        if trained.within(ROUNDING * change):
            yield Finding("precision", f"differences are of the size of {dtype} rounding, of weights or cache")
    numbers = f"{trained.likeliest:.0%} of its tokens are the trained model's likeliest"
    if trained.likeliest >= 0.8:
        yield Finding("precision", f"{numbers}: its weights or cache seem to be quantised, or a few weights are wrong")
    if max(trained.likeliest, e.base.likeliest) < 0.3:
        yield Finding("model", f"{numbers}: it serves another model, or damaged weights")
    yield Finding("unknown", f"the cause is not known; {numbers} (the base model's: {e.base.likeliest:.0%})")


def _ending(e: Evidence) -> Iterator[Finding]:
    if any(i in e.stop for answer in e.answers for i in answer.ids[:-1]):
        yield Finding("stop", "it continues after the token that ends an answer")


def _encoding(e: Evidence) -> Iterator[Finding]:
    """Do messages become the same token ids?"""
    for one in e.encoded:
        ours, theirs = one.ours, one.theirs
        if theirs is None or theirs == ours:
            if one.by_chat is not None and one.by_ids is not None and not _alike(one.by_chat, one.by_ids, e.allowed):
                yield Finding("template", "a chat message gets another answer than the token ids that it should become")
        elif theirs[1:] == ours:
            yield Finding("bos", f"it writes {_named(theirs[0], e.bos)} more before a chat prompt")
        elif theirs == ours[1:]:
            yield Finding("bos", f"it leaves out {_named(ours[0], e.bos)} of a chat prompt")
        elif one.texts[0] == one.texts[1]:
            yield Finding("tokenizer", f"it splits the same text into other tokens, {_apart(theirs, ours)}")
        else:
            yield Finding("template", f"it renders a chat prompt differently, {_apart(*reversed(one.texts))}")


def _named(token: int, bos: int | None) -> str:
    return "one BOS token" if token == bos else f"one token ({token})"


def _alike(first: Answered, second: Answered, allowed: float) -> bool:
    """Whether two answers of a consumer seem to be answers to the same prompt."""
    lengths = {a.prompt_tokens for a in (first, second)} - {None}
    pairs = zip(first.logprobs, second.logprobs, strict=False)
    same_length = abs(len(first.logprobs) - len(second.logprobs)) <= 1  # the stop token may be missing
    return len(lengths) <= 1 and same_length and all(abs(a - b) <= allowed for a, b in pairs)


def _apart(theirs: Sequence[object], ours: Sequence[object]) -> str:
    """Where two sequences begin to differ."""
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    start = max(0, at - 8)
    return f"...{theirs[start : at + 8]!r} instead of ...{ours[start : at + 8]!r}"


def error(check: ConsumerCheck) -> TrainError | None:
    """CONSUMER_DIFFERS, with the cause, unless the consumer agrees."""
    if check.cause is None:
        return None
    what = (
        f"{check.program} does not give the trained model's answers: {check.finding}. {check.same_texts} of "
        f"{check.prompts} texts are equal; a log probability differs by {check.largest_difference:.2g} (allowed: "
        f"{check.allowed:.2g}; from the base model: {check.base_difference:.2g})."
    )
    return TrainError("CONSUMER_DIFFERS", what, where=check.model, fix=FIXES[check.cause])
