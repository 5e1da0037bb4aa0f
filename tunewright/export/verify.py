"""Load an export in a separate process, as its users would, and save its answers to held-out prompts.

`export.py` runs ``python -m tunewright.export.verify KIND FOLDER REQUEST OUT``; KIND is a key of EXPORTS.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tunewright.export import EXPORTS
from tunewright.export.kind import Base
from tunewright.model.generate import Decoding, greedy
from tunewright.model.language_model import LanguageModel


@dataclass(frozen=True)
class VerifyRequest:
    """What both processes compute: token ids of held-out prompts, when their answers end, and the base model."""

    prompts: list[list[int]]
    new_tokens: int
    stop: list[int]
    base: str
    base_sha256: str
    threads: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@torch.inference_mode()
def answers(model: LanguageModel, request: VerifyRequest) -> tuple[Tensor, list[list[int]]]:
    """(logits_NV in float32 after each prompt, greedy continuations), one prompt at a time."""
    forward = model.module
    logits = [forward(torch.tensor([ids]), use_cache=False).logits[0, -1].float() for ids in request.prompts]
    decoding = Decoding(request.new_tokens, tuple(request.stop), batchable=False)
    return torch.stack(logits), greedy(model, request.prompts, decoding)


def main(kind: str, folder: str, request_file: str, out: str) -> None:
    from safetensors.torch import save_file

    request = VerifyRequest(**json.loads(Path(request_file).read_text(encoding="utf-8")))
    torch.set_num_threads(request.threads)
    model = EXPORTS[kind].reload(Path(folder), Base(request.base, request.base_sha256))
    logits_NV, greedy_ids = answers(model, request)
    save_file({"logits": logits_NV.contiguous()}, out, metadata={"greedy": json.dumps(greedy_ids)})


if __name__ == "__main__":
    main(*sys.argv[1:])
