"""The requests of chat.completions and completions. Every parameter of OpenAI's API is used, refused or ignored:
`docs/server.md` has the table, made from this file."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from tunewright.server.errors import bad
from tunewright.server.jobs.request import Metadata

Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
MOST_ANSWERS = 16
Object = dict[str, JsonValue]


class StreamOptions(BaseModel):
    include_usage: bool = False
    include_obfuscation: bool = False


class Declared(BaseModel):
    """A request of which every parameter is a field, ``IGNORED`` (it changes no answer here) or ``REFUSED`` (it would,
    with the reason)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    IGNORED: ClassVar[tuple[str, ...]] = ()
    REFUSED: ClassVar[dict[str, str]] = {}

    def check_names(self) -> None:
        """Raises ApiError for a parameter that is refused or unknown."""
        for name, value in (self.model_extra or {}).items():
            if name in self.IGNORED or value is None:
                continue
            if name in self.REFUSED:
                raise bad("unsupported_parameter", f"{name}: {self.REFUSED[name]}.", name)
            raise bad("unknown_parameter", f"There is no parameter {name[:80]!r}.", name[:80])


class Sampled(Declared):
    """What chat.completions and completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=300)]
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    # Of vLLM and llama-server: `tunewright verify` uses them.
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    return_token_ids: bool | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def usage_in_stream(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """Raises ApiError for a parameter that is refused or unknown."""
        if self.stream_options is not None and not self.stream:
            raise bad("invalid_value", "stream_options is only for stream=true.", "stream_options")
        self.check_names()


class ChatRequest(Sampled):
    IGNORED: ClassVar[tuple[str, ...]] = (
        *("user", "safety_identifier", "service_tier", "reasoning_effort", "verbosity", "prompt_cache_key"),
        *("prompt_cache_retention", "prompt_cache_options", "cache_prompt"),
    )
    REFUSED: ClassVar[dict[str, str]] = {
        "audio": "models answer in text",
        "modalities": "models answer in text",
        "web_search_options": "the server searches nothing",
        "prediction": "predicted outputs are not supported",
        "functions": "use tools",
        "function_call": "use tool_choice",
        "moderation": "answers are not moderated",
    }

    messages: Annotated[list[Object], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Object | None = None
    tools: Annotated[list[Object], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Object | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: Metadata | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def check(self) -> None:
        if self.top_logprobs and not self.logprobs:
            raise bad("invalid_value", "top_logprobs is only for logprobs=true.", "top_logprobs")
        super().check()

    @property
    def used_tools(self) -> list[Object] | None:
        """Those that the model sees."""
        return None if self.tool_choice == "none" else self.tools

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampled):
    IGNORED: ClassVar[tuple[str, ...]] = ("user", "cache_prompt")
    REFUSED: ClassVar[dict[str, str]] = {"suffix": "models continue a text, and fill no gaps"}

    prompt: Annotated[str, StringConstraints(max_length=1_000_000)] | list[str] | list[TokenId] | list[list[TokenId]]
    best_of: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One, or several."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and isinstance(given[0], int):
            return [[token for token in given if isinstance(token, int)]]
        return [p if isinstance(p, str) else list(p) for p in given if not isinstance(p, int)]
