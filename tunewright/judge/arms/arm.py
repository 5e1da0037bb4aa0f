"""What an arm is: a name, and one way of answering rows. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunewright.data.examples import Example, Message
from tunewright.data.scores import Answer

Progress = Callable[[int], None]
Prompt = Sequence[Message]


def silent(count: int) -> None:
    """A progress callback that shows nothing."""


class Model(Protocol):
    """What arms ask of a language model; `judge.chat_model.ChatModel` is one. All answers come in the order of the
    input."""

    def write(self, prompts: Sequence[Prompt], progress: Progress = silent) -> list[Answer]:
        """Greedy answers."""
        ...

    def choose(self, prompts: Sequence[Prompt], labels: Sequence[str], progress: Progress = silent) -> list[Answer]:
        """The most probable of the labels after each prompt."""
        ...

    def read(self, documents: Sequence[Example], progress: Progress = silent) -> list[Answer]:
        """The likelihood of each document."""
        ...


class Responder(Protocol):
    """A way of answering: one of the other files of this folder."""

    @property
    def needs_model(self) -> bool:
        """Whether `answer` asks the run's language model."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether the same row surely gets the same answer again, so that asking twice would measure nothing."""
        ...

    def prompt(self, example: Example) -> tuple[Message, ...]:
        """The prompt for one row."""
        ...

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        """An answer to each row, in their order."""
        ...


@dataclass(frozen=True)
class Arm:
    """``family`` is the arm's name in the report; ``variant`` tells its variants apart, of which dev chooses one.
    ``uses_adapter``: the trained weights answer. ``learned_from_rows``: trained on the training rows in any way, so
    that it cannot be the comparator."""

    family: str
    description: str
    responder: Responder
    variant: str = ""
    uses_adapter: bool = False
    learned_from_rows: bool = False

    @property
    def name(self) -> str:
        return f"{self.family}-{self.variant}" if self.variant else self.family

    @property
    def needs_model(self) -> bool:
        return self.responder.needs_model

    @property
    def repeatable(self) -> bool:
        return self.responder.repeatable

    def prompt(self, example: Example) -> tuple[Message, ...]:
        return self.responder.prompt(example)

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress = silent) -> list[Answer]:
        """An answer to each row, in their order. ``model`` has the weights that ``uses_adapter`` asks for."""
        return self.responder.answer(examples, model, progress)
