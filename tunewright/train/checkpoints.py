"""Checkpoints: whole or not there. Safetensors and JSON, never pickle.

A checkpoint is written into a folder beside, every file flushed, the marker with their checksums last, then renamed.
Weights, optimizer moments and one integer are all the state there is, because order, schedule and dropout are functions
of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.core.errors import RunError, TrainError
from tunewright.core.run_folder import Run, disk_errors, read_json, sha256, sync_folder, write_atomic, write_json
from tunewright.model import adapters

MARKER = "COMPLETE"


@dataclass(frozen=True)
class State:
    """``step`` is the next step to run; ``best`` the lowest dev loss so far, ``best_sha256`` the file of those weights,
    ``waited`` the dev losses since; ``hashes`` what the run stands on."""

    step: int
    hashes: dict[str, str]
    best: float | None = None
    best_step: int | None = None
    best_sha256: str | None = None
    waited: int = 0


def save(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: State, keep: int
) -> Path:
    """Write step-N/ below ``folder``, then `tidy`."""
    from safetensors.torch import save as to_bytes

    final = folder / f"step-{state.step:06d}"
    beside = folder / f".{final.name}.{os.getpid()}"
    contents = {
        "weights.safetensors": to_bytes({n: p.detach().contiguous().cpu() for n, p in parameters.items()}),
        "optimizer.safetensors": to_bytes(_moments(parameters, optimizer)),
        "state.json": json.dumps(vars(state), indent=1).encode(),
    }
    try:
        with disk_errors(final):
            beside.mkdir(parents=True)
            for name, content in contents.items():
                write_atomic(beside / name, content)
            write_json(
                beside / MARKER, {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
            )
            if final.exists():
                shutil.rmtree(final)
            beside.rename(final)
            sync_folder(folder)
    except TrainError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    tidy(folder, keep)
    return final


def tidy(folder: Path, keep: int) -> None:
    """Only the ``keep`` newest whole checkpoints stay, with the best weights that they speak of, and nothing that a
    killed process left half written or half removed."""
    with disk_errors(folder):
        for old in whole(folder)[:-keep]:
            (old / MARKER).unlink()  # from here on it is no checkpoint, however far the removal comes
            shutil.rmtree(old)
        for left in {*folder.glob("step-*"), *folder.glob(".step-*")} - {*whole(folder)}:
            shutil.rmtree(left)
        wanted = {best_file(folder, step) for kept in whole(folder) for step in _best_step(kept)}
        for file in {*folder.glob("best-*"), *folder.glob(".best-*")} - wanted:
            file.unlink()


def _best_step(folder: Path) -> list[int]:
    try:
        return [read_json(folder / "state.json")["best_step"]]
    except (OSError, ValueError, KeyError, TypeError):  # damaged: `newest` will say so
        return []


def best_file(folder: Path, step: int | None) -> Path:
    """Weights of the lowest dev loss; kept as long as a checkpoint speaks of them."""
    return folder / f"best-{step or 0:06d}.safetensors"


def whole(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / MARKER).is_file())


def newest(folder: Path) -> tuple[Path | None, tuple[str, ...]]:
    """(the newest checkpoint whose files are those that were written, what is wrong with newer ones)."""
    damaged: list[str] = []
    for found in reversed(whole(folder)):
        wrong = _damage(found)
        if wrong is None:
            return found, tuple(damaged)
        damaged.append(f"{found.name}: {wrong}")
    return None, tuple(damaged)


def _damage(folder: Path) -> str | None:
    try:
        for name, expected in read_json(folder / MARKER).items():
            if sha256(folder / name) != expected:
                return f"{name} is not what was written"
        state = State(**read_json(folder / "state.json"))
        best = best_file(folder.parent, state.best_step)
        if state.best_sha256 and sha256(best) != state.best_sha256:
            return f"{best.name} is not what was written"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"cannot be read ({error})"
    return None


def restore(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, hashes: dict[str, str]
) -> State | None:
    """Load the newest sound checkpoint into the parameters and the optimizer; None where there is none.

    Raises RESUME_MISMATCH, naming what changed, when the run stands on another config, data, model or set of trained
    tensors.
    """
    from safetensors.torch import load_file

    found, _ = newest(folder)
    if found is None:
        return None
    state = State(**read_json(found / "state.json"))
    changed = sorted(k for k in {*hashes, *state.hashes} if hashes.get(k) != state.hashes.get(k))
    if changed:
        detail = "; ".join(
            f"{k} was {state.hashes.get(k, 'absent')[:12]}, is {hashes.get(k, 'absent')[:12]}" for k in changed
        )
        raise RunError(
            "RESUME_MISMATCH",
            f"the checkpoint belongs to another run: {detail}.",
            where=str(found),
            fix="put it back as it was, or start a new run.",
        )
    weights = load_file(found / "weights.safetensors")
    if set(weights) != set(parameters):
        raise RunError(
            "RESUME_MISMATCH", "other tensors are trained than were saved.", where=str(found), fix="start a new run."
        )
    moments = load_file(found / "optimizer.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
            if f"{name}/exp_avg" in moments:
                optimizer.state[parameter] = {
                    "step": moments[f"{name}/step"],
                    "exp_avg": moments[f"{name}/exp_avg"].to(parameter.device),
                    "exp_avg_sq": moments[f"{name}/exp_avg_sq"].to(parameter.device),
                }
    return state


def save_weights(file: Path, parameters: dict[str, nn.Parameter]) -> str:
    """The sha256 of what was written."""
    from safetensors.torch import save as to_bytes

    content = to_bytes({n: p.detach().contiguous().cpu() for n, p in parameters.items()})
    write_atomic(file, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(file: Path, parameters: dict[str, nn.Parameter]) -> None:
    from safetensors.torch import load_file

    weights = load_file(file)
    assert set(weights) == set(parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def load_trained(run: Run, module: nn.Module, share: float | None = None) -> None:
    """Put the weights that training kept into ``module``, as attached, at the run's own adapter scale or another.

    Raises RUN_DAMAGED where the file is not the one that training wrote.
    """
    if sha256(run.weights) != read_json(run.training)["weights_sha256"]:
        raise RunError(
            "RUN_DAMAGED",
            "the trained weights are not what was written.",
            where=str(run.weights),
            fix=f"remove {run.training}: the same command makes them again from the last checkpoint.",
        )
    load_weights(run.weights, adapters.trainable(module))
    adapters.scale_in_place(module, run.scale if share is None else share)


def _moments(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq", "step"):
            if key in state:
                found[f"{name}/{key}"] = torch.as_tensor(state[key]).detach().contiguous().cpu()
    return found
