"""Branches as files, which other processes can train, and the sweep: recipes, each trained as branches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, TypeAdapter

from tunewright.core.config import Plan
from tunewright.core.records.common import Interval, Measured, Record, Value


class BranchFile(Record):
    """What a branch is trained on and how."""

    plan: Plan = Field(description="The branch's plan.")
    train: str = Field(description="File of its training rows in branches/rows.")
    dev: str = Field(description="File of its dev rows in branches/rows.")
    hashes: dict[str, str] = Field(
        description="sha256 of data, model, template, plan and rows, the same on all machines."
    )
    measured: bool = Field(
        description="Whether the loss of each dev row is measured where its training pauses or ends."
    )


class BranchFailure(Record):
    """Why a branch cannot be trained, whatever the machine."""

    code: str = Field(description="An error code.")
    message: str = Field(description="What happened.")
    where: str = Field(description="Where.")
    fix: str = Field(description="What to do.")


class DevNats(Record):
    """The loss of each dev row by the best weights so far."""

    step: int = Field(description="Steps taken.")
    nats: tuple[float, ...] = Field(description="Nats of the supervised tokens of each row, in the order of the rows.")


class Rung(Value):
    """A recipe at a fraction of its steps. Losses in nats per supervised token of the dev rows."""

    fraction: float = Field(description="Fraction of the recipe's steps.")
    loss: float = Field(description="Dev loss of the best weights so far, with the first seed.")
    difference: float | None = Field(None, description="This loss minus the default recipe's; absent for that one.")
    interval: Interval | None = Field(
        None, description="Of the difference, over dev rows alone, simultaneous for all recipes of this rung."
    )


class SweptRecipe(Value):
    """One recipe of a sweep. Losses in nats per supervised token."""

    settings: dict[str, JsonValue] = Field(description="Settings that differ from the config; empty for the default.")
    branch: str = Field(description="The branch of its first seed.")
    lr: float = Field(description="Its peak learning rate.")
    steps: int = Field(description="Steps of its plan.")
    rungs: tuple[Rung, ...] = Field(description="Where it was compared; a dropped recipe has no later ones.")
    seeds: int = Field(description="Seeds that it was trained with to the end; 0 if it was dropped or failed.")
    error: str | None = Field(None, description="Why its training failed.")

    @property
    def words(self) -> str:
        """Its settings, as on a command line."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items()) or "the default"


class RecipeSweep(Record):
    """Several recipes, compared by dev loss; one of them is the run's plan. Nats per supervised token of dev rows."""

    measured: Literal[True] = Field(True, description="Always true.")
    tried: int = Field(description="Number of recipes, the default included.")
    dev_rows: int = Field(description="Dev rows that they were compared on.")
    recipes: tuple[SweptRecipe, ...] = Field(description="All recipes; the first is the default.")
    challenger: int | None = Field(None, description="Number of the best of the others, counted from 0.")
    difference: float | None = Field(None, description="Its dev loss minus the default's, over all seeds.")
    interval: Interval | None = Field(
        None, description="Of this difference, over dev rows and seeds, with room for the number of recipes tried."
    )
    chosen: int = Field(description="Number of the recipe that the run uses: the default unless it is beaten.")
    steps: int = Field(description="Steps trained for the sweep.")
    full_steps: int = Field(description="Steps of all recipes with all seeds.")
    seconds: float = Field(description="Seconds of training, over all processes.")

    @property
    def recipe(self) -> SweptRecipe:
        """The one that the run uses."""
        return self.recipes[self.chosen]


AnySweep = Measured[RecipeSweep]
SWEEP: TypeAdapter[AnySweep] = TypeAdapter(AnySweep)
