"""What a sweep has chosen: the plan of the best recipe, and its branch, which has been trained already."""

from __future__ import annotations

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import SWEEP, BranchFile, RecipeSweep
from tunewright.core.run_folder import Run


def branch_of(run: Run) -> Run | None:
    """The branch of the chosen recipe; None without a sweep."""
    sweep = records.existing(run.sweep, SWEEP)
    return run.branch(sweep.recipe.branch) if isinstance(sweep, RecipeSweep) else None


def plan_of(run: Run) -> Plan | None:
    """The plan of the chosen recipe; None without a sweep."""
    branch = branch_of(run)
    return records.read(branch.branch_file, BranchFile).plan if branch else None
