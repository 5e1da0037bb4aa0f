"""Writes the bundles that the config asks for, after the exports."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from tunewright.core.config import Config, Plan
from tunewright.core.errors import ConfigError, MissingExtra
from tunewright.core.run_folder import disk_errors, replacing
from tunewright.export.bundles import BUNDLES
from tunewright.export.bundles.bundle import Bundle, gather
from tunewright.export.kind import TrainedRun

if TYPE_CHECKING:
    from tunewright.model.facts import Facts


def wanted(config: Config) -> list[Bundle]:
    return [bundle for bundle in BUNDLES.values() if bundle.kind in config.export.to]


def require_supported(config: Config, exports: Collection[str], plan: Plan, facts: Facts) -> None:
    """``exports``: those of the run. Raises CONFIG_CONFLICT for a bundle that cannot be written, MISSING_PACKAGE."""
    for bundle in wanted(config):
        what = f"the {bundle.kind} bundle"
        if reason := bundle.unsupported(plan, facts):
            fix = f"leave {bundle.kind} out of export.to."
            raise ConfigError("CONFIG_CONFLICT", f"{what} cannot be written: {reason}.", where="export.to", fix=fix)
        for kind in bundle.needs:
            if kind not in exports:
                message = f"{what} is made from the {kind} export, which export.to lacks."
                fix = f"export.to='[{', '.join([*config.export.to, kind])}]'."
                raise ConfigError("CONFIG_CONFLICT", message, where="export.to", fix=fix)
        for package in bundle.packages:
            if importlib.util.find_spec(package.replace("-", "_")) is None:
                install = f"pip install {' '.join(bundle.packages)}"
                raise MissingExtra(package, what, install, where="export.to")


def write(source: TrainedRun, stop: Sequence[int]) -> None:
    """Writes a folder for each bundle. ``stop``: tokens that end an answer."""
    for bundle in wanted(source.config):
        folder = source.run.path / bundle.kind
        with replacing(folder) as temporary, disk_errors(folder):
            bundle.write(gather(source, stop), temporary)
