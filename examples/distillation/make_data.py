"""The tweets of examples/sentiment, which its script makes."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

HERE = Path(__file__).parent
runpy.run_path(str(HERE.parent / "sentiment" / "make_data.py"))
(HERE / "data").mkdir(exist_ok=True)
print(shutil.copy(HERE.parent / "sentiment" / "data" / "tweets.csv", HERE / "data" / "tweets.csv"))
