"""`tunewright doctor`: facts about this machine as a flat table, and the self-test of a run."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from tunewright.core import config as settings
from tunewright.core import run_folder
from tunewright.core.config import Config, SweepConfig
from tunewright.core.console import Console
from tunewright.core.errors import ModelError
from tunewright.model import loading
from tunewright.stages import runner
from tunewright.system import machine


def dry_run(config: Config) -> dict[str, Any]:
    """The results of a run's self-test. The run stops after its plan, and its folder is deleted."""
    with tempfile.TemporaryDirectory(prefix="tunewright-doctor-") as folder:
        config = config.model_copy(update={"sweep": SweepConfig()})
        context = runner.start(config, "doctor", Path(folder), Console(quiet=True), "tunewright doctor")
        runner.Runner(context).advance("plan")
        selftest = run_folder.read_json(context.run.selftest)
    return {f"self-test, {f['check']}": f["result"] for f in selftest["findings"]} | {
        "self-test": f"{selftest['seconds']} s"
    }


def summary(config_file: Path | None) -> dict[str, Any]:
    """Label -> value, for people to read. Raises ConfigError if ``config_file`` is invalid."""
    if config_file is not None:
        settings.load(config_file)
    hardware = machine.measure()
    versions = {p: metadata.version(p) for p in ("tunewright", "torch", "transformers")}
    try:
        embedded = str(loading.resolve(loading.EMBEDDED))
    except ModelError as error:
        embedded = str(error)
    cache = loading.cache_folder()
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    return {
        "python": platform.python_version(),
        **versions,
        "device": hardware.device,
        "processor": hardware.processor,
        "threads": hardware.cores,
        "memory": f"{hardware.free_gb} GB free of {hardware.memory_gb} GB",
        "float32": f"{hardware.fp32_gflops} GFLOP/s",
        "bfloat16": f"{hardware.bf16_gflops} GFLOP/s (dtype=auto chooses {hardware.dtype})",
        "pyarrow (Parquet)": "installed"
        if importlib.util.find_spec("pyarrow")
        else "pip install 'tunewright[parquet]'",
        "embedded model": embedded,
        "cache": f"{cache}, {shutil.disk_usage(existing).free / 1e9:.0f} GB free",
        **({"config": f"{config_file} is valid"} if config_file else {}),
    }
