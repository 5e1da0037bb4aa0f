"""The definition of a bundle (one row of BUNDLES), and what its writer receives. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import Receipt
from tunewright.core.sampling import Sampling
from tunewright.export.bundles import linear_template
from tunewright.export.bundles.linear_template import Linear
from tunewright.export.kind import TrainedRun, sampling, served_context


@dataclass(frozen=True)
class BundleInputs:
    """A run with its exports, and what servers are configured with.

    ``name``: under which the model is served. ``context``: see `served_context`. ``stop``: texts of the tokens that
    end an answer. ``linear``: the chat template, if it is linear. ``system``: the instruction of the training rows, or
    else the default of the chat template, if it has one. ``sampling``: how its tokens are chosen.
    """

    source: TrainedRun
    name: str
    context: int
    stop: tuple[str, ...]
    linear: Linear | None
    system: str | None
    sampling: Sampling

    def messages(self, question: str) -> list[dict[str, str]]:
        """A conversation as it is served."""
        texts = {"system": self.system, "user": question}
        return [{"role": role, "content": text} for role, text in texts.items() if text]


class Readme(NamedTuple):
    """README.md of a bundle: what it is, commands in its folder, and sentences about them."""

    title: str
    commands: Sequence[str]
    notes: Sequence[str]


@dataclass(frozen=True)
class Bundle:
    """Files that a program of others needs to run a model, made from exports that were checked.

    kind         its name: in `export.to` and in messages; also the name of its folder in the run
    needs        the exports that it is made from
    write        writes it into an empty folder, but for its README
    unsupported  (plan, architecture) -> why it cannot be made, or None; asked before training
    """

    kind: str
    needs: tuple[str, ...]
    write: Callable[[BundleInputs, Path], Readme]
    unsupported: Callable[[Plan, str], str | None] = lambda plan, architecture: None


def gather(source: TrainedRun, stop: Sequence[int]) -> BundleInputs:
    receipt, linear = records.read(source.run.receipt, Receipt), linear_template.find(source.template)
    return BundleInputs(
        source,
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", source.run.name),
        context=served_context(source.run),
        stop=tuple(source.template.tokenizer.convert_ids_to_tokens(list(stop))),
        linear=linear,
        system=receipt.instruction or (linear.default_system if linear else None),
        sampling=sampling(source.run),
    )
