"""Checkpoints: complete or absent. Safetensors and JSON, never pickle.

A checkpoint is written into a temporary folder, every file flushed, the marker with their checksums last; then the
folder is renamed. Weights, optimizer moments and the step are all the state there is, because order, schedule and
dropout are functions of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tunewright.core import records
from tunewright.core.errors import RunError, TrainError
from tunewright.core.records import CheckpointState, Training
from tunewright.core.run_folder import (
    Run,
    disk_errors,
    make_folder,
    read_json,
    sha256,
    sync_folder,
    write_atomic,
    write_json,
)
from tunewright.model import adapters

MARKER = "COMPLETE"
MOMENTS = {"exp_avg", "exp_avg_sq", "step"}  # AdamW's state of a parameter
# In 8 bits, if it is large enough; then also how its bytes are read.
MOMENTS_8 = {"state1", "state2", "step"}
BYTES_8 = {"qmap1", "qmap2", "absmax1", "absmax2"}


def save(
    folder: Path,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: CheckpointState,
    keep: int,
) -> Path:
    """Write step-N/ below ``folder``, then `tidy`. ``parameters``: by `adapters.update_tensors`."""
    from safetensors.torch import save as to_bytes

    final = folder / f"step-{state.step:06d}"
    temporary = folder / f".{final.name}.{os.getpid()}"
    contents = {
        "weights.safetensors": _bytes(parameters),
        "optimizer.safetensors": to_bytes(_moments(parameters, optimizer)),
        "state.json": json.dumps(records.to_json(state), indent=1).encode(),
    }
    try:
        with disk_errors(final):
            make_folder(temporary)
            for name, content in contents.items():
                write_atomic(temporary / name, content)
            write_json(
                temporary / MARKER, {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
            )
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            sync_folder(folder)
    except TrainError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    tidy(folder, keep)
    return final


def tidy(folder: Path, keep: int) -> None:
    """Keep the ``keep`` newest complete checkpoints and the best weights they refer to; remove all else, including what
    a killed process left half-written or half-removed."""
    with disk_errors(folder):
        for old in complete(folder)[:-keep]:
            (old / MARKER).unlink()  # no longer a checkpoint, even if the removal is interrupted
            shutil.rmtree(old)
        for leftover in {*folder.glob("step-*"), *folder.glob(".step-*")} - {*complete(folder)}:
            shutil.rmtree(leftover)
        wanted = {best_file(folder, step) for kept in complete(folder) for step in _best_step(kept)}
        for file in {*folder.glob("best-*"), *folder.glob(".best-*")} - wanted:
            file.unlink()


def weights_sha256(folder: Path) -> str:
    """Of a complete checkpoint's weights."""
    return str(read_json(folder / MARKER)["weights.safetensors"])


def _best_step(folder: Path) -> list[int | None]:
    try:
        return [_state(folder).best_step]
    except (OSError, RunError):  # damaged: `newest` reports it
        return []


def best_file(folder: Path, step: int | None) -> Path:
    """Weights of the lowest dev loss, measured before ``step``; kept while a checkpoint refers to them."""
    return folder / f"best-{step or 0:06d}.safetensors"


def _state(folder: Path) -> CheckpointState:
    return records.read(folder / "state.json", CheckpointState)


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / MARKER).is_file())


@dataclass(frozen=True)
class Newest:
    """``folder``: the newest undamaged checkpoint, if any; ``damaged``: what is wrong with newer ones."""

    folder: Path | None
    damaged: tuple[str, ...]

    @property
    def step(self) -> int:
        """After which training continues; 0 without a checkpoint."""
        return int(self.folder.name.removeprefix("step-")) if self.folder else 0


def newest(folder: Path) -> Newest:
    """The newest checkpoint below ``folder`` whose files match their checksums."""
    damaged: list[str] = []
    for checkpoint in reversed(complete(folder)):
        problem = _find_damage(checkpoint)
        if problem is None:
            return Newest(checkpoint, tuple(damaged))
        damaged.append(f"{checkpoint.name}: {problem}")
    return Newest(None, tuple(damaged))


def _find_damage(folder: Path) -> str | None:
    try:
        for name, expected in read_json(folder / MARKER).items():
            if sha256(folder / name) != expected:
                return f"{name} does not match its checksum"
        state = _state(folder)
        best = best_file(folder.parent, state.best_step)
        if state.best_sha256 and sha256(best) != state.best_sha256:
            return f"{best.name} does not match its checksum"
    except (OSError, ValueError, AttributeError) as error:
        return f"cannot be read ({error})"
    except RunError as error:
        return f"cannot be read ({error.problems[0].message})"
    return None


def restore(
    folder: Path, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, hashes: dict[str, str]
) -> CheckpointState | None:
    """Load the newest undamaged checkpoint into the parameters and the optimizer; None if there is none.

    Raises RESUME_MISMATCH, naming what changed, if it was written with other inputs or another set of trained tensors.
    """
    from safetensors.torch import load_file

    checkpoint = newest(folder).folder
    if checkpoint is None:
        return None
    state = _state(checkpoint)
    changed = sorted(k for k in {*hashes, *state.hashes} if hashes.get(k) != state.hashes.get(k))
    if changed:
        detail = "; ".join(
            f"{k} was {state.hashes.get(k, 'absent')[:12]}, is now {hashes.get(k, 'absent')[:12]}" for k in changed
        )
        raise RunError(
            "RESUME_MISMATCH",
            f"the checkpoint belongs to another run: {detail}.",
            where=str(checkpoint),
            fix="restore the inputs, or start a new run.",
        )
    weights = load_file(checkpoint / "weights.safetensors")
    if set(weights) != set(parameters):
        raise RunError(
            "RESUME_MISMATCH",
            "the set of trained tensors differs from the saved one.",
            where=str(checkpoint),
            fix="start a new run.",
        )
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(checkpoint / "optimizer.safetensors").items():
        name, _, part = key.rpartition("/")
        moments.setdefault(name, {})[part] = value
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
            if name in moments:
                optimizer.state[parameter] = _on_device(moments[name], parameter.device)
    return state


def _on_device(moments: dict[str, Tensor], device: torch.device) -> dict[str, Tensor | int]:
    """The step count stays on the CPU, as AdamW keeps it, or is a number, as the optimizer of 8 bits has it."""
    step = moments["step"]
    counted = {"step": int(step) if "state1" in moments else step}
    return {key: value.to(device) for key, value in moments.items()} | counted


def save_weights(file: Path, parameters: Mapping[str, Tensor]) -> str:
    """Write the tensors; returns the sha256 of the file."""
    content = _bytes(parameters)
    write_atomic(file, content)
    return hashlib.sha256(content).hexdigest()


def digest(parameters: Mapping[str, Tensor]) -> str:
    """The sha256 that a file of these tensors has."""
    return hashlib.sha256(_bytes(parameters)).hexdigest()


def _bytes(parameters: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save as to_bytes

    return to_bytes({n: p.detach().contiguous().cpu() for n, p in parameters.items()})


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors that `save_weights` has written, by the names of the parameters."""
    from safetensors.torch import load_file

    return load_file(file)


def load_weights(file: Path, parameters: Mapping[str, Tensor]) -> None:
    """Copy the tensors of ``file`` into the parameters, in place."""
    weights = read_weights(file)
    assert set(weights) == set(parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def check_weights(file: Path, expected: str) -> None:
    """Raises RUN_DAMAGED if ``file``, the trained weights of a run or branch, is not the file that training wrote."""
    if sha256(file) != expected:
        raise RunError(
            "RUN_DAMAGED",
            "the file of trained weights does not match its checksum.",
            where=str(file),
            fix=f"delete {file.parents[1] / 'training.json'} and rerun the same command: the weights are restored from "
            "the last checkpoint.",
        )


def load_trained(run: Run, module: nn.Module, scale: float) -> None:
    """Load the weights that training kept into ``module``, with its adapter attached, and multiply the update by
    ``scale``, permanently. Raises RUN_DAMAGED."""
    check_weights(run.weights, records.read(run.training, Training).weights_sha256)
    load_weights(run.weights, adapters.update_tensors(module))
    adapters.scale_in_place(module, scale)


def _moments(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        state: dict[str, Tensor] = optimizer.state.get(parameter, {})
        # Another optimizer's state would be lost here, and a resumed run would silently differ.
        known = MOMENTS if "exp_avg" in state else MOMENTS_8 | (BYTES_8 & set(state))
        assert not state or set(state) == known, f"unknown optimizer state {sorted(state)}"
        for key, value in state.items():
            tensor = torch.as_tensor(value).detach().contiguous().cpu()
            tensors[f"{name}/{key}"] = tensor.clone() if key.startswith("qmap") else tensor  # one for all parameters
    return tensors
