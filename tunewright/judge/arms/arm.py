"""An arm: a name and a way to answer rows. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunewright.core.sampling import GREEDY, Sampling
from tunewright.data.messages import Chat, Example, Message, Prompt
from tunewright.data.scores import Answer, Likelihood

Progress = Callable[[int], None]


def silent(count: int) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True)
class Writing:
    """Prompts to answer in writing, the tokens chosen as in ``sampling``."""

    prompts: Sequence[Prompt]
    sampling: Sampling = GREEDY


class Model(Protocol):
    """What arms need from a language model; `judge.chat_model.ChatModel` implements it. Answers are in input order."""

    def generate(self, writings: Sequence[Writing], progress: Progress = silent) -> list[list[Answer]]:
        """Written answers, all decoded together."""
        ...

    def choose_label(
        self, prompts: Sequence[Prompt], labels: Sequence[str], progress: Progress = silent
    ) -> list[Answer]:
        """The most probable of the labels after each prompt."""
        ...

    def by_head(self, prompts: Sequence[Prompt], progress: Progress = silent) -> list[Answer]:
        """What the model's head answers: the most probable label, or a number."""
        ...

    def rewards(self, chats: Sequence[Chat]) -> list[float]:
        """What the model's head gives the last message of each conversation."""
        ...

    def likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[Message]) -> list[Likelihood]:
        """How likely each answer is after its prompt."""
        ...

    def likelihood(self, documents: Sequence[Example], progress: Progress = silent) -> list[Answer]:
        """The likelihood of each document."""
        ...


class Responder(Protocol):
    """How an arm answers; the other modules of this package implement it."""

    @property
    def needs_model(self) -> bool:
        """Whether `answer` uses the run's language model."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether a row is certain to get the same answer again, so that answering twice would measure nothing."""
        ...

    @property
    def decoding(self) -> str:
        """How tokens of written answers are chosen: a key of `DECODINGS`."""
        ...

    def prompt(self, example: Example) -> Prompt:
        """The prompt for one row."""
        ...

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        """One answer per row, in order."""
        ...


@dataclass(frozen=True)
class Arm:
    """``family`` is the arm's name in the report; ``variant`` names one of its variants, among which dev chooses.
    ``uses_adapter``: answers with the trained weights. ``trained``: what answers, a language model or a classifier, was
    trained on the training rows. Showing some of them in a prompt is not training, nor is counting their labels.
    ``full_precision``: answers with the base as it is in its files, where the run holds it in fewer bits.
    ``from_start``: answers with the adapter that training continued from. ``branch``: answers with the weights of this
    branch, and not with those of the run. ``teacher``: answers with the model that the run learns from."""

    family: str
    description: str
    responder: Responder
    variant: str = ""
    uses_adapter: bool = False
    trained: bool = False
    full_precision: bool = False
    from_start: bool = False
    branch: str = ""
    teacher: bool = False

    @property
    def name(self) -> str:
        decoding = self.decoding if self.decoding != "greedy" else ""
        return "-".join(filter(None, (self.family, self.variant, decoding)))

    @property
    def can_be_comparator(self) -> bool:
        """Whether the verdict may compare the tuned arm with this one: what users could do instead of training."""
        return not self.trained

    @property
    def needs_model(self) -> bool:
        return self.responder.needs_model

    @property
    def deterministic(self) -> bool:
        return self.responder.deterministic

    @property
    def decoding(self) -> str:
        """How tokens of written answers are chosen: a key of `DECODINGS`."""
        return self.responder.decoding

    def prompt(self, example: Example) -> Prompt:
        return self.responder.prompt(example)

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress = silent) -> list[Answer]:
        """One answer per row, in order. ``model`` must have the weights that ``uses_adapter`` implies."""
        return self.responder.answer(examples, model, progress)
