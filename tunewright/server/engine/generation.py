"""What an engine is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import TunewrightError
from tunewright.model.decoding.stack import Use
from tunewright.server.engine.choosing import Choosing, TokenLogprob


@dataclass(frozen=True)
class AdapterFile:
    """Trained weights of a run. ``sha256``: of the file, and the adapter's key in the engine. ``run``: its folder; None
    for a checkpoint."""

    sha256: str
    file: Path
    config: AdapterConfig
    run: Path | None = None


@dataclass(frozen=True)
class Generation:
    """``stop``: tokens that end the answer. ``logprobs``: how many of the most probable tokens to report at each place,
    besides the answer's own; None: no log-probabilities at all. ``grammar``: by `Grammars.compiled`."""

    prompt: tuple[int, ...]
    max_tokens: int
    stop: frozenset[int]
    tenant: str = ""
    adapter: AdapterFile | None = None
    scale: float = 1.0
    choosing: Choosing = field(default_factory=Choosing)
    logprobs: int | None = None
    grammar: str | None = None

    @property
    def tokens(self) -> int:
        """That its cache may grow to."""
        return len(self.prompt) + self.max_tokens

    @property
    def use(self) -> Use:
        return Use(self.adapter.sha256, self.scale) if self.adapter is not None and self.scale else Use()


@dataclass(frozen=True)
class Begun:
    """The prompt has been read; ``cached`` tokens of it were known."""

    cached: int


@dataclass(frozen=True)
class NewToken:
    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class Ended:
    """``reason``: a stop token or the end of the grammar, the limit, or a failure, with its ``message`` and HTTP
    ``status``."""

    reason: Literal["stop", "length", "failed"]
    message: str = ""
    status: int = 500


Event = Begun | NewToken | Ended
Emit = Callable[[Event], None]


class TooBusy(Exception):
    """As many requests wait as may wait."""


class TooLong(Exception):
    """The request needs more of the cache than there is. ``most``: tokens."""

    def __init__(self, most: int) -> None:
        super().__init__(f"at most {most} tokens")
        self.most = most


class EngineClosed(Exception):
    """The server is shutting down."""


def failure(error: Exception) -> Ended:
    """A message for the client: of our own errors, the text; of others, only the kind."""
    message = (
        error.problems[0].message if isinstance(error, TunewrightError) else f"internal error: {type(error).__name__}"
    )
    return Ended("failed", message)
