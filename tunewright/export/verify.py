"""Load an export as a stranger would, in a process of its own, and write down what it says to the canaries.

Run by `export.py` as ``python -m tunewright.export.verify KIND FOLDER BASE CANARIES OUT``; KIND is `adapter` (our loader on the base
model) or `merged` (plain transformers, none of our code between).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from tunewright.model import arch_probe, loading, peft_format
from tunewright.model.generate import Decoding, greedy
from tunewright.model.language_model import LanguageModel


@torch.inference_mode()
def answers(
    model: LanguageModel, canaries: list[list[int]], new_tokens: int, stop: tuple[int, ...]
) -> tuple[Tensor, list[list[int]]]:
    """(logits_NV in float32 after each canary, greedy continuations), one canary at a time."""
    logits = torch.stack([model.module(torch.tensor([ids]), use_cache=False).logits[0, -1].float() for ids in canaries])
    return logits, greedy(model, canaries, Decoding(new_tokens, stop, exact_batch=False))


def main(kind: str, folder: str, base: str, canary_file: str, out: str) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    asked = json.loads(Path(canary_file).read_text(encoding="utf-8"))
    torch.set_num_threads(asked["threads"])
    if kind == "adapter":
        model = loading.load(base, torch.float32)
        peft_format.load(model.module, Path(folder), asked["base_sha256"])
    else:
        with arch_probe.quiet():
            module = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
            ).eval()
        model = LanguageModel(module, plain_head=False)
    logits, greedy_ids = answers(model, asked["canaries"], asked["new_tokens"], tuple(asked["stop"]))
    save_file({"logits": logits.contiguous()}, out, metadata={"greedy": json.dumps(greedy_ids)})


if __name__ == "__main__":
    main(*sys.argv[1:])
