"""What a prompted arm puts before a row's question: an instruction, examples, passages. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tunewright.data.messages import Chat, Example, Message, Prompt
from tunewright.judge.arms.bm25 import Index, Nearest

PASSAGES = 3


@dataclass(frozen=True)
class Recipe:
    """``instruction``: a system message instead of the row's own ("": none at all). ``shots``: training rows shown as
    earlier turns, the same for every row or the nearest ones. ``documents``: an index of passages to retrieve from."""

    instruction: str | None = None
    shots: tuple[Chat, ...] | Nearest = ()
    documents: Index | None = None

    def prompt(self, example: Example) -> Prompt:
        """System message, shots, then the row's own turns; the last one includes the passages retrieved for it."""
        own = example.prompt.messages
        head, rest = (own[:1], own[1:]) if own and own[0].role == "system" else ((), own)
        if self.instruction is not None:
            head = (Message("system", self.instruction),) if self.instruction else ()
        shots = self.shots.shots(example) if isinstance(self.shots, Nearest) else self.shots
        shown = tuple(m for shot in shots for m in _turns(shot))
        if self.documents is not None:
            best = self.documents.best(example.question, PASSAGES)
            context = "\n\n".join(f"[{n}] {self.documents.texts[i]}" for n, i in enumerate(best, 1))
            asked = f"Use whatever is relevant below:\n\n{context}\n\n{rest[-1].content}"
            question = replace(rest[-1], content=asked)
            rest = (*rest[:-1], question)
        return Prompt((*head, *shown, *rest), example.prompt.tools)


def _turns(shot: Chat) -> tuple[Message, ...]:
    """The messages of a shot but its system message. If it ends with calls, results and a reply follow: servers and
    many templates refuse a user's message after a call."""
    turns = tuple(m for m in shot.messages if m.role != "system")
    if not turns[-1].tool_calls:
        return turns
    results = tuple(Message("tool", "{}", name=c.name, call_id=c.id) for c in turns[-1].tool_calls)
    return (*turns, *results, Message("assistant", "Done."))


OWN_PROMPT = Recipe()  # the row's own system message and turns, nothing else
