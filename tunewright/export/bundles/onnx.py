"""The merged model as ONNX, written by the builder of onnxruntime-genai."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tunewright.core.errors import TrainError
from tunewright.core.run_folder import write_atomic
from tunewright.export.bundles.bundle import Bundle, BundleInputs
from tunewright.export.templating import render

BUILDER = "onnxruntime_genai.models.builder"


def write(inputs: BundleInputs, folder: Path) -> None:
    merged = inputs.export("merged").resolve()
    with tempfile.TemporaryDirectory() as scratch:
        options = ["-i", str(merged), "-o", str(folder), "-p", "fp32", "-e", "cpu", "-c", scratch]
        command = [sys.executable, "-m", BUILDER, *options, "--extra_options", "hf_remote=false"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        fix = f"see all it prints: `python -m {BUILDER} -i {merged} -o FOLDER -p fp32 -e cpu`."
        raise TrainError("EXPORT_FAILED", f"the builder of onnxruntime-genai failed: {last}", where="onnx", fix=fix)
    messages = [m.to_json() for m in inputs.messages("...")]
    write_atomic(folder / "README.md", render("onnx.md", name=inputs.name, messages=messages))


ONNX = Bundle(kind="onnx", needs=("merged",), write=write, packages=("onnxruntime-genai", "onnx", "onnx-ir"))
