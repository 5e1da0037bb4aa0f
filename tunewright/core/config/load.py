"""Reads a Config from YAML, keyword values and ``key=value`` overrides, and writes it back to YAML."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tunewright.core import locations
from tunewright.core.config import adapter_kinds, method_settings, sweeps
from tunewright.core.config.explain import explain, fields
from tunewright.core.config.schema import PATH, TEMPLATES, Config, DistillConfig, RewardConfig
from tunewright.core.errors import ConfigError
from tunewright.core.yaml12 import parse_yaml, read_yaml

MODELS = ((Config, "model"), (DistillConfig, "teacher"))  # settings that name a model


def load(path: str | Path | None, overrides: list[str] | tuple[str, ...] = (), **given: Any) -> Config:
    """A Config from an optional YAML file, then ``given`` values (``train__lr=1e-4``), then ``key=value`` overrides.

    Relative paths in a file are relative to that file. Raises ConfigError with the ``file:line`` of the key.
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
            file = Path(item).exists()
            raise ConfigError(
                "CONFIG_SYNTAX",
                f"`{item}` is not a key=value override{', but a file' if file else ''}.",
                where="command line",
                fix="for several files, quote the pattern: 'data/*.jsonl'."
                if file
                else "write it as key=value, e.g. train.lr=1e-4.",
            )
        value, _ = parse_yaml(text, "command line")
        _set(data, key.strip(), value)
        places[key.strip()] = "command line"
    return validate(data, places)


def validate(data: dict[str, Any], places: dict[str, str] | None = None) -> Config:
    """A validated Config; ``places`` maps dotted keys to ``file:line`` for the messages. Raises ConfigError."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise explain(error, places or {}) from None

    _require_consistent(config, {*(data.get("adapter") or {})}, places or {})
    for recipe in sweeps.checked_recipes(config, (places or {}).get("sweep.grid", "sweep.grid"))[1:]:
        adapter = {*(data.get("adapter") or {}), *(k.partition(".")[2] for k in recipe if k.startswith("adapter."))}
        swept = dict.fromkeys((key for key, *_ in fields()), f"sweep.grid {', '.join(recipe)}")
        _require_consistent(sweeps.with_settings(config, recipe), adapter, swept)
    return config


def _require_consistent(config: Config, adapter: set[str], places: dict[str, str]) -> None:
    """Raises CONFIG_CONFLICT for settings that contradict each other. ``adapter``: the settings of adapter that are
    given."""

    def conflict(key: str, message: str, fix: str) -> ConfigError:
        return ConfigError("CONFIG_CONFLICT", message, where=places.get(key, key), fix=fix)

    if config.train.steps != "auto" and config.train.epochs != "auto":
        raise conflict("train.steps", "train.steps and train.epochs are both set.", "keep one of them.")
    method_settings.check(config, conflict)
    if config.adapter.kind == "none" and config.quantise != "none":
        message = f"quantise={config.quantise}, but adapter.kind is none: such weights cannot be trained."
        raise conflict("quantise", message, "choose lora, rslora or dora.")
    if config.adapter.kind == "none" and adapter - {"kind"}:
        extra = ", ".join(sorted(f"adapter.{name}" for name in adapter - {"kind"}))
        raise conflict(
            "adapter.kind",
            f"adapter.kind is none, so {extra} would have no effect.",
            f"remove {extra}, or choose lora, rslora or dora.",
        )
    if config.adapter.kind != "none":
        adapter_kinds.check(config, adapter, conflict)
    if config.split.dev + config.split.test >= 0.9:
        held_out = config.split.dev + config.split.test
        raise conflict(
            "split.dev",
            f"split.dev + split.test = {held_out:g} leaves almost no training rows.",
            "keep their sum under 0.9.",
        )
    if bool(config.prove.remote.url) != bool(config.prove.remote.model):
        raise conflict(
            "prove.remote.url", "prove.remote.url and prove.remote.model must be set together.", "set both, or neither."
        )
    _check_encoding(config.data.encoding, places.get("data.encoding", "data.encoding"))
    if config.data.instruction is not None and config.data.format == "text":
        raise conflict(
            "data.instruction",
            "data.instruction has no effect on raw text.",
            "remove data.instruction, or choose another data.format.",
        )


def _check_encoding(name: str, where: str) -> None:
    """Raises CONFIG_RANGE unless "auto", or the name of a codec of text in Python."""
    try:
        "a".encode("utf-8" if name == "auto" else name)
    except (LookupError, ValueError):
        message = f"data.encoding is {name!r}, which Python does not know as an encoding of text."
        fix = "set it to auto, or to a name such as utf-8, utf-16, cp1252, latin-1, shift_jis or gb18030."
        raise ConfigError("CONFIG_RANGE", message, where=where, fix=fix) from None


def to_yaml(config: Config) -> str:
    """All settings, including defaults, as YAML for `load`: a version with other defaults will read the same Config."""
    from ruamel.yaml import YAML

    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    data = config.model_dump()
    for name in config.adapter.unread:  # `load` rejects settings that have no effect
        data["adapter"].pop(name, None)
    yaml.dump(data, out)
    return out.getvalue()


def absolute(config: Config) -> Config:
    """The config with absolute paths, so that a run can be resumed from any working directory."""
    data = config.model_dump()
    _anchor_paths(data, Path.cwd())
    # A model may also be a Hub id or the name of the embedded model.
    embedded = Config.model_fields["model"].default
    for section, key in ((data, "model"), (data["distill"], "teacher")):
        if (name := section[key]) not in ("", embedded) and Path(name).exists():
            section[key] = str(Path(name).resolve())
    return Config.model_validate(data)


def _anchor_paths(data: dict[str, Any], base: Path, model: type[BaseModel] = Config) -> None:
    """Resolve paths relative to ``base``, in place; URLs stay as they are. A model, or a teacher, counts as a path only
    if it starts with a dot."""
    for name, field in model.model_fields.items():
        value = data.get(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            if isinstance(value, dict):
                _anchor_paths(value, base, field.annotation)
        elif name == "template" and value in TEMPLATES:
            pass
        elif model is RewardConfig and isinstance(value, dict):
            _anchor_grader(value, base)
        elif _is_path(field) or ((model, name) in MODELS and str(value).startswith(".")):
            if isinstance(value, str) and value:
                data[name] = locations.anchored(value, base)
            elif isinstance(value, list):
                data[name] = [locations.anchored(v, base) if isinstance(v, str) and v else v for v in value]


def _anchor_grader(grader: dict[str, object], base: Path) -> None:
    """The folders of reward models, also among the parts of a grader."""
    if grader.get("type") == "reward_model" and isinstance(name := grader.get("model"), str) and name:
        grader["model"] = locations.anchored(name, base)
    parts = grader.get("graders")
    for part in parts.values() if isinstance(parts, dict) else ():
        if isinstance(part, dict):
            _anchor_grader(part, base)


def _is_path(field: FieldInfo) -> bool:
    """Whether a field is a path, or a list of paths, or may be one."""

    def marks(kind: object) -> list[object]:
        return [*getattr(kind, "__metadata__", ()), *(m for inner in get_args(kind) for m in marks(inner))]

    return PATH in (*field.metadata, *marks(field.annotation))


def flat(value: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted key -> value of nested mappings."""
    leaves: dict[str, object] = {}
    for key, inner in value.items():
        leaves |= flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return leaves


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError("CONFIG_CONFLICT", f"{parent} is a value, not a section.", where=dotted)
        data = inner
    data[last] = value
