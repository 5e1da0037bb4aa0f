"""Bundles: folders for third-party programs, each made from a run's exports. A new one is a module with a `Bundle`,
listed here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tunewright.core.config import Config
from tunewright.core.errors import ConfigError
from tunewright.core.run_folder import disk_errors, replacing, write_atomic
from tunewright.export.bundles.bundle import Bundle, gather
from tunewright.export.bundles.mlx import MLX
from tunewright.export.bundles.ollama import OLLAMA
from tunewright.export.bundles.onnx import ONNX
from tunewright.export.bundles.serve import SERVE
from tunewright.export.kind import TrainedRun
from tunewright.export.portable import let_others_read
from tunewright.export.templating import render

BUNDLES = {bundle.kind: bundle for bundle in (OLLAMA, SERVE, MLX, ONNX)}


def require_supported(source: TrainedRun, exports: Collection[str]) -> None:
    """``exports``: those of the run. Raises CONFIG_CONFLICT for a bundle that cannot be written, MISSING_PACKAGE."""
    for bundle in _wanted(source.config):
        missing = [kind for kind in bundle.needs if kind not in exports]
        reason = (
            (source.plan.silent and f"it is for programs that write texts, and the model {source.plan.silent}")
            or bundle.unsupported(source.plan, source.facts.model_type)
            or (
                bundle.kind == "mlx"
                and source.facts.packed == "nf4"
                and "mlx-lm has no NF4, so its base would not be the one that the adapter was trained on"
            )
            or (missing and f"it is made from the {missing[0]} export")
        )
        if reason:
            fix = f"add {missing[0]} to export.to, or leave out" if missing else "leave out"
            message = f"the {bundle.kind} bundle cannot be written: {reason}."
            raise ConfigError("CONFIG_CONFLICT", message, where="export.to", fix=f"{fix} {bundle.kind}.")


def write(source: TrainedRun, stop: Sequence[int]) -> None:
    """Writes a folder for each bundle. ``stop``: tokens that end an answer."""
    for bundle in _wanted(source.config):
        folder = source.run.path / bundle.kind
        with replacing(folder) as temporary, disk_errors(folder):
            readme = bundle.write(gather(source, stop), temporary)
            write_atomic(temporary / "README.md", render("bundle.md", **readme._asdict()))
            let_others_read(temporary)


def _wanted(config: Config) -> list[Bundle]:
    return [bundle for bundle in BUNDLES.values() if bundle.kind in config.export.to]
