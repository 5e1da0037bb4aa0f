"""The tasks on which recipes are compared: real rows that people wrote, each split once into train, dev and test.

Near-duplicates are left out, so no side contains another's. Rows come from the examples' make_data.py, from Debian's
package lists, from two of its dictionaries, and from the docstrings of Python's own library.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import random
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
from debian import devils_dictionary  # noqa: E402

from tunewright.cli.demo import fetch  # noqa: E402
from tunewright.data import near_duplicates  # noqa: E402
from tunewright.data.text import normalised  # noqa: E402
from tunewright.model.loading import cache_folder  # noqa: E402

Row = dict[str, Any]
DEV, TEST = 40, 80
SHORT = 400  # characters of an answer: longer ones are left out, so that a table takes hours and not days
SECTIONS = "admin database devel editors education electronics fonts games gnome graphics hamradio httpd kde mail math"
SECTIONS += " net news science shells sound text utils video web"


@dataclass(frozen=True)
class Task:
    """``rows``: makes all rows; ``train``: how many of them train. ``metric``: "answers" for the task's own metric of
    answers, "bits" for bits per byte of the reference answers. ``aside``: not used until the defaults are fixed."""

    name: str
    about: str
    rows: Callable[[], Iterator[Row]]
    train: int
    metric: str
    settings: dict[str, Any] = field(default_factory=dict)
    aside: bool = False
    test: int = TEST


def made(example: str, file: str) -> Path:
    path = EXAMPLES / example / "data" / file
    if not path.exists():
        subprocess.run([sys.executable, str(EXAMPLES / example / "make_data.py")], check=True, stdout=sys.stderr)
    return path


def lines(example: str, file: str) -> Iterator[Row]:
    yield from map(json.loads, made(example, file).read_text(encoding="utf-8").splitlines())


def chat(instruction: str, question: str, answer: str) -> Row:
    turns = (("system", instruction), ("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def tweets() -> Iterator[Row]:
    with open(made("sentiment", "tweets.csv"), encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def sections() -> Iterator[Row]:
    """The synopsis of a Debian package, and the section that it was put into."""
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    for entry in listed.split("\n\n"):
        section, synopsis = (re.search(rf"^{key}: (.+)$", entry, re.M) for key in ("Section", "Description"))
        if section and synopsis and section[1] in SECTIONS.split():
            yield {"text": synopsis[1], "label": section[1]}


def docstrings() -> Iterator[Row]:
    """Functions of Python's library, and the first line of their docstring."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                first = text.splitlines()[0]
                node.body = node.body[1:] or [ast.Pass()]
                source = ast.unparse(node)
                if first.endswith(".") and 20 <= len(first) <= 100 and len(source) <= SHORT:
                    yield chat("Write the docstring of the Python function, in one sentence.", source, first)


def faq() -> Iterator[Row]:
    for row in lines("support", "faq.jsonl"):
        answer = row["completion"][: 2 * SHORT]
        yield chat("You answer questions about Python, Debian and SQLite.", row["prompt"], answer)


def jargon() -> Iterator[Row]:
    for row in lines("jargon", "jargon.jsonl"):
        if len(row["completion"]) <= SHORT:
            yield chat("You explain the slang of computer hackers.", row["prompt"], row["completion"])


def pages() -> Iterator[Row]:
    made("docs", "sqlite")
    for path in sorted((EXAMPLES / "docs" / "data" / "sqlite").glob("*.txt")):
        yield {"text": path.read_text(encoding="utf-8")[:4000]}


def reviews() -> Iterator[Row]:
    """Sentences of product reviews, rated as the tweets were."""
    with tarfile.open(fetch("vaderSentiment==3.3.2", cache_folder() / "data")) as outer:
        name = next(n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(outer.extractfile(name).read())) as inner:
            member = inner.extractfile("hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt")
            text = member.read().decode("utf-8", "replace")
    for line in text.splitlines():
        _, mean, sentence = line.split("\t", 2)
        score = float(mean)
        label = "positive" if score >= 0.5 else "negative" if score <= -0.5 else "neutral"
        yield {"text": sentence.strip(), "label": label}


def definitions() -> Iterator[Row]:
    """The Devil's Dictionary."""
    for word, _, first in devils_dictionary():
        if 20 <= len(first) <= SHORT:
            yield chat("You write a satirical dictionary.", f'Define "{word}".', first)


def classify(kind: str, labels: str) -> dict[str, Any]:
    return {"data.instruction": f"Classify the {kind}. Answer with one word: {labels}."}


SENTIMENT = "positive, negative or neutral"
TASKS = {
    task.name: task
    for task in (
        Task("addresses", "addresses to JSON", lambda: lines("addresses", "addresses.jsonl"), 160, "answers"),
        Task("entities", "entities of contracts", lambda: lines("entities", "entities.jsonl"), 160, "answers"),
        Task("tweets", "labels, 3 classes", tweets, 300, "answers", classify("sentiment of the text", SENTIMENT)),
        Task(
            "sections",
            f"labels, {len(SECTIONS.split())} classes",
            sections,
            1200,
            "answers",
            classify("Debian package by its synopsis", ", ".join(SECTIONS.split())),
            test=120,
        ),
        Task("docstrings", "short answers", docstrings, 160, "bits"),
        Task("faq", "long answers", faq, 150, "bits", test=60),
        Task("jargon", "voice", jargon, 160, "bits"),
        Task("pages", "raw text", pages, 24, "bits", {"train.max_length": 256}, test=16),
        Task("reviews", "labels, 3 classes", reviews, 300, "answers", classify("opinion", SENTIMENT), aside=True),
        Task("definitions", "voice, short answers", definitions, 200, "bits", aside=True),
    )
}


def key(row: Row) -> str:
    """What two sides must not share: the text or the question of a row."""
    if "messages" in row:
        return normalised(next(m["content"] for m in row["messages"] if m["role"] == "user"))
    return normalised(row["text"][:2000])


def distinct(texts: Sequence[str]) -> list[int]:
    """One of each group of near-duplicates, so that rows may be put on any side."""
    return sorted(set(near_duplicates.cluster(texts, 0.8).cluster))


def write(task: Task, folder: Path, train: int | None = None) -> dict[str, str]:
    """The files of a task, by setting: data.train, data.dev and data.test. ``train``: rows, if not the task's."""
    count = train or task.train
    paths = {side: folder / f"{task.name}-{count}-{side}.jsonl" for side in ("test", "dev", "train")}
    if not all(path.exists() for path in paths.values()):
        rows = list(task.rows())
        random.Random(0).shuffle(rows)
        dev = min(DEV, count // 4)
        rows = rows[: 2 * (count + dev + task.test)]
        rows = [rows[i] for i in distinct([key(row) for row in rows])]
        if len(rows) < count + dev + task.test:
            raise SystemExit(f"{task.name}: only {len(rows)} rows that are no near-duplicates")
        folder.mkdir(parents=True, exist_ok=True)
        ends = {"test": (0, task.test), "dev": (task.test, task.test + dev)}
        ends["train"] = (task.test + dev, task.test + dev + count)
        for side, (start, end) in ends.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[start:end])
            paths[side].write_text(text, encoding="utf-8")
    return {f"data.{side}": str(path) for side, path in paths.items()}
