"""The definition of an export (one row of EXPORTS), and the values that its functions receive. No torch at import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunewright.core import records
from tunewright.core.chosen import chosen_decoding
from tunewright.core.config import Config, Plan
from tunewright.core.records import ProtocolRecord, Receipt
from tunewright.core.run_folder import Run
from tunewright.core.sampling import DECODINGS, Sampling

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunewright.model.facts import Facts
    from tunewright.model.language_model import LanguageModel
    from tunewright.tokens.template import Template

Dtype = Literal["float32", "bfloat16", "float16"]
LEAST_CONTEXT = 4096  # Ollama's own default, in tokens
# Largest allowed difference of a logit, by stored dtype: a different order of summation in float32 changes a logit by
# about 1e-5, rounding to 16 bits by about 0.1.
TOLERANCE: dict[str, float] = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.5}
# Mean KL divergence (nats) that passes for quantised weights. What a type costs depends on the model and its rows;
# files that are wrong exceed these limits.
QUANTISED: dict[str, float] = {"q8_0": 0.02, "q6_k": 0.1, "q5_k_m": 0.5, "q4_k_m": 0.5}


@dataclass(frozen=True)
class TrainedRun:
    """A run, and everything that its model is built from."""

    run: Run
    config: Config
    plan: Plan
    facts: Facts
    template: Template


@dataclass(frozen=True)
class Base:
    """The base model's folder and hash, for exports that contain only the trained weights. ``packed``: as in
    `Facts`."""

    path: str
    sha256: str
    packed: str


@dataclass(frozen=True)
class Reloaded:
    """What users of an export work with. ``tokenizer``: None if they use the base's. ``encode``: texts -> token ids, if
    ``program`` is another one than transformers. ``has_arguments``: the chat template contains the run's arguments.
    ``embed``: texts -> their vectors, and ``prefixes`` before them, of a model that gives these."""

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase | None
    encode: Callable[[Sequence[str]], list[list[int]]] | None = None
    program: str = "transformers"
    has_arguments: bool = False
    embed: Callable[[Sequence[str], Literal["query", "document"]], Tensor] | None = None
    prefixes: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Place:
    """Where the code of a card finds an export. ``base``: name of the base model; ``nf4``: it is loaded in NF4;
    ``file``: name of the export's folder or file; ``context``: what it is served with, in tokens; ``how``: the way its
    tokens are chosen; ``repo``: its id on the Hub, or None if the code runs in its folder; ``labels``: of its
    head, if it has one; ``embeds``: whether it gives vectors of texts."""

    base: str
    file: str
    context: int
    how: Sampling
    repo: str | None = None
    nf4: bool = False
    labels: Sequence[str] = ()
    embeds: bool = False

    @property
    def llama_cpp(self) -> str:
        """What llama-cpp-python's class needs besides the files."""
        penalised = f", last_n_tokens_size={self.context}" if self.how.repetition_penalty != 1 else ""
        return f"n_ctx={self.context}{penalised}, verbose=False"

    @property
    def folder(self) -> str:
        return self.repo or "."


def served_context(run: Run) -> int:
    """Tokens that fit the longest row of a run with the longest answer, in steps of 1024; no more than the model has,
    and, where it has them, no fewer than `LEAST_CONTEXT`."""
    receipt, protocol = records.read(run.receipt, Receipt), records.read(run.protocol, ProtocolRecord)
    needed = int(max(side.tokens_longest for side in receipt.lengths.values())) + protocol.max_new_tokens
    return min(receipt.model.context, max(LEAST_CONTEXT, -(-needed // 1024) * 1024))


def sampling(run: Run) -> Sampling:
    """How the tuned model's tokens are chosen, as dev chose it."""
    return DECODINGS[chosen_decoding(run)]


def supported(source: TrainedRun) -> None:
    """For an export that can be written for every model."""


@dataclass(frozen=True)
class Export:
    """One form in which a trained model can be exported.

    kind         its name: in `export.to`, in export.json and in messages; also the name of its folder in the run
    library      library_name of the model card
    loaded_with  what a fresh process loads it with, in words
    by_peft      the same for an adapter that PEFT computes; "" if there is no difference
    merged       whether it contains merged weights; otherwise only the trained ones, and none if all were trained
    tolerance    largest difference from the trained model that passes, by stored dtype: of a logit, or the mean KL in
                 nats for the types of QUANTISED
    dtypes       the dtypes in which its weights are stored: one copy and one check for each
    write        writes a copy into its folder, from a float32 module (merged, if ``merged``) that must stay as it is;
                 returns what its users load, which is the folder or a file in it
    reload       loads what ``write`` returned in float32, as its users would, in a process that knows nothing about the
                 run
    snippet      lines of Python that load it as ``model``, for the card
    llama_server  what names it in a command of llama-server, for the card; None if that program does not read it
    unsupported  why it cannot be written for this model, or None; asked before training
    has_head     whether it can contain a head
    stored       what makes of a weight of the module the one that is loaded if it was stored in a dtype, bit for bit;
                 None if that is not known
    """

    kind: str
    library: str
    loaded_with: str
    merged: bool
    tolerance: Mapping[str, float]
    dtypes: Callable[[TrainedRun], Sequence[str]]
    write: Callable[[TrainedRun, PreTrainedModel, Path, str], Path]
    reload: Callable[[Path, Base], Reloaded]
    snippet: Callable[[Place], list[str]]
    llama_server: Callable[[Place], list[str]] | None = None
    unsupported: Callable[[TrainedRun], str | None] = supported
    by_peft: str = ""
    stored: Callable[[TrainedRun, str], Callable[[Tensor], Tensor] | None] | None = None
    has_head: bool = False
