"""Definitions of the same word by two dictionaries: the Devil's Dictionary (Bierce, public domain), which is the chosen
answer, and WordNet (free licence), which is the rejected one. From Debian's packages dict-devil and dict-wn.

Needs `apt-get download` (Debian or Ubuntu; run `apt-get update` once) and dpkg.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from debian import deb

SPEECH = {"n": "noun", "v": "verb", "adj": "adjective", "adv": "adverb"}
SHORTEST = 20
Word = tuple[str, str]  # and its part of speech


def dictionary(package: str, name: str) -> str:
    (file,) = deb(package).rglob(f"{name}.dict.dz")
    return gzip.decompress(file.read_bytes()).decode("utf-8", "replace")


def line(text: str) -> str:
    return " ".join(text.split())


def bierce() -> Iterator[tuple[Word, str]]:
    """The first paragraph of each entry that begins with prose."""
    text = dictionary("dict-devil", "devil")
    headings = list(re.finditer(r"^([A-Z][A-Z'\- ]+), (n|adj|adv|v)\.?[a-z.]*\.\s+", text, re.M))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        body = text[heading.end() : following.start() if following else None]
        first = re.split(r"\n\s*\n", body)[0]
        if len(line(first)) >= SHORTEST and not first.startswith("    "):
            yield (heading[1].strip().lower(), heading[2]), line(first)


def wordnet() -> dict[Word, str]:
    """The first meaning of each word, without synonyms and examples."""
    meanings: dict[Word, str] = {}
    for entry in re.split(r"\n(?=\S)", dictionary("dict-wn", "wn")):
        word, _, body = entry.partition("\n")
        for part in re.split(r"\n(?=    (?:n|v|adj|adv) 1: )", "\n" + body)[1:]:
            first = re.match(r"    (n|v|adj|adv) 1: (.*?)(?=\n    \d+: |\Z)", part, re.S)
            if first:
                meaning = line(re.split(r'; "|\[', first[2])[0]).rstrip(";")
                meanings.setdefault((word.strip().lower(), first[1]), f"{meaning[:1].upper()}{meaning[1:]}.")
    return meanings


plain = wordnet()
rows = [
    {"prompt": f'Define "{word}" ({SPEECH[speech]}).', "chosen": witty, "rejected": plain[word, speech]}
    for (word, speech), witty in bierce()
    if (word, speech) in plain and plain[word, speech] != witty
]
out = Path(__file__).parent / "data" / "preferences.jsonl"
out.parent.mkdir(exist_ok=True)
out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
print(out, len(rows), "rows")
