"""Domain language from raw pages: SQLite's documentation (public domain), one Markdown-like text file per page.

Needs `apt-get download` (Debian or Ubuntu; run `apt-get update` once) and dpkg.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from debian import deb, members, plain

SKIP = r"^(bookindex|index|genindex|search|contents|requirements|lang_select|toc|sitemap|keyword_index|doclist)\.html$"
LONGEST = 20_000  # characters to keep of a page: the longest pages would crowd out the others

out = Path(__file__).parent / "data" / "sqlite"
shutil.rmtree(out, ignore_errors=True)
out.mkdir(parents=True)
count = 0
for name, page in members(deb("sqlite3-doc"), r"sqlite3/[a-z0-9_]+\.html$"):
    body = page.split("<body", 1)[-1].split(">", 1)[-1]
    text = plain(re.sub(r'(?is)^.*?antiRobotDefense\(\);\s*</script>|<div class="fancy_toc">.*?</div>', " ", body))
    if len(text) >= 500 and not re.match(SKIP, name):
        (out / name.replace(".html", ".txt")).write_text(text[:LONGEST], encoding="utf-8")
        count += 1
print(out, count, "documents")
