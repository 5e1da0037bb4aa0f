"""The argument of a stage: Context (the run and its data), Setup (also inputs and models), Work (also the plan)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunewright.core.chosen import chosen_decoding
from tunewright.core.config import Config, Plan
from tunewright.core.console import Console
from tunewright.core.run_folder import Run
from tunewright.data.dataset import Dataset
from tunewright.fan.jobs import HERE, Where
from tunewright.judge.arms import decodings
from tunewright.judge.arms.arm import Arm
from tunewright.judge.protocol import Protocol
from tunewright.runtime.answers import Answers
from tunewright.runtime.inputs import Inputs
from tunewright.runtime.models import Models


@dataclass(frozen=True)
class Context:
    """An open run. ``command``: the command that started it, for the receipt. ``created``: the folders that it
    created. ``new_settings``: settings of ``config`` that its config file does not have yet. ``where``: the place where
    branches are trained."""

    run: Run
    config: Config
    console: Console
    command: str
    data: Dataset
    created: tuple[Path, ...] = ()
    new_settings: tuple[str, ...] = ()
    where: Where = HERE


@dataclass(frozen=True)
class Setup:
    """A run whose model is known, but that has no plan yet."""

    context: Context
    inputs: Inputs
    models: Models


@dataclass(frozen=True)
class Work:
    """A planned run: the argument of every stage after `plan`."""

    setup: Setup
    plan: Plan
    protocol: Protocol
    answers: Answers

    @property
    def run(self) -> Run:
        return self.setup.context.run

    @property
    def config(self) -> Config:
        return self.setup.context.config

    @property
    def console(self) -> Console:
        return self.setup.context.console

    @property
    def data(self) -> Dataset:
        return self.setup.context.data

    @property
    def inputs(self) -> Inputs:
        return self.setup.inputs

    @property
    def models(self) -> Models:
        return self.setup.models

    @property
    def tuned(self) -> Arm:
        """The tuned arm of the verdict: it decodes as dev chose."""
        arm = self.inputs.tuned
        return next(iter(decodings.candidates(arm, self.data.task, [chosen_decoding(self.run)])), arm)
