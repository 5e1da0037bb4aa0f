"""Checkpoints: whole or not there. Safetensors and JSON, never pickle.

A checkpoint is written into a folder beside, every file flushed, the marker last, then renamed. Weights, optimizer moments
and one integer are all the state there is, because order, schedule and dropout are functions of (seed, step).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunewright import adapters
from tunewright.errors import RunError, TrainError
from tunewright.runs import Run, read_json, sync_folder, write_atomic, write_json

MARKER = "COMPLETE"


@dataclass(frozen=True)
class State:
    """``step`` is the next step to run; ``best`` the lowest dev loss so far, ``waited`` the dev losses since; ``hashes`` what the run stands on."""

    step: int
    best: float | None
    best_step: int | None
    waited: int
    hashes: dict[str, str]


def save(folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: State, keep: int) -> Path:
    """Write step-N/ below ``folder`` and drop all but the ``keep`` newest whole ones."""
    from safetensors.torch import save as to_bytes

    final = folder / f"step-{state.step:06d}"
    beside = folder / f".{final.name}.{os.getpid()}"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write_atomic(beside / "weights.safetensors", to_bytes({n: p.detach().contiguous().cpu() for n, p in parameters.items()}))
        write_atomic(beside / "optimizer.safetensors", to_bytes(_moments(parameters, optimizer)))
        write_json(beside / "state.json", vars(state))
        write_atomic(beside / MARKER, "")
        if final.exists():
            shutil.rmtree(final)
        beside.rename(final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise TrainError(
            "TRAIN_DISK",
            f"the checkpoint of step {state.step} cannot be written: {error.strerror}.",
            where=str(folder),
            mend="free some space and run the same command again; earlier checkpoints are whole.",
        ) from None
    for old in whole(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def whole(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / MARKER).is_file())


def restore(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, hashes: dict[str, str]
) -> State | None:
    """Load the newest whole checkpoint into the parameters and the optimizer; None where there is none.

    Raises RESUME_MISMATCH, naming what changed, when the run stands on another config, data, model or set of trained tensors.
    """
    from safetensors.torch import load_file

    found = whole(folder)
    if not found:
        return None
    state = State(**read_json(found[-1] / "state.json"))
    changed = sorted(k for k in {*hashes, *state.hashes} if hashes.get(k) != state.hashes.get(k))
    if changed:
        detail = "; ".join(f"{k} was {state.hashes.get(k, 'absent')[:12]}, is {hashes.get(k, 'absent')[:12]}" for k in changed)
        raise RunError(
            "RESUME_MISMATCH",
            f"the checkpoint belongs to another run: {detail}.",
            where=str(found[-1]),
            mend="put it back as it was, or start a new run.",
        )
    weights = load_file(found[-1] / "weights.safetensors")
    if set(weights) != set(parameters):
        raise RunError(
            "RESUME_MISMATCH", "other tensors are trained than were saved.", where=str(found[-1]), mend="start a new run."
        )
    moments = load_file(found[-1] / "optimizer.safetensors")
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


def save_weights(file: Path, parameters: dict[str, nn.Parameter]) -> None:
    from safetensors.torch import save as to_bytes

    write_atomic(file, to_bytes({n: p.detach().contiguous().cpu() for n, p in parameters.items()}))


def load_weights(file: Path, parameters: dict[str, nn.Parameter]) -> None:
    from safetensors.torch import load_file

    weights = load_file(file)
    assert set(weights) == set(parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def load_trained(run: Run, model: Any, share: float | None = None) -> Any:
    """``model``, as attached, with the weights that training kept, at the run's own share of the update or another."""
    load_weights(run.weights, adapters.trainable(model))
    adapters.shrink(model, run.share if share is None else share)
    return model


def _moments(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq", "step"):
            if key in state:
                found[f"{name}/{key}"] = torch.as_tensor(state[key]).detach().contiguous().cpu()
    return found
