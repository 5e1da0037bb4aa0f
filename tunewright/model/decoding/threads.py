"""The threads of decoding steps on a machine that other processes use too."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tunewright.model.decoding.fused import FusedState
from tunewright.model.decoding.state import State
from tunewright.system import crowding
from tunewright.system.crowding import Crowd

# Whether a step of (threads, shape of the state) gives the logits of all threads, by model: asked once.
_Asked = dict[tuple[int, tuple[int, ...]], bool]
MOST_ASKED = 32  # rows: of more, nearly every step has a shape of its own, and asking would take as long as it saves
_same: WeakKeyDictionary[nn.Module, _Asked] = WeakKeyDictionary()


@dataclass
class StepThreads:
    """Leaves other processes the cores that they use, where the bits of a step do not depend on it: which kernel
    multiplies, and in what order it adds, may depend on the number of threads."""

    crowd: Crowd

    def step(self, state: State | FusedState, token_B: Tensor) -> Tensor:
        """`state.step`."""
        self.crowd = crowding.adapted(self.crowd)
        few, planned = self.crowd.threads, self.crowd.planned
        if few == planned or not isinstance(state, FusedState) or state.rows > MOST_ASKED:
            crowding.use(planned)
            return state.step(token_B)
        known, shape = _same.setdefault(state.model.module, {}), (few, state.shape)
        if shape in known:
            crowding.use(few if known[shape] else planned)
            return state.step(token_B)
        crowding.use(few)
        logits_BV = state.logits_after(token_B)
        crowding.use(planned)
        expected_BV = state.logits_after(token_B)
        known[shape] = torch.equal(logits_BV, expected_BV)
        state.advance()
        return expected_BV
