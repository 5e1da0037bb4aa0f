"""The demo's rows: hand-labelled US addresses, from the source archive of the package usaddress (MIT).

pip downloads the archive once and checks it against its published hash. Only its training XML is read; its code is not
executed.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

from tunewright.core import programs
from tunewright.core.errors import data_error
from tunewright.core.run_folder import write_atomic
from tunewright.model.loading import cache_folder

SPEC = "usaddress==0.5.16"
FILES = ("training/labeled.xml", "training/us50_messiest_manual_label.xml")
# Three quarters of an epoch in a few minutes; for the same number of rows, small batches reach a lower loss.
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
    """addresses.jsonl in the cache folder, created on first use. Raises DATA_UNREADABLE if the download fails."""
    file = cache_folder() / "data" / "addresses.jsonl"
    if not file.exists():
        archive = fetch(SPEC, file.parent)
        write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in address_rows(archive)))
    return file


def fetch(spec: str, folder: Path, *, sdist: bool = True) -> Path:
    """The downloaded archive of NAME==VERSION, without dependencies; ``sdist``: source archive or wheel. Needs pip."""
    folder.mkdir(parents=True, exist_ok=True)
    name = spec.split("==")[0]
    pattern = f"{name.replace('-', '[-_]')}-*" + (".tar.gz" if sdist else ".whl")
    if archives := sorted(folder.glob(pattern)):
        return archives[0]
    kind = ["--no-binary", name] if sdist else ["--only-binary", ":all:"]
    download = ["pip", "download", "--no-deps", *kind, "-d", str(folder), spec]
    command = [sys.executable, "-m", *download, "-q", "--disable-pip-version-check"]
    failure = programs.failure(command)
    archives = sorted(folder.glob(pattern))
    if failure or not archives:
        raise data_error(
            "DATA_UNREADABLE",
            f"pip could not download {spec}: {failure or 'it wrote no file'}",
            where=str(folder),
            fix=f"run `{' '.join(download)}` on a machine with network access.",
        )
    return archives[0]


def address_rows(archive: Path) -> list[dict[str, object]]:
    """Chat rows: the address as written, and its labelled parts as one JSON object. Duplicate addresses are dropped."""
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    with tarfile.open(archive) as tar:
        for name in FILES:
            member = next(m for m in tar.getmembers() if m.isfile() and m.name.endswith(name))
            handle = tar.extractfile(member)
            assert handle is not None
            for item in ET.fromstring(handle.read()):
                text = " ".join("".join(item.itertext()).split())
                parts = _parts(item)
                if text and len(parts) >= 2 and text.lower() not in seen:
                    seen.add(text.lower())
                    rows.append(_chat(text, json.dumps(parts, ensure_ascii=False)))
    return rows


def _parts(item: ET.Element) -> dict[str, str]:
    """Label -> text; tokens with the same label are joined."""
    tokens: dict[str, list[str]] = {}
    for token in item:
        if token.text:
            tokens.setdefault(_snake(token.tag), []).append(token.text.strip())
    return {label: " ".join(words).strip(" ,;") for label, words in tokens.items()}


def _chat(address: str, answer: str) -> dict[str, object]:
    return {
        "messages": [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": address},
            {"role": "assistant", "content": answer},
        ]
    }


def _snake(label: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", label.replace("USPS", "Usps")).lower()
