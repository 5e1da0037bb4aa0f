"""The merged model as ONNX, written by the builder of onnxruntime-genai."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

from tunewright.core import programs
from tunewright.core.config import Plan
from tunewright.core.errors import MissingExtra, TrainError
from tunewright.export.bundles.bundle import Bundle, BundleInputs, Readme

PACKAGES = ("onnxruntime-genai", "onnx", "onnx-ir")
BUILDER = ["-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p"]
NOTE = "In float32, for the CPU; not compared with the trained model. The command writes a smaller one."


def write(inputs: BundleInputs, folder: Path) -> Readme:
    merged = inputs.source.run.merged.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        options = ["-i", str(merged), "-o", str(folder), "-c", scratch, "--extra_options", "hf_remote=false"]
        last = programs.failure([sys.executable, *BUILDER, "fp32", *options])
    if last is not None:
        fix = "leave onnx out of export.to, or try other versions of the packages."
        raise TrainError("EXPORT_FAILED", f"the builder of onnxruntime-genai failed: {last}", where="onnx", fix=fix)
    smaller = f"python {' '.join(BUILDER)} int4 -i ../merged -o FOLDER"
    return Readme(f"{inputs.name} in ONNX Runtime", [smaller], [NOTE])


def unsupported(plan: Plan, architecture: str) -> None:
    """Raises MISSING_PACKAGE."""
    for package in PACKAGES:
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise MissingExtra(package, "the onnx bundle", f"pip install {' '.join(PACKAGES)}", where="export.to")


ONNX = Bundle(kind="onnx", needs=("merged",), write=write, unsupported=unsupported)
