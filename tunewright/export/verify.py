"""Load an export in a separate process, as its users would, and save its answers to the check prompts.

`export.py` runs ``python -m tunewright.export.verify KIND FOLDER REQUEST OUT``; KIND is a key of EXPORTS.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewright.export import EXPORTS
from tunewright.export.kind import Base
from tunewright.model.generate import Decoding, greedy
from tunewright.model.language_model import LanguageModel
from tunewright.train import crowding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class CheckPrompt:
    """Token ids of a held-out prompt, and the conversation that they were rendered from. A document has none, and
    neither has a prompt that spells a special token: tokenizers alone would read it as that token."""

    ids: list[int]
    conversation: dict[str, object] | None = None


@dataclass(frozen=True)
class VerifyRequest:
    """What both processes compute: answers to the prompts, and when these end. ``conversations``: of the prompts that
    have one. ``template``: arguments of the chat template."""

    prompts: list[list[int]]
    new_tokens: int
    stop: list[int]
    base: str
    base_sha256: str
    threads: int
    conversations: list[dict[str, object]] = field(default_factory=list)
    template: dict[str, object] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@torch.inference_mode()
def answers(model: LanguageModel, request: VerifyRequest) -> tuple[Tensor, list[list[int]]]:
    """(logits_NV in float32 after each prompt, greedy continuations), one prompt at a time."""
    forward = model.module
    logits = [forward(torch.tensor([ids]), use_cache=False).logits[0, -1].float() for ids in request.prompts]
    decoding = Decoding(request.new_tokens, tuple(request.stop), batchable=False)
    return torch.stack(logits), greedy(model, request.prompts, decoding)


def encoded(
    tokenizer: PreTrainedTokenizerBase, conversation: Mapping[str, object], template: Mapping[str, object]
) -> list[int]:
    """Token ids of a prompt, as anyone would make them with transformers."""
    text = tokenizer.apply_chat_template(**conversation, tokenize=False, add_generation_prompt=True, **template)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def main(kind: str, folder: str, request_file: str, out: str) -> None:
    from safetensors.torch import save_file

    request = VerifyRequest(**json.loads(Path(request_file).read_text(encoding="utf-8")))
    torch.set_num_threads(request.threads)
    reloaded = EXPORTS[kind].reload(Path(folder), Base(request.base, request.base_sha256))
    with crowding.giving_way():
        logits_NV, greedy_ids = answers(reloaded.model, request)
    encoded_ids = [encoded(reloaded.tokenizer, c, request.template) for c in request.conversations]
    facts = {"greedy": json.dumps(greedy_ids), "encoded": json.dumps(encoded_ids)}
    save_file({"logits": logits_NV.contiguous()}, out, metadata=facts)


if __name__ == "__main__":
    main(*sys.argv[1:])
