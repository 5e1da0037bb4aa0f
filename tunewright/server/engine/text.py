"""Tokens -> text, as they arrive: only what the next tokens cannot change, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.tokens import rendering
from tunewright.tokens.template import Template

INCOMPLETE = "\ufffd"  # of bytes that are not yet a character


class AnswerText:
    """``stop``: texts that end the answer, and do not belong to it. ``stopped``: whether one of them occurred."""

    def __init__(self, template: Template, stop: Sequence[str] = ()) -> None:
        self._template, self._stop = template, tuple(stop)
        self.ids: list[int] = []
        self.text = ""  # that has been given out
        self.stopped = False
        self._decoded = ""  # all that is certain, a possible beginning of a stop string included
        self._from = self._to = 0  # tokens that the next piece is decoded after, so that spaces between them are kept

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self.ids.append(token)
        before = rendering.decode(self._template, self.ids[self._from : self._to])
        now = rendering.decode(self._template, self.ids[self._from :])
        if now.endswith(INCOMPLETE) or len(now) <= len(before):
            return ""
        self._decoded += now[len(before) :]
        self._from, self._to = self._to, len(self.ids)
        return self._given_out(final=False)

    def finish(self) -> str:
        """The rest, when no more tokens follow."""
        if not self.stopped:
            every = rendering.decode(self._template, self.ids)
            if every.startswith(self.text):
                self._decoded = every
        return self._given_out(final=True)

    def _given_out(self, final: bool) -> str:
        if self.stopped:
            return ""
        places = [at for s in self._stop if (at := self._decoded.find(s)) >= 0]
        if places:
            self.stopped, end = True, min(places)
        else:
            end = len(self._decoded) - (0 if final else self._held_back())
        new, self.text = self._decoded[len(self.text) : end], self._decoded[:end]
        return new

    def _held_back(self) -> int:
        """Characters at the end that a stop string may begin with."""
        lengths = (n for s in self._stop for n in range(min(len(s) - 1, len(self._decoded)), 0, -1))
        return max((n for n in lengths if any(s.startswith(self._decoded[-n:]) for s in self._stop)), default=0)
