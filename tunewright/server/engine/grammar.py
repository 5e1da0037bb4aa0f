"""Answers that must match a JSON schema: at each step, llguidance says which tokens may follow.

What it cannot enforce is refused beforehand, with the place in the schema, and never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunewright.server.shapes import JsonObject

GAP = r"[ \n\t]{1,16}"  # between the parts of a value: endless space would be valid JSON
ANY_OBJECT: JsonObject = {"type": "object"}


class UnsupportedSchema(ValueError):
    """``path``: where in the schema, as a JSON pointer, if it is known."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


class Grammars:
    """Grammars over one tokenizer. ``stop``: tokens that end an answer."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop: Sequence[int]) -> None:
        from llguidance.hf import from_tokenizer

        self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(stop))

    def compiled(self, schema: Mapping[str, Any]) -> str:
        """The grammar of a JSON schema. Raises UnsupportedSchema."""
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults={"whitespace_pattern": GAP})
            problem = LLMatcher.validate_grammar(grammar, self._tokenizer)
        except ValueError as error:
            problem = str(error)
        if problem:
            message = " ".join(problem.split())
            raise UnsupportedSchema(message, _path(schema, message))
        return str(grammar)

    def bytes_of(self, token: int) -> bytes:
        """What a token is a part of, which may be less than a character."""
        return bytes(self._tokenizer.decode_bytes([token]))

    def matcher(self, grammar: str) -> Matcher:
        from llguidance import LLMatcher

        return Matcher(LLMatcher(self._tokenizer, grammar))


class Matcher:
    """How far one answer has matched its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self, vocabulary: int) -> Tensor:
        """Which tokens may follow: allowed_V."""
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(words, bitorder="little")[:vocabulary].astype(bool))

    def accept(self, token: int) -> None:
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> str:
        """What went wrong in matching; empty if nothing did."""
        return str(self._matcher.get_error())


def _path(schema: object, message: str, at: str = "#") -> str:
    """The first place whose key the message names."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            here = f"{at}/{key}"
            if (
                f'["{key}"' in message
                or f', "{key}"' in message
                or (value in message if value and isinstance(value, str) else False)
            ):
                return here
            if (inner := _path(value, message, here)) != "#":
                return inner
    elif isinstance(schema, Sequence) and not isinstance(schema, str):
        for number, value in enumerate(schema):
            if (inner := _path(value, message, f"{at}/{number}")) != "#":
                return inner
    return "#"
