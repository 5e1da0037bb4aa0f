"""The error tree: every failure a user can cause has a stable code, a place and a fix.

    TunewrightError            code, message, where, fix; exit status 2 unless noted
    ├── ConfigError            CONFIG_* REWARD_*               a config file, an override, a flag
    ├── DataError              DATA_* SPLIT_* LABELS_*   rows: contains every problem, shows the first 20
    ├── ModelError             MODEL_* TEMPLATE_* TOKENIZER_* ADAPTER_* LORA_* TEACHER_* SELFTEST_PROMPT SELFTEST_STOP
    ├── RunError               RUN_* RESUME_* PATH_* REMOTE_* PUSH_*   a run folder, an endpoint, the Hub
    │   └── RunWaits           RUN_WAITS              trainings were printed; exit status 4
    ├── MissingExtra           MISSING_PACKAGE         an optional package is not installed
    └── TrainError             TRAIN_* RANKS_* ROLLOUT_* REWARD_FAILED EXPORT_* CONSUMER_* RUN_DISK, other SELFTEST_*
                               exit status 1: not caused by wrong input

A user's mistake raises one of these; our own mistake fails an ``assert``; the impossible is not handled.
Codes are stable API: ``CODES`` lists them, and a test keeps the table and the code in sync.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunewright.core.pii import masked
from tunewright.core.words import counted, on_one_line

MAX_SHOWN_PROBLEMS = 20

CODES: dict[str, str] = {
    "ADAPTER_BASE_MISMATCH": "the adapter was trained on a different base model",
    "ADAPTER_CORRUPT": "the adapter lacks tensors, has tensors of the wrong shape, or was modified",
    "ADAPTER_MISSING": "the adapter's folder does not exist",
    "ADAPTER_UNSUPPORTED": "the adapter needs a computation that the loader does not implement",
    "CONFIG_CONFLICT": "two settings contradict each other",
    "CONFIG_DUPLICATE_KEY": "a key occurs twice in one mapping",
    "CONFIG_NOT_FOUND": "the config file, or a file that a setting names, cannot be read",
    "CONFIG_RANGE": "a value has the wrong type or is out of range",
    "CONFIG_SYNTAX": "the file or override is not valid YAML 1.2",
    "CONFIG_TOO_LARGE": "a config file is larger than 256 KiB or nested too deeply",
    "CONFIG_UNKNOWN_KEY": "a key that is not a setting",
    "CONFIG_UNSAFE_TAG": "a YAML tag, anchor or alias; configs must not use them",
    "CONSUMER_DIFFERS": "a server that `tunewright verify` checked does not give the trained model's answers",
    "DATA_COMPRESSED": "a compressed file that is damaged or ends early",
    "DATA_CONTROL_CHAR": "text contains NUL or another control character",
    "DATA_CSV": "a CSV file with an unclosed quote, a row of the wrong length, or an unusable header",
    "DATA_DUPLICATES": "all rows are identical",
    "DATA_DUPLICATE_KEY": "a JSON object contains a key twice",
    "DATA_EMPTY": "a file without rows",
    "DATA_EMPTY_TARGET": "an empty answer, label, prompt or document",
    "DATA_ENCODING": "bytes that are not valid in the encoding of the file (UTF-8, unless data.encoding is set)",
    "DATA_EXISTS": "the file that `tunewright fix` would write exists, or would be read as data",
    "DATA_FIELD_MISSING": "a row lacks a field that its format requires, or has the fields of no known format",
    "DATA_FIELD_TYPE": "a field that must be text is not text",
    "DATA_FILE_TWICE": "a file that is listed twice, or matched by two patterns",
    "DATA_FORMAT_MISMATCH": "a metric of another task, a label that no training row has, or a single document",
    "DATA_FORM_UNSUPPORTED": "a known row format that this version cannot train on",
    "DATA_JSON_INVALID": "a line that is not valid JSON",
    "DATA_LABEL": "a label that is not a string, a named whole number or true/false; an answer that is not a choice",
    "DATA_LABEL_NOT_BOOLEAN": "a rating of an answer that is neither true nor false",
    "DATA_LINE_TOO_LONG": "a line longer than 16 MiB",
    "DATA_MIXED_SCHEMA": "rows of different formats in one file",
    "DATA_NOTHING_TO_LEARN": "a row without any target tokens",
    "DATA_NOT_A_FILE": "a path that is neither a regular file nor a folder of documents, or a pattern without a match",
    "DATA_NOT_TEXT": "an archive, or a file that is not the Parquet file that its name promises",
    "DATA_NUMBER_NOT_FINITE": "NaN, Infinity, or a number too large for a float",
    "DATA_NUMBER_TOO_LARGE": "an integer with too many digits",
    "DATA_ONE_SIDED": "rated training rows that are all desirable, or all undesirable",
    "DATA_PREFERENCE_EQUAL": "a preference row whose chosen and rejected answers are the same",
    "DATA_PROMPT_DIFFERS": "a preference row whose answers follow different prompts",
    "DATA_READING": "reading the rows of a job takes more time or memory than `tunewright serve` allows",
    "DATA_ROLE_UNKNOWN": "a message role other than system, developer, user, assistant, tool and their known variants",
    "DATA_ROW_NOT_OBJECT": "a JSON row that is not an object",
    "DATA_SCHEMA": "data.answer_schema is not a JSON Schema that can be used",
    "DATA_SPECIAL_TOKEN_TEXT": "text that spells a special token and cannot be encoded as ordinary text",
    "DATA_SYNTHETIC": "rows that a model wrote, where the verdict needs rows that people wrote",
    "DATA_TOOL_CALL": "a tool, or a tool call, without a function name or with arguments that are not an object",
    "DATA_TOO_DEEP": "JSON nested too deeply",
    "DATA_TOO_FEW": "too few rows to train and evaluate on",
    "DATA_TOO_LARGE": "a file, or what a compressed file expands to, that is larger than the limit",
    "DATA_TOO_LONG": "rows longer than the model's context",
    "DATA_TURN_ORDER": "messages in an order that is not a valid conversation",
    "DATA_UNICODE": "a lone surrogate, which UTF-8 cannot encode",
    "DATA_UNREADABLE": "the file cannot be opened, or permission is denied",
    "DATA_WEIGHT": "a weight of a message other than 0 and 1",
    "EXPORT_FAILED": "a program that writes an export for us, such as llama.cpp's converter, failed",
    "EXPORT_MISMATCH": "the exported model does not reproduce the trained model's outputs",
    "LABELS_ONE_CLASS": "a classification data set with only one label",
    "LORA_NO_TARGET": "adapter.targets or adapter.rank does not fit the model's layers",
    "MISSING_PACKAGE": "an optional package is not installed",
    "MODEL_CORRUPT": "model files that cannot be read, or weights that are not finite",
    "MODEL_FILE_MISSING": "a model folder lacks a required file",
    "MODEL_INDEX_MISMATCH": "config, index and weight files disagree about which tensors exist",
    "MODEL_NOT_FOUND": "no model folder, file, package or Hub id of that name",
    "MODEL_REMOTE_CODE": "the model can only be loaded by executing code that comes with it",
    "MODEL_UNSAFE_FORMAT": "the weights exist only as pickle files",
    "MODEL_UNSUPPORTED": "an architecture that transformers does not support",
    "PATH_OUTSIDE": "a name that would escape the runs folder or the model folder",
    "PUSH_BASE": "the card needs the base model's id on the Hub, which is unknown",
    "PUSH_FAILED": "the Hub refuses a push, or cannot be reached",
    "PUSH_PRIVATE": "what would be pushed contains private data or a path of this machine",
    "REMOTE_FAILED": "a request to an endpoint, to the server of `tunewright verify`, or to a Ray cluster failed",
    "RANKS_DIFFER": "the processes that train together have different models, data or programs",
    "RANKS_LOST": "one of the processes that train together has ended, or cannot be reached",
    "RESUME_MISMATCH": "the data, config or model changed since the run started",
    "REWARD_FAILED": "a grader fails on too many answers, or the endpoint of a grader cannot be used",
    "REWARD_FLAT": "the samples of a prompt nearly always have the same reward, so nothing can be learned from them",
    "REWARD_TRIVIAL": "an empty, echoed or constant answer has a higher reward than what the model writes",
    "ROLLOUT_FAILED": "the server that draws samples cannot be used, or what it returns cannot be trained on",
    "ROLLOUT_MISMATCH": "samples were not drawn by the model that is trained on them",
    "RUN_DAMAGED": "a file of the run was modified or damaged",
    "RUN_DISK": "the run folder cannot be written to",
    "RUN_EXISTS": "a run with that name already exists",
    "RUN_INCOMPLETE": "the run has not reached the required stage",
    "RUN_INSIDE_DATA": "the runs folder is inside a folder that is read as data",
    "RUN_INTERRUPTED": "stopped by Ctrl-C or SIGTERM; completed work is saved",
    "RUN_LOCKED": "another process is writing to the run folder",
    "RUN_LONG": "a run would take hours, and nobody has agreed to that (`--yes`)",
    "RUN_NOT_FOUND": "no run with that name",
    "RUN_WAITS": "the run waits for trainings whose command lines were printed (`--on print`)",
    "SELFTEST_BASE": "with its adapter disabled, the model is not identical to the base model",
    "SELFTEST_GRADIENT": "a trainable tensor gets no gradient, or a frozen one does",
    "SELFTEST_LOSS": "rows computed together do not give the same loss and gradient as rows computed separately",
    "SELFTEST_PROMPT": "the trained tokens do not start where the inference prompt ends",
    "SELFTEST_START": "the loss before the first step is not what the method's formula gives for an untrained model",
    "SELFTEST_STOP": "a turn ends with a token that would not stop generation",
    "SPLIT_LEAK": "two of data.train, data.dev and data.test contain the same prompt, or nearly the same one",
    "TEACHER_MISMATCH": "the teacher's vocabulary or context does not fit the model that learns from it",
    "TEMPLATE_LOSES_CONTENT": "the chat template drops part of the row's text",
    "TEMPLATE_MISSING": "the rows are chats, but the model has no chat template",
    "TEMPLATE_NOT_PREFIX": "the inference prompt is not a prefix of the trained turn",
    "TEMPLATE_TIMEOUT": "rendering the chat template exceeded the time limit",
    "TEMPLATE_TOOL_CALLS": "the chat template writes tool calls in a way from which they cannot be read back",
    "TEMPLATE_UNSAFE": "the chat template cannot be rendered in the sandbox",
    "TOKENIZER_DOUBLE_BOS": "a sequence would start with two BOS tokens",
    "TOKENIZER_MISMATCH": "a row contains a token that the model has no embedding for",
    "TOKENIZER_NO_EOS": "the tokenizer has no end-of-sequence token",
    "TRAIN_MEMORY": "the machine does not have enough memory for the plan",
    "TRAIN_NOT_FINITE": "the loss or a gradient became NaN or infinite",
    "TRAIN_PASSES_DIFFER": "a text has a different vector when it is computed again, so a step must be a single pass",
    "TRAIN_WORKER": "the training process ended unexpectedly",
}


@dataclass(frozen=True)
class Problem:
    """One mistake in one place. ``where`` is ``file:line[:column]`` or a config key.

    Text that looks like private data is masked in ``message``, because messages quote rows.
    """

    code: str
    message: str
    where: str = ""
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.code in CODES, f"error code not in CODES: {self.code}"
        object.__setattr__(self, "message", on_one_line(masked(self.message)))

    def __str__(self) -> str:
        place = f" {self.where}:" if self.where else ""
        fix = f" Fix: {self.fix}" if self.fix else ""
        full_stop = "." if fix and self.message[-1:] not in ".!?:" else ""
        return f"[{self.code}]{place} {self.message}{full_stop}{fix}"


class TunewrightError(Exception):
    """A failure with a stable ``code``, a place and a fix. Prints as one line."""

    exit_code = 2

    def __init__(self, code: str, message: str, *, where: str = "", fix: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(code, message, where, fix),)
        super().__init__(str(self.problems[0]))

    @property
    def code(self) -> str:
        return self.problems[0].code

    @property
    def where(self) -> str:
        return self.problems[0].where

    def to_json(self) -> dict[str, object]:
        return {
            "error": [{"code": p.code, "where": p.where, "message": p.message, "fix": p.fix} for p in self.problems]
        }


class ConfigError(TunewrightError):
    """A mistake in a config file, an override or a flag."""


class ModelError(TunewrightError):
    """A model, tokenizer, chat template or adapter that cannot be used."""


class RunError(TunewrightError):
    """A run folder that is missing, locked, incomplete or modified."""


class RunWaits(RunError):
    """Trainings are to be run elsewhere before the run can continue; not a failure."""

    exit_code = 4


class MissingExtra(TunewrightError):
    """An optional package is needed; the fix is the command that installs it."""

    def __init__(self, package: str, why: str, command: str, *, where: str = "") -> None:
        message = f"{why} requires the package {package}."
        super().__init__("MISSING_PACKAGE", message, where=where, fix=f"run `{command}`.")


class TrainError(TunewrightError):
    """Training, export or writing failed, or an export answers differently, although the input was valid."""

    exit_code = 1


class DataError(TunewrightError):
    """All problems of a data set. Those of one cause are one line; only the first 20 lines are shown."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems
        self.problems = tuple(problems)
        alike: dict[tuple[str, str, str], list[Problem]] = {}
        for p in self.problems:
            alike.setdefault((p.code, _QUOTED.sub("", p.message), p.fix), []).append(p)
        lines = [_together(same) for same in list(alike.values())[:MAX_SHOWN_PROBLEMS]]
        if hidden := sum(map(len, list(alike.values())[MAX_SHOWN_PROBLEMS:])):
            lines.append(f"... and {hidden} more (use --json to see them all)")
        Exception.__init__(self, "\n".join(lines))


_QUOTED = re.compile(r"\(.*?\)|`[^`]*`|\d[\d.]*")  # values of rows in messages


def _together(same: Sequence[Problem]) -> str:
    """Problems that differ in nothing but their places and the values that they quote, as one line: the first's."""
    if len(same) == 1:
        return str(same[0])
    others = ", ".join(p.where for p in same[1:4]) + (", ..." if len(same) > 4 else "")
    message = same[0].message.removesuffix(".")
    return str(replace(same[0], message=f"{message} (and in {counted(len(same) - 1, 'more row')}: {others})."))


def data_error(code: str, message: str, *, where: str = "", fix: str = "") -> DataError:
    """A DataError with a single problem."""
    return DataError([Problem(code, message, where, fix)])
