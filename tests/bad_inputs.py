"""Wrong inputs, and the code, place and exit status that each must get. Each row of the tables is a case.

python tests/bad_inputs.py FOLDER      Writes them all, one folder per case, with the command to try in COMMAND.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import shlex
import shutil
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zstandard
from build import CHATML, adapter_note, byte_tokenizer, tiny_model
from safetensors.numpy import load_file, save_file

from tunewright.cli import main as command_line
from tunewright.core.config import AdapterConfig
from tunewright.core.errors import TunewrightError
from tunewright.model import adapters, loading, peft_format

NOUNS = [
    "apples",
    "boats",
    "clouds",
    "drums",
    "eagles",
    "forests",
    "gates",
    "hills",
    "islands",
    "jars",
    "kites",
    "lakes",
]
GOOD = [
    json.dumps({"prompt": f"question number {i} about {w}", "completion": f"an answer of {w} and {i}"})
    for i, w in enumerate(NOUNS)
]
LABELS = [(f"{w} number {i * 7919}, or {i}", "yn"[i % 2]) for i, w in enumerate(NOUNS)]
CELLS = "".join(f"{w} number {i * 7919}, or {i}\n" for i, w in enumerate(NOUNS)).encode()
# Numbers without a case, and why.
ABSENT = {36: "every setting is read: test_settings.py"}


@dataclass(frozen=True)
class Case:
    """``number`` in the project's list of wrong inputs; the place in the message ends in ``place``; ``words`` follow
    `tunewright`. No command takes an adapter folder yet: ``words`` are empty, and the loader is called directly."""

    number: int
    what: str
    make: Callable[[Path], object]
    words: tuple[str, ...]
    code: str
    place: str
    status: int = 2


def lines(*bad: str) -> bytes:
    return ("\n".join([*GOOD, *bad]) + "\n").encode()


def chat(*messages: tuple[str, object]) -> str:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in messages]})


def chats(*bad: tuple[tuple[str, object], ...]) -> bytes:
    good = [(("user", f"question {i} of {w}"), ("assistant", f"answer {i} {w}")) for i, w in enumerate(NOUNS[:10])]
    return ("\n".join(chat(*row) for row in [*good, *bad]) + "\n").encode()


def lines_of_chat(answer: dict[str, object]) -> bytes:
    return chats() + (json.dumps({"messages": [{"role": "user", "content": "x"}, answer]}) + "\n").encode()


def sharegpt(*turns: tuple[str, object]) -> bytes:
    """A row with these turns, before valid ones."""
    good = [(("human", f"question {i} of {w}"), ("gpt", f"answer {i} {w}")) for i, w in enumerate(NOUNS)]
    rows = [{"conversations": [{"from": who, "value": value} for who, value in row]} for row in (turns, *good)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def damaged(raw: bytes) -> bytes:
    """The file with a few bytes in its middle inverted."""
    at = len(raw) // 2
    return raw[:at] + bytes(b ^ 0xFF for b in raw[at : at + 8]) + raw[at + 8 :]


def parquet(count: int = 20) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    texts = [f"text {i}" for i in range(count)]
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "label": pa.array(texts, pa.string())}), out)
    return out.getvalue()


def labels(*rows: tuple[str, object]) -> bytes:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()


def several(*rows: list[object]) -> bytes:
    """Texts with lists of labels, these first."""
    given = [*rows, *(["xy"[i % 2]] for i in range(len(NOUNS)))]
    return "".join(json.dumps({"text": f"text {i}", "labels": row}) + "\n" for i, row in enumerate(given)).encode()


TWO_RESULTS = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]},
    {"role": "tool", "tool_call_id": "1", "content": "a"},
    {"role": "tool", "tool_call_id": "1", "content": "b"},
    {"role": "assistant", "content": "y"},
]


def tools(*given: dict[str, object]) -> bytes:
    return (json.dumps({**json.loads(GOOD[0]), "tools": given}) + "\n").encode() + lines()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(lines())
        archive.addfile(info, io.BytesIO(lines()))
    return out.getvalue()


# -- data files: number, what, name, bytes, code, place

DATA: list[tuple[int, str, str, bytes, str, str]] = [
    (1, "empty", "a.jsonl", b"", "DATA_EMPTY", "a.jsonl"),
    (1, "blank lines", "a.jsonl", b"\n \n\n", "DATA_EMPTY", "a.jsonl"),
    (2, "invalid JSON", "a.jsonl", lines('{"prompt": "x" "completion": "y"}', GOOD[0]), "DATA_JSON_INVALID", "a.jsonl:13:16"),
    (3, "cut off", "a.jsonl", lines('{"prompt": "x", "compl')[:-1], "DATA_JSON_INVALID", "a.jsonl:13:17"),
    (4, "array that breaks", "a.json", b'[{"prompt": "x", "completion": "y"},\n {"prompt": }]', "DATA_JSON_INVALID", "a.json:2:13"),
    (6, "UTF-16", "a.jsonl", "\n".join(GOOD).encode("utf-16"), "DATA_ENCODING", "a.jsonl:1"),
    (6, "latin-1", "a.jsonl", lines() + '{"prompt": "café", "completion": "y"}\n'.encode("latin-1"), "DATA_ENCODING", "a.jsonl:13"),
    (8, "lone surrogate", "a.jsonl", lines('{"prompt": "\\ud800", "completion": "y"}'), "DATA_UNICODE", "a.jsonl:13"),
    (9, "NUL", "a.jsonl", lines('{"prompt": "a\\u0000b", "completion": "y"}'), "DATA_CONTROL_CHAR", "a.jsonl:13"),
    (9, "raw control character", "a.jsonl", lines('{"prompt": "a\x01b", "completion": "y"}'), "DATA_CONTROL_CHAR", "a.jsonl:13:14"),
    (10, "NaN", "a.jsonl", lines('{"prompt": "x", "completion": "y", "n": NaN}'), "DATA_NUMBER_NOT_FINITE", "a.jsonl:13"),
    (10, "infinity", "a.jsonl", lines('{"prompt": "x", "completion": "y", "n": -Infinity}'), "DATA_NUMBER_NOT_FINITE", "a.jsonl:13"),
    (10, "1e400", "a.jsonl", lines('{"prompt": "x", "completion": "y", "n": 1e400}'), "DATA_NUMBER_NOT_FINITE", "a.jsonl:13"),
    (11, "key twice", "a.jsonl", lines('{"prompt": "x", "prompt": "z", "completion": "y"}'), "DATA_DUPLICATE_KEY", "a.jsonl:13"),
    (12, "deep nesting", "a.jsonl", lines("[" * 200_000), "DATA_TOO_DEEP", "a.jsonl:13"),
    (12, "5,000 digits", "a.jsonl", lines('{"prompt": "x", "completion": "y", "n": ' + "9" * 5000 + "}"), "DATA_NUMBER_TOO_LARGE", "a.jsonl:13"),
    (13, "row is a list", "a.jsonl", lines("[1, 2]"), "DATA_ROW_NOT_OBJECT", "a.jsonl:13"),
    (13, "row is null", "a.jsonl", lines("null"), "DATA_ROW_NOT_OBJECT", "a.jsonl:13"),
    (13, "row is a text", "a.jsonl", lines('"x"'), "DATA_ROW_NOT_OBJECT", "a.jsonl:13"),
    (14, "misspelt field", "a.jsonl", b'{"prompt": "x", "completoin": "y"}\n', "DATA_FIELD_MISSING", "a.jsonl:1"),
    (14, "missing field", "a.jsonl", lines('{"prompt": "x"}'), "DATA_FIELD_MISSING", "a.jsonl:13"),
    (15, "mixed forms", "a.jsonl", lines(chat(("user", "a"), ("assistant", "b"))), "DATA_MIXED_SCHEMA", "a.jsonl:1"),
    (16, "number for text", "a.jsonl", lines('{"prompt": "x", "completion": 7}'), "DATA_FIELD_TYPE", "a.jsonl:13"),
    (16, "null for text", "a.jsonl", lines('{"prompt": null, "completion": "y"}'), "DATA_EMPTY_TARGET", "a.jsonl:13"),
    (16, "content parts", "a.jsonl", chats((("user", ["x"]), ("assistant", "y"))), "DATA_FIELD_TYPE", "a.jsonl:11"),
    (17, "blank answer", "a.jsonl", lines('{"prompt": "x", "completion": "  "}'), "DATA_EMPTY_TARGET", "a.jsonl:13"),
    (18, "unknown role", "a.jsonl", chats((("user", "x"), ("asistant", "y"))), "DATA_ROLE_UNKNOWN", "a.jsonl:11"),
    (18, "two system turns", "a.jsonl", chats((("system", "s"), ("system", "s"), ("user", "x"), ("assistant", "y"))), "DATA_TURN_ORDER", "a.jsonl:11"),
    (18, "user twice", "a.jsonl", chats((("user", "x"), ("user", "z"), ("assistant", "y"))), "DATA_TURN_ORDER", "a.jsonl:11"),
    (19, "no assistant turn", "a.jsonl", chats((("user", "x"),)), "DATA_NOTHING_TO_LEARN", "a.jsonl:11"),
    (19, "a turn not to be learned", "a.jsonl", lines_of_chat({"role": "assistant", "content": "y", "weight": 0}), "DATA_NOTHING_TO_LEARN", "a.jsonl:11"),
    (19, "a tool call", "a.jsonl", lines_of_chat({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}), "DATA_TOOL_CALL", "a.jsonl:11"),
    (22, "all rows the same", "a.jsonl", b'{"prompt": "x", "completion": "y"}\n' * 1000, "DATA_DUPLICATES", "a.jsonl:1"),
    (24, "one class", "a.jsonl", labels(*((f"some text {i * 37}", "yes") for i in range(40))), "LABELS_ONE_CLASS", "a.jsonl:1"),
    (25, "too few", "a.jsonl", "\n".join(GOOD[:5]).encode(), "DATA_TOO_FEW", "a.jsonl"),
    (26, "CSV, open quote", "a.csv", b'prompt,completion\nx,y\nz,"open\n' + CELLS, "DATA_CSV", "a.csv:3"),
    (26, "CSV, ragged", "a.csv", b"prompt,completion\nx,y\nz,a,b\n" + CELLS, "DATA_CSV", "a.csv:3"),
    (26, "CSV, header twice", "a.csv", b"prompt,prompt\nx,y\n", "DATA_CSV", "a.csv:1"),
    (26, "CSV, no header", "a.csv", b"hello,there\nx,y\n", "DATA_FIELD_MISSING", "a.csv:2"),
    (27, "preference pairs without a preference method", "a.jsonl", b'{"prompt": "x", "chosen": "y", "rejected": "n"}\n', "DATA_FORM_UNSUPPORTED", "a.jsonl:1"),
    (28, "xlsx", "a.jsonl", b"PK\x03\x04" + b"0" * 100, "DATA_NOT_TEXT", "a.jsonl"),
    (28, "Parquet named jsonl", "a.jsonl", b"PAR1" + b"0" * 100, "DATA_NOT_TEXT", "a.jsonl"),
    (28, "not Parquet", "a.parquet", b"hello", "DATA_NOT_TEXT", "a.parquet"),
    (28, "endless line", "a.jsonl", b'{"prompt": "' + b"x" * (17 * 1024 * 1024), "DATA_LINE_TOO_LONG", "a.jsonl:1"),
    (48, "zip", "a.zip", b"PK\x03\x04" + b"0" * 100, "DATA_NOT_TEXT", "a.zip"),
    (49, "gzip, then garbage", "a.jsonl.gz", gzip.compress(lines()) + b"garbage", "DATA_COMPRESSED", "a.jsonl.gz:13"),
    (49, "gzip of nothing valid", "a.jsonl.gz", b"\x1f\x8b" + bytes(range(100)), "DATA_COMPRESSED", "a.jsonl.gz:1"),
    (49, "bzip2, damaged", "a.bz2", damaged(bz2.compress(lines())), "DATA_COMPRESSED", "a.bz2:1"),
    (49, "xz, damaged", "a.xz", damaged(lzma.compress(lines())), "DATA_COMPRESSED", "a.xz:1"),
    (49, "zstd, damaged", "a.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "DATA_COMPRESSED", "a.zst:1"),
    (50, "gzip, truncated", "a.jsonl.gz", gzip.compress(lines())[:-9], "DATA_COMPRESSED", "a.jsonl.gz:13"),
    (50, "bzip2, truncated", "a.bz2", bz2.compress(lines())[:-9], "DATA_COMPRESSED", "a.bz2:13"),
    (50, "xz, truncated", "a.xz", lzma.compress(lines())[:-9], "DATA_COMPRESSED", "a.xz:13"),
    (50, "zstd, truncated", "a.zst", zstandard.compress(lines())[:-9], "DATA_COMPRESSED", "a.zst:1"),
    (51, "gzip bomb", "a.jsonl.gz", gzip.compress(b"\n" * (80 << 20)), "DATA_TOO_LARGE", "a.jsonl.gz"),
    (51, "bzip2 bomb", "a.bz2", bz2.compress(b"\n" * (80 << 20)), "DATA_TOO_LARGE", "a.bz2"),
    (51, "zstd bomb", "a.zst", zstandard.compress(b"\n" * (80 << 20)), "DATA_TOO_LARGE", "a.zst"),
    (51, "compressed endless line", "a.gz", gzip.compress(b"x" * (18 << 20)), "DATA_LINE_TOO_LONG", "a.gz:1"),
    (52, "compressed, wrong row", "a.jsonl.gz", gzip.compress(lines("{oops")), "DATA_JSON_INVALID", "a.jsonl.gz:13:2"),
    (52, "compressed, latin-1", "a.csv.gz", gzip.compress("text,label\ncafé,x\n".encode("latin-1") + CELLS), "DATA_ENCODING", "a.csv.gz:2"),
    (52, "compressed, empty", "a.jsonl.gz", gzip.compress(b""), "DATA_EMPTY", "a.jsonl.gz"),
    (53, "UTF-8 and latin-1 mixed", "a.jsonl", lines('{"prompt": "é", "completion": "y"}') + b'{"prompt": "\xe9", "completion": "y"}\n', "DATA_ENCODING", "a.jsonl:14"),
    (53, "random bytes", "a.jsonl", bytes(range(256)) * 8, "DATA_ENCODING", "a.jsonl:2"),
    (54, "an array that ends early", "a.json", b'[{"prompt": "x", "completion": "y"},', "DATA_JSON_INVALID", "a.json:1:37"),
    (54, "rows below two keys", "a.json", b'{"a": [{"prompt": "x"}], "b": [{"prompt": "y"}]}', "DATA_FIELD_MISSING", "a.json:1"),
    (54, "rows in a container, one wrong", "a.json", b'{"data": [' + ",".join(GOOD).encode() + b', {"prompt": NaN}]}', "DATA_NUMBER_NOT_FINITE", "a.json[12]"),
    (54, "a comma after each row", "a.jsonl", ",\n".join(GOOD).encode(), "DATA_JSON_INVALID", "a.jsonl:1:88"),
    (54, "Python instead of JSON", "a.jsonl", lines("{'prompt': 'x', 'completion': 'y'}"), "DATA_JSON_INVALID", "a.jsonl:13:2"),
    (55, "a tab that is not escaped", "a.jsonl", lines('{"prompt": "a\tb", "completion": "y"}'), "DATA_CONTROL_CHAR", "a.jsonl:13:14"),
    (55, "control character in a cell", "a.csv", b"text,label\na\x1bb,x\n" + CELLS, "DATA_CONTROL_CHAR", "a.csv:2"),
    (55, "control character in a key", "a.jsonl", lines('{"pro\\u0000mpt": "a", "completion": "y"}'), "DATA_CONTROL_CHAR", "a.jsonl:13"),
    (56, "quote after the end of a cell", "a.csv", b'text,label\n"a" b,x\nc,y\n' + CELLS, "DATA_CSV", "a.csv:2"),
    (56, "a column without a name", "a.csv", b"text,label,\na,b,c\n" + CELLS.replace(b"\n", b",\n"), "DATA_CSV", "a.csv:2"),
    (67, "tar", "a.tar", tar(), "DATA_NOT_TEXT", "a.tar"),
    (67, "tar.gz", "a.tar.gz", gzip.compress(tar()), "DATA_NOT_TEXT", "a.tar.gz"),
    (67, "compressed twice", "a.gz", gzip.compress(gzip.compress(lines())), "DATA_COMPRESSED", "a.gz"),
    (67, "UTF-16 without a mark", "a.jsonl", lines().decode().encode("utf-16-le"), "DATA_ENCODING", "a.jsonl:1"),
    (67, "an array per line", "a.jsonl", b'["a", "b"]\n' * 20, "DATA_ROW_NOT_OBJECT", "a.jsonl:1"),
    (67, "rows below train and test", "a.json", f'{{"train": [{", ".join(GOOD)}], "test": [{GOOD[0]}]}}'.encode(), "DATA_FIELD_MISSING", "a.json:1"),
    (68, "a list that has a label twice", "a.jsonl", several(["a", "b"], ["a", "a"]), "DATA_LABEL", "a.jsonl:2"),
    (68, "0 or 1 for each label", "a.jsonl", several([1, 0, 0, 1]), "DATA_LABEL", "a.jsonl:1"),
    (68, "a comma in one of several labels", "a.jsonl", several(["a", "b, c"]), "DATA_LABEL", "a.jsonl:1"),
    (68, "a list of lists of labels", "a.jsonl", several(["a", ["b"]]), "DATA_LABEL", "a.jsonl:1"),
    (68, "annotations", "a.jsonl", b'{"text": "Anna sings", "entities": [{"text": "Anna", "label": "PER"}]}\n' * 20, "DATA_FORM_UNSUPPORTED", "a.jsonl:1"),
    (69, "a completion that is null", "a.jsonl", lines('{"prompt": "x", "completion": null}'), "DATA_EMPTY_TARGET", "a.jsonl:13"),
    (69, "no messages", "a.jsonl", chats(()), "DATA_EMPTY_TARGET", "a.jsonl:11"),
    (69, "two results of one call", "a.jsonl", chats() + json.dumps({"messages": TWO_RESULTS}).encode(), "DATA_TURN_ORDER", "a.jsonl:11"),
    (69, "two tools of one name", "a.jsonl", tools({"name": "f"}, {"name": "f"}), "DATA_TOOL_CALL", "a.jsonl:1"),
    (69, "a tool that a server provides", "a.jsonl", tools({"type": "web_search"}), "DATA_TOOL_CALL", "a.jsonl:1"),
    (56, "Parquet, cut off", "a.parquet", parquet()[:-20], "DATA_NOT_TEXT", "a.parquet"),
    (56, "Parquet, a name that is not UTF-8", "a.parquet", parquet().replace(b"label", b"labe\xec"), "DATA_NOT_TEXT", "a.parquet"),
    (56, "Parquet without rows", "a.parquet", parquet(0), "DATA_EMPTY", "a.parquet"),
    (57, "a call without a name", "a.jsonl", lines_of_chat({"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}), "DATA_TOOL_CALL", "a.jsonl:11"),
    (57, "arguments that are a list", "a.jsonl", lines_of_chat({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}), "DATA_TOOL_CALL", "a.jsonl:11"),
    (57, "arguments that are not valid JSON", "a.jsonl", lines_of_chat({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]}), "DATA_TOOL_CALL", "a.jsonl:11"),
    (57, "a result without a call", "a.jsonl", chats((("user", "x"), ("tool", "1"), ("assistant", "y"))), "DATA_TURN_ORDER", "a.jsonl:11"),
    (58, "weight of a half", "a.jsonl", lines_of_chat({"role": "assistant", "content": "y", "weight": 0.5}), "DATA_WEIGHT", "a.jsonl:11"),
    (58, "weight in words", "a.jsonl", lines_of_chat({"role": "assistant", "content": "y", "weight": "high"}), "DATA_WEIGHT", "a.jsonl:11"),
    (59, "an image", "a.jsonl", chats((("user", [{"type": "image_url", "image_url": {"url": "x"}}]), ("assistant", "y"))), "DATA_FORM_UNSUPPORTED", "a.jsonl:11"),
    (59, "a part without text", "a.jsonl", chats((("user", [{"type": "text", "text": 7}]), ("assistant", "y"))), "DATA_FIELD_TYPE", "a.jsonl:11"),
    (59, "content that is an object", "a.jsonl", chats((("user", {"x": 1}), ("assistant", "y"))), "DATA_FIELD_TYPE", "a.jsonl:11"),
    (60, "a label that is a fraction", "a.jsonl", labels(("some text", 0.5), *LABELS), "DATA_LABEL", "a.jsonl:1"),
    (60, "an empty label", "a.jsonl", labels(("some text", " "), *LABELS), "DATA_EMPTY_TARGET", "a.jsonl:1"),
    (60, "a label that is an object", "a.jsonl", labels(("some text", {"x": 1}), *LABELS), "DATA_FIELD_TYPE", "a.jsonl:1"),
    (61, "ShareGPT, unknown speaker", "a.jsonl", sharegpt(("human", "x"), ("robot", "y")), "DATA_ROLE_UNKNOWN", "a.jsonl:1"),
    (61, "ShareGPT, empty answer", "a.jsonl", sharegpt(("human", "x"), ("gpt", "")), "DATA_EMPTY_TARGET", "a.jsonl:1"),
    (61, "ShareGPT, begins with the model", "a.jsonl", sharegpt(("gpt", "y"), ("human", "x"), ("gpt", "y")), "DATA_TURN_ORDER", "a.jsonl:1"),
    (61, "ShareGPT, a value that is a list", "a.jsonl", sharegpt(("human", ["x"]), ("gpt", "y")), "DATA_FIELD_TYPE", "a.jsonl:1"),
]  # fmt: skip

# -- preference rows: number, what, a bad row after good ones, code

PAIR = {"prompt": "x", "chosen": "yes", "rejected": "no"}
TURN = {"role": "user", "content": "x"}
PAIRS: list[tuple[int, str, dict[str, object], str]] = [
    (27, "a pair of equal answers", {**PAIR, "rejected": "yes"}, "DATA_PREFERENCE_EQUAL"),
    (27, "a pair without a prompt", {"chosen": "yes", "rejected": "no"}, "DATA_FIELD_MISSING"),
    (27, "a pair with an empty answer", {**PAIR, "rejected": ""}, "DATA_EMPTY_TARGET"),
    (27, "a pair that follows two prompts", {"chosen": [TURN, {"role": "assistant", "content": "y"}], "rejected": [{**TURN, "content": "z"}, {"role": "assistant", "content": "n"}]}, "DATA_PROMPT_DIFFERS"),
    (27, "a pair that ends with a question", {"prompt": "x", "chosen": [TURN], "rejected": [TURN]}, "DATA_FIELD_MISSING"),
    (27, "a pair of a number", {**PAIR, "chosen": 7}, "DATA_FIELD_TYPE"),
]  # fmt: skip


RATED = {"prompt": "x", "completion": "yes", "label": True}
RATINGS: list[tuple[int, str, dict[str, object], str]] = [
    (27, "a rating that is a word", {**RATED, "label": "good"}, "DATA_LABEL_NOT_BOOLEAN"),
    (27, "a rating of two", {**RATED, "label": 2}, "DATA_LABEL_NOT_BOOLEAN"),
    (27, "a rating that is null", {**RATED, "label": None}, "DATA_LABEL_NOT_BOOLEAN"),
    (27, "a rating that is a list", {**RATED, "label": [True]}, "DATA_LABEL_NOT_BOOLEAN"),
    (27, "an answer without a rating", {"prompt": "x", "completion": "yes"}, "DATA_FIELD_MISSING"),
    (27, "a rated answer that is empty", {**RATED, "completion": ""}, "DATA_EMPTY_TARGET"),
]


def ratings(row: dict[str, object]) -> bytes:
    good = [{"prompt": f"question {i} about {w}", "completion": w, "label": i % 2} for i, w in enumerate(NOUNS)]
    return "".join(json.dumps(r) + "\n" for r in [*good, row]).encode()


def pairs(row: dict[str, object]) -> bytes:
    good = [{"prompt": f"question {i} about {w}", "chosen": f"{w}, {i}", "rejected": w} for i, w in enumerate(NOUNS)]
    return "".join(json.dumps(r) + "\n" for r in [*good, row]).encode()


# -- configs: number, what, text, code, place

CONFIGS: list[tuple[int, str, str, str, str]] = [
    (29, "unknown key", "train:\n  learnin_rate: 1e-4\n", "CONFIG_UNKNOWN_KEY", "c.yaml:2"),
    (29, "unknown section", "trian:\n  lr: 1e-4\n", "CONFIG_UNKNOWN_KEY", "c.yaml:1"),
    (30, "a number in quotes", 'train:\n  lr: "1e-4"\n', "CONFIG_RANGE", "c.yaml:2"),
    (31, "duplicate key", "seed: 1\nseed: 2\n", "CONFIG_DUPLICATE_KEY", "c.yaml:2"),
    (31, "a time for a number", "seed: 12:30:45\n", "CONFIG_RANGE", "c.yaml:1"),
    (32, "python tag", "model: !!python/object/apply:os.system ['true']\n", "CONFIG_UNSAFE_TAG", "c.yaml:1"),
    (32, "alias bomb", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "CONFIG_UNSAFE_TAG", "c.yaml:1"),
    (32, "tab", "train:\n\tlr: 1\n", "CONFIG_SYNTAX", "c.yaml:2"),
    (32, "ten megabytes", "#" * 10_000_000, "CONFIG_TOO_LARGE", "c.yaml"),
    (32, "deep", "model: " + "[" * 5000 + "\n", "CONFIG_TOO_LARGE", "c.yaml:1"),
    (32, "list at the top", "- a\n- b\n", "CONFIG_SYNTAX", "c.yaml"),
    (33, "negative rate", "train:\n  lr: -1e-4\n", "CONFIG_RANGE", "c.yaml:2"),
    (33, "rate of ten", "train:\n  lr: 10\n", "CONFIG_RANGE", "c.yaml:2"),
    (33, "NaN", "train:\n  lr: .nan\n", "CONFIG_RANGE", "c.yaml:2"),
    (33, "infinity", "train:\n  max_grad_norm: -.inf\n", "CONFIG_RANGE", "c.yaml:2"),
    (33, "text for a number", "train:\n  lr: fast\n", "CONFIG_RANGE", "c.yaml:2"),
    (33, "truth for a number", "train:\n  batch_size: true\n", "CONFIG_RANGE", "c.yaml:2"),
    (33, "no epochs", "train:\n  epochs: 0\n", "CONFIG_RANGE", "c.yaml:2"),
    (33, "no batch", "train:\n  batch_size: 0\n", "CONFIG_RANGE", "c.yaml:2"),
    (33, "a day that is none", "date: 2024-02-30\n", "CONFIG_RANGE", "c.yaml:1"),
    (33, "section as value", "train: 3\n", "CONFIG_RANGE", "c.yaml:1"),
    (34, "steps and epochs", "train:\n  steps: 5\n  epochs: 1\n", "CONFIG_CONFLICT", "c.yaml:2"),
    (34, "rank without adapter", "adapter:\n  kind: none\n  rank: 8\n", "CONFIG_CONFLICT", "c.yaml:2"),
    (34, "label smoothing of a method without", "train:\n  method: ipo\n  label_smoothing: 0.1\n", "CONFIG_CONFLICT", "c.yaml:3"),
    (34, "beta of fine-tuning", "train:\n  beta: 0.1\n", "CONFIG_CONFLICT", "c.yaml:2"),
    (34, "a sweep of preferences", "train:\n  method: dpo\nsweep:\n  grid:\n    train.lr: [0.001, 0.01]\n", "CONFIG_CONFLICT", "c.yaml:4"),
    (34, "dropout of the reference", "train:\n  method: dpo\nadapter:\n  dropout: 0.1\n", "CONFIG_CONFLICT", "c.yaml:4"),
    (34, "everything held out", "split:\n  dev: 0.5\n  test: 0.5\n", "CONFIG_CONFLICT", "c.yaml:2"),
]  # fmt: skip


# -- model folders: number, what, how a valid one is broken, code, place


def edit(folder: Path, name: str = "config.json", **changes: object) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object], name: str = "model.safetensors") -> None:
    actual = load_file(folder / name)
    change(actual)
    save_file(actual, folder / name, {"format": "pt"})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def index(folder: Path, **more: str) -> None:
    """An index that lists the file of every tensor, and ``more``."""
    where = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**where, **more}}))


def shards(folder: Path, both: bool) -> None:
    """Two shards instead of one file, with one tensor in both shards or in the wrong one."""
    actual = load_file(folder / "model.safetensors")
    names = sorted(actual)
    (folder / "model.safetensors").unlink()
    save_file({k: actual[k] for k in names[:4]}, folder / "m-1.safetensors", {"format": "pt"})
    save_file({k: actual[k] for k in names[3 if both else 4 :]}, folder / "m-2.safetensors", {"format": "pt"})
    where = {k: f"m-{1 + (n > 4)}.safetensors" for n, k in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def template(folder: Path, text: str | None) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if text is not None:
        (folder / "chat_template.jinja").write_text(text)


def first(actual: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(actual.values()))


MODELS: list[tuple[int, str, Callable[[Path], object], str, str]] = [
    (40, "no config", lambda f: (f / "config.json").unlink(), "MODEL_FILE_MISSING", "model"),
    (40, "no tokenizer", lambda f: [p.unlink() for p in f.glob("token*")], "MODEL_FILE_MISSING", "model"),
    (40, "no weights", lambda f: (f / "model.safetensors").unlink(), "MODEL_FILE_MISSING", "model"),
    (40, "a shard is missing", lambda f: index(f, a="m-2.safetensors"), "MODEL_FILE_MISSING", "model"),
    (40, "the index is not valid JSON", lambda f: (f / "model.safetensors.index.json").write_text("{"), "MODEL_CORRUPT", "model.safetensors.index.json"),
    (40, "the index is empty", lambda f: (f / "model.safetensors.index.json").write_text("[]"), "MODEL_CORRUPT", "model.safetensors.index.json"),
    (40, "a tensor in two shards", lambda f: shards(f, both=True), "MODEL_INDEX_MISMATCH", "model"),
    (40, "a tensor in another shard", lambda f: shards(f, both=False), "MODEL_INDEX_MISMATCH", "model"),
    (40, "a tensor too few", lambda f: tensors(f, lambda t: t.popitem()), "MODEL_INDEX_MISMATCH", "model"),
    (40, "a tensor too many", lambda f: tensors(f, lambda t: t.update(extra=np.ones(3))), "MODEL_INDEX_MISMATCH", "model"),
    (40, "a layer too few in config", lambda f: edit(f, num_hidden_layers=1, layer_types=None), "MODEL_INDEX_MISMATCH", "model"),
    (41, "pickle only", lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "MODEL_UNSAFE_FORMAT", "model"),
    (42, "weights cut off", lambda f: cut(f / "model.safetensors"), "MODEL_CORRUPT", "model"),
    (42, "weights are text", lambda f: (f / "model.safetensors").write_text("hello"), "MODEL_CORRUPT", "model"),
    (42, "NaN weights", lambda f: tensors(f, lambda t: first(t).__setitem__(0, np.nan)), "MODEL_CORRUPT", "model"),
    (42, "a tensor of another shape", lambda f: tensors(f, lambda t: t.update({min(t): np.ones((2, 2), np.float32)})), "MODEL_INDEX_MISMATCH", "model"),
    (42, "config is not valid JSON", lambda f: (f / "config.json").write_text("{"), "MODEL_CORRUPT", "config.json"),
    (42, "config is a list", lambda f: (f / "config.json").write_text("[]"), "MODEL_CORRUPT", "config.json"),
    (42, "unknown architecture", lambda f: edit(f, model_type="nonesuch"), "MODEL_UNSUPPORTED", "model"),
    (43, "code by auto_map", lambda f: edit(f, auto_map={"AutoModel": "x.Y"}), "MODEL_REMOTE_CODE", "model"),
    (43, "code by a nested switch", lambda f: edit(f, text_config={"trust_remote_code": True}), "MODEL_REMOTE_CODE", "model"),
    (43, "code as a file", lambda f: (f / "modeling.py").write_text("raise SystemExit"), "MODEL_REMOTE_CODE", "model"),
    (43, "code of the tokenizer", lambda f: edit(f, "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}), "MODEL_REMOTE_CODE", "model"),
    (44, "template escapes", lambda f: template(f, "{{ messages.__class__.__mro__[1].__subclasses__() }}"), "TEMPLATE_UNSAFE", "model"),
    (44, "template writes ten megabytes", lambda f: template(f, "{{ 'x' * 10**7 }}"), "TEMPLATE_UNSAFE", "model"),
    (44, "template never ends", lambda f: template(f, "{% for i in range(90000) %}" * 2 + "{% endfor %}" * 2), "TEMPLATE_TIMEOUT", "model"),
    (44, "no template", lambda f: template(f, None), "TEMPLATE_MISSING", "model"),
    (44, "template drops the system message", lambda f: template(f, CHATML.replace("in messages %}", "in messages if m['role'] != 'system' %}")), "TEMPLATE_LOSES_CONTENT", "good.jsonl:2"),
    (45, "more tokens than embeddings", lambda f: tensors(f, lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:200]})) or edit(f, vocab_size=200), "TOKENIZER_MISMATCH", "model"),
    (45, "no end token", lambda f: edit(f, "tokenizer_config.json", eos_token=None), "TOKENIZER_NO_EOS", "model"),
    (45, "two beginnings", lambda f: edit(f, "tokenizer_config.json", bos_token="<|im_start|>") or template(f, "{{ bos_token }}{{ bos_token }}" + CHATML), "TOKENIZER_DOUBLE_BOS", "good.jsonl:2"),
    (47, "a shard above the folder", lambda f: index(f, a="../model.safetensors"), "PATH_OUTSIDE", "model"),
    (47, "a shard with an absolute name", lambda f: index(f, a="/etc/passwd"), "PATH_OUTSIDE", "model"),
]  # fmt: skip

# -- adapter folders: number, what, how a valid one is broken, code

ADAPTERS: list[tuple[int, str, Callable[[Path], object], str]] = [
    (46, "trained on another base", lambda f: edit(f, "tunewright.json", base_sha256="another"), "ADAPTER_BASE_MISMATCH"),
    (46, "a layer that the base has not", lambda f: unsigned(f) or tensors(f, lambda t: renamed(t, "layers.0", "layers.7"), ADAPTER), "ADAPTER_BASE_MISMATCH"),
    (46, "for wider layers", lambda f: unsigned(f) or tensors(f, lambda t: t.update({k: np.ones((4, 64), np.float32) for k in t if k.endswith("q_proj.lora_A.weight")}), ADAPTER), "ADAPTER_BASE_MISMATCH"),
    (46, "alpha edited", lambda f: edit(f, "adapter_config.json", lora_alpha=99), "ADAPTER_CORRUPT"),
    (46, "rank edited", lambda f: unsigned(f) or edit(f, "adapter_config.json", r=3), "ADAPTER_CORRUPT"),
    (46, "rank of a million", lambda f: unsigned(f) or edit(f, "adapter_config.json", r=10**6), "ADAPTER_CORRUPT"),
    (46, "rank is a word", lambda f: unsigned(f) or edit(f, "adapter_config.json", r="four"), "ADAPTER_CORRUPT"),
    (46, "a rank that a layer does not have", lambda f: unsigned(f) or edit(f, "adapter_config.json", rank_pattern={"q_proj": 8}), "ADAPTER_CORRUPT"),
    (46, "subtracted from its base", lambda f: unsigned(f) or edit(f, "adapter_config.json", init_lora_weights="pissa"), "ADAPTER_UNSUPPORTED"),
    (46, "another method", lambda f: unsigned(f) or edit(f, "adapter_config.json", peft_type="IA3"), "ADAPTER_CORRUPT"),
    (46, "a method that is not loaded", lambda f: unsigned(f) or edit(f, "adapter_config.json", peft_type="POLY"), "ADAPTER_UNSUPPORTED"),
    (46, "half of a pair", lambda f: unsigned(f) or tensors(f, lambda t: t.pop(min(t)), ADAPTER), "ADAPTER_CORRUPT"),
    (46, "NaN", lambda f: unsigned(f) or tensors(f, lambda t: first(t).__setitem__(0, np.nan), ADAPTER), "ADAPTER_CORRUPT"),
    (46, "cut off", lambda f: cut(f / ADAPTER), "ADAPTER_CORRUPT"),
    (46, "no weights", lambda f: (f / ADAPTER).unlink(), "ADAPTER_CORRUPT"),
    (46, "no config", lambda f: (f / "adapter_config.json").unlink(), "ADAPTER_CORRUPT"),
    (46, "gone", lambda f: shutil.rmtree(f), "ADAPTER_MISSING"),
    (46, "config is a list", lambda f: (f / "adapter_config.json").write_text("[]"), "ADAPTER_CORRUPT"),
]  # fmt: skip
ADAPTER = "adapter_model.safetensors"


def unsigned(folder: Path) -> None:
    """Remove tunewright.json: the folder is then as PEFT would have written it."""
    (folder / "tunewright.json").unlink()


def renamed(actual: dict[str, np.ndarray], old: str, new: str) -> None:
    for name in [k for k in actual if old in k]:
        actual[name.replace(old, new)] = actual.pop(name)


# -- cases with more than one file: number, what, files, words, code, place


def write(name: str, raw: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(raw)


def leak(folder: Path) -> None:
    (folder / "train.jsonl").write_bytes(lines())
    same = json.dumps({"prompt": "Question  NUMBER 3 about drums", "completion": "x"})
    (folder / "test.jsonl").write_text(f"{same}\n{json.dumps({'prompt': 'quite another thing', 'completion': 'y'})}\n")


def unseen_label(folder: Path) -> None:
    words = ("alpha", "beta", "gamma", "delta")
    rows = [(f"{i * 7919} is a number, {words[i % 4]} {i * 104729} another", "yn"[i % 2]) for i in range(40)]
    (folder / "train.jsonl").write_bytes(labels(*rows))
    (folder / "test.jsonl").write_bytes(labels(("something else entirely", "maybe"), ("and one more of these", "y")))


def nothing(_: Path) -> None:
    pass


def documents(folder: Path) -> None:
    (folder / "docs").mkdir()
    for i, word in enumerate(NOUNS):
        (folder / "docs" / f"{word}.md").write_text(
            f"Page {i} is about {word}, and about nothing else that {i * 7919} could tell."
        )


def schema(raw: bytes) -> Callable[[Path], object]:
    """A schema, and rows that are answered in JSON."""
    answers = [
        json.dumps({"prompt": f"question number {i} about {w}", "completion": f'{{"n": {i}}}'})
        for i, w in enumerate(NOUNS)
    ]
    return lambda f: [(f / "a.jsonl").write_text("\n".join(answers)), (f / "s.json").write_bytes(raw)]


def fifo(name: str) -> Callable[[Path], object]:
    return lambda f: (schema(b"{}")(f), (f / name).unlink(), os.mkfifo(f / name))


def doubled(levels: int) -> dict[str, object]:
    """A schema that is two of itself, so many levels deep."""
    inner: dict[str, object] = {"type": "object"}
    for _ in range(levels):
        inner = {"anyOf": [inner, inner]}
    return inner


def slow(folder: Path) -> None:
    schema(b'{"properties": {"n": {"pattern": "^(a|aa)+$"}}}')(folder)
    rows = [
        {"prompt": f"question {i} of {w}", "completion": json.dumps({"n": "a" * 60 + "!"})} for i, w in enumerate(NOUNS)
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))


def broken_answer(folder: Path) -> None:
    schema(b'{"type": "object"}')(folder)
    text = (folder / "a.jsonl").read_text()
    (folder / "a.jsonl").write_text(text.replace('{\\"n\\": 3}', '{\\"n\\": 3,}'))


WITH_SCHEMA = ("check", "a.jsonl", "data.answer_schema=s.json")
PLAN = ("plan", "good.jsonl", "--model", "model")
OTHERS: list[tuple[int, str, Callable[[Path], object], tuple[str, ...], str, str]] = [
    (21, "rows over the limit", nothing, (*PLAN, "train.max_length=20"), "DATA_TOO_LONG", "good.jsonl:2"),
    (23, "test rows in train", leak, ("check", "train.jsonl", "data.test=test.jsonl"), "SPLIT_LEAK", "test.jsonl:1"),
    (28, "a folder without documents", lambda f: (f / "a.jsonl").mkdir(), ("check", "a.jsonl"), "DATA_EMPTY", "a.jsonl"),
    (28, "FIFO", lambda f: os.mkfifo(f / "a.jsonl"), ("check", "a.jsonl"), "DATA_NOT_A_FILE", "a.jsonl"),
    (28, "broken link", lambda f: (f / "a.jsonl").symlink_to("/nowhere/at/all"), ("check", "a.jsonl"), "DATA_NOT_A_FILE", "a.jsonl"),
    (62, "a pattern without a match", nothing, ("check", "data/*.jsonl"), "DATA_NOT_A_FILE", "data/*.jsonl"),
    (62, "one of two files is missing", nothing, ("check", "good.jsonl", "data.train=[good.jsonl, b.jsonl]"), "DATA_NOT_A_FILE", "b.jsonl"),
    (62, "a file and a pattern that matches it", nothing, ("check", "x", "data.train=[good.jsonl, '*.jsonl']"), "DATA_FILE_TWICE", "good.jsonl"),
    (62, "files of different formats", write("b.jsonl", lines()), ("check", "*.jsonl"), "DATA_MIXED_SCHEMA", "b.jsonl:1"),
    (62, "an empty file among several", write("b.jsonl", b""), ("check", "[bg]*.jsonl"), "DATA_EMPTY", "b.jsonl"),
    (62, "an empty name in a list", nothing, ("check", "good.jsonl", "data.train=['']"), "CONFIG_RANGE", "command line"),
    (62, "a pattern that the shell expanded", write("b.jsonl", lines()), ("check", "b.jsonl", "good.jsonl"), "CONFIG_SYNTAX", "command line"),
    (63, "no driver for a store", nothing, ("check", "s3://bucket/rows.jsonl"), "MISSING_PACKAGE", "s3://bucket/rows.jsonl"),
    (63, "no such kind of URL", nothing, ("check", "nonsense://bucket/rows.jsonl"), "DATA_UNREADABLE", "nonsense://bucket/rows.jsonl"),
    (63, "no such file in a store", nothing, ("check", "memory://rows.jsonl"), "DATA_NOT_A_FILE", "memory://rows.jsonl"),
    (63, "the Hub without a name", nothing, ("check", "hub:squad"), "DATA_NOT_A_FILE", "hub:squad"),
    (64, "an encoding that is none", nothing, ("check", "good.jsonl", "data.encoding=rot13"), "CONFIG_RANGE", "command line"),
    (64, "another encoding", write("a.jsonl", "\n".join(GOOD).encode("utf-16")), ("check", "a.jsonl", "data.encoding=ascii"), "DATA_ENCODING", "a.jsonl:1"),
    (65, "a number over the names", write("a.jsonl", labels(*((f"text {i}", i % 3) for i in range(20)))), ("check", "a.jsonl", "data.label_names=[no, yes]"), "DATA_LABEL", "a.jsonl:3"),
    (65, "a test label that is new", unseen_label, ("check", "train.jsonl", "data.test=test.jsonl"), "DATA_FORMAT_MISMATCH", "test.jsonl:1"),
    (65, "all rows dropped", write("a.jsonl", b'{"prompt": "x", "completion": ""}\n' * 20), ("check", "a.jsonl", "data.empty=drop"), "DATA_EMPTY", "a.jsonl:1"),
    (66, "a copy over a file", nothing, ("fix", "good.jsonl", "--out", "good.jsonl"), "DATA_EXISTS", "good.jsonl"),
    (66, "a copy in CSV", nothing, ("fix", "good.jsonl", "--out", "b.csv"), "DATA_EXISTS", "b.csv"),
    (66, "a copy among the originals", nothing, ("fix", "./*.jsonl", "--out", "b.jsonl"), "DATA_EXISTS", "b.jsonl"),
    (66, "nothing to repair with", write("a.jsonl", b"oops\n" * 20), ("fix", "a.jsonl", "--out", "b.jsonl"), "DATA_EMPTY", "a.jsonl:1:1"),
    (28, "/dev/zero", nothing, ("check", "/dev/zero"), "DATA_NOT_A_FILE", "zero"),
    (28, "no such file", nothing, ("check", "a.jsonl"), "DATA_NOT_A_FILE", "a.jsonl"),
    (29, "unknown key after the file", nothing, ("check", "good.jsonl", "train.lrr=1"), "CONFIG_UNKNOWN_KEY", ""),
    (33, "rank over the width", nothing, (*PLAN, "adapter.rank=64"), "LORA_NO_TARGET", "adapter.rank"),
    (35, "targets that match nothing", nothing, (*PLAN, "adapter.targets=[q_prj]"), "LORA_NO_TARGET", "adapter.targets"),
    (37, "a name above the folder", nothing, (*PLAN, "--name", "../x"), "PATH_OUTSIDE", "../x"),
    (37, "a name that is taken", lambda f: (f / "runs" / "r").mkdir(parents=True), (*PLAN, "--name", "r"), "RUN_EXISTS", "r"),
    (37, "runs among the documents", documents, ("plan", "docs", "--runs", "docs/runs", "--model", "model"), "RUN_INSIDE_DATA", "docs/runs"),
    (37, "runs among the files of a pattern", documents, ("plan", "**/*.md", "--model", "model"), "RUN_INSIDE_DATA", "runs"),
    (38, "no such run", nothing, ("chat", "r"), "RUN_NOT_FOUND", "runs"),
    (39, "a schema with an unknown type", schema(b'{"items": {"type": "strng"}}'), WITH_SCHEMA, "DATA_SCHEMA", "s.json"),
    (39, "a schema that is not JSON", schema(b'{"type": }'), WITH_SCHEMA, "DATA_SCHEMA", "s.json:1:10"),
    (39, "a schema elsewhere", schema(b'{"items": {"$ref": "http://127.0.0.1/s.json"}}'), WITH_SCHEMA, "DATA_SCHEMA", "s.json"),
    (39, "a schema without end", schema(b'{"$ref": "#"}'), WITH_SCHEMA, "DATA_SCHEMA", "s.json"),
    (39, "a schema that is none", schema(b'{"typ": "object"}'), WITH_SCHEMA, "DATA_SCHEMA", "s.json"),
    (39, "a schema with a key twice", schema(b'{"type": "object", "type": "array"}'), WITH_SCHEMA, "DATA_SCHEMA", "s.json"),
    (39, "a schema with NaN", schema(b'{"properties": {"n": {"maximum": NaN}}}'), WITH_SCHEMA, "DATA_SCHEMA", "s.json"),
    (39, "a schema that is a pipe", fifo("s.json"), WITH_SCHEMA, "DATA_SCHEMA", "s.json"),
    (39, "a schema of two to the twelfth", schema(json.dumps(doubled(12)).encode()), WITH_SCHEMA, "DATA_SCHEMA", "s.json"),
    (39, "a schema with a slow pattern", slow, WITH_SCHEMA, "DATA_SCHEMA", "s.json"),
    (39, "a schema of many choices", schema(json.dumps({"enum": [f"choice {i}" for i in range(90_000)]}).encode()), WITH_SCHEMA, "DATA_SCHEMA", "s.json"),
    (39, "a schema, and an answer that is not JSON", broken_answer, WITH_SCHEMA, "DATA_FORMAT_MISMATCH", "data.answer_schema"),
    (70, "a config that is a pipe", lambda f: os.mkfifo(f / "c.yaml"), ("check", "c.yaml"), "CONFIG_NOT_FOUND", "c.yaml"),
    (70, "a template that is a pipe", lambda f: os.mkfifo(f / "t"), (*PLAN, "template=t"), "CONFIG_NOT_FOUND", "template"),
    (70, "a page over the data", nothing, ("check", "good.jsonl", "--html", "good.jsonl"), "DATA_EXISTS", "good.jsonl"),
    (70, "a page over a device", nothing, ("check", "good.jsonl", "--html", "/dev/null"), "DATA_EXISTS", "null"),
    (70, "two files of rows", write("b.jsonl", lines()), ("check", "good.jsonl", "data.train=b.jsonl"), "CONFIG_CONFLICT", "command line"),
    (70, "a column that is not there", write("b.jsonl", lines()), ("check", "b.jsonl", "data.columns={prompt: nope}"), "DATA_FIELD_MISSING", "b.jsonl:1"),
    (70, "no row can be read, and bad ones are dropped", write("b.jsonl", b"oops\n" * 20), ("check", "b.jsonl", "data.invalid=drop"), "DATA_EMPTY", "b.jsonl:1:1"),
    (39, "no such schema", nothing, ("check", "good.jsonl", "data.answer_schema=s.json"), "DATA_FORMAT_MISMATCH", "data.answer_schema"),
    (45, "no such model", nothing, ("plan", "good.jsonl", "--model", "nowhere"), "MODEL_NOT_FOUND", "nowhere"),
]  # fmt: skip


def sound(folder: Path) -> None:
    """Write valid rows, a valid tiny model, and a valid adapter for it."""
    talk = [(("system", "Be brief."), ("user", f"what of {w}?"), ("assistant", w.upper())) for w in NOUNS]
    (folder / "good.jsonl").write_text("".join(chat(*row) + "\n" for row in talk))
    tokenizer = byte_tokenizer()
    model = tiny_model(vocabulary=len(tokenizer))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = AdapterConfig(rank=4)
    adapters.attach(model, config, seed=0)
    peft_format.save(model, config, folder / "adapter", "model", adapter_note("base"))


def ask(case: Case) -> tuple[int, str, str]:
    """Run the case's command in the working folder: (exit status, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if case.words:
                before, sys.argv = sys.argv, ["tunewright", *case.words]
                try:
                    command_line.main()
                finally:
                    sys.argv = before
            else:
                peft_format.load(loading.load("model", torch.float32).module, Path("adapter"), "base")
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        except TunewrightError as error:
            status = error.exit_code
            print(f"error{error}", file=err)
    return status, out.getvalue(), err.getvalue()


def in_the_docs(line: str, folder: Path) -> str:
    """The message of an error as docs/errors.md has it."""
    message = line.partition("] ")[2].replace(f"{folder}/", "").replace("`", "'").replace("|", "/")
    return " ".join(message.split())


def broken(name: str, how: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: how(folder / name)


CASES: list[Case] = [
    *(Case(n, what, write(name, raw), ("check", name), code, at) for n, what, name, raw, code, at in DATA),
    *(
        Case(n, what, write("a.jsonl", pairs(row)), ("check", "a.jsonl", "train.method=dpo"), code, "a.jsonl:13")
        for n, what, row, code in PAIRS
    ),
    *(
        Case(n, what, write("a.jsonl", ratings(row)), ("check", "a.jsonl", "train.method=kto"), code, "a.jsonl:13")
        for n, what, row, code in RATINGS
    ),
    *(
        Case(n, what, write("c.yaml", text.encode()), ("check", "c.yaml"), code, at)
        for n, what, text, code, at in CONFIGS
    ),
    *(Case(n, what, broken("model", how), PLAN, code, at) for n, what, how, code, at in MODELS),
    *(Case(n, what, broken("adapter", how), (), code, "adapter") for n, what, how, code in ADAPTERS),
    *(Case(*row) for row in OTHERS),
]


def main(words: Sequence[str]) -> None:
    root = Path(words[0])
    (root / "sound").mkdir(parents=True)
    sound(root / "sound")
    for case in (c for c in CASES if c.words):
        folder = root / f"{case.number:02d}-{case.what.replace(' ', '-').replace('/', '')}"
        shutil.copytree(root / "sound", folder)
        case.make(folder)
        (folder / "COMMAND").write_text(f"{shlex.join(['tunewright', *case.words])}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
