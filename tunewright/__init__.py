"""tunewright: fine-tune a language model on your rows, and prove on held-out rows what it did.

    import tunewright as tw
    run = tw.run("rows.jsonl", model="smollm2-135m")
    print(run.verdict["verdict"], run.report)
    print(run.chat("350 Fifth Ave, New York, NY 10118"))

Everything is loaded on first use; importing the package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Config", "Result", "TunewrightError", "check", "load_run", "run"]

if TYPE_CHECKING:
    from tunewright.api import Result, check, load_run, run
    from tunewright.core.config import Config
    from tunewright.core.errors import TunewrightError

_MODULES = {
    "Config": "core.config",
    "TunewrightError": "core.errors",
    "Result": "api",
    "check": "api",
    "load_run": "api",
    "run": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tunewright' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"tunewright.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
