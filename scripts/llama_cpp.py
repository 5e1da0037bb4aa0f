"""Fetch llama.cpp for tests: its converters, from the source archive of the package llama-cpp-python, into the cache.

python scripts/llama_cpp.py      Print the folder, which contains convert_hf_to_gguf.py.

The archive is downloaded once, by pip, and checked against its published hash. Only Python files are unpacked. The
converters import sentencepiece, which is installed into the same folder, not into the environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tunewright.core.run_folder import sha256
from tunewright.model.loading import cache_folder

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
PARTS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/")


def folder() -> Path:
    """The folder with the converters, fetched if it is not there. Raises CalledProcessError without network."""
    made = cache_folder() / f"llama.cpp-{VERSION}"
    if made.is_dir():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", scratch]
        subprocess.run([*pip, "download", *options, f"llama-cpp-python=={VERSION}"], check=True, capture_output=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        assert sha256(archive) == SHA256, "not the published archive"
        unpacked = Path(scratch) / "llama.cpp"
        unpack(archive, unpacked)
        subprocess.run(
            [*pip, "install", "--target", str(unpacked / "more"), "sentencepiece"], check=True, capture_output=True
        )
        unpacked.rename(made)
    return made


def unpack(archive: Path, to: Path) -> None:
    prefix = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
    with tarfile.open(archive) as files:
        for member in files:
            name = member.name.removeprefix(prefix)
            if name != member.name and name.endswith(".py") and name.startswith(PARTS) and ".." not in name:
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                with (to / name).open("wb") as out:
                    shutil.copyfileobj(files.extractfile(member), out)  # type: ignore[arg-type]


if __name__ == "__main__":
    print(folder())
