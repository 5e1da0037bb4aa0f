"""Every failure a user can cause or meet, once.

    TunewrightError            code, message, where, fix; exit status 2 unless said otherwise
    ├── ConfigError            CONFIG_*               a config file, an override, a flag
    ├── DataError              DATA_* SPLIT_* LABELS_*  rows: holds every problem found, shows the first 20
    ├── ModelError             MODEL_* TEMPLATE_* TOKENIZER_* ADAPTER_* LORA_*
    ├── RunError               RUN_* RESUME_* PATH_* REMOTE_*   a run folder, an endpoint
    ├── MissingExtra           MISSING_PACKAGE         an optional package is not installed
    └── TrainError             TRAIN_*  EXPORT_*  RUN_DISK       exit status 1: nobody's typing mistake

A user's mistake is one of these; our own mistake is an ``assert``; the impossible is not caught.
Codes are stable API: they are listed in ``CODES`` and a test keeps the table and the code in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core.pii import masked

SHOWN = 20

CODES: dict[str, str] = {
    "ADAPTER_BASE_MISMATCH": "the adapter was trained on another base model",
    "ADAPTER_CORRUPT": "the adapter folder lacks tensors, their shapes do not fit its config, or a file is not what was written",
    "ADAPTER_UNSUPPORTED": "the adapter asks for a computation that our loader does not do",
    "CONFIG_CONFLICT": "two settings cannot both hold",
    "CONFIG_DUPLICATE_KEY": "a key appears twice in one mapping",
    "CONFIG_NOT_FOUND": "no such config, data file or run",
    "CONFIG_RANGE": "a value has the wrong type or lies outside its range",
    "CONFIG_SYNTAX": "the file or override is not valid YAML 1.2",
    "CONFIG_TOO_LARGE": "a config file is larger than 256 KiB or nested too deeply",
    "CONFIG_UNKNOWN_KEY": "a key that no setting has",
    "CONFIG_UNSAFE_TAG": "a YAML tag, anchor or alias, which configs do not need",
    "DATA_CONTROL_CHAR": "NUL or another control character in a text",
    "DATA_CSV": "a CSV file with a broken quote, a ragged row or an unusable header",
    "DATA_DUPLICATES": "all rows are the same",
    "DATA_DUPLICATE_KEY": "a JSON object names a key twice",
    "DATA_EMPTY": "a file without rows",
    "DATA_EMPTY_TARGET": "an empty answer, label or prompt",
    "DATA_ENCODING": "bytes that are not UTF-8",
    "DATA_FIELD_MISSING": "a row lacks a field of its form",
    "DATA_FIELD_TYPE": "a field holds something else than text",
    "DATA_FORMAT_MISMATCH": "the form of the rows cannot be told, or does not fit the file",
    "DATA_FORM_UNSUPPORTED": "a known form of rows that this version cannot train on",
    "DATA_JSON_INVALID": "a line that is not JSON",
    "DATA_LINE_TOO_LONG": "a line over 16 MiB",
    "DATA_MIXED_SCHEMA": "rows of different forms in one file",
    "DATA_NOTHING_TO_LEARN": "a row without a single supervised token",
    "DATA_NOT_A_FILE": "a path that is neither a regular file nor a folder of documents",
    "DATA_NOT_TEXT": "a compressed or binary file under a text name",
    "DATA_NUMBER_NOT_FINITE": "NaN, Infinity or a number too large for a float",
    "DATA_NUMBER_TOO_LARGE": "an integer with too many digits",
    "DATA_ROLE_UNKNOWN": "a message role other than system, user and assistant",
    "DATA_ROW_NOT_OBJECT": "a JSON line that is not an object",
    "DATA_SPECIAL_TOKEN_TEXT": "text that spells a special token and cannot be encoded as plain text",
    "DATA_TOO_DEEP": "JSON nested too deeply",
    "DATA_TOO_FEW": "too few rows to train and to judge",
    "DATA_TOO_LONG": "rows longer than the model's context",
    "DATA_TURN_ORDER": "messages in an order that no chat has",
    "DATA_UNICODE": "a lone surrogate, which no UTF-8 text can hold",
    "DATA_UNREADABLE": "no permission, or the file cannot be opened",
    "EXPORT_MISMATCH": "what was exported does not answer as the trained model did",
    "LABELS_ONE_CLASS": "a classification set with a single label",
    "LORA_NO_TARGET": "adapter.targets matches no linear layer",
    "MISSING_PACKAGE": "an optional package is not installed",
    "MODEL_CORRUPT": "weights that cannot be read or are not finite",
    "MODEL_FILE_MISSING": "a model folder lacks a file it needs",
    "MODEL_INDEX_MISMATCH": "config, index and weight files disagree about which tensors there are",
    "MODEL_NOT_FOUND": "no such model folder, file, package or Hub id",
    "MODEL_REMOTE_CODE": "the model wants to run its own code",
    "MODEL_UNSAFE_FORMAT": "weights only as pickle",
    "MODEL_UNSUPPORTED": "an architecture that transformers does not know",
    "PATH_OUTSIDE": "a name that would leave the runs folder, or the folder of a model",
    "REMOTE_FAILED": "the endpoint that is compared with does not answer",
    "RESUME_MISMATCH": "a run is continued with other data, config or model",
    "RUN_DAMAGED": "a file of the run is not what was written",
    "RUN_DISK": "the run folder cannot be written",
    "RUN_EXISTS": "a run of that name is already there",
    "RUN_INCOMPLETE": "the run has not reached the stage that is asked for",
    "RUN_INSIDE_DATA": "the runs folder lies in a folder whose documents are read",
    "RUN_LOCKED": "another process writes into the run folder",
    "RUN_NOT_FOUND": "no run of that name",
    "SELFTEST_BASE": "the model with its adapter off is not the base model",
    "SELFTEST_GRADIENT": "a trained tensor gets no gradient, or a frozen one does",
    "SELFTEST_LOSS": "rows computed together do not give the loss and gradient of rows alone",
    "SELFTEST_PROMPT": "what is learned does not begin where a served prompt ends",
    "SELFTEST_STOP": "a turn ends with a token at which generation would not stop",
    "SPLIT_LEAK": "the same question in train and in dev or test",
    "TEMPLATE_LOSES_CONTENT": "the chat template drops text of the row",
    "TEMPLATE_MISSING": "the model has no chat template and the rows are chats",
    "TEMPLATE_NOT_PREFIX": "the served prompt is not how the trained turn begins",
    "TEMPLATE_TIMEOUT": "the chat template does not come to an end",
    "TEMPLATE_UNSAFE": "the chat template cannot be rendered in the sandbox",
    "TOKENIZER_DOUBLE_BOS": "a sequence would begin with two BOS tokens",
    "TOKENIZER_MISMATCH": "a row holds a token for which the model has no embedding",
    "TOKENIZER_NO_EOS": "the tokenizer has no end-of-sequence token",
    "TRAIN_INTERRUPTED": "stopped by Ctrl-C or SIGTERM; what was done is saved",
    "TRAIN_MEMORY": "the machine has not enough memory for the plan",
    "TRAIN_NOT_FINITE": "loss or gradient became NaN or infinite",
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one place. ``where`` is ``file:line[:column]``, or a config key. What a message quotes of the rows is
    masked where it looks private."""

    code: str
    message: str
    where: str = ""
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.code in CODES, f"unlisted error code {self.code}"
        object.__setattr__(self, "message", masked(self.message))

    def __str__(self) -> str:
        place = f" {self.where}:" if self.where else ""
        fix = f" Fix: {self.fix}" if self.fix else ""
        full_stop = "." if fix and self.message[-1:] not in ".!?:" else ""
        return f"[{self.code}]{place} {self.message}{full_stop}{fix}"


class TunewrightError(Exception):
    """A failure with a stable ``code``, a place and a next step. Prints as one line."""

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
        return {"error": [{"code": p.code, "where": p.where, "message": p.message, "fix": p.fix} for p in self.problems]}


class ConfigError(TunewrightError):
    """A mistake in a config file, an override or a flag."""


class ModelError(TunewrightError):
    """A model, tokenizer, template or adapter that cannot be used as it is."""


class RunError(TunewrightError):
    """A run folder that is missing, taken, unfinished or changed."""


class MissingExtra(TunewrightError):
    """An optional package is needed; the message holds the command that installs it."""

    def __init__(self, package: str, why: str, command: str) -> None:
        super().__init__("MISSING_PACKAGE", f"{why} needs the package {package}.", fix=f"run `{command}`.")


class TrainError(TunewrightError):
    """Training or export failed for a reason that is not a typing mistake."""

    exit_code = 1


class DataError(TunewrightError):
    """All problems of a data set at once: every one is kept, the first 20 are shown."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems
        self.problems = tuple(problems)
        lines = [str(p) for p in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"... and {len(self.problems) - SHOWN} more (all of them: add --json)")
        Exception.__init__(self, "\n".join(lines))


def data_error(code: str, message: str, *, where: str = "", fix: str = "") -> DataError:
    return DataError([Problem(code, message, where, fix)])
