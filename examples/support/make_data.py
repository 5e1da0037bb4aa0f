"""Support questions and answers written by project members, from Debian's documentation packages: the Python FAQ (PSF
licence), the Debian FAQ (free copyleft, GPL-2+) and the SQLite FAQ (public domain). For the retrieval arms: the Python
tutorial and HOWTOs and SQLite's other pages, without the FAQs.

Needs `apt-get download` (Debian or Ubuntu; run `apt-get update` once) and dpkg.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from debian import deb, members, plain

HEADING = r"(?is)<h[234][^>]*>(.*?)</h[234]>"
SOURCES = [
    ("python3.11-doc", r"html/faq/[a-z]+\.html$", HEADING),
    ("debian-faq", r"/FAQ/.*\.en\.html$", HEADING),
    ("sqlite3-doc", r"sqlite3/faq\.html$", r"(?is)<p><b>(\(\d+\).*?)</b></p>"),
]
LIMIT = 700  # characters to keep of an answer, cut between paragraphs


def shortened(answer: str) -> str:
    kept = ""
    for block in answer.split("\n\n"):
        if kept and len(kept) + len(block) > LIMIT:
            break
        kept += ("\n\n" if kept else "") + block
    return kept


out = Path(__file__).parent / "data" / "faq.jsonl"
out.parent.mkdir(exist_ok=True)
rows: dict[str, dict[str, str]] = {}
for package, keep, heading in SOURCES:
    for _, page in members(deb(package), keep):
        parts = re.split(heading, page)
        for question, answer in zip(parts[1::2], parts[2::2], strict=False):
            question = re.sub(r"^[\d.()\s]+", "", plain(question)).strip()
            answer = re.split(r'(?i)<div class="(?:navfooter|sphinxsidebar|clearer)"|<h2|</body', answer)[0]
            answer = shortened(plain(answer))
            if question.endswith("?") and len(answer) > 60:
                rows.setdefault(question.lower(), {"prompt": question, "completion": answer})
out.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows.values()), encoding="utf-8")
print(out, len(rows), "rows")

pages = out.parent / "documents"
shutil.rmtree(pages, ignore_errors=True)
pages.mkdir()
for package, keep in (
    ("python3.11-doc", r"html/(?:tutorial|howto)/[a-z]+\.html$"),
    ("sqlite3-doc", r"sqlite3/(?!faq)[a-z0-9_]+\.html$"),
):
    for name, page in members(deb(package), keep):
        text = plain(page.split("<body", 1)[-1].split(">", 1)[-1])
        (pages / f"{package}-{Path(name).stem}.txt").write_text(text[:60_000], encoding="utf-8")
print(pages, len(list(pages.iterdir())), "documents")
