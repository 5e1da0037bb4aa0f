"""Definitions of the same word by two dictionaries: the Devil's Dictionary (Bierce, public domain), which is the chosen
answer, and WordNet (free licence), which is the rejected one. From Debian's packages dict-devil and dict-wn.

Needs `apt-get download` (Debian or Ubuntu; run `apt-get update` once) and dpkg.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from debian import devils_dictionary, dictionary

SPEECH = {"n": "noun", "v": "verb", "adj": "adjective", "adv": "adverb"}
SHORTEST = 20
Word = tuple[str, str]  # and its part of speech


def line(text: str) -> str:
    return " ".join(text.split())


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
    for word, speech, witty in devils_dictionary()
    if len(witty) >= SHORTEST and plain.get((word, speech), witty) != witty
]
out = Path(__file__).parent / "data" / "preferences.jsonl"
out.parent.mkdir(exist_ok=True)
out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
print(out, len(rows), "rows")
