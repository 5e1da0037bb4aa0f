"""Answers and label scores in batches, with the prompts' common prefix computed once.

Finished rows leave the batch. In float32 the results equal those of one row at a time (tested); architectures whose
state cannot be batched exactly (`Facts.packable` is false) are decoded one by one. Axes: B rows, T tokens, V
vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunewright.core.sampling import GREEDY, Sampling
from tunewright.model import forward
from tunewright.model.attention import interface
from tunewright.model.decoding import speculative
from tunewright.model.decoding.choice import TokenChoices
from tunewright.model.decoding.drafts import Drafts
from tunewright.model.decoding.fused import FusedState
from tunewright.model.decoding.part import Part
from tunewright.model.decoding.state import State, cache_argument
from tunewright.model.decoding.threads import StepThreads
from tunewright.model.language_model import LanguageModel
from tunewright.system import crowding, heap
from tunewright.tokens.packing import singles, split_into_passes, to_microbatch
from tunewright.tokens.sequences import prompt_then_answer

MIN_SHARED = 8
PREFILL_TOKENS = 4096
MODULES_TOKENS = 32_768  # of a batch whose prompts the modules read in one pass
# Tokens of a pass of label scoring. Not the plan's tokens_per_pass: passes decide the last bits of the scores, which
# must not depend on the memory of the machine.
TOKENS_PER_PASS = 4096


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded, the same for every arm. ``stop``: the tokens that end an answer. ``batchable``: rows may
    share a batch. ``window``: the model's sliding window, in tokens. ``sampling``: how tokens are chosen. ``drafts``:
    guesses, which make an answer that is decoded alone faster. ``plain``: by transformers' modules and attention alone,
    as most users of a model compute. ``batch_size`` and ``batch_tokens``: most rows of a batch, and most tokens of its
    cache."""

    max_new_tokens: int
    stop: tuple[int, ...]
    batch_size: int = 32
    batchable: bool = True
    window: int | None = None
    sampling: Sampling = GREEDY
    drafts: Drafts | None = None
    plain: bool = False
    batch_tokens: int = 1 << 30

    @property
    def keeps_attention(self) -> bool:
        """Whether steps keep transformers' own attention. A sliding window counts cache places, and would count the
        padding of rows behind a common prefix."""
        return self.plain or not self.batchable or self.window is not None


def stop_ids(model: LanguageModel, eos: int) -> tuple[int, ...]:
    """The tokenizer's end token and those of the model's generation config: the only part of that config that is
    used."""
    extra = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)  # a classifier has none
    return tuple(sorted({eos, *(extra if isinstance(extra, list) else [extra] if isinstance(extra, int) else [])}))


@dataclass(frozen=True)
class Prefix:
    """What a server's prefix cache holds: the tokens of a common prefix, and the keys and values (H, T, D) of each
    layer."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]


@torch.inference_mode()
def prefill(model: LanguageModel, ids: Sequence[int]) -> Prefix:
    """The prefix cache after ``ids``."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.module.config)
    device = model.device
    own_name = cache_argument(type(model.decoder).forward)
    model.decoder(torch.tensor([list(ids)], device=device), use_cache=True, **{own_name: cache})
    return Prefix(tuple(ids), tuple((layer.keys[0], layer.values[0]) for layer in cache.layers))


@dataclass(frozen=True)
class Request:
    """Prompts to complete, the tokens chosen as in ``sampling``."""

    prompts: Sequence[Sequence[int]]
    sampling: Sampling = GREEDY


Chunk = tuple[int, list[int]]  # the number of a request, and some of its rows


def complete(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    progress: Callable[[int], None] = lambda _: None,
    prefix_cache: Prefix | None = None,
) -> list[list[int]]:
    """`complete_all` of one request."""
    (written,) = complete_all(model, [Request(prompts, decoding.sampling)], decoding, progress, prefix_cache)
    return written


@torch.inference_mode()
def complete_all(
    model: LanguageModel,
    requests: Sequence[Request],
    decoding: Decoding,
    progress: Callable[[int], None] = lambda _: None,
    prefix_cache: Prefix | None = None,
) -> list[list[list[int]]]:
    """For each prompt of each request the next token, chosen as its sampling says, repeatedly, until a stop token
    (which is not returned) or the limit.

    Requests share batches, so that a step reads the weights once for all of them; their prompts are computed request by
    request, because they have their beginnings in common. ``progress(n)`` is called as rows finish. An answer of
    ``max_new_tokens`` tokens was cut off. ``prefix_cache``: the cache of a prefix of all prompts.
    """
    written: list[list[list[int]]] = [[[] for _ in request.prompts] for request in requests]
    threads = StepThreads(crowding.now(torch.get_num_threads()))
    batches = _decode_batches([request.prompts for request in requests], decoding, _is_fused(model, decoding))
    for batch in batches:
        prompts = [[requests[i].prompts[r] for r in rows] for i, rows in batch]
        state, logits_BV = _begun(model, prompts, decoding, prefix_cache)
        samplings = [requests[i].sampling for i, _ in batch]
        with stepping(model, state), crowding.restored():
            if decoding.drafts is not None and speculative.applies(state, samplings[0]):
                assert isinstance(state, FusedState)
                ((i, (row,)),) = batch
                limits = speculative.Limits(decoding.max_new_tokens, decoding.stop)
                written[i][row] = speculative.complete(state, logits_BV[0], prompts[0][0], decoding.drafts, limits)
                progress(1)
                continue
            choice = TokenChoices.of(samplings, prompts, logits_BV)
            alive = [written[i][r] for i, rows in batch for r in rows]
            for _ in range(decoding.max_new_tokens):
                token_B = choice.next(logits_BV)
                unfinished = []
                for b, token in enumerate(token_B.tolist()):
                    if token not in decoding.stop:
                        alive[b].append(token)
                        if len(alive[b]) < decoding.max_new_tokens:
                            unfinished.append(b)
                if len(unfinished) < len(alive):
                    progress(len(alive) - len(unfinished))
                    if not unfinished:
                        break
                    order = state.keep(torch.tensor(unfinished, device=token_B.device))
                    choice.keep(order)
                    alive, token_B = [alive[b] for b in order.tolist()], token_B[order]
                logits_BV = threads.step(state, token_B)
        if batch is not batches[-1] and len(batch) > 1:
            del state
            heap.release()  # the next batch's cache has another size
    return written


@torch.inference_mode()
def label_logprobs(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[Sequence[int]]],
    decoding: Decoding,
    progress: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float64]:
    """log p(whole label sequence, end of turn included | prompt) in nats; (rows, labels).

    ``labels[r][j]`` are the token ids of label j after prompt r. Because every sequence holds its own end, the labels
    are events of one space and their summed log-probabilities compare fairly whatever their lengths.
    """
    total = np.zeros((len(prompts), len(labels[0])))
    if not decoding.batchable:
        groups = [[r] for r in range(len(prompts))]
    else:
        whole = [[*p, *itertools.chain(*of)] for p, of in zip(prompts, labels, strict=True)]
        groups = split_into_passes(singles(whole), TOKENS_PER_PASS, "shared")
    for rows in groups:
        branches = [(r, j) for r in rows for j in range(total.shape[1])]
        for part in [branches] if decoding.batchable else [[b] for b in branches]:
            sequences = [prompt_then_answer(prompts[r], labels[r][j], r) for r, j in part]
            microbatch = to_microbatch(sequences, "shared" if decoding.batchable else "padded")
            logp_NV = forward.logits(model, microbatch).float().log_softmax(-1)
            logp_N = (
                logp_NV.gather(1, torch.from_numpy(microbatch.target_N).to(logp_NV.device)[:, None])[:, 0]
                .double()
                .cpu()
                .numpy()
            )
            ends = np.cumsum([one.supervised for one in sequences])[:-1]
            for branch, logp in zip(part, np.split(logp_N[microbatch.prediction_M], ends), strict=True):
                total[branch] = logp.sum()
        progress(len(rows))
    return total


def _decode_batches(
    requests: Sequence[Sequence[Sequence[int]]], decoding: Decoding, mergeable: bool
) -> list[list[Chunk]]:
    """Rows of similar length together, longest first (what does not fit in memory fails at once); of several requests,
    if they are ``mergeable``. Rows are padded to the longest of their chunk."""
    size = decoding.batch_size if decoding.batchable else 1
    most = decoding.batch_tokens if mergeable else min(decoding.batch_tokens, MODULES_TOKENS)
    batches: list[list[Chunk]] = []
    rows_left = tokens_left = 0
    for number, prompts in enumerate(requests):
        same = common_prefix(prompts) if len(prompts) > 1 and not decoding.keeps_attention else 0
        same = same if same >= MIN_SHARED else 0
        chunk: list[int] = []
        tokens = 0  # of each row of the chunk
        for row in sorted(range(len(prompts)), key=lambda r: (-len(prompts[r]), r)):
            own = len(prompts[row]) - same + decoding.max_new_tokens
            tokens = tokens if chunk else own
            if rows_left == 0 or tokens_left < tokens or not (chunk or mergeable):
                batches.append([])
                rows_left, tokens_left, chunk, tokens = size, most, [], own
            if not chunk:
                batches[-1].append((number, chunk))
            chunk.append(row)
            rows_left, tokens_left = rows_left - 1, tokens_left - tokens
    return batches


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, leaving each at least one of its own."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(same, min(len(p) for p in prompts) - 1)


def _is_fused(model: LanguageModel, decoding: Decoding) -> bool:
    """Whether steps are computed by `FusedState`. `step_kernel` was asked on the CPU; a GPU's kernels may round
    differently."""
    return not decoding.keeps_attention and model.decoding != "modules" and model.device.type == "cpu"


def after_prompts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    prefix_cache: Prefix | None = None,
    copies: int = 1,
) -> tuple[State | FusedState, Tensor]:
    """(state after the prompts, logits_BV of the first new token), with ``copies`` rows for each prompt, one after
    another, whose prompt is computed once.

    Prompts are padded on the left, behind their common prefix. With transformers' own attention they share nothing.
    """
    from transformers import DynamicCache

    device = model.device
    plain = decoding.keeps_attention
    if prefix_cache is None and len(prompts) > 1 and not plain and (same := common_prefix(prompts)) >= MIN_SHARED:
        prefix_cache = prefill(model, prompts[0][:same])
    shared = 0 if prefix_cache is None or plain else len(prefix_cache.ids)
    assert all(
        tuple(p[:shared]) == prefix_cache.ids[:shared] and len(p) > shared for p in prompts if prefix_cache is not None
    )
    held = prefix_cache.layers if prefix_cache is not None and shared else ()
    own = [p[shared:] for p in prompts]
    logits: list[Tensor] = []

    def fed(part: Sequence[Sequence[int]]) -> State:
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in part], device=device)
        real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=device)
        start = torch.full((len(part),), shared, device=device)
        state = State(model, DynamicCache(config=model.module.config), held, not plain, real[:, :0], start)
        with stepping(model, state):
            logits.append(state.feed(ids, real, last_only=True)[:, -1])
        if copies > 1:
            every = torch.arange(len(part), device=device).repeat_interleave(copies)
            state.keep(every)
            logits[-1] = logits[-1][every]
        return state

    if not _is_fused(model, decoding):
        return fed(own), logits[0]
    rows = Part.after(map(fed, _parts(own)), len(own) * copies, max(map(len, own)), decoding.max_new_tokens)
    return FusedState.of(model, rows, model.decoding), torch.cat(logits)


def _parts(prompts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """The prompts in order, in parts of at most about `PREFILL_TOKENS`: longer passes are not faster, and take memory
    in proportion to their tokens."""
    parts: list[list[Sequence[int]]] = []
    width = 0
    for prompt in prompts:
        width = max(width, len(prompt))
        if not parts or (len(parts[-1]) + 1) * width > PREFILL_TOKENS:
            parts.append([])
            width = len(prompt)
        parts[-1].append(prompt)
    return parts


def _begun(
    model: LanguageModel,
    prompts: Sequence[Sequence[Sequence[int]]],
    decoding: Decoding,
    prefix_cache: Prefix | None,
) -> tuple[State | FusedState, Tensor]:
    """`after_prompts` of every chunk, together."""
    parts = [after_prompts(model, chunk, decoding, prefix_cache) for chunk in prompts]
    states = [state for state, _ in parts]
    fused = [state for state in states if isinstance(state, FusedState)]
    return (FusedState.together(fused) if fused else states[0]), torch.cat([logits for _, logits in parts])


def stepping(model: LanguageModel, state: State | FusedState) -> contextlib.AbstractContextManager[None]:
    """Switches the module to `PREFIXED` attention, if its own modules compute the steps of ``state``."""
    prefixed = isinstance(state, State) and state.prefixed
    return interface.attending(model.module, interface.PREFIXED) if prefixed else contextlib.nullcontext()
