"""Samples that another program draws, with the adapter as it is. Each time it has another name, so that nothing that is
cached there is of older weights."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import TrainError
from tunewright.core.records import AdapterNote
from tunewright.data.endpoints import token_sampler
from tunewright.data.endpoints.openai_endpoint import Endpoint
from tunewright.data.endpoints.token_sampler import TokenPrompt
from tunewright.model import adapters, peft_format
from tunewright.model.decoding.generate import Decoding
from tunewright.model.decoding.sample import Draw, Sample
from tunewright.model.language_model import LanguageModel


@dataclass(frozen=True)
class Outside:
    """``folder``: where the adapter is written for the server, which must see it."""

    endpoint: Endpoint
    adapter: AdapterConfig
    note: AdapterNote
    folder: Path


def sample(
    outside: Outside,
    model: LanguageModel,
    prompts: Sequence[tuple[int, Sequence[int]]],
    count: int,
    decoding: Decoding,
    draw: Draw,
) -> list[list[Sample]]:
    """As `sample.sample`, at temperature 1. Raises ROLLOUT_FAILED."""
    digest = hashlib.sha256(f"{draw.seed} {draw.step}".encode())
    for name, tensor in adapters.update_tensors(model.module).items():
        digest.update(name.encode() + tensor.detach().float().contiguous().cpu().numpy().tobytes())
    name = f"tunewright-{digest.hexdigest()[:32]}"
    folder = (outside.folder / name).absolute()
    peft_format.save(model.module, outside.adapter, folder, outside.note.base, outside.note)
    asked = [TokenPrompt(tuple(ids), _seed(draw, row, n)) for row, ids in prompts for n in range(count)]
    try:
        token_sampler.load(outside.endpoint, name, folder)
        own = token_sampler.named(outside.endpoint, name)
        answers = token_sampler.sampled(own, asked, decoding.max_new_tokens, decoding.stop)
        with contextlib.suppress(TrainError):  # the samples are there
            token_sampler.unload(outside.endpoint, name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    samples = [Sample(a.ids, a.logp, "stop" if a.ids[-1] in decoding.stop else "length") for a in answers]
    return [samples[n : n + count] for n in range(0, len(samples), count)]


def _seed(draw: Draw, row: int, number: int) -> int:
    """Of a sample, below 2**31."""
    key = f"{draw.seed} {draw.step} {row} {number}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1
