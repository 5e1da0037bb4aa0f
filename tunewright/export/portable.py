"""A model folder as other programs read it.

transformers 5 writes some values in places where other programs do not look, and these then use a default without a
warning: a Llama without a top-level `rope_theta` is loaded with 10,000 by transformers 4 and mlx-lm. So every value is
written in both places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from tunewright.core.locations import is_hub_model, is_url, shown
from tunewright.core.run_folder import read_json, write_json

_URL = r"\b(?!file:)[A-Za-z][A-Za-z0-9+.-]+://"
_URL_OR_FOLDER = re.compile(rf"""{_URL}(?:(?!,\s*{_URL})[^\s'"])*|(?<![\w.])[~/][^\s'"]*/(?=[^\s'"])""")
_MACHINE = ("_model_name_or_path", "_name_or_path", "is_local", "local_files_only")  # of the machine that wrote it


def make_portable(folder: Path) -> None:
    """Rewrite the JSON files of a folder that `save_pretrained` wrote for a model, a tokenizer, or both."""
    template = folder / "chat_template.jinja"
    for name, rewritten in (("config.json", config), ("generation_config.json", _shareable)):
        if (folder / name).is_file():
            write_json(folder / name, rewritten(read_json(folder / name)))
    file = folder / "tokenizer_config.json"
    if file.is_file():
        text = template.read_text(encoding="utf-8") if template.is_file() else None
        write_json(file, tokenizer_config(read_json(file), text))


def config(written: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """config.json with the rotary embedding's values under their names in transformers 4 too; `use_cache` is on, which
    training turns off."""
    rope = written.get("rope_parameters")
    return {**_shareable(written), **(_rope(rope) if isinstance(rope, dict) else {})}


def _rope(parameters: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The values of `rope_parameters` under the names of transformers 4. Gemma 3 has a dictionary for each kind of
    layer."""
    if isinstance(full := parameters.get("full_attention"), dict):
        local = parameters.get("sliding_attention")
        base = {"rope_local_base_freq": local["rope_theta"]} if isinstance(local, dict) else {}
        return {**_rope(full), **base}
    names = {k: parameters[k] for k in ("rope_theta", "partial_rotary_factor") if k in parameters}
    if parameters.get("rope_type", "default") != "default":
        names["rope_scaling"] = {k: v for k, v in parameters.items() if k not in names}
    return names


def tokenizer_config(written: Mapping[str, JsonValue], template: str | None) -> dict[str, JsonValue]:
    """tokenizer_config.json with a class that transformers 4 knows, the chat template inside, and the additional
    special tokens under their name in transformers 4, which expects something else under the new name."""
    out = {k: v for k, v in _shareable(written).items() if k != "backend"}
    if out.get("tokenizer_class") == "TokenizersBackend":
        out["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := out.get("extra_special_tokens"), list):
        del out["extra_special_tokens"]
        out["additional_special_tokens"] = extra
    return out if template is None else {**out, "chat_template": template}


def _shareable(written: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    values = {k: v for k, v in written.items() if k not in _MACHINE}
    return {**values, "use_cache": True} if "use_cache" in values else values


def base_name(name: str) -> str:
    """What others can call the base model: a Hub id or the embedded model's name; of a path, its last part."""
    return name if is_hub_model(name) else Path(name).name


def without_folders(command: str) -> str:
    """A command with the last part of each absolute path, and with URLs as they may be shown: no folder of this
    machine, and no secret."""

    def replaced(match: re.Match[str]) -> str:
        url = match[0].rstrip("])")
        return shown(url) + match[0][len(url) :] if is_url(url) else ""

    return _URL_OR_FOLDER.sub(replaced, command)


def let_others_read(folder: Path) -> None:
    """Let every user of the machine read an export. The run's folder can then be passed through, but not listed: its
    rows and answers stay private."""
    for path in folder.parent.iterdir():
        if path.is_file() or path.name == "branches":  # older versions left their modes to the umask
            path.chmod(path.stat().st_mode & 0o700)
    folder.parent.chmod(0o711)
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
