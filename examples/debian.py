"""Debian packages as folders, HTML as text: for the examples that read Debian's documentation."""

from __future__ import annotations

import gzip
import html
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tunewright.model.loading import cache_folder


def deb(name: str) -> Path:
    """The folder in the cache to which a package is unpacked; nothing is installed."""
    folder = cache_folder() / "data" / name
    if not (folder / "root").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", name], cwd=folder, check=True, stderr=subprocess.DEVNULL)
        subprocess.run(["dpkg", "-x", str(next(folder.glob("*.deb"))), str(folder / "root")], check=True)
    return folder / "root"


def dictionary(package: str, name: str) -> str:
    """The text of a dictd dictionary."""
    (file,) = deb(package).rglob(f"{name}.dict.dz")
    return gzip.decompress(file.read_bytes()).decode("utf-8", "replace")


def devils_dictionary() -> Iterator[tuple[str, str, str]]:
    """Word, part of speech (n, v, adj or adv) and the first paragraph of every entry, on one line."""
    text = dictionary("dict-devil", "devil")
    headings = list(re.finditer(r"^([A-Z][A-Z'\- ]+), (n|adj|adv|v)\.?[a-z.]*\.\s+", text, re.M))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        body = text[heading.end() : following.start() if following else None]
        yield heading[1].strip().lower(), heading[2], " ".join(re.split(r"\n\s*\n", body)[0].split())


def members(root: Path, keep: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each file whose path matches."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and re.search(keep, path.as_posix()):
            yield path.name, path.read_text(encoding="utf-8", errors="replace")


def plain(fragment: str) -> str:
    """Paragraphs and fenced code of an HTML fragment, as text."""
    fragment = re.sub(r"(?is)<(script|style|table).*?</\1>", " ", fragment)
    blocks: list[str] = []
    for i, part in enumerate(re.split(r"(?is)<pre[^>]*>(.*?)</pre>", fragment)):
        text = part if i % 2 else re.sub(r"(?i)<(p|li|div|dt|dd|br|blockquote|h\d)\b[^>]*>", "\n\n", part)
        text = html.unescape(re.sub(r"(?s)<[^>]+>", "", text)).replace("\u00b6", "").replace("\u00a0", " ")
        if i % 2:
            blocks.append("```\n" + text.strip("\n") + "\n```")
        else:
            blocks += [" ".join(t.split()) for t in text.split("\n\n") if t.strip()]
    return "\n\n".join(b for b in blocks if b)
