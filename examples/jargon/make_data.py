"""Questions about hackers' slang, answered by the Jargon File (public domain): one author's voice. From Debian's
package dict-jargon.

Needs `apt-get download` (Debian or Ubuntu; run `apt-get update` once) and dpkg.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from debian import dictionary

LIMIT = 900  # characters to keep of an answer, cut between paragraphs
SHORTEST = 40
REFERENCE = re.compile(r"(?:Var\. of|See|Syn\.) ")  # an entry that only names another


def paragraphs(body: str) -> list[str]:
    """Without the braces around cross-references."""
    blocks = (re.sub(r"\{\s*([^}]+?)\s*\}", r"\1", block) for block in re.split(r"\n\s*\n", body))
    return [" ".join(block.split()) for block in blocks if block.strip()]


def shortened(blocks: list[str]) -> str:
    kept = blocks[0] if blocks else ""
    for block in blocks[1:]:
        if len(kept) + len(block) > LIMIT:
            break
        kept += f"\n\n{block}"
    return kept


def entries() -> Iterator[tuple[str, str]]:
    """The question and the answer of every entry that explains something."""
    for entry in re.split(r"\n(?=\S)", dictionary("dict-jargon", "jargon")):
        term, _, rest = entry.partition("\n")
        grammar, _, body = rest.partition("\n")
        if term.startswith("00-database") or not re.match(r" \S", grammar):
            continue
        answer = shortened(paragraphs(body))
        if len(answer) >= SHORTEST and not REFERENCE.match(answer):
            yield f'What does "{term.strip()}" mean in hacker jargon?', answer


if __name__ == "__main__":
    rows = [{"prompt": question, "completion": answer} for question, answer in entries()]
    out = Path(__file__).parent / "data" / "jargon.jsonl"
    out.parent.mkdir(exist_ok=True)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(out, len(rows), "rows")
