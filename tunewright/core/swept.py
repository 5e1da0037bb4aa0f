"""What a sweep has chosen: the plan of the best recipe, and its branch, which has been trained already."""

from __future__ import annotations

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import SWEEP, BranchFile, RecipeSweep
from tunewright.core.run_folder import Run


def sweep_of(run: Run) -> RecipeSweep | None:
    """The run's sweep; None without one."""
    sweep = records.existing(run.sweep, SWEEP)
    return sweep if isinstance(sweep, RecipeSweep) else None


def branch_of(run: Run) -> Run | None:
    """The branch of the chosen recipe; None without a sweep."""
    sweep = sweep_of(run)
    return run.branch(sweep.recipe.branch) if sweep else None


def plan_of(run: Run) -> Plan | None:
    """The plan of the chosen recipe; None without a sweep."""
    branch = branch_of(run)
    return records.read(branch.branch_file, BranchFile).plan if branch else None
