"""Texts that a model embeds -> token ids, in one way for training, evaluation and export: after their prefix, with the
tokens that the tokenizer adds, and an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from tunewright.tokens.template import Template

Kind = Literal["query", "document"]


def appended_end(template: Template) -> int | None:
    """The end token, where it must be added to a text because the tokenizer does not: the hidden state there is a
    decoder's vector of the text. None if the tokenizer adds it, and of an encoder, whose tokenizer adds a separator."""
    end = template.tokenizer.eos_token_id
    added = template.encoder or end is None or template.tokenizer("a")["input_ids"][-1] == end
    return None if added else int(end)


def text_ids(template: Template, text: str, kind: Kind, most: int | None = None) -> list[int]:
    """Token ids of a text. Of a text that has more than ``most``, the first are kept, and the last one, which ends
    every text. (Truncation by the tokenizer would change its state, which is part of the template's hash.)"""
    end = appended_end(template)
    ids = [*template.tokenizer(template.prefixes[kind == "document"] + text)["input_ids"]]
    ids += [] if end is None else [end]
    return ids if most is None or len(ids) <= most else [*ids[: most - 1], ids[-1]]


def spells_special(template: Template, ids: Sequence[int], kind: Kind) -> bool:
    """Whether a text of these ids contains a special token besides those of every text: it was spelled in it."""
    special = {*template.tokenizer.all_special_ids} - {template.tokenizer.unk_token_id}
    return sum(i in special for i in ids) > sum(i in special for i in text_ids(template, "a", kind))


def with_prefixes(template: Template, query: str, document: str) -> Template:
    """The template of rows that are embedded. Its tokenizer has no truncation or padding of its own afterwards, which
    some files set."""
    template.tokenizer("a")
    return replace(template, prefixes=(query, document))
