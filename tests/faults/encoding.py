"""Encoders and tags of words: what a row's tokens see, which tokens are pooled, which one a tag belongs to."""

from __future__ import annotations

from typing import Any

import tiny_encoders as tiny
import torch
from build import plan_of
from tiny_encoders import SEP, TEMPLATE

from faults import Fault, Patch
from tunewright.data.messages import Chat, Message, question
from tunewright.export import tagger
from tunewright.methods import METHODS
from tunewright.model import adapters
from tunewright.model.encoders import passes
from tunewright.tokens import encoder_text
from tunewright.tokens.packing import to_microbatch
from tunewright.tokens.rendering import for_generation
from tunewright.tokens.sequences import head_sequence

TEXTS = ["red", "a house by the river"]
TAGS = ("O", "B-x")


def microbatch(texts: list[str]) -> Any:
    ids = [for_generation(TEMPLATE, question(text)) for text in texts]
    return to_microbatch([head_sequence(own, SEP, i) for i, own in enumerate(ids)], "padded")


def pooled(texts: list[str], pooling: Any) -> torch.Tensor:
    model = tiny.encoder()
    with torch.no_grad():
        return passes.pooled(model.module, microbatch(texts), model.device, pooling)


def padding_is_not_seen() -> None:
    together = pooled(TEXTS, "cls")
    alone = torch.cat([pooled([text], "cls") for text in TEXTS])
    assert torch.allclose(together, alone, rtol=0, atol=1e-10)


def padding_is_seen(patch: Patch) -> None:
    plain = passes.encoded

    class Unmasked:
        def __init__(self, module: Any) -> None:
            self.module, self.config = module, module.config

        def __call__(self, ids: Any, attention_mask: Any, **more: Any) -> Any:
            return self.module(ids, **more)

    patch.setattr(passes, "encoded", lambda module, *args: plain(Unmasked(module), *args))  # type: ignore[arg-type]


def the_mean_is_of_the_row() -> None:
    together = pooled(TEXTS, "mean")
    alone = torch.cat([pooled([text], "mean") for text in TEXTS])
    assert torch.allclose(together, alone, rtol=0, atol=1e-10)


def the_mean_is_of_the_pass(patch: Patch) -> None:
    patch.setattr(passes, "pool", lambda hidden_BTD, seen_BT, pooling: hidden_BTD.mean(1))


def the_first_token_has_the_tag() -> None:
    """Of words of several tokens, as `return_offsets_mapping` shows them; special tokens are none."""
    text, answer = "red house", "O B-x"
    chat = Chat((Message("user", text), Message("assistant", answer)), "x:1")
    rows = METHODS["tag"].prepare(TEMPLATE, chat, 0, None)
    plan = plan_of(method="tag", labels=TAGS, layout="padded")
    (part,) = METHODS["tag"].microbatches(tiny.encoder(), rows, [0], plan, 0)
    places = part.at_N[part.prediction_M][part.signal["target_M"] >= 0]
    spelled = TEMPLATE.tokenizer.convert_ids_to_tokens(part.ids_BT[0, places].tolist())
    assert spelled == ["r", "h"]
    assert part.signal["target_M"].tolist() == [0, 1, -100]


def the_last_token_has_the_tag(patch: Patch) -> None:
    plain = encoder_text.with_words

    def with_words(tokenizer: Any, prompt: Any) -> Any:
        ids, starts = plain(tokenizer, prompt)
        return ids, [*(start - 1 for start in starts[1:]), len(ids) - 2]

    patch.setattr(encoder_text, "with_words", with_words)


def special_tokens_are_words(patch: Patch) -> None:
    plain = encoder_text.with_words

    def with_words(tokenizer: Any, prompt: Any) -> Any:
        ids, starts = plain(tokenizer, prompt)
        return ids, [start - 1 for start in starts]

    patch.setattr(encoder_text, "with_words", with_words)


def labels_keep_their_order() -> None:
    """What the exported model calls its outputs."""
    model = tiny.encoder(dtype=torch.float32)
    plan = plan_of(method="tag", labels=TAGS, layout="padded")
    adapters.attach(model.module, plan.adapter, 1, len(TAGS))
    model.module.score.weight.data[1] += 1.0
    ids = torch.tensor([[tiny.CLS, 5, tiny.SEP]])
    with torch.no_grad():
        best = (model.module(ids).last_hidden_state[0, 1] @ model.module.score.weight.T).argmax()
        adapters.merge(model.module)
        made: Any = tagger.exported(model, plan).module
        answer = made.config.id2label[int(made(ids).logits[0, 1].argmax())]
    assert answer == TAGS[int(best)]


def labels_are_sorted(patch: Patch) -> None:
    plain = tagger.exported

    def exported(model: Any, plan: Any) -> Any:
        return plain(model, plan.model_copy(update={"labels": tuple(sorted(plan.labels))}))

    patch.setattr(tagger, "exported", exported)


FAULTS = [
    Fault(86, "tokens of an encoder see the padding of their pass", "", "a row is computed beside longer rows as alone; SELFTEST_LOSS",
          padding_is_not_seen, padding_is_seen),
    Fault(87, "padding is part of the mean over a row's hidden states", "", "the mean of a row is the same beside longer rows; SELFTEST_LOSS",
          the_mean_is_of_the_row, the_mean_is_of_the_pass),
    Fault(88, "a word's tag is learned at its last token", "", "the tag of a word belongs to the first token that ends in it",
          the_first_token_has_the_tag, the_last_token_has_the_tag),
    Fault(89, "special tokens are counted as words, so that every tag is one token early", "", "the first tag belongs to the first token of the text",
          the_first_token_has_the_tag, special_tokens_are_words),
    Fault(90, "an export names its outputs in another order", "", "the label of the largest output is the one that was trained; EXPORT_MISMATCH",
          labels_keep_their_order, labels_are_sorted),
]  # fmt: skip
