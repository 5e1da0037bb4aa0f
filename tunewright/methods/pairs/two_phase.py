"""A unit whose sequences do not fit one pass, in two phases with the same gradient (as in Gao et al. 2021, 2101.06983).

The loss L of a unit depends on the parameters through one number of each sequence, its log-probability or its score, or
through one vector. So its gradient is a sum over sequences, of dL/dnumber times the gradient of the number. The first
phase computes all numbers without gradients, and from them L and its derivatives; these are constants of the second
phase, in which each pass has some of the sequences. That costs one forward pass more. A dev loss ends with the first
phase. Axes: S sequences of a unit or of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunewright.core.config import Plan
from tunewright.methods.method import Loss
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch, split_into_passes, to_microbatch, units_of
from tunewright.tokens.sequences import Signal, TrainRow, flat

METRIC = "metric/"


FirstPhase = Callable[[Sequence[Microbatch], Signal], list[Microbatch]]


def microbatches(
    rows: Sequence[TrainRow],
    chosen: Sequence[int],
    plan: Plan,
    signal_of: Callable[[Sequence[TrainRow]], Signal],
    first_phase: FirstPhase,
) -> list[Microbatch]:
    """The passes of a batch. ``signal_of``: of the rows of a pass, with a number for each of their sequences under
    each name; ``first_phase``: of a row that fits no pass, given a pass for each of its sequences, and its signal.

    In a step with dropout, such a row is one pass all the same (`planning.least_pass`): the second phase would draw
    other numbers than the first.
    """
    undivided = plan.adapter.dropout > 0 and torch.is_grad_enabled()
    made = []
    for group in split_into_passes(units_of(rows, chosen), plan.tokens_per_pass, plan.layout):
        part = [rows[i] for i in group]
        signal, sequences = signal_of(part), flat(part)
        together = to_microbatch(sequences, plan.layout, signal=signal)
        if len(part) > 1 or together.ids_BT.size <= plan.tokens_per_pass or undivided:
            made.append(together)
            continue
        own = [{name: numbers[s : s + 1] for name, numbers in signal.items()} for s in range(len(sequences))]
        alone = [to_microbatch([s], plan.layout, signal=x) for s, x in zip(sequences, own, strict=True)]
        made += first_phase(alone, signal)
    return made


def with_slopes(
    microbatches: Sequence[Microbatch], number: Callable[[Microbatch], Tensor], loss: Callable[[Tensor], Loss]
) -> list[Microbatch]:
    """The passes of a unit, after the first phase. ``number``: number_S of a pass; ``loss``: of number_S of the unit.
    The loss and its metrics travel with the first pass."""
    with torch.no_grad():
        own = [number(m) for m in microbatches]
    number_S, sizes, slopes = torch.cat(own), [len(x) for x in own], list[Tensor]()
    given_S = number_S.clone().requires_grad_(torch.is_grad_enabled())
    whole = loss(given_S)
    if given_S.requires_grad:
        slopes = list(torch.split(torch.autograd.grad(whole.sum, given_S)[0], sizes))
    values = {"loss_1": whole.sum, **{METRIC + name: value for name, value in whole.metrics.items()}}
    made = []
    for n, microbatch in enumerate(microbatches):
        signal = {name: _array(value.reshape(1)) * (n == 0) for name, value in values.items()}
        if slopes:
            signal |= {"slope_S": _array(slopes[n]), "number_S": _array(own[n])}
        made.append(replace(microbatch, signal={**microbatch.signal, **signal}))
    return made


def loss(
    model: LanguageModel, microbatch: Microbatch, number: Callable[[], Tensor], whole: Callable[[Tensor], Loss]
) -> Loss:
    """The loss of a pass. ``number``: its number_S; ``whole``: the loss of the units that it contains. In the second
    phase, it has the gradient of the pass's part, and its value is that of the unit in the first pass, 0 in others."""
    signal = microbatch.signal
    if "loss_1" not in signal:
        return whole(number())
    value, metrics = forward.on_device(model, signal["loss_1"])[0], dict[str, Tensor]()
    for name in (name for name in signal if name.startswith(METRIC)):
        metrics[name.removeprefix(METRIC)] = forward.on_device(model, signal[name])[0]
    if "slope_S" not in signal:  # of a dev loss
        return Loss(value, metrics)
    number_S = number()
    slope_S, before_S = (forward.on_device(model, signal[name]).to(number_S) for name in ("slope_S", "number_S"))
    return Loss(value.to(number_S) + (slope_S * (number_S - before_S)).sum(), metrics)


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.detach().double().cpu().numpy()
