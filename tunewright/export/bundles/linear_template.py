"""What a chat template writes around messages, found by rendering marks: its default system message, and the same
template in Go, as Ollama reads it from a repository of the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunewright.core.errors import ModelError
from tunewright.data.messages import Message, Prompt
from tunewright.tokens.template import Template, render

MARKS = ("MARK-SYSTEM", "MARK-QUESTION", "MARK-ANSWER", "MARK-LAST")
ROLES = ("system", "user", "assistant", "user")


@dataclass(frozen=True)
class Linear:
    """A conversation of a linear template: [before_system SYSTEM after_system | without_system] QUESTION
    (before_answer ANSWER after_answer QUESTION)... end."""

    before_system: str
    after_system: str
    before_answer: str
    after_answer: str
    end: str
    without_system: str

    def text(self, system: str | None, turns: tuple[str, ...]) -> str:
        """``turns``: questions and answers in turn, a question last."""
        head = self.without_system if system is None else f"{self.before_system}{system}{self.after_system}"
        answers = "".join(
            f"{self.before_answer}{answer}{self.after_answer}{question}"
            for answer, question in zip(turns[1::2], turns[2::2], strict=True)
        )
        return f"{head}{turns[0]}{answers}{self.end}"


def find(template: Template) -> Linear | None:
    """None if the template is not linear, or has no system message."""
    if not template.tokenizer.chat_template:
        return None

    def rendered(system: str | None, turns: tuple[str, ...]) -> str:
        head = [] if system is None else [Message("system", system)]
        return render(template, Prompt((*head, *map(Message, ("user", "assistant") * len(turns), turns))), True)

    system, *turns = MARKS
    try:
        parts = re.split("|".join(MARKS), rendered(system, tuple(turns)))
        plain = rendered(None, turns[:1]).split(turns[0])
        if len(parts) != len(MARKS) + 1 or len(plain) != 2:
            return None
        linear = Linear(*parts, without_system=plain[0])
        samples = [(s, tuple(f"text {i}" for i in range(n))) for s in (None, "instruction") for n in (1, 3, 7)]
        return linear if all(linear.text(*sample) == rendered(*sample) for sample in samples) else None
    except ModelError:
        return None


def default_system(template: Template) -> str | None:
    """The system message that the template writes if a conversation has none."""
    linear = find(template)
    if linear is None:
        return None
    before, after, text = linear.before_system, linear.after_system, linear.without_system
    if not (text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)):
        return None
    return text[len(before) : len(text) - len(after)]


def as_go(template: Template) -> str | None:
    """The template in Go's syntax; None if it is not linear. Ollama itself puts the BOS token before the text."""
    linear, bos = find(template), template.tokenizer.bos_token
    if linear is None:
        return None

    def literal(text: str) -> str:
        return text.replace("{{", '{{ "{{" }}')

    def head(text: str) -> str:
        return literal(text.removeprefix(bos) if bos else text)

    return (
        f"{{{{ if .System }}}}{head(linear.before_system)}{{{{ .System }}}}{literal(linear.after_system)}"
        f"{{{{ else }}}}{head(linear.without_system)}{{{{ end }}}}"
        '{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}{{ else if eq .Role "assistant" }}'
        f"{literal(linear.before_answer)}{{{{ .Content }}}}{literal(linear.after_answer)}{{{{ end }}}}{{{{ end }}}}"
        f"{literal(linear.end)}"
    )
