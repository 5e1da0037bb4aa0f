"""Load an export in a separate process, as its users would, and save its answers to the check prompts.

`export.py` runs ``python -m tunewright.export.reload_check KIND PATH REQUEST OUT``; KIND is a key of EXPORTS.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewright.export import EXPORTS, classifier, tagger, vectors
from tunewright.export.kind import Base
from tunewright.model import forward
from tunewright.model.decoding.generate import Decoding, complete
from tunewright.model.heads.linear import head_of
from tunewright.model.language_model import LanguageModel
from tunewright.system import crowding
from tunewright.tokens.packing import to_microbatch
from tunewright.tokens.sequences import TokenSequence, head_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class CheckPrompt:
    """Token ids of a held-out prompt, and the conversation that they were rendered from. A document has none, and
    neither has a prompt that spells a special token: tokenizers alone would read it as that token. Of a model that
    gives vectors: the ids of a query, and query and document as texts."""

    ids: list[int]
    conversation: dict[str, object] | None = None


@dataclass(frozen=True)
class CheckRequest:
    """What both processes compute: answers to the prompts, and when these end. ``conversations``: of the prompts that
    have one. ``template``: arguments of the chat template. ``texts``: what is split into tokens. ``batchable``: as
    in `Decoding`. ``every_token``: whether a head answers at every token."""

    prompts: list[list[int]]
    new_tokens: int
    stop: list[int]
    base: str
    base_sha256: str
    base_packed: str
    threads: int
    batchable: bool = False
    conversations: list[dict[str, object]] = field(default_factory=list)
    template: dict[str, object] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    every_token: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@torch.inference_mode()
def answers(model: LanguageModel, request: CheckRequest) -> tuple[Tensor, list[list[int]]]:
    """(logits_NV in float32 after each prompt alone, greedy continuations). Of a head: its logits, and the numbers of
    the labels that it chooses; transformers' own class reads all prompts in one batch, as its users would."""
    if request.every_token:
        logits = _token_logits(model, request.prompts)
        return torch.cat(logits).float(), [logits_TC.argmax(1).tolist() for logits_TC in logits]
    if head_of(model.module) is not None or model.encoder:
        logits_NC = _head_logits(model, request.prompts).float()
        return logits_NC, logits_NC.argmax(1, keepdim=True).tolist()
    module = model.module
    logits = [module(torch.tensor([ids]), use_cache=False).logits[0, -1].float() for ids in request.prompts]
    decoding = Decoding(request.new_tokens, tuple(request.stop), batchable=request.batchable, plain=True)
    return torch.stack(logits), complete(model, request.prompts, decoding)


def _token_logits(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """logits_TC of each prompt."""
    if classifier.has_own_head(model.module):
        return tagger.batch_logits(model.module, prompts)
    rows = [TokenSequence((*ids, 0), (0.0, *[1.0] * len(ids)), 0) for ids in prompts]
    return [forward.head_logits(model, to_microbatch([row], "padded")) for row in rows]


def _head_logits(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    if model.encoder and head_of(model.module) is None:  # one batch, as its users would
        return forward.head_logits(model, to_microbatch([head_sequence(ids, 0, 0) for ids in prompts], "padded"))
    if type(model.module).__name__.endswith(classifier.CLASS):
        return classifier.batch_logits(model.module, prompts)
    rows = [to_microbatch([head_sequence(ids, 0, 0)], "padded") for ids in prompts]
    return torch.cat([forward.head_logits(model, row) for row in rows])


def rendered(
    tokenizer: PreTrainedTokenizerBase, conversation: Mapping[str, object], template: Mapping[str, object]
) -> str:
    """A prompt as text, as anyone would make it with transformers."""
    text = tokenizer.apply_chat_template(**conversation, tokenize=False, add_generation_prompt=True, **template)
    return str(text)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def _text_ids(tokenizer: PreTrainedTokenizerBase, prompt: Mapping[str, object]) -> list[int]:
    """Of a prompt that is a text, or a pair of texts, with special tokens."""
    texts = prompt["texts"]
    assert isinstance(texts, list)
    return list(tokenizer(*texts)["input_ids"])


def hashes(ids: Sequence[Sequence[int]]) -> list[str]:
    """One for each sequence; two processes exchange these, because all tokens of a data set can be very many."""
    return [hashlib.sha256(str(list(row)).encode()).hexdigest()[:16] for row in ids]


def weights(module: PreTrainedModel, stored: Callable[[Tensor], Tensor] = lambda weight: weight) -> dict[str, str]:
    """Hash of every parameter, in float32, after ``stored``."""
    float32 = ((name, stored(p.detach()).float().contiguous()) for name, p in module.named_parameters())
    return {name: hashlib.sha256(tensor.numpy().data).hexdigest() for name, tensor in float32}


def mean_kl(expected_NV: Tensor, actual_NV: Tensor) -> float:
    """Mean KL divergence (nats) of the actual predictions from the expected ones."""
    p, q = expected_NV.double().log_softmax(-1), actual_NV.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def main(kind: str, path: str, request_file: str, out: str) -> None:
    from safetensors.torch import save_file

    request = CheckRequest(**json.loads(Path(request_file).read_text(encoding="utf-8")))
    torch.set_num_threads(request.threads)
    row = EXPORTS[kind]
    reloaded = row.reload(Path(path), Base(request.base, request.base_sha256, request.base_packed))
    with crowding.giving_way():
        if reloaded.embed is not None:
            logits_NV, greedy_ids = vectors.answers(reloaded.embed, request.conversations)
        else:
            logits_NV, greedy_ids = answers(reloaded.model, request)
    facts: dict[str, object] = {"greedy": greedy_ids, "encoded": [], "texts": []}
    if (tokenizer := reloaded.tokenizer) is not None:
        encode = reloaded.encode or partial(token_ids, tokenizer)
        arguments = {} if reloaded.has_arguments else request.template
        chats = [c for c in request.conversations if "texts" not in c]
        if reloaded.embed is not None:
            facts["encoded"] = vectors.encoded(reloaded, request.conversations)
        else:
            facts["encoded"] = encode([rendered(tokenizer, c, arguments) for c in chats]) or [
                _text_ids(tokenizer, c) for c in request.conversations
            ]
        facts |= {"texts": hashes(encode(request.texts)), "program": reloaded.program}
    if row.stored is not None:
        facts["weights"] = weights(reloaded.model.module)
    save_file({"logits": logits_NV.contiguous()}, out, metadata={"facts": json.dumps(facts)})


if __name__ == "__main__":
    main(*sys.argv[1:])
