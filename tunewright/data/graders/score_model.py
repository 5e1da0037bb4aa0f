"""OpenAI's score_model: another model, behind an endpoint, reads an answer and replies with a number.

No question is asked twice in a run: scores are kept in the run folder as they come, so that a run that is continued,
after the endpoint was away or the process was killed, has the same rewards.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunewright.core import records
from tunewright.core.errors import ConfigError, RunError, TrainError
from tunewright.core.records import GradeLine
from tunewright.core.run_folder import make_folder
from tunewright.data.endpoints.openai_endpoint import Endpoint, Refused, Reply, api_key, ask_each
from tunewright.data.graders.grade import WHERE, Answered, Item, Output, Template, Unscored
from tunewright.data.messages import Json, Message, Prompt
from tunewright.data.text import without_thoughts

LIMIT = 512  # tokens of a reply: a model that thinks first needs some
SHOWN = 120  # characters of a reply
NUMBER = re.compile(r"[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


SAMPLING: dict[str, Callable[[Json], bool]] = {
    "temperature": lambda value: _is_number(value) and float(value) >= 0,  # type: ignore[arg-type]
    "top_p": lambda value: _is_number(value) and 0 < float(value) <= 1,  # type: ignore[arg-type]
    "seed": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "reasoning_effort": lambda value: isinstance(value, str),
    "max_completions_tokens": _is_count,
}


@dataclass(frozen=True)
class ScoreModel:
    """``more``: parameters of a request. ``known``: what was replied, by `key`: a score, or why there is none.
    ``store``: the file of scores; None: they are not kept."""

    url: str
    model: str
    messages: tuple[tuple[str, Template], ...]
    low: float
    high: float
    limit: int = LIMIT
    more: tuple[tuple[str, Json], ...] = ()
    key_env: str = field(default="", repr=False, compare=False)
    concurrency: int = field(default=8, repr=False, compare=False)
    where: str = field(default=WHERE, repr=False, compare=False)
    store: Path | None = field(default=None, repr=False, compare=False)
    known: Mapping[str, float | str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset[str]().union(*(template.fields for _, template in self.messages))

    def grade(self, item: Item, output: Output) -> float:
        if (prompt := self.prompt(item, output)) is None:
            return 0.0
        key = self.key(prompt)
        score = self.known[key] if key in self.known else self._replies([prompt])[key]
        if isinstance(score, str):
            raise Unscored(score)
        return (score - self.low) / (self.high - self.low)

    def prepared(self, pairs: Sequence[Answered]) -> ScoreModel:
        """The same, which knows the scores of these answers: several questions are asked at a time. Raises
        REWARD_FAILED if the endpoint cannot be reached, or rejects the key; the scores that came are kept."""
        prompts = [prompt for item, output in pairs if (prompt := self.prompt(item, output)) is not None]
        return replace(self, known={**self.known, **self._replies(prompts)})

    def prompt(self, item: Item, output: Output) -> Prompt | None:
        """None if the answer lacks a part that is read, which earns 0."""
        texts = [template.filled(item, output) for _, template in self.messages]
        if any(text is None for text in texts):
            return None
        texts[-1] = f"{texts[-1]}\n\nReply with a number from {self.low:g} to {self.high:g}, and nothing else."
        return Prompt(tuple(Message(role, text or "") for (role, _), text in zip(self.messages, texts, strict=True)))

    def key(self, prompt: Prompt) -> str:
        """Of all that a score depends on."""
        messages = [(m.role, m.content) for m in prompt.messages]
        asked = json.dumps([self.url, self.model, self.limit, self.more, self.low, self.high, messages])
        return hashlib.sha256(asked.encode()).hexdigest()[:32]

    def _replies(self, prompts: Sequence[Prompt]) -> dict[str, float | str]:
        kept = records.read_lines(self.store, GradeLine) if self.store else ()
        known: dict[str, float | str] = {line.key: line.score for line in kept}
        todo = {key: prompt for prompt in prompts if (key := self.key(prompt)) not in known}
        for key, reply in self._asked(todo):
            score = known[key] = self._score(reply)
            if self.store and isinstance(reply, Reply) and not isinstance(score, str):
                make_folder(self.store.parent)
                records.append_line(self.store, GradeLine(key=key, score=score, reply=reply.text[:SHOWN]))
        return known

    def _asked(self, todo: Mapping[str, Prompt]) -> Iterator[tuple[str, Reply | Refused]]:
        key, fix = api_key(self.url, self.key_env), "check the grader's url and key."
        endpoint = Endpoint(self.url, self.model, key, self.concurrency, fix, self.more)
        keys = list(todo)
        try:
            for place, reply in ask_each(endpoint, list(todo.values()), self.limit) if todo else ():
                yield keys[place], reply
        except RunError as error:
            (problem,) = error.problems
            fix = "once the endpoint answers again, the same command continues; what it has scored is not asked again."
            raise TrainError("REWARD_FAILED", problem.message, where=self.where, fix=fix) from None

    def _score(self, reply: Reply | Refused) -> float | str:
        """The number that a reply consists of; otherwise why there is none."""
        if isinstance(reply, Refused):
            return reply.problems[0].message
        text = without_thoughts(reply.text).strip()
        if reply.cut:
            return f"{self.model} was cut off after {self.limit} tokens"
        value = _number(text)
        if value is None or not self.low <= value <= self.high:
            wanted = f"a number from {self.low:g} to {self.high:g}"
            return f"{self.model} replied {text[:SHOWN]!r}, which is not {wanted}"
        return value


def _number(text: str) -> float | None:
    """A number, or a JSON object with one as its ``result``, as OpenAI's own model graders reply."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    result = value.get("result") if isinstance(value, dict) else text
    written = str(result) if _is_number(result) or isinstance(result, str) else ""
    return float(written) if NUMBER.fullmatch(written) else None


def of(spec: Mapping[str, Json], where: str) -> ScoreModel:
    """Raises CONFIG_RANGE."""
    url, model = (text_of(spec, name, where) for name in ("url", "model"))
    sampling, limit = _sampling(spec.get("sampling_params", {}), where)
    low, high = range_of(spec.get("range", [0, 1]), where)
    concurrency = spec.get("concurrency", 8)
    if not _is_count(concurrency):
        message, fix = f"concurrency is {concurrency!r}.", "use a number such as 8."
        raise ConfigError("CONFIG_RANGE", message, where=where, fix=fix)
    key_env = text_of(spec, "api_key_env", where) if "api_key_env" in spec else ""
    api_key(url, key_env)
    messages = _messages(spec["input"], where)
    asked = (url.rstrip("/"), model, messages, low, high, limit, sampling)
    return ScoreModel(*asked, key_env=key_env, concurrency=int(str(concurrency)), where=where)


def text_of(spec: Mapping[str, Json], name: str, where: str) -> str:
    """Raises CONFIG_RANGE."""
    value = spec[name]
    if not isinstance(value, str) or not value:
        raise ConfigError("CONFIG_RANGE", f"{name} must be text, not {value!r}.", where=where)
    return value


def range_of(value: Json, where: str) -> tuple[float, float]:
    """The scores that become the rewards 0 and 1. Raises CONFIG_RANGE."""
    numbers = [float(str(v)) for v in value if _is_number(v)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(value) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        fix = "use the lowest and the highest score, such as [0, 10]."
        raise ConfigError("CONFIG_RANGE", f"range is {value!r}.", where=where, fix=fix)
    return numbers[0], numbers[1]


def _sampling(given: Json, where: str) -> tuple[tuple[tuple[str, Json], ...], int]:
    """The parameters of a request, and the limit of tokens."""
    names = ", ".join(SAMPLING)
    if not isinstance(given, dict):
        raise ConfigError("CONFIG_RANGE", f"sampling_params is {given!r}.", where=where, fix=f"its keys: {names}.")
    for name, value in given.items():
        if name not in SAMPLING:
            message = f"sampling_params has no key {name!r}."
            raise ConfigError("CONFIG_UNKNOWN_KEY", message, where=where, fix=f"its keys: {names}.")
        if not SAMPLING[name](value):
            raise ConfigError("CONFIG_RANGE", f"sampling_params.{name} is {value!r}.", where=where)
    more = {name: value for name, value in sorted(given.items()) if name != "max_completions_tokens"}
    return tuple(more.items()), int(str(given.get("max_completions_tokens", LIMIT)))


def _messages(given: Json, where: str) -> tuple[tuple[str, Template], ...]:
    """Messages of text: a text, a part, or a list of parts."""
    if not isinstance(given, list) or not given:
        raise ConfigError("CONFIG_RANGE", "input must be a list of messages.", where=where)
    read = []
    for message in given:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [content]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        if role not in ROLES or not all(isinstance(text, str) for text in texts):
            fix = f"a message has a role ({', '.join(ROLES)}) and a content of text."
            raise ConfigError("CONFIG_RANGE", f"input has the message {message!r:.80}.", where=where, fix=fix)
        read.append((ROLES[str(role)], Template.of("".join(map(str, texts)), "content", where)))
    return tuple(read)
