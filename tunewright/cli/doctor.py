"""`tunewright doctor`: what this machine has, as a flat table."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from tunewright.core import config, run_folder
from tunewright.core.config import Config
from tunewright.core.console import Console
from tunewright.core.errors import ModelError
from tunewright.model import loading
from tunewright.stages import runner
from tunewright.train import machine


def dry_run(asked: Config) -> dict[str, Any]:
    """The self-test of a run that begins here and ends with its plan; nothing of it is kept."""
    with tempfile.TemporaryDirectory(prefix="tunewright-doctor-") as folder:
        session = runner.start(asked, "doctor", Path(folder), Console(quiet=True), "tunewright doctor")
        runner.advance(session, "plan")
        found = run_folder.read_json(session.run.selftest)
    return {f"self-test, {f['check']}": f["told"] for f in found["findings"]} | {"self-test": f"{found['seconds']} s"}


def summary(config_file: Path | None) -> dict[str, Any]:
    """Facts for people; raises ConfigError when a config is given that does not hold."""
    if config_file is not None:
        config.load(config_file)
    found = machine.measure()
    versions = {p: metadata.version(p) for p in ("tunewright", "torch", "transformers")}
    try:
        embedded = str(loading.resolve(loading.EMBEDDED))
    except ModelError as error:
        embedded = str(error)
    cache = loading.cache_folder()
    place = next(p for p in (cache, *cache.parents) if p.exists())
    faster = "bfloat16" if found.bf16_gflops > 1.3 * found.fp32_gflops else "float32"
    return {
        "python": platform.python_version(),
        **versions,
        "device": found.device,
        "processor": found.processor,
        "threads": found.cores,
        "memory": f"{found.free_gb} GB free of {found.memory_gb} GB",
        "float32": f"{found.fp32_gflops} GFLOP/s",
        "bfloat16": f"{found.bf16_gflops} GFLOP/s (dtype=auto chooses {faster})",
        "pyarrow (Parquet)": "installed" if importlib.util.find_spec("pyarrow") else "pip install 'tunewright[parquet]'",
        "embedded model": embedded,
        "cache": f"{cache}, {shutil.disk_usage(place).free / 1e9:.0f} GB free",
        **({"config": f"{config_file} holds"} if config_file else {}),
    }
