"""Coverage-guided fuzzing of every reader of files: ``python tests/guided_fuzz.py --seconds 60`` (`make fuzz`).

Searches for bytes that give anything but a value or one of our errors, or that take over 20 s. Atheris needs Linux and
Python up to 3.13.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tunewright", "ruamel.yaml", "csv", "json"]):  # before any other import
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


def forked(name: str, seconds: int, folder: Path) -> tuple[int, str]:
    """`guided` in a process that need not import again: its exit status, and what it printed."""
    corpus, printed = folder / "corpus", folder / "printed"
    corpus.mkdir()
    for i, seed in enumerate(fuzz.SEEDS[fuzz.TARGETS[name]]):
        (corpus / str(i)).write_bytes(seed)
    if (child := os.fork()) == 0:
        with printed.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(folder)  # where libFuzzer leaves an input that it found
        guided(name, seconds, str(corpus))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), printed.read_text(errors="replace")


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--seconds", type=int, default=60, help="for each target")
    asked.add_argument("--only", choices=fuzz.TARGETS)
    asked.add_argument("--out", type=Path, help="JSON file to put the tally into")
    options = asked.parse_args()
    tally = {}
    for name in [options.only] if options.only else fuzz.TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            status, printed = forked(name, options.seconds, Path(folder))
        if status:
            sys.exit(f"{name}: exit status {status}\n{printed[-9000:]}")
        inputs = re.search(r"number_of_executed_units: (\d+)", printed)
        places = re.findall(r"cov: (\d+)", printed)
        assert inputs is not None, printed[-2000:]
        tally[name] = {"inputs": int(inputs[1]), "seconds": options.seconds, "places": int(places[-1])}
        print(
            f"{name}: {inputs[1]} inputs in {options.seconds} s reached {places[-1]} places; each was read, or refused "
            "by our error"
        )
    if options.out:
        options.out.write_text(json.dumps(tally, indent=1) + "\n")


if __name__ == "__main__":
    main()
