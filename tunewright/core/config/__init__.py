"""Every knob, once: what the user asked (Config) and what the run will do (Plan). Both are frozen.

A field's type, range, default and meaning are declared here and nowhere else: the YAML reader, the command line's
``key=value``, `docs/config.md` and validation all read them from these classes. ``auto`` is resolved in `plan.py`.
"""

from __future__ import annotations

import datetime
import difflib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tunewright.core.errors import ConfigError
from tunewright.core.yaml12 import parse_yaml, read_yaml

Auto = Literal["auto"]
Recompute = Literal["none", "attention", "layers"]
# Settings that are files or folders, by section and key.
PATHS = (
    ("data", "train"),
    ("data", "dev"),
    ("data", "test"),
    ("prove", "documents"),
    ("prove", "embedder"),
    ("forget", "keep"),
    ("", "template"),
)

Fraction = Annotated[float, Field(ge=0.0, lt=0.9)]
Positive = Annotated[int, Field(ge=1, le=10_000_000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(_Frozen):
    train: str = Field("", description="JSONL, CSV or Parquet file, or a folder of .txt/.md documents.")
    dev: str | None = Field(None, description="Your own dev rows (choose with them); taken as they are.")
    test: str | None = Field(None, description="Your own test rows (claim with them); taken as they are.")
    form: Literal["auto", "chat", "completion", "instruction", "label", "text"] = Field(
        "auto", description="Form of the rows; auto detects it and says so."
    )
    instruction: str | None = Field(
        None, description="System message put before rows that have none; for text/label rows, what to do with the text."
    )
    columns: dict[str, str] = Field({}, description="Standard field -> your field, e.g. {prompt: question, completion: answer}.")
    too_long: Literal["error", "drop"] = Field(
        "error", description="Rows over the sequence limit: refuse the run, or leave them out and say which."
    )


class SplitConfig(_Frozen):
    dev: Fraction = Field(0.1, description="Share of rows held out to choose with.")
    test: Fraction = Field(0.2, description="Share of rows held out to claim with.")
    near_duplicate: Annotated[float, Field(ge=0.5, le=1.0)] = Field(
        0.8, description="Jaccard similarity of character 5-grams from which two prompts count as one."
    )


class AdapterConfig(_Frozen):
    kind: Literal["lora", "rslora", "dora", "none"] = Field("lora", description="none trains all weights.")
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(16, description="Rank of the update.")
    alpha: Annotated[float, Field(gt=0, le=100_000)] = Field(
        32.0, description="Scale numerator: lora and dora scale by alpha/rank, rslora by alpha/sqrt(rank)."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout on the adapter's input.")
    targets: list[str] = Field(["all-linear"], description="all-linear, or name patterns such as q_proj or 'layers.*.mlp.*'.")


class TrainConfig(_Frozen):
    epochs: Auto | Annotated[float, Field(gt=0, le=1000)] = Field("auto", description="Passes over the training rows.")
    steps: Auto | Positive = Field("auto", description="Optimizer steps; instead of epochs.")
    batch: Auto | Annotated[int, Field(ge=1, le=65536)] = Field("auto", description="Rows in one optimizer step.")
    capacity: Auto | Annotated[int, Field(ge=16)] = Field(
        "auto", description="Tokens in one forward pass; a step is cut into as many passes as it needs."
    )
    max_length: Auto | Annotated[int, Field(ge=8)] = Field(
        "auto", description="Longest row in tokens; documents are cut into pieces of this length."
    )
    lr: Auto | Annotated[float, Field(gt=0, le=1)] = Field("auto", description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Decay after the warm-up.")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="Share of the steps spent warming up.")
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="AdamW decay on matrices.")
    clip: Annotated[float, Field(gt=0)] = Field(1.0, description="Largest gradient norm.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Dtype of the forward and backward pass; trained weights are always float32."
    )
    layout: Literal["auto", "shared", "packed", "padded"] = Field(
        "auto", description="How rows share a forward pass: common beginnings computed once, one after another, or padded."
    )
    recompute: Auto | Recompute = Field(
        "auto", description="What the backward pass computes again to save memory: attention weights, or whole layers."
    )
    eval_every: Auto | Positive = Field("auto", description="Steps between dev losses.")
    patience: Annotated[int, Field(ge=0)] = Field(
        3, description="Stop after this many dev losses without a new best; 0 never stops early."
    )


class CheckpointConfig(_Frozen):
    every: Auto | Positive = Field("auto", description="Steps between checkpoints.")
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(2, description="Newest checkpoints to keep.")


class RemoteConfig(_Frozen):
    url: str = Field(
        "", description="Base address of an OpenAI-compatible endpoint to compare with, e.g. http://host/v1; empty: none."
    )
    model: str = Field("", description="The model to ask for there.")
    key: str = Field("OPENAI_API_KEY", description="Environment variable that holds its key.")
    together: Annotated[int, Field(ge=1, le=256)] = Field(8, description="Requests under way at once.")


class ProveConfig(_Frozen):
    metric: Literal["auto", "accuracy", "exact_match", "field_f1", "chrf", "bits_per_byte"] = Field(
        "auto", description="The metric the verdict is about; auto follows the task."
    )
    evidence: Literal["plain", "standard", "full"] = Field(
        "standard",
        description="plain: prompt, few-shot, constant answer, tuned. standard: all arms, calibration, forgetting. full: also probes, cost, half the data.",
    )
    shots: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [4, 8], description="Training rows shown to the few-shot arms; dev chooses among these numbers. [] leaves them out."
    )
    wordings: list[str] = Field([], description="Further instructions for the zero-shot arm to try on dev.")
    documents: str | None = Field(None, description="Folder of .txt/.md documents for the retrieval arms.")
    embedder: str | None = Field(
        None, description="Folder of a local encoder (BERT-like, safetensors) to find rows and passages with, instead of BM25."
    )
    max_rows: Annotated[int, Field(ge=1)] | None = Field(None, description="Judge at most this many test rows.")
    dev_rows: Annotated[int, Field(ge=1)] = Field(40, description="Choose on at most this many dev rows.")
    max_new_tokens: Auto | Positive = Field("auto", description="Longest answer of every arm, in tokens.")
    batch: Auto | Annotated[int, Field(ge=1, le=4096)] = Field(
        "auto", description="Rows decoded together; auto follows the free memory."
    )
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="Smallest difference that is of use to you, in units of the metric (0.02 = 2 points)."
    )
    alpha: Annotated[float, Field(gt=0, le=0.5)] = Field(0.05, description="1 - confidence of the intervals.")
    handover: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="Labels: share of right answers wanted where the model answers itself; the rest goes to a person."
    )
    internalise: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Training prompts on which to learn the rows' instruction into weights, the base being the teacher; 0: not.",
    )
    crossfit: bool = Field(
        False, description="Train on halves of the rows to find answers that look wrong to a model that has not seen them."
    )
    cleaning: bool = Field(False, description="Also train without the flagged rows, and compare.")
    remote: RemoteConfig = RemoteConfig()


class ForgetConfig(_Frozen):
    keep: str | None = Field(None, description="Rows that must still work, in any form of data.train; asked before and after.")
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.03, description="Loss on probes that you would not mind (0.03 = 3 points)."
    )
    scales: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.25, 0.5, 0.75], description="Shares of the trained update to try on dev, besides the whole."
    )
    mitigate: bool = Field(
        False, description="Also train with a lower rate, and with replay of the base's own words; compare on dev."
    )
    choose: bool = Field(False, description="Keep the share that the report's rule chooses, instead of the whole update.")


class CostConfig(_Frozen):
    requests: Annotated[int, Field(ge=4, le=10_000)] = Field(
        8, description="Test prompts sent one by one to every arm that is timed."
    )
    together: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="Prompts answered at once in the second timing.")
    per_hour: Annotated[float, Field(ge=0)] = Field(0.0, description="Price of this machine for an hour; 0 leaves money out.")


class ExportConfig(_Frozen):
    merged: bool = Field(True, description="Also write the merged model folder.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Dtype of the merged weights; auto is float32 up to 2 GB, the base's own above."
    )


class Config(_Frozen):
    """A run, as asked."""

    model: str = Field("smollm2-135m", description="Model folder, Hub id[@revision], .gguf file, or smollm2-135m.")
    template: str | None = Field(None, description="A Jinja chat template file, for models without one.")
    date: Auto | Annotated[str, AfterValidator(lambda day: datetime.date.fromisoformat(day).isoformat())] = Field(
        "auto",
        description="The day that a chat template which writes today's date is given; auto is the day on which the run begins.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Fixes row order, adapter start and dropout.")
    threads: Auto | Annotated[int, Field(ge=1, le=1024)] = Field("auto", description="CPU threads; auto is one per core.")
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    adapter: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    prove: ProveConfig = ProveConfig()
    forget: ForgetConfig = ForgetConfig()
    cost: CostConfig = CostConfig()
    export: ExportConfig = ExportConfig()


class Estimate(_Frozen):
    """What a few calibration passes on this machine predict. A forecast, not a promise."""

    tokens_per_second: float
    train_seconds: float
    peak_gb: float
    reason: str


class Plan(_Frozen):
    """Every number of a run, fixed before training; ``reasons`` says where each came from."""

    rows: int
    supervised_tokens: int
    tokens: int
    steps: int
    epochs: float
    batch: int
    capacity: int
    max_length: int
    layout: Literal["shared", "packed", "padded"]
    kernels: Literal["lean", "transformers"]
    recompute: Recompute
    dtype: Literal["float32", "bfloat16"]
    lr: float
    schedule: Literal["cosine", "linear", "constant"]
    warmup_steps: int
    weight_decay: float
    clip: float
    eval_every: int
    patience: int
    checkpoint_every: int
    checkpoint_keep: int
    adapter: AdapterConfig
    seed: int
    threads: int
    estimate: Estimate | None = None
    reasons: dict[str, str]


def load(path: str | Path | None, overrides: list[str] | tuple[str, ...] = (), **given: Any) -> Config:
    """Config from a YAML file (or nothing), then dotted ``given`` values, then ``key=value`` overrides.

    Relative data paths in a file are relative to that file. Raises ConfigError with ``file:line`` of the key.
    """
    data: dict[str, Any] = {}
    places: dict[str, str] = {}
    if path is not None:
        data, places = read_yaml(Path(path))
        _anchor_paths(data, Path(path).parent)
    for key, value in given.items():
        if value is not None:
            _set(data, key.replace("__", "."), value)
    for item in overrides:
        key, eq, text = item.partition("=")
        if not eq or not key.strip():
            raise ConfigError(
                "CONFIG_SYNTAX",
                f"`{item}` is not an override.",
                where="command line",
                mend="write key=value, e.g. train.lr=1e-4.",
            )
        value, _ = parse_yaml(text, "command line")
        _set(data, key.strip(), value)
        places[key.strip()] = "command line"
    return validate(data, places)


def validate(data: dict[str, Any], places: dict[str, str] | None = None) -> Config:
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise _explain(error, places or {}) from None

    def conflict(key: str, told: str, mend: str) -> ConfigError:
        return ConfigError("CONFIG_CONFLICT", told, where=(places or {}).get(key, key), mend=mend)

    if config.train.steps != "auto" and config.train.epochs != "auto":
        raise conflict("train.steps", "train.steps and train.epochs are both set.", "keep one of them.")
    if config.adapter.kind == "none" and "adapter" in data and set(data["adapter"]) - {"kind"}:
        extra = ", ".join(sorted(f"adapter.{k}" for k in set(data["adapter"]) - {"kind"}))
        raise conflict(
            "adapter.kind",
            f"adapter.kind is none, so nothing would read {extra}.",
            f"remove {extra}, or choose lora, rslora or dora.",
        )
    if config.split.dev + config.split.test >= 0.9:
        held = config.split.dev + config.split.test
        raise conflict(
            "split.dev", f"split.dev + split.test = {held:g} leaves almost nothing to train on.", "keep their sum under 0.9."
        )
    if bool(config.prove.remote.url) != bool(config.prove.remote.model):
        raise conflict(
            "prove.remote.url", "prove.remote.url and prove.remote.model are needed together.", "set both, or neither."
        )
    if config.data.instruction is not None and config.data.form == "text":
        raise conflict(
            "data.instruction",
            "data.instruction has no meaning for raw text.",
            "remove data.instruction, or use another data.form.",
        )
    return config


def to_yaml(config: Config) -> str:
    """Every setting, as YAML that `load` reads back: a later version's defaults change nothing in it."""
    from ruamel.yaml import YAML

    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    data = config.model_dump()
    if config.adapter.kind == "none":  # its other settings would be read by nothing, and `load` says so
        data["adapter"] = {"kind": "none"}
    yaml.dump(data, out)
    return out.getvalue()


def fields(model: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(dotted key, type, default, meaning) of every setting, in the order of declaration."""
    rows: list[tuple[str, str, str, str]] = []
    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            rows += fields(info.annotation, f"{key}.")
        else:
            rows.append((key, _allowed(info), str(info.default), info.description or ""))
    return rows


def absolute(config: Config) -> Config:
    """The config with its files named from the root: a run is continued from anywhere."""
    data = config.model_dump()
    _anchor_paths(data, Path.cwd())
    # A model may also be a Hub id, or the embedded one.
    if (path := Path(config.model)).exists() and config.model != Config.model_fields["model"].default:
        data["model"] = str(path.resolve())
    return Config.model_validate(data)


def _anchor_paths(data: dict[str, Any], base: Path) -> None:
    """Paths relative to ``base``, in place. A model is one only where it says so by a dot."""
    for section, key in PATHS:
        inner = data.get(section) if section else data
        if isinstance(inner, dict) and isinstance(inner.get(key), str) and inner[key]:
            inner[key] = str(base / inner[key])
    model = data.get("model")
    if isinstance(model, str) and model.startswith((".", "..")):
        data["model"] = str(base / model)


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError("CONFIG_CONFLICT", f"{parent} is a value, not a section.", where=dotted)
        data = inner
    data[last] = value


def _allowed(info: Any) -> str:
    """A field's type and range in words, e.g. ``auto or number > 0, <= 1``."""

    def words(kind: Any, extra: list[Any]) -> str:
        args = get_args(kind)
        if getattr(kind, "__metadata__", None):
            limits = [m for field in kind.__metadata__ for m in getattr(field, "metadata", [field])]
            return words(args[0], limits)
        origin = getattr(kind, "__origin__", None)
        if origin is Literal:
            return " | ".join(str(a) for a in args)
        if args and origin not in (dict, list):
            return " or ".join(words(a, []) for a in args)
        plain = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "nothing"}
        if origin is list:
            return f"list of: {words(args[0], [])}"
        name = plain.get(kind) or ("mapping" if origin is dict else str(kind))
        signs = {"Ge": ">=", "Gt": ">", "Le": "<=", "Lt": "<"}
        bounds = [f"{sign} {getattr(m, name.lower())}" for m in extra for name, sign in signs.items() if type(m).__name__ == name]
        return " ".join([name, ", ".join(bounds)]).strip()

    return words(info.annotation, list(info.metadata))


# What other trainers call our settings.
ELSEWHERE = {
    "learning_rate": "train.lr", "num_epochs": "train.epochs", "num_train_epochs": "train.epochs", "max_steps": "train.steps",
    "batch_size": "train.batch", "per_device_train_batch_size": "train.batch", "micro_batch_size": "train.capacity",
    "gradient_accumulation_steps": "train.batch", "gradient_checkpointing": "train.recompute", "max_grad_norm": "train.clip",
    "max_seq_length": "train.max_length", "sequence_len": "train.max_length", "cutoff_len": "train.max_length",
    "lr_scheduler": "train.schedule", "lr_scheduler_type": "train.schedule", "warmup_ratio": "train.warmup", "warmup_steps": "train.warmup",
    "packing": "train.layout", "sample_packing": "train.layout", "bf16": "train.dtype", "fp16": "train.dtype",
    "lora_r": "adapter.rank", "r": "adapter.rank", "lora_alpha": "adapter.alpha", "lora_dropout": "adapter.dropout",
    "lora_target": "adapter.targets", "target_modules": "adapter.targets", "lora_target_modules": "adapter.targets",
    "model_name_or_path": "model", "base_model": "model", "dataset": "data.train", "datasets": "data.train",
    "system_prompt": "data.instruction", "val_set_size": "split.dev", "output_dir": "--runs",
}  # fmt: skip


def _instead(key: str, known: Iterable[str], sections: set[str]) -> str:
    """The setting that an unknown key probably means, by its name elsewhere, its spelling or its last part; else what there is."""
    within, _, last = key.rpartition(".")
    if near := difflib.get_close_matches(last, ELSEWHERE, n=1, cutoff=0.85):
        return f"did you mean {ELSEWHERE[near[0]]}?"
    start = f"{within}." if within in sections else ""
    inside = {k.removeprefix(start): k for k in (*known, *sections) if k.startswith(start)}
    for among in (inside, {k.rsplit(".", 1)[-1]: k for k in known}):
        if near := difflib.get_close_matches(last, among, n=1, cutoff=0.7):
            return f"did you mean {among[near[0]]}?"
    there = sorted({k.removeprefix(start).split(".")[0] for k in known if k.startswith(start)})
    return f"{within if start else 'a config'} has: {', '.join(there)}."


def _explain(error: ValidationError, places: dict[str, str]) -> ConfigError:
    """One line for the first mistake; unknown keys before wrong values, because they often cause them."""
    known = {key: (kind, meaning) for key, kind, _, meaning in fields()}
    sections = {key.rsplit(".", 1)[0] for key in known if "." in key}
    found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = found[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        mend = _instead(key, known, sections)
        return ConfigError("CONFIG_UNKNOWN_KEY", f"there is no setting `{key}`.", where=places.get(key, key), mend=mend)
    while key and key not in known and key not in sections and "." in key:
        key = key.rsplit(".", 1)[0]
    value = first.get("input")
    if key in sections:
        return ConfigError(
            "CONFIG_RANGE",
            f"{key} is a section with keys of its own, not {value!r}.",
            where=places.get(key, key),
            mend=f"`{next(k for k in known if k.startswith(key + '.'))}` is one of them.",
        )
    kind, _ = known[key]
    mend = f"write it in quotes: '{key}=\"...\"'." if kind.startswith("text") else f"set {key} within that range."
    return ConfigError("CONFIG_RANGE", f"{key} is {value!r}; allowed: {kind}.", where=places.get(key, key), mend=mend)
