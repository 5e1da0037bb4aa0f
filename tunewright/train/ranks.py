"""The processes that train one run together, as torchrun starts them: each computes some of the passes of a step.

All of them have the whole model, and take the same steps. A step's gradient is the sum of its passes' gradients in the
order of the passes, whoever computed them: the weights do not depend on the number of processes, not in the last bit.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tunewright.core.errors import ConfigError, TrainError

T = TypeVar("T")
PATIENCE = 600.0  # seconds for a process that does not answer, unless TUNEWRIGHT_RANKS_TIMEOUT is set
STEPS = 20  # estimated durations of a step, if that is longer


@dataclass(frozen=True)
class Ranks:
    """``rank``: of this process, from 0; only the first one writes the run folder. ``world``: their number."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def parts(self, owners: Sequence[int], equally_many: bool) -> Iterator[tuple[int, bool]]:
        """The parts that this process computes (passes of a step, or of a dev loss), each with whether it owns it.
        ``owners``: of each part. ``equally_many``: all processes compute as many, because they gather weights
        together; one that has no part left repeats the last of all."""
        own = [part for part, owner in enumerate(owners) if owner == self.rank]
        yield from ((part, True) for part in own)
        if equally_many:
            most = max(owners.count(rank) for rank in range(self.world))
            yield from [(len(owners) - 1, False)] * (most - len(own))

    def ordered_sum(self, own: Mapping[int, Tensor], owners: Sequence[int], like: Tensor) -> Tensor:
        """The sum over all parts, in their order. ``own``: the terms of this process, which are used up; ``like``: a
        tensor of their shape."""
        total = torch.empty(0)
        for part, owner in enumerate(owners):
            term = own[part] if owner == self.rank else torch.empty_like(like)
            dist.broadcast(term, owner)
            total = total.add_(term) if part else term
        return total

    def by_part(self, own: Mapping[int, T]) -> list[T]:
        """A value for each part, in their order, from those of all processes. Values travel as pickles, between
        processes that one user has started."""
        if self.world == 1:
            return [own[part] for part in sorted(own)]
        gathered: list[Mapping[int, T]] = [{}] * self.world
        dist.all_gather_object(gathered, dict(own))
        every = {part: value for values in gathered for part, value in values.items()}
        return [every[part] for part in sorted(every)]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes."""
        return flag if self.world == 1 else any(self.by_part({self.rank: flag}))

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            dist.barrier()

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Raises RANKS_DIFFER unless all processes have the same facts."""
        theirs = self.by_part({self.rank: (socket.gethostname(), dict(facts))})
        for rank, (host, other) in enumerate(theirs):
            differing = [name for name, value in theirs[0][1].items() if other.get(name) != value]
            if differing:
                name = differing[0]
                raise TrainError(
                    "RANKS_DIFFER",
                    f"process {rank} on {host} has another {name} than process 0 on {theirs[0][0]}: "
                    f"{other.get(name, '')[:40]}, not {theirs[0][1][name][:40]}.",
                    where=name,
                    fix="give all hosts the same tunewright, torch, model and data.",
                )


ALONE = Ranks()


@contextmanager
def joined(step_seconds: float = 0.0) -> Iterator[Ranks]:
    """Within, this process is one of those that torchrun has started; alone without torchrun. ``step_seconds``: of a
    step, as estimated. Raises RANKS_LOST if another one ends or does not answer."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=_patience(step_seconds))
        yield Ranks(dist.get_rank(), world)
        dist.barrier()  # who ends while others still talk to it aborts them
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not re.search("gloo|nccl|socket|connection", str(error), re.I):
            raise
        raise TrainError(
            "RANKS_LOST",
            f"process {os.environ.get('RANK')} of {world} has lost another one: {str(error).splitlines()[0][:200]}",
            where=socket.gethostname(),
            fix="start the same command again on all hosts: training continues from the last checkpoint.",
        ) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def attempt() -> str:
    """Names what torchrun starts, and starts again after a failure; empty if torchrun was given no --rdzv-id."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if name == "none" else name


def _patience(step_seconds: float) -> timedelta:
    chosen = os.environ.get("TUNEWRIGHT_RANKS_TIMEOUT")
    try:
        return timedelta(seconds=float(chosen) if chosen else max(PATIENCE, STEPS * step_seconds))
    except (ValueError, OverflowError):
        message, fix = f"TUNEWRIGHT_RANKS_TIMEOUT is {chosen!r}.", "give a number of seconds."
        raise ConfigError("CONFIG_RANGE", message, where="TUNEWRIGHT_RANKS_TIMEOUT", fix=fix) from None
