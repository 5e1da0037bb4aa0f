"""What a chat template writes around messages, found by rendering marks: its default system message, and the same
template in Go, as Ollama reads it from a repository of the Hub."""

from __future__ import annotations

import re
from typing import NamedTuple

from tunewright.core.errors import ModelError
from tunewright.data.messages import Message, Prompt
from tunewright.tokens.template import Template, render

MARKS = ("MARK-SYSTEM", "MARK-FIRST", "MARK-ANSWER", "MARK-LAST")


class Linear(NamedTuple):
    """The texts of a conversation [before_system SYSTEM after_system | without_system] QUESTION (before_answer ANSWER
    after_answer QUESTION)... end."""

    before_system: str
    after_system: str
    before_answer: str
    after_answer: str
    end: str
    without_system: str

    @property
    def default_system(self) -> str | None:
        """The system message that the template writes if a conversation has none."""
        before, after, plain = self.before_system, self.after_system, self.without_system
        text = plain[len(before) : len(plain) - len(after)]
        return text if text and plain == f"{before}{text}{after}" else None

    def as_go(self, bos: str | None) -> str:
        """The template in Go's syntax. Ollama itself puts the BOS token before the text."""
        before, after, before_answer, after_answer, end, plain = (t.replace("{{", '{{ "{{" }}') for t in self)
        before, plain = before.removeprefix(bos or ""), plain.removeprefix(bos or "")
        return (
            f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{plain}{{{{ end }}}}"
            '{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}{{ else if eq .Role "assistant" }}'
            f"{before_answer}{{{{ .Content }}}}{after_answer}{{{{ end }}}}{{{{ end }}}}{end}"
        )


def find(template: Template) -> Linear | None:
    """None if there is no template, or one that is not linear or has no system message."""

    def rendered(*texts: str) -> str:
        roles = [*(["system"] if len(texts) % 2 == 0 else []), *["user", "assistant"] * 3]
        return render(template, Prompt(tuple(map(Message, roles, texts))), True)

    try:
        text, plain, longer = rendered(*MARKS), rendered(*MARKS[1:]), rendered(*MARKS, "more", "and more")
    except ModelError:
        return None
    parts = re.split("|".join(MARKS), text)
    if len(parts) != len(MARKS) + 1:
        return None
    linear = Linear._make([*parts, plain.partition(MARKS[1])[0]])
    turns = text.removeprefix(f"{linear.before_system}{MARKS[0]}{linear.after_system}")
    more = f"{linear.before_answer}more{linear.after_answer}and more{linear.end}"
    same = plain == linear.without_system + turns and longer == text.removesuffix(linear.end) + more
    return linear if same else None
