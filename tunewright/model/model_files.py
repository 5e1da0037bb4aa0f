"""Checks of a model folder before transformers opens it: no code of its own, no pickle, every tensor in the file that
the index names."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError
from tunewright.core.run_folder import sha256

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 16 * 2**20  # the index of a model of a thousand shards has some two million
_FIX = "download the model again."


def check(folder: Path) -> dict[str, Any]:
    """config.json of a folder that transformers may safely read. Raises MODEL_* and PATH_OUTSIDE otherwise."""
    config = _json(folder / "config.json")
    if config is None:
        raise ModelError(
            "MODEL_FILE_MISSING", "no config.json.", where=str(folder), fix="give a folder that contains config.json."
        )
    beside = [_json(folder / name) for name in ("tokenizer_config.json", "generation_config.json")]
    if any(map(_asks_for_code, [config, *beside])) or any(folder.glob("*.py")):
        raise ModelError(
            "MODEL_REMOTE_CODE",
            "the model includes code of its own, which is never run.",
            where=str(folder),
            fix="use a model that transformers supports natively.",
        )
    if not weights(folder):
        pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern)]
        if pickled:
            raise ModelError(
                "MODEL_UNSAFE_FORMAT",
                f"the folder has only pickled weights ({pickled[0]}); unpickling can execute code.",
                where=str(folder),
                fix="convert them to safetensors in an isolated environment.",
            )
        raise ModelError("MODEL_FILE_MISSING", f"no {WEIGHTS}.", where=str(folder), fix="download the model's weights.")
    return config


def weights(folder: Path) -> list[Path]:
    """The files that transformers reads: one, or the shards of the index. Raises where the index lists what is not
    there."""
    index = _json(folder / INDEX)
    if index is None:
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError("MODEL_CORRUPT", "the index has no weight_map of names.", where=str(folder / INDEX), fix=_FIX)
    for name in sorted(set(listed.values())):
        if Path(name).name != name:
            raise ModelError(
                "PATH_OUTSIDE",
                f"the index lists {name!r}, which is not a plain file name.",
                where=str(folder),
                fix=_FIX,
            )
        if not (folder / name).is_file():
            raise ModelError(
                "MODEL_FILE_MISSING", f"the index lists {name}, which is missing.", where=str(folder), fix=_FIX
            )
    # transformers takes the single file where there are both.
    return (
        [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else [folder / name for name in sorted(set(listed.values()))]
    )


def sizes(folder: Path) -> tuple[int, set[str]]:
    """(numbers in the weight files, their dtypes), from the headers alone. Raises MODEL_CORRUPT and
    MODEL_INDEX_MISMATCH."""
    from safetensors import SafetensorError, safe_open

    files, home = weights(folder), dict[str, str]()
    parameters, dtypes = 0, set()
    for file in files:
        try:
            with safe_open(file, "numpy") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (a safe_open handle is not a mapping)
                    if key in home:
                        raise _mismatch(folder, f"{key} is both in {home[key]} and in {file.name}")
                    home[key], part = file.name, tensors.get_slice(key)
                    dtypes.add(part.get_dtype())
                    parameters += math.prod(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError("MODEL_CORRUPT", f"{file.name}: {error}", where=str(folder), fix=_FIX) from None
    if [f.name for f in files] != [WEIGHTS]:
        listed = (_json(folder / INDEX) or {})["weight_map"]
        for key in sorted(set(listed) ^ set(home)):
            raise _mismatch(
                folder, f"{key} is {'listed, but in no file' if key in listed else 'in a file, but not listed'}"
            )
        for key in sorted(home):
            if listed[key] != home[key]:
                raise _mismatch(folder, f"{key} is listed in {listed[key]}, but is in {home[key]}")
    return parameters, dtypes


def digest(folder: Path) -> str:
    """Over config.json and the weight files."""
    total = hashlib.sha256((folder / "config.json").read_bytes())
    for file in weights(folder):
        total.update(sha256(file).encode())
    return total.hexdigest()


def _mismatch(folder: Path, what: str) -> ModelError:
    return ModelError("MODEL_INDEX_MISMATCH", f"{what}.", where=str(folder), fix=_FIX)


def _json(file: Path) -> dict[str, Any] | None:
    """An object, or None where there is no such file."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ModelError("MODEL_CORRUPT", f"over {MAX_JSON_BYTES >> 20} MiB of JSON.", where=str(file), fix=_FIX)
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("MODEL_CORRUPT", f"invalid JSON: {error}.", where=str(file), fix=_FIX) from None
    if not isinstance(value, dict):
        raise ModelError("MODEL_CORRUPT", "not a JSON object.", where=str(file), fix=_FIX)
    return value


def _asks_for_code(value: Any) -> bool:
    return any(bool(v.get("auto_map")) or bool(v.get("trust_remote_code")) for v in _objects(value))


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _objects(inner)
