"""The recipes of a sweep: the config's own, and every combination of the values in its grid."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from pydantic import ValidationError

from tunewright.core.config.explain import explain
from tunewright.core.config.schema import Config
from tunewright.core.errors import ConfigError

# What may differ between recipes that are compared by dev loss: not the rows, and not the way they are computed.
SWEPT = (
    *(f"adapter.{name}" for name in ("kind", "rank", "alpha", "dropout", "targets", "loraplus_lr_ratio")),
    *(f"train.{name}" for name in ("epochs", "steps", "batch_size", "lr", "schedule", "warmup", "weight_decay")),
    "train.max_grad_norm",
    "train.patience",
)
MOST = 256  # recipes

Settings = Mapping[str, object]


def recipes(config: Config) -> list[Settings]:
    """The settings of each recipe that differ from the config, in an order that does not depend on that of the grid;
    the first is the config's own."""
    grid = dict(sorted(config.sweep.grid.items()))  # a config that was written and read has another order
    different: dict[str, Settings] = {config.model_dump_json(): {}}
    for values in itertools.product(*grid.values()) if grid else ():
        recipe = dict(zip(grid, values, strict=True))
        different.setdefault(with_settings(config, recipe).model_dump_json(), recipe)
    return list(different.values())


def with_settings(config: Config, recipe: Settings) -> Config:
    """The config with a recipe's settings. Raises CONFIG_RANGE."""
    data = config.model_dump()
    for key, value in recipe.items():
        section, _, name = key.partition(".")
        data[section][name] = value
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise explain(error, dict.fromkeys(recipe, f"sweep.grid {', '.join(recipe)}")) from None


def checked_recipes(config: Config, where: str) -> list[Settings]:
    """`recipes`. Raises CONFIG_CONFLICT for a grid of other settings, or one that is empty or too large; CONFIG_RANGE
    for values that a setting does not allow."""
    size = 1
    for key, values in config.sweep.grid.items():
        if key not in SWEPT:
            fix = f"sweep settings of the recipe: {', '.join(SWEPT)}."
            raise ConfigError("CONFIG_CONFLICT", f"{key} cannot be swept.", where=where, fix=fix)
        if not values:
            raise ConfigError("CONFIG_CONFLICT", f"{key} has no values.", where=where, fix="give at least one.")
        size *= len(values)
    if size > MOST:
        fix = "sweep fewer settings at a time."
        raise ConfigError("CONFIG_CONFLICT", f"the grid has {size} recipes, more than {MOST}.", where=where, fix=fix)
    every = recipes(config) if config.sweep.grid else [{}]
    if config.sweep.grid and not every[1:]:
        fix = "give values that differ from the config's."
        raise ConfigError("CONFIG_CONFLICT", "no recipe of the grid differs from the config.", where=where, fix=fix)
    return every
