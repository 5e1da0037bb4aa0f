"""Every fifth of the tweets of examples/sentiment, which its script makes."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

HERE = Path(__file__).parent
runpy.run_path(str(HERE.parent / "sentiment" / "make_data.py"))
with open(HERE.parent / "sentiment" / "data" / "tweets.csv", encoding="utf-8", newline="") as file:
    head, *rows = csv.reader(file)
(HERE / "data").mkdir(exist_ok=True)
out = HERE / "data" / "tweets.csv"
with open(out, "w", encoding="utf-8", newline="") as file:
    csv.writer(file).writerows([head, *rows[::5]])
print(out, len(rows[::5]), "rows")
