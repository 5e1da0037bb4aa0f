"""Configuration: Config is what the user wrote, Plan is what the run will use; both are frozen."""

from tunewright.core.config.adapter_kinds import PeftKind
from tunewright.core.config.explain import fields
from tunewright.core.config.load import absolute, flat, load, to_yaml, validate
from tunewright.core.config.plan import Estimate, Plan
from tunewright.core.config.schema import (
    HEADS,
    PREFERENCE,
    RATED,
    REWARDED,
    AdapterConfig,
    Config,
    CostConfig,
    DataConfig,
    ExperimentsConfig,
    ExportConfig,
    ForgetConfig,
    Kernels,
    MethodOptions,
    ProveConfig,
    Recompute,
    RemoteConfig,
    RewardConfig,
    SplitConfig,
    SweepConfig,
    TrainConfig,
)
from tunewright.core.config.sweeps import recipes, with_settings

__all__ = [
    "HEADS",
    "PREFERENCE",
    "RATED",
    "REWARDED",
    "AdapterConfig",
    "Config",
    "CostConfig",
    "DataConfig",
    "Estimate",
    "ExperimentsConfig",
    "ExportConfig",
    "ForgetConfig",
    "Kernels",
    "MethodOptions",
    "PeftKind",
    "Plan",
    "ProveConfig",
    "Recompute",
    "RemoteConfig",
    "RewardConfig",
    "SplitConfig",
    "SweepConfig",
    "TrainConfig",
    "absolute",
    "fields",
    "flat",
    "load",
    "recipes",
    "to_yaml",
    "validate",
    "with_settings",
]
