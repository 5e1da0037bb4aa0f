"""The public functions of `import tunewright as tw`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core import config as configuration
from tunewright.core import run_folder
from tunewright.core.run_folder import Run


@dataclass(frozen=True)
class Result:
    """A finished run. `verdict` is read from the run folder on access; `chat` loads the model."""

    path: Path

    @property
    def verdict(self) -> dict[str, Any]:
        """verdict.json: the verdict, the scores, the interval, every arm."""
        verdict: dict[str, Any] = run_folder.read_json(Run(self.path).verdict)
        return verdict

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def chat(self, message: str, *, system: str | None = None, max_new_tokens: int = 256) -> str:
        """The tuned model's greedy answer, with the tools of the training rows; a call is a line of JSON. ``system``
        defaults to their instruction."""
        from tunewright.runtime import chat

        return chat.answer(chat.load_run(Run(self.path)), message, system=system, max_new_tokens=max_new_tokens)


def run(
    data: str | Path | Sequence[str | Path],
    *,
    model: str = "smollm2-135m",
    name: str | None = None,
    root: str | Path = "runs",
    quiet: bool = True,
    **settings: Any,
) -> Result:
    """Run every stage on the rows of one or several files: check, plan, train, prove, export, report.

    ``settings``: settings, with two underscores for each dot: ``train__steps=40``. Raises TunewrightError.
    """
    from tunewright.core.console import Console
    from tunewright.stages import runner

    files = _names(data)
    config = configuration.load(None, model=model, data__train=files, **settings)
    words = "".join(f", {key}={value!r}" for key, value in {"model": model, "name": name, **settings}.items())
    command = f"tw.run({files!r}{words}, root={str(root)!r})"
    context = runner.start(config, name, Path(root), Console(quiet), command)
    runner.Runner(context).advance("report")
    return Result(context.run.path)


def load_run(name: str | Path, root: str | Path = "runs") -> Result:
    """An existing run, by its path or its name. Raises RunError."""
    run = run_folder.find(Path(root), str(name))
    run_folder.require(run, run.verdict, "run")
    return Result(run.path)


def check(data: str | Path | Sequence[str | Path], **settings: Any) -> dict[str, Any]:
    """The audit of the rows of one or several files as plain values, without torch. Raises DataError."""
    from tunewright.data import dataset

    return dataset.load(configuration.load(None, data__train=_names(data), **settings)).audit_json()


def _names(data: str | Path | Sequence[str | Path]) -> str | list[str]:
    return str(data) if isinstance(data, str | Path) else [str(name) for name in data]
