"""Parties and places in loan agreements, as JSON arrays: sentences of agreements filed with the US Securities and
Exchange Commission, whose named entities were annotated by hand (Salinas Alvarado, Verspoor and Baldwin, ALTA 2015,
CC BY 3.0), as packaged in evals 3.0.1.post1 (MIT).

Headings are left out. Of the sentences without an entity, half as many are kept as there are with one; the hash of its
text decides whether a sentence is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path

from tunewright.cli.demo import fetch
from tunewright.model.loading import cache_folder

MEMBER = "evals/registry/data/ner_finance/samples.jsonl"
INSTRUCTION = "List the persons, organizations and locations that the sentence names, in order, as one JSON array."
ENTITY = re.compile(r"(.+?) - (PERSON|ORGANIZATION|LOCATION)(?:, |$)", re.S)
FEWEST_WORDS = 8  # most shorter ones are headings


def entities(ideal: str) -> list[dict[str, str]]:
    """The items of ``[Bank - ORGANIZATION, Borrower - PERSON]``, or none."""
    listed = ideal.removeprefix("[").removesuffix("]") if ideal.startswith("[") else ""
    return [{"text": text, "type": kind.lower()} for text, kind in ENTITY.findall(listed)]


out = Path(__file__).parent / "data" / "entities.jsonl"
out.parent.mkdir(exist_ok=True)
with zipfile.ZipFile(fetch("evals==3.0.1.post1", cache_folder() / "data", sdist=False)) as wheel:
    samples = [json.loads(line) for line in wheel.read(MEMBER).decode("utf-8").splitlines()]

answers = {s["input"][-1]["content"].strip(): entities(s["ideal"]) for s in samples}
different = {text.casefold(): text for text in reversed(answers)}  # of sentences that differ only in case, the first
sentences = [text for text in answers if len(text.split()) >= FEWEST_WORDS and text in different.values()]
named = [text for text in sentences if answers[text]]
plain = sorted((t for t in sentences if not answers[t]), key=lambda t: hashlib.sha256(t.encode()).hexdigest())
kept = {*named, *plain[: len(named) // 2]}
with open(out, "w", encoding="utf-8") as file:
    for text in (t for t in sentences if t in kept):
        turns = (("system", INSTRUCTION), ("user", text), ("assistant", json.dumps(answers[text], ensure_ascii=False)))
        row = {"messages": [{"role": role, "content": content} for role, content in turns]}
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
print(out, len(kept), "rows,", len(named), "of them with entities")
