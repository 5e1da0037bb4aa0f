"""US addresses with a tag for each word: usaddress 0.5.16 (MIT), labelled by hand by its maintainers and others.

Rows with a tag that few rows have are left out: a tag must be in the training rows to be learned.
"""

from __future__ import annotations

import json
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from tunewright.cli.demo import FILES, SPEC, fetch
from tunewright.model.loading import cache_folder

FEWEST_ROWS = 10


def tagged(item: ET.Element) -> tuple[list[str], list[str]]:
    """The words of an address, and their tags: B-LABEL for the first word of a part, I-LABEL for the others."""
    words: list[str] = []
    tags: list[str] = []
    label = ""
    for token in item:
        for word in (token.text or "").split():
            words.append(word)
            tags.append(f"{'I' if token.tag == label else 'B'}-{token.tag}")
            label = token.tag
    return words, tags


out = Path(__file__).parent / "data" / "addresses.jsonl"
out.parent.mkdir(exist_ok=True)
rows: dict[str, dict[str, list[str]]] = {}
with tarfile.open(fetch(SPEC, cache_folder() / "data")) as archive:
    for name in FILES:
        member = next(m for m in archive.getmembers() if m.isfile() and m.name.endswith(name))
        file = archive.extractfile(member)
        assert file is not None
        for item in ET.fromstring(file.read()):
            words, tags = tagged(item)
            if len(set(tags)) >= 2:
                rows.setdefault(" ".join(words).casefold(), {"tokens": words, "tags": tags})
having = Counter(tag for row in rows.values() for tag in {*row["tags"]})
kept = [row for row in rows.values() if all(having[tag] >= FEWEST_ROWS for tag in row["tags"])]
out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
print(out, len(kept), "rows,", sum(len(row["tags"]) for row in kept), "words")
