"""The threads of decoding steps on a machine that other processes use too."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunewright.model.decoding.fused import FusedState
from tunewright.model.decoding.state import State
from tunewright.system import crowding
from tunewright.system.crowding import Crowd


@dataclass
class StepThreads:
    """Leaves other processes the cores that they use, where the bits of a step do not depend on it: which kernel
    multiplies, and in what order it adds, may depend on the number of threads. ``same`` holds what was asked: whether
    a step of (threads, rows, room of the cache) gives the logits of all threads."""

    crowd: Crowd
    same: dict[tuple[int, int, int], bool] = field(default_factory=dict)

    def step(self, state: State | FusedState, token_B: Tensor) -> Tensor:
        """`state.step`."""
        self.crowd = crowding.adapted(self.crowd)
        crowding.use(self._usable(state, token_B))
        return state.step(token_B)

    def _usable(self, state: State | FusedState, token_B: Tensor) -> int:
        few, planned = self.crowd.threads, self.crowd.planned
        if few == planned or not isinstance(state, FusedState):
            return planned
        asked = (few, *state.shape)
        if asked not in self.same:
            crowding.use(planned)
            expected_BV = state.logits_after(token_B)
            crowding.use(few)
            self.same[asked] = torch.equal(state.logits_after(token_B), expected_BV)
        return few if self.same[asked] else planned
