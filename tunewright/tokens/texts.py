"""Texts that a model embeds -> token ids, in one way for training, evaluation and export: after their prefix, with the
tokens that the tokenizer adds, and an end."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tunewright.tokens.template import Template

Kind = Literal["query", "document"]


def appended_end(template: Template) -> int | None:
    """The end token, if it must be added to a text because the tokenizer does not: a decoder's last hidden state is
    read, and texts that end alike are told apart from their beginnings by it. None if the tokenizer adds one, or a
    separator."""
    end = template.tokenizer.eos_token_id
    return None if end is None or template.tokenizer("a")["input_ids"][-1] == end else int(end)


def text_ids(template: Template, text: str, kind: Kind, most: int | None = None) -> list[int]:
    """Token ids of a text. Of a text that has more than ``most``, the first are kept, and the last one, which ends
    every text. (Truncation by the tokenizer would change its state, which is part of the template's hash.)"""
    end = appended_end(template)
    ids = [*template.tokenizer(template.prefixes[kind == "document"] + text)["input_ids"]]
    ids += [] if end is None else [end]
    return ids if most is None or len(ids) <= most else [*ids[: most - 1], ids[-1]]


def with_prefixes(template: Template, query: str, document: str) -> Template:
    """The template of rows that are embedded. Its tokenizer has no truncation or padding of its own afterwards, which
    some files set."""
    template.tokenizer("a")
    return replace(template, prefixes=(query, document))
