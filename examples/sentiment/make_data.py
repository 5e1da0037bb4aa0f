"""Sentiment of short texts: the VADER ground truth (vaderSentiment 3.3.2, MIT; Hutto and Gilbert 2014).

"Tweet-like" texts, each rated from -4 to +4 by 20 people. A mean of +0.5 or more is positive, of -0.5 or less negative,
anything between neutral.
"""

from __future__ import annotations

import csv
import html
import io
import tarfile
from pathlib import Path

from tunewright.cli.demo import fetch
from tunewright.model.loading import cache_folder

out = Path(__file__).parent / "data" / "tweets.csv"
out.parent.mkdir(exist_ok=True)
archive = fetch("vaderSentiment==3.3.2", cache_folder() / "data")
with tarfile.open(archive) as outer:
    name = next(n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz"))
    with tarfile.open(fileobj=io.BytesIO(outer.extractfile(name).read())) as inner:
        text = inner.extractfile("hutto_ICWSM_2014/tweets_GroundTruth.txt").read().decode("utf-8", "replace")

seen: set[str] = set()
with open(out, "w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["text", "label"])
    for line in text.splitlines():
        _, mean, tweet = line.split("\t", 2)
        tweet = html.unescape(tweet).strip()
        if tweet.lower() not in seen:
            seen.add(tweet.lower())
            score = float(mean)
            writer.writerow([tweet, "positive" if score >= 0.5 else "negative" if score <= -0.5 else "neutral"])
print(out, len(seen), "rows")
