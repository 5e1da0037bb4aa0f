"""The request for a fine-tuning job, and the config of the run that it becomes."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from tunewright.core import config as configuration
from tunewright.core.config import DISTILLED, EMBEDDING, HEADS, PREFERENCE, REWARDED, Config
from tunewright.server.shapes import JsonObject

Auto = Literal["auto"]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]
# Settings that a request may set in `tunewright`: these, and all of these sections but those that name files. The
# others contact hosts, or decide what the server itself decides.
SECTIONS = ("train", "adapter", "checkpoint", "forget", "experiments", "split", "cost")
OF_FILES = ("forget.regression_rows", "adapter.start")
SETTINGS = (
    *("data.format", "data.instruction", "data.columns", "data.label_names", "data.control", "data.empty"),
    *("data.turns", "data.invalid", "data.duplicates", "data.contradictions", "data.leaks", "data.labels"),
    *("data.unseen_labels", "data.too_long", "prove.metric", "prove.list_order", "prove.number_tolerance"),
    *("prove.evidence", "prove.few_shot", "prove.prompts", "prove.max_test_rows", "prove.max_dev_rows"),
    *("prove.max_new_tokens", "prove.decoding", "prove.margin", "prove.significance", "prove.target_accuracy"),
)


@functools.cache
def allowed_settings() -> frozenset[str]:
    """Whole names of settings, one by one: of a section's name, or of a name with something around it, files could be
    set."""
    of_sections = {key for key, *_ in configuration.fields() if key.partition(".")[0] in SECTIONS}
    return frozenset(of_sections.difference(OF_FILES).union(SETTINGS))


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hyperparameters(Strict):
    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=100)] = "auto"


class Supervised(Strict):
    hyperparameters: Hyperparameters = Hyperparameters()


class DpoHyperparameters(Hyperparameters):
    beta: Auto | Annotated[float, Field(gt=0, le=2)] = "auto"


class Dpo(Strict):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class Method(Strict):
    """``reinforcement`` is read so that it can be refused by name."""

    type: Literal["supervised", "dpo", "reinforcement"] = "supervised"
    supervised: Supervised = Supervised()
    dpo: Dpo | None = None
    reinforcement: dict[str, JsonValue] | None = None


class JobRequest(Strict):
    """``tunewright``: further settings of a run, by their dotted names."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    training_file: Annotated[str, Field(min_length=1, max_length=64)]
    validation_file: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    suffix: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    integrations: list[JsonValue] | None = None
    tunewright: dict[str, JsonValue] | None = None

    @property
    def chosen(self) -> Hyperparameters:
        """Those of the method, or, in old requests, of the job."""
        if self.method is not None:
            of_dpo = self.method.dpo or Dpo()
            return (of_dpo if self.method.type == "dpo" else self.method.supervised).hyperparameters
        return self.hyperparameters or Hyperparameters()

    def digest(self, tenant: str) -> str:
        text = json.dumps([tenant, self.model_dump(mode="json")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def refused(request: JobRequest) -> tuple[str, str] | None:
    """The parameter that cannot be met, and why."""
    if method := request.method:
        if method.type == "reinforcement":
            return "method.type", "'reinforcement' is not supported; use 'supervised' or 'dpo'."
        if request.hyperparameters is not None:
            return "hyperparameters", "they are given twice; give those of the method."
        if method.type == "supervised" and method.dpo is not None:
            return "method.dpo", "the method's type is supervised."
        if method.type == "dpo" and "supervised" in method.model_fields_set:
            return "method.supervised", "the method's type is dpo."
    if request.integrations:
        return "integrations", "integrations are not supported: the curves are in the job's events and result file."
    for key, value in (request.tunewright or {}).items():
        if key == "train.method" and value not in PREFERENCE and request.method and request.method.type == "dpo":
            return "tunewright.train.method", "the method's type is dpo."
        if key not in allowed_settings():
            return f"tunewright.{key[:80]}", "this setting cannot be set by a request."
        if key == "train.method" and value in (*HEADS, *EMBEDDING):
            what = "a head" if value in HEADS else "vectors"
            return "tunewright.train.method", f"{value} trains {what}, and the server answers with models that write."
        if key == "train.method" and value in (*DISTILLED, *REWARDED):
            return (
                "tunewright.train.method",
                f"{value} needs settings that a request cannot have.",
            )
    return None


def config_of(request: JobRequest, model: str, training: Path, validation: Path | None) -> Config:
    """``model``: where the base is. Raises ConfigError."""
    chosen = request.chosen
    words: JsonObject = {"data.train": str(training), "export.to": ["adapter"], "seed": request.seed or 0}
    if validation is not None:
        words["data.dev"] = str(validation)
    if chosen.n_epochs != "auto":
        words["train.epochs"] = chosen.n_epochs
    if chosen.batch_size != "auto":
        words["train.batch_size"] = chosen.batch_size
    if chosen.learning_rate_multiplier != "auto":
        words["train.lr_multiplier"] = chosen.learning_rate_multiplier
    if isinstance(chosen, DpoHyperparameters):
        words |= {"train.method": "dpo", "train.beta": chosen.beta}
    settings = {**words, **(request.tunewright or {})}
    return configuration.load(None, [f"{key}={json.dumps(value)}" for key, value in settings.items()], model=model)
