"""The names of the stages, in order, each with the file that marks it as done; importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class StageName(NamedTuple):
    """``name`` identifies the stage everywhere; ``done`` is its participle, for `runs list`. ``file`` is written last.

    ``evidence``: verdict.json contains a copy of the record under the stage's name.
    """

    name: str
    done: str
    file: str
    evidence: bool = False

    def is_done(self, run: Path) -> bool:
        return (run / self.file).exists()


STAGE_NAMES = (
    StageName("check", "checked", "data/split.jsonl"),
    StageName("sweep", "checked, recipes compared", "sweep.json"),
    StageName("plan", "planned", "plan.json"),
    StageName("train", "trained", "training.json"),
    StageName("forgetting", "trained, forgetting measured", "forgetting.json", evidence=True),
    StageName("prove", "proven", "verdict.json"),
    StageName("pairs", "proven", "pairs.json", evidence=True),
    StageName("rewards", "proven", "rewards.json", evidence=True),
    StageName("distillation", "proven", "distillation.json", evidence=True),
    StageName("crossfit", "proven", "crossfit.json", evidence=True),
    StageName("cleaning", "proven", "cleaning.json", evidence=True),
    StageName("mitigation", "proven", "mitigation.json", evidence=True),
    StageName("prompt_distillation", "proven", "prompt_distillation.json", evidence=True),
    StageName("learning_curve", "proven", "learning_curve.json", evidence=True),
    StageName("cost", "proven, timed", "cost.json", evidence=True),
    StageName("export", "exported", "export.json"),
    StageName("report", "reported", "report.html"),
)
BY_NAME = {stage.name: stage for stage in STAGE_NAMES}


def last_done(run: Path) -> StageName | None:
    """The last completed stage of a run folder; None if there is none."""
    return next((stage for stage in reversed(STAGE_NAMES) if stage.is_done(run)), None)


def evidence(run: Path) -> dict[str, Path]:
    """The existing records that verdict.json copies, by key."""
    return {s.name: run / s.file for s in STAGE_NAMES if s.evidence and s.is_done(run)}
