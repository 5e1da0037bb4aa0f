"""Adapters in the format of PEFT, as files: a config, tensors, and, if tunewright wrote them, a note with hashes. They
are read completely or not at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from tunewright.core import records
from tunewright.core.config import AdapterConfig, PeftKind
from tunewright.core.errors import ModelError, RunError
from tunewright.core.records import AdapterNote
from tunewright.core.run_folder import make_folder, sha256, write_atomic
from tunewright.model.heads.linear import NAME

PREFIX = "base_model.model."
HEAD = f"{PREFIX}{NAME}.weight"
CONFIG, TENSORS, NOTE = "adapter_config.json", "adapter_model.safetensors", "tunewright.json"
# What an adapter_config.json may say without changing what is computed, or that is obeyed. Anything else is refused.
_KNOWN = {
    *(
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "use_dora",
        "target_modules",
        "exclude_modules",
        "rank_pattern",
        "alpha_pattern",
    ),
    *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "init_lora_weights"),
    *("layers_to_transform", "layers_pattern", "runtime_config", "megatron_core"),
}
OF_PEFT = {kind.removeprefix("peft:").upper() for kind in get_args(PeftKind)}  # PEFT's names of what it computes itself
# Initial values that PEFT subtracts from the base: such an adapter belongs to another base than it names.
_SUBTRACTED = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class StoredAdapter:
    """``config``: with the names of the layers as its targets. ``tensors``: by their names in the file. ``note``: of
    tunewright, if it wrote the adapter."""

    config: AdapterConfig
    tensors: dict[str, Tensor]
    note: AdapterNote | None


def kind_of(folder: Path) -> str:
    """PEFT's name of the type of adapter; "" if there is none that can be read."""
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["peft_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def keep(folder: Path, copy: Path) -> None:
    """Copy an adapter's files, so that they can be restored. What is there already stays."""
    make_folder(copy)
    for name in (CONFIG, TENSORS, NOTE):
        if (folder / name).is_file() and not (copy / name).exists():
            write_atomic(copy / name, (folder / name).read_bytes())


def hashed(folder: Path) -> str:
    """Hash of an adapter's config and tensors. Raises ADAPTER_MISSING and ADAPTER_CORRUPT."""
    _require(folder)
    try:
        return hashlib.sha256(f"{sha256(folder / CONFIG)} {sha256(folder / TENSORS)}".encode()).hexdigest()
    except OSError as error:
        raise corrupt(folder, f"cannot be read: {error}") from None


def layers_of(tensors: dict[str, Tensor]) -> list[str]:
    return sorted({key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors if key != HEAD})


def read(folder: Path, base_sha256: str | None = None) -> StoredAdapter:
    """A LoRA adapter, ours or PEFT's. ``base_sha256``: of the base that it must have been trained on, which only our
    note tells. Raises ADAPTER_MISSING, ADAPTER_BASE_MISMATCH, ADAPTER_CORRUPT, ADAPTER_UNSUPPORTED."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _require(folder)
    try:
        written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        head = written.get("modules_to_save") == [NAME] and HEAD in tensors
        known = {*_KNOWN, "modules_to_save"} if head else _KNOWN
        strange = sorted(k for k, v in written.items() if v and v != "none" and k not in known)
        if strange or written["peft_type"] != "LORA":
            option = f"{strange[0]}={written[strange[0]]!r}" if strange else f"peft_type={written['peft_type']!r}"
            raise ModelError(
                "ADAPTER_UNSUPPORTED",
                f"the adapter needs {option[:200]}, which this loader does not support.",
                where=str(folder),
                fix="load it with PEFT and merge it there; then use the merged model.",
            )
        if (begun := str(written.get("init_lora_weights"))).startswith(_SUBTRACTED):
            raise ModelError(
                "ADAPTER_UNSUPPORTED",
                f"init_lora_weights={begun!r}: the initial values were subtracted from its base, so it is wrong on the "
                "base itself.",
                where=str(folder),
                fix="save it with PEFT's path_initial_model_for_weight_conversion, which makes plain LoRA of it.",
            )
        kind: Literal["lora", "rslora", "dora"] = "dora" if written.get("use_dora") else "lora"
        config = AdapterConfig(
            kind="rslora" if written.get("use_rslora") and kind == "lora" else kind,
            rank=written["r"],
            alpha=float(written["lora_alpha"]),
            dropout=float(written.get("lora_dropout", 0.0)),
            targets=layers_of(tensors),
            rank_pattern=written.get("rank_pattern") or {},
            alpha_pattern={key: float(alpha) for key, alpha in (written.get("alpha_pattern") or {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise corrupt(folder, f"cannot be read: {str(error).splitlines()[0][:200]}") from None
    return StoredAdapter(config, tensors, untouched(folder, base_sha256))


def resolved(config: AdapterConfig, base_sha256: str) -> AdapterConfig:
    """The config, with what the adapter in ``config.start`` decides. Raises ADAPTER_*."""
    if config.start is None:
        return config
    given = read(Path(config.start), base_sha256)
    if HEAD in given.tensors:
        message = "training cannot continue from an adapter with a head."
        raise ModelError("ADAPTER_UNSUPPORTED", message, where=config.start, fix="train anew, without adapter.start.")
    own = given.config
    return config.model_copy(update={name: getattr(own, name) for name in AdapterConfig.OF_START})


def base_known(folder: Path) -> str:
    """Whether it is certain that an adapter is used on the base that it was trained on, in words."""
    if (folder / NOTE).is_file():
        return "it was trained on this base, by its hash"
    return "its files have no hash of its base; only the shapes of its layers fit"


def untouched(folder: Path, base_sha256: str | None) -> AdapterNote | None:
    """The note, if there is one; the files must be as it says. An edited rank shows in the shapes, an edited alpha in
    nothing but the hash."""
    if not (folder / NOTE).is_file():
        return None
    try:
        note = records.read(folder / NOTE, AdapterNote)
        changed = sorted(n for n in (CONFIG, TENSORS) if sha256(folder / n) != note.files.get(n))
    except OSError as error:
        raise corrupt(folder, f"cannot be read: {error}") from None
    except RunError as error:
        raise corrupt(folder, f"{NOTE} cannot be read: {error.problems[0].message.removesuffix('.')}") from None
    if changed:
        raise corrupt(folder, f"{changed[0]} does not match its checksum")
    if base_sha256 is not None and note.base_sha256 != base_sha256:
        raise other_base(
            folder, f"the adapter was trained on base model {note.base_sha256[:12]}; this base is {base_sha256[:12]}"
        )
    return note


def _require(folder: Path) -> None:
    if not folder.is_dir():
        message = "there is no such folder."
        fix = "name another; or, for a run that continued from it, copy the run's folder `start` there."
        raise ModelError("ADAPTER_MISSING", message, where=str(folder), fix=fix)


def corrupt(folder: Path, what: str) -> ModelError:
    return ModelError("ADAPTER_CORRUPT", f"{what}.", where=str(folder), fix="re-export or re-download it.")


def other_base(folder: Path, what: str) -> ModelError:
    return ModelError(
        "ADAPTER_BASE_MISMATCH", f"{what}.", where=str(folder), fix="load it on the model it was trained on."
    )
