"""Which recipe? Trains several as branches, compares them by the loss of all dev rows, and lets the run use the best
if it is shown to be better than the default.

Successive halving (Jamieson and Talwalkar 2016, 1502.07943) at equal fractions of the steps. Test rows are not used:
the run asks them once, for the chosen recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunewright.core import records
from tunewright.core.config import Plan, recipes, with_settings
from tunewright.core.errors import ConfigError, RunError, TrainError, TunewrightError, data_error
from tunewright.core.records import METRICS, BranchFile, DevNats, NotMeasured, RecipeSweep, Rung, StepLine, SweptRecipe
from tunewright.core.run_folder import Run
from tunewright.core.words import LONG_HOURS, counted, duration
from tunewright.export import export
from tunewright.export.kind import TrainedRun
from tunewright.judge import recipes as comparing
from tunewright.judge.recipes import RUNGS, Nats
from tunewright.runtime import branches
from tunewright.runtime.branches import Branch
from tunewright.runtime.context import Setup
from tunewright.stages import plan as planned
from tunewright.stages.stage import Stage, StageInputs
from tunewright.train import planning, profile
from tunewright.train.recipe import RowStats

COMPARISONS = 8  # dev losses of a training, at some of which recipes are compared


@dataclass(frozen=True)
class Race:
    """The recipes of a run. ``settings``, ``plans``: of each; ``weight``: supervised tokens of a dev row, on average;
    ``rungs``, ``failed``: by recipe, filled while they are trained."""

    setup: Setup
    settings: Sequence[Mapping[str, object]]
    plans: Sequence[Plan]
    weight: float
    clusters: Sequence[int]
    rungs: dict[int, list[Rung]] = field(default_factory=dict)
    failed: dict[str, TunewrightError] = field(default_factory=dict)

    def branch(self, recipe: int, seed: int = 0) -> Branch:
        """``seed``: counted from the config's."""
        plan, rows = self.plans[recipe], self.setup.inputs.rows
        return Branch(
            name=f"recipe-{recipe}-seed-{plan.seed + seed}",
            plan=plan.model_copy(update={"seed": plan.seed + seed}),
            rows=rows["train"],
            dev=rows["dev"],
            scale=1.0,
            measured=True,
        )

    def trained(self, wanted: Sequence[tuple[int, int]], fraction: float = 1.0) -> None:
        """Trains recipes with seeds. Raises the default's error: there is nothing to compare the others with."""
        self.failed.update(branches.advance(self.setup, [self.branch(*pair) for pair in wanted], fraction))
        if error := self.failed.get(self.branch(0).name):
            (problem,) = error.problems
            raise TrainError(
                error.code,
                f"the default recipe cannot be trained: {problem.message}",
                where=problem.where,
                fix="start a new sweep with a default that can: `train.lr=1e-4 train.lr=3e-5,3e-4` makes it 1e-4.",
            )

    def nats(self, recipe: int, seed: int = 0, fraction: float = 1.0) -> Nats:
        """nats_R of the dev rows."""
        branch = self.branch(recipe, seed)
        run = self.setup.context.run.branch(branch.name)
        file = branches.dev_file(run, branches.step_at(branch.plan, fraction))
        return np.array(records.read(file, DevNats).nats)


def sweep(inputs: StageInputs) -> RecipeSweep | NotMeasured:
    """Trains the recipes of sweep.grid. Raises CONFIG_CONFLICT without dev rows."""
    if not inputs.context.config.sweep.grid:
        return NotMeasured(reason="sweep.grid is empty")
    setup = inputs.setup()
    race, settings = _race(setup), setup.context.config.sweep
    alive = list(range(len(race.plans)))
    for fraction in RUNGS if settings.halve else RUNGS[-1:]:
        race.trained([(n, 0) for n in alive], fraction)
        alive = [n for n in alive if race.branch(n).name not in race.failed]
        losses = _compare(race, alive, fraction)
        alive = comparing.kept(losses, 0) if fraction < 1.0 else alive
    others = [n for n in alive if n]
    if not others:
        return _record(race, None, alive)
    challenger = min(others, key=lambda n: losses[n])
    race.trained([(n, seed) for seed in range(1, settings.seeds) for n in (0, challenger)])
    return _record(race, challenger, alive)


def _race(setup: Setup) -> Race:
    context, inputs = setup.context, setup.inputs
    config, dev = context.config, inputs.rows["dev"]
    if not dev:
        raise ConfigError(
            "CONFIG_CONFLICT",
            "a sweep compares recipes on dev rows, and there are none.",
            where="split.dev",
            fix="set split.dev=0.1, or data.dev to a file.",
        )
    clusters = [context.data.cluster[row.row] for row in dev]
    if len(set(clusters)) < 2:
        raise data_error(
            "DATA_TOO_FEW", "all dev rows are nearly the same, so they cannot compare recipes.", where="dev"
        )
    settings, sizes, kind = recipes(config), RowStats.of(inputs.rows["train"]), context.data.task.kind.name
    plans = []
    for recipe in settings:
        wanted = with_settings(config, recipe)
        plan = planning.make_plan(wanted, inputs.facts, sizes, inputs.machine, kind, inputs.max_new_tokens)
        planning.require_memory(plan, inputs.facts, sizes, 1e9 * inputs.machine.free_gb, inputs.machine.device)
        export.require_supported(TrainedRun(context.run, wanted, plan, inputs.facts, inputs.template))
        plans.append(_for_comparison(plan, recipe, len(settings), wanted.train.eval_every == "auto"))
    exact = planned.after_self_test(setup, plans[0])
    race = Race(
        setup,
        settings,
        [_begun(context.run, n) or _as_exact(plan, plans[0], exact) for n, plan in enumerate(plans)],
        float(np.mean([row.supervised for row in dev])),
        clusters,
    )
    if config.sweep.halve and config.train.eval_every != "auto":
        _require_same_fractions(race.plans)
    _announce(race)
    return race


def _as_exact(plan: Plan, default: Plan, exact: Plan) -> Plan:
    """Without what the self-test of the default recipe has given up, where the plan is the default's."""
    given_up = {
        name: getattr(exact, name) for name in ("layout", "kernels") if getattr(exact, name) != getattr(default, name)
    }
    return plan.model_copy(update={n: v for n, v in given_up.items() if getattr(plan, n) == getattr(default, n)})


def _require_same_fractions(plans: Sequence[Plan]) -> None:
    """Recipes are compared after equal fractions of their steps, as far as a dev loss is measured there."""
    for plan in plans:
        for fraction in RUNGS:
            if abs(branches.step_at(plan, fraction) / plan.steps - fraction) > 0.5 / COMPARISONS:
                raise ConfigError(
                    "CONFIG_CONFLICT",
                    f"recipes are compared at {fraction:.0%} of their steps, and one of {plan.steps} steps has no dev "
                    "loss near there.",
                    where="train.eval_every",
                    fix="leave train.eval_every at auto, or compare at the end alone: --full.",
                )


def _begun(run: Run, recipe: int) -> Plan | None:
    """The plan of a recipe that was begun earlier: a new one could differ, because it measures the machine."""
    plans = [
        records.read(f, BranchFile).plan for f in (run.path / "branches").glob(f"recipe-{recipe}-seed-*/branch.json")
    ]
    return min(plans, key=lambda plan: plan.seed, default=None)


def _for_comparison(plan: Plan, recipe: Mapping[str, object], tried: int, may_change: bool) -> Plan:
    names = [key.removeprefix("train.") for key in recipe]
    reasons = {name: f"one of {tried} recipes of a sweep" for name in names if name in Plan.model_fields}
    changed: dict[str, object] = {}
    if may_change:
        changed["eval_every"] = math.ceil(plan.steps / COMPARISONS)
        reasons["eval_every"] = f"{COMPARISONS} dev losses, at some of which the sweep compares recipes"
    return plan.model_copy(update={**changed, "reasons": {**plan.reasons, **reasons}})


def _announce(race: Race) -> None:
    setup, settings = race.setup, race.setup.context.config.sweep
    speed = profile.calibrate(setup.models.untrained(race.plans[0]), setup.inputs.rows["train"], race.plans[0])
    tokens = sum(plan.steps * plan.batch_size * plan.tokens / plan.rows for plan in race.plans)
    part = 0.5 if settings.halve else 1.0
    more = 2 * (settings.seeds - 1) * tokens / len(race.plans)
    seconds = (part * tokens + more) / speed.tokens_per_second
    say = setup.context.console.say
    agreed = setup.context.where.agreed or (setup.context.run.path / "branches").exists()
    if seconds > 3600 * LONG_HOURS and not agreed:
        raise RunError(
            "RUN_LONG",
            f"the sweep would take about {duration(seconds)}.",
            where=str(setup.context.run.path),
            fix="add --yes to begin it; fewer recipes or fewer train.steps take less.",
        )
    say(f"sweep: {counted(len(race.plans), 'recipe')}, the default first; about {duration(seconds)} of training")
    for n in range(len(race.plans)):
        say(f"  {n}: {_recipe(race, n, 0).words}")


def _compare(race: Race, alive: Sequence[int], fraction: float) -> dict[int, float]:
    """Adds a rung to each recipe. Returns their losses."""
    alpha = race.setup.context.config.prove.significance
    nats = {n: race.nats(n, fraction=fraction) for n in alive}
    losses = {n: float(nats_R.mean()) / race.weight for n, nats_R in nats.items()}
    for n in alive:
        rung = Rung(fraction=fraction, loss=losses[n])
        if n:
            d, (low, high) = comparing.difference(
                nats[n][None], nats[0][None], race.clusters, alpha, max(1, len(race.plans) - 1)
            )
            ends = records.Interval(low / race.weight, high / race.weight)
            rung = Rung(fraction=fraction, loss=losses[n], difference=d / race.weight, interval=ends)
        race.rungs.setdefault(n, []).append(rung)
    where = "the end" if fraction == 1.0 else f"{fraction:.0%} of the steps"
    shown = ", ".join(f"{n}: {losses[n]:.4f}" for n in sorted(losses, key=lambda n: losses[n]))
    race.setup.context.console.say(f"sweep: dev loss at {where}: {shown}")
    return losses


def _record(race: Race, challenger: int | None, finished: Sequence[int]) -> RecipeSweep:
    config = race.setup.context.config
    seeds = dict.fromkeys(finished, 1)
    facts: dict[str, object] = {"chosen": 0}
    if challenger is not None:
        own, default = ([s for s in range(config.sweep.seeds) if _whole(race, n, s)] for n in (challenger, 0))
        seeds |= {challenger: len(own), 0: len(default)}
        d, (low, high) = comparing.difference(
            np.array([race.nats(challenger, s) for s in own]),
            np.array([race.nats(0, s) for s in default]),
            race.clusters,
            config.prove.significance,
            len(race.plans) - 1,
        )
        ends = records.Interval(low / race.weight, high / race.weight)
        beaten = high < 0 and len(own) == len(default) == config.sweep.seeds
        facts = {"challenger": challenger, "difference": d / race.weight, "interval": ends}
        facts["chosen"] = challenger if beaten else 0
    lines = _lines(race)
    return RecipeSweep.model_validate(
        {
            **facts,
            "tried": len(race.plans),
            "dev_rows": len(race.clusters),
            "recipes": tuple(_recipe(race, n, seeds.get(n, 0)) for n in range(len(race.plans))),
            "steps": len(lines),
            "full_steps": config.sweep.seeds * sum(plan.steps for plan in race.plans),
            "seconds": round(sum(line.seconds for line in lines), 1),
        }
    )


def _whole(race: Race, recipe: int, seed: int) -> bool:
    return race.branch(recipe, seed).name not in race.failed


def _recipe(race: Race, n: int, seeds: int) -> SweptRecipe:
    branch = race.branch(n)
    names = [race.branch(n, seed).name for seed in range(race.setup.context.config.sweep.seeds)]
    error = next((race.failed[name] for name in names if name in race.failed), None)
    return SweptRecipe.model_validate(
        {
            "settings": dict(race.settings[n]),
            "branch": branch.name,
            "lr": branch.plan.lr,
            "steps": branch.plan.steps,
            "rungs": tuple(race.rungs.get(n, ())),
            "seeds": seeds,
            "error": str(error) if error else None,
        }
    )


def _lines(race: Race) -> list[StepLine]:
    """Every step of every branch."""
    run, seeds = race.setup.context.run, range(race.setup.context.config.sweep.seeds)
    files = [run.branch(race.branch(n, s).name).metrics for n in range(len(race.plans)) for s in seeds]
    return [line for file in files for line in records.read_lines(file, METRICS) if isinstance(line, StepLine)]


def lines(record: RecipeSweep) -> Sequence[str]:
    cost = f"{record.steps} steps instead of {record.full_steps}"
    if record.challenger is None or record.interval is None:
        return [f"sweep: no other recipe could be trained; the default is kept ({cost})"]
    best = record.recipes[record.challenger].words
    word = f"chosen: {best}" if record.chosen else f"keeping the default; the best alternative was {best}"
    if lost := [r.error for r in (record.recipes[0], record.recipes[record.challenger]) if r.error]:
        word += f" (not comparable with every seed: {lost[0]})"
    return [
        f"sweep of {record.tried} recipes: {word}; dev loss minus the default's: "
        f"{record.difference:+.4f} {record.interval:+.4f} nats per token ({cost})"
    ]


STAGE = Stage(name="sweep", run=sweep, lines=lines)
