"""A trained reward model as a grader: a run of `train.method=reward_model`, or a folder that transformers'
AutoModelForSequenceClassification loads.

Its score of a conversation may be any number, and becomes a reward from 0 to 1. Here is no torch: whoever opens a run
sets the function that computes scores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.chosen import chosen_scale
from tunewright.core.config import RANKERS, Plan
from tunewright.core.errors import ConfigError, ModelError
from tunewright.core.records import ANY_TRAINING, Receipt
from tunewright.core.run_folder import Run
from tunewright.data.graders.grade import WHERE, Answered, Item, Output, Unscored
from tunewright.data.graders.score_model import range_of, text_of
from tunewright.data.messages import Chat, Json, Message

READ = (".json", ".jinja", ".safetensors", ".model", ".txt")  # of a folder: what scores depend on
NOTE = "tunewright.json"  # and what they do not
FIX = "name the folder of a finished run of train.method=reward_model, or its merged export."


@dataclass(frozen=True)
class RewardModel:
    """``sha256``: of all that scores depend on. ``range``: the scores that become 0 and 1; None: rewards are the
    sigmoid of scores. ``scores``: computes them, or says why there is none. ``known``: by the repr of an answer and
    its prompt."""

    sha256: str
    range: tuple[float, float] | None = None
    path: Path = field(default=Path(), repr=False, compare=False)
    gigabytes: float = field(default=0.0, repr=False, compare=False)
    scores: Scores | None = field(default=None, repr=False, compare=False)
    known: Mapping[str, float | str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset()

    def grade(self, item: Item, output: Output) -> float:
        ready = self if repr(output) in self.known else self.prepared([(item, output)])
        score = ready.known[repr(output)]
        if isinstance(score, str) or not math.isfinite(score):
            raise Unscored(score if isinstance(score, str) else f"the reward model's score is {score}")
        if self.range is None:
            return (1 + math.tanh(score / 2)) / 2
        low, high = self.range
        return min(1.0, max(0.0, (score - low) / (high - low)))

    def prepared(self, answers: Sequence[Answered]) -> RewardModel:
        """The same, which knows the scores of these answers: they are computed together."""
        assert self.scores is not None, "set by whoever opens a run"
        outputs = {repr(output): output for _, output in answers}
        scores = self.scores(self, [_conversation(output) for output in outputs.values()])
        return replace(self, known={**self.known, **dict(zip(outputs, scores, strict=True))})


Scores = Callable[[RewardModel, Sequence[Chat]], list[float | str]]


def _conversation(output: Output) -> Chat:
    before = tuple(replace(message, trained=False) for message in output.prompt.messages)
    return Chat((*before, Message("assistant", output.text)), WHERE, output.prompt.tools)


def of(spec: Mapping[str, Json], where: str) -> RewardModel:
    """Loads nothing. Raises CONFIG_RANGE, CONFIG_NOT_FOUND, CONFIG_CONFLICT, RUN_INCOMPLETE, MODEL_UNSUPPORTED."""
    path = Path(text_of(spec, "model", where)).expanduser().absolute()
    low_high = range_of(spec["range"], where) if "range" in spec else None
    read = _of_run(Run(path), where) if Run(path).config.is_file() else _of_folder(path, where)
    return RewardModel(read[0], low_high, path, read[1])


def _of_run(run: Run, where: str) -> tuple[str, float]:
    """Hash and memory of a run's model, from its records."""
    run_folder.require(run, run.plan, "run")
    plan = records.read(run.plan, Plan)
    if plan.method not in RANKERS:
        message = f"{run.path} is a run of train.method={plan.method}, whose model gives answers no score."
        raise ConfigError("CONFIG_CONFLICT", message, where=where, fix=FIX)
    run_folder.require(run, run.verdict, "run")
    receipt, trained = records.read(run.receipt, Receipt), records.read(run.training, ANY_TRAINING)
    facts = (trained.weights_sha256, receipt.hashes["model"], receipt.hashes["template"], chosen_scale(run), plan.dtype)
    dense = (2 if plan.dtype == "bfloat16" else 4) * receipt.model.parameters
    return hashlib.sha256(repr(facts).encode()).hexdigest(), 1e-9 * (receipt.model.packed_bytes or dense)


def _of_folder(path: Path, where: str) -> tuple[str, float]:
    """Hash of a model folder, and its memory in float32."""
    if not (path / "config.json").is_file():
        what = "is an adapter" if (path / "adapter_config.json").is_file() else "is neither a run nor a model"
        raise ConfigError("CONFIG_NOT_FOUND", f"{path} {what}.", where=where, fix=FIX)
    try:
        config = run_folder.read_json(path / "config.json")
        name, labels = config["architectures"][0], len(config.get("id2label", "01"))
        dtype = config.get("dtype", config.get("torch_dtype"))
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        name, labels, dtype = "unknown", 0, None
    if not str(name).endswith("ForSequenceClassification") or labels != 1:
        message = f"{path} has a model of the class {name}, not one for sequence classification with a single label."
        raise ModelError("MODEL_UNSUPPORTED", message, where=where, fix=FIX)
    files = sorted(file for file in path.iterdir() if file.suffix in READ and file.name != NOTE)
    hashed = repr([(file.name, run_folder.sha256(file)) for file in files])
    size = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    wider = 2 if dtype in ("bfloat16", "float16") else 1
    return hashlib.sha256(hashed.encode()).hexdigest(), 1e-9 * wider * size
