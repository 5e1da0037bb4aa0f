"""Coverage-guided fuzzing of every reader of files: ``python tests/guided_fuzz.py --seconds 60`` (`make fuzz`).

Searches for bytes that give anything but a value or one of our errors, or that take over 20 s. Atheris needs Linux and
Python up to 3.13.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import atheris

seen = (
    atheris.instrument_imports(include=["tunewright", "ruamel.yaml", "csv", "json"])
    if "--corpus" in sys.argv
    else nullcontext()
)
with seen:  # before anything else imports the packages
    import fuzz
    import ruamel.yaml  # noqa: F401 -- ours imports it when it reads the first config


def guided(name: str, seconds: int, corpus: str) -> None:
    """Does not return: libFuzzer ends the process, with status 0 if it found nothing."""

    def once(raw: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            fuzz.TARGETS[name](Path(folder), raw)

    limits = [f"-max_total_time={seconds}", "-timeout=20", "-max_len=4096", "-rss_limit_mb=4096"]
    atheris.Setup([name, *limits, "-print_final_stats=1", corpus], once)
    atheris.Fuzz()


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--seconds", type=int, default=60, help="for each target")
    asked.add_argument("--only", choices=fuzz.TARGETS)
    asked.add_argument("--out", type=Path, help="JSON file to put the tally into")
    asked.add_argument("--corpus", help=argparse.SUPPRESS)
    printed = asked.parse_args()
    tally = {}
    if printed.corpus:
        guided(printed.only, printed.seconds, printed.corpus)
    for name in [printed.only] if printed.only else fuzz.TARGETS:
        with tempfile.TemporaryDirectory() as corpus:
            for i, seed in enumerate(fuzz.SEEDS[fuzz.TARGETS[name]]):
                (Path(corpus) / str(i)).write_bytes(seed)
            again = [sys.executable, __file__, "--only", name, "--seconds", str(printed.seconds), "--corpus", corpus]
            done = subprocess.run(again, capture_output=True, text=True, errors="replace", check=False, cwd=corpus)
        if done.returncode:
            sys.exit(f"{name}: exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        inputs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        places = re.findall(r"cov: (\d+)", done.stderr)
        assert inputs is not None, done.stderr[-2000:]
        tally[name] = {"inputs": int(inputs[1]), "seconds": printed.seconds, "places": int(places[-1])}
        print(
            f"{name}: {inputs[1]} inputs in {printed.seconds} s reached {places[-1]} places; each was read, or refused "
            "by our error"
        )
    if printed.out:
        printed.out.write_text(json.dumps(tally, indent=1) + "\n")


if __name__ == "__main__":
    main()
