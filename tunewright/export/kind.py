"""The definition of an export (one row of EXPORTS), and the values that its functions receive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunewright.core.config import Config, Plan
from tunewright.core.run_folder import Run
from tunewright.model.facts import Facts
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
class Export:
    """One form in which a trained model can be exported.

    kind         its name in export.json, in messages and on the command line of `verify`
    library      library_name of the model card
    loaded_with  what a fresh process loads it with, in words
    tolerance    largest logit difference from the trained model that passes, by stored dtype
    folder       where it is written
    wanted       whether the run's config asks for it
    dtype        the dtype in which its weights are stored
    write        writes all of it or nothing; may change the module permanently, so the order of EXPORTS matters
    reload       loads it in float32, as its users would, in a process that knows nothing about the run
    snippet      (path, path of the base) -> lines of Python that load it, for the card
    """

    kind: str
    library: str
    loaded_with: str
    tolerance: Mapping[Dtype, float]
    folder: Callable[[Run], Path]
    wanted: Callable[[Config, Plan], bool]
    dtype: Callable[[Config, Facts], Dtype]
    write: Callable[[TrainedRun, PreTrainedModel, Path, Dtype], None]
    reload: Callable[[Path, Base], LanguageModel]
    snippet: Callable[[str, str], list[str]]
