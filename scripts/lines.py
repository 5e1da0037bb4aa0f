"""Print the lines of code of each folder beside what the package aims at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tunewright"
AIM = {"server": 3_000, "all but server": 13_000}
SUFFIXES = {".py", ".j2", ".html", ".css", ".js"}


def lines_by_folder() -> Counter[str]:
    """Folder, or file at the top -> lines of its sources, templates included."""
    lines: Counter[str] = Counter()
    for path in sorted(p for p in PACKAGE.rglob("*") if p.suffix in SUFFIXES):
        lines[path.relative_to(PACKAGE).parts[0]] += path.read_text(encoding="utf-8").count("\n")
    return lines


def main() -> None:
    lines = lines_by_folder()
    for folder, count in lines.most_common():
        print(f"{count:>7,}  {folder}")
    totals = {"server": lines["server"], "all but server": lines.total() - lines["server"]}
    for part, limit in AIM.items():
        print(f"{totals[part]:>7,}  {part} (aim: at most {limit:,})")


if __name__ == "__main__":
    main()
