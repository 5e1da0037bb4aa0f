"""The definition of an export (one row of EXPORTS), and the values that its functions receive. No torch at import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunewright.core.config import Config, Plan
from tunewright.core.run_folder import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunewright.model.facts import Facts
    from tunewright.model.language_model import LanguageModel
    from tunewright.tokens.template import Template

Dtype = Literal["float32", "bfloat16", "float16"]
# Largest allowed difference of a logit, by stored dtype: a different order of summation in float32 changes a logit by
# about 1e-5, rounding to 16 bits by about 0.1.
TOLERANCE: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.5}


@dataclass(frozen=True)
class TrainedRun:
    """A trained run, and everything that its model is built from."""

    run: Run
    config: Config
    plan: Plan
    facts: Facts
    template: Template


@dataclass(frozen=True)
class Base:
    """The base model's folder and hash, for exports that contain only the trained weights."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Reloaded:
    """What users of an export work with."""

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase


def supported(facts: Facts) -> None:
    """For an export that can be written for every model."""


@dataclass(frozen=True)
class Export:
    """One form in which a trained model can be exported.

    kind         its name: in `export.to`, in export.json and in messages; also the name of its folder in the run
    library      library_name of the model card
    loaded_with  what a fresh process loads it with, in words
    merged       whether it contains merged weights; otherwise only the trained ones, and none if all were trained
    tolerance    largest logit difference from the trained model that passes, by stored dtype
    dtype        the dtype in which its weights are stored
    write        writes it into an empty folder, from a float32 module (merged, if ``merged``) that must stay as it is
    reload       loads it in float32, as its users would, in a process that knows nothing about the run
    snippet      (path, path of the base) -> lines of Python that load it, for the card
    unsupported  why it cannot be written for this model, or None; asked before training
    """

    kind: str
    library: str
    loaded_with: str
    merged: bool
    tolerance: Mapping[Dtype, float]
    dtype: Callable[[Config, Plan], Dtype]
    write: Callable[[TrainedRun, PreTrainedModel, Path, Dtype], None]
    reload: Callable[[Path, Base], Reloaded]
    snippet: Callable[[str, str], list[str]]
    unsupported: Callable[[Facts], str | None] = supported
